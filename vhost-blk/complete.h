/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * complete.h - from the end of bios to the guest's interrupt; see complete.c.
 */
#ifndef _VHOST_BLK_COMPLETE_H
#define _VHOST_BLK_COMPLETE_H

#include "blk.h"

/**
 * vhost_blk_reap - answer the requests whose bios have ended
 * @q: the ring
 *
 * Context: ring's mutex held, current->mm is the owner's.
 */
void vhost_blk_reap(struct vhost_blk_queue *q);

/**
 * vhost_blk_done_work - executor 1: the queue's worker
 * @work: queue->done_work
 */
void vhost_blk_done_work(struct vhost_work *work);

/**
 * vhost_blk_fallback_work - executor 2: when the worker is dead or dying
 * @work: queue->fallback_work
 *
 * The owner's memory stays until release has seen the queue drained and this work ended.
 */
void vhost_blk_fallback_work(struct work_struct *work);

#endif
