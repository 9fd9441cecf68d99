/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cache.h - the device's pages in the host's page cache; see cache.c.
 */
#ifndef _VHOST_BLK_CACHE_H
#define _VHOST_BLK_CACHE_H

#include "blk.h"

/**
 * vhost_blk_clean_range - prepare a range with cached pages for a request that bypasses them
 * @blk: the device
 * @write: the request writes, so that no cached page may stay
 * @sector: the range's start
 * @sectors: its length, not 0
 */
void vhost_blk_clean_range(struct vhost_blk *blk, bool write, u64 sector, u64 sectors);

/**
 * vhost_blk_after_write - drop what was read into the cache while a request was writing
 * @req: the request, whose bios have ended
 */
void vhost_blk_after_write(struct vhost_blk_req *req);

/**
 * vhost_blk_clean_cache - make device and page cache agree when a backend begins and ends
 * @blk: the device, with a backend and all rings stopped
 */
void vhost_blk_clean_cache(struct vhost_blk *blk);

/* Write back what the host has written to a range that is about to be read. */
static inline void vhost_blk_before_read(struct vhost_blk *blk, u64 sector, u64 sectors)
{
	if (unlikely(vhost_blk_has_pages(blk)))
		vhost_blk_clean_range(blk, false, sector, sectors);
}

/*
 * Cached data must not be written over what a request will write, nor be read afterwards. The
 * request remembers the range for vhost_blk_after_write().
 */
static inline void vhost_blk_before_write(struct vhost_blk_req *req, u64 sector, u32 sectors)
{
	req->sector = sector;
	req->sectors = sectors;
	if (unlikely(vhost_blk_has_pages(req->queue->blk)))
		vhost_blk_clean_range(req->queue->blk, true, sector, sectors);
}

#endif
