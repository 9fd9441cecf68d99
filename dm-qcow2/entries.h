/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * entries.h - the bits of L1, L2 and refcount table entries, and of refcounts: no other file masks
 * one.
 *
 * Entries are given and taken in the CPU's byte order.  Section names are those of the published
 * specification: "L1 table entry", "L2 table entry", "Refcounts".
 */
#ifndef DM_QCOW2_ENTRIES_H
#define DM_QCOW2_ENTRIES_H

#include "image.h"

/*
 * The answers of an L2 entry about its cluster; a lookup adds MISS, BEYOND and INVALID.
 */
enum extent_type {
	EXTENT_MISS,		/* the slice that maps it, at @host of @img, is not in memory */
	EXTENT_UNALLOCATED,	/* look further down the chain (lookup of one image only) */
	EXTENT_ZERO,
	EXTENT_DATA,		/* at @host of @st */
	EXTENT_BEYOND,		/* the same, but the storage ends before: reads as zeroes */
	EXTENT_COMPRESSED,	/* at @host of @img; at most to the end of the cluster */
	EXTENT_INVALID,		/* the entry cannot be followed */
};

/* The largest byte position that an entry holds: no entry can name a cluster past it. */
#define ENTRY_MAX_POS	QCOW2_OFFSET_MASK

static inline struct slice *flat_slice(const struct flat_table *t, u32 i)
{
	return t->slices[i >> SLICE_ENTRY_SHIFT];
}

static inline u64 slice_entry(const struct slice *s, unsigned int i)
{
	const __be64 *e = s->data;

	return be64_to_cpu(READ_ONCE(e[i & (SLICE_ENTRIES - 1)]));
}

static inline u64 flat_entry(const struct flat_table *t, u32 i)
{
	return slice_entry(flat_slice(t, i), i);
}

/* Which entry of the L1 table covers a guest offset. */
static inline u32 qcow2_l1_index(const struct qcow2_image *img, u64 goff)
{
	return goff >> (img->cluster_bits + img->l2_bits);
}

/* The guest cluster of an offset; slice_entry() uses only the bits that count in a slice. */
static inline u64 qcow2_cluster_index(const struct qcow2_image *img, u64 goff)
{
	return goff >> img->cluster_bits;
}

/* How many guest bytes an entry of the L1 table covers. */
static inline u64 qcow2_l1_covers(const struct qcow2_image *img)
{
	return 1ULL << (img->cluster_bits + img->l2_bits);
}

/* The byte position of the table that an L1 or refcount table entry names; 0: none. */
static inline u64 qcow2_table_pos(u64 entry)
{
	return entry & QCOW2_OFFSET_MASK;
}

/* The byte position of the L2 table that maps a guest offset; 0: none does. */
static inline u64 qcow2_l2_table(const struct qcow2_image *img, const struct qcow2_map_root *root,
				 u64 goff)
{
	return qcow2_table_pos(flat_entry(&root->l1, qcow2_l1_index(img, goff)));
}

/* Which slice of the L2 table at @table maps a guest offset: its index in the cache. */
static inline u64 qcow2_l2_slice_index(const struct qcow2_image *img, u64 table, u64 goff)
{
	return (table >> SLICE_SHIFT) + ((goff >> img->slice_bits) & (img->l2_slices - 1));
}

/* The L1 entry of an L2 table that no snapshot shares. */
static inline u64 qcow2_l1_entry_make(u64 pos)
{
	return pos | QCOW2_ENTRY_COPIED;
}

/* The refcount table entry of a block. */
static inline u64 qcow2_reftable_entry_make(u64 pos)
{
	return pos;
}

/* The L2 entry of an own cluster with data. */
static inline u64 qcow2_l2_entry_make_data(u64 host)
{
	return host | QCOW2_ENTRY_COPIED;
}

/* The L2 entry of zeroes, version 3; it keeps the own cluster @host, or 0. */
static inline u64 qcow2_l2_entry_make_zero(u64 host)
{
	return QCOW2_L2_ZERO | host | (host ? QCOW2_ENTRY_COPIED : 0);
}

/* The L2 entry of a cluster of which the image says nothing. */
static inline u64 qcow2_l2_entry_make_none(void)
{
	return 0;
}

/*
 * Under image.meta_lock, with a pin, after qcow2_slice_prepare() and qcow2_slice_dirty(): a reader
 * that sees the new entry then also sees that the image is not clean (qcow2_is_clean()).
 */
static inline void qcow2_set_entry(struct slice *s, unsigned int i, u64 val)
{
	__be64 *e = s->data;

	lockdep_assert_held(&s->img->meta_lock);
	WRITE_ONCE(e[i & (SLICE_ENTRIES - 1)], cpu_to_be64(val));
}

/*
 * Decode an L2 entry: @host is the byte position of its cluster or 0; @own says whether the active
 * table alone refers to that cluster.  For a compressed cluster see qcow2_l2_entry_compressed().
 */
static inline enum extent_type qcow2_l2_entry_decode(u64 entry, u64 *host, bool *own)
{
	*host = 0;
	*own = false;
	if (!entry)
		return EXTENT_UNALLOCATED;
	if (entry & QCOW2_L2_COMPRESSED)
		return EXTENT_COMPRESSED;
	*host = entry & QCOW2_OFFSET_MASK;
	/* Without a host cluster COPIED means nothing: there is nothing to own. */
	*own = *host && entry & QCOW2_ENTRY_COPIED;
	/* A zero cluster may keep a host cluster; its content is never read. */
	if (entry & QCOW2_L2_ZERO)
		return EXTENT_ZERO;
	return *host ? EXTENT_DATA : EXTENT_UNALLOCATED;
}

/**
 * qcow2_l2_entry_compressed - where the data of a compressed cluster is
 * @img: the image
 * @entry: the L2 entry
 * @pos: set to the byte position, which has no alignment
 * @len: set to the number of bytes, to the end of the last sector
 *
 * "Compressed Clusters Descriptor".
 */
void qcow2_l2_entry_compressed(const struct qcow2_image *img, u64 entry, u64 *pos, u32 *len);

/**
 * qcow2_l2_entry_valid - can this L2 entry be followed?
 * @img: the image
 * @entry: the entry
 *
 * "L2 table entry": offsets aligned, reserved bits clear, not on metadata.  Compressed data must
 * begin inside the storage.  A cluster may lie behind the end of the storage: QEMU, too, reads such
 * a cluster as zeroes.
 */
bool qcow2_l2_entry_valid(struct qcow2_image *img, u64 entry);

/**
 * qcow2_l2_entry_clusters - the host clusters that an L2 entry refers to
 * @img: the image
 * @entry: the entry
 * @first: set to the number of the first one
 * @last: and of the last one
 *
 * "Compressed clusters": the data covers part of one host cluster or of two adjacent ones, and each
 * of these counts the reference.
 *
 * Return: whether there is any.
 */
bool qcow2_l2_entry_clusters(const struct qcow2_image *img, u64 entry, u64 *first, u64 *last);

/**
 * qcow2_top_entry_valid - can this entry of the L1 or refcount table be followed?
 * @img: the image
 * @kind: SLICE_L1 or SLICE_REFTABLE
 * @entry: the entry, not 0
 *
 * Reserved bits are clear, and the table is aligned, not at 0, and begins inside the storage.
 */
bool qcow2_top_entry_valid(struct qcow2_image *img, enum slice_kind kind, u64 entry);

/**
 * qcow2_refcount_get - read a refcount
 * @img: the image
 * @s: a slice of a refcount block
 * @i: which one of the slice
 *
 * "Refcounts"; those narrower than a byte are packed from the low bits up.
 */
u64 qcow2_refcount_get(const struct qcow2_image *img, const struct slice *s, u32 i);

/**
 * qcow2_refcount_set - change a refcount
 * @img: the image; the caller holds meta_lock
 * @s: a slice of a refcount block, dirty
 * @i: which one of the slice
 * @val: its new value
 */
void qcow2_refcount_set(const struct qcow2_image *img, struct slice *s, u32 i, u64 val);

/**
 * qcow2_slice_check - check a slice that has just been read
 * @img: the image
 * @s: a slice that nobody else sees yet
 *
 * A slice with an entry that is invalid, or leads behind the end of the storage, stays usable;
 * lookups then judge each entry that they use.
 */
void qcow2_slice_check(struct qcow2_image *img, struct slice *s);

/**
 * qcow2_slice_position - where a slice of an L2 table or refcount block is stored
 * @img: the image
 * @kind: SLICE_L2 or SLICE_REFBLOCK; for a refcount block the caller holds alloc_lock, or the load
 *	was started by a task that holds it and waits
 * @index: which one
 * @pos: set to the byte position
 *
 * Does not check that an L2 slice lies in a table: the index comes from an L1 entry.
 *
 * Return: 0, or -ENOENT when the refcount block does not exist.
 */
int qcow2_slice_position(struct qcow2_image *img, enum slice_kind kind, u64 index, u64 *pos);

/**
 * qcow2_is_metadata - does a host cluster hold metadata?
 * @img: the image
 * @pos: a byte position in it
 */
bool qcow2_is_metadata(struct qcow2_image *img, u64 pos);

/**
 * qcow2_add_metadata - note that a host range holds metadata
 * @img: the image
 * @pos: byte position, cluster-aligned
 * @len: bytes, rounded up to clusters
 *
 * Return: 0, -EEXIST when part of the range is noted already, or -ENOMEM.
 */
int qcow2_add_metadata(struct qcow2_image *img, u64 pos, u64 len);

/**
 * qcow2_remove_metadata - forget the range that begins at @pos
 * @img: the image
 * @pos: as given to qcow2_add_metadata()
 */
void qcow2_remove_metadata(struct qcow2_image *img, u64 pos);

#endif /* DM_QCOW2_ENTRIES_H */
