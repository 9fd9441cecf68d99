/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * storage.h - where the bytes of an image or raw layer live: a block device or a file.
 *
 * All code above this layer uses byte positions inside the storage; the two backends
 * (storage-bdev.c, storage-file.c) turn them into bios or into direct-I/O kiocbs.
 *
 * A storage is created by its image, shared with it, and dies with it.  Its fields are constant
 * after storage_open_*() except where said.
 */
#ifndef DM_QCOW2_STORAGE_H
#define DM_QCOW2_STORAGE_H

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/fs.h>
#include <linux/llist.h>
#include <linux/workqueue.h>

struct qcow2_storage;
struct qcow2_io;
struct storage_cpu_queue;

/**
 * struct storage_io - one read or write of a byte range, submitted with storage_submit()
 *
 * The caller fills the first group and owns the memory, the bio_vec array and the pages until
 * @done is called; @done runs once, in any context (also interrupt), with @error set.
 *
 * @owner is the guest bio that the I/O serves, which ends later: its cgroup is charged, and its
 * priority counts.  NULL: the image's own I/O, such as tables.
 */
struct storage_io {
	struct qcow2_storage *st;
	u64 pos;			/* byte position in the storage, a multiple of 512 */
	unsigned int len;		/* bytes */
	unsigned int bv_skip;		/* bytes of @bv[0] to skip */
	unsigned int nr_bv;
	blk_opf_t opf;			/* REQ_OP_READ, or REQ_OP_WRITE with or without REQ_FUA */
	const struct bio_vec *bv;
	struct bio *owner;
	void (*done)(struct storage_io *sio);
	int error;			/* 0 or -errno, valid in @done */

	/* Private to the backend while the I/O runs. */
	atomic_t ref;
	bool again;			/* it would have had to wait: a worker does it */
	u64 end;			/* file: its size when the I/O was started */
	struct kiocb iocb;
	struct llist_node node;		/* also in a gathered write, instead of running by itself */
};

/**
 * struct storage_gather - adjacent writes to a file that are about to be submitted as one
 *
 * Empty when all zeroes.  Used by one task at a time, which the caller ensures.
 */
struct storage_gather {
	struct llist_node *first;	/* storage_io.node; NULL: empty, the rest means nothing */
	struct llist_node **last;	/* where the next one is linked */
	struct qcow2_storage *st;
	struct bio *owner;		/* of the first; the rest have its cgroup and priority */
	blk_opf_t opf;
	u64 end;			/* byte position after the last one */
	unsigned int len;		/* bytes of all */
	unsigned int nr_bv;		/* segments of all */
};

/**
 * struct storage_ops - what a backend provides
 * @map_bio:	Direct a guest bio at @pos.  Called from the target's map function and from workers;
 *		returns DM_MAPIO_REMAPPED when the bio now only needs submitting, or
 *		DM_MAPIO_SUBMITTED when the backend will end it.  Does not sleep.
 * @submit:	Start @sio.  May sleep for memory; never on metadata.
 * @flush:	Make completed writes durable.  Sleeps.
 * @discard:	Give a range back to the provider of the storage; its content becomes undefined.
 *		Sleeps.  -EOPNOTSUPP is an ordinary answer.
 * @prepare:	Make [pos, pos + len) writable, growing the storage as needed, and say in @zeroed
 *		whether it now reads as zeroes.  Sleeps.  -ENOSPC when the host has no room.
 * @reserve:	Make sure that writing to [pos, pos + len), which exists, needs no more room on the
 *		host.  Keeps the content.  Sleeps.  -ENOSPC when the host has no room.
 * @take_over: Write back what the page cache has of the storage, and drop it: from here on nobody
 *		but us may write.  Sleeps.
 * @hand_back: Drop what buffered readers have left in the page cache since then: it is stale.
 * @size:	Bytes that can be read now.
 * @limit:	Bytes that the storage can grow to.
 * @used:	Bytes that the storage takes on the host; @end is the end of what the image uses.
 */
struct storage_ops {
	int (*map_bio)(struct qcow2_storage *st, struct qcow2_io *io, struct bio *bio, u64 pos);
	void (*submit)(struct storage_io *sio);
	int (*flush)(struct qcow2_storage *st);
	int (*discard)(struct qcow2_storage *st, u64 pos, u64 len);
	int (*prepare)(struct qcow2_storage *st, u64 pos, u64 len, bool *zeroed);
	int (*reserve)(struct qcow2_storage *st, u64 pos, u64 len);
	int (*take_over)(struct qcow2_storage *st);
	void (*hand_back)(struct qcow2_storage *st);
	u64 (*size)(struct qcow2_storage *st);
	u64 (*limit)(struct qcow2_storage *st);
	u64 (*used)(struct qcow2_storage *st, u64 end);
	void (*close)(struct qcow2_storage *st);
};

struct qcow2_storage {
	const struct storage_ops *ops;
	struct file *file;		/* image file, or the node of @bdev (held for its locks) */
	struct block_device *bdev;	/* NULL for a file; each table using it holds a dm_dev */
	struct bio_set *bs;		/* bdev: bios for our own I/O */
	bool nowait;			/* can be told not to wait: REQ_NOWAIT, IOCB_NOWAIT */
	struct workqueue_struct *wq;	/* file: guest bios are submitted from here */
	struct storage_cpu_queue __percpu *queues;	/* file */
	unsigned int block_size;	/* bytes: smallest unit of direct I/O */
	unsigned int mem_align;		/* bytes: alignment of memory for direct I/O */
	bool discard_unsupported;	/* set once by anybody, never cleared */
};

/**
 * qcow2_storage_init_bdev - use a block device as storage
 * @st: zeroed but for @st->file, the opened device node
 * @bdev: the device; the caller keeps it open for as long as @st is used
 *
 * Return: 0 or -ENOMEM.
 */
int qcow2_storage_init_bdev(struct qcow2_storage *st, struct block_device *bdev);

/**
 * qcow2_storage_init_file - use a regular file as storage
 * @st: zeroed but for @st->file, opened for direct I/O
 *
 * Return: 0, -ENOMEM, or -EOPNOTSUPP when the filesystem cannot do direct I/O on this file.
 */
int qcow2_storage_init_file(struct qcow2_storage *st);

/**
 * qcow2_storage_close - release the backend's resources and the file
 * @st: the storage; nothing may be in flight on it
 */
void qcow2_storage_close(struct qcow2_storage *st);

/**
 * qcow2_storage_rw_sync - read or write kernel memory and wait
 * @st: the storage
 * @opf: REQ_OP_READ or REQ_OP_WRITE
 * @pos: byte position, a multiple of the storage's block size
 * @buf: linearly mapped memory aligned to 512 bytes, of pages (not vmalloc, not kmalloc:
 *	filesystems take references to its pages)
 * @len: bytes, a multiple of the storage's block size
 *
 * Sleeps; call it with memory reclaim restricted to NOIO when on the I/O path.
 *
 * Return: 0 or the storage's error.
 */
int qcow2_storage_rw_sync(struct qcow2_storage *st, blk_opf_t opf, u64 pos, void *buf,
			  unsigned int len);

/**
 * qcow2_storage_read_table - read part of a table
 * @st: the storage
 * @pos: byte position
 * @buf: destination, as qcow2_storage_rw_sync() needs it
 * @len: bytes
 *
 * QEMU writes a table no further than its last entry, so that a file can end inside one, and a
 * block device made of such a file before it.  Missing bytes read as zeroes.
 *
 * Return: 0 or the storage's error.
 */
int qcow2_storage_read_table(struct qcow2_storage *st, u64 pos, void *buf, u32 len);

/**
 * qcow2_storage_zero_sync - write zeroes to a range and wait
 * @st: the storage
 * @pos: byte position
 * @len: bytes
 *
 * Return: 0 or the storage's error.
 */
int qcow2_storage_zero_sync(struct qcow2_storage *st, u64 pos, u64 len);

/**
 * qcow2_storage_gather_write - submit a write, now or with what is gathered
 * @gather: all zeroes before its first use
 * @sio: filled in as for storage_submit()
 *
 * May sleep for memory, like storage_submit().
 */
void qcow2_storage_gather_write(struct storage_gather *gather, struct storage_io *sio);

/**
 * qcow2_storage_gather_submit - submit what has been gathered
 * @gather: empty afterwards
 *
 * May sleep for memory, like storage_submit().
 */
void qcow2_storage_gather_submit(struct storage_gather *gather);

static inline void storage_submit(struct storage_io *sio)
{
	sio->error = 0;
	sio->st->ops->submit(sio);
}

/* A buffer of zeroes, shared by every image, to be written wherever zeroes are needed. */
#define ZERO_BUF_ORDER	4
#define ZERO_BUF_SIZE	(PAGE_SIZE << ZERO_BUF_ORDER)
extern struct page *qcow2_zero_page;

int qcow2_storage_module_init(void);
void qcow2_storage_module_exit(void);

#endif /* DM_QCOW2_STORAGE_H */
