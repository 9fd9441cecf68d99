// SPDX-License-Identifier: GPL-2.0-only
/*
 * writer.c - the writer's work item: whose turn it is, how operations end, and looking for space.
 *
 * Takes image.meta_lock when an operation has failed, and alloc_lock through
 * qcow2_alloc_put_back().
 */
#include <linux/device-mapper.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "alloc.h"
#include "cow.h"
#include "discard.h"
#include "entries.h"
#include "epoch.h"
#include "generation.h"
#include "hooks.h"
#include "image.h"
#include "io.h"
#include "mapping.h"
#include "state.h"
#include "storage.h"
#include "view.h"
#include "wait.h"
#include "write.h"
#include "writer.h"

#ifdef DM_QCOW2_TEST_HOOKS
unsigned int test_writer_delay;
module_param(test_writer_delay, uint, 0600);
#endif

static void process(struct qcow2_writer *w, struct qcow2_io *io)
{
	struct bio *bio = io_bio(io);

	if (image_mode(w->img) >= MODE_READ_ONLY) {
		qcow2_io_end(io, BLK_STS_IOERR);
		return;
	}
	if (io->in_place) {
		/* The storage refused the write to an own cluster. */
		io->in_place = false;
		qcow2_was_refused(w, io);
		return;
	}
	if (unlikely(qcow2_view_stalls(w->img))) {
		/* What ends that wakes the stalled bios. */
		list_add_tail(&io->node, &w->stalled);
		return;
	}
	if (qcow2_commit_pressure(w->img)) {
		qcow2_stall_io(w, io);
		return;
	}
	if (qcow2_wait_for_op(w, io, qcow2_cluster_index(w->img, bio_op(bio) == REQ_OP_WRITE ?
								 io_start(io) : io->pos)))
		return;
	switch (bio_op(bio)) {
	case REQ_OP_WRITE:
		qcow2_process_write(w, io);
		break;
	case REQ_OP_DISCARD:
		qcow2_process_discard(w, io);
		break;
	default:
		qcow2_process_write_zeroes(w, io);
	}
}

static void process_list(struct qcow2_writer *w, struct list_head *ios)
{
	struct qcow2_io *io, *next;

	list_for_each_entry_safe(io, next, ios, node)
		process(w, io);
}

static void finish_op(struct qcow2_writer *w, struct cow_op *op)
{
	struct qcow2_image *img = w->img;
	LIST_HEAD(waiters);

	if (!op->error && op->remap) {
		qcow2_set_mapping(img, op->l2, op->first, op->last - op->first + 1,
				  qcow2_l2_entry_make_data(op->host), img->cluster_size,
				  op->new_cluster ? &op->freed : NULL);
	} else if (op->error == -ENOSPC && op->new_cluster) {
		/* Freed through a commit, the cluster would only come back to be refused again. */
		qcow2_alloc_put_back(img, op->host);
	} else if (op->error && op->new_cluster) {
		mutex_lock(&img->meta_lock);
		qcow2_freed_add(img, &op->freed, op->host >> img->cluster_bits);
		mutex_unlock(&img->meta_lock);
	}
	WRITE_ONCE(img->waits.wake, true);
	list_splice(&op->waiters, &waiters);
	qcow2_op_release(w, op);
	op->ended(w, op, &waiters);
	qcow2_op_free(w, op);
	process_list(w, &waiters);
}

static void take_list(struct list_head *from, bool *flag, struct list_head *to)
{
	if (xchg(flag, false))
		list_splice_tail_init(from, to);
}

static void writer_work(struct work_struct *work)
{
	struct qcow2_image *img = container_of(work, struct qcow2_image, write_worker.work);
	struct qcow2_writer *w = img->writer;
	unsigned int noio = memalloc_noio_save();
	struct qcow2_io *io, *next_io;
	struct cow_op *op, *next;
	struct llist_node *list;
	struct blk_plug plug;
	LIST_HEAD(ios);

	hook_writer();
	qcow2_view_sample(img);
	blk_start_plug(&plug);
	list = llist_reverse_order(llist_del_all(&w->finished));
	llist_for_each_entry_safe(op, next, list, finished)
		if (!qcow2_op_continue(w, op))
			finish_op(w, op);
	qcow2_view_work(w);
	qcow2_view_sample(img);
	/* The code below may have to wait, for a table or for space. */
	qcow2_storage_gather_submit(&w->gather);
	/* Without a bio the writer touches only its own data: qcow2_writer_stop() relies on it. */
	if (!list_empty(&w->no_space) &&
	    (READ_ONCE(img->waits.release) || READ_ONCE(img->waits.expired)))
		qcow2_stop_waiting(w, &ios);
	take_list(&w->stalled, &img->waits.wake, &ios);
	take_list(&w->no_space, &img->waits.space, &ios);
	list = llist_reverse_order(llist_del_all(&w->incoming));
	llist_for_each_entry_safe(io, next_io, list, lnode) {
		/* A refused write first: views go before others redirect a part of its range. */
		if (unlikely(io->in_place))
			list_add(&io->node, &ios);
		else
			list_add_tail(&io->node, &ios);
	}
	process_list(w, &ios);
	qcow2_storage_gather_submit(&w->gather);
	blk_finish_plug(&plug);
	if (READ_ONCE(img->waits.wake) && !list_empty(&w->stalled))
		qcow2_worker_kick(&img->write_worker);
	memalloc_noio_restore(noio);
}

void qcow2_writer_grown(struct qcow2_image *img)
{
	WRITE_ONCE(img->waits.refused, false);
	qcow2_space_freed(img);
	if (qcow2_commit_is_stuck(img))
		qcow2_kick_commit(img);
}

static void space_poll(struct work_struct *work)
{
	struct qcow2_image *img = container_of(to_delayed_work(work), struct qcow2_image,
					       waits.poll);
	struct qcow2_waits *w = &img->waits;

	if (READ_ONCE(w->release))
		return;
	/*
	 * Before the mode is read: code that saw no stuck commit yet may just be saying that there
	 * is room.  A commit that fails again says otherwise, and queues this work again.
	 */
	if (qcow2_commit_is_stuck(img))
		qcow2_kick_commit(img);
	if (image_mode(img) != MODE_OUT_OF_SPACE)
		return;
	/* If no size tells, the storage is simply tried again. */
	if (!img->st.bdev || READ_ONCE(w->refused) ||
	    img->st.ops->limit(&img->st) > READ_ONCE(w->last_limit))
		qcow2_retry_waiting(img);
	if (w->space_timeout && !READ_ONCE(w->expired) &&
	    time_after(jiffies, READ_ONCE(w->no_space_since) +
		       (unsigned long)w->space_timeout * HZ)) {
		DMERR("%s: no space for %u seconds: failing writes", img->name, w->space_timeout);
		WRITE_ONCE(w->expired, true);
		qcow2_worker_kick(&img->write_worker);
	}
	queue_delayed_work(img->write_worker.wq, &w->poll, SPACE_POLL);
}

void qcow2_writer_release_waiting(struct qcow2_image *img, bool noflush)
{
	cancel_delayed_work_sync(&img->waits.poll);
	qcow2_view_unhold(img);
	img->waits.noflush = noflush;
	/* A reader that sees @release also sees @noflush: pairs with its smp_load_acquire(). */
	smp_store_release(&img->waits.release, true);
	qcow2_worker_kick(&img->write_worker);
	if (qcow2_commit_is_stuck(img))
		qcow2_kick_commit(img);
}

void qcow2_writer_flush(struct qcow2_image *img)
{
	cancel_delayed_work_sync(&img->waits.poll);
	qcow2_view_pause(img);
	do {
		flush_work(&img->write_worker.work);
	} while (READ_ONCE(img->writer->nr_ops));
}

void qcow2_writer_resume(struct qcow2_image *img)
{
	WRITE_ONCE(img->waits.release, false);
	qcow2_view_resume(img);
	qcow2_writer_grown(img);
}

void qcow2_writer_configure(struct qcow2_image *img, const struct qcow2_features *f)
{
	img->waits.error_if_no_space = f->error_if_no_space;
	img->waits.space_timeout = f->space_timeout;
	img->writer->discard_no_unref = f->discard_no_unref;
	img->views.limit = (u64)(f->has_view_limit ? f->view_limit_mib : VIEW_LIMIT_MIB) << 20;
	qcow2_alloc_set_passdown(img, !f->no_discard_passdown);
}

int qcow2_writer_init(struct qcow2_image *img)
{
	struct qcow2_writer *w = kzalloc(sizeof(*w), GFP_KERNEL);
	int r;

	if (!w)
		return -ENOMEM;
	img->writer = w;
	w->img = img;
	init_llist_head(&w->incoming);
	init_llist_head(&w->finished);
	w->busy = RB_ROOT_CACHED;
	INIT_LIST_HEAD(&w->stalled);
	INIT_LIST_HEAD(&w->no_space);
	INIT_WORK(&img->write_worker.work, writer_work);
	INIT_DELAYED_WORK(&img->waits.poll, space_poll);
	r = qcow2_op_pools_init(w);
	if (r)
		return r;
	img->write_worker.wq = alloc_workqueue("qcow2_writer", WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	return img->write_worker.wq ? 0 : -ENOMEM;
}

void qcow2_writer_stop_polling(struct qcow2_image *img)
{
	if (!img->writer)
		return;
	WRITE_ONCE(img->waits.release, true);
	cancel_delayed_work_sync(&img->waits.poll);
}

void qcow2_writer_stop(struct qcow2_image *img)
{
	if (img->write_worker.wq)
		destroy_workqueue(img->write_worker.wq);
	img->write_worker.wq = NULL;
}

void qcow2_writer_exit(struct qcow2_image *img)
{
	struct qcow2_writer *w = img->writer;

	if (!w)
		return;
	qcow2_op_pools_exit(w);
	kfree(w);
	img->writer = NULL;
}
