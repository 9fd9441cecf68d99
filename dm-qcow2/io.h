/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * io.h - one guest bio on its way through the target, and the calls between the paths it can take.
 *
 * A bio is handled in the submitter's context when its mapping is in memory and needs no change
 * (map.c).  Otherwise it is parked on a table slice that is being read (table-cache.c), or handed
 * to the image's writer (writer.c), or waits for a commit (commit.c); see wait.c.  Exactly one of
 * these owns the bio at a time, which protects the fields below.
 *
 * Code that hands a bio, or an operation, to a worker first puts that item on a list, then queues
 * the work.  The work may be running already: then the bio may end, and its device and image go,
 * before the work is queued.  So both steps are done in one RCU read-side section, and code that
 * tears down a device or an image waits for a grace period before the workqueues and lists go.
 */
#ifndef DM_QCOW2_IO_H
#define DM_QCOW2_IO_H

#include <linux/device-mapper.h>
#include <linux/list.h>
#include <linux/llist.h>
#include <linux/percpu-refcount.h>

#include "storage.h"
#include "table-cache.h"

struct qcow2_dev;
struct qcow2_image;

/**
 * struct qcow2_io - the state of each bio (DM's per-bio data)
 * @dev:	The device that the bio was sent to.
 * @epoch:	The epoch that the bio is in, or NULL (epoch.h).
 * @more:	There is more to do when its I/O has ended: a FUA write must see a commit before it
 *		is acknowledged; and what was read of a view counts only if that is still there.
 * @in_place:	A write is on its way to an own cluster, or has been refused there.
 * @fua:	The write @in_place came with FUA.
 * @retried:	A write that the storage had refused for want of space.
 * @misses:	How often a slice that the bio needs to go on was not in memory.
 * @iter:	Of a write @in_place, to start it over.
 * @pos:	DISCARD and WRITE_ZEROES: the next guest byte to handle.
 * @compressed: Where the data of a cluster to be decompressed is.
 * @waiter:	Links the bio to the slice that it waits for.
 * @node:	Links the bio to the writer's, the commit's or a worker's list.
 * @lnode:	Links the bio to a lock-free list (hand-over between contexts).
 * @inflate:	Decompresses the bio's cluster, which is in @img.
 * @sio:	The I/O of a file-backed bio.
 */
struct qcow2_io {
	struct qcow2_dev *dev;
	struct percpu_ref *epoch;
	bool more;
	bool in_place;
	bool fua;
	bool retried;
	u8 misses;
	union {
		struct bvec_iter iter;
		u64 pos;
		struct {
			u64 pos;
			u32 len;
		} compressed;
	};
	union {
		struct slice_waiter waiter;
		struct list_head node;
		struct llist_node lnode;
		struct {
			struct work_struct work;
			struct qcow2_image *img;
		} inflate;
	};
	struct storage_io sio;
};

static inline struct bio *io_bio(struct qcow2_io *io)
{
	return dm_bio_from_per_bio_data(io, sizeof(*io));
}

static inline struct qcow2_io *bio_io(struct bio *bio)
{
	return dm_per_bio_data(bio, sizeof(struct qcow2_io));
}

static inline u64 io_start(struct qcow2_io *io)
{
	return (u64)io_bio(io)->bi_iter.bi_sector << SECTOR_SHIFT;
}

/**
 * qcow2_io_end - end a bio
 * @io: the bio
 * @status: its result
 *
 * Any context.  The target's end_io hook leaves the epoch, and queues the bio for a commit if
 * needed.
 */
void qcow2_io_end(struct qcow2_io *io, blk_status_t status);

/**
 * qcow2_io_submit - submit, to the storage of its cluster, a bio that qcow2_map_bio() has kept
 * @io: the bio
 * @st: the storage that has the cluster
 * @host: byte position there
 */
void qcow2_io_submit(struct qcow2_io *io, struct qcow2_storage *st, u64 host);

#endif /* DM_QCOW2_IO_H */
