/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * wait.h - where bios that cannot go on wait; see wait.c.
 */
#ifndef DM_QCOW2_WAIT_H
#define DM_QCOW2_WAIT_H

#include "lookup.h"
#include "writer.h"

/**
 * qcow2_hand_to_writer - hand a bio to the writer
 * @img: a writable image
 * @io: a write that needs an allocation, cut to one cluster; or a DISCARD or WRITE_ZEROES
 *
 * Any context.
 */
void qcow2_hand_to_writer(struct qcow2_image *img, struct qcow2_io *io);

/**
 * qcow2_missed - let a worker park a bio whose slice is not in memory
 * @io: the bio; it starts over afterwards
 *
 * Any context.
 */
void qcow2_missed(struct qcow2_io *io);

/**
 * qcow2_miss_work - park the bios that missed
 * @work: qcow2_dev.miss_work
 *
 * Looks up again: the slice may be in memory by now, and the bio does not say which one it missed.
 */
void qcow2_miss_work(struct work_struct *work);

/**
 * qcow2_load_missed - get a bio the L2 slice that it missed
 * @io: the bio, in no epoch
 * @ext: EXTENT_MISS: which slice
 * @gather: the writer's: writes that must not wait along with it; NULL if the caller is not the
 *	writer
 *
 * The bio is parked until the slice is loaded.  But the slices that other bios wait for may evict
 * it again before the bio gets to it.  With more of them than the cache has room for, each bio
 * could evict the next one's slice forever.  So the slice of a bio that comes back too often is
 * read synchronously.
 *
 * The writer does not wait for memory, which may be with operations that the writer has to end:
 * without memory the bio is stalled.
 *
 * Context: a worker.
 *
 * Return: true if the slice has been read and the caller must look again; false if the caller no
 * longer owns the bio.
 */
bool qcow2_load_missed(struct qcow2_io *io, const struct extent *ext,
		       struct storage_gather *gather);

/**
 * qcow2_wait_for_op - wait if an operation on the same guest cluster is under way
 * @w: the writer
 * @io: the bio
 * @cluster: the guest cluster's number
 *
 * Return: whether the bio waits; the writer then processes the bio again afterwards.
 */
bool qcow2_wait_for_op(struct qcow2_writer *w, struct qcow2_io *io, u64 cluster);

/**
 * qcow2_stall_io - let a bio wait until an operation, a commit or a reclaim has ended
 * @w: the writer
 * @io: the bio; not owned by the caller afterwards
 *
 * Context: the writer's work item.
 */
void qcow2_stall_io(struct qcow2_writer *w, struct qcow2_io *io);

/**
 * qcow2_failed_alloc - let a bio wait, or end the bio, for want of a cluster or of memory
 * @w: the writer
 * @io: the bio; not owned by the caller afterwards
 * @error: -ENOMEM; -ENOSPC; -EDQUOT when the storage has refused a write; or a final error
 *
 * Context: the writer's work item.
 */
void qcow2_failed_alloc(struct qcow2_writer *w, struct qcow2_io *io, int error);

/**
 * qcow2_was_refused - the storage has refused to write what a bio needs, for want of space
 * @w: the writer
 * @io: the bio; not owned by the caller afterwards
 *
 * Context: the writer's work item.
 */
void qcow2_was_refused(struct qcow2_writer *w, struct qcow2_io *io);

/**
 * qcow2_stop_waiting - end all waiting for space, except for clusters that are on their way
 * @w: the writer
 * @ios: the bios that waited are moved here, to get those clusters or to be ended by
 *	qcow2_failed_alloc()
 *
 * Context: the writer's work item.
 */
void qcow2_stop_waiting(struct qcow2_writer *w, struct list_head *ios);

/**
 * qcow2_finish_io - the writer is done with a bio
 * @w: the writer
 * @io: the bio; a FUA bio still waits for a commit
 *
 * Context: the writer's work item.
 */
void qcow2_finish_io(struct qcow2_writer *w, struct qcow2_io *io);

#endif /* DM_QCOW2_WAIT_H */
