/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * generation.h - what has been changed in memory and is not durable: table slices and freed
 * clusters, of the open generation and of the closed one that a commit writes.
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

int qcow2_generation_init(struct qcow2_image *img);
void qcow2_generation_exit(struct qcow2_image *img);

bool qcow2_is_clean(struct qcow2_image *img);
void qcow2_start_commit_timer(struct qcow2_image *img);

void qcow2_slice_prepare(struct slice *s);
bool qcow2_slice_try_prepare(struct slice *s);
void qcow2_slice_dirty(struct slice *s);

struct freed_extent *qcow2_freed_alloc(struct qcow2_image *img);
void qcow2_freed_add(struct qcow2_image *img, struct freed_extent **ext, u64 cluster);
void qcow2_freed_drop(struct qcow2_image *img, struct freed_extent *ext);
void qcow2_freed_done(struct qcow2_image *img, struct freed_extent *ext);
bool qcow2_frees_pending(struct qcow2_image *img);

bool qcow2_commit_pressure(struct qcow2_image *img);
bool qcow2_commit_discard_pressure(struct qcow2_image *img);
void qcow2_commit_relieve(struct qcow2_image *img);
void qcow2_reclaim_hurry(struct qcow2_image *img);
bool qcow2_reclaim_in_haste(struct qcow2_image *img);

bool qcow2_generation_hold(struct qcow2_image *img);
void qcow2_generation_release(struct qcow2_image *img);
void qcow2_generation_reftable_moved(struct qcow2_image *img, u32 clusters);
void qcow2_generation_close(struct qcow2_image *img);
void qcow2_generation_finish(struct qcow2_image *img);

int qcow2_generation_module_init(void);
void qcow2_generation_module_exit(void);

#endif /* DM_QCOW2_GENERATION_H */
