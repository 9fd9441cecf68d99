/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * wait.h - where bios wait that cannot go on; see wait.c.
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
 * qcow2_missed - a slice that a bio needs is not in memory: a worker has it wait for that
 * @io: the bio; it starts over afterwards
 *
 * Any context.
 */
void qcow2_missed(struct qcow2_io *io);

/**
 * qcow2_miss_work - park the bios that missed
 * @work: qcow2_dev.miss_work
 *
 * Looks up again, since the slice may be there by now, and which one is missing is not remembered.
 */
void qcow2_miss_work(struct work_struct *work);

/**
 * qcow2_load_missed - see to it that a bio gets the L2 slice that it missed
 * @io: the bio, in no epoch
 * @ext: EXTENT_MISS: which slice
 * @gather: the writer's: writes that are not to wait along with it; NULL if the caller is another
 *
 * The bio is put aside until the slice is loaded.  But what was loaded may be evicted again before
 * the bio gets to it, by the slices that others wait for; and with more of them than the cache has
 * room for, each could push out the next one's without end.  So a bio that comes back too often has
 * its slice read here and now.
 *
 * The writer does not wait for memory, which may be with operations that it has to end: without
 * memory the bio is stalled.
 *
 * Context: a worker.
 *
 * Return: true if the slice has been read and the caller is to look again; false if the bio is not
 * the caller's any more.
 */
bool qcow2_load_missed(struct qcow2_io *io, const struct extent *ext,
		       struct storage_gather *gather);

/**
 * qcow2_wait_for_op - wait if an operation on the same guest cluster is under way
 * @w: the writer
 * @io: the bio
 * @cluster: the guest cluster's number
 *
 * Return: whether the bio waits; it then has its turn with the writer again.
 */
bool qcow2_wait_for_op(struct qcow2_writer *w, struct qcow2_io *io, u64 cluster);

/**
 * qcow2_stall_io - a bio has its turn again when an operation, a commit or a reclaim has ended
 * @w: the writer
 * @io: the bio; not owned by the caller afterwards
 *
 * Context: the writer's work item.
 */
void qcow2_stall_io(struct qcow2_writer *w, struct qcow2_io *io);

/**
 * qcow2_failed_alloc - there was no cluster, or no memory, for a bio: it waits, or is ended
 * @w: the writer
 * @io: the bio; not owned by the caller afterwards
 * @error: -ENOMEM; -ENOSPC; -EDQUOT when the storage has refused a write; or what is final
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
 * qcow2_stop_waiting - nobody waits for space any longer, but for clusters that are on their way
 * @w: the writer
 * @ios: the bios that waited are moved here, to get those or to be ended by qcow2_failed_alloc()
 *
 * Context: the writer's work item.
 */
void qcow2_stop_waiting(struct qcow2_writer *w, struct list_head *ios);

/**
 * qcow2_finish_io - a bio is done as far as the writer is concerned
 * @w: the writer
 * @io: the bio; a FUA bio still waits for a commit
 *
 * Context: the writer's work item.
 */
void qcow2_finish_io(struct qcow2_writer *w, struct qcow2_io *io);

#endif /* DM_QCOW2_WAIT_H */
