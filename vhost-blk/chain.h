/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * chain.h - from the available ring to a descriptor chain; see chain.c.
 */
#ifndef _VHOST_BLK_CHAIN_H
#define _VHOST_BLK_CHAIN_H

#include "blk.h"

/**
 * vhost_blk_break - stop reading a malformed ring
 * @q: the ring
 * @why: what is wrong with it
 *
 * The guest caused this, so only its own ring is affected. The error eventfd tells the owner.
 *
 * Context: ring's mutex held.
 */
void vhost_blk_break(struct vhost_blk_queue *q, const char *why);

/**
 * vhost_blk_next_chain - read the next chain that the guest has made available
 * @q: the ring, whose notifications are disabled
 * @out: set to the entries of vq.iov that the device reads
 * @in: set to the entries that it writes, which follow
 * @nr_log: set to the entries of vq.log, 0 without dirty logging
 *
 * Return: the head, vq.num when there is none, or an error of vhost_get_vq_desc()
 */
int vhost_blk_next_chain(struct vhost_blk_queue *q, unsigned int *out, unsigned int *in,
			 unsigned int *nr_log);

/**
 * vhost_blk_index_jumps - is the available index one that no driver can have set?
 * @vq: the ring, of which nothing is left to be read
 *
 * An index that cannot be read counts as such, unless the owner is being killed.
 */
bool vhost_blk_index_jumps(struct vhost_virtqueue *vq);

#endif
