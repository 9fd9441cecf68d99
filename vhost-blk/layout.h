/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * layout.h - whether vhost.ko has the structures that this module was built for; see layout.c.
 */
#ifndef _VHOST_BLK_LAYOUT_H
#define _VHOST_BLK_LAYOUT_H

#include "blk.h"

/**
 * vhost_blk_check_layout - compare the structures built against with those of the loaded vhost.ko
 *
 * Return: 0, -ENOMEM, or -EINVAL after a message
 */
int vhost_blk_check_layout(void);

#endif
