/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * direct.h - reads and writes of guest memory in place; see direct.c.
 */
#ifndef _VHOST_BLK_DIRECT_H
#define _VHOST_BLK_DIRECT_H

#include "blk.h"

/**
 * vhost_blk_is_direct - can the block layer use this memory in place?
 * @bdev: the device
 * @iter: the memory
 * @nr_pages: if so, how many pages it touches, segment by segment
 */
bool vhost_blk_is_direct(struct block_device *bdev, const struct iov_iter *iter,
			 unsigned int *nr_pages);

/**
 * vhost_blk_direct - begin a read or write of guest memory in place
 * @req: the request
 * @opf: the bios' operation and flags
 * @sector: first sector
 * @data: guest memory, not empty
 * @nr_pages: from vhost_blk_is_direct()
 *
 * Return: as the results in request.c
 */
int vhost_blk_direct(struct vhost_blk_req *req, blk_opf_t opf, sector_t sector,
		     struct iov_iter *data, unsigned int nr_pages);

#endif
