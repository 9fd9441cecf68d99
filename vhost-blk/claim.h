/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * claim.h - which queue of which open a used ring in a guest's memory belongs to; see claim.c.
 */
#ifndef _VHOST_BLK_CLAIM_H
#define _VHOST_BLK_CLAIM_H

#include "blk.h"

/**
 * vhost_blk_claim_prepare - find out which memory a ring's used ring lies in
 * @q: the ring, halted and drained, with addresses
 *
 * An existing claim is kept if it is for the same memory. Else the ring is entered as waiting until
 * vhost_blk_claim().
 *
 * Context: dev.mutex and the ring's mutex held, by the owner.
 *
 * Return: 0, -EFAULT when nothing is mapped there, -EINVAL when another queue of the same open has
 * the same used ring, -EINTR when the caller is being killed
 */
int vhost_blk_claim_prepare(struct vhost_blk_queue *q);

/**
 * vhost_blk_claim - claim the used ring
 * @q: the ring, after vhost_blk_claim_prepare()
 *
 * When another queue has it, the ring stays entered as waiting: its worker is called when it may
 * try again.
 *
 * Context: the ring's mutex held, or the ring halted and dev.mutex held.
 *
 * Return: whether the used ring is @q's
 */
bool vhost_blk_claim(struct vhost_blk_queue *q);

/**
 * vhost_blk_claim_wait - wait until no queue that is about to end has the used ring
 * @q: the ring, halted, after vhost_blk_claim() failed
 * @looks: how often to look again at a queue that ends only when another process lets it
 *
 * Context: dev.mutex held, and no claim by any queue that is halted.
 *
 * Return: 0, 1 when it gave up on such a queue, or -ERESTARTSYS when the caller is being killed
 */
int vhost_blk_claim_wait(struct vhost_blk_queue *q, unsigned int looks);

/**
 * vhost_blk_unclaim - give up a claim, or stop waiting for it
 * @q: the ring, halted and drained
 *
 * After this the ring's worker is not called for the claim any more. May be called without a claim.
 *
 * Context: dev.mutex held.
 */
void vhost_blk_unclaim(struct vhost_blk_queue *q);

#endif
