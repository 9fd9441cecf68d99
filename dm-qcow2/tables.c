// SPDX-License-Identifier: GPL-2.0-only
/*
 * tables.c - the L1 and refcount tables when an image is opened, and room for all tables before it
 * is written.
 *
 * Takes no locks: nobody else uses the image yet, or only its owner does.
 */
#include <linux/device-mapper.h>
#include <linux/sched.h>

#include "entries.h"
#include "image.h"
#include "table-cache.h"
#include "tables.h"

static int check_top(struct qcow2_image *img, const struct flat_table *t, enum slice_kind kind,
		     const char *what, char **error)
{
	u32 i;
	int r;

	for (i = 0; i < t->nr_entries; i++) {
		u64 e = flat_entry(t, i);

		cond_resched();
		if (!e)
			continue;
		if (!qcow2_top_entry_valid(img, kind, e)) {
			DMERR("%s: invalid %s entry %u: %#llx", img->name, what, i, e);
			*error = "Invalid L1 or refcount table entry";
			return -EINVAL;
		}
		r = qcow2_add_metadata(img, qcow2_table_pos(e), img->cluster_size);
		if (r == -EEXIST) {
			DMERR("%s: %s entry %u overlaps other metadata: %#llx", img->name, what, i,
			      e);
			*error = "Metadata tables overlap";
			return -EINVAL;
		}
		if (r) {
			*error = "Out of memory loading the tables";
			return r;
		}
	}
	return 0;
}

int qcow2_tables_load(struct qcow2_image *img, char **error)
{
	const struct qcow2_header *h = img->header;
	u64 l1_pos = be64_to_cpu(h->l1_table_offset);
	u32 l1_entries = be32_to_cpu(h->l1_size);
	u64 rt_pos = be64_to_cpu(h->refcount_table_offset);
	u32 rt_bytes = be32_to_cpu(h->refcount_table_clusters) << img->cluster_bits;
	int r;

	r = qcow2_flat_table_load(&img->root.l1, img, SLICE_L1, l1_pos, l1_entries);
	if (!r)
		r = qcow2_flat_table_load(&img->reftable, img, SLICE_REFTABLE, rt_pos,
					  rt_bytes / sizeof(__be64));
	if (r) {
		*error = "Cannot read the L1 or refcount table";
		return r;
	}
	r = qcow2_add_metadata(img, 0, img->cluster_size);
	if (!r && l1_entries)
		r = qcow2_add_metadata(img, l1_pos, l1_entries * sizeof(__be64));
	if (!r)
		r = qcow2_add_metadata(img, rt_pos, rt_bytes);
	if (r) {
		*error = r == -EEXIST ? "Header, L1 table and refcount table overlap" :
					   "Out of memory loading the tables";
		return r == -EEXIST ? -EINVAL : r;
	}
	r = check_top(img, &img->root.l1, SLICE_L1, "L1", error);
	if (r)
		return r;
	return check_top(img, &img->reftable, SLICE_REFTABLE, "refcount table", error);
}

static int reserve_top(struct qcow2_image *img, const struct flat_table *t, u64 nr)
{
	u64 start = 0, end = 0;
	u32 i;
	int r = 0;

	/* Tables mostly lie side by side: reserve whole ranges. */
	for (i = 0; i < min_t(u64, t->nr_entries, nr) && !r; i++) {
		u64 pos = qcow2_table_pos(flat_entry(t, i));

		if (!pos)
			continue;
		if (pos != end) {
			if (end)
				r = img->st.ops->reserve(&img->st, start, end - start);
			start = pos;
		}
		end = pos + img->cluster_size;
		cond_resched();
	}
	if (end && !r)
		r = img->st.ops->reserve(&img->st, start, end - start);
	return r;
}

int qcow2_tables_reserve(struct qcow2_image *img)
{
	int r;

	r = img->st.ops->reserve(&img->st, 0, img->cluster_size);
	if (!r && img->root.l1.nr_entries)
		r = img->st.ops->reserve(&img->st, img->root.l1.pos,
					 (u64)img->root.l1.nr_slices * SLICE_SIZE);
	if (!r)
		r = img->st.ops->reserve(&img->st, img->reftable.pos,
					 (u64)img->reftable.nr_slices * SLICE_SIZE);
	if (!r)
		r = reserve_top(img, &img->root.l1,
				DIV64_U64_ROUND_UP(img->root.size, qcow2_l1_covers(img)));
	return r ?: reserve_top(img, &img->reftable, img->reftable.nr_entries);
}
