// SPDX-License-Identifier: GPL-2.0-only
/*
 * view.c - points in time of a live disk: how they are taken, given up, and freed.
 *
 * Taking one (a message):
 *   1. The writer starts no operation until those under way have ended.  Then it marks: it adds
 *      the view to the list.  From then on no cluster is own (view-map.h), so every write is
 *      redirected.
 *   2. The message ends the epoch: by then every write has ended that had found an own cluster
 *      before the mark.  Until then no operation begins, since it could copy an old cluster that
 *      such a write still changes, and the view is not ready.
 * So a view has all writes that were acknowledged before it was asked for, and none that was sent
 * after it was ready.  Of those in between it has, with each write, all that were acknowledged
 * before that one was sent.  The wait depends on the I/O in flight, not on the disk's size.
 *
 * Giving one up: at once it can no longer be read.  But the clusters that only it needed become own
 * later, when no operation is under way: one may be copying such a cluster to another place, and a
 * write in place to the old one would be lost.
 *
 * Freeing: a dropped view's map is gone through by the writer, a part at a time.  Entries that no
 * older view needs lose their reference like any entry that is replaced: in the open generation, so
 * that their clusters are reused only when their unlinking, which was earlier, is durable and the
 * epoch is over (commit.c).  After a crash these clusters are leaks: views are in memory only.
 *
 * Takes qcow2_views.lock (outermost) for a message, and image.meta_lock to free.
 */
#include <linux/completion.h>
#include <linux/ctype.h>
#include <linux/device-mapper.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "commit.h"
#include "entries.h"
#include "epoch.h"
#include "generation.h"
#include "image.h"
#include "mapping.h"
#include "state.h"
#include "view.h"

#define MAX_VIEWS	64	/* of an image, with those whose clusters are being freed */
#define REAP_BATCH	1024	/* entries that are looked at before bios get a turn */
#define HOLD_TIME	(2 * HZ)

enum view_order {
	VIEW_CREATE,
	VIEW_DELETE,
	VIEW_DROP_ALL,
};

/* What the writer is asked to do; owned by the writer until @done. */
struct view_request {
	enum view_order order;
	struct qcow2_view *view;
	bool hold;
	int result;
	struct completion done;
};

/* The writer's part. */

/* Does a write wait that the storage has refused?  It must go to the same clusters again. */
static bool has_refused(struct qcow2_writer *w)
{
	struct qcow2_io *io;

	list_for_each_entry(io, &w->stalled, node)
		if (io->retried)
			return true;
	return !list_empty(&w->no_space) || image_mode(w->img) == MODE_OUT_OF_SPACE;
}

static void mark(struct qcow2_writer *w, struct view_request *req)
{
	struct qcow2_image *img = w->img;
	struct qcow2_views *views = &img->views;

	/*
	 * A write to several clusters that the storage has refused waits there, and is tried again
	 * as a whole: all its clusters must stay own.
	 */
	if (has_refused(w)) {
		req->result = -ENOSPC;
		return;
	}

	WRITE_ONCE(views->settling, true);
	WRITE_ONCE(views->held, req->hold);
	if (req->hold)
		queue_delayed_work(img->write_worker.wq, &views->hold_timer, HOLD_TIME);
	refcount_inc(&req->view->users);
	list_add_tail_rcu(&req->view->node, &views->list);
	/* Own writes look here: qcow2_epoch_flip() waits for those that have not seen it. */
	smp_store_release(&views->newest, req->view);
}

static void drop_all(struct qcow2_image *img)
{
	struct qcow2_view *view;

	list_for_each_entry(view, &img->views.list, node)
		if (!view->dropped)
			qcow2_view_drop(view);
}

static void do_request(struct qcow2_writer *w, struct view_request *req)
{
	struct qcow2_views *views = &w->img->views;

	switch (req->order) {
	case VIEW_CREATE:
		/* An operation maps its cluster when it ends, which must be before or after. */
		if (w->nr_ops)
			return;
		mark(w, req);
		break;
	case VIEW_DELETE:
		if (!req->view->dropped)
			qcow2_view_drop(req->view);
		break;
	case VIEW_DROP_ALL:
		drop_all(w->img);
	}
	WRITE_ONCE(views->request, NULL);
	complete(&req->done);
}

enum reaped {
	REAPED,			/* all that can go has gone */
	REAP_LATER,		/* when a commit, a reclaim or an operation has ended */
	REAP_MORE,		/* after others had a turn */
};

/* Free one entry.  Returns whether the memory for that was there. */
static bool free_entry(struct qcow2_view *view, struct view_chunk *chunk, unsigned int bit)
{
	struct qcow2_image *img = view->img;
	struct freed_extent *freed = qcow2_freed_alloc(img);

	if (!freed)
		return false;
	mutex_lock(&img->meta_lock);
	qcow2_free_reference(img, &freed, chunk->old[bit]);
	mutex_unlock(&img->meta_lock);
	qcow2_freed_drop(img, freed);
	return true;
}

static enum reaped reap_chunk(struct qcow2_view *view, struct view_chunk *chunk, u64 first)
{
	struct qcow2_image *img = view->img;
	unsigned long todo = chunk->known;

	while (todo) {
		unsigned int bit = __ffs(todo);

		todo &= todo - 1;
		if (qcow2_view_needs(view, first + bit))
			continue;
		if (image_mode(img) < MODE_READ_ONLY) {
			if (qcow2_commit_discard_pressure(img)) {
				qcow2_commit_relieve(img);
				return REAP_LATER;
			}
			if (!free_entry(view, chunk, bit))
				return REAP_LATER;
		}
		WRITE_ONCE(chunk->moved, chunk->moved & ~BIT(bit));
		WRITE_ONCE(chunk->known, chunk->known & ~BIT(bit));
		WRITE_ONCE(view->clusters, view->clusters - 1);
	}
	return REAPED;
}

static enum reaped reap_view(struct qcow2_view *view, unsigned int *budget)
{
	struct view_chunk *chunk;
	unsigned long i;
	enum reaped r;

	xa_for_each_start(&view->map, i, chunk, view->reaped) {
		view->reaped = i;
		if (*budget < VIEW_CHUNK_CLUSTERS)
			return REAP_MORE;
		*budget -= VIEW_CHUNK_CLUSTERS;
		r = reap_chunk(view, chunk, (u64)i * VIEW_CHUNK_CLUSTERS);
		if (r != REAPED)
			return r;
		/* One with pins gets an entry that an older view needs, or goes the next time. */
		if (!chunk->known && !chunk->pins)
			qcow2_view_drop_chunk(view, i);
	}
	view->reaped = ULONG_MAX;
	return REAPED;
}

static void remove_view(struct qcow2_view *view)
{
	list_del_rcu(&view->node);
	/* A store that failed for want of memory leaves nodes in it. */
	xa_destroy(&view->map);
	qcow2_view_put(view);
}

static enum reaped reap_all(struct qcow2_image *img)
{
	struct qcow2_views *views = &img->views;
	unsigned int budget = REAP_BATCH;
	struct qcow2_view *view, *next;
	enum reaped r;

	list_for_each_entry_safe(view, next, &views->list, node) {
		if (!view->dropped)
			continue;
		if (view->reaped != ULONG_MAX) {
			r = reap_view(view, &budget);
			if (r != REAPED)
				return r;
		}
		if (!view->bytes)
			remove_view(view);
	}
	return REAPED;
}

static void reap(struct qcow2_image *img)
{
	switch (reap_all(img)) {
	case REAPED:
		WRITE_ONCE(img->views.reaping, false);
		/* What has been freed may be all that a commit has to do; and bios wait for it. */
		if (qcow2_frees_pending(img))
			qcow2_kick_commit(img);
		qcow2_retry_waiting(img);
		break;
	case REAP_MORE:
		qcow2_worker_kick(&img->write_worker);
		break;
	case REAP_LATER:
		break;
	}
}

void qcow2_view_sample(struct qcow2_image *img)
{
	struct qcow2_views *views = &img->views;

	views->stalling = READ_ONCE(views->held);
	/* Before the bios of this run are taken: pairs with the release in create_view(). */
	if (smp_load_acquire(&views->settling))
		views->stalling = true;
}

void qcow2_view_work(struct qcow2_writer *w)
{
	struct qcow2_views *views = &w->img->views;
	/* Pairs with the release in ask_writer(). */
	struct view_request *req = smp_load_acquire(&views->request);

	if (likely(!req && !views->reaping))
		return;
	if (req)
		do_request(w, req);
	if (views->stale && !w->nr_ops)
		qcow2_view_choose_newest(w->img);
	views->draining = w->nr_ops && (READ_ONCE(views->request) || views->stale);
	WRITE_ONCE(w->img->waits.wake, true);
	/* Nothing comes back before a stuck commit ends, and asking would only repeat that. */
	if (views->reaping && !views->stale && !READ_ONCE(views->paused) &&
	    !qcow2_commit_is_stuck(w->img))
		reap(w->img);
}

/* The messages' part. */

/* Let the writer do what @req says.  Sleeps until that is done. */
static void ask_writer(struct qcow2_image *img, struct view_request *req)
{
	lockdep_assert_held(&img->views.lock);
	init_completion(&req->done);
	/* @req is filled in: pairs with the acquire in qcow2_view_work(). */
	smp_store_release(&img->views.request, req);
	qcow2_worker_kick(&img->write_worker);
	wait_for_completion(&req->done);
}

static void hold_expired(struct work_struct *work)
{
	struct qcow2_image *img = container_of(to_delayed_work(work), struct qcow2_image,
					       views.hold_timer);

	WRITE_ONCE(img->views.hold_over, true);
	WRITE_ONCE(img->views.held, false);
	qcow2_wake_writer(img);
}

void qcow2_view_unhold(struct qcow2_image *img)
{
	cancel_delayed_work_sync(&img->views.hold_timer);
	if (READ_ONCE(img->views.held))
		hold_expired(&img->views.hold_timer.work);
}

static bool name_is_valid(const char *name)
{
	const char *c;

	for (c = name; *c; c++)
		if (!isgraph(*c) || *c == '/')
			return false;
	return c > name && c - name < VIEW_NAME_SIZE;
}

/* Is there room for one more, and no other of that name?  0 or -errno. */
static int may_create(struct qcow2_image *img, const char *name)
{
	struct qcow2_view *view;
	unsigned int nr = 0;
	int r = 0;

	if (!name_is_valid(name)) {
		DMERR("%s: view create: invalid name: at most %u printable characters, no slash",
		      img->name, VIEW_NAME_SIZE - 1);
		return -EINVAL;
	}
	rcu_read_lock();
	list_for_each_entry_rcu(view, &img->views.list, node) {
		nr++;
		if (!READ_ONCE(view->dropped) && !strcmp(view->name, name))
			r = -EEXIST;
	}
	rcu_read_unlock();
	if (r) {
		DMERR("%s: view create: there is a view %s already", img->name, name);
	} else if (nr >= MAX_VIEWS) {
		DMERR("%s: view create: %u views exist, or are being freed: the maximum",
		      img->name, nr);
		r = -EMFILE;
	} else if (image_mode(img) >= MODE_READ_ONLY) {
		DMERR("%s: view create: the image takes no changes any more", img->name);
		r = -EROFS;
	}
	return r;
}

static int create_view(struct qcow2_image *img, const char *name, bool hold)
{
	struct qcow2_views *views = &img->views;
	struct view_request req = { .order = VIEW_CREATE, .hold = hold };
	struct qcow2_view *view;
	int r = may_create(img, name);

	if (r)
		return r;
	if (READ_ONCE(views->held)) {
		DMERR("%s: view create: the disk is held: release it first", img->name);
		return -EBUSY;
	}
	view = kzalloc(sizeof(*view), GFP_KERNEL);
	if (!view) {
		DMERR("%s: view create: no memory", img->name);
		return -ENOMEM;
	}
	view->img = img;
	strscpy(view->name, name, sizeof(view->name));
	view->size = img->root.size;
	refcount_set(&view->users, 1);
	xa_init(&view->map);

	cancel_delayed_work_sync(&views->hold_timer);
	views->hold_over = false;
	req.view = view;
	ask_writer(img, &req);
	if (req.result) {
		DMERR("%s: view create: writes wait for room", img->name);
		qcow2_view_put(view);
		return req.result;
	}
	qcow2_epoch_flip(&img->epoch);
	WRITE_ONCE(view->ready, true);
	/* A write that was refused meanwhile is with the writer: see qcow2_view_sample(). */
	smp_store_release(&views->settling, false);
	qcow2_wake_writer(img);

	if (READ_ONCE(view->dropped))
		r = -ENOSPC;
	qcow2_view_put(view);
	return r;
}

static int end_hold(struct qcow2_image *img)
{
	struct qcow2_views *views = &img->views;
	bool held, over;

	cancel_delayed_work_sync(&views->hold_timer);
	held = READ_ONCE(views->held);
	over = READ_ONCE(views->hold_over);
	WRITE_ONCE(views->held, false);
	WRITE_ONCE(views->hold_over, false);
	qcow2_wake_writer(img);
	if (over) {
		DMERR("%s: view release: the hold has ended by itself", img->name);
		return -ETIME;
	}
	if (!held) {
		DMERR("%s: view release: nothing is held", img->name);
		return -EINVAL;
	}
	return 0;
}

static int delete_view(struct qcow2_image *img, const char *name)
{
	struct view_request req = { .order = VIEW_DELETE };
	int r = 0;

	req.view = qcow2_view_find(img, name);
	if (!req.view) {
		DMERR("%s: view delete: there is no view %s", img->name, name);
		return -ENOENT;
	}
	/* The list's, and ours.  A device that comes now finds its view dropped. */
	if (refcount_read(&req.view->users) > 2) {
		DMERR("%s: view delete: a device shows %s: remove the device first", img->name,
		      name);
		r = -EBUSY;
	} else {
		ask_writer(img, &req);
	}
	qcow2_view_put(req.view);
	return r;
}

static int list_views(struct qcow2_image *img, char *result, unsigned int maxlen)
{
	struct qcow2_view *view;
	unsigned int sz = 0;

	result[0] = '\0';
	rcu_read_lock();
	list_for_each_entry_rcu(view, &img->views.list, node)
		if (!READ_ONCE(view->dropped))
			DMEMIT("%s %llu %llu %llu\n", view->name, view->size >> SECTOR_SHIFT,
			       READ_ONCE(view->clusters), READ_ONCE(view->bytes) >> 10);
	rcu_read_unlock();
	return 1;
}

int qcow2_view_message(struct qcow2_image *img, unsigned int argc, char **argv, char *result,
		       unsigned int maxlen)
{
	unsigned int noio = memalloc_noio_save();
	const char *verb = argc ? argv[0] : "";
	int r = -EINVAL;

	mutex_lock(&img->views.lock);
	if (!strcasecmp(verb, "create") && argc == 2)
		r = create_view(img, argv[1], false);
	else if (!strcasecmp(verb, "create") && argc == 3 && !strcasecmp(argv[2], "hold"))
		r = create_view(img, argv[1], true);
	else if (!strcasecmp(verb, "release") && argc == 1)
		r = end_hold(img);
	else if (!strcasecmp(verb, "delete") && argc == 2)
		r = delete_view(img, argv[1]);
	else if (!strcasecmp(verb, "list") && argc == 1)
		r = list_views(img, result, maxlen);
	else
		DMERR("%s: view: expected create NAME [hold], release, delete NAME or list",
		      img->name);
	mutex_unlock(&img->views.lock);
	memalloc_noio_restore(noio);
	return r;
}

void qcow2_view_pause(struct qcow2_image *img)
{
	WRITE_ONCE(img->views.paused, true);
}

void qcow2_view_resume(struct qcow2_image *img)
{
	WRITE_ONCE(img->views.paused, false);
	qcow2_worker_kick(&img->write_worker);
}

void qcow2_view_cost(struct qcow2_image *img, struct qcow2_view_cost *cost)
{
	struct qcow2_view *view;

	*cost = (struct qcow2_view_cost){ };
	rcu_read_lock();
	list_for_each_entry_rcu(view, &img->views.list, node) {
		cost->nr += !READ_ONCE(view->dropped);
		cost->clusters += READ_ONCE(view->clusters);
		cost->bytes += READ_ONCE(view->bytes);
	}
	rcu_read_unlock();
}

void qcow2_view_finish(struct qcow2_image *img)
{
	struct view_request req = { .order = VIEW_DROP_ALL };
	struct qcow2_views *views = &img->views;
	int r = 0;

	mutex_lock(&views->lock);
	qcow2_view_unhold(img);
	if (list_empty(&views->list)) {
		mutex_unlock(&views->lock);
		return;
	}
	ask_writer(img, &req);
	qcow2_view_resume(img);
	/* The writer frees until it has to wait for a commit, and the other way round. */
	while (!list_empty(&views->list) && !r) {
		qcow2_worker_kick(&img->write_worker);
		flush_work(&img->write_worker.work);
		r = qcow2_commit_everything(img);
	}
	qcow2_view_pause(img);
	flush_work(&img->write_worker.work);
	mutex_unlock(&views->lock);
	if (r)
		DMERR("%s: cannot free what the views held: error %d", img->name, r);
	img->st.ops->hand_back(&img->st);
}

void qcow2_view_init(struct qcow2_image *img)
{
	struct qcow2_views *views = &img->views;

	mutex_init(&views->lock);
	INIT_LIST_HEAD(&views->list);
	INIT_DELAYED_WORK(&views->hold_timer, hold_expired);
	views->limit = (u64)VIEW_LIMIT_MIB << 20;
}

void qcow2_view_exit(struct qcow2_image *img)
{
	struct qcow2_view *view, *next;
	struct view_chunk *chunk;
	unsigned long i;

	list_for_each_entry_safe(view, next, &img->views.list, node) {
		WRITE_ONCE(view->dropped, true);
		smp_wmb();	/* pairs with the smp_rmb() in qcow2_view_is_dropped() */
		xa_for_each(&view->map, i, chunk) {
			qcow2_view_drop_chunk(view, i);
			cond_resched();
		}
		remove_view(view);
	}
}
