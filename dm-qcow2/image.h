/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * image.h - one opened image: its geometry, its tables, and the device that may write it.
 *
 * An image is shared through a registry by every device that uses it (registry.c).  Raw layers are
 * images without tables, so that a chain is an array of images.
 *
 * Locks, outermost first; this is the list of them all:
 *   views.lock                   views are made and deleted; waits for the writer and the epoch
 *   registry_lock (registry.c)   images come, go and change phase; no I/O
 *   role_lock (registry.c)       which device may write an image; no I/O
 *   event_lock                   the live writing target; the corrupt bit is written under it
 *   alloc_lock                   refcounts and free space; table reads and fallocate under it
 *   generation.lock              a commit runs, or none starts; metadata writes and flushes
 *   header_lock                  the header block; it is written under it
 *   meta_lock                    the content of table slices, the open generation; no I/O
 *   epoch.flip_lock              one flip at a time; guest I/O ends under it
 *   inflate_slot.lock            a decompressed cluster; the storage is read under it
 * and spinlocks, under which nothing else is taken:
 *   table_cache.lock (but for those of its xarrays), qcow2_commit.io_lock, state_lock, and that of
 *   the maple tree metadata
 * A commit never takes alloc_lock, so a holder of alloc_lock may wait until a commit has ended
 * (qcow2_generation_hold()); but not for slices, buffers or freed extents of the mempools, which
 * may be with operations of the writer.
 */
#ifndef DM_QCOW2_IMAGE_H
#define DM_QCOW2_IMAGE_H

#include <linux/maple_tree.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>

#include "epoch.h"
#include "qcow2-format.h"
#include "storage.h"
#include "table-cache.h"

struct decompressor;
struct dm_target;
struct mapped_device;
struct qcow2_alloc;
struct qcow2_commit;
struct qcow2_dev;
struct qcow2_generation;
struct qcow2_view;
struct qcow2_writer;
struct view_request;

/* Which requests an image serves.  Changed by qcow2_set_mode() only. */
enum image_mode {
	MODE_RW,		/* all is well */
	MODE_OUT_OF_SPACE,	/* writes that need room wait for it, and so may a commit */
	MODE_READ_ONLY,		/* opened so, or metadata could not be written: no more changes */
	MODE_FAILED,		/* the promised order on disk cannot be kept: sticky */
};

/* Between two attempts while out of space. */
#define SPACE_POLL	HZ

/* A worker of an image, and the queue that it runs on; NULL while there is none. */
struct qcow2_worker {
	struct workqueue_struct *wq;
	struct work_struct work;
};

/**
 * struct qcow2_waits - why bios of a writable image wait, and why they stop waiting
 *
 * Written from anywhere, without a lock except where noted.  Code that lets a bio go on, or ends
 * its wait, kicks the writer afterwards.
 */
struct qcow2_waits {
	bool wake;			/* try the stalled bios again */
	bool space;			/* try the bios without space again */
	bool release;			/* give up bios that wait for space: suspending */
	bool expired;			/* the same: they have waited too long */
	bool refused;			/* the storage refused a write */
	bool stuck;			/* a commit is to be written again; generation.lock */
	u64 last_limit;			/* of the storage, when space ran out, bytes */
	unsigned long no_space_since;	/* jiffies */
	struct delayed_work poll;	/* while out of space: has the storage grown? */

	/* Constant while a table is live. */
	bool error_if_no_space;
	unsigned int space_timeout;	/* seconds for which writes wait for space; 0: forever */
	bool noflush;			/* while releasing: send bios back to DM */
};

/**
 * struct qcow2_views - the views of a writable image
 * @lock:	One message at a time makes, deletes or lists views; the writer does not take it.
 * @list:	Oldest first.  A dropped view stays until its map is empty: an older view may need
 *		its entries.
 * @newest:	The newest one that is not dropped, or NULL; while @stale, it may be dropped.  The
 *		writer changes it; code that finds out whether a cluster is own reads it, in an
 *		epoch.
 * @stale:	@newest is to be chosen anew when no operation is under way; the writer's.
 * @request:	What a message asks the writer to do.
 * @draining:	The writer starts no operation, so that @request can be done, or @newest be chosen;
 *		the writer's.
 * @settling:	A view is not ready: what it shows may still be written.  Nothing is redirected.
 * @stalling:	@settling or @held, as this run of the writer saw it; the writer's.
 * @held:	Nothing is written until the hold ends: other devices are being marked.
 * @hold_over:	The hold has ended by itself.
 * @paused:	The device is suspended: nothing is freed.
 * @given_up:	One was given up for want of room, and its clusters are on their way; the writer's.
 * @reaping:	There are dropped views whose clusters are to be freed.
 * @limit:	Of the memory that the maps take, bytes; constant while a table is live.
 */
struct qcow2_views {
	struct mutex lock;
	struct list_head list;
	struct qcow2_view *newest;
	bool stale;
	struct view_request *request;
	bool draining;
	bool settling;
	bool stalling;
	bool held;
	bool hold_over;
	bool paused;
	bool given_up;
	bool reaping;
	u64 limit;
	struct delayed_work hold_timer;
};

/* The life of an image from its first user to its last; see registry.c. */
enum image_phase {
	IMAGE_OPENING,		/* a worker opens it, or makes its allocator */
	IMAGE_OPENED,		/* the worker is done; the requester is about to see the result */
	IMAGE_OPEN,
	IMAGE_STOPPING,		/* its writer has gone, and its views go */
	IMAGE_CLOSING,		/* it has no user any more */
};

/**
 * struct qcow2_map_root - the root of the mapping of a guest's disk
 * @l1:		The L1 table; a raw layer has none.
 * @size:	Virtual size, bytes.
 *
 * An image has a live root, the one of its header.  L2 slices are known by their place in the
 * storage, not by the guest offsets that they map.  So all roots share the cache, and a table that
 * two of them share is cached once.
 */
struct qcow2_map_root {
	struct flat_table l1;
	u64 size;
};

/**
 * struct qcow2_image - an image or raw layer
 */
struct qcow2_image {
	/* Registry lock. */
	struct list_head node;
	enum image_phase phase;
	unsigned int users;		/* tables that hold it, and tasks that open it */
	unsigned int writers;		/* those of them that may write it */
	unsigned int viewers;		/* those of them that show a view of it */

	/* Role lock (registry.c). */
	struct mapped_device *owner;	/* the device that may write it, or NULL */

	bool reserved;			/* the tables have their room on the host; the owner's */

	/* Constant after open. */
	bool locked;			/* the byte-range locks are held */
	bool raw;
	bool can_write;			/* the file was opened for writing */
	const struct inode *key_inode;	/* of a file, only as a key; else NULL */
	dev_t key_dev;			/* device number, or that of the filesystem */
	u64 key_ino;			/* inode number; 0 for a block device */
	char *name;			/* for messages: escaped path */
	struct qcow2_storage st;	/* where the tables are */
	struct qcow2_storage *data;	/* where the guest's clusters are: @st */
	u32 version;
	u32 cluster_bits;
	u32 cluster_size;		/* bytes */
	u32 l2_bits;			/* entries of an L2 table: 1 << l2_bits */
	u32 slice_bits;			/* guest bytes that an L2 slice covers: 1 << slice_bits */
	u32 l2_slices;			/* slices of an L2 table, a power of two */
	u32 refcount_order;
	u32 refblock_bits;		/* refcounts in a refcount block: 1 << refblock_bits */
	u32 rb_slice_bits;		/* refcounts in a 4 KiB slice of one: 1 << rb_slice_bits */
	bool has_backing;		/* the header names a backing file */
	char backing_format[16];	/* of the header extension, or empty */

	/* Tables; entries as table-cache.h says. */
	struct table_cache cache;
	struct qcow2_map_root root;	/* the live one */
	struct flat_table reftable;	/* the array itself: alloc_lock and meta_lock to replace */
	struct maple_tree metadata;	/* host clusters that hold metadata; RCU, own lock */

	struct decompressor *decompressor;	/* decompress.c; made when first needed */

	/* Header sector: written by commits, under header_lock. */
	struct mutex header_lock;
	void *header;			/* the first block of the image, in a page */
	u32 header_len;			/* bytes of @header that are the image's */

	/* The rest exists only while the image can be written (can_write). */
	struct epoch epoch;
	struct mutex alloc_lock;
	struct mutex meta_lock;
	struct qcow2_alloc *alloc;	/* alloc.c */
	struct qcow2_generation *generation;	/* generation.c */
	struct qcow2_commit *commit;	/* commit.c */
	struct qcow2_writer *writer;	/* writer.c */

	spinlock_t state_lock;
	enum image_mode mode;		/* state_lock to change */
	bool corrupt;			/* state_lock; metadata was found to be impossible */
	struct mutex event_lock;
	struct dm_target *ti;		/* event_lock; the live writing target, or NULL */
	struct work_struct event_work;	/* raises a DM event, and writes the corrupt bit */
	struct qcow2_waits waits;
	struct qcow2_views views;
	struct qcow2_worker write_worker;	/* writer.c */
	struct qcow2_worker commit_worker;	/* commit.c */
	struct delayed_work commit_timer;	/* the same, while something is dirty */
};

/* A device's hold on one layer of its chain. */
struct qcow2_layer {
	struct qcow2_image *img;
	const struct qcow2_map_root *root;	/* of @img: what it shows; NULL: raw, or a view */
	struct qcow2_view *view;	/* the same, or NULL; the layer has a reference */
	bool write;			/* the layer was opened to be written, */
	bool shows;			/* or to show a view */
	struct dm_dev *dev;		/* for a bdev */
	u64 size;			/* bytes that can be read from it; past that are zeroes */
};

/* Any context.  The worker runs soon, and once more if it is running. */
static inline void qcow2_worker_kick(struct qcow2_worker *w)
{
	queue_work(w->wq, &w->work);
}

static inline enum image_mode image_mode(const struct qcow2_image *img)
{
	return READ_ONCE(img->mode);
}

static inline u64 cluster_start(const struct qcow2_image *img, u64 off)
{
	return off & ~((u64)img->cluster_size - 1);
}

static inline u32 in_cluster(const struct qcow2_image *img, u64 off)
{
	return off & (img->cluster_size - 1);
}

#endif /* DM_QCOW2_IMAGE_H */
