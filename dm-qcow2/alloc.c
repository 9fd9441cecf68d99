// SPDX-License-Identifier: GPL-2.0-only
/*
 * alloc.c - finding, taking and giving back host clusters.
 *
 * Clusters are taken in runs of up to 8 MiB, in host order, and handed out one by one: clusters
 * that the guest writes one after the other lie one after the other, and the refcounts of a whole
 * run are written by one commit.  A crash leaks the rest of a run and nothing else; a clean suspend
 * gives the rest back.
 *
 * A cluster is free when its refcount in memory is 0.  A refcount drops to 0 only through
 * qcow2_alloc_reclaim(), which the reclaimer calls when the loss of the last reference is durable
 * and no I/O can still be using the cluster, and qcow2_alloc_return_run() for clusters that nothing
 * has referred to.
 *
 * Takes image.alloc_lock, and image.meta_lock inside it to change refcounts.
 */
#include <linux/delay.h>
#include <linux/device-mapper.h>
#include <linux/maple_tree.h>
#include <linux/mm.h>
#include <linux/rcupdate_wait.h>
#include <linux/slab.h>

#include "alloc.h"
#include "entries.h"
#include "generation.h"
#include "image.h"
#include "state.h"
#include "storage.h"
#include "table-cache.h"

#define ALLOC_SPARES	257	/* one for each operation of the writer, and one for a table */
#define RUN_BYTES	(8U << 20)
#define MAX_REFUSED	64		/* clusters refused, before alloc_lock is dropped */
#define MAX_PAUSE_US	10000LL		/* after a discard, for the guest's I/O */

/*
 * Slices of refcounts that an image may have at open, whose counters take 64 MiB: with refcounts of
 * 16 bits enough for 256 TiB in clusters of 4 KiB, or 4 PiB in those of 64 KiB.
 */
#define MAX_SLICES	(32ULL << 20)

/*
 * struct qcow2_alloc - the allocator of a writable image
 *
 * All of it is under image.alloc_lock; status reads @nr_used and @end without the lock, for show.
 * @passdown is constant while a table is live.
 */
struct qcow2_alloc {
	u64 run_next;		/* clusters reserved ahead, their refcounts already 1: */
	u64 run_end;		/* [run_next, run_end) */
	bool run_zeroed;	/* and they read as zeroes */
	u64 *spare;		/* more clusters with refcount 1 that nothing uses */
	unsigned int nr_spare;
	u64 cursor;		/* where to look for free clusters next */
	unsigned long full_until;	/* jiffies; 0 unless a long round has failed */
	u64 end;		/* the first cluster after the last one in use */
	u64 nr_used;		/* clusters whose refcount is not 0 */
	u16 *used;		/* the same, for each 4 KiB slice of refcounts */
	u64 nr_slices;		/* length of @used */
	bool passdown;		/* give freed clusters back to the host */
};

static u32 per_slice(const struct qcow2_image *img)
{
	return 1U << img->rb_slice_bits;
}

static u64 limit_clusters(struct qcow2_image *img)
{
	/* Entries can name no more, whatever the storage can hold. */
	return min(img->st.ops->limit(&img->st), ENTRY_MAX_POS) >> img->cluster_bits;
}

/* Make @used reach the slice @si. */
static int grow_used(struct qcow2_alloc *a, u64 si)
{
	u64 nr = max(si + 1, a->nr_slices + a->nr_slices / 2);
	u16 *used;

	if (si < a->nr_slices)
		return 0;
	used = kvcalloc(nr, sizeof(*used), GFP_NOIO);
	if (!used)
		return -ENOMEM;
	if (a->nr_slices)
		memcpy(used, a->used, a->nr_slices * sizeof(*used));
	kvfree(a->used);
	a->used = used;
	a->nr_slices = nr;
	return 0;
}

static void account(struct qcow2_alloc *a, u64 si, u64 first, u32 nr)
{
	a->used[si] += nr;
	WRITE_ONCE(a->nr_used, a->nr_used + nr);
	WRITE_ONCE(a->end, max(a->end, first + nr));
}

/*
 * Clusters are about to be taken and zeroed.  All metadata was counted when the image was opened,
 * and clusters freed since were compared with it.  This is the last check before anything is
 * touched.
 */
static int check_unused(struct qcow2_image *img, u64 first, u64 nr)
{
	unsigned long at = first;

	if (!mt_find(&img->metadata, &at, first + nr - 1))
		return 0;
	qcow2_mark_corrupt(img, "metadata is not counted in the refcounts",
			   (u64)at << img->cluster_bits);
	return -EIO;
}

/*
 * Make room for clusters on the host.  A lack of room, for now or for good, is -ENOSPC, whatever
 * the filesystem calls it: the writer then tries again, but not at once and not forever.
 */
static int host_prepare(struct qcow2_image *img, u64 first, u32 nr, bool *zeroed)
{
	int r = img->st.ops->prepare(&img->st, first << img->cluster_bits,
				     (u64)nr << img->cluster_bits, zeroed);

	return r == -EAGAIN ? -ENOSPC : r;
}

/*
 * The refcount table is full: double it (at least).  The new table lies in a region that its new
 * entries cover, right behind the new block that describes that region.  All changes enter one
 * generation, which links the new table last.
 */
static int move_reftable(struct qcow2_image *img, u64 rb)
{
	struct qcow2_alloc *a = img->alloc;
	u32 per_cluster = img->cluster_size / sizeof(__be64);
	u32 old_entries = img->reftable.nr_entries;
	u64 most = QCOW2_MAX_REFTABLE_BYTES / sizeof(__be64);
	u64 entries = max(round_up(rb + 1, per_cluster), min(2ULL * old_entries, most));
	u32 clusters = entries / per_cluster, nr_slices = DIV_ROUND_UP(entries, SLICE_ENTRIES);
	u64 base = rb << img->refblock_bits, pos = base << img->cluster_bits, old_pos;
	u64 si = base >> img->rb_slice_bits;
	struct freed_extent *freed;
	struct slice *s;
	bool zeroed;
	u32 i;
	int r;

	lockdep_assert_held(&img->alloc_lock);
	if (entries > most || clusters + 1 > per_slice(img) ||
	    base + clusters + 1 > limit_clusters(img))
		return -ENOSPC;
	r = check_unused(img, base, clusters + 1);
	if (!r)
		r = grow_used(a, si);
	if (r)
		return r;
	r = host_prepare(img, base, clusters + 1, &zeroed);
	if (!r && !zeroed)
		r = qcow2_storage_zero_sync(&img->st, pos, img->cluster_size);
	if (r)
		return r;
	freed = qcow2_freed_alloc(img);
	if (!freed)
		return -ENOMEM;
	r = qcow2_flat_table_grow(&img->reftable, img, SLICE_REFTABLE, entries);
	if (r)
		goto drop;
	s = qcow2_cache_add_zeroed(&img->cache, SLICE_REFBLOCK, si, pos);
	if (IS_ERR(s)) {
		r = PTR_ERR(s);
		goto shrink;
	}
	if (!qcow2_slice_try_prepare(s))
		r = -ENOMEM;
	/* A failed attempt may have left more slices than the new table has. */
	for (i = 0; !r && i < nr_slices; i++)
		if (!qcow2_slice_try_prepare(img->reftable.slices[i]))
			r = -ENOMEM;
	/* Two ranges, since the next move removes the table and not the block. */
	if (!r)
		r = qcow2_add_metadata(img, pos, img->cluster_size);
	if (!r) {
		r = qcow2_add_metadata(img, pos + img->cluster_size,
				       (u64)clusters << img->cluster_bits);
		if (r)
			qcow2_remove_metadata(img, pos);
	}
	if (r) {
		qcow2_slice_discard(s);
		goto shrink;
	}

	/* A running commit may be writing the table where it is now. */
	if (!qcow2_generation_hold(img)) {
		qcow2_remove_metadata(img, pos);
		qcow2_remove_metadata(img, pos + img->cluster_size);
		qcow2_slice_discard(s);
		r = -ENOMEM;
		goto shrink;
	}
	old_pos = img->reftable.pos;
	qcow2_remove_metadata(img, old_pos);
	mutex_lock(&img->meta_lock);
	qcow2_slice_dirty(s);
	for (i = 0; i <= clusters; i++)
		qcow2_refcount_set(img, s, i, 1);
	img->reftable.pos = pos + img->cluster_size;
	for (i = 0; i < nr_slices; i++) {
		img->reftable.slices[i]->pos = img->reftable.pos + (u64)i * SLICE_SIZE;
		qcow2_slice_dirty(img->reftable.slices[i]);
	}
	qcow2_set_entry(flat_slice(&img->reftable, rb), rb,
			qcow2_reftable_entry_make(pos));
	qcow2_generation_reftable_moved(img, clusters);
	for (i = 0; i < DIV_ROUND_UP(old_entries, per_cluster); i++)
		qcow2_freed_add(img, &freed, (old_pos >> img->cluster_bits) + i);
	mutex_unlock(&img->meta_lock);
	qcow2_generation_release(img);
	account(a, si, base, clusters + 1);
	qcow2_slice_put(s);
shrink:
	/* The longer table has no place on disk unless all went well. */
	if (r)
		img->reftable.nr_entries = old_entries;
drop:
	qcow2_freed_drop(img, freed);
	return r;
}

/* The region of refcount block @rb has none yet: make its first cluster the block. */
static int add_refblock(struct qcow2_image *img, u64 rb)
{
	struct qcow2_alloc *a = img->alloc;
	u64 base = rb << img->refblock_bits, pos = base << img->cluster_bits;
	u64 si = base >> img->rb_slice_bits;
	struct slice *s, *top;
	bool zeroed;
	int r;

	lockdep_assert_held(&img->alloc_lock);
	if (rb >= img->reftable.nr_entries)
		return move_reftable(img, rb);
	if (!qcow2_slice_has_place(flat_slice(&img->reftable, rb)))
		return -ENOSPC;
	r = check_unused(img, base, 1);
	if (!r)
		r = grow_used(a, si);
	if (r)
		return r;
	r = host_prepare(img, base, 1, &zeroed);
	if (!r && !zeroed)
		r = qcow2_storage_zero_sync(&img->st, pos, img->cluster_size);
	if (!r)
		r = qcow2_add_metadata(img, pos, img->cluster_size);
	if (r)
		return r;
	s = qcow2_cache_add_zeroed(&img->cache, SLICE_REFBLOCK, si, pos);
	if (IS_ERR(s)) {
		qcow2_remove_metadata(img, pos);
		return PTR_ERR(s);
	}
	top = flat_slice(&img->reftable, rb);
	if (!qcow2_slice_try_prepare(s) || !qcow2_slice_try_prepare(top)) {
		qcow2_slice_discard(s);
		qcow2_remove_metadata(img, pos);
		return -ENOMEM;
	}

	/* One section, so that one generation has both: the block counts itself. */
	mutex_lock(&img->meta_lock);
	qcow2_slice_dirty(s);
	qcow2_slice_dirty(top);
	qcow2_refcount_set(img, s, 0, 1);
	qcow2_set_entry(top, rb, qcow2_reftable_entry_make(pos));
	mutex_unlock(&img->meta_lock);
	qcow2_slice_put(s);
	account(a, si, base, 1);
	return 0;
}

/* Find up to @want free clusters of slice @s from @first on; 0 when there are none. */
static u32 find_free(struct qcow2_image *img, struct slice *s, u64 *first, u32 want)
{
	u32 mask = per_slice(img) - 1, i = *first & mask, n = 0;

	while (i <= mask && qcow2_refcount_get(img, s, i))
		i++;
	*first = (*first & ~(u64)mask) + i;
	while (n < want && i + n <= mask && !qcow2_refcount_get(img, s, i + n))
		n++;
	return n;
}

static int prepare_run(struct qcow2_image *img, u64 first, u32 *nr, bool *zeroed)
{
	int r;

	/* A shorter run is still a run: use up the last space of a host that is nearly full. */
	for (;;) {
		r = host_prepare(img, first, *nr, zeroed);
		if (r != -ENOSPC || *nr == 1)
			return r;
		*nr = max(*nr / 8, 1U);
	}
}

static int take_run(struct qcow2_image *img, struct slice *s, u64 first, u32 nr)
{
	struct qcow2_alloc *a = img->alloc;
	u32 mask = per_slice(img) - 1, i;
	bool zeroed;
	int r;

	lockdep_assert_held(&img->alloc_lock);
	r = check_unused(img, first, nr);
	if (r)
		return r;
	if (!qcow2_slice_has_place(s))
		return -ENOSPC;
	if (!qcow2_slice_try_prepare(s))
		return -ENOMEM;
	r = prepare_run(img, first, &nr, &zeroed);
	if (r)
		return r;
	mutex_lock(&img->meta_lock);
	qcow2_slice_dirty(s);
	for (i = 0; i < nr; i++)
		qcow2_refcount_set(img, s, (first + i) & mask, 1);
	mutex_unlock(&img->meta_lock);
	account(a, first >> img->rb_slice_bits, first, nr);
	a->run_next = first;
	a->run_end = first + nr;
	a->run_zeroed = zeroed;
	a->cursor = first + nr;
	return 0;
}

/*
 * Where the search goes on after the host has refused the cluster @c.  Behind all clusters in use
 * and behind the end of the storage all places are alike: none there is worth a try.
 */
static u64 behind_refused(struct qcow2_image *img, u64 c, u64 limit)
{
	u64 size = img->st.ops->size(&img->st) >> img->cluster_bits;

	return c >= max(img->alloc->end, size) ? limit : c + 1;
}

/*
 * Find free clusters that the host provides, and make them the run.  A full host may refuse some
 * and provide others, such as those that it never took back.  So the search ends only after a full
 * round.  alloc_lock is dropped in between: nobody else takes clusters, and clusters freed
 * meanwhile wake the writer anyway.
 */
static int refill(struct qcow2_image *img)
{
	struct qcow2_alloc *a = img->alloc;
	u32 want = max(RUN_BYTES >> img->cluster_bits, 1U), refused = 0;
	u64 start = a->cursor, c = start, limit = limit_clusters(img);
	unsigned long began = jiffies;
	bool wrapped = false;

	lockdep_assert_held(&img->alloc_lock);
	if (a->full_until && time_before(jiffies, a->full_until))
		return -ENOSPC;
	a->full_until = 0;
	for (;;) {
		u64 si = c >> img->rb_slice_bits, rb = c >> img->refblock_bits;
		struct slice *s;
		u32 n;
		int r;

		if (c >= limit) {
			if (wrapped)
				break;
			wrapped = true;
			c = 0;
			continue;
		}
		if (wrapped && c > start)
			break;
		if (si < a->nr_slices && a->used[si] == per_slice(img)) {
			c = (si + 1) << img->rb_slice_bits;
			continue;
		}
		if (rb >= img->reftable.nr_entries || !flat_entry(&img->reftable, rb)) {
			r = add_refblock(img, rb);
			/* Without a block nothing in its region can be used. */
			if (r && r != -ENOSPC)
				return r;
			if (r) {
				c = max(behind_refused(img, rb << img->refblock_bits, limit),
					(rb + 1) << img->refblock_bits);
				mutex_unlock(&img->alloc_lock);
				cond_resched();
				mutex_lock(&img->alloc_lock);
			}
			continue;
		}
		r = grow_used(a, si);
		if (r)
			return r;
		s = qcow2_slice_try_get(&img->cache, SLICE_REFBLOCK, si);
		if (IS_ERR(s))
			return PTR_ERR(s);
		n = find_free(img, s, &c, min_t(u64, want, limit - c));
		r = 0;
		if (n && c < limit)
			r = take_run(img, s, c, refused ? 1 : min_t(u64, n, limit - c));
		qcow2_slice_put(s);
		if (r && r != -ENOSPC)
			return r;
		if (r) {
			c = behind_refused(img, c, limit);
			if (!(++refused % MAX_REFUSED)) {
				mutex_unlock(&img->alloc_lock);
				cond_resched();
				mutex_lock(&img->alloc_lock);
			}
		} else if (n && c < limit) {
			return 0;
		}
	}
	/* Each bio that needs a cluster searches again: limit the share of time for searches. */
	if (time_after(jiffies, began + 1))
		a->full_until = (jiffies + 4 * (jiffies - began)) ?: 1;
	return -ENOSPC;
}

int qcow2_alloc_cluster(struct qcow2_image *img, u64 *host, bool *zeroed)
{
	struct qcow2_alloc *a = img->alloc;
	int r = 0;

	mutex_lock(&img->alloc_lock);
	if (a->nr_spare) {
		*host = a->spare[--a->nr_spare];
		*zeroed = false;
		mutex_unlock(&img->alloc_lock);
		return 0;
	}
	if (a->run_next == a->run_end)
		r = refill(img);
	if (!r) {
		*host = a->run_next++ << img->cluster_bits;
		*zeroed = a->run_zeroed;
	}
	mutex_unlock(&img->alloc_lock);
	return r;
}

void qcow2_alloc_put_back(struct qcow2_image *img, u64 host)
{
	struct qcow2_alloc *a = img->alloc;

	mutex_lock(&img->alloc_lock);
	if (!WARN_ON_ONCE(a->nr_spare == ALLOC_SPARES))
		a->spare[a->nr_spare++] = host;
	mutex_unlock(&img->alloc_lock);
}

/*
 * Take alloc_lock, and get a slice of refcounts under it.  Does not wait for memory with the lock
 * held: the memory may be with operations that the writer has to end, and the writer needs the
 * lock.
 */
static struct slice *lock_refs(struct qcow2_image *img, u64 si)
{
	struct slice *s;

	mutex_lock(&img->alloc_lock);
	while ((s = qcow2_slice_try_get(&img->cache, SLICE_REFBLOCK, si)) == ERR_PTR(-ENOMEM)) {
		mutex_unlock(&img->alloc_lock);
		qcow2_kick_commit(img);
		schedule_timeout_uninterruptible(1);
		mutex_lock(&img->alloc_lock);
	}
	return s;
}

/*
 * Give a range back to the host.  A filesystem makes all direct I/O on a file wait while it punches
 * a hole, and a device may serve nothing else while it discards.  So the guest's I/O gets as much
 * time as the discard took, before the next one.
 */
static void give_back(struct qcow2_image *img, u64 pos, u64 len)
{
	ktime_t start = ktime_get();
	s64 pause;

	/* Failing to give space back costs space, not data. */
	if (img->st.ops->discard(&img->st, pos, len) == -EOPNOTSUPP) {
		WRITE_ONCE(img->st.discard_unsupported, true);
		return;
	}
	pause = min(ktime_us_delta(ktime_get(), start), MAX_PAUSE_US);
	if (pause > 0 && !qcow2_reclaim_in_haste(img))
		usleep_range(pause, pause + pause / 8 + 1);
}

/*
 * Give back to the host those clusters of [first, first + nr), with refcounts in @s, that will have
 * no reference left when they lose one.  Their refcounts are still 1, so nobody else touches them
 * although alloc_lock is not held.
 */
static void give_back_last(struct qcow2_image *img, struct slice *s, u64 first, u32 nr)
{
	u32 mask = per_slice(img) - 1, i = 0, start;

	while (i < nr && !READ_ONCE(img->st.discard_unsupported)) {
		mutex_lock(&img->alloc_lock);
		while (i < nr && qcow2_refcount_get(img, s, (first + i) & mask) != 1)
			i++;
		for (start = i; i < nr && qcow2_refcount_get(img, s, (first + i) & mask) == 1; i++)
			;
		mutex_unlock(&img->alloc_lock);
		if (i > start)
			give_back(img, (first + start) << img->cluster_bits,
				  (u64)(i - start) << img->cluster_bits);
	}
}

/*
 * Drop one reference of each of [first, first + nr), which lie in one slice.  A cluster whose
 * refcount drops to 0 is given back to the host before it can be allocated again.
 */
static int drop_refs(struct qcow2_image *img, u64 first, u32 nr)
{
	struct qcow2_alloc *a = img->alloc;
	u64 si = first >> img->rb_slice_bits;
	u32 mask = per_slice(img) - 1, i;
	unsigned long at = first;
	struct slice *s;

	if (mt_find(&img->metadata, &at, first + nr - 1)) {
		qcow2_mark_corrupt(img, "metadata was used as data",
				   (u64)at << img->cluster_bits);
		return -EIO;
	}
	s = lock_refs(img, si);
	if (!IS_ERR(s) && !qcow2_slice_has_place(s)) {
		/* All zeroes: what is counted there was read from somewhere. */
		qcow2_slice_put(s);
		s = ERR_PTR(-ENOENT);
	}
	if (IS_ERR(s)) {
		mutex_unlock(&img->alloc_lock);
		if (PTR_ERR(s) == -ENOENT)
			qcow2_mark_corrupt(img, "cluster in use has no refcount",
					   first << img->cluster_bits);
		return PTR_ERR(s);
	}
	mutex_unlock(&img->alloc_lock);

	if (a->passdown)
		give_back_last(img, s, first, nr);

	qcow2_slice_prepare(s);
	mutex_lock(&img->alloc_lock);
	mutex_lock(&img->meta_lock);
	qcow2_slice_dirty(s);
	for (i = 0; i < nr; i++) {
		u64 n = qcow2_refcount_get(img, s, (first + i) & mask);

		/* A block that counted nothing when the image was opened has no counter. */
		if (!n || si >= a->nr_slices || !a->used[si]) {
			qcow2_mark_corrupt(img, "cluster in use has refcount 0",
					   (first + i) << img->cluster_bits);
			continue;
		}
		qcow2_refcount_set(img, s, (first + i) & mask, n - 1);
		if (n == 1) {
			a->used[si]--;
			WRITE_ONCE(a->nr_used, a->nr_used - 1);
			a->cursor = min(a->cursor, first + i);
			a->full_until = 0;
		}
	}
	mutex_unlock(&img->meta_lock);
	qcow2_slice_put(s);
	mutex_unlock(&img->alloc_lock);
	return 0;
}

int qcow2_alloc_reclaim(struct qcow2_image *img, struct freed_extent *ext)
{
	u64 c = ext->start, end = ext->start + ext->nr;
	int ret = 0;

	while (c < end) {
		u64 next = min(end, ((c >> img->rb_slice_bits) + 1) << img->rb_slice_bits);
		int r = drop_refs(img, c, next - c);

		ret = ret ?: r;
		c = next;
	}
	return ret;
}

int qcow2_alloc_return_run(struct qcow2_image *img)
{
	struct qcow2_alloc *a = img->alloc;
	struct freed_extent ext;
	int r, ret = 0;

	do {
		mutex_lock(&img->alloc_lock);
		if (a->nr_spare) {
			ext.start = a->spare[--a->nr_spare] >> img->cluster_bits;
			ext.nr = 1;
		} else {
			ext.start = a->run_next;
			ext.nr = a->run_end - a->run_next;
			a->run_next = a->run_end;
		}
		mutex_unlock(&img->alloc_lock);
		r = ext.nr ? qcow2_alloc_reclaim(img, &ext) : 0;
		ret = ret ?: r;
	} while (ext.nr);
	return ret;
}

u64 qcow2_alloc_used(const struct qcow2_image *img)
{
	return READ_ONCE(img->alloc->nr_used);
}

u64 qcow2_alloc_end(const struct qcow2_image *img)
{
	return READ_ONCE(img->alloc->end) << img->cluster_bits;
}

void qcow2_alloc_set_passdown(struct qcow2_image *img, bool passdown)
{
	img->alloc->passdown = passdown;
}

static u32 count_used(const struct qcow2_image *img, struct slice *s, u32 *last)
{
	u32 i, n = 0;

	if (!memchr_inv(s->data, 0, SLICE_SIZE))
		return 0;
	for (i = 0; i < per_slice(img); i++) {
		if (qcow2_refcount_get(img, s, i)) {
			*last = i;
			n++;
		}
	}
	return n;
}

/* Note how many clusters a slice of refcounts counts.  Slices that count none take no memory. */
static int count_slice(struct qcow2_alloc *a, u64 si, u32 nr, char **error)
{
	if (si >= MAX_SLICES) {
		*error = "Refcount blocks for more clusters than supported";
		return -EFBIG;
	}
	if (grow_used(a, si)) {
		*error = "Out of memory setting up the allocator";
		return -ENOMEM;
	}
	a->used[si] = nr;
	a->nr_used += nr;
	return 0;
}

/* How many of the clusters with metadata does a slice of refcounts count? */
static u64 count_metadata(struct qcow2_image *img, const struct slice *s, u64 si)
{
	unsigned long first = si << img->rb_slice_bits, last = first + per_slice(img) - 1, c;
	struct ma_state mas;
	void *entry;
	u64 n = 0;

	mas_init(&mas, &img->metadata, first);
	rcu_read_lock();
	mas_for_each(&mas, entry, last)
		for (c = max(mas.index, first); c <= min(mas.last, last); c++)
			n += qcow2_refcount_get(img, s, c - first) != 0;
	rcu_read_unlock();
	return n;
}

/*
 * Would the allocator take metadata for free clusters?  Then allocation must not begin: the first
 * write would corrupt an image whose refcounts are missing.
 */
static int check_counted(struct qcow2_image *img, u64 counted, char **error)
{
	MA_STATE(mas, &img->metadata, 0, 0);
	u64 all = 0, ranges = 0;
	void *entry;

	rcu_read_lock();
	mas_for_each(&mas, entry, ULONG_MAX) {
		all += mas.last - mas.index + 1;
		if (!(++ranges % 4096)) {
			mas_pause(&mas);
			cond_resched_rcu();
		}
	}
	rcu_read_unlock();
	if (all == counted)
		return 0;
	DMERR("%s: %llu of %llu clusters of metadata have no refcount", img->name, all - counted,
	      all);
	*error = "Refcounts are missing: repair the image (qcow2attach check --repair)";
	return -EINVAL;
}

int qcow2_alloc_init(struct qcow2_image *img, const bool *abandoned, char **error)
{
	u32 shift = img->refblock_bits - img->rb_slice_bits, i, last;
	u32 chunk = min(img->cluster_size, 64U << 10), order = get_order(chunk);
	struct slice scan = { .img = img };
	void *buf;
	struct qcow2_alloc *a;
	u32 rb, nr_rb = 0, n;
	u64 metadata = 0;
	int r = 0;

	a = kzalloc(sizeof(*a), GFP_KERNEL);
	if (!a) {
		*error = "Out of memory setting up the allocator";
		return -ENOMEM;
	}
	img->alloc = a;
	a->passdown = true;
	if (img->can_write) {
		a->spare = kcalloc(ALLOC_SPARES, sizeof(*a->spare), GFP_KERNEL);
		if (!a->spare) {
			*error = "Out of memory setting up the allocator";
			return -ENOMEM;
		}
	}
	for (rb = 0; rb < img->reftable.nr_entries; rb++)
		if (flat_entry(&img->reftable, rb))
			nr_rb = rb + 1;
	buf = (void *)__get_free_pages(GFP_KERNEL | __GFP_COMP, order);
	if (!buf) {
		*error = "Out of memory setting up the allocator";
		r = -ENOMEM;
	}
	for (rb = 0; !r && rb < nr_rb; rb++) {
		u64 pos = qcow2_table_pos(flat_entry(&img->reftable, rb));

		for (i = 0; pos && !r && i < 1U << shift; i++) {
			u64 si = ((u64)rb << shift) + i;

			if (!(i * SLICE_SIZE % chunk))
				r = qcow2_storage_read_table(&img->st, pos + i * SLICE_SIZE, buf,
							     chunk);
			if (r) {
				*error = "Cannot read the refcount blocks";
				break;
			}
			cond_resched();
			scan.data = buf + i * SLICE_SIZE % chunk;
			n = count_used(img, &scan, &last);
			if (n)
				r = count_slice(a, si, n, error);
			if (n && !r) {
				a->end = (si << img->rb_slice_bits) + last + 1;
				metadata += count_metadata(img, &scan, si);
			}
			/* A sparse image can name more blocks than anybody would wait for. */
			if (!r && READ_ONCE(*abandoned)) {
				*error = "Interrupted reading the refcount blocks";
				r = -EINTR;
			}
		}
	}
	free_pages((unsigned long)buf, order);
	return !r && img->can_write ? check_counted(img, metadata, error) : r;
}

void qcow2_alloc_exit(struct qcow2_image *img)
{
	if (!img->alloc)
		return;
	kfree(img->alloc->spare);
	kvfree(img->alloc->used);
	kfree(img->alloc);
	img->alloc = NULL;
}
