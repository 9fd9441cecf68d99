// SPDX-License-Identifier: GPL-2.0-only
/*
 * commit.c - the one place where durability is decided.
 *
 * A commit writes a closed generation.  Closing it, under meta_lock, copies every dirty slice to
 * its shadow; what is changed later belongs to the next generation.  A mapping enters memory only
 * when its data write has completed, so the generation holds no mapping whose data is not at least
 * in the storage's cache.  Then the commit writes, with a flush of the storage after each step:
 *
 *   1. refcount blocks              (the flush also makes the data durable)
 *   2. refcount table, and the header if the table moved      (only if something changed)
 *   3. L2 tables                                              (only if something changed)
 *   4. L1 table                                               (only if something changed)
 *
 * Why this order is safe at every point, with any subset of a step's sectors written:
 *  - A reference (refcount table -> block, L1 -> L2, L2 -> data) is written after what it points
 *    at: new refcount blocks and L2 tables were written full of zeroes before they were entered in
 *    memory, and got their entries one step before they are linked.
 *  - A refcount is raised on disk before the reference that it counts is written.
 *  - A refcount is lowered in memory only after the removal of the reference is durable
 *    (reclaim_work), so a lowered refcount in step 1 never counts a reference that is on disk.
 *  - Entries never cross a sector, and rewriting the sectors of a slice that did not change is
 *    harmless.
 * So a crash can leave behind only clusters that are counted and not referenced: leaks.
 *
 * A write that fails for want of space or memory, as on thin or shared storage, loses nothing: the
 * closed generation is complete, and writing it again from step 1 is harmless.  So the commit is
 * "stuck", the image is out of space, and the commit is tried again until it succeeds; meanwhile
 * changes gather in the open generation.  Any other error of a write is final.  So is any error of
 * a flush: it is unknown what is durable then.
 *
 * Freed clusters go: unlinked in memory (qcow2_freed_add, open generation) -> that generation
 * durable -> epoch over -> discarded and refcount lowered (qcow2_alloc_reclaim) -> allocatable.
 * Clusters are freed in the guest's order; those that lie side by side in the storage are merged
 * before they are discarded.  Discards leave the storage time for the guest's I/O, unless something
 * waits for the clusters.
 *
 * Takes generation.lock for the length of a commit, meta_lock inside it, and commit.io_lock.  Never
 * alloc_lock: its holders wait for commits.
 */
#include <linux/device-mapper.h>
#include <linux/list_sort.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "alloc.h"
#include "commit.h"
#include "epoch.h"
#include "generation.h"
#include "header.h"
#include "image.h"
#include "io.h"
#include "state.h"
#include "storage.h"

#define COMMIT_BATCH		32		/* slice writes in flight */

struct commit_write {
	struct storage_io sio;
	struct bio_vec bv;
	struct qcow2_commit *commit;
};

struct qcow2_commit {
	struct qcow2_image *img;
	struct workqueue_struct *reclaim_wq;	/* after commits; may wait for I/O of the guest */
	struct work_struct reclaim;

	/* generation.lock. */
	struct commit_write writes[COMMIT_BATCH];
	atomic_t pending;		/* of @writes */
	struct completion written;
	int error;			/* of @writes; any one of several that are final */
	int no_room;			/* of @writes; any one of several that may be tried again */

	spinlock_t io_lock;
	struct list_head ios;		/* FLUSH and FUA bios that wait for a commit, @io_lock */
	struct list_head durable;	/* freed extents whose removal is durable, @io_lock */
};

/* Would the same write succeed when there is space or memory? */
static bool may_try_again(int error)
{
	return error == -ENOSPC || error == -EAGAIN || error == -ENOMEM;
}

static void write_done(struct storage_io *sio)
{
	struct commit_write *w = container_of(sio, struct commit_write, sio);
	struct qcow2_commit *c = w->commit;

	if (may_try_again(sio->error))
		WRITE_ONCE(c->no_room, sio->error);
	else if (sio->error)
		WRITE_ONCE(c->error, sio->error);
	if (atomic_dec_and_test(&c->pending))
		complete(&c->written);
}

/* Wait for the batch.  @pending counts its writes and one for us. */
static int wait_batch(struct qcow2_commit *c)
{
	if (!atomic_dec_and_test(&c->pending))
		wait_for_completion_io(&c->written);
	return READ_ONCE(c->error) ?: READ_ONCE(c->no_room);
}

static void start_batch(struct qcow2_commit *c)
{
	reinit_completion(&c->written);
	c->error = 0;
	c->no_room = 0;
	atomic_set(&c->pending, 1);
}

/*
 * Write the shadows of one kind of table.  Returns how many, or an error; nothing is in flight
 * afterwards.
 */
static int write_kind(struct qcow2_commit *c, enum slice_kind kind)
{
	unsigned int n = 0, total = 0;
	struct blk_plug plug;
	struct slice *s;
	int r = 0;

	start_batch(c);
	blk_start_plug(&plug);
	list_for_each_entry(s, &c->img->generation->closed, commit_node) {
		struct commit_write *w;

		if (s->kind != kind)
			continue;
		if (n == COMMIT_BATCH) {
			blk_finish_plug(&plug);
			r = wait_batch(c);
			start_batch(c);
			blk_start_plug(&plug);
			if (r)
				break;
			n = 0;
		}
		w = &c->writes[n++];
		total++;
		bvec_set_virt(&w->bv, s->shadow, SLICE_SIZE);
		w->commit = c;
		w->sio.st = &c->img->st;
		w->sio.pos = s->pos;
		w->sio.len = SLICE_SIZE;
		w->sio.bv = &w->bv;
		w->sio.bv_skip = 0;
		w->sio.nr_bv = 1;
		w->sio.opf = REQ_OP_WRITE | REQ_SYNC | REQ_META | REQ_PRIO;
		w->sio.owner = NULL;
		w->sio.done = write_done;
		atomic_inc(&c->pending);
		storage_submit(&w->sio);
	}
	blk_finish_plug(&plug);
	return wait_batch(c) ?: (r ?: total);
}

/* A flush that failed is not tried again, whatever the reason: the data it was for may be lost. */
static int flush_storage(struct qcow2_commit *c, struct qcow2_storage *st)
{
	int r = st->ops->flush(st);

	if (r)
		DMERR("%s: cannot flush the storage: error %d", c->img->name, r);
	return r ? -EIO : 0;
}

/*
 * The closed generation has its own length of the refcount table: the next move makes the table in
 * memory longer before it holds commits off and gives the table another place.
 */
static int write_generation(struct qcow2_commit *c)
{
	struct qcow2_image *img = c->img;
	int r;

	lockdep_assert_held(&img->generation->lock);

	/* The data is durable before anything refers to it; mostly one flush serves both. */
	r = img->data == &img->st ? 0 : flush_storage(c, img->data);
	if (!r)
		r = write_kind(c, SLICE_REFBLOCK);
	if (r >= 0)
		r = flush_storage(c, &img->st);
	if (r < 0)
		return r;

	r = write_kind(c, SLICE_REFTABLE);
	if (r > 0)
		r = flush_storage(c, &img->st);
	if (!r && img->generation->closed_reftable)
		r = qcow2_header_set_reftable(img, img->reftable.pos,
					      img->generation->closed_reftable);
	if (r < 0)
		return r;

	r = write_kind(c, SLICE_L2);
	if (r > 0)
		r = flush_storage(c, &img->st);
	if (r < 0)
		return r;

	r = write_kind(c, SLICE_L1);
	if (r > 0)
		r = flush_storage(c, &img->st);
	return r;
}

static void end_ios(struct list_head *ios, blk_status_t status)
{
	struct qcow2_io *io, *next;

	list_for_each_entry_safe(io, next, ios, node)
		qcow2_io_end(io, status);
}

/* Write the closed generation, for the first time or again. */
static int write_closed(struct qcow2_commit *c)
{
	struct qcow2_generation *g = c->img->generation;
	int r = write_generation(c);

	if (r)
		return r;
	qcow2_generation_finish(c->img);
	if (!list_empty(&g->closed_freed)) {
		spin_lock_irq(&c->io_lock);
		list_splice_tail_init(&g->closed_freed, &c->durable);
		spin_unlock_irq(&c->io_lock);
		queue_work(c->reclaim_wq, &c->reclaim);
	}
	return 0;
}

/*
 * The closed generation was not written: see the top of this file.  Bios in @ios that may keep
 * waiting do so.  Clusters freed in the generation are still referred to on disk and stay with it.
 * Returns the status of the other bios.
 */
static blk_status_t commit_failed(struct qcow2_commit *c, int error, struct list_head *ios)
{
	struct qcow2_image *img = c->img;

	if (!may_try_again(error)) {
		DMERR("%s: metadata write failed: error %d", img->name, error);
		qcow2_set_mode(img, MODE_FAILED, "metadata could not be written");
		return errno_to_blk_status(error);
	}
	WRITE_ONCE(img->waits.stuck, true);
	qcow2_reclaim_hurry(img);
	qcow2_out_of_space(img, true, error == -ENOSPC ? "no room to write the tables" :
							 "no memory to write the tables");
	/*
	 * A read-only or failed image is not polled for space, and one that gives up must not wait:
	 * end the bios.  The next flush tries again.
	 */
	if (image_mode(img) >= MODE_READ_ONLY || qcow2_gives_up(img))
		return qcow2_no_space_status(img);
	spin_lock_irq(&c->io_lock);
	list_splice_init(ios, &c->ios);
	spin_unlock_irq(&c->io_lock);
	return BLK_STS_OK;
}

int qcow2_commit_now(struct qcow2_image *img)
{
	struct qcow2_commit *c = img->commit;
	unsigned int noio = memalloc_noio_save();
	blk_status_t status = BLK_STS_OK;
	bool was_stuck;
	LIST_HEAD(ios);
	int r = 0;

	mutex_lock(&img->generation->lock);
	/* Take the waiters first, then close the generation: so it has all that they wait for. */
	spin_lock_irq(&c->io_lock);
	list_splice_init(&c->ios, &ios);
	spin_unlock_irq(&c->io_lock);
	was_stuck = img->waits.stuck;
	if (image_mode(img) == MODE_FAILED) {
		r = -EIO;
		status = BLK_STS_IOERR;
	} else {
		if (was_stuck)
			r = write_closed(c);
		if (!r) {
			WRITE_ONCE(img->waits.stuck, false);
			qcow2_generation_close(img);
			r = write_closed(c);
		}
		if (r)
			status = commit_failed(c, r, &ios);
	}
	mutex_unlock(&img->generation->lock);

	end_ios(&ios, status);
	if (was_stuck && !r)
		qcow2_has_room(img);
	qcow2_wake_writer(img);
	memalloc_noio_restore(noio);
	return r;
}

struct commit_call {
	struct work_struct work;
	struct qcow2_image *img;
	int ret;
};

static void commit_call_work(struct work_struct *work)
{
	struct commit_call *call = container_of(work, struct commit_call, work);

	call->ret = qcow2_commit_now(call->img);
}

int qcow2_commit_for_caller(struct qcow2_image *img)
{
	struct commit_call call = { .img = img };

	INIT_WORK_ONSTACK(&call.work, commit_call_work);
	queue_work(img->commit_worker.wq, &call.work);
	flush_work(&call.work);
	destroy_work_on_stack(&call.work);
	return call.ret;
}

static void commit_work(struct work_struct *work)
{
	qcow2_commit_now(container_of(work, struct qcow2_image, commit_worker.work));
}

static void commit_timer(struct work_struct *work)
{
	struct qcow2_image *img = container_of(to_delayed_work(work), struct qcow2_image,
					       commit_timer);

	if (qcow2_is_clean(img))
		return;
	if (!qcow2_commit_now(img) && !qcow2_is_clean(img))
		qcow2_start_commit_timer(img);
}

static int compare_freed(void *priv, const struct list_head *a, const struct list_head *b)
{
	u64 left = list_entry(a, struct freed_extent, node)->start;
	u64 right = list_entry(b, struct freed_extent, node)->start;

	return left < right ? -1 : left > right;
}

/*
 * Merge extents that lie side by side.  A cluster that lost two references is in two extents, which
 * overlap: these two stay separate.
 */
static void merge_freed(struct qcow2_commit *c, struct list_head *list)
{
	struct freed_extent *ext, *next;

	list_sort(NULL, list, compare_freed);
	ext = list_first_entry(list, struct freed_extent, node);
	while (!list_is_last(&ext->node, list)) {
		next = list_next_entry(ext, node);
		if (ext->start + ext->nr == next->start) {
			ext->nr += next->nr;
			qcow2_freed_done(c->img, next);
		} else {
			ext = next;
		}
	}
}

static void reclaim_work(struct work_struct *work)
{
	struct qcow2_commit *c = container_of(work, struct qcow2_commit, reclaim);
	unsigned int noio = memalloc_noio_save();
	struct freed_extent *ext, *next;
	LIST_HEAD(durable);

	spin_lock_irq(&c->io_lock);
	list_splice_init(&c->durable, &durable);
	spin_unlock_irq(&c->io_lock);
	if (!list_empty(&durable)) {
		WRITE_ONCE(c->img->generation->reclaiming, true);
		qcow2_epoch_flip(&c->img->epoch);
		merge_freed(c, &durable);
		list_for_each_entry_safe(ext, next, &durable, node) {
			qcow2_alloc_reclaim(c->img, ext);
			qcow2_freed_done(c->img, ext);
		}
		/* Anything that still waits after this calls qcow2_reclaim_hurry() again. */
		WRITE_ONCE(c->img->generation->haste, false);
		WRITE_ONCE(c->img->generation->reclaiming, false);
		qcow2_space_freed(c->img);
	}
	memalloc_noio_restore(noio);
}

void qcow2_commit_add_io(struct qcow2_image *img, struct qcow2_io *io)
{
	unsigned long flags;

	rcu_read_lock();	/* see io.h */
	spin_lock_irqsave(&img->commit->io_lock, flags);
	list_add_tail(&io->node, &img->commit->ios);
	spin_unlock_irqrestore(&img->commit->io_lock, flags);
	qcow2_kick_commit(img);
	rcu_read_unlock();
}

int qcow2_commit_everything(struct qcow2_image *img)
{
	struct qcow2_commit *c = img->commit;
	int r;

	cancel_delayed_work_sync(&img->commit_timer);
	if (image_mode(img) < MODE_READ_ONLY)
		qcow2_alloc_return_run(img);
	do {
		r = qcow2_commit_for_caller(img);
		flush_work(&img->commit_worker.work);
		flush_work(&c->reclaim);
	} while (!r && (!qcow2_is_clean(img) || qcow2_frees_pending(img)));
	cancel_delayed_work_sync(&img->commit_timer);
	return r;
}

int qcow2_commit_init(struct qcow2_image *img)
{
	struct qcow2_commit *c = kzalloc(sizeof(*c), GFP_KERNEL);

	if (!c)
		return -ENOMEM;
	img->commit = c;
	c->img = img;
	spin_lock_init(&c->io_lock);
	init_completion(&c->written);
	INIT_LIST_HEAD(&c->ios);
	INIT_LIST_HEAD(&c->durable);
	INIT_WORK(&img->commit_worker.work, commit_work);
	INIT_DELAYED_WORK(&img->commit_timer, commit_timer);
	INIT_WORK(&c->reclaim, reclaim_work);
	img->commit_worker.wq = alloc_ordered_workqueue("qcow2_commit", WQ_MEM_RECLAIM);
	c->reclaim_wq = alloc_ordered_workqueue("qcow2_reclaim", WQ_MEM_RECLAIM);
	return img->commit_worker.wq && c->reclaim_wq ? 0 : -ENOMEM;
}

void qcow2_commit_stop(struct qcow2_image *img)
{
	struct qcow2_commit *c = img->commit;

	if (!c)
		return;
	/* A commit starts a reclaim, and the changes of a reclaim start the timer. */
	cancel_delayed_work_sync(&img->commit_timer);
	if (img->commit_worker.wq)
		drain_workqueue(img->commit_worker.wq);
	if (c->reclaim_wq)
		destroy_workqueue(c->reclaim_wq);
	cancel_delayed_work_sync(&img->commit_timer);
	if (img->commit_worker.wq)
		destroy_workqueue(img->commit_worker.wq);
	img->commit_worker.wq = NULL;
}

void qcow2_commit_exit(struct qcow2_image *img)
{
	struct qcow2_commit *c = img->commit;

	if (!c)
		return;
	/* Extents that are no longer reclaimed go with the rest. */
	list_splice(&c->durable, &img->generation->closed_freed);
	kfree(c);
	img->commit = NULL;
}
