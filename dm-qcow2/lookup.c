// SPDX-License-Identifier: GPL-2.0-only
/*
 * lookup.c - from a guest offset to where one image has its bytes.
 *
 * Takes no lock and writes nothing but a slice's "used" mark: table slices are found and read under
 * RCU.  Code that looks up on a writable image is in an epoch, so that the cluster found cannot be
 * reused before the I/O on it has ended; except for the writer, and code that reads no cluster.
 */
#include <linux/minmax.h>

#include "entries.h"
#include "image.h"
#include "lookup.h"

/* How many more bytes from @goff on the L2 table of that offset covers. */
static u64 l2_rest(const struct qcow2_image *img, u64 goff)
{
	u64 covers = qcow2_l1_covers(img);

	return covers - (goff & (covers - 1));
}

/*
 * The slice has entries that are invalid, or that map data which the storage, as it was when the
 * slice was read, does not hold in full.  Is this one of them?
 */
static void judge_suspect(struct qcow2_image *img, u64 entry, struct extent *ext, u32 skip,
			  u64 *got)
{
	u64 size;

	if (!qcow2_l2_entry_valid(img, entry)) {
		ext->type = EXTENT_INVALID;
		return;
	}
	if (ext->type != EXTENT_DATA)
		return;
	size = ext->st->ops->size(ext->st);
	if (ext->host + skip >= size)
		ext->type = EXTENT_BEYOND;
	else if (ext->st->bdev)	/* a file reads as zeroes there by itself */
		*got = min(*got, size - ext->host - skip);
}

/* From what the entry says about its cluster to where @goff is. */
static void finish(struct qcow2_image *img, u64 entry, u64 goff, struct extent *ext)
{
	if (ext->type == EXTENT_DATA || ext->type == EXTENT_BEYOND)
		ext->host += in_cluster(img, goff);
	else if (ext->type == EXTENT_COMPRESSED)
		qcow2_l2_entry_compressed(img, entry, &ext->host, &ext->stored);
}

void qcow2_root_lookup(struct qcow2_image *img, const struct qcow2_map_root *root, u64 goff,
		       u64 len, struct extent *ext)
{
	u32 i = qcow2_cluster_index(img, goff) & (SLICE_ENTRIES - 1);
	u64 entry, host, table, index, got = img->cluster_size - in_cluster(img, goff);
	struct slice *s;
	bool own;

	ext->img = img;
	ext->st = img->data;
	table = qcow2_l2_table(img, root, goff);
	if (!table) {
		ext->type = EXTENT_UNALLOCATED;
		ext->own = false;
		ext->host = 0;
		ext->len = min(len, l2_rest(img, goff));
		return;
	}
	index = qcow2_l2_slice_index(img, table, goff);
	rcu_read_lock();
	s = slice_find(&img->cache.l2, index);
	if (!s) {
		rcu_read_unlock();
		ext->type = EXTENT_MISS;
		ext->own = false;
		ext->host = index << SLICE_SHIFT;
		ext->len = len;
		return;
	}
	entry = slice_entry(s, i);
	ext->type = qcow2_l2_entry_decode(entry, &ext->host, &ext->own);
	if (unlikely(s->suspect) && entry)
		judge_suspect(img, entry, ext, in_cluster(img, goff), &got);
	host = ext->host;

	/* Add the entries of the same kind that follow, up to the end of the slice. */
	while (got < len && ++i < SLICE_ENTRIES && ext->type != EXTENT_COMPRESSED &&
	       ext->type != EXTENT_INVALID && !s->suspect) {
		u64 next;

		if (qcow2_l2_entry_decode(slice_entry(s, i), &next, &own) != ext->type ||
		    own != ext->own)
			break;
		host += img->cluster_size;
		if (ext->type == EXTENT_DATA && next != host)
			break;
		/* A zero cluster may keep a host cluster that it does not own. */
		if (ext->type == EXTENT_ZERO && !next != !ext->host)
			break;
		got += img->cluster_size;
	}
	rcu_read_unlock();
	finish(img, entry, goff, ext);
	ext->len = min(len, got);
}

void qcow2_entry_lookup(struct qcow2_image *img, u64 entry, u64 goff, u64 len, struct extent *ext)
{
	u64 got = img->cluster_size - in_cluster(img, goff);

	ext->img = img;
	ext->st = img->data;
	ext->type = qcow2_l2_entry_decode(entry, &ext->host, &ext->own);
	if (entry)
		judge_suspect(img, entry, ext, in_cluster(img, goff), &got);
	finish(img, entry, goff, ext);
	ext->len = min(len, got);
}
