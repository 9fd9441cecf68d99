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

/* What an L2 entry says of its cluster; two more than a lookup in one image can find. */
enum extent_type {
	EXTENT_MISS,		/* the slice of @img that tells is not in memory */
	EXTENT_UNALLOCATED,	/* look further down the chain (lookup of one image only) */
	EXTENT_ZERO,
	EXTENT_DATA,		/* at @host of @img */
	EXTENT_BEYOND,		/* the same, but the storage ends before: reads as zeroes */
	EXTENT_COMPRESSED,	/* at @host of @img; at most to the end of the cluster */
	EXTENT_INVALID,		/* the entry cannot be followed */
};

/* Entries hold so much of a byte position; clusters past it cannot be named. */
#define ENTRY_MAX_POS	QCOW2_OFFSET_MASK

/* Which entry of the L1 table covers a guest offset. */
static inline u32 qcow2_l1_index(const struct qcow2_image *img, u64 goff)
{
	return goff >> (img->cluster_bits + img->l2_bits);
}

/* Which L2 slice covers a guest offset; its entry is number qcow2_cluster_index(). */
static inline u64 qcow2_l2_slice_index(const struct qcow2_image *img, u64 goff)
{
	return goff >> img->slice_bits;
}

/* Which guest cluster an offset is in; slice_entry() takes of it what counts in a slice. */
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
 * An L2 entry, decoded: @host is the byte position of its cluster or 0, and @own whether the active
 * table alone refers to that.  Of a compressed cluster qcow2_l2_entry_compressed() tells more.
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

void qcow2_l2_entry_compressed(const struct qcow2_image *img, u64 entry, u64 *pos, u32 *len);
bool qcow2_l2_entry_valid(struct qcow2_image *img, u64 entry);
bool qcow2_l2_entry_clusters(const struct qcow2_image *img, u64 entry, u64 *first, u64 *last);
bool qcow2_top_entry_valid(struct qcow2_image *img, enum slice_kind kind, u64 entry);

u64 qcow2_refcount_get(const struct qcow2_image *img, const struct slice *s, u32 i);
void qcow2_refcount_set(const struct qcow2_image *img, struct slice *s, u32 i, u64 val);

void qcow2_slice_check(struct qcow2_image *img, struct slice *s);
int qcow2_slice_position(struct qcow2_image *img, enum slice_kind kind, u64 index, u64 *pos);

bool qcow2_is_metadata(struct qcow2_image *img, u64 pos);
int qcow2_add_metadata(struct qcow2_image *img, u64 pos, u64 len);
void qcow2_remove_metadata(struct qcow2_image *img, u64 pos);

#endif /* DM_QCOW2_ENTRIES_H */
