/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cow.h - an operation on guest clusters, and its I/O: fill them, write to them; see cow.c.
 *
 * For the writer's work item only, except setup and teardown.
 */
#ifndef DM_QCOW2_COW_H
#define DM_QCOW2_COW_H

#include "writer.h"

#define OP_PARTS	8		/* I/Os of one operation at a time */
#define OP_VECS		24		/* segments of a write that is put together from pieces */
#define COPY_ORDER	4
#define COPY_BYTES	(PAGE_SIZE << COPY_ORDER)	/* copied at a time */
#define MAX_OP_BYTES	(1U << QCOW2_MAX_CLUSTER_BITS)	/* all clusters of one operation, at most */

/* How to fill the head and the tail, which the payload of an operation does not cover. */
enum op_fill {
	FILL_NONE,		/* nothing to fill, or they read as zeroes already */
	FILL_ZERO,
	FILL_COPY,		/* from where the guest reads it now */
};

enum op_payload {
	PAYLOAD_BIO,		/* the data of the bio */
	PAYLOAD_ZEROES,
	PAYLOAD_NONE,		/* zeroes that are there already */
};

enum op_stage {
	STAGE_READ,		/* reading (a piece of) what the clusters are filled with */
	STAGE_WRITE_PIECE,	/* writing that piece, if the clusters exceed COPY_BYTES */
	STAGE_WRITE,		/* writing the payload, and what is left to fill */
};

struct cow_op;
struct view_chunk;

struct op_part {
	struct storage_io sio;
	struct bio_vec bv;
	struct cow_op *op;
};

/**
 * struct cow_op - one operation on contiguous guest clusters: fill them, write to them, map them
 *
 * Its clusters lie in one L2 slice, their host clusters side by side.  Owned by the writer, except
 * while @parts are in flight.
 */
struct cow_op {
	struct qcow2_writer *w;
	struct rb_node busy;		/* by [@first, @last], in qcow2_writer.busy */
	u64 first, last;		/* numbers of its guest clusters */
	u64 busy_last;			/* the largest @last in its subtree there */
	struct list_head waiters;	/* bios that came for one of these clusters meanwhile */
	/*
	 * Called when the operation has ended: its clusters are mapped, or there is an @error, and
	 * they are no longer busy.  The callback puts bios that go on before @waiters.
	 */
	void (*ended)(struct qcow2_writer *w, struct cow_op *op, struct list_head *waiters);
	struct qcow2_io *io;		/* the bio that the operation serves, or NULL */
	const struct qcow2_dev *dev;	/* its chain is what FILL_COPY reads */
	u64 host;			/* byte position of the first host cluster */
	bool new_cluster;		/* @host was allocated for this operation, of one cluster */
	bool remap;			/* the L2 entries are to be set when the data is written */
	enum op_payload payload;
	enum op_fill fill;
	enum op_stage stage;
	u32 start;			/* what is written: [start, start + len) of the clusters */
	u32 len;
	u32 copied;			/* FILL_COPY in pieces: bytes done */
	struct slice *l2;		/* pinned and prepared if @remap */
	struct view_chunk *held;	/* pinned: where a view records the old entry, or NULL */
	struct freed_extent *freed;	/* to record the old or the new cluster in */
	struct percpu_ref *epoch;	/* held while old clusters may be read */
	struct page *buf;		/* COPY_BYTES, for FILL_COPY */

	atomic_t pending;		/* @parts in flight, and one while they are started */
	int error;			/* any one of several */
	struct llist_node finished;	/* on qcow2_writer.finished */
	unsigned int nr_parts;
	struct op_part parts[OP_PARTS];
	struct bio_vec vecs[OP_VECS];
};

/**
 * qcow2_op_pools_init - set up what operations and copying need
 * @w: the writer
 *
 * Return: 0 or -ENOMEM; qcow2_op_pools_exit() must be called either way.
 */
int qcow2_op_pools_init(struct qcow2_writer *w);

/**
 * qcow2_op_pools_exit - free what qcow2_op_pools_init() made
 * @w: the writer, without an operation
 */
void qcow2_op_pools_exit(struct qcow2_writer *w);

/**
 * qcow2_op_alloc - get an operation and the memory it needs
 * @w: the writer
 * @need_freed: the operation may free a cluster
 * @need_buf: the operation copies
 *
 * Does not wait.  Return: the operation, or NULL when an operation or a commit must end first.
 */
struct cow_op *qcow2_op_alloc(struct qcow2_writer *w, bool need_freed, bool need_buf);

/**
 * qcow2_op_free - give an operation and its memory back
 * @w: the writer
 * @op: the operation
 */
void qcow2_op_free(struct qcow2_writer *w, struct cow_op *op);

/**
 * qcow2_op_start - make the clusters of an operation busy, and start its I/O
 * @w: the writer
 * @op: the operation, filled in, except @busy and @epoch; none of its clusters is busy
 */
void qcow2_op_start(struct qcow2_writer *w, struct cow_op *op);

/**
 * qcow2_op_release - make the clusters of an operation no longer busy
 * @w: the writer
 * @op: an operation that has ended
 */
void qcow2_op_release(struct qcow2_writer *w, struct cow_op *op);

/**
 * qcow2_op_of - the operation that makes a guest cluster busy
 * @w: the writer
 * @first: number of the first cluster to look at
 * @last: and of the last
 *
 * Return: the operation of the lowest busy cluster, or NULL.
 */
struct cow_op *qcow2_op_of(struct qcow2_writer *w, u64 first, u64 last);

/**
 * qcow2_op_continue - start the next stage when the I/O of one has ended
 * @w: the writer
 * @op: the operation
 *
 * Return: whether a stage was started; if not, the operation has ended, in success or with
 * op->error.
 */
bool qcow2_op_continue(struct qcow2_writer *w, struct cow_op *op);

int qcow2_cow_module_init(void);
void qcow2_cow_module_exit(void);

#endif /* DM_QCOW2_COW_H */
