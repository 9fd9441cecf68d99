/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * bounce.h - reads and writes whose memory the block layer cannot use in place; see bounce.c.
 */
#ifndef _VHOST_BLK_BOUNCE_H
#define _VHOST_BLK_BOUNCE_H

#include "blk.h"

/**
 * vhost_blk_bounce - begin a read or write through bounce pages
 * @req: the request
 * @opf: the bios' operation and flags
 * @sector: first sector
 * @data: guest memory, not empty
 *
 * Return: as the results in request.c
 */
int vhost_blk_bounce(struct vhost_blk_req *req, blk_opf_t opf, sector_t sector,
		     struct iov_iter *data);

#endif
