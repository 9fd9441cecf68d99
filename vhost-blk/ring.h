/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ring.h - one queue: its life, and the worker's pass over it; see ring.c.
 */
#ifndef _VHOST_BLK_RING_H
#define _VHOST_BLK_RING_H

#include "blk.h"

/**
 * vhost_blk_queue_init - prepare a queue for vhost_dev_init()
 * @q: the queue, zeroed
 * @blk: its device
 * @index: its number
 */
void vhost_blk_queue_init(struct vhost_blk_queue *q, struct vhost_blk *blk, unsigned int index);

/**
 * vhost_blk_ring_start - (re)start a ring where its used index stands
 * @q: the ring
 *
 * Everything before the used index has been answered and nothing after it: VHOST_SET_VRING_BASE has
 * nothing to add. The worker looks at the ring at once, since the kick for its chains may have gone
 * to a former owner. While that owner has requests in flight, the ring only waits: see claim.c.
 *
 * Context: dev.mutex held.
 *
 * Return: 0, -EINVAL without addresses or when another ring of the device has the same used ring,
 * -EFAULT when these are not in the owner's memory, -E2BIG when the ring is longer than
 * max_ring_size, -ENOMEM, or a fatal signal's error. After an error the ring is as paused:
 * vhost_blk_settle() must follow.
 */
int vhost_blk_ring_start(struct vhost_blk_queue *q);

/**
 * vhost_blk_ring_halt - take no further requests from a ring
 * @q: the ring
 *
 * Waits for a pass that is under way, not for its I/O. Cannot fail, for it is part of release.
 */
void vhost_blk_ring_halt(struct vhost_blk_queue *q);

/**
 * vhost_blk_ring_pause - halt a ring and wait for its requests in flight
 * @q: the ring
 *
 * The used ring stays claimed, for vhost_blk_ring_start() to go on with.
 *
 * Context: dev.mutex held.
 *
 * Return: 0, or -EINTR/-ERESTARTSYS when the caller is being killed; release waits then.
 */
int vhost_blk_ring_pause(struct vhost_blk_queue *q);

/**
 * vhost_blk_ring_leave - the end of a stop for a ring that has been waiting for another owner
 * @q: the ring, paused; no other paused ring of the device has a claim
 * @looks: see vhost_blk_claim_wait()
 *
 * Waits for the requests of an owner that is about to end: when this returns, no request of the
 * ring is under way, unless another owner runs it.
 *
 * Context: dev.mutex held.
 *
 * Return: as vhost_blk_claim_wait().
 */
int vhost_blk_ring_leave(struct vhost_blk_queue *q, unsigned int looks);

/**
 * vhost_blk_ring_lock - take the ring's mutex, which a pass over the ring holds
 * @q: the ring
 *
 * Return: 0, or -EINTR when the caller is being killed
 */
int vhost_blk_ring_lock(struct vhost_blk_queue *q);

/**
 * vhost_blk_ring_free - free what a start has allocated
 * @q: the queue, stopped and drained
 */
void vhost_blk_ring_free(struct vhost_blk_queue *q);

/**
 * vhost_blk_ring_has_addresses - did the owner set up this ring?
 * @q: the ring
 */
bool vhost_blk_ring_has_addresses(struct vhost_blk_queue *q);

/**
 * vhost_blk_ring_running - is the ring started and not broken?
 * @q: the ring
 */
bool vhost_blk_ring_running(struct vhost_blk_queue *q);

/**
 * vhost_blk_any_running - has any ring of a device been started and not stopped?
 * @blk: the device
 *
 * Context: dev.mutex held.
 */
bool vhost_blk_any_running(struct vhost_blk *blk);

#endif
