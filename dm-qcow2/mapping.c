// SPDX-License-Identifier: GPL-2.0-only
/*
 * mapping.c - changing the L2 table of a writable image, and making one where there is none.
 *
 * Called by the writer's work item, which alone changes mappings.  Takes image.meta_lock around
 * each change, and image.alloc_lock through qcow2_alloc_cluster().
 */
#include <linux/device-mapper.h>

#include "alloc.h"
#include "entries.h"
#include "generation.h"
#include "image.h"
#include "mapping.h"
#include "storage.h"
#include "table-cache.h"
#include "view-map.h"

/* One extent is enough: two clusters are adjacent. */
void qcow2_free_reference(struct qcow2_image *img, struct freed_extent **freed, u64 entry)
{
	u64 first, last;

	lockdep_assert_held(&img->meta_lock);
	if (!qcow2_l2_entry_clusters(img, entry, &first, &last))
		return;
	for (; first <= last; first++)
		qcow2_freed_add(img, freed, first);
}

/*
 * The L2 table of L1 entry @i does not exist: make it, full of zeroes on disk.  -EDQUOT: there was
 * a cluster, but the storage refused to write it; freeing another one does not help.
 */
static int add_l2_table(struct qcow2_image *img, u32 i)
{
	struct slice *l1 = flat_slice(&img->root.l1, i);
	struct freed_extent *freed;
	bool zeroed;
	u64 pos;
	int r;

	if (!qcow2_slice_has_place(l1))
		return -ENOSPC;
	freed = qcow2_freed_alloc(img);
	if (!freed || !qcow2_slice_try_prepare(l1)) {
		r = -ENOMEM;
		goto out;
	}
	r = qcow2_alloc_cluster(img, &pos, &zeroed);
	if (r)
		goto out;
	if (!zeroed)
		r = qcow2_storage_zero_sync(&img->st, pos, img->cluster_size);
	if (r == -ENOSPC) {
		qcow2_alloc_put_back(img, pos);
		r = -EDQUOT;
		goto out;
	}
	if (!r)
		r = qcow2_add_metadata(img, pos, img->cluster_size);
	mutex_lock(&img->meta_lock);
	if (!r) {
		qcow2_slice_dirty(l1);
		qcow2_set_entry(l1, i, qcow2_l1_entry_make(pos));
	} else {
		qcow2_freed_add(img, &freed, pos >> img->cluster_bits);
	}
	mutex_unlock(&img->meta_lock);
out:
	qcow2_freed_drop(img, freed);
	return r == -EEXIST ? -EIO : r;
}

struct slice *qcow2_get_l2(struct qcow2_image *img, u64 goff)
{
	u64 table = qcow2_l2_table(img, &img->root, goff);
	struct slice *s;
	int r;

	if (!table) {
		r = add_l2_table(img, qcow2_l1_index(img, goff));
		if (r)
			return ERR_PTR(r);
		table = qcow2_l2_table(img, &img->root, goff);
	}
	s = qcow2_slice_try_get(&img->cache, SLICE_L2, qcow2_l2_slice_index(img, table, goff));
	if (IS_ERR(s))
		return s;
	r = !qcow2_slice_has_place(s) ? -ENOSPC : !qcow2_slice_try_prepare(s) ? -ENOMEM : 0;
	if (r) {
		qcow2_slice_put(s);
		return ERR_PTR(r);
	}
	return s;
}

void qcow2_set_mapping(struct qcow2_image *img, struct slice *l2, u64 cluster, u32 nr, u64 entry,
		       u32 step, struct freed_extent **freed)
{
	struct view_chunk *held = NULL;
	u64 old;

	mutex_lock(&img->meta_lock);
	qcow2_slice_dirty(l2);
	for (; nr; nr--, cluster++, entry += step) {
		old = slice_entry(l2, cluster);
		if (freed)
			held = qcow2_view_record(img, cluster, old);
		qcow2_set_entry(l2, cluster, entry);
		if (held)
			qcow2_view_recorded(held, cluster);
		else if (freed)
			qcow2_free_reference(img, freed, old);
	}
	mutex_unlock(&img->meta_lock);
}
