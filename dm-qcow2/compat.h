/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * compat.h - the only place that knows which kernel it is built for.
 */
#ifndef DM_QCOW2_COMPAT_H
#define DM_QCOW2_COMPAT_H

#include <linux/blkdev.h>
#include <linux/version.h>
#include <linux/workqueue.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 12, 0)
#error "dm-qcow2 needs Linux 6.12 or newer"
#endif

/* Cluster numbers are unsigned long, as keys of a maple tree; lookups read 64-bit entries whole. */
#ifndef CONFIG_64BIT
#error "dm-qcow2 needs a 64-bit kernel"
#endif

/* Since 6.18 a workqueue names its kind; before, the default was per-CPU. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 18, 0)
#define WQ_PERCPU 0
#endif

/* Since 7.3 the offset of an iterator in its segment has this name. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(7, 3, 0)
#define bi_offset bi_bvec_done
#endif

/* Since 6.17 a second limit says whether zeroing can unmap; both must then be the same. */
static inline void compat_set_write_zeroes(struct queue_limits *limits, unsigned int sectors)
{
	limits->max_write_zeroes_sectors = sectors;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 17, 0)
	limits->max_hw_wzeroes_unmap_sectors = sectors;
#endif
}

/* Limits that an administrator has set by sysfs stay, whatever the device can do now. */
static inline void compat_keep_user_limits(struct queue_limits *limits,
					   const struct queue_limits *from)
{
	limits->max_user_sectors = from->max_user_sectors;
	limits->max_user_discard_sectors = from->max_user_discard_sectors;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 17, 0)
	limits->max_user_wzeroes_unmap_sectors = from->max_user_wzeroes_unmap_sectors;
#endif
}

#endif /* DM_QCOW2_COMPAT_H */
