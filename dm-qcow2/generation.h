/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * generation.h - changes in memory that are not durable yet: table slices and freed clusters, of
 * the open generation and of the closed one that a commit writes.
 *
 * commit.c writes a closed generation and is the only other file that touches the structure.
 */
#ifndef DM_QCOW2_GENERATION_H
#define DM_QCOW2_GENERATION_H

#include "image.h"

/**
 * struct freed_extent - host clusters that lost a reference
 * @node:	On the open generation's list (meta_lock), the closed one's, or the reclaimer's.
 * @start:	First cluster (number, not bytes).
 * @nr:		How many.
 */
struct freed_extent {
	struct list_head node;
	u64 start;
	u64 nr;
};

/**
 * struct qcow2_generation - the open and the closed generation of a writable image
 */
struct qcow2_generation {
	/* The open one: image.meta_lock. */
	struct list_head dirty;		/* slices changed in it */
	struct list_head freed;		/* extents freed in it */
	u32 reftable_clusters;		/* length of the refcount table if that moved in it, or 0 */

	/* The closed one. */
	struct mutex lock;		/* a commit is running, or is held off */
	struct list_head closed;	/* slices, @lock */
	struct list_head closed_freed;	/* extents, @lock */
	u32 closed_reftable;		/* as @reftable_clusters, @lock */

	/* Freed extents until they are reclaimed. */
	atomic_t nr_freed;		/* extents on any list, or being reclaimed */
	bool haste;			/* see qcow2_reclaim_hurry(); no lock */
	bool reclaiming;		/* the reclaimer has extents; its own, read by the writer */
	mempool_t freed_pool;
};

/**
 * qcow2_generation_init - set up
 * @img: the image
 *
 * Return: 0 or -ENOMEM; qcow2_generation_exit() must be called either way.
 */
int qcow2_generation_init(struct qcow2_image *img);

/**
 * qcow2_generation_exit - free what qcow2_generation_init() made
 * @img: the image, stopped; dirty slices (after a failure) are dropped
 */
void qcow2_generation_exit(struct qcow2_image *img);

/**
 * qcow2_is_clean - is everything acknowledged durable, except for the storage's cache?
 * @img: a writable image
 */
bool qcow2_is_clean(struct qcow2_image *img);

/**
 * qcow2_start_commit_timer - commit a few seconds from now at the latest
 * @img: a writable image
 */
void qcow2_start_commit_timer(struct qcow2_image *img);

/**
 * qcow2_slice_prepare - make sure that a pinned slice can be changed
 * @s: the slice
 *
 * May wait for operations and commits to return memory, so the caller must hold no lock that they
 * need, and must not be the writer.
 */
void qcow2_slice_prepare(struct slice *s);

/**
 * qcow2_slice_try_prepare - make sure that a pinned slice can be changed, if memory allows
 * @s: the slice
 *
 * For the writer and for holders of alloc_lock, which must not wait: the memory may be with
 * operations that only the writer can finish.
 *
 * Return: whether the slice can be changed; if not, a retry after a commit or an operation may
 * work.
 */
bool qcow2_slice_try_prepare(struct slice *s);

/**
 * qcow2_slice_dirty - say that a slice is about to be changed
 * @s: the slice, pinned and prepared; the caller holds meta_lock
 */
void qcow2_slice_dirty(struct slice *s);

/**
 * qcow2_freed_alloc - get an extent to record freed clusters in
 * @img: a writable image
 *
 * Does not wait: extents come back when the I/O in an epoch has ended, and that I/O may need the
 * caller.
 *
 * Return: the extent; or NULL, after a commit has been started that will free some.
 */
struct freed_extent *qcow2_freed_alloc(struct qcow2_image *img);

/**
 * qcow2_freed_add - record that a cluster lost a reference in the open generation
 * @img: the image; the caller holds meta_lock
 * @ext: from qcow2_freed_alloc(); set to NULL if it was used
 * @cluster: number of the host cluster
 */
void qcow2_freed_add(struct qcow2_image *img, struct freed_extent **ext, u64 cluster);

/**
 * qcow2_freed_drop - return an extent that is not needed
 * @img: the image
 * @ext: the extent or NULL
 */
void qcow2_freed_drop(struct qcow2_image *img, struct freed_extent *ext);

/**
 * qcow2_freed_done - finish one of the extents that the reclaimer took
 * @img: a writable image
 * @ext: the extent; must not be used afterwards
 */
void qcow2_freed_done(struct qcow2_image *img, struct freed_extent *ext);

/**
 * qcow2_frees_pending - are clusters on their way to becoming allocatable?
 * @img: a writable image
 */
bool qcow2_frees_pending(struct qcow2_image *img);

/**
 * qcow2_commit_pressure - should writers wait for a commit before they change more?
 * @img: a writable image
 */
bool qcow2_commit_pressure(struct qcow2_image *img);

/**
 * qcow2_commit_discard_pressure - should discards wait before they free more?
 * @img: a writable image
 *
 * Discards wait earlier than writes do, so that a guest's fstrim does not hold up its writes.
 */
bool qcow2_commit_discard_pressure(struct qcow2_image *img);

/**
 * qcow2_commit_relieve - start a commit if a commit takes the pressure off
 * @img: a writable image; called by its writer
 *
 * Too many freed extents start none while clusters are being reclaimed: one more would not speed up
 * the reclaim, and its flushes cost what the reclaimer's pauses save.  The end of the reclaim wakes
 * the writer, which calls this again if it still has to wait.
 */
void qcow2_commit_relieve(struct qcow2_image *img);

/**
 * qcow2_reclaim_hurry - something waits for the clusters that are being reclaimed
 * @img: a writable image
 *
 * The reclaimer no longer pauses between discards, for the rest of the extents that it has taken.
 * Any context.  At the end of a reclaim everything that waits is tried again, and calls this again
 * if it still waits.
 */
void qcow2_reclaim_hurry(struct qcow2_image *img);

/**
 * qcow2_reclaim_in_haste - does anything wait for the clusters that are being reclaimed?
 * @img: a writable image
 *
 * A suspend waits from its beginning to its end, also for clusters that are freed meanwhile.
 */
bool qcow2_reclaim_in_haste(struct qcow2_image *img);

/**
 * qcow2_generation_hold - keep commits from starting
 * @img: a writable image
 *
 * For a change that cannot be made in one section of meta_lock, or that a closed generation must
 * not see.  Sleeps until a running commit has ended.
 *
 * Return: whether commits are held off; false when one is stuck, since its generation is still to
 * be written.
 */
bool qcow2_generation_hold(struct qcow2_image *img);

/**
 * qcow2_generation_release - let commits start again after qcow2_generation_hold()
 * @img: the image
 */
void qcow2_generation_release(struct qcow2_image *img);

/**
 * qcow2_generation_reftable_moved - the refcount table has moved in the open generation
 * @img: the image; the caller holds meta_lock and has dirtied all slices of the table
 * @clusters: its length now
 */
void qcow2_generation_reftable_moved(struct qcow2_image *img, u32 clusters);

/**
 * qcow2_generation_close - close the open generation: later changes belong to the next one
 * @img: a writable image; the caller holds generation.lock, and the last closed one is durable
 *
 * Sleeps for meta_lock.
 */
void qcow2_generation_close(struct qcow2_image *img);

/**
 * qcow2_generation_finish - end the closed generation: it is durable, or never will be
 * @img: a writable image; the caller holds generation.lock
 *
 * Its freed extents are left to the caller.  Sleeps for meta_lock.
 */
void qcow2_generation_finish(struct qcow2_image *img);

int qcow2_generation_module_init(void);
void qcow2_generation_module_exit(void);

#endif /* DM_QCOW2_GENERATION_H */
