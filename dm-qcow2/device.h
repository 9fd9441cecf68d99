/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * device.h - one device-mapper target: a chain of layers, and where a guest offset is in it.
 */
#ifndef DM_QCOW2_DEVICE_H
#define DM_QCOW2_DEVICE_H

#include "entries.h"
#include "image.h"
#include "io.h"

#define MAX_LAYERS	64

/* What the table line asks for. */
struct qcow2_features {
	bool read_only;
	bool discard_no_unref;
	bool no_discard_passdown;
	bool error_if_no_space;
	bool has_cache_kib;
	unsigned int cache_kib;
	bool has_space_timeout;
	unsigned int space_timeout;	/* seconds; 0: no end */
};

/**
 * struct qcow2_dev - ti->private.  Constant after the constructor, but for the list of misses.
 */
struct qcow2_dev {
	struct dm_target *ti;
	bool writable;			/* by this table; the image's mode decides at run time */
	struct qcow2_features features;
	u64 size;			/* bytes */
	unsigned int block_size;	/* bytes: what it promises, at least what it needs */
	/*
	 * Bytes: no aligned range of this length, cut at the ends of layers, spans two clusters of
	 * any layer.
	 */
	u64 granule;
	struct llist_head missed;	/* bios that need a slice read; lock-free */
	struct work_struct miss_work;
	unsigned int nr_layers;
	struct qcow2_layer layers[];	/* top first */
};

/**
 * struct extent - what a range of guest bytes is
 * @img:	The image that decides (not for a zero past the end of all layers).
 * @host:	Byte position in @img's storage; for EXTENT_ZERO, of a preallocated cluster, or 0.
 * @stored:	EXTENT_COMPRESSED: how many bytes are there at @host.
 * @len:	How many bytes, from the offset that was asked for.
 * @own:	The clusters belong to the active table alone: they can be written in place.
 */
struct extent {
	enum extent_type type;
	bool own;
	struct qcow2_image *img;
	u32 stored;
	u64 host;
	u64 len;
};

/* lookup.c */
void image_lookup(struct qcow2_image *img, u64 goff, u64 len, struct extent *ext);
void chain_lookup(struct qcow2_dev *dev, unsigned int from, u64 goff, u64 len, struct extent *ext);

/*
 * Is the extent written where it is?  That depends on its entry alone, and not on how long the
 * storage is now: else one write could be filling the cluster while another goes straight to it.
 */
static inline bool written_in_place(const struct extent *ext)
{
	return ext->own && (ext->type == EXTENT_DATA || ext->type == EXTENT_BEYOND);
}

/* decompress.c */
int decompress_read(const struct extent *ext, u32 skip, void *buf);
void decompress_io(struct qcow2_io *io, const struct extent *ext);
void decompress_exit(struct qcow2_image *img);

#endif /* DM_QCOW2_DEVICE_H */
