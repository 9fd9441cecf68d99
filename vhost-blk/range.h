/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * range.h - DISCARD and WRITE_ZEROES; see range.c.
 */
#ifndef _VHOST_BLK_RANGE_H
#define _VHOST_BLK_RANGE_H

#include "blk.h"

/**
 * vhost_blk_range - begin a DISCARD or WRITE_ZEROES request
 * @req: the request
 * @discard: DISCARD, else WRITE_ZEROES
 * @data: the list of ranges in guest memory
 *
 * Return: as the results in request.c
 */
int vhost_blk_range(struct vhost_blk_req *req, bool discard, struct iov_iter *data);

#endif
