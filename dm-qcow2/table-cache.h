/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * table-cache.h - the metadata tables of an image in memory, in slices of 4 KiB.
 *
 * L2 tables and refcount blocks are cached: their slices are read when first needed, found without
 * a lock, evicted when clean and unpinned.  The L1 table and the refcount table are held whole
 * (struct flat_table), as slices that are never evicted, so that all tables are changed and written
 * in the same way.  Entries stay big-endian, as on disk.
 *
 * Life of a slice: LOADING (in the xarray, with waiters) -> READY -> evicted and freed after an RCU
 * grace period; or FAILED (taken out of the xarray at once).
 *
 * Invariants:
 *  - A READY slice's entries are changed only under image.meta_lock, by a holder of a pin; they are
 *    read anywhere, with READ_ONCE, under RCU or a pin.
 *  - A dirty or writing slice holds a pin, so only clean slices are evicted, and a slice read from
 *    disk is never older than it was in memory.
 *  - @shadow exists from qcow2_slice_prepare() until the last pin goes, so that a commit that
 *    closes a generation always has a place for its copy.
 */
#ifndef DM_QCOW2_TABLE_CACHE_H
#define DM_QCOW2_TABLE_CACHE_H

#include <linux/list.h>
#include <linux/mempool.h>
#include <linux/shrinker.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

struct qcow2_image;

/* Allocate without waiting: for the writer, and under alloc_lock. */
#define NO_WAIT			(GFP_NOWAIT | __GFP_NOWARN)

#define SLICE_SHIFT		12
#define SLICE_SIZE		(1U << SLICE_SHIFT)
#define SLICE_ENTRY_SHIFT	9		/* 8-byte entries in a slice: 512 */
#define SLICE_ENTRIES		(1U << SLICE_ENTRY_SHIFT)

enum slice_kind { SLICE_L1, SLICE_L2, SLICE_REFTABLE, SLICE_REFBLOCK };
enum slice_state { SLICE_LOADING, SLICE_READY, SLICE_FAILED };

/**
 * struct slice_waiter - a waiter for a slice to be loaded
 * @node:	On the slice's list, under table_cache.lock.
 * @fn:		Called from a worker when the load has ended; @error is 0 or -errno.  After 0 the
 *		slice was loaded, but may have been evicted again.
 */
struct slice_waiter {
	struct list_head node;
	void (*fn)(struct slice_waiter *waiter, int error);
};

struct slice {
	/* Constant once published, but for a refcount table that moves (then: image.meta_lock). */
	struct qcow2_image *img;
	u64 pos;			/* byte position in the storage */
	u64 index;			/* where it is in the xarray of its kind, or in its table */
	u8 kind;
	void *data;

	u8 state;			/* written with release by the loader */
	bool referenced;		/* used since the clock last passed; racy by design */
	bool suspect;			/* has entries that need a look: check each one used */

	/* table_cache.lock */
	unsigned int pins;
	struct list_head lru;
	struct list_head waiters;
	void *shadow;			/* the copy that a commit writes; content: the commit's */

	/* image.meta_lock to change; read without it only as a hint */
	bool dirty;			/* changed since the open generation began */
	bool writing;			/* in the generation that is being committed */
	struct list_head dirty_node;	/* on generation.dirty while @dirty */
	struct list_head commit_node;	/* on generation.closed while @writing */

	union {
		struct work_struct load;	/* while LOADING */
		struct rcu_head rcu;		/* when freed */
	};
};

struct table_cache {
	struct qcow2_image *img;
	struct xarray l2;		/* by byte position in the storage / SLICE_SIZE */
	struct xarray refblocks;	/* by host cluster / what a slice covers */
	mempool_t slices;
	mempool_t buffers;		/* SLICE_SIZE each: data and shadows */
	struct workqueue_struct *wq;	/* loads; no work on it waits for another */
	struct workqueue_struct *lookup_wq;	/* bios; may wait for memory that loads give back */
	struct shrinker *shrinker;

	spinlock_t lock;		/* innermost; taken in process context only */
	struct list_head lru;		/* READY slices, @lock */
	unsigned int nr;		/* slices in the xarrays; @lock to change */
	unsigned int max;		/* bound on @nr; slices; @lock to change */
	atomic_t nr_dirty;		/* slices dirty or writing */
	atomic_t nr_evicted;		/* slices out of the xarrays, still with RCU */
	wait_queue_head_t evicted_wait;	/* for @nr_evicted to be less than its bound */
};

/* A table that is held in memory whole. */
struct flat_table {
	u64 pos;			/* byte position in the storage */
	u32 nr_entries;
	u32 nr_slices;
	struct slice **slices;
};

/**
 * qcow2_cache_init - set up the cache of an image
 * @cache: the cache, zeroed
 * @img: its image
 * @max_kib: bound, in KiB of tables
 *
 * Return: 0 or -ENOMEM; qcow2_cache_exit() must be called either way.
 */
int qcow2_cache_init(struct table_cache *cache, struct qcow2_image *img, unsigned int max_kib);

/**
 * qcow2_cache_exit - free a cache and all its slices
 * @cache: the cache; nothing is loading, pinned or dirty
 */
void qcow2_cache_exit(struct table_cache *cache);

/**
 * qcow2_cache_drop - evict everything that is clean and not in use
 * @cache: the cache
 */
void qcow2_cache_drop(struct table_cache *cache);

/**
 * qcow2_cache_resize - change the bound of a cache
 * @cache: the cache
 * @max_kib: the new bound, in KiB of tables; raised to a small minimum
 */
void qcow2_cache_resize(struct table_cache *cache, unsigned int max_kib);

/**
 * qcow2_slice_get - get a slice, reading it if need be
 * @cache: the cache
 * @kind: SLICE_L2 or SLICE_REFBLOCK
 * @index: which one
 *
 * Sleeps for the read, and for memory.  With the reserve in use, memory comes back when operations
 * and commits end.  So neither the writer, which ends operations, nor a holder of alloc_lock, for
 * which the writer waits, may call this for a slice of the top image: see qcow2_slice_try_get().
 *
 * Return: the slice, pinned; -ENOENT when the refcount block does not exist; or another error.
 */
struct slice *qcow2_slice_get(struct table_cache *cache, enum slice_kind kind, u64 index);

/**
 * qcow2_slice_try_get - get a slice, reading it if need be and if memory allows
 * @cache: the cache
 * @kind: SLICE_L2 or SLICE_REFBLOCK
 * @index: which one
 *
 * For the writer and for holders of alloc_lock.  Sleeps for the read, and until evicted slices have
 * passed RCU: neither depends on other code of ours.
 *
 * Return: the slice, pinned; -ENOMEM when trying again after a commit or an operation may work;
 * -ENOENT when the refcount block does not exist; or another error.
 */
struct slice *qcow2_slice_try_get(struct table_cache *cache, enum slice_kind kind, u64 index);

/**
 * qcow2_slice_get_async - get a slice, or be called when it is loaded
 * @cache: the cache
 * @kind: SLICE_L2 or SLICE_REFBLOCK
 * @index: which one
 * @waiter: called when the load has ended, if the slice was not there
 * @wait: sleep for memory (NOIO) if need be; not for the writer
 *
 * Does not sleep for the read.
 *
 * Return: the slice, pinned; NULL when @waiter will be called; or -ENOMEM, unless @wait.
 */
struct slice *qcow2_slice_get_async(struct table_cache *cache, enum slice_kind kind, u64 index,
				    struct slice_waiter *waiter, bool wait);

/**
 * qcow2_cache_add_zeroed - add the first slice of a table that has just been made
 * @cache: the cache
 * @kind: SLICE_L2 or SLICE_REFBLOCK
 * @index: which one; nobody can be asking for it yet
 * @pos: its byte position, where zeroes have been written
 *
 * Does not wait for memory: the caller holds alloc_lock.
 *
 * Return: the slice, READY, pinned and full of zeroes; or an error.
 */
struct slice *qcow2_cache_add_zeroed(struct table_cache *cache, enum slice_kind kind, u64 index,
				     u64 pos);

/**
 * qcow2_slice_pin - take another pin on a slice that is pinned already
 * @s: the slice
 */
void qcow2_slice_pin(struct slice *s);

/**
 * qcow2_slice_put - drop a pin
 * @s: the slice; must not be used afterwards
 */
void qcow2_slice_put(struct slice *s);

/**
 * qcow2_slice_discard - drop the only pin of a clean slice, and the slice with it
 * @s: from qcow2_cache_add_zeroed(), and not needed after all
 */
void qcow2_slice_discard(struct slice *s);

/**
 * qcow2_slice_has_place - can a slice be written where it belongs?
 * @s: the slice
 *
 * A slice has no place when the block device ends before the slice does.  Code that is about to
 * change a slice that was on disk when the image was opened asks first: a commit that could not
 * write the slice would fail the image.
 */
bool qcow2_slice_has_place(const struct slice *s);

/**
 * qcow2_flat_table_load - read a whole table into memory
 * @t: where to put it
 * @img: the image
 * @kind: SLICE_L1 or SLICE_REFTABLE
 * @pos: its byte position
 * @nr_entries: its length; bytes behind it in the last slice belong to the same cluster, and are
 *	written back as they were read
 *
 * Return: 0 or -errno; on error qcow2_flat_table_free() cleans up.
 */
int qcow2_flat_table_load(struct flat_table *t, struct qcow2_image *img, enum slice_kind kind,
			  u64 pos, u32 nr_entries);

/**
 * qcow2_flat_table_grow - make a table longer, in memory
 * @t: the table
 * @img: the image; the caller holds alloc_lock, and not meta_lock
 * @kind: its kind
 * @nr_entries: its new length; the new entries are zero
 *
 * Return: 0 or -ENOMEM, with the table unchanged.
 */
int qcow2_flat_table_grow(struct flat_table *t, struct qcow2_image *img, enum slice_kind kind,
			  u32 nr_entries);

/**
 * qcow2_flat_table_free - forget a table
 * @t: the table, loaded, partly loaded or not at all
 * @img: the image
 */
void qcow2_flat_table_free(struct flat_table *t, struct qcow2_image *img);

/**
 * slice_find - find a slice that is in memory
 * @slices: the xarray of its kind
 * @index: its index
 *
 * Caller holds rcu_read_lock(), and uses the slice only inside it.
 *
 * Return: the slice, or NULL when it is not there or still loading.
 */
static inline struct slice *slice_find(struct xarray *slices, u64 index)
{
	struct slice *s = xa_load(slices, index);

	/* Pairs with the loader's release: READY comes after the content. */
	if (!s || smp_load_acquire(&s->state) != SLICE_READY)
		return NULL;
	if (!READ_ONCE(s->referenced))
		WRITE_ONCE(s->referenced, true);
	return s;
}

int qcow2_cache_module_init(void);
void qcow2_cache_module_exit(void);

#endif /* DM_QCOW2_TABLE_CACHE_H */
