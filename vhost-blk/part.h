/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * part.h - a round of bios of a request: built, submitted, ended; see part.c.
 */
#ifndef _VHOST_BLK_PART_H
#define _VHOST_BLK_PART_H

#include "blk.h"

/* The worker is dead or dying: executor 2 of complete.c answers what has ended. Any context. */
static inline void vhost_blk_use_fallback(struct vhost_blk_queue *q)
{
	queue_work(q->blk->wq, &q->fallback_work);
}

/**
 * vhost_blk_add_part - append an empty bio to a request
 * @req: the request
 * @nr_vecs: vectors the bio should have room for
 * @opf: operation and flags
 * @sector: first sector
 *
 * A first part of at most VHOST_BLK_INLINE_VECS needs no memory; a larger one is made that small
 * when memory is unavailable, so that a request goes on in smaller rounds instead of failing.
 *
 * Return: the part, or NULL without memory; never NULL for a first part
 */
struct vhost_blk_part *vhost_blk_add_part(struct vhost_blk_req *req, unsigned int nr_vecs,
					  blk_opf_t opf, sector_t sector);

/**
 * vhost_blk_submit - submit all parts of a request
 * @req: the request
 *
 * The end of the last part puts the request on queue->done.
 *
 * Return: -EIOCBQUEUED
 */
int vhost_blk_submit(struct vhost_blk_req *req);

/**
 * vhost_blk_submit_flush - make what has completed durable
 * @req: the request, without parts
 *
 * submit_bio() takes a flush only as an empty write.
 *
 * Return: -EIOCBQUEUED
 */
int vhost_blk_submit_flush(struct vhost_blk_req *req);

/**
 * vhost_blk_release_parts - free the bios of a round that has ended or was not submitted
 * @req: the request
 */
void vhost_blk_release_parts(struct vhost_blk_req *req);

/**
 * vhost_blk_drop_part - take back the part that was added last
 * @req: the request, not submitted
 * @part: the part
 */
void vhost_blk_drop_part(struct vhost_blk_req *req, struct vhost_blk_part *part);

/**
 * vhost_blk_in_capacity - is a range of sectors on the disk and made of whole logical blocks?
 * @blk: the device
 * @sector: its start
 * @sectors: its length
 *
 * The capacity is read each time, since it may grow while the guest runs.
 */
bool vhost_blk_in_capacity(struct vhost_blk *blk, u64 sector, u64 sectors);

/**
 * vhost_blk_end_io - a bio of a request has ended
 * @bio: the bio
 *
 * Context: any.
 */
void vhost_blk_end_io(struct bio *bio);

/**
 * vhost_blk_end_steps - free what a request of several rounds keeps
 * @req: the request
 */
void vhost_blk_end_steps(struct vhost_blk_req *req);

/**
 * vhost_blk_forget - make a request free for its head's next use
 * @req: the request, without bios under way
 */
void vhost_blk_forget(struct vhost_blk_req *req);

#endif
