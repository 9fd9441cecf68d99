/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cow.h - an operation on guest clusters, and its I/O: fill them, write to them; see cow.c.
 *
 * For the writer's work item only, but for setting up and taking apart.
 */
#ifndef DM_QCOW2_COW_H
#define DM_QCOW2_COW_H

#include "writer.h"

#define OP_PARTS	8		/* I/Os of one operation at a time */
#define OP_VECS		24		/* segments of a write that is put together from pieces */
#define COPY_ORDER	4
#define COPY_BYTES	(PAGE_SIZE << COPY_ORDER)	/* copied at a time */
#define MAX_OP_BYTES	(1U << QCOW2_MAX_CLUSTER_BITS)	/* that the clusters of one have at most */

/* What of an operation's clusters its payload does not cover: the head and the tail. */
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
	STAGE_WRITE_PIECE,	/* writing that piece, of what is too large for one write */
	STAGE_WRITE,		/* writing the payload, and in the same go what is left to fill */
};

struct cow_op;

struct op_part {
	struct storage_io sio;
	struct bio_vec bv;
	struct cow_op *op;
};

/**
 * struct cow_op - one operation on contiguous guest clusters: fill them, write to them, map them
 *
 * Its clusters lie in one L2 slice, their host clusters side by side.  Owned by the writer, but for
 * the time when @parts are in flight.
 */
struct cow_op {
	struct qcow2_writer *w;
	struct rb_node busy;		/* by [@first, @last], in qcow2_writer.busy */
	u64 first, last;		/* numbers of its guest clusters */
	u64 busy_last;			/* the largest @last of it and what is below it there */
	struct list_head waiters;	/* bios that came for one of these clusters meanwhile */
	/*
	 * What whoever started the operation does when it has ended, in success or with @error: the
	 * clusters are mapped and busy no more.  Bios that are to go on are put before @waiters.
	 */
	void (*ended)(struct qcow2_writer *w, struct cow_op *op, struct list_head *waiters);
	struct qcow2_io *io;		/* the bio that it serves; NULL if it serves none */
	const struct qcow2_dev *dev;	/* its chain is what FILL_COPY reads */
	u64 host;			/* byte position of the first host cluster */
	bool new_cluster;		/* @host was allocated for this operation, of one cluster */
	bool remap;			/* the L2 entries are to be set when the data is written */
	enum op_payload payload;
	enum op_fill fill;
	enum op_stage stage;
	u32 start;			/* what is written: [start, start + len) of the clusters */
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
 * @need_freed: it may free a cluster
 * @need_buf: it copies
 *
 * Does not wait.  Return: the operation, or NULL when one must end, or a commit, first.
 */
struct cow_op *qcow2_op_alloc(struct qcow2_writer *w, bool need_freed, bool need_buf);

/**
 * qcow2_op_free - give an operation and its memory back
 * @w: the writer
 * @op: the operation
 */
void qcow2_op_free(struct qcow2_writer *w, struct cow_op *op);

/**
 * qcow2_op_start - its clusters are busy from now on; start the I/O of an operation
 * @w: the writer
 * @op: the operation, filled in, but for @busy and @epoch; none of its clusters is busy
 */
void qcow2_op_start(struct qcow2_writer *w, struct cow_op *op);

/**
 * qcow2_op_release - the clusters of an operation are busy no more
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
 * Return: that of the lowest cluster that is busy, or NULL.
 */
struct cow_op *qcow2_op_of(struct qcow2_writer *w, u64 first, u64 last);

/**
 * qcow2_op_continue - the I/O of a stage has ended: start the next
 * @w: the writer
 * @op: the operation
 *
 * Return: whether there was a next; if not, the operation has ended, in success or with op->error.
 */
bool qcow2_op_continue(struct qcow2_writer *w, struct cow_op *op);

int qcow2_cow_module_init(void);
void qcow2_cow_module_exit(void);

#endif /* DM_QCOW2_COW_H */
