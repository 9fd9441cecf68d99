/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * device.h - one device-mapper target: a chain of layers, and a bio's epoch.
 */
#ifndef DM_QCOW2_DEVICE_H
#define DM_QCOW2_DEVICE_H

#include "image.h"
#include "io.h"
#include "view-map.h"

#define MAX_LAYERS	64

/* The features that the table line asks for. */
struct qcow2_features {
	bool read_only;
	bool discard_no_unref;
	bool no_discard_passdown;
	bool error_if_no_space;
	bool has_cache_kib;
	unsigned int cache_kib;
	bool has_space_timeout;
	unsigned int space_timeout;	/* seconds; 0: forever */
	bool has_view_limit;
	unsigned int view_limit_mib;
	bool has_view;
	char view[VIEW_NAME_SIZE];	/* show this one, not the live disk */
};

/**
 * struct qcow2_dev - ti->private.  Constant after the constructor, except the list of misses.
 */
struct qcow2_dev {
	struct dm_target *ti;
	bool writable;			/* by this table; the image's mode decides at run time */
	bool in_epoch;			/* clusters that it reads may be freed */
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

/* Enter the epoch, on a device whose clusters can be freed. */
static inline void qcow2_io_enter(struct qcow2_io *io)
{
	struct qcow2_dev *dev = io->dev;

	if (dev->in_epoch && !io->epoch)
		io->epoch = epoch_enter(&dev->layers[0].img->epoch);
}

/* Leave the epoch, if the bio is in one. */
static inline void qcow2_io_leave(struct qcow2_io *io)
{
	if (io->epoch)
		epoch_leave(io->epoch);
	io->epoch = NULL;
}

#endif /* DM_QCOW2_DEVICE_H */
