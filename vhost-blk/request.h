/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * request.h - from a descriptor chain to bios; see request.c.
 */
#ifndef _VHOST_BLK_REQUEST_H
#define _VHOST_BLK_REQUEST_H

#include "blk.h"

/**
 * vhost_blk_request - begin the request of the chain that was just read from the ring
 * @q: the ring; vq.iov holds the chain
 * @head: index of the first descriptor
 * @out: entries of vq.iov that the device reads
 * @in: entries that it writes, which follow
 * @nr_log: entries of vq.log, 0 without dirty logging
 *
 * Called by the queue's worker only, since the worker looks at queue->done afterwards.
 *
 * Return: 0 when the request will be answered. -EINTR when the owner is being killed and that made
 * its memory inaccessible, -ENOMEM when there is no memory for the request: nothing was done and
 * the chain must be given back. -EINVAL when the head is in flight already.
 */
int vhost_blk_request(struct vhost_blk_queue *q, u16 head, unsigned int out, unsigned int in,
		      unsigned int nr_log);

#endif
