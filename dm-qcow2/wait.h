/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * wait.h - where bios wait that cannot go on; see wait.c.
 */
#ifndef DM_QCOW2_WAIT_H
#define DM_QCOW2_WAIT_H

#include "writer.h"

/* Any context. */
void qcow2_hand_to_writer(struct qcow2_image *img, struct qcow2_io *io);
void qcow2_missed(struct qcow2_io *io);

/* A worker. */
void qcow2_miss_work(struct work_struct *work);
bool qcow2_load_missed(struct qcow2_io *io, struct qcow2_image *img, u64 goff,
		       struct storage_gather *gather);

/* The writer's work item. */
bool qcow2_wait_for_op(struct qcow2_writer *w, struct qcow2_io *io, u64 cluster);
void qcow2_stall_io(struct qcow2_writer *w, struct qcow2_io *io);
void qcow2_failed_alloc(struct qcow2_writer *w, struct qcow2_io *io, int error);
void qcow2_was_refused(struct qcow2_writer *w, struct qcow2_io *io);
void qcow2_stop_waiting(struct qcow2_writer *w, struct list_head *ios);
void qcow2_finish_io(struct qcow2_writer *w, struct qcow2_io *io);

#endif /* DM_QCOW2_WAIT_H */
