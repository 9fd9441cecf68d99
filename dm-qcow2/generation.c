// SPDX-License-Identifier: GPL-2.0-only
/*
 * generation.c - records of the changes that are not durable; see generation.h.
 *
 * Every change of a table belongs to the open generation until that is closed and a commit writes
 * it.  Freed clusters are recorded with the change that freed them, and go on only when that change
 * is durable.
 *
 * Owns generation.lock, which keeps commits from starting.  Takes that, image.meta_lock, and
 * table_cache.lock inside it.
 */
#include <linux/device-mapper.h>
#include <linux/slab.h>

#include "generation.h"
#include "image.h"
#include "state.h"
#include "table-cache.h"

#define COMMIT_INTERVAL		(5 * HZ)
#define MAX_FREED		4096		/* extents, before discards wait */
#define TOO_MANY_FREED		(2 * MAX_FREED)	/* extents, before writes wait, too */
#define RESERVED_FREED		64

static struct kmem_cache *freed_slab;

bool qcow2_is_clean(struct qcow2_image *img)
{
	return !atomic_read(&img->cache.nr_dirty);
}

void qcow2_start_commit_timer(struct qcow2_image *img)
{
	queue_delayed_work(img->commit_worker.wq, &img->commit_timer, COMMIT_INTERVAL);
}

static bool prepare(struct slice *s, gfp_t gfp)
{
	struct table_cache *cache = &s->img->cache;
	void *shadow;

	if (READ_ONCE(s->shadow))
		return true;
	shadow = mempool_alloc(&cache->buffers, gfp);
	if (!shadow)
		return false;
	spin_lock(&cache->lock);
	if (!s->shadow) {
		/* prepare() for another pin reads @shadow without the lock. */
		WRITE_ONCE(s->shadow, shadow);
		shadow = NULL;
	}
	spin_unlock(&cache->lock);
	if (shadow)
		mempool_free(shadow, &cache->buffers);
	return true;
}

bool qcow2_slice_try_prepare(struct slice *s)
{
	return prepare(s, NO_WAIT);
}

void qcow2_slice_prepare(struct slice *s)
{
	if (qcow2_slice_try_prepare(s))
		return;
	qcow2_kick_commit(s->img);
	prepare(s, GFP_NOIO);
}

void qcow2_slice_dirty(struct slice *s)
{
	struct qcow2_image *img = s->img;

	lockdep_assert_held(&img->meta_lock);
	if (s->dirty)
		return;
	WRITE_ONCE(s->dirty, true);
	if (!s->writing) {
		qcow2_slice_pin(s);
		if (atomic_inc_return(&img->cache.nr_dirty) == 1)
			qcow2_start_commit_timer(img);
	}
	list_add_tail(&s->dirty_node, &img->generation->dirty);
	smp_wmb();	/* before the new entry; pairs with the smp_rmb() in map.c */
}

struct freed_extent *qcow2_freed_alloc(struct qcow2_image *img)
{
	struct freed_extent *ext;

	ext = mempool_alloc(&img->generation->freed_pool, NO_WAIT);
	if (!ext) {
		qcow2_reclaim_hurry(img);
		qcow2_kick_commit(img);
	}
	return ext;
}

void qcow2_freed_add(struct qcow2_image *img, struct freed_extent **ext, u64 cluster)
{
	struct qcow2_generation *g = img->generation;
	struct freed_extent *last;

	lockdep_assert_held(&img->meta_lock);
	if (!list_empty(&g->freed)) {
		last = list_last_entry(&g->freed, struct freed_extent, node);
		if (last->start + last->nr == cluster) {
			last->nr++;
			return;
		}
	}
	(*ext)->start = cluster;
	(*ext)->nr = 1;
	list_add_tail(&(*ext)->node, &g->freed);
	atomic_inc(&g->nr_freed);
	*ext = NULL;
}

void qcow2_freed_drop(struct qcow2_image *img, struct freed_extent *ext)
{
	if (ext)
		mempool_free(ext, &img->generation->freed_pool);
}

void qcow2_freed_done(struct qcow2_image *img, struct freed_extent *ext)
{
	list_del(&ext->node);
	qcow2_freed_drop(img, ext);
	/* Bios that wait until there are fewer go on while the rest is reclaimed. */
	if (atomic_dec_return(&img->generation->nr_freed) % (MAX_FREED / 2) == 0)
		qcow2_retry_waiting(img);
}

bool qcow2_frees_pending(struct qcow2_image *img)
{
	return atomic_read(&img->generation->nr_freed);
}

bool qcow2_commit_pressure(struct qcow2_image *img)
{
	return atomic_read(&img->cache.nr_dirty) >= READ_ONCE(img->cache.max) / 2 ||
	       atomic_read(&img->generation->nr_freed) >= TOO_MANY_FREED;
}

bool qcow2_commit_discard_pressure(struct qcow2_image *img)
{
	return qcow2_commit_pressure(img) || atomic_read(&img->generation->nr_freed) >= MAX_FREED;
}

void qcow2_reclaim_hurry(struct qcow2_image *img)
{
	WRITE_ONCE(img->generation->haste, true);
}

bool qcow2_reclaim_in_haste(struct qcow2_image *img)
{
	return READ_ONCE(img->generation->haste) || READ_ONCE(img->waits.release);
}

void qcow2_commit_relieve(struct qcow2_image *img)
{
	/*
	 * The list may be changing, under meta_lock.  A wrong answer is harmless: a later call sees
	 * an extent that is being added, and an extent that was just taken away is in a commit,
	 * whose end wakes the writer.
	 */
	bool freed = data_race(!list_empty(&img->generation->freed));

	if (atomic_read(&img->generation->nr_freed) >= TOO_MANY_FREED)
		qcow2_reclaim_hurry(img);
	if (atomic_read(&img->cache.nr_dirty) >= READ_ONCE(img->cache.max) / 2 ||
	    (freed && !READ_ONCE(img->generation->reclaiming)))
		qcow2_kick_commit(img);
}

bool qcow2_generation_hold(struct qcow2_image *img)
{
	mutex_lock(&img->generation->lock);
	if (!img->waits.stuck)
		return true;
	mutex_unlock(&img->generation->lock);
	return false;
}

void qcow2_generation_release(struct qcow2_image *img)
{
	mutex_unlock(&img->generation->lock);
}

void qcow2_generation_reftable_moved(struct qcow2_image *img, u32 clusters)
{
	lockdep_assert_held(&img->meta_lock);
	img->generation->reftable_clusters = clusters;
}

void qcow2_generation_close(struct qcow2_image *img)
{
	struct qcow2_generation *g = img->generation;
	struct slice *s, *next;

	lockdep_assert_held(&g->lock);
	mutex_lock(&img->meta_lock);
	list_for_each_entry_safe(s, next, &g->dirty, dirty_node) {
		memcpy(s->shadow, s->data, SLICE_SIZE);
		s->dirty = false;
		WRITE_ONCE(s->writing, true);
		list_del_init(&s->dirty_node);
		list_add_tail(&s->commit_node, &g->closed);
	}
	list_splice_init(&g->freed, &g->closed_freed);
	g->closed_reftable = g->reftable_clusters;
	g->reftable_clusters = 0;
	mutex_unlock(&img->meta_lock);
}

static void slice_clean(struct slice *s)
{
	atomic_dec(&s->img->cache.nr_dirty);
	qcow2_slice_put(s);
}

void qcow2_generation_finish(struct qcow2_image *img)
{
	struct qcow2_generation *g = img->generation;
	struct slice *s, *next;

	lockdep_assert_held(&g->lock);
	mutex_lock(&img->meta_lock);
	list_for_each_entry_safe(s, next, &g->closed, commit_node) {
		list_del(&s->commit_node);
		WRITE_ONCE(s->writing, false);
		if (!s->dirty)
			slice_clean(s);
	}
	mutex_unlock(&img->meta_lock);
}

static void drop_extents(struct qcow2_image *img, struct list_head *extents)
{
	struct freed_extent *ext, *next;

	list_for_each_entry_safe(ext, next, extents, node)
		qcow2_freed_drop(img, ext);
}

/* After a failure: drop the changes that will never be written. */
static void abandon(struct qcow2_image *img)
{
	struct qcow2_generation *g = img->generation;
	struct slice *s, *next;

	if (!qcow2_is_clean(img))
		DMERR("%s: closed with %d uncommitted table slices: what they map is lost",
		      img->name, atomic_read(&img->cache.nr_dirty));
	mutex_lock(&g->lock);
	qcow2_generation_finish(img);
	mutex_unlock(&g->lock);
	mutex_lock(&img->meta_lock);
	list_for_each_entry_safe(s, next, &g->dirty, dirty_node) {
		list_del_init(&s->dirty_node);
		s->dirty = false;
		slice_clean(s);
	}
	mutex_unlock(&img->meta_lock);
	drop_extents(img, &g->freed);
	drop_extents(img, &g->closed_freed);
}

int qcow2_generation_init(struct qcow2_image *img)
{
	struct qcow2_generation *g = kzalloc(sizeof(*g), GFP_KERNEL);

	if (!g)
		return -ENOMEM;
	img->generation = g;
	mutex_init(&g->lock);
	INIT_LIST_HEAD(&g->dirty);
	INIT_LIST_HEAD(&g->freed);
	INIT_LIST_HEAD(&g->closed);
	INIT_LIST_HEAD(&g->closed_freed);
	return mempool_init_slab_pool(&g->freed_pool, RESERVED_FREED, freed_slab);
}

void qcow2_generation_exit(struct qcow2_image *img)
{
	struct qcow2_generation *g = img->generation;

	if (!g)
		return;
	abandon(img);
	mempool_exit(&g->freed_pool);
	kfree(g);
	img->generation = NULL;
}

int qcow2_generation_module_init(void)
{
	freed_slab = KMEM_CACHE(freed_extent, 0);
	return freed_slab ? 0 : -ENOMEM;
}

void qcow2_generation_module_exit(void)
{
	kmem_cache_destroy(freed_slab);
}
