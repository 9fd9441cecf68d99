// SPDX-License-Identifier: GPL-2.0-only
/*
 * wait.c - where bios that cannot go on wait: for a slice, for the writer's turn, for an operation,
 * for memory or a commit ("stalled"), and for space.
 *
 * A bio that has waited starts over (qcow2_resume_io()), or has its turn with the writer again.
 *
 * Everything is called by the writer's work item, except qcow2_hand_to_writer() and the code that
 * deals with a missed slice.  Takes no locks.
 */
#include <linux/sched/mm.h>

#include "chain.h"
#include "commit.h"
#include "cow.h"
#include "device.h"
#include "entries.h"
#include "generation.h"
#include "image.h"
#include "io.h"
#include "lookup.h"
#include "map.h"
#include "state.h"
#include "storage.h"
#include "table-cache.h"
#include "view-map.h"
#include "wait.h"
#include "writer.h"

static void waited(struct slice_waiter *waiter, int error)
{
	struct qcow2_io *io = container_of(waiter, struct qcow2_io, waiter);

	if (error)
		qcow2_io_end(io, BLK_STS_IOERR);
	else
		qcow2_resume_io(io);
}

/* Let a bio wait for the L2 slice that it missed; it starts again in qcow2_resume_io(). */
static void park_io(struct qcow2_io *io, const struct extent *ext, bool writer)
{
	struct slice *s;

	io->waiter.fn = waited;
	s = qcow2_slice_get_async(&ext->img->cache, SLICE_L2, ext->host >> SLICE_SHIFT,
				  &io->waiter, !writer);
	if (IS_ERR(s)) {
		qcow2_failed_alloc(io->dev->layers[0].img->writer, io, PTR_ERR(s));
	} else if (s) {
		qcow2_slice_put(s);
		qcow2_resume_io(io);
	}
}

bool qcow2_load_missed(struct qcow2_io *io, const struct extent *ext,
		       struct storage_gather *gather)
{
	struct slice *s;

	if (io->misses < io->dev->nr_layers) {
		io->misses++;
		park_io(io, ext, gather);
		return false;
	}
	if (gather) {
		qcow2_storage_gather_submit(gather);
		s = qcow2_slice_try_get(&ext->img->cache, SLICE_L2, ext->host >> SLICE_SHIFT);
	} else {
		s = qcow2_slice_get(&ext->img->cache, SLICE_L2, ext->host >> SLICE_SHIFT);
	}
	if (!IS_ERR(s)) {
		qcow2_slice_put(s);
		return true;
	}
	if (gather && PTR_ERR(s) == -ENOMEM)
		qcow2_failed_alloc(io->dev->layers[0].img->writer, io, -ENOMEM);
	else
		qcow2_io_end(io, BLK_STS_IOERR);
	return false;
}

void qcow2_missed(struct qcow2_io *io)
{
	struct qcow2_dev *dev = io->dev;

	qcow2_io_leave(io);
	rcu_read_lock();	/* see io.h */
	if (llist_add(&io->lnode, &dev->missed))
		queue_work(dev->layers[0].img->cache.lookup_wq, &dev->miss_work);
	rcu_read_unlock();
}

void qcow2_miss_work(struct work_struct *work)
{
	struct qcow2_dev *dev = container_of(work, struct qcow2_dev, miss_work);
	unsigned int noio = memalloc_noio_save();
	struct llist_node *list = llist_reverse_order(llist_del_all(&dev->missed));
	struct qcow2_io *io, *next;

	llist_for_each_entry_safe(io, next, list, lnode) {
		u64 goff = io_start(io);
		struct extent ext;

		do {
			qcow2_io_enter(io);
			if (op_is_write(bio_op(io_bio(io))))
				qcow2_image_lookup(dev->layers[0].img, goff, SECTOR_SIZE, &ext);
			else
				qcow2_chain_lookup(dev, 0, goff, SECTOR_SIZE, &ext);
			qcow2_io_leave(io);
		} while (ext.type == EXTENT_MISS && qcow2_load_missed(io, &ext, NULL));
		if (ext.type != EXTENT_MISS)
			qcow2_resume_io(io);
	}
	memalloc_noio_restore(noio);
}

/* Are clusters on their way to becoming allocatable, by a discard or from a view? */
static bool space_is_coming(struct qcow2_image *img)
{
	return (qcow2_frees_pending(img) || READ_ONCE(img->views.reaping)) &&
	       !qcow2_commit_is_stuck(img);
}

/*
 * May a write wait for what views hold, rather than fail?  They are given up one at a time: another
 * only if the clusters of the one before have been freed and there is still no room.  A commit that
 * is stuck must end before any cluster is freed; and a bio that goes back to DM does not fail.
 */
static bool space_from_views(struct qcow2_image *img, const char *why)
{
	struct qcow2_views *views = &img->views;

	if (qcow2_commit_is_stuck(img) || qcow2_no_space_status(img) == BLK_STS_DM_REQUEUE)
		return false;
	if (space_is_coming(img))
		return views->given_up || views->reaping || views->newest;
	views->given_up = qcow2_view_give_up(img, why);
	return views->given_up;
}

/* Try again when there may be space, unless bios must no longer wait for space. */
static void wait_for_space(struct qcow2_writer *w, struct qcow2_io *io, bool refused,
			   const char *why)
{
	if (image_mode(w->img) >= MODE_READ_ONLY) {
		qcow2_io_end(io, BLK_STS_IOERR);
		return;
	}
	qcow2_out_of_space(w->img, refused, why);
	qcow2_reclaim_hurry(w->img);
	if (!space_from_views(w->img, why) && qcow2_gives_up(w->img))
		qcow2_io_end(io, qcow2_no_space_status(w->img));
	else
		list_add_tail(&io->node, &w->no_space);
}

void qcow2_was_refused(struct qcow2_writer *w, struct qcow2_io *io)
{
	static const char why[] = "the storage has no room";
	struct qcow2_image *img = w->img;

	/* A long write goes to the same clusters again: all must become own, and stay so. */
	if (bio_op(io_bio(io)) == REQ_OP_WRITE &&
	    in_cluster(img, io_start(io)) + io_bio(io)->bi_iter.bi_size > img->cluster_size &&
	    qcow2_no_space_status(img) != BLK_STS_DM_REQUEUE)
		while (qcow2_view_give_up(img, why))
			img->views.given_up = true;
	io->retried = true;
	wait_for_space(w, io, true, why);
}

void qcow2_stall_io(struct qcow2_writer *w, struct qcow2_io *io)
{
	if (qcow2_commit_is_stuck(w->img)) {
		/* The commit ends when there is space, and a bio must not wait for that forever. */
		wait_for_space(w, io, true, "a commit waits for room");
		return;
	}
	list_add_tail(&io->node, &w->stalled);
	qcow2_commit_relieve(w->img);
}

bool qcow2_wait_for_op(struct qcow2_writer *w, struct qcow2_io *io, u64 cluster)
{
	struct cow_op *op = qcow2_op_of(w, cluster, cluster);

	if (!op)
		return false;
	list_add_tail(&io->node, &op->waiters);
	return true;
}

void qcow2_finish_io(struct qcow2_writer *w, struct qcow2_io *io)
{
	if (io_bio(io)->bi_opf & REQ_FUA)
		qcow2_commit_add_io(w->img, io);
	else
		qcow2_io_end(io, BLK_STS_OK);
}

void qcow2_failed_alloc(struct qcow2_writer *w, struct qcow2_io *io, int error)
{
	struct qcow2_image *img = w->img;

	if (error == -ENOMEM) {
		qcow2_stall_io(w, io);
		qcow2_kick_commit(img);
		return;
	}
	if (error == -EDQUOT) {
		qcow2_was_refused(w, io);
	} else if (error != -ENOSPC) {
		qcow2_io_end(io, errno_to_blk_status(error));
	} else if (space_is_coming(img) || space_from_views(img, "no free cluster")) {
		list_add_tail(&io->node, &w->no_space);
		qcow2_reclaim_hurry(img);
		qcow2_kick_commit(img);
	} else {
		wait_for_space(w, io, false, "no free cluster and no room to grow");
	}
}

void qcow2_stop_waiting(struct qcow2_writer *w, struct list_head *ios)
{
	if (image_mode(w->img) < MODE_READ_ONLY && space_is_coming(w->img)) {
		qcow2_reclaim_hurry(w->img);
		qcow2_commit_relieve(w->img);
	} else {
		list_splice_tail_init(&w->no_space, ios);
	}
}

void qcow2_hand_to_writer(struct qcow2_image *img, struct qcow2_io *io)
{
	rcu_read_lock();	/* see io.h */
	if (llist_add(&io->lnode, &img->writer->incoming))
		qcow2_worker_kick(&img->write_worker);
	rcu_read_unlock();
}
