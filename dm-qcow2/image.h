/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * image.h - one opened image: its geometry, its tables, and who may write it.
 *
 * An image is shared through a registry by every device that uses it (registry.c).  Raw layers are
 * images without tables, so that a chain is an array of images.
 *
 * Locks, outermost first:
 *   registry lock (registry.c)  opening and closing
 *   role lock (registry.c)      changing hands
 *   alloc_lock                  refcounts and free space; may sleep on table reads
 *   meta_lock                   the content of table slices, the open generation; held briefly
 *   table_cache.lock, free_lock, commit_lock, state_lock    innermost, spinlocks
 * A commit takes meta_lock but never alloc_lock, so whoever holds alloc_lock may wait for a commit
 * to return memory.
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
struct qcow2_writer;

/* What stands between a request and the disk.  Set by qcow2_set_mode() only. */
enum image_mode {
	MODE_RW,		/* all is well */
	MODE_OUT_OF_SPACE,	/* writes that need room wait for it, and so may a commit */
	MODE_READ_ONLY,		/* opened so, or metadata could not be written: no more changes */
	MODE_FAILED,		/* the order promised on disk cannot be kept: sticky */
};

/* Between two attempts while out of space. */
#define SPACE_POLL	HZ

/* A worker of an image, and the queue that it runs on; NULL before and after there is one. */
struct qcow2_worker {
	struct workqueue_struct *wq;
	struct work_struct work;
};

/**
 * struct qcow2_waits - what makes bios of a writable image wait, and wait no longer
 *
 * Written by anybody, without a lock: whoever changes one has the writer look at it afterwards.
 */
struct qcow2_waits {
	bool wake;			/* try the stalled bios again */
	bool space;			/* try the bios without space again */
	bool release;			/* give bios that wait for space up: suspending */
	bool expired;			/* the same: they have waited too long */
	bool refused;			/* the storage refused a write */
	bool stuck;			/* a commit is to be written again; generation.lock */
	u64 last_limit;			/* of the storage, when space ran out, bytes */
	unsigned long no_space_since;	/* jiffies */
	struct delayed_work poll;	/* while out of space: has the storage grown? */

	/* Constant while a table is live. */
	bool error_if_no_space;
	unsigned int space_timeout;	/* seconds for which writes wait for space; 0: no end */
	bool noflush;			/* while releasing: send bios back to DM */
};

/* Where an image is between its first user and its last; registry.c tells the story. */
enum image_phase {
	IMAGE_OPENING,		/* a worker opens it, or makes its allocator */
	IMAGE_OPENED,		/* it has, and who asked for it is about to see how it went */
	IMAGE_OPEN,
	IMAGE_CLOSING,		/* it has no user any more */
};

/**
 * struct qcow2_image - an image or raw layer
 */
struct qcow2_image {
	/* Registry lock. */
	struct list_head node;
	enum image_phase phase;
	unsigned int users;		/* tables that hold it, and who is opening it */

	/* Role lock (registry.c). */
	struct mapped_device *owner;	/* the device that may write it, or NULL */

	bool reserved;			/* the tables have their room on the host; the owner's */

	/* Constant after open. */
	bool locked;			/* the byte-range locks are held */
	bool raw;
	bool can_write;			/* the file was opened for writing */
	const struct inode *key_inode;	/* of a file, as a key alone; else NULL */
	dev_t key_dev;			/* device number, or that of the filesystem */
	u64 key_ino;			/* inode number; 0 for a block device */
	char *name;			/* for messages: escaped path */
	struct qcow2_storage st;
	u64 size;			/* virtual size, bytes */
	u32 version;
	u32 cluster_bits;
	u32 cluster_size;		/* bytes */
	u32 l2_bits;			/* entries of an L2 table: 1 << l2_bits */
	u32 slice_bits;			/* guest bytes that an L2 slice covers: 1 << slice_bits */
	u32 refcount_order;
	u32 refblock_bits;		/* refcounts in a refcount block: 1 << refblock_bits */
	u32 rb_slice_bits;		/* refcounts in a 4 KiB slice of one: 1 << rb_slice_bits */
	bool has_backing;		/* the header names a backing file */
	char backing_format[16];	/* of the header extension, or empty */

	/* Tables; entries as table-cache.h says. */
	struct table_cache cache;
	struct flat_table l1;
	struct flat_table reftable;	/* the array itself: alloc_lock and meta_lock to replace */
	struct maple_tree metadata;	/* host clusters that hold metadata; RCU, own lock */

	struct decompressor *decompressor;	/* decompress.c; made by the first who needs it */

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
	struct qcow2_worker write_worker;	/* writer.c */
	struct qcow2_worker commit_worker;	/* commit.c */
	struct delayed_work commit_timer;	/* the same, while something is dirty */
};

/* A device's hold on one layer of its chain. */
struct qcow2_layer {
	struct qcow2_image *img;
	struct dm_dev *dev;		/* for a bdev */
	u64 size;			/* bytes that can be read from it; past that are zeroes */
};

/* header.c */
int qcow2_header_read(struct qcow2_image *img, bool write, char **error);
int qcow2_header_prepare_write(struct qcow2_image *img);
int qcow2_header_set_corrupt(struct qcow2_image *img);
int qcow2_header_set_reftable(struct qcow2_image *img, u64 pos, u32 clusters);
void qcow2_header_free(struct qcow2_image *img);

/* tables.c */
int qcow2_tables_load(struct qcow2_image *img, char **error);
int qcow2_tables_reserve(struct qcow2_image *img);

/* state.c */
void qcow2_set_mode(struct qcow2_image *img, enum image_mode mode, const char *why);
void qcow2_out_of_space(struct qcow2_image *img, bool refused, const char *why);
void qcow2_has_room(struct qcow2_image *img);
bool qcow2_gives_up(struct qcow2_image *img);
blk_status_t qcow2_no_space_status(struct qcow2_image *img);
void qcow2_mark_corrupt(struct qcow2_image *img, const char *what, u64 pos);
void qcow2_event_work(struct work_struct *work);
void qcow2_wake_writer(struct qcow2_image *img);
void qcow2_retry_waiting(struct qcow2_image *img);
void qcow2_space_freed(struct qcow2_image *img);
void qcow2_kick_commit(struct qcow2_image *img);
bool qcow2_commit_is_stuck(struct qcow2_image *img);

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
