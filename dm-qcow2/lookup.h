/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * lookup.h - from a guest offset to where its bytes are; see lookup.c.
 */
#ifndef DM_QCOW2_LOOKUP_H
#define DM_QCOW2_LOOKUP_H

#include "entries.h"

/**
 * struct extent - what a range of guest bytes is
 * @img:	The image that decides (not for a zero past the end of all layers).
 * @st:	The storage that @host is in; but compressed data is always where the tables are.
 * @host:	Byte position; for EXTENT_ZERO, of a preallocated cluster, or 0; for EXTENT_MISS, of
 *		the slice, where the tables are.
 * @stored:	EXTENT_COMPRESSED: how many bytes are there at @host.
 * @len:	How many bytes, from the offset that was asked for.
 * @own:	The clusters belong to the active table alone: they can be written in place.
 */
struct extent {
	enum extent_type type;
	bool own;
	struct qcow2_image *img;
	struct qcow2_storage *st;
	u32 stored;
	u64 host;
	u64 len;
};

/**
 * qcow2_root_lookup - what one image says about a range
 * @img: the image, not raw
 * @root: which of its disks
 * @goff: guest offset, inside the disk
 * @len: bytes wanted
 * @ext: the answer, for at least one byte
 *
 * Any context that may take an RCU read lock.
 */
void qcow2_root_lookup(struct qcow2_image *img, const struct qcow2_map_root *root, u64 goff,
		       u64 len, struct extent *ext);

/**
 * qcow2_entry_lookup - what an L2 entry says about a range
 * @img: the image
 * @entry: the entry
 * @goff: guest offset, in the cluster of the entry
 * @len: bytes wanted
 * @ext: the answer, for at least one byte, at most to the end of the cluster
 *
 * Any context that may take an RCU read lock.
 */
void qcow2_entry_lookup(struct qcow2_image *img, u64 entry, u64 goff, u64 len, struct extent *ext);

/*
 * May the host clusters of the extent be changed in place?  Then only the live root refers to them,
 * and no view.
 * All code that overwrites, zeroes or keeps a host cluster asks here.
 */
static inline bool qcow2_may_write_in_place(const struct extent *ext)
{
	return ext->own;
}

/*
 * Is the extent written in place?  The answer depends on its entry alone, not on the present length
 * of the storage: otherwise one write could fill the cluster while another goes straight to it.
 */
static inline bool written_in_place(const struct extent *ext)
{
	return qcow2_may_write_in_place(ext) &&
	       (ext->type == EXTENT_DATA || ext->type == EXTENT_BEYOND);
}

#endif /* DM_QCOW2_LOOKUP_H */
