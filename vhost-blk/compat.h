/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Everything in which the supported kernels differ, and the structures of vhost.ko.
 *
 * vhost-private.h is made at build time by gen-vhost-header.py, for the kernel that the module is
 * built for: from that kernel's type information, or from its source tree. It also defines
 * VHOST_BLK_HAVE_NHEADS where vhost_add_used_n() takes a count of descriptors per entry.
 */
#ifndef _VHOST_BLK_COMPAT_H
#define _VHOST_BLK_COMPAT_H

#include <linux/cgroup.h>
#include <linux/virtio_byteorder.h>

#include "vhost-private.h"

/* Without VIRTIO_F_IN_ORDER the count of descriptors means nothing. */
static inline int vhost_blk_add_used(struct vhost_virtqueue *vq, struct vring_used_elem *used,
				     unsigned int nr)
{
#ifdef VHOST_BLK_HAVE_NHEADS
	return vhost_add_used_n(vq, used, NULL, nr);
#else
	return vhost_add_used_n(vq, used, nr);
#endif
}

/*
 * Give back the chain that was read last. What vhost_discard_vq_desc() does
 * beyond this, in kernels where it takes more arguments, is for VIRTIO_F_IN_ORDER.
 */
static inline void vhost_blk_unread(struct vhost_virtqueue *vq)
{
	vq->last_avail_idx--;
}

static inline bool vhost_blk_has_feature(struct vhost_virtqueue *vq, int bit)
{
	return vq->acked_features & BIT_ULL(bit);
}

/* Without VIRTIO_F_VERSION_1 the byte order is the host's, unless the owner can say which it is. */
static inline bool vhost_blk_is_le(struct vhost_virtqueue *vq)
{
	return (!IS_ENABLED(CONFIG_VHOST_CROSS_ENDIAN_LEGACY) &&
		virtio_legacy_is_little_endian()) || vq->is_le;
}

static inline u16 vhost_blk_to_cpu16(struct vhost_virtqueue *vq, __virtio16 val)
{
	return __virtio16_to_cpu(vhost_blk_is_le(vq), val);
}

static inline u32 vhost_blk_to_cpu32(struct vhost_virtqueue *vq, __virtio32 val)
{
	return __virtio32_to_cpu(vhost_blk_is_le(vq), val);
}

static inline u64 vhost_blk_to_cpu64(struct vhost_virtqueue *vq, __virtio64 val)
{
	return __virtio64_to_cpu(vhost_blk_is_le(vq), val);
}

static inline __virtio32 vhost_blk_from_cpu32(struct vhost_virtqueue *vq, u32 val)
{
	return __cpu_to_virtio32(vhost_blk_is_le(vq), val);
}

/* The cgroup that pays for the calling task's I/O, with a reference; NULL without such cgroups. */
static inline struct cgroup_subsys_state *vhost_blk_get_css(void)
{
#ifdef CONFIG_BLK_CGROUP
	return task_get_css(current, io_cgrp_id);
#else
	return NULL;
#endif
}

static inline void vhost_blk_put_css(struct cgroup_subsys_state *css)
{
#ifdef CONFIG_BLK_CGROUP
	if (css)
		css_put(css);
#endif
}

#endif
