// SPDX-License-Identifier: GPL-2.0-only
/*
 * Is the loaded vhost.ko the one whose structures this module was built against?
 *
 * The module shares struct vhost_dev and struct vhost_virtqueue with vhost.ko, whose header is not
 * part of any kernel's headers; symbol versions do not cover it. So before anything is registered,
 * vhost.ko initialises a device in memory that is filled with a pattern: every field that vhost.ko
 * sets must hold its known value, and every byte past the end must still hold the pattern.
 */
#define pr_fmt(fmt) "vhost-blk: " fmt

#include <linux/slab.h>

#include "blk.h"
#include "layout.h"

#define VHOST_BLK_PATTERN	0x5a
#define VHOST_BLK_GUARD		512

struct vhost_blk_specimen {
	struct vhost_dev dev;
	u8 dev_guard[VHOST_BLK_GUARD];
	struct vhost_virtqueue vq;
	u8 vq_guard[VHOST_BLK_GUARD];
	struct vhost_virtqueue *vqs;	/* the array of one that is handed over */
};

static void vhost_blk_specimen_kick(struct vhost_work *work)
{
}

static int vhost_blk_specimen_message(struct vhost_dev *dev, u32 asid, struct vhost_iotlb_msg *msg)
{
	return -EOPNOTSUPP;
}

static bool vhost_blk_untouched(const void *start, size_t len)
{
	return !memchr_inv(start, VHOST_BLK_PATTERN, len);
}

static bool vhost_blk_dev_fits(struct vhost_blk_specimen *s)
{
	struct vhost_dev *dev = &s->dev;

	return dev->vqs == &s->vqs && dev->nvqs == 1 && !dev->mm && !dev->log_ctx && !dev->umem &&
	       !dev->iotlb && dev->iov_limit == 11 && dev->weight == 22 &&
	       dev->byte_weight == 33 && dev->use_worker &&
	       dev->msg_handler == vhost_blk_specimen_message && !mutex_is_locked(&dev->mutex) &&
	       list_empty(&dev->read_list) && list_empty(&dev->pending_list) &&
	       xa_empty(&dev->worker_xa) &&
	       vhost_blk_untouched(s->dev_guard, sizeof(s->dev_guard));
}

static bool vhost_blk_vq_fits(struct vhost_blk_specimen *s)
{
	struct vhost_virtqueue *vq = &s->vq;

	return vq->dev == &s->dev && !rcu_access_pointer(vq->worker) &&
	       !mutex_is_locked(&vq->mutex) && vq->num == 1 && !vq->desc && !vq->avail &&
	       !vq->used && !vq->kick && !vq->call_ctx.ctx && !vq->error_ctx && !vq->log_ctx &&
	       vq->poll.dev == &s->dev && vq->poll.vq == vq &&
	       vq->poll.work.fn == vhost_blk_specimen_kick && !vq->last_avail_idx &&
	       !vq->avail_idx && !vq->last_used_idx && !vq->used_flags && !vq->signalled_used &&
	       !vq->signalled_used_valid && !vq->log_used && vq->log_addr == -1ULL &&
	       vhost_blk_untouched(vq->iov, sizeof(vq->iov)) && !vq->indirect && !vq->heads &&
	       !vq->umem && !vq->iotlb && !vq->private_data && !vq->acked_features &&
	       !vq->acked_backend_features && !vq->log_base && !vq->log &&
	       vhost_blk_untouched(vq->log_iov, sizeof(vq->log_iov)) && !vq->busyloop_timeout &&
	       vhost_blk_untouched(s->vq_guard, sizeof(s->vq_guard));
}

int vhost_blk_check_layout(void)
{
	struct vhost_blk_specimen *s = kvmalloc(sizeof(*s), GFP_KERNEL);
	int ret = 0;

	if (!s)
		return -ENOMEM;
	memset(s, VHOST_BLK_PATTERN, sizeof(*s));
	s->vqs = &s->vq;
	s->vq.handle_kick = vhost_blk_specimen_kick;
	vhost_dev_init(&s->dev, &s->vqs, 1, 11, 22, 33, true, vhost_blk_specimen_message);

	if (!vhost_blk_dev_fits(s) || !vhost_blk_vq_fits(s)) {
		pr_err("built for another vhost.ko: struct %s differs; build it for this kernel\n",
		       vhost_blk_dev_fits(s) ? "vhost_virtqueue" : "vhost_dev");
		ret = -EINVAL;
	}
	kvfree(s);
	return ret;
}
