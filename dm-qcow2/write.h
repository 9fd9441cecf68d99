/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * write.h - the writer of an image: everything that changes mappings happens in one work item.
 *
 * Since the writer is one work item, which never runs twice at once, what only it touches needs no
 * lock.  It never waits for anything that needs it: memory that comes back when an operation ends
 * is asked for without waiting, and a bio that cannot be served is put aside ("stalled") until
 * an operation or a commit ends.
 */
#ifndef DM_QCOW2_WRITE_H
#define DM_QCOW2_WRITE_H

#include <linux/hashtable.h>

#include "commit.h"
#include "device.h"
#include "generation.h"

#define MAX_OPS		256		/* at a time */
#define OP_PARTS	8		/* I/Os of one operation at a time */
#define OP_VECS		24		/* segments of a write that is put together from pieces */
#define COPY_ORDER	4
#define COPY_BYTES	(PAGE_SIZE << COPY_ORDER)	/* copied at a time */

enum op_fill {
	FILL_NONE,		/* nothing to fill, or the cluster reads as zeroes already */
	FILL_ZERO,
	FILL_COPY,		/* from where the guest reads it now */
};

enum op_payload {
	PAYLOAD_BIO,		/* the data of the bio */
	PAYLOAD_ZEROES,
	PAYLOAD_NONE,		/* zeroes that are there already */
};

enum op_stage {
	STAGE_READ,		/* reading (a piece of) what the cluster is filled with */
	STAGE_WRITE_PIECE,	/* writing that piece, of a cluster too large for one write */
	STAGE_WRITE,		/* writing the payload, and in the same go what is left to fill */
};

struct cow_op;

struct op_part {
	struct storage_io sio;
	struct bio_vec bv;
	struct cow_op *op;
};

/**
 * struct cow_op - one operation on one guest cluster: fill it, write to it, map it
 *
 * Owned by the writer, but for the time when @parts are in flight.
 */
struct cow_op {
	struct hlist_node busy;		/* by @cluster, in qcow2_writer.busy */
	u64 cluster;			/* guest cluster number */
	struct list_head waiters;	/* bios that came for the same cluster meanwhile */
	struct qcow2_io *io;		/* the bio that it serves */
	u64 host;			/* byte position of the host cluster */
	bool new_cluster;		/* @host was allocated for this operation */
	bool remap;			/* the L2 entry is to be set when the data is written */
	enum op_payload payload;
	enum op_fill fill;
	enum op_stage stage;
	u32 start;			/* what is written: [start, start + len) of the cluster */
	u32 len;
	u32 copied;			/* FILL_COPY in pieces: how far it is */
	struct slice *l2;		/* pinned and prepared if @remap */
	struct freed_extent *freed;	/* to record the old or the new cluster in */
	struct percpu_ref *epoch;	/* as long as old clusters may be read */
	struct page *buf;		/* COPY_BYTES, for FILL_COPY */

	atomic_t pending;		/* @parts in flight, and one while they are started */
	int error;			/* any one of several */
	struct llist_node finished;	/* on qcow2_writer.finished */
	unsigned int nr_parts;
	struct op_part parts[OP_PARTS];
	struct bio_vec vecs[OP_VECS];
};

struct qcow2_writer {
	struct qcow2_image *img;

	struct llist_head incoming;	/* bios; lock-free */
	struct llist_head finished;	/* operations whose I/O has ended; lock-free */

	/* The writer's own. */
	DECLARE_HASHTABLE(busy, 7);
	struct list_head stalled;
	struct list_head no_space;
	struct storage_gather gather;	/* writes of operations; empty between two runs */
	unsigned int nr_ops;
	mempool_t ops;
	mempool_t buffers;

	/* Constant while a table is live. */
	bool discard_no_unref;
};

/* write.c */
int writer_init(struct qcow2_image *img);
void writer_stop_polling(struct qcow2_image *img);
void writer_stop(struct qcow2_image *img);
void writer_exit(struct qcow2_image *img);
void writer_add(struct qcow2_image *img, struct qcow2_io *io);
void qcow2_writer_configure(struct qcow2_image *img, const struct qcow2_features *f);
void writer_grown(struct qcow2_image *img);
void writer_release_waiting(struct qcow2_image *img, bool noflush);
void writer_flush(struct qcow2_image *img);
void writer_resume(struct qcow2_image *img);
int writer_module_init(void);
void writer_module_exit(void);

/* The rest is between the writer's files, and for the writer's work item only. */
void stall_io(struct qcow2_writer *w, struct qcow2_io *io);
void failed_alloc(struct qcow2_writer *w, struct qcow2_io *io, int error);
struct cow_op *find_busy(struct qcow2_writer *w, u64 cluster);
struct slice *get_l2(struct qcow2_image *img, u64 goff);
int start_allocating(struct qcow2_writer *w, struct qcow2_io *io, u64 goff, u32 len, bool zeroes,
		     const struct extent *ext);
int start_in_place(struct qcow2_writer *w, struct qcow2_io *io, u64 goff, u32 len,
		   const struct extent *ext);
void finish_io(struct qcow2_writer *w, struct qcow2_io *io);
void free_l2_reference(struct qcow2_image *img, struct freed_extent **freed, u64 entry);

/* cow.c */
struct cow_op *op_alloc(struct qcow2_writer *w, bool need_freed, bool need_buf);
void op_free(struct qcow2_writer *w, struct cow_op *op);
void op_start(struct qcow2_writer *w, struct cow_op *op);
bool op_continue(struct qcow2_writer *w, struct cow_op *op);
void cow_module_init(void);

/* discard.c */
void process_discard(struct qcow2_writer *w, struct qcow2_io *io);
void process_write_zeroes(struct qcow2_writer *w, struct qcow2_io *io);

#endif /* DM_QCOW2_WRITE_H */
