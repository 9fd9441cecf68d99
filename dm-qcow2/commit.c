// SPDX-License-Identifier: GPL-2.0-only
/*
 * commit.c - the one place where durability is decided.
 *
 * A commit writes a closed generation.  Closing it, under meta_lock, copies every dirty slice to
 * its shadow; what is changed later belongs to the next generation.  A mapping enters memory only
 * when its data write has completed, so the generation holds no mapping whose data is not at least
 * in the storage's cache.  Then, each step followed by a flush of the storage:
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
 * What a crash can leave behind is clusters that are counted and not referenced: leaks.
 *
 * A write that fails for want of space or memory, as on thin or shared storage, loses nothing: the
 * closed generation is all there, and writing it again from step 1 is harmless.  So the commit is
 * "stuck", the image out of space, and it is tried again until it succeeds; meanwhile changes
 * gather in the open generation.  Any other error of a write, and any error of a flush, after which
 * nobody knows what is durable, is final.
 *
 * Freed clusters go: unlinked in memory (freed_add, open generation) -> that generation durable ->
 * epoch over -> discarded and refcount lowered (alloc_reclaim) -> allocatable.  They were freed in
 * the guest's order; what lies side by side in the storage is put together before it is discarded,
 * and the discards leave the storage time for the guest's I/O unless somebody waits for them.
 *
 * Takes commit.lock for the length of a commit, meta_lock inside it, and commit.io_lock.  Never
 * alloc_lock: its holders wait for commits.
 */
#include <linux/device-mapper.h>
#include <linux/list_sort.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "alloc.h"
#include "commit.h"
#include "compat.h"
#include "write.h"

#define COMMIT_INTERVAL		(5 * HZ)
#define COMMIT_BATCH		32		/* slice writes in flight */
#define MAX_FREED		4096		/* extents, before discards wait */
#define TOO_MANY_FREED		(2 * MAX_FREED)	/* extents, before writes wait, too */
#define RESERVED_FREED		64

struct commit_write {
	struct storage_io sio;
	struct bio_vec bv;
	struct qcow2_commit *commit;
};

struct qcow2_commit {
	struct qcow2_image *img;
	struct workqueue_struct *reclaim_wq;	/* after commits; may wait for I/O of the guest */
	struct delayed_work timer;
	struct work_struct reclaim;

	struct mutex lock;		/* a commit is running, or is held off */
	struct list_head generation;	/* slices of the closed generation, @lock */
	struct list_head closed_freed;	/* extents freed in it, @lock */
	u32 closed_reftable;		/* length of a refcount table that moved in it, @lock */
	struct commit_write writes[COMMIT_BATCH];	/* @lock */
	atomic_t pending;		/* of @writes */
	struct completion written;
	int error;			/* of @writes; any one of several that are final */
	int no_room;			/* of @writes; any one of several that may be tried again */

	spinlock_t io_lock;
	struct list_head ios;		/* FLUSH and FUA bios that wait for a commit, @io_lock */
	struct list_head durable;	/* freed extents whose removal is durable, @io_lock */

	struct list_head freed;		/* freed in the open generation, meta_lock */
	u32 reftable_clusters;		/* its new length if it moved, meta_lock */
	atomic_t nr_freed;		/* extents on any list, or being reclaimed */
	bool haste;			/* see commit_hurry(); no lock */
	bool reclaiming;		/* the reclaimer has extents; its own, read by the writer */
	mempool_t freed_pool;
};

static struct kmem_cache *freed_slab;

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
	list_for_each_entry(s, &c->generation, commit_node) {
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

/* Whatever the reason, a flush that failed is not tried again: what it was for may be lost. */
static int flush_storage(struct qcow2_commit *c)
{
	int r = c->img->st.ops->flush(&c->img->st);

	if (r)
		DMERR("%s: cannot flush the storage: error %d", c->img->name, r);
	return r ? -EIO : 0;
}

/*
 * The length of the refcount table comes with the generation: the next move makes the table in
 * memory longer before it holds commits off and gives it another place.
 */
static int write_generation(struct qcow2_commit *c)
{
	struct qcow2_image *img = c->img;
	int r;

	lockdep_assert_held(&c->lock);

	r = write_kind(c, SLICE_REFBLOCK);
	if (r >= 0)
		r = flush_storage(c);
	if (r < 0)
		return r;

	r = write_kind(c, SLICE_REFTABLE);
	if (r > 0)
		r = flush_storage(c);
	if (!r && c->closed_reftable)
		r = header_set_reftable(img, img->reftable.pos, c->closed_reftable);
	if (r < 0)
		return r;

	r = write_kind(c, SLICE_L2);
	if (r > 0)
		r = flush_storage(c);
	if (r < 0)
		return r;

	r = write_kind(c, SLICE_L1);
	if (r > 0)
		r = flush_storage(c);
	return r;
}

/* Close the open generation.  From here on changes belong to the next one. */
static void close_generation(struct qcow2_commit *c)
{
	struct qcow2_image *img = c->img;
	struct slice *s, *next;

	lockdep_assert_held(&c->lock);
	mutex_lock(&img->meta_lock);
	list_for_each_entry_safe(s, next, &img->dirty, dirty_node) {
		memcpy(s->shadow, s->data, SLICE_SIZE);
		s->dirty = false;
		WRITE_ONCE(s->writing, true);
		list_del_init(&s->dirty_node);
		list_add_tail(&s->commit_node, &c->generation);
	}
	list_splice_init(&c->freed, &c->closed_freed);
	c->closed_reftable = c->reftable_clusters;
	c->reftable_clusters = 0;
	mutex_unlock(&img->meta_lock);
}

static void slice_clean(struct slice *s)
{
	atomic_dec(&s->img->cache.nr_dirty);
	slice_put(s);
}

/* What was written is durable. */
static void finish_generation(struct qcow2_commit *c)
{
	struct slice *s, *next;

	mutex_lock(&c->img->meta_lock);
	list_for_each_entry_safe(s, next, &c->generation, commit_node) {
		list_del(&s->commit_node);
		WRITE_ONCE(s->writing, false);
		if (!s->dirty)
			slice_clean(s);
	}
	mutex_unlock(&c->img->meta_lock);
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
	int r = write_generation(c);

	if (r)
		return r;
	finish_generation(c);
	if (!list_empty(&c->closed_freed)) {
		spin_lock_irq(&c->io_lock);
		list_splice_tail_init(&c->closed_freed, &c->durable);
		spin_unlock_irq(&c->io_lock);
		queue_work(c->reclaim_wq, &c->reclaim);
	}
	return 0;
}

/*
 * The closed generation was not written: see at the top.  Those in @ios that may wait on do so.
 * What was freed in it is still referred to on disk and stays with it.  Returns how the others end.
 */
static blk_status_t commit_failed(struct qcow2_commit *c, int error, struct list_head *ios)
{
	struct qcow2_image *img = c->img;

	if (!may_try_again(error)) {
		DMERR("%s: metadata write failed: error %d", img->name, error);
		image_set_mode(img, MODE_FAILED, "metadata could not be written");
		return errno_to_blk_status(error);
	}
	WRITE_ONCE(c->img->waits.stuck, true);
	commit_hurry(img);
	image_out_of_space(img, true, error == -ENOSPC ? "no room to write the tables" :
							 "no memory to write the tables");
	/* No more writing means no looking for space either; the next flush tries again. */
	if (image_mode(img) >= MODE_READ_ONLY || image_gives_up(img))
		return image_no_space_status(img);
	spin_lock_irq(&c->io_lock);
	list_splice_init(ios, &c->ios);
	spin_unlock_irq(&c->io_lock);
	return BLK_STS_OK;
}

/**
 * commit_now - make everything that has been acknowledged durable
 * @img: a writable image
 *
 * Also ends the FLUSH and FUA bios that waited.  Sleeps.
 *
 * Return: 0; the error that made the image MODE_FAILED, now or earlier; or -ENOSPC, -EAGAIN or
 * -ENOMEM when it will be tried again.
 */
int commit_now(struct qcow2_image *img)
{
	struct qcow2_commit *c = img->commit;
	unsigned int noio = memalloc_noio_save();
	blk_status_t status = BLK_STS_OK;
	bool was_stuck;
	LIST_HEAD(ios);
	int r = 0;

	mutex_lock(&c->lock);
	/* First the waiters, then the generation: it then has all that they wait for. */
	spin_lock_irq(&c->io_lock);
	list_splice_init(&c->ios, &ios);
	spin_unlock_irq(&c->io_lock);
	was_stuck = c->img->waits.stuck;
	if (image_mode(img) == MODE_FAILED) {
		r = -EIO;
		status = BLK_STS_IOERR;
	} else {
		if (was_stuck)
			r = write_closed(c);
		if (!r) {
			WRITE_ONCE(c->img->waits.stuck, false);
			close_generation(c);
			r = write_closed(c);
		}
		if (r)
			status = commit_failed(c, r, &ios);
	}
	mutex_unlock(&c->lock);

	end_ios(&ios, status);
	if (was_stuck && !r)
		image_has_room(img);
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

	call->ret = commit_now(call->img);
}

/**
 * commit_for_caller - commit_now() when a process asks for it
 * @img: a writable image
 *
 * A worker does it, since a filesystem applies to whoever writes his file size limit, and may stop
 * waiting when he is killed: neither is to fail an image.  Sleeps.
 *
 * Return: as commit_now()
 */
int commit_for_caller(struct qcow2_image *img)
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
	commit_now(container_of(work, struct qcow2_image, commit_worker.work));
}

static void commit_timer(struct work_struct *work)
{
	struct qcow2_commit *c = container_of(to_delayed_work(work), struct qcow2_commit, timer);

	if (commit_is_clean(c->img))
		return;
	if (!commit_now(c->img) && !commit_is_clean(c->img))
		commit_start_timer(c->img);
}

static int compare_freed(void *priv, const struct list_head *a, const struct list_head *b)
{
	u64 left = list_entry(a, struct freed_extent, node)->start;
	u64 right = list_entry(b, struct freed_extent, node)->start;

	return left < right ? -1 : left > right;
}

/* One of the extents that the reclaimer took is dealt with. */
static void freed_done(struct qcow2_commit *c, struct freed_extent *ext)
{
	list_del(&ext->node);
	freed_drop(c->img, ext);
	/* Whoever waits until there are fewer goes on while the rest is reclaimed. */
	if (atomic_dec_return(&c->nr_freed) % (MAX_FREED / 2) == 0)
		qcow2_retry_waiting(c->img);
}

/*
 * Put together what lies side by side.  A cluster that lost two references is in two extents, which
 * overlap: they stay apart.
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
			freed_done(c, next);
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
		WRITE_ONCE(c->reclaiming, true);
		epoch_flip(&c->img->epoch);
		merge_freed(c, &durable);
		list_for_each_entry_safe(ext, next, &durable, node) {
			alloc_reclaim(c->img, ext);
			freed_done(c, ext);
		}
		/* What still waits after this will say so again. */
		WRITE_ONCE(c->haste, false);
		WRITE_ONCE(c->reclaiming, false);
		qcow2_space_freed(c->img);
	}
	memalloc_noio_restore(noio);
}

/**
 * commit_is_clean - is everything that has been acknowledged durable but for the storage's cache?
 * @img: a writable image
 */
bool commit_is_clean(struct qcow2_image *img)
{
	return !atomic_read(&img->cache.nr_dirty);
}

/**
 * commit_start_timer - commit a few seconds from now at the latest
 * @img: a writable image
 */
void commit_start_timer(struct qcow2_image *img)
{
	queue_delayed_work(img->commit_worker.wq, &img->commit->timer, COMMIT_INTERVAL);
}

/**
 * commit_add_io - end a FLUSH or FUA bio after the next commit
 * @img: a writable image
 * @io: the bio; what it waits for is in memory already
 *
 * Any context.
 */
void commit_add_io(struct qcow2_image *img, struct qcow2_io *io)
{
	unsigned long flags;

	rcu_read_lock();	/* see io.h */
	spin_lock_irqsave(&img->commit->io_lock, flags);
	list_add_tail(&io->node, &img->commit->ios);
	spin_unlock_irqrestore(&img->commit->io_lock, flags);
	qcow2_kick_commit(img);
	rcu_read_unlock();
}

/**
 * commit_hold - keep commits from starting
 * @img: a writable image
 *
 * For a change that cannot be made in one section of meta_lock, or that a closed generation must
 * not see.  Sleeps until a running commit has ended.
 *
 * Return: whether commits are held; not when one is stuck, for its generation is still to be
 * written.
 */
bool commit_hold(struct qcow2_image *img)
{
	mutex_lock(&img->commit->lock);
	if (!img->waits.stuck)
		return true;
	mutex_unlock(&img->commit->lock);
	return false;
}

/**
 * commit_release - the end of commit_hold()
 * @img: the image
 */
void commit_release(struct qcow2_image *img)
{
	mutex_unlock(&img->commit->lock);
}

/**
 * commit_reftable_moved - the open generation has a refcount table elsewhere
 * @img: the image; the caller holds meta_lock and has dirtied all slices of the table
 * @clusters: its length now
 */
void commit_reftable_moved(struct qcow2_image *img, u32 clusters)
{
	img->commit->reftable_clusters = clusters;
}

/**
 * commit_pressure - should writers wait for a commit before they change more?
 * @img: a writable image
 */
bool commit_pressure(struct qcow2_image *img)
{
	return atomic_read(&img->cache.nr_dirty) >= READ_ONCE(img->cache.max) / 2 ||
	       atomic_read(&img->commit->nr_freed) >= TOO_MANY_FREED;
}

/**
 * commit_discard_pressure - should discards wait before they free more?
 * @img: a writable image
 *
 * Earlier than writes do, so that a guest's fstrim does not hold up its writes.
 */
bool commit_discard_pressure(struct qcow2_image *img)
{
	return commit_pressure(img) || atomic_read(&img->commit->nr_freed) >= MAX_FREED;
}

/**
 * commit_hurry - somebody waits for what is being reclaimed
 * @img: a writable image
 *
 * For the rest of what the reclaimer has taken, its discards come one straight after the other.
 * Any context.  The end of a reclaim has everything that waits tried again, so that what still
 * waits then says so again.
 */
void commit_hurry(struct qcow2_image *img)
{
	WRITE_ONCE(img->commit->haste, true);
}

/**
 * commit_in_haste - does somebody wait for what is being reclaimed?
 * @img: a writable image
 *
 * So does a suspend from its beginning to its end, also for what comes on the way.
 */
bool commit_in_haste(struct qcow2_image *img)
{
	return READ_ONCE(img->commit->haste) || READ_ONCE(img->waits.release);
}

/**
 * commit_relieve - start a commit if that is what takes the pressure off
 * @img: a writable image; called by its writer
 *
 * It is not while clusters are being reclaimed: one commit more would not speed that up, and its
 * flushes cost what the reclaimer's pauses save.  The end of the reclaim wakes the writer, which
 * comes here again if it still has to wait.
 */
void commit_relieve(struct qcow2_image *img)
{
	/*
	 * The list may be changing, under meta_lock.  Nothing follows from a wrong answer: what is
	 * being added comes with a later call, and what was just taken away is in a commit, whose
	 * end wakes the writer.
	 */
	bool freed = data_race(!list_empty(&img->commit->freed));

	if (atomic_read(&img->commit->nr_freed) >= TOO_MANY_FREED)
		commit_hurry(img);
	if (atomic_read(&img->cache.nr_dirty) >= READ_ONCE(img->cache.max) / 2 ||
	    (freed && !READ_ONCE(img->commit->reclaiming)))
		qcow2_kick_commit(img);
}

/**
 * commit_frees_pending - are clusters on their way to becoming allocatable?
 * @img: a writable image
 */
bool commit_frees_pending(struct qcow2_image *img)
{
	return atomic_read(&img->commit->nr_freed);
}

/**
 * freed_alloc - get an extent to record freed clusters in
 * @img: a writable image
 *
 * Does not wait: extents come back when the I/O in an epoch has ended, and that may need the
 * caller.
 *
 * Return: the extent; or NULL, and then a commit has been started that will free some.
 */
struct freed_extent *freed_alloc(struct qcow2_image *img)
{
	struct freed_extent *ext;

	ext = mempool_alloc(&img->commit->freed_pool, GFP_NOWAIT | __GFP_NOWARN);
	if (!ext) {
		commit_hurry(img);
		qcow2_kick_commit(img);
	}
	return ext;
}

/**
 * freed_add - record that a cluster lost a reference in the open generation
 * @img: the image; the caller holds meta_lock
 * @ext: from freed_alloc(); set to NULL if it was used
 * @cluster: number of the host cluster
 */
void freed_add(struct qcow2_image *img, struct freed_extent **ext, u64 cluster)
{
	struct qcow2_commit *c = img->commit;
	struct freed_extent *last;

	lockdep_assert_held(&img->meta_lock);
	if (!list_empty(&c->freed)) {
		last = list_last_entry(&c->freed, struct freed_extent, node);
		if (last->start + last->nr == cluster) {
			last->nr++;
			return;
		}
	}
	(*ext)->start = cluster;
	(*ext)->nr = 1;
	list_add_tail(&(*ext)->node, &c->freed);
	atomic_inc(&c->nr_freed);
	*ext = NULL;
}

/**
 * freed_drop - return an extent that is not needed
 * @img: the image
 * @ext: the extent or NULL
 */
void freed_drop(struct qcow2_image *img, struct freed_extent *ext)
{
	if (ext)
		mempool_free(ext, &img->commit->freed_pool);
}

/**
 * commit_everything - leave a clean image with no leaked cluster
 * @img: a writable image; no I/O and no allocation is going on
 *
 * Return: 0 or -errno.
 */
int commit_everything(struct qcow2_image *img)
{
	struct qcow2_commit *c = img->commit;
	int r;

	cancel_delayed_work_sync(&c->timer);
	if (image_mode(img) < MODE_READ_ONLY)
		alloc_return_run(img);
	do {
		r = commit_for_caller(img);
		flush_work(&img->commit_worker.work);
		flush_work(&c->reclaim);
	} while (!r && (!commit_is_clean(img) || commit_frees_pending(img)));
	cancel_delayed_work_sync(&c->timer);
	return r;
}

/**
 * commit_init - set up
 * @img: the image
 *
 * Return: 0 or -ENOMEM; commit_exit() must be called either way.
 */
int commit_init(struct qcow2_image *img)
{
	struct qcow2_commit *c = kzalloc(sizeof(*c), GFP_KERNEL);

	if (!c)
		return -ENOMEM;
	img->commit = c;
	c->img = img;
	mutex_init(&c->lock);
	spin_lock_init(&c->io_lock);
	init_completion(&c->written);
	INIT_LIST_HEAD(&c->generation);
	INIT_LIST_HEAD(&c->closed_freed);
	INIT_LIST_HEAD(&c->ios);
	INIT_LIST_HEAD(&c->durable);
	INIT_LIST_HEAD(&c->freed);
	INIT_WORK(&img->commit_worker.work, commit_work);
	INIT_DELAYED_WORK(&c->timer, commit_timer);
	INIT_WORK(&c->reclaim, reclaim_work);
	img->commit_worker.wq = alloc_ordered_workqueue("qcow2_commit", WQ_MEM_RECLAIM);
	c->reclaim_wq = alloc_ordered_workqueue("qcow2_reclaim", WQ_MEM_RECLAIM);
	if (!img->commit_worker.wq || !c->reclaim_wq)
		return -ENOMEM;
	return mempool_init_slab_pool(&c->freed_pool, RESERVED_FREED, freed_slab);
}

/* After a failure: let go of what will never be written. */
static void abandon(struct qcow2_commit *c)
{
	struct freed_extent *ext, *next_ext;
	struct slice *s, *next;

	if (!commit_is_clean(c->img))
		DMERR("%s: closed without %d changed pieces of its tables and what they map",
		      c->img->name, atomic_read(&c->img->cache.nr_dirty));
	finish_generation(c);
	mutex_lock(&c->img->meta_lock);
	list_for_each_entry_safe(s, next, &c->img->dirty, dirty_node) {
		list_del_init(&s->dirty_node);
		s->dirty = false;
		slice_clean(s);
	}
	list_splice_init(&c->freed, &c->durable);
	list_splice_init(&c->closed_freed, &c->durable);
	mutex_unlock(&c->img->meta_lock);
	list_for_each_entry_safe(ext, next_ext, &c->durable, node)
		freed_drop(c->img, ext);
}

/**
 * commit_stop - let what has been queued come to its end
 * @img: the image, quiet: the writer has no bio and no operation, so it starts no commit
 *
 * The last commit wakes the writer, which is to be stopped after this and before commit_exit().
 */
void commit_stop(struct qcow2_image *img)
{
	struct qcow2_commit *c = img->commit;

	if (!c)
		return;
	/* A commit has clusters reclaimed, and what reclaiming changes has the timer started. */
	cancel_delayed_work_sync(&c->timer);
	if (img->commit_worker.wq)
		drain_workqueue(img->commit_worker.wq);
	if (c->reclaim_wq)
		destroy_workqueue(c->reclaim_wq);
	cancel_delayed_work_sync(&c->timer);
	if (img->commit_worker.wq)
		destroy_workqueue(img->commit_worker.wq);
	img->commit_worker.wq = NULL;
}

/**
 * commit_exit - free what commit_init() made
 * @img: the image, after commit_stop(); what is dirty (after a failure) is dropped
 */
void commit_exit(struct qcow2_image *img)
{
	struct qcow2_commit *c = img->commit;

	if (!c)
		return;
	abandon(c);
	mempool_exit(&c->freed_pool);
	kfree(c);
	img->commit = NULL;
}

int commit_module_init(void)
{
	freed_slab = KMEM_CACHE(freed_extent, 0);
	return freed_slab ? 0 : -ENOMEM;
}

void commit_module_exit(void)
{
	kmem_cache_destroy(freed_slab);
}
