// SPDX-License-Identifier: GPL-2.0-only
/*
 * view-map.c - the maps of views: finding and recording what clusters were.
 *
 * To read view v, ask v's map, then the maps of the views after it, then the live table: the first
 * that knows the cluster has what it was when it was changed first after v's moment.  All changes
 * are recorded in the last map of the list only, and only once after each moment.
 *
 * A dropped view's map stays on the list as long as an older view needs an entry of it.  Nothing is
 * moved from map to map, so readers need no retry: an entry that a reader would stop at never
 * goes away.
 *
 * The writer alone changes lists and maps; readers need RCU only.  Takes no locks.
 */
#include <linux/device-mapper.h>
#include <linux/slab.h>

#include "entries.h"
#include "image.h"
#include "lookup.h"
#include "state.h"
#include "view-map.h"

static struct kmem_cache *chunk_slab;

static void assert_writer(const struct qcow2_image *img)
{
	WARN_ON_ONCE(current_work() != &img->write_worker.work);
}

static unsigned long chunk_index(u64 cluster)
{
	return cluster / VIEW_CHUNK_CLUSTERS;
}

static unsigned long chunk_bit(u64 cluster)
{
	return 1UL << (cluster % VIEW_CHUNK_CLUSTERS);
}

static struct view_chunk *chunk_of(const struct qcow2_view *view, u64 cluster)
{
	return xa_load((struct xarray *)&view->map, chunk_index(cluster));
}

/* The last view of the list, dropped or not, where changes are recorded.  There is one. */
static struct qcow2_view *last_view(struct qcow2_image *img)
{
	return list_last_entry(&img->views.list, struct qcow2_view, node);
}

/* Under RCU.  Does this view, or one after it, know the cluster?  Then @old is what it was. */
static bool known_since(struct qcow2_view *view, u64 cluster, u64 *old)
{
	struct qcow2_image *img = view->img;
	struct view_chunk *chunk;

	list_for_each_entry_from_rcu(view, &img->views.list, node) {
		chunk = chunk_of(view, cluster);
		/* @old is right then: pairs with the release in qcow2_view_record(). */
		if (!chunk || !(smp_load_acquire(&chunk->known) & chunk_bit(cluster)))
			continue;
		*old = READ_ONCE(chunk->old[cluster % VIEW_CHUNK_CLUSTERS]);
		return true;
	}
	return false;
}

/* Under RCU.  Has the cluster changed since the newest view's moment?  No if there is no view. */
static bool moved_since_newest(struct qcow2_image *img, u64 cluster)
{
	struct qcow2_view *view = READ_ONCE(img->views.newest);
	struct view_chunk *chunk;

	if (!view)
		return false;
	list_for_each_entry_from_rcu(view, &img->views.list, node) {
		chunk = chunk_of(view, cluster);
		/* The live entry is read afterwards: see struct view_chunk. */
		if (chunk && smp_load_acquire(&chunk->moved) & chunk_bit(cluster))
			return true;
	}
	return false;
}

/* Longer ranges are answered in pieces, which are as long as a slice says. */
static u64 to_slice_end(const struct qcow2_image *img, u64 goff, u64 len)
{
	u64 covers = 1ULL << img->slice_bits;

	return min(len, covers - (goff & (covers - 1)));
}

/* From @goff, where the answer was @first, how far does @ask answer the same? */
static u64 same_run(struct qcow2_image *img, u64 goff, u64 len,
		    bool (*ask)(void *whom, u64 cluster), void *whom, bool first)
{
	u64 got = img->cluster_size - in_cluster(img, goff);

	while (got < len && ask(whom, qcow2_cluster_index(img, goff + got)) == first)
		got += img->cluster_size;
	return min(got, len);
}

static bool ask_moved(void *img, u64 cluster)
{
	return moved_since_newest(img, cluster);
}

static bool ask_known(void *view, u64 cluster)
{
	u64 old;

	return known_since(view, cluster, &old);
}

void qcow2_marked_lookup(struct qcow2_image *img, u64 goff, u64 len, struct extent *ext)
{
	bool moved;

	len = to_slice_end(img, goff, len);
	rcu_read_lock();
	moved = moved_since_newest(img, qcow2_cluster_index(img, goff));
	len = same_run(img, goff, len, ask_moved, img, moved);
	rcu_read_unlock();
	qcow2_root_lookup(img, &img->root, goff, len, ext);
	ext->own = ext->own && moved;
}

void qcow2_view_lookup(struct qcow2_view *view, u64 goff, u64 len, struct extent *ext)
{
	struct qcow2_image *img = view->img;
	u64 cluster = qcow2_cluster_index(img, goff), old;
	bool known;

	len = to_slice_end(img, goff, len);
	ext->type = EXTENT_INVALID;
	ext->len = len;
	rcu_read_lock();
	/* It leaves the list only afterwards, and what follows it there stays until we unlock. */
	if (READ_ONCE(view->dropped)) {
		rcu_read_unlock();
		return;
	}
	known = known_since(view, cluster, &old);
	if (!known) {
		qcow2_root_lookup(img, &img->root, goff, len, ext);
		smp_rmb();	/* the live entry before @known: see struct view_chunk */
		known = known_since(view, cluster, &old);
		if (!known)
			ext->len = same_run(img, goff, ext->len, ask_known, view, false);
	}
	if (known)
		qcow2_entry_lookup(img, old, goff, len, ext);
	rcu_read_unlock();
	ext->own = false;
	if (qcow2_view_is_dropped(view))
		ext->type = EXTENT_INVALID;
}

static bool any_view(struct qcow2_image *img)
{
	struct qcow2_view *view;

	list_for_each_entry(view, &img->views.list, node)
		if (!view->dropped)
			return true;
	return false;
}

/* How much memory the maps take that some view needs. */
static u64 needed_bytes(struct qcow2_image *img)
{
	struct qcow2_view *view;
	bool needed = false;
	u64 bytes = 0;

	list_for_each_entry(view, &img->views.list, node) {
		needed = needed || !view->dropped;
		if (needed)
			bytes += view->bytes;
	}
	return bytes;
}

static bool add_chunk(struct qcow2_view *view, u64 cluster)
{
	/* Waits for no I/O and not for long: giving up costs a view, not a guest's write. */
	gfp_t gfp = GFP_NOIO | __GFP_NORETRY | __GFP_NOWARN;
	struct view_chunk *chunk = kmem_cache_zalloc(chunk_slab, gfp);

	if (!chunk)
		return false;
	if (xa_err(xa_store(&view->map, chunk_index(cluster), chunk, gfp))) {
		kmem_cache_free(chunk_slab, chunk);
		return false;
	}
	WRITE_ONCE(view->bytes, view->bytes + sizeof(*chunk));
	return true;
}

/* Some cluster of [first, last], which are of one chunk, is not known to be moved. */
static bool chunk_needed(struct qcow2_image *img, u64 first, u64 last)
{
	bool needed = false;

	rcu_read_lock();
	for (; first <= last && !needed; first++)
		needed = !moved_since_newest(img, first);
	rcu_read_unlock();
	return needed;
}

void qcow2_view_prepare(struct qcow2_image *img, u64 cluster, u32 nr)
{
	struct qcow2_views *views = &img->views;
	u64 end = cluster + nr;

	assert_writer(img);
	while (cluster < end && views->newest && any_view(img)) {
		u64 next = min(end, round_down(cluster, VIEW_CHUNK_CLUSTERS) +
				    VIEW_CHUNK_CLUSTERS);

		if (!chunk_of(last_view(img), cluster) && chunk_needed(img, cluster, next - 1)) {
			if (needed_bytes(img) + sizeof(struct view_chunk) > views->limit) {
				qcow2_view_give_up(img, "its map has reached view_limit_mib");
				continue;
			}
			if (!add_chunk(last_view(img), cluster)) {
				qcow2_view_give_up(img, "no memory for its map");
				continue;
			}
		}
		cluster = next;
	}
}

struct view_chunk *qcow2_view_pin(struct qcow2_image *img, u64 cluster)
{
	struct view_chunk *chunk;

	assert_writer(img);
	if (!img->views.newest)
		return NULL;
	chunk = chunk_of(last_view(img), cluster);
	if (chunk)
		chunk->pins++;
	return chunk;
}

struct view_chunk *qcow2_view_record(struct qcow2_image *img, u64 cluster, u64 old)
{
	struct view_chunk *chunk;
	bool moved;

	lockdep_assert_held(&img->meta_lock);
	if (likely(!img->views.newest))
		return NULL;
	assert_writer(img);
	/* Also where a chunk happens to be there: all of a range is freed then, with one extent. */
	if (!any_view(img))
		return NULL;
	rcu_read_lock();
	moved = moved_since_newest(img, cluster);
	rcu_read_unlock();
	if (moved)
		return NULL;
	chunk = chunk_of(last_view(img), cluster);
	if (WARN_ON_ONCE(!chunk)) {
		/* Not prepared.  Then no view may go on showing the cluster. */
		while (qcow2_view_give_up(img, "a change could not be recorded"))
			;
		return NULL;
	}
	WRITE_ONCE(chunk->old[cluster % VIEW_CHUNK_CLUSTERS], old);
	/* After @old: pairs with the acquire in known_since(). */
	smp_store_release(&chunk->known, chunk->known | chunk_bit(cluster));
	WRITE_ONCE(last_view(img)->clusters, last_view(img)->clusters + 1);
	smp_wmb();	/* @known before the live entry */
	return chunk;
}

void qcow2_view_recorded(struct view_chunk *chunk, u64 cluster)
{
	/* The release puts the live entry before @moved. */
	smp_store_release(&chunk->moved, chunk->moved | chunk_bit(cluster));
}

void qcow2_view_drop(struct qcow2_view *view)
{
	struct qcow2_views *views = &view->img->views;
	struct qcow2_view *v;

	assert_writer(view->img);
	WRITE_ONCE(view->dropped, true);
	smp_wmb();	/* before clusters become own or free: see qcow2_view_is_dropped() */
	/* What only this view needed may be in any map after it. */
	list_for_each_entry(v, &views->list, node)
		v->reaped = 0;
	views->stale = true;
	WRITE_ONCE(views->reaping, true);
	qcow2_worker_kick(&view->img->write_worker);
}

void qcow2_view_choose_newest(struct qcow2_image *img)
{
	struct qcow2_views *views = &img->views;
	struct qcow2_view *newest = NULL, *view;

	assert_writer(img);
	list_for_each_entry(view, &views->list, node)
		if (!view->dropped)
			newest = view;
	views->stale = false;
	if (newest == views->newest)
		return;
	if (READ_ONCE(views->held)) {
		/* Clusters become own, so writes to them no longer come to the writer. */
		WRITE_ONCE(views->hold_over, true);
		WRITE_ONCE(views->held, false);
	}
	WRITE_ONCE(views->newest, newest);
}

bool qcow2_view_give_up(struct qcow2_image *img, const char *why)
{
	struct qcow2_view *view;

	list_for_each_entry(view, &img->views.list, node) {
		if (view->dropped)
			continue;
		DMWARN("%s: view %s is dropped: %s", img->name, view->name, why);
		qcow2_view_drop(view);
		schedule_work(&img->event_work);
		return true;
	}
	return false;
}

bool qcow2_view_needs(const struct qcow2_view *view, u64 cluster)
{
	const struct qcow2_view *older = view;
	struct view_chunk *chunk;

	/* From the nearest older view that can be read on, nothing may know the cluster. */
	list_for_each_entry_continue_reverse(older, &view->img->views.list, node) {
		chunk = chunk_of(older, cluster);
		if (chunk && chunk->known & chunk_bit(cluster))
			return false;
		if (!older->dropped)
			return true;
	}
	return false;
}

static void free_chunk(struct rcu_head *rcu)
{
	kmem_cache_free(chunk_slab, container_of(rcu, struct view_chunk, rcu));
}

void qcow2_view_drop_chunk(struct qcow2_view *view, unsigned long index)
{
	struct view_chunk *chunk = xa_erase(&view->map, index);

	WRITE_ONCE(view->bytes, view->bytes - sizeof(*chunk));
	call_rcu(&chunk->rcu, free_chunk);
}

void qcow2_view_put(struct qcow2_view *view)
{
	if (refcount_dec_and_test(&view->users))
		kfree_rcu(view, rcu);
}

struct qcow2_view *qcow2_view_find(struct qcow2_image *img, const char *name)
{
	struct qcow2_view *view;

	rcu_read_lock();
	list_for_each_entry_rcu(view, &img->views.list, node) {
		if (READ_ONCE(view->ready) && !READ_ONCE(view->dropped) &&
		    !strcmp(view->name, name) && refcount_inc_not_zero(&view->users)) {
			rcu_read_unlock();
			return view;
		}
	}
	rcu_read_unlock();
	return NULL;
}

int qcow2_view_module_init(void)
{
	chunk_slab = KMEM_CACHE(view_chunk, 0);
	return chunk_slab ? 0 : -ENOMEM;
}

void qcow2_view_module_exit(void)
{
	rcu_barrier();	/* free_chunk() */
	kmem_cache_destroy(chunk_slab);
}
