// SPDX-License-Identifier: GPL-2.0-only
/*
 * The page cache of the block device that is served. Requests bypass it, as direct I/O does, and so
 * have the same duties towards processes on the host that use the device through it: dirty pages
 * are written back before a request reads or overwrites their data, and cached pages of a range
 * that has been written are dropped before the guest gets its answer. So a buffered read that
 * begins after the answer finds what the guest has written.
 *
 * Nearly always there is nothing cached, which vhost_blk_has_pages() tells. Everything else here
 * may sleep; it is called with the ring's mutex held, or for the whole device with all rings
 * stopped.
 */
#include <linux/pagemap.h>

#include "blk.h"
#include "cache.h"

static void vhost_blk_write_back(struct vhost_blk *blk, u64 sector, u64 sectors)
{
	loff_t start = sector << SECTOR_SHIFT;

	/* The error belongs to the process that wrote the data; fsync() reports it there. */
	filemap_write_and_wait_range(blk->mapping, start, start + (sectors << SECTOR_SHIFT) - 1);
}

static void vhost_blk_invalidate(struct vhost_blk *blk, u64 sector, u64 sectors)
{
	u64 start = sector << SECTOR_SHIFT, last = start + (sectors << SECTOR_SHIFT) - 1;

	/* A page that was dirtied meanwhile stays: then the host has overwritten the data. */
	invalidate_inode_pages2_range(blk->mapping, start >> PAGE_SHIFT, last >> PAGE_SHIFT);
}

void vhost_blk_clean_range(struct vhost_blk *blk, bool write, u64 sector, u64 sectors)
{
	vhost_blk_write_back(blk, sector, sectors);
	if (write)
		vhost_blk_invalidate(blk, sector, sectors);
}

void vhost_blk_after_write(struct vhost_blk_req *req)
{
	vhost_blk_invalidate(req->queue->blk, req->sector, req->sectors);
}

void vhost_blk_clean_cache(struct vhost_blk *blk)
{
	if (!vhost_blk_has_pages(blk))
		return;
	filemap_write_and_wait(blk->mapping);
	if (blk->writable)
		invalidate_inode_pages2(blk->mapping);
}
