// SPDX-License-Identifier: GPL-2.0-only
/*
 * tables.c - the top of the table trees at open, and the checks that every table entry passes.
 *
 * Metadata is untrusted: an entry that maps a guest cluster onto the header would let a guest write
 * the name of its own backing file.  The set of clusters that hold metadata is a maple tree
 * (image.metadata), read under RCU and changed under its own lock.
 */
#include <linux/device-mapper.h>
#include <linux/sched.h>

#include "device.h"

/**
 * add_metadata - note that a host range holds metadata
 * @img: the image
 * @pos: byte position, cluster-aligned
 * @len: bytes, rounded up to clusters
 *
 * Return: 0, -EEXIST when part of it is noted already, or -ENOMEM.
 */
int add_metadata(struct qcow2_image *img, u64 pos, u64 len)
{
	unsigned long first = pos >> img->cluster_bits;
	unsigned long last = (pos + len - 1) >> img->cluster_bits;

	return mtree_insert_range(&img->metadata, first, last, xa_mk_value(1), GFP_NOIO);
}

/**
 * remove_metadata - forget the range that begins at @pos
 * @img: the image
 * @pos: as given to add_metadata()
 */
void remove_metadata(struct qcow2_image *img, u64 pos)
{
	unsigned long cluster = pos >> img->cluster_bits;

	/*
	 * Erasing may take memory, and does not say when there was none.  What stays noted would
	 * make the image corrupt as soon as the cluster is used for something else.
	 */
	mtree_erase(&img->metadata, cluster);
	while (mtree_load(&img->metadata, cluster)) {
		schedule_timeout_uninterruptible(1);
		mtree_erase(&img->metadata, cluster);
	}
}

/**
 * is_metadata - does a host cluster hold metadata?
 * @img: the image
 * @pos: a byte position in it
 */
bool is_metadata(struct qcow2_image *img, u64 pos)
{
	return mtree_load(&img->metadata, pos >> img->cluster_bits) != NULL;
}

static bool inside(struct qcow2_image *img, u64 pos)
{
	return pos < img->st.ops->size(&img->st);
}

/**
 * table_read - read part of a table
 * @img: the image
 * @pos: byte position
 * @buf: where to, as storage_rw_sync() wants it
 * @len: bytes
 *
 * QEMU writes a table no further than its last entry, so that a file can end inside one, and a
 * block device made of such a file before it.  What is not there reads as zeroes.
 *
 * Return: 0 or the storage's error.
 */
int table_read(struct qcow2_image *img, u64 pos, void *buf, u32 len)
{
	u64 size = img->st.ops->size(&img->st);
	u32 there = len;

	if (pos >= size)
		there = 0;
	else if (img->st.bdev)	/* of a file the rest is zeroes without our help */
		there = min_t(u64, len, size - pos);
	memset(buf + there, 0, len - there);
	return there ? storage_rw_sync(&img->st, REQ_OP_READ, pos, buf, there) : 0;
}

/**
 * slice_has_place - can a slice be written where it belongs?
 * @s: the slice
 *
 * It cannot when the block device ends before.  Who is about to change a slice that was on disk
 * when the image was opened asks first: a commit that could not write it would fail the image.
 */
bool slice_has_place(const struct slice *s)
{
	return !s->img->st.bdev || inside(s->img, s->pos + SLICE_SIZE - 1);
}

/**
 * l2_entry_valid - can this L2 entry be followed?
 * @img: the image
 * @entry: the entry
 *
 * "L2 table entry": offsets aligned, reserved bits clear, not on metadata.  Compressed data must
 * begin inside the storage.  A cluster may lie behind its end: QEMU, too, reads it as zeroes.
 */
bool l2_entry_valid(struct qcow2_image *img, u64 entry)
{
	u64 host = entry & QCOW2_OFFSET_MASK;

	if (entry & QCOW2_L2_COMPRESSED) {
		u32 len;

		/* It may begin in one host cluster and end in the next. */
		compressed_range(img, entry, &host, &len);
		return !(entry & QCOW2_ENTRY_COPIED) && len <= img->cluster_size + SECTOR_SIZE &&
		       inside(img, host) && !is_metadata(img, host) &&
		       !is_metadata(img, host + len - 1);
	}
	if (entry & QCOW2_L2_RESERVED)
		return false;
	if (entry & QCOW2_L2_ZERO && img->version < 3)
		return false;
	/* COPIED without an offset is as good as nothing, for QEMU and its check. */
	return !host || (!in_cluster(img, host) && !is_metadata(img, host));
}

/* Does an entry map data that the storage does not hold, or not in full? */
static bool reaches_beyond(struct qcow2_image *img, u64 entry)
{
	u64 host = entry & QCOW2_OFFSET_MASK;

	if (!host || entry & (QCOW2_L2_COMPRESSED | QCOW2_L2_ZERO))
		return false;
	return !inside(img, host) || (img->st.bdev && !inside(img, host + img->cluster_size - 1));
}

/**
 * slice_check - look at what has just been read
 * @img: the image
 * @s: a slice that nobody else sees yet
 *
 * A slice with an entry that is invalid, or leads behind the end of the storage, stays usable;
 * lookups then judge each entry that they use.
 */
void slice_check(struct qcow2_image *img, struct slice *s)
{
	unsigned int i;

	if (s->kind != SLICE_L2)
		return;
	for (i = 0; i < SLICE_ENTRIES; i++) {
		u64 e = slice_entry(s, i);

		if (!e)
			continue;
		if (l2_entry_valid(img, e)) {
			s->suspect |= reaches_beyond(img, e);
			continue;
		}
		s->suspect = true;
		DMERR_LIMIT("%s: invalid L2 entry %#llx for guest offset %llu", img->name, e,
			    ((s->index << SLICE_ENTRY_SHIFT) + i) << img->cluster_bits);
		if (is_metadata(img, e & QCOW2_OFFSET_MASK) && e & QCOW2_OFFSET_MASK)
			image_mark_corrupt(img, "L2 entry maps guest data onto metadata",
					   e & QCOW2_OFFSET_MASK);
	}
}

/**
 * slice_position - where a slice of an L2 table or refcount block is stored
 * @img: the image
 * @kind: SLICE_L2 or SLICE_REFBLOCK; for the latter the caller holds alloc_lock, or its load was
 *	started by somebody who does and waits
 * @index: which one
 * @pos: set to the byte position
 *
 * Return: 0, or -ENOENT when the table does not exist.
 */
int slice_position(struct qcow2_image *img, enum slice_kind kind, u64 index, u64 *pos)
{
	const struct flat_table *top = kind == SLICE_L2 ? &img->l1 : &img->reftable;
	unsigned int shift = img->cluster_bits - SLICE_SHIFT;
	u64 table = index >> shift, e;

	if (table >= top->nr_entries)
		return -ENOENT;
	e = flat_entry(top, table) & QCOW2_OFFSET_MASK;
	if (!e)
		return -ENOENT;
	*pos = e + ((index & ((1ULL << shift) - 1)) << SLICE_SHIFT);
	return 0;
}

static int check_top(struct qcow2_image *img, const struct flat_table *t, u64 reserved,
		     const char *what, char **error)
{
	u32 i;
	int r;

	for (i = 0; i < t->nr_entries; i++) {
		u64 e = flat_entry(t, i), pos = e & QCOW2_OFFSET_MASK;

		cond_resched();
		if (!e)
			continue;
		if (e & reserved || in_cluster(img, pos) || !pos || !inside(img, pos)) {
			DMERR("%s: invalid %s entry %u: %#llx", img->name, what, i, e);
			*error = "Invalid L1 or refcount table entry";
			return -EINVAL;
		}
		r = add_metadata(img, pos, img->cluster_size);
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

/**
 * tables_load - read the L1 and refcount tables and learn where all metadata is
 * @img: the image, its header read
 * @error: set to the reason when it is refused, for ti->error
 *
 * Return: 0 or -errno.
 */
int tables_load(struct qcow2_image *img, char **error)
{
	const struct qcow2_header *h = img->header;
	u64 l1_pos = be64_to_cpu(h->l1_table_offset);
	u32 l1_entries = be32_to_cpu(h->l1_size);
	u64 rt_pos = be64_to_cpu(h->refcount_table_offset);
	u32 rt_bytes = be32_to_cpu(h->refcount_table_clusters) << img->cluster_bits;
	int r;

	r = flat_table_load(&img->l1, img, SLICE_L1, l1_pos, l1_entries);
	if (!r)
		r = flat_table_load(&img->reftable, img, SLICE_REFTABLE, rt_pos,
				    rt_bytes / sizeof(__be64));
	if (r) {
		*error = "Cannot read the L1 or refcount table";
		return r;
	}
	r = add_metadata(img, 0, img->cluster_size);
	if (!r && l1_entries)
		r = add_metadata(img, l1_pos, l1_entries * sizeof(__be64));
	if (!r)
		r = add_metadata(img, rt_pos, rt_bytes);
	if (r) {
		*error = r == -EEXIST ? "Header, L1 table and refcount table overlap" :
					   "Out of memory loading the tables";
		return r == -EEXIST ? -EINVAL : r;
	}
	r = check_top(img, &img->l1, QCOW2_L1_RESERVED, "L1", error);
	if (r)
		return r;
	return check_top(img, &img->reftable, QCOW2_REFTABLE_RESERVED, "refcount table",
			 error);
}

static int reserve_top(struct qcow2_image *img, const struct flat_table *t, u64 nr)
{
	u64 start = 0, end = 0;
	u32 i;
	int r = 0;

	/* Tables mostly lie one behind the other: reserve whole stretches. */
	for (i = 0; i < min_t(u64, t->nr_entries, nr) && !r; i++) {
		u64 pos = flat_entry(t, i) & QCOW2_OFFSET_MASK;

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

/**
 * tables_reserve - give every table its room on the host before the first write
 * @img: a writable image
 *
 * Images are made with tables that are holes in the file.  A commit must not be the one who finds
 * that the host is full: all that it writes has its room since it was allocated, or since here.
 * L2 tables behind the end of the disk are never written.
 *
 * Return: 0 or -errno.
 */
int tables_reserve(struct qcow2_image *img)
{
	u64 l2_covers = 1ULL << (img->cluster_bits + img->l2_bits);
	int r;

	r = img->st.ops->reserve(&img->st, 0, img->cluster_size);
	if (!r && img->l1.nr_entries)
		r = img->st.ops->reserve(&img->st, img->l1.pos,
					 (u64)img->l1.nr_slices * SLICE_SIZE);
	if (!r)
		r = img->st.ops->reserve(&img->st, img->reftable.pos,
					 (u64)img->reftable.nr_slices * SLICE_SIZE);
	if (!r)
		r = reserve_top(img, &img->l1, DIV64_U64_ROUND_UP(img->size, l2_covers));
	return r ?: reserve_top(img, &img->reftable, img->reftable.nr_entries);
}
