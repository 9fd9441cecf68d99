/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The functions of vhost.ko that this module calls, for a build without the kernel's source tree.
 * Included by the generated vhost-private.h after the structures; gen-vhost-header.py has compared
 * the number of parameters of each with the target kernel's type information.
 */
#ifndef _VHOST_BLK_VHOST_CORE_H
#define _VHOST_BLK_VHOST_CORE_H

void vhost_work_init(struct vhost_work *work, vhost_work_fn_t fn);
void vhost_poll_queue(struct vhost_poll *poll);

void vhost_dev_init(struct vhost_dev *dev, struct vhost_virtqueue **vqs, int nvqs, int iov_limit,
		    int weight, int byte_weight, bool use_worker,
		    int (*msg_handler)(struct vhost_dev *dev, u32 asid,
				       struct vhost_iotlb_msg *msg));
long vhost_dev_set_owner(struct vhost_dev *dev);
long vhost_dev_check_owner(struct vhost_dev *dev);
struct vhost_iotlb *vhost_dev_reset_owner_prepare(void);
void vhost_dev_reset_owner(struct vhost_dev *dev, struct vhost_iotlb *umem);
void vhost_dev_stop(struct vhost_dev *dev);
void vhost_dev_flush(struct vhost_dev *dev);
void vhost_dev_cleanup(struct vhost_dev *dev);
long vhost_dev_ioctl(struct vhost_dev *dev, unsigned int ioctl, void __user *argp);
long vhost_vring_ioctl(struct vhost_dev *dev, unsigned int ioctl, void __user *argp);
long vhost_worker_ioctl(struct vhost_dev *dev, unsigned int ioctl, void __user *argp);

bool vhost_vq_access_ok(struct vhost_virtqueue *vq);
bool vhost_log_access_ok(struct vhost_dev *dev);
int vhost_vq_init_access(struct vhost_virtqueue *vq);
bool vhost_vq_work_queue(struct vhost_virtqueue *vq, struct vhost_work *work);
bool vhost_vq_has_work(struct vhost_virtqueue *vq);

int vhost_get_vq_desc(struct vhost_virtqueue *vq, struct iovec iov[], unsigned int iov_size,
		      unsigned int *out_num, unsigned int *in_num, struct vhost_log *log,
		      unsigned int *log_num);
#ifdef VHOST_BLK_HAVE_NHEADS
int vhost_add_used_n(struct vhost_virtqueue *vq, struct vring_used_elem *heads, u16 *nheads,
		     unsigned int count);
#else
int vhost_add_used_n(struct vhost_virtqueue *vq, struct vring_used_elem *heads,
		     unsigned int count);
#endif
void vhost_signal(struct vhost_dev *dev, struct vhost_virtqueue *vq);
void vhost_disable_notify(struct vhost_dev *dev, struct vhost_virtqueue *vq);
bool vhost_vq_avail_empty(struct vhost_dev *dev, struct vhost_virtqueue *vq);
bool vhost_enable_notify(struct vhost_dev *dev, struct vhost_virtqueue *vq);
int vhost_log_write(struct vhost_virtqueue *vq, struct vhost_log *log, unsigned int log_num,
		    u64 len, struct iovec *iov, int count);

#endif
