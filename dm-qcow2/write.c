// SPDX-License-Identifier: GPL-2.0-only
/*
 * write.c - allocating writes: from the bio that needs a cluster to the operation that fills it.
 *
 * How a write that finds no cluster of its own goes:
 *  1. qcow2_start_allocating(): make sure the L2 table exists, take a host cluster, decide what the
 *     rest of the cluster must be filled with.  One operation per guest cluster: later bios of that
 *     cluster wait on it, and mostly find a cluster of their own afterwards.
 *  2. cow.c: write the guest's data, and what fills the cluster, in one I/O where it can be.
 *  3. finish_op() in writer.c: when that has completed, enter the mapping in memory and end the
 *     bio (served()).  The mapping reaches the disk with the next commit; a FUA bio waits for that.
 *
 * Called by the writer's work item.  Takes no locks itself.
 */
#include <linux/device-mapper.h>

#include "alloc.h"
#include "chain.h"
#include "cow.h"
#include "entries.h"
#include "epoch.h"
#include "image.h"
#include "io.h"
#include "lookup.h"
#include "map.h"
#include "mapping.h"
#include "note.h"
#include "state.h"
#include "storage.h"
#include "table-cache.h"
#include "view-map.h"
#include "wait.h"
#include "write.h"
#include "writer.h"

int qcow2_chain_reads_zeroes(struct qcow2_writer *w, struct qcow2_io *io, unsigned int from,
			     u64 goff, u64 len)
{
	struct extent ext;

	while (len) {
		qcow2_chain_lookup(io->dev, from, goff, len, &ext);
		if (ext.type == EXTENT_MISS) {
			if (qcow2_load_missed(io, &ext, &w->gather))
				continue;
			return -EAGAIN;
		}
		if (ext.type != EXTENT_ZERO)
			return 0;
		goff += ext.len;
		len -= ext.len;
	}
	return 1;
}

/* An operation that served a bio has ended: end the bio, or let it go on behind the operation. */
static void served(struct qcow2_writer *w, struct cow_op *op, struct list_head *waiters)
{
	struct qcow2_image *img = w->img;
	struct qcow2_io *io = op->io;

	/* When bios without space are failed, no refused bio is left to tell that there is room. */
	if (!op->error && unlikely(READ_ONCE(img->waits.refused)) &&
	    (io->retried || (op->new_cluster && qcow2_gives_up(img)))) {
		io->retried = false;
		qcow2_has_room(img);
	}
	if (op->error == -ENOSPC) {
		qcow2_was_refused(w, io);
	} else if (op->error) {
		qcow2_io_end(io, errno_to_blk_status(op->error));
	} else if (bio_op(io_bio(io)) == REQ_OP_WRITE) {
		qcow2_finish_io(w, io);
	} else {
		io->pos += op->len;
		io->misses = 0;
		list_add(&io->node, waiters);
	}
}

static void start_op(struct qcow2_writer *w, struct cow_op *op, struct qcow2_io *io, u64 goff,
		     u32 len)
{
	op->io = io;
	op->dev = io->dev;
	op->ended = served;
	op->first = qcow2_cluster_index(w->img, goff);
	op->last = qcow2_cluster_index(w->img, goff + len - 1);
	op->start = in_cluster(w->img, goff);
	op->len = len;
	qcow2_note_write(w->img, goff, len);
	qcow2_op_start(w, op);
}

int qcow2_start_allocating(struct qcow2_writer *w, struct qcow2_io *io, u64 goff, u32 len,
			   bool zeroes, const struct extent *ext)
{
	struct qcow2_image *img = w->img;
	u32 head = in_cluster(img, goff), tail = img->cluster_size - head - len;
	bool reuse = ext->type == EXTENT_ZERO && qcow2_may_write_in_place(ext);
	unsigned int from = ext->type == EXTENT_UNALLOCATED ? 1 : 0;
	u64 start = goff - head;
	int fill = FILL_NONE, r;
	struct cow_op *op;
	struct slice *l2;
	bool zeroed = false;

	if (ext->type == EXTENT_ZERO) {
		fill = FILL_ZERO;
	} else if (head || tail) {
		r = qcow2_chain_reads_zeroes(w, io, from, start, img->cluster_size);
		if (r < 0)
			return r;
		fill = r ? FILL_ZERO : FILL_COPY;
	}

	/* From here on: all resources, or none. */
	if (w->nr_ops >= MAX_OPS)
		goto stall;
	op = qcow2_op_alloc(w, true, fill == FILL_COPY);
	if (!op)
		goto stall;
	l2 = qcow2_get_l2(img, goff);
	if (IS_ERR(l2)) {
		qcow2_op_free(w, op);
		qcow2_failed_alloc(w, io, PTR_ERR(l2));
		return -EAGAIN;
	}
	op->l2 = l2;
	qcow2_view_prepare(img, qcow2_cluster_index(img, goff), 1);
	op->held = qcow2_view_pin(img, qcow2_cluster_index(img, goff));
	if (reuse) {
		op->host = ext->host;
	} else {
		r = qcow2_alloc_cluster(img, &op->host, &zeroed);
		if (r) {
			qcow2_op_free(w, op);
			qcow2_failed_alloc(w, io, r);
			return -EAGAIN;
		}
		op->new_cluster = true;
	}
	if (fill == FILL_ZERO && zeroed)
		fill = FILL_NONE;
	op->fill = fill;
	op->remap = true;
	if (zeroes)
		op->payload = zeroed && fill == FILL_NONE ? PAYLOAD_NONE : PAYLOAD_ZEROES;
	if (unlikely(image_mode(img) == MODE_OUT_OF_SPACE) && !reuse &&
	    !READ_ONCE(img->waits.refused))
		qcow2_space_freed(img);
	start_op(w, op, io, goff, len);
	return 0;
stall:
	qcow2_stall_io(w, io);
	return -EAGAIN;
}

int qcow2_start_in_place(struct qcow2_writer *w, struct qcow2_io *io, u64 goff, u32 len,
			 const struct extent *ext)
{
	struct cow_op *op;

	op = w->nr_ops < MAX_OPS ? qcow2_op_alloc(w, false, false) : NULL;
	if (!op) {
		qcow2_stall_io(w, io);
		return -EAGAIN;
	}
	op->host = ext->host - in_cluster(w->img, goff);
	op->payload = PAYLOAD_ZEROES;
	start_op(w, op, io, goff, len);
	return 0;
}

static void process_in_cluster(struct qcow2_writer *w, struct qcow2_io *io)
{
	struct qcow2_image *img = w->img;
	struct bio *bio = io_bio(io);
	u64 goff = io_start(io);
	struct extent ext;

	/* In no epoch: only the writer changes mappings, so the cluster found cannot go away. */
	do {
		qcow2_image_lookup(img, goff, bio->bi_iter.bi_size, &ext);
	} while (ext.type == EXTENT_MISS && qcow2_load_missed(io, &ext, &w->gather));
	if (written_in_place(&ext)) {
		/* The usual case after waiting for an operation on the same cluster. */
		qcow2_resume_io(io);
		return;
	}
	switch (ext.type) {
	case EXTENT_MISS:
		/* No longer ours: the bio waits, or has been ended. */
		break;
	case EXTENT_INVALID:
		qcow2_io_end(io, BLK_STS_IOERR);
		break;
	default:
		qcow2_start_allocating(w, io, goff, bio->bi_iter.bi_size, false, &ext);
	}
}

static bool spans_clusters(struct qcow2_writer *w, struct qcow2_io *io)
{
	return in_cluster(w->img, io_start(io)) + io_bio(io)->bi_iter.bi_size >
	       w->img->cluster_size;
}

/*
 * A write to several own clusters that the storage had refused: DM can no longer cut the bio, so it
 * goes to the same place again.  If part of it is mapped elsewhere by now, a discard of the guest
 * has overtaken the write, and the content of the disk is undefined then.
 */
static void process_long_write(struct qcow2_writer *w, struct qcow2_io *io)
{
	struct qcow2_image *img = w->img;
	u64 goff = io_start(io), end = goff + io_bio(io)->bi_iter.bi_size, host = 0;
	struct extent ext;
	struct slice *s;

	/* In no epoch: only the writer changes mappings, and it submits before it goes on. */
	for (; goff < end; goff += ext.len) {
		qcow2_image_lookup(img, goff, end - goff, &ext);
		if (ext.type == EXTENT_MISS) {
			qcow2_storage_gather_submit(&w->gather);
			s = qcow2_slice_try_get(&img->cache, SLICE_L2, ext.host >> SLICE_SHIFT);
			if (s == ERR_PTR(-ENOMEM)) {
				qcow2_stall_io(w, io);
				return;
			}
			if (!IS_ERR(s)) {
				qcow2_image_lookup(img, goff, end - goff, &ext);
				qcow2_slice_put(s);
			}
		}
		if (!host)
			host = ext.host;
		if (!written_in_place(&ext) || ext.host - host != goff - io_start(io)) {
			if (qcow2_view_give_up(img, "the storage has refused a write"))
				qcow2_hand_to_writer(img, io);
			else
				qcow2_io_end(io, BLK_STS_IOERR);
			return;
		}
	}
	io->epoch = epoch_enter(&img->epoch);
	qcow2_submit_in_place(io, host);
}

void qcow2_process_write(struct qcow2_writer *w, struct qcow2_io *io)
{
	if (unlikely(spans_clusters(w, io)))
		process_long_write(w, io);
	else
		process_in_cluster(w, io);
}
