// SPDX-License-Identifier: GPL-2.0-only
/*
 * table-cache.c - loading, finding, pinning and evicting slices of metadata tables.
 *
 * Takes table_cache.lock (innermost).  Lookups by slice_find() take no lock at all.
 */
#include <linux/completion.h>
#include <linux/device-mapper.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "entries.h"
#include "image.h"
#include "storage.h"
#include "table-cache.h"

#define RESERVED_SLICES		8	/* that can be loaded when memory is short */
#define RESERVED_BUFFERS	16
#define MIN_SLICES		32	/* the least that a cache is bounded to */
#define MAX_EVICTED		4096	/* that wait for RCU before more is loaded: 16 MiB */
#define EVICT_LOOKS		64U	/* slices looked at before the lock is dropped */
#define MARK_LOOKS		512	/* before a slice that was used may be evicted */

static struct kmem_cache *slice_slab;

static void slice_load_work(struct work_struct *work);

static struct xarray *kind_xarray(struct table_cache *cache, enum slice_kind kind)
{
	return kind == SLICE_L2 ? &cache->l2 : &cache->refblocks;
}

static void slice_free(struct table_cache *cache, struct slice *s)
{
	if (s->shadow)
		mempool_free(s->shadow, &cache->buffers);
	mempool_free(s->data, &cache->buffers);
	mempool_free(s, &cache->slices);
}

/*
 * Insert a slice into the xarray of its kind.  Like slice_alloc(), waits for memory unless @gfp =
 * NO_WAIT.  Returns 0; -EBUSY when there is one already; or -ENOMEM.
 */
static int slice_insert(struct table_cache *cache, struct slice *s, gfp_t gfp)
{
	int r;

	while ((r = xa_insert(kind_xarray(cache, s->kind), s->index, s, gfp)) == -ENOMEM &&
	       gfp != NO_WAIT)
		schedule_timeout_uninterruptible(1);
	return r;
}

static void slice_free_rcu(struct rcu_head *rcu)
{
	struct slice *s = container_of(rcu, struct slice, rcu);
	struct table_cache *cache = &s->img->cache;

	slice_free(cache, s);
	/* The count passes every value on its way down: waiters in make_room() are woken once. */
	if (atomic_dec_return(&cache->nr_evicted) == MAX_EVICTED - 1)
		wake_up_all(&cache->evicted_wait);
}

static void free_later(struct table_cache *cache, struct slice *s)
{
	atomic_inc(&cache->nr_evicted);
	call_rcu(&s->rcu, slice_free_rcu);
}

/* Under cache->lock.  The slice is READY and unpinned. */
static void evict(struct table_cache *cache, struct slice *s)
{
	lockdep_assert_held(&cache->lock);
	list_del(&s->lru);
	xa_erase(kind_xarray(cache, s->kind), s->index);
	WRITE_ONCE(cache->nr, cache->nr - 1);
	free_later(cache, s);
}

/*
 * Under cache->lock.  A clock over the list: a slice that was used since the last pass gets another
 * turn, unless @used says that used ones may go, too.  Returns the number of slices evicted, at
 * most @want.  Looks at no more than @look: the lock is a spinlock, and a list can have a quarter
 * of a million slices.
 */
static unsigned int clock_evict(struct table_cache *cache, unsigned int want, unsigned int look,
				bool used)
{
	unsigned int freed = 0;

	lockdep_assert_held(&cache->lock);
	while (freed < want && look-- && !list_empty(&cache->lru)) {
		struct slice *s = list_last_entry(&cache->lru, struct slice, lru);

		if (s->pins || (!used && READ_ONCE(s->referenced))) {
			WRITE_ONCE(s->referenced, false);
			list_move(&s->lru, &cache->lru);
			continue;
		}
		evict(cache, s);
		freed++;
	}
	return freed;
}

/*
 * Does not wait with @gfp = NO_WAIT, and may then return NULL.  Slices that are in use come back
 * when an operation or a commit ends; unused ones are evicted for later callers.
 */
static struct slice *slice_alloc(struct table_cache *cache, enum slice_kind kind, u64 index,
				 gfp_t gfp)
{
	struct slice *s = mempool_alloc(&cache->slices, NO_WAIT);
	void *data = mempool_alloc(&cache->buffers, NO_WAIT);

	if (!s || !data) {
		spin_lock(&cache->lock);
		clock_evict(cache, 1, EVICT_LOOKS, true);
		spin_unlock(&cache->lock);
	}
	if (!s)
		s = mempool_alloc(&cache->slices, gfp);
	if (s && !data)
		data = mempool_alloc(&cache->buffers, gfp);
	if (!s || !data) {
		if (s)
			mempool_free(s, &cache->slices);
		if (data)
			mempool_free(data, &cache->buffers);
		return NULL;
	}
	memset(s, 0, sizeof(*s));
	s->img = cache->img;
	s->kind = kind;
	s->index = index;
	s->state = SLICE_LOADING;
	INIT_LIST_HEAD(&s->lru);
	INIT_LIST_HEAD(&s->waiters);
	INIT_LIST_HEAD(&s->dirty_node);
	s->data = data;
	return s;
}

/*
 * Sleeps when slices are evicted faster than RCU gives them back.
 *
 * Works in sections until there is room, or until all slices have been looked at without regard to
 * marks.  Marks count in the first MARK_LOOKS looks only: if every slice has been used since, one
 * is as good as the next, and clearing all marks would make one miss pay for a whole round.
 */
static void make_room(struct table_cache *cache)
{
	unsigned int left, looked = 0;

	wait_event(cache->evicted_wait, atomic_read(&cache->nr_evicted) < MAX_EVICTED);
	left = READ_ONCE(cache->nr) + MARK_LOOKS;
	while (left && READ_ONCE(cache->nr) >= READ_ONCE(cache->max)) {
		unsigned int look = min(left, EVICT_LOOKS);

		spin_lock(&cache->lock);
		if (cache->nr >= cache->max)
			clock_evict(cache, cache->nr - cache->max + 1, look, looked >= MARK_LOOKS);
		spin_unlock(&cache->lock);
		looked += look;
		left -= look;
		cond_resched();
	}
}

static int slice_read(struct slice *s)
{
	struct qcow2_image *img = s->img;
	int r;

	r = qcow2_slice_position(img, s->kind, s->index, &s->pos);
	if (r)
		return r;
	r = qcow2_storage_read_table(&img->st, s->pos, s->data, SLICE_SIZE);
	if (r) {
		DMERR_LIMIT("%s: cannot read metadata at %llu: error %d", img->name, s->pos, r);
		return r;
	}
	qcow2_slice_check(img, s);
	return 0;
}

/* Read a LOADING slice and tell its waiters. */
static void slice_load(struct slice *s)
{
	struct table_cache *cache = &s->img->cache;
	struct slice_waiter *w, *next;
	LIST_HEAD(waiters);
	int r = slice_read(s);

	spin_lock(&cache->lock);
	list_splice_init(&s->waiters, &waiters);
	if (r) {
		xa_erase(kind_xarray(cache, s->kind), s->index);
		WRITE_ONCE(cache->nr, cache->nr - 1);
		WRITE_ONCE(s->state, SLICE_FAILED);
	} else {
		list_add(&s->lru, &cache->lru);
		s->referenced = true;
		/* Content first; pairs with slice_find(). */
		smp_store_release(&s->state, SLICE_READY);
	}
	spin_unlock(&cache->lock);

	list_for_each_entry_safe(w, next, &waiters, node)
		w->fn(w, r);
	if (r)
		free_later(cache, s);
	else
		qcow2_slice_put(s);	/* the pin that kept it from eviction until now */
}

static void slice_load_work(struct work_struct *work)
{
	unsigned int noio = memalloc_noio_save();

	slice_load(container_of(work, struct slice, load));
	memalloc_noio_restore(noio);
}

/*
 * Find or insert.  Returns a READY slice, pinned; or NULL when @waiter has been queued on it (and
 * then *@fresh is the slice if the caller must start its load); or -ENOMEM, with @gfp = NO_WAIT.
 */
static struct slice *get_or_insert(struct table_cache *cache, enum slice_kind kind, u64 index,
				   struct slice_waiter *waiter, gfp_t gfp, struct slice **fresh)
{
	struct xarray *xa = kind_xarray(cache, kind);
	struct slice *s, *new;
	int r;

	*fresh = NULL;
	for (;;) {
		spin_lock(&cache->lock);
		s = xa_load(xa, index);
		if (s) {
			if (s->state == SLICE_READY) {
				s->pins++;
				WRITE_ONCE(s->referenced, true);
			} else {
				list_add_tail(&waiter->node, &s->waiters);
				s = NULL;
			}
			spin_unlock(&cache->lock);
			return s;
		}
		spin_unlock(&cache->lock);
		make_room(cache);
		new = slice_alloc(cache, kind, index, gfp);
		if (!new)
			return ERR_PTR(-ENOMEM);
		new->pins = 1;
		list_add(&waiter->node, &new->waiters);
		r = slice_insert(cache, new, gfp);
		if (!r)
			break;
		list_del(&waiter->node);
		slice_free(cache, new);
		if (r == -ENOMEM)
			return ERR_PTR(r);
		/* Another task inserted it first. */
	}
	spin_lock(&cache->lock);
	WRITE_ONCE(cache->nr, cache->nr + 1);
	spin_unlock(&cache->lock);
	*fresh = new;
	return NULL;
}

struct slice *qcow2_slice_get_async(struct table_cache *cache, enum slice_kind kind, u64 index,
				    struct slice_waiter *waiter, bool wait)
{
	struct slice *fresh, *s;

	s = get_or_insert(cache, kind, index, waiter, wait ? GFP_NOIO : NO_WAIT, &fresh);
	if (fresh) {
		INIT_WORK(&fresh->load, slice_load_work);
		queue_work(cache->wq, &fresh->load);
	}
	return s;
}

struct sync_waiter {
	struct slice_waiter waiter;
	struct completion done;
	int error;
};

static void sync_waiter_fn(struct slice_waiter *waiter, int error)
{
	struct sync_waiter *w = container_of(waiter, struct sync_waiter, waiter);

	w->error = error;
	complete(&w->done);
}

static struct slice *get_sync(struct table_cache *cache, enum slice_kind kind, u64 index, gfp_t gfp)
{
	struct sync_waiter w = { .waiter.fn = sync_waiter_fn };
	struct slice *fresh, *s;

	for (;;) {
		init_completion(&w.done);
		s = get_or_insert(cache, kind, index, &w.waiter, gfp, &fresh);
		if (s)
			return s;
		if (fresh)
			slice_load(fresh);
		wait_for_completion(&w.done);
		if (w.error)
			return ERR_PTR(w.error);
	}
}

struct slice *qcow2_slice_get(struct table_cache *cache, enum slice_kind kind, u64 index)
{
	return get_sync(cache, kind, index, GFP_NOIO);
}

struct slice *qcow2_slice_try_get(struct table_cache *cache, enum slice_kind kind, u64 index)
{
	return get_sync(cache, kind, index, NO_WAIT);
}

struct slice *qcow2_cache_add_zeroed(struct table_cache *cache, enum slice_kind kind, u64 index,
				     u64 pos)
{
	struct slice *s;
	int r;

	lockdep_assert_held(&cache->img->alloc_lock);
	make_room(cache);
	s = slice_alloc(cache, kind, index, NO_WAIT);
	if (!s)
		return ERR_PTR(-ENOMEM);
	s->pos = pos;
	s->pins = 1;
	s->referenced = true;
	s->state = SLICE_READY;
	memset(s->data, 0, SLICE_SIZE);
	r = slice_insert(cache, s, NO_WAIT);
	if (r) {
		slice_free(cache, s);
		return ERR_PTR(r);
	}
	spin_lock(&cache->lock);
	WRITE_ONCE(cache->nr, cache->nr + 1);
	list_add(&s->lru, &cache->lru);
	spin_unlock(&cache->lock);
	return s;
}

void qcow2_slice_pin(struct slice *s)
{
	struct table_cache *cache = &s->img->cache;

	spin_lock(&cache->lock);
	s->pins++;
	spin_unlock(&cache->lock);
}

void qcow2_slice_put(struct slice *s)
{
	struct table_cache *cache = &s->img->cache;
	void *shadow = NULL;

	spin_lock(&cache->lock);
	if (!--s->pins) {
		shadow = s->shadow;
		s->shadow = NULL;
	}
	spin_unlock(&cache->lock);
	if (shadow)
		mempool_free(shadow, &cache->buffers);
}

void qcow2_slice_discard(struct slice *s)
{
	struct table_cache *cache = &s->img->cache;

	spin_lock(&cache->lock);
	s->pins--;
	evict(cache, s);
	spin_unlock(&cache->lock);
}

bool qcow2_slice_has_place(const struct slice *s)
{
	struct qcow2_storage *st = &s->img->st;

	return !st->bdev || s->pos + SLICE_SIZE - 1 < st->ops->size(st);
}

/* Returns 0; or -ENOMEM with @gfp = NO_WAIT, and then some of @slices may be set. */
static int flat_fill(struct slice **slices, struct qcow2_image *img, enum slice_kind kind,
		     u64 pos, u32 from, u32 to, gfp_t gfp)
{
	u32 i;

	for (i = from; i < to; i++) {
		struct slice *s = slice_alloc(&img->cache, kind, i, gfp);

		if (!s)
			return -ENOMEM;
		s->pins = 1;	/* never evicted: not on the list either */
		s->pos = pos + (u64)i * SLICE_SIZE;
		s->state = SLICE_READY;
		memset(s->data, 0, SLICE_SIZE);
		slices[i] = s;
	}
	return 0;
}

int qcow2_flat_table_load(struct flat_table *t, struct qcow2_image *img, enum slice_kind kind,
			  u64 pos, u32 nr_entries)
{
	u32 i;
	int r = 0;

	t->pos = pos;
	t->nr_entries = nr_entries;
	t->nr_slices = DIV_ROUND_UP(nr_entries, SLICE_ENTRIES);
	t->slices = kvcalloc(max(t->nr_slices, 1U), sizeof(*t->slices), GFP_KERNEL);
	if (!t->slices)
		return -ENOMEM;
	r = flat_fill(t->slices, img, kind, pos, 0, t->nr_slices, GFP_NOIO);
	for (i = 0; !r && i < t->nr_slices; i++)
		r = qcow2_storage_read_table(&img->st, t->slices[i]->pos, t->slices[i]->data,
					     SLICE_SIZE);
	return r;
}

int qcow2_flat_table_grow(struct flat_table *t, struct qcow2_image *img, enum slice_kind kind,
			  u32 nr_entries)
{
	/* Not fewer than there are: an earlier call may have made more slices than were used. */
	u32 nr = max(DIV_ROUND_UP(nr_entries, SLICE_ENTRIES), t->nr_slices);
	struct slice **old = t->slices, **new;
	u32 i;

	lockdep_assert_held(&img->alloc_lock);
	new = kvcalloc(nr, sizeof(*new), GFP_NOIO);
	if (!new)
		return -ENOMEM;
	memcpy(new, old, t->nr_slices * sizeof(*new));
	/* These may be more slices than the reserve has: waiting for them might never end. */
	if (flat_fill(new, img, kind, t->pos, t->nr_slices, nr, NO_WAIT)) {
		for (i = t->nr_slices; i < nr && new[i]; i++)
			slice_free(&img->cache, new[i]);
		kvfree(new);
		return -ENOMEM;
	}
	mutex_lock(&img->meta_lock);
	t->slices = new;
	t->nr_slices = nr;
	t->nr_entries = nr_entries;
	mutex_unlock(&img->meta_lock);
	kvfree(old);
	return 0;
}

void qcow2_flat_table_free(struct flat_table *t, struct qcow2_image *img)
{
	u32 i;

	for (i = 0; t->slices && i < t->nr_slices; i++)
		if (t->slices[i])
			slice_free(&img->cache, t->slices[i]);
	kvfree(t->slices);
	t->slices = NULL;
}

static unsigned long cache_count(struct shrinker *shrinker, struct shrink_control *sc)
{
	struct table_cache *cache = shrinker->private_data;
	int n = READ_ONCE(cache->nr) - atomic_read(&cache->nr_dirty);

	return n > 0 ? n : SHRINK_EMPTY;
}

static unsigned long cache_scan(struct shrinker *shrinker, struct shrink_control *sc)
{
	struct table_cache *cache = shrinker->private_data;
	unsigned long freed;

	if (!spin_trylock(&cache->lock))
		return SHRINK_STOP;
	freed = clock_evict(cache, sc->nr_to_scan, 2 * sc->nr_to_scan, false);
	spin_unlock(&cache->lock);
	return freed ?: SHRINK_STOP;
}

static unsigned int kib_to_slices(unsigned int kib)
{
	return max_t(unsigned int, MIN_SLICES, kib / (SLICE_SIZE / 1024));
}

void qcow2_cache_resize(struct table_cache *cache, unsigned int max_kib)
{
	spin_lock(&cache->lock);
	WRITE_ONCE(cache->max, kib_to_slices(max_kib));
	spin_unlock(&cache->lock);
	make_room(cache);
}

void qcow2_cache_drop(struct table_cache *cache)
{
	unsigned int left = READ_ONCE(cache->nr);

	/* Once round: pinned slices move to the other end of the list, all others are evicted. */
	while (left) {
		unsigned int look = min(left, EVICT_LOOKS);

		spin_lock(&cache->lock);
		clock_evict(cache, look, look, true);
		spin_unlock(&cache->lock);
		left -= look;
		cond_resched();
	}
}

/*
 * Whole pages, also since filesystems take references to the pages that they are given (NFS does),
 * and slab pages have no references to take.
 */
static void *buffer_alloc(gfp_t gfp, void *unused)
{
	BUILD_BUG_ON(SLICE_SIZE > PAGE_SIZE);
	return (void *)__get_free_page(gfp);
}

static void buffer_free(void *buffer, void *unused)
{
	free_page((unsigned long)buffer);
}

int qcow2_cache_init(struct table_cache *cache, struct qcow2_image *img, unsigned int max_kib)
{
	int r;

	cache->img = img;
	xa_init(&cache->l2);
	xa_init(&cache->refblocks);
	spin_lock_init(&cache->lock);
	INIT_LIST_HEAD(&cache->lru);
	init_waitqueue_head(&cache->evicted_wait);
	cache->max = kib_to_slices(max_kib);
	r = mempool_init_slab_pool(&cache->slices, RESERVED_SLICES, slice_slab);
	if (!r)
		r = mempool_init(&cache->buffers, RESERVED_BUFFERS, buffer_alloc, buffer_free,
				 NULL);
	if (r)
		return r;
	cache->wq = alloc_workqueue("qcow2_table", WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	cache->lookup_wq = alloc_workqueue("qcow2_lookup", WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	if (!cache->wq || !cache->lookup_wq)
		return -ENOMEM;
	cache->shrinker = shrinker_alloc(0, "dm-qcow2:%s", kbasename(img->name));
	if (!cache->shrinker)
		return -ENOMEM;
	cache->shrinker->count_objects = cache_count;
	cache->shrinker->scan_objects = cache_scan;
	cache->shrinker->private_data = cache;
	shrinker_register(cache->shrinker);
	return 0;
}

void qcow2_cache_exit(struct table_cache *cache)
{
	if (cache->shrinker)
		shrinker_free(cache->shrinker);
	if (cache->lookup_wq)
		destroy_workqueue(cache->lookup_wq);
	if (cache->wq)
		destroy_workqueue(cache->wq);
	qcow2_cache_drop(cache);
	WARN_ON_ONCE(cache->nr);
	rcu_barrier();		/* freed slices go back to the pools */
	mempool_exit(&cache->slices);
	mempool_exit(&cache->buffers);
}

int qcow2_cache_module_init(void)
{
	slice_slab = KMEM_CACHE(slice, 0);
	return slice_slab ? 0 : -ENOMEM;
}

void qcow2_cache_module_exit(void)
{
	kmem_cache_destroy(slice_slab);
}
