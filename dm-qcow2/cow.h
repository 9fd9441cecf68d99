/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cow.h - an operation on a guest cluster, and its I/O: fill it, write to it; see cow.c.
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
 * qcow2_op_start - start the I/O of an operation
 * @w: the writer
 * @op: the operation, filled in
 */
void qcow2_op_start(struct qcow2_writer *w, struct cow_op *op);

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
