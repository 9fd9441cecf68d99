/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of vhost-blk share: the device, its queues, its requests. The contract of each
 * file stands in its own header.
 *
 *	dev.c		the character device, its ioctls, the life of a backend
 *	ring.c		one queue: start, stop, drain, and the worker's pass over the ring
 *	request.c	a descriptor chain -> checked -> bios
 *	complete.c	finished bios -> status, dirty log, used ring, one signal
 *	direct.c	reads and writes of guest memory in place
 *	range.c		DISCARD and WRITE_ZEROES: bios that carry no guest memory
 *	bounce.c	reads and writes whose memory the block layer cannot use in place
 *	claim.c		which queue of which open a used ring in a guest's memory belongs to
 *	chain.c		the available ring -> a descriptor chain
 *	part.c		a round of bios: built, submitted, ended
 *	cache.c		the device's pages in the host's page cache
 *	layout.c	refuses to load on a vhost.ko that has other structures
 *
 * A file calls only files below it in this list.
 *
 * Locks: vhost_dev.mutex (all ioctls) is taken before vhost_virtqueue.mutex (one ring, held to read
 * the ring or write used entries). Drains wait under the former, never under the latter. End of bio
 * runs in any context and takes no lock. The lock of claim.c is inside all others.
 *
 * Invariants:
 *  - A chain that was read from the ring is in flight until its used entry is written, and gets
 *    exactly one. The only chain without one is the last read, when the owner is being killed: that
 *    chain is given back, unread, to the ring's next owner.
 *  - So a drained ring resumes at used->idx, whatever the owner says.
 *  - A used ring belongs to one queue of one open at a time, from its start until it is halted and
 *    drained, and, when it was the last, until what was answered is flushed: used->idx means
 *    nothing while another queue has requests of that ring in flight.
 *  - When no ring runs any more, data answered as written is on stable storage before anybody is
 *    told so: the stop of the last ring flushes, and so does release.
 *  - A request is found by the head of its chain. A head that is offered again while it is in
 *    flight is a broken ring; thus requests never exceed the size of the ring and are allocated
 *    with it.
 */
#ifndef _VHOST_BLK_BLK_H
#define _VHOST_BLK_BLK_H

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/llist.h>
#include <linux/ratelimit.h>
#include <linux/timer.h>
#include <linux/uio.h>
#include <linux/virtio_blk.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "compat.h"
#include "uapi/vhost_blk.h"

/* Bios of at most this many vectors live in the request: 32 KiB of page-aligned data. */
#define VHOST_BLK_INLINE_VECS	8U

/* Segments of a chain that is read without the core: header, status, and data in six pieces. */
#define VHOST_BLK_QUICK_SEGMENTS	8U

/*
 * Further chains of a ring are read only while its requests in flight hold less memory than this,
 * beyond the memory allocated with the ring. 8 MiB is the memory of 1000 requests of 1 MiB; one
 * request takes at most 1.1 MiB.
 */
#define VHOST_BLK_MAX_HELD	(8U << 20)

struct vhost_blk_queue;
struct vhost_blk_req;

/**
 * struct vhost_blk_part - one bio of a request
 * @next: further parts of the same request
 * @bio: bi_private is the request
 *
 * Owned by the request; built before any part of the round is submitted, freed when all ended.
 * The vectors follow it in memory, except for the part that is embedded in the request.
 */
struct vhost_blk_part {
	struct vhost_blk_part *next;
	struct bio bio;
};

/**
 * struct vhost_blk_steps - the requests that need several rounds of bios
 * @next: called in the worker's or the fallback's context, with the ring's mutex held, when all
 *	bios of the last round have ended; req->error tells how. Returns -EIOCBQUEUED when it has
 *	submitted another round, 0 when the request is finished, another error when memory was
 *	unavailable or inaccessible: then nothing has happened and @next may be called again.
 * @release: frees req->priv
 */
struct vhost_blk_steps {
	int (*next)(struct vhost_blk_req *req);
	void (*release)(struct vhost_blk_req *req);
};

/**
 * struct vhost_blk_req - one request, at the index of its head
 *
 * All fields belong to the ring's mutex, except between the submission of bios and the end of the
 * last of them, when @pending, @error and @node belong to the bios' completions.
 */
struct vhost_blk_req {
	struct llist_node node;		/* on queue->done */
	struct vhost_blk_queue *queue;
	atomic_t pending;		/* bios that have not ended */
	blk_status_t error;		/* an error of any bio of this round */
	u8 status;			/* VIRTIO_BLK_S_*: the answer unless a bio failed */
	bool busy;			/* read from the ring, no used entry yet */
	bool dirties;			/* the bios write guest memory */
	bool cached;			/* what they wrote may be in a volatile cache */
	u16 head;
	u32 data_len;			/* bytes of guest memory that the data may change */
	u32 sectors;			/* that this round, or a later one, writes; 0: none */
	u64 sector;			/* the first of them */
	u8 __user *status_addr;		/* NULL if the chain has no room for a status */
	struct vhost_blk_part *parts;	/* the round under way */
	const struct vhost_blk_steps *steps;	/* NULL: one round */
	void *priv;			/* of steps */

	/* Dirty logging; status_log.len is 0 without. */
	struct vhost_log status_log;	/* guest-physical address of the status byte */
	struct vhost_log *data_log;	/* guest-physical addresses of the data */
	unsigned int nr_data_log;

	struct bio_vec inline_vecs[VHOST_BLK_INLINE_VECS];	/* of part */
	struct vhost_blk_part part;	/* the first part if it is small; last: see struct bio */
};

/**
 * struct vhost_blk_claim - whether a queue has its used ring, or waits for another queue to release
 * it
 *
 * Under the lock of claim.c. Fields that do not change from start to unclaim may also be read under
 * the ring's mutex. So may @held: meanwhile it only becomes true, under the ring's mutex. The
 * @awaited fields are from the last vhost_blk_claim(), and are read by its caller.
 */
struct vhost_blk_claim {
	struct hlist_node node;
	struct file *file;		/* that the used ring is mapped from, or NULL */
	const void *memory;		/* identifies the memory; NULL: no claim */
	u64 at;				/* and the used ring's place in it */
	const void __user *addr;	/* the same in the owner's memory; the ring's mutex */
	bool held;
	pid_t awaited;			/* owner of the queue that has it */
	bool awaited_ends;		/* whether that queue is about to stop */
	bool awaited_stays;		/* whether it may stop only when another process lets it */
};

/*
 * struct vhost_blk_queue - a ring
 */
struct vhost_blk_queue {
	struct vhost_virtqueue vq;	/* vq.mutex is "the ring's mutex" */
	struct vhost_blk *blk;
	unsigned int index;

	/* Under the ring's mutex. */
	struct vhost_blk_req *reqs;	/* one per descriptor, by head; set while stopped */
	unsigned int nr_reqs;
	struct vring_desc descs[VHOST_BLK_QUICK_SEGMENTS];	/* of the chain being read */
	struct vring_used_elem *used;	/* entries to publish; as many as reqs */
	unsigned int nr_used;
	unsigned int nr_hidden;		/* entries written, but the used index was not */
	unsigned int inflight;		/* read without the mutex by drains */
	bool unlogged_used;		/* the core may have missed logging the used ring */
	size_t held;			/* bytes of memory that requests have allocated */
	bool throttled;			/* not read on until held is smaller */
	bool broken;			/* not read any more until restarted */
	/*
	 * Answered as written, and maybe in a volatile cache: set before the used entry is
	 * published, cleared when a flush begins that covers it. Of a drained ring, under
	 * dev.mutex.
	 */
	bool unflushed;
	struct vhost_blk_claim claim;
	u8 serial[VHOST_BLK_SERIAL_BYTES];

	/* Shared with end of bio. */
	struct llist_head done;		/* requests whose bios have ended */
	bool gathering;			/* the worker will look at done without being told */
	struct vhost_work done_work;	/* executor 1: the queue's worker */
	struct work_struct fallback_work;	/* executor 2: when the worker has been killed */

	/* Calls the worker after there was no memory for a chain. Not armed once halted. */
	struct timer_list retry;

	wait_queue_head_t drained;	/* woken when inflight becomes 0 */
};

/*
 * struct vhost_blk - one open of /dev/vhost-blk
 */
struct vhost_blk {
	struct mutex setup;		/* taken before all others, and alone */

	/* Changed under setup before ready is set; then constant, but for what dev protects. */
	bool ready;
	unsigned int nr_queues;
	struct vhost_dev dev;		/* dev.mutex serialises the ioctls */
	struct vhost_virtqueue **vqs;
	struct vhost_blk_queue **queues;

	pid_t owner;			/* for messages; under dev.mutex */
	/* Leader of the owner's threads. Under dev.mutex; not changed while a ring is claimed. */
	struct task_struct *task;

	bool unsettled;			/* a worker may hold work of a stopped ring; dev.mutex */
	bool flush_failed;		/* and the owner has not been told yet; dev.mutex */

	/*
	 * An ioctl or release is under way, and may have to wait for a ring's mutex or for a
	 * worker: do not poll meanwhile. Written under dev.mutex.
	 */
	bool wanted;
	struct ratelimit_state limit;	/* of this open's messages in the kernel log */

	/* Changed under dev.mutex with all rings stopped; read by requests in flight. */
	struct file *file;
	struct block_device *bdev;
	struct address_space *mapping;	/* the device's page cache */
	bool writable;			/* the file was opened for writing */
	struct cgroup_subsys_state *css;	/* owner's io cgroup, for kthread workers */
	/*
	 * For executor 2 of complete.c. Its work can sleep on the owner's memory for as long as the
	 * provider of that memory likes, so it must not delay another owner's work. Created with an
	 * owner.
	 */
	struct workqueue_struct *wq;

	/*
	 * The cache mode: see vhost_blk_write_through(). Changed under dev.mutex at any time, and
	 * by the workers when a guest flushes. Read when a write begins, to make the write durable
	 * on completion, and again before the write is answered, in case the mode has changed.
	 */
	bool writeback;			/* as the owner has set it; true if it has not */
	bool unsure;			/* the guest may count on writes being durable */
	bool sure;			/* it does not: it has flushed, or the owner says so */
	bool mode_set;			/* the owner has set the mode; dev.mutex */
};

/*
 * Is no request in flight any more? A caller that has seen this, with the ring halted, may free
 * what the requests used.
 */
static inline bool vhost_blk_drained(struct vhost_blk_queue *q)
{
	/* Pairs with the release in vhost_blk_publish(). */
	return !smp_load_acquire(&q->inflight);
}

/*
 * Is anything of the device in the host's page cache? Pages may come and go at any time: a page
 * that is missed here was read from the device after this check, and is looked for again when a
 * write has ended.
 */
static inline bool vhost_blk_has_pages(struct vhost_blk *blk)
{
	return READ_ONCE(blk->mapping->nrpages);
}

/*
 * The core lets the owner change a ring's addresses while the ring runs, but the used ring has been
 * claimed at its old address. Under the ring's mutex.
 */
static inline bool vhost_blk_used_moved(struct vhost_blk_queue *q)
{
	return q->vq.used != q->claim.addr;
}

/* Log what a guest or an owner has caused; the rate limit per open silences no other open. */
#define vhost_blk_notice(blk, fmt, ...)						\
do {										\
	if (__ratelimit(&(blk)->limit))						\
		pr_notice(fmt, ##__VA_ARGS__);					\
} while (0)

/**
 * vhost_blk_write_through - must writes be durable when they complete?
 * @q: the ring
 *
 * A guest that cannot flush must get durable writes, and so must a guest that has chosen to write
 * through. A guest says so once, to the server that it has then: a guest that has been served
 * before and may have chosen so is assumed to have, until it flushes.
 */
static inline bool vhost_blk_write_through(struct vhost_blk_queue *q)
{
	return !vhost_blk_has_feature(&q->vq, VIRTIO_BLK_F_FLUSH) ||
	       !READ_ONCE(q->blk->writeback) || READ_ONCE(q->blk->unsure);
}

#endif
