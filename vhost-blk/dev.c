// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/vhost-blk: open, ioctls, release, and the life of the block device behind the rings.
 *
 * Takes vhost_dev.mutex for every ioctl. The core serves only the process that has made itself the
 * owner; our own ioctls do the same.
 */
#define pr_fmt(fmt) "vhost-blk: " fmt

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "blk.h"
#include "cache.h"
#include "claim.h"
#include "layout.h"
#include "ring.h"

#define VHOST_BLK_DEFAULT_QUEUES	16
#define VHOST_BLK_LIMIT_QUEUES		256

#define VHOST_BLK_FEATURES (BIT_ULL(VIRTIO_F_VERSION_1) |		\
			    BIT_ULL(VIRTIO_RING_F_INDIRECT_DESC) |	\
			    BIT_ULL(VIRTIO_RING_F_EVENT_IDX) |		\
			    BIT_ULL(VHOST_F_LOG_ALL) |			\
			    BIT_ULL(VIRTIO_BLK_F_MQ) |			\
			    BIT_ULL(VIRTIO_BLK_F_RO) |			\
			    BIT_ULL(VIRTIO_BLK_F_FLUSH) |		\
			    BIT_ULL(VIRTIO_BLK_F_DISCARD) |		\
			    BIT_ULL(VIRTIO_BLK_F_WRITE_ZEROES) |	\
			    BIT_ULL(VIRTIO_BLK_F_SEG_MAX) |		\
			    BIT_ULL(VIRTIO_BLK_F_SIZE_MAX) |		\
			    BIT_ULL(VIRTIO_BLK_F_BLK_SIZE) |		\
			    BIT_ULL(VIRTIO_BLK_F_TOPOLOGY) |		\
			    BIT_ULL(VIRTIO_BLK_F_CONFIG_WCE))

static unsigned int max_queues = VHOST_BLK_DEFAULT_QUEUES;

static int vhost_blk_set_max_queues(const char *val, const struct kernel_param *kp)
{
	return param_set_uint_minmax(val, kp, 1, VHOST_BLK_LIMIT_QUEUES);
}

static const struct kernel_param_ops vhost_blk_max_queues_ops = {
	.set = vhost_blk_set_max_queues,
	.get = param_get_uint,
};
module_param_cb(max_queues, &vhost_blk_max_queues_ops, &max_queues, 0644);
MODULE_PARM_DESC(max_queues, "Rings per open of /dev/vhost-blk, 1 to 256 (default 16)");

/* Forget all that is known of the cache mode. No ring runs. */
static void vhost_blk_forget_mode(struct vhost_blk *blk)
{
	blk->writeback = true;
	blk->unsure = false;
	blk->sure = false;
	blk->mode_set = false;
}

static void vhost_blk_free_queues(struct vhost_blk *blk)
{
	unsigned int i;

	if (blk->queues)
		for (i = 0; i < blk->nr_queues; i++)
			kvfree(blk->queues[i]);
	kvfree(blk->queues);
	kvfree(blk->vqs);
	blk->queues = NULL;
	blk->vqs = NULL;
}

static int vhost_blk_open(struct inode *inode, struct file *file)
{
	struct vhost_blk *blk = kzalloc(sizeof(*blk), GFP_KERNEL_ACCOUNT);

	if (!blk)
		return -ENOMEM;
	mutex_init(&blk->setup);
	blk->nr_queues = READ_ONCE(max_queues);
	vhost_blk_forget_mode(blk);
	ratelimit_state_init(&blk->limit, DEFAULT_RATELIMIT_INTERVAL, DEFAULT_RATELIMIT_BURST);
	ratelimit_set_flags(&blk->limit, RATELIMIT_MSG_ON_RELEASE);
	file->private_data = blk;
	return 0;
}

/* Make as many queues as were asked for: all that is allocated before there is an owner. */
static int vhost_blk_make_queues(struct vhost_blk *blk)
{
	unsigned int i;

	blk->queues = kvcalloc(blk->nr_queues, sizeof(*blk->queues), GFP_KERNEL_ACCOUNT);
	blk->vqs = kvcalloc(blk->nr_queues, sizeof(*blk->vqs), GFP_KERNEL_ACCOUNT);
	if (!blk->queues || !blk->vqs)
		goto nomem;
	for (i = 0; i < blk->nr_queues; i++) {
		struct vhost_blk_queue *q = kvzalloc(sizeof(*q), GFP_KERNEL_ACCOUNT);

		if (!q)
			goto nomem;
		vhost_blk_queue_init(q, blk, i);
		blk->queues[i] = q;
		blk->vqs[i] = &q->vq;
	}
	/* No weights: the pass over the ring has its own. */
	vhost_dev_init(&blk->dev, blk->vqs, blk->nr_queues, UIO_MAXIOV, 0, 0, true, NULL);
	return 0;

nomem:
	vhost_blk_free_queues(blk);
	return -ENOMEM;
}

/*
 * Called by every ioctl except those that may precede the queues; the queues exist from here until
 * release.
 */
static int vhost_blk_set_up(struct vhost_blk *blk)
{
	int ret = 0;

	/* Pairs with the release below: a reader that sees ready sees the queues. */
	if (smp_load_acquire(&blk->ready))
		return 0;
	mutex_lock(&blk->setup);
	if (!blk->ready)
		ret = vhost_blk_make_queues(blk);
	if (!ret) {
		/* After the queues; pairs with the acquire above. */
		smp_store_release(&blk->ready, true);
	}
	mutex_unlock(&blk->setup);
	return ret;
}

static long vhost_blk_set_queues(struct vhost_blk *blk, void __user *argp)
{
	u32 nr;
	long ret = 0;

	if (get_user(nr, (u32 __user *)argp))
		return -EFAULT;
	if (!nr || nr > READ_ONCE(max_queues))
		return -EINVAL;
	mutex_lock(&blk->setup);
	if (blk->ready)
		ret = -EBUSY;
	else
		blk->nr_queues = nr;
	mutex_unlock(&blk->setup);
	return ret;
}

static bool vhost_blk_flush(struct vhost_blk *blk)
{
	if (!blkdev_issue_flush(blk->bdev))
		return true;
	vhost_blk_notice(blk, "cannot flush what process %d has written to %pg\n", blk->owner,
			 blk->bdev);
	blk->flush_failed = true;
	return false;
}

/* Has a flush failed that the owner has not been told of? Returns -EIO once. */
static int vhost_blk_tell_of_flush(struct vhost_blk *blk)
{
	bool failed = blk->flush_failed;

	blk->flush_failed = false;
	return failed ? -EIO : 0;
}

/*
 * Make durable what has been answered as written. Rings that still run, or have requests in flight
 * because a drain was cut short, may answer more: the stop of the last of them flushes for all.
 */
static void vhost_blk_flush_answers(struct vhost_blk *blk)
{
	bool unflushed = false;
	unsigned int i;

	if (vhost_blk_any_running(blk))
		return;
	for (i = 0; i < blk->nr_queues; i++) {
		if (!vhost_blk_drained(blk->queues[i]))
			return;
		unflushed |= blk->queues[i]->unflushed;
	}
	if (!unflushed || !blk->bdev || !blk->writable)
		return;
	if (!vhost_blk_flush(blk))
		return;
	for (i = 0; i < blk->nr_queues; i++)
		blk->queues[i]->unflushed = false;
}

/* Has the ring been paused, and neither started again nor settled? */
static bool vhost_blk_is_paused(struct vhost_blk_queue *q)
{
	return !q->vq.private_data && q->claim.memory;
}

/*
 * Called when rings have been paused and do not resume. If no ring runs any more, what has been
 * answered is made durable: a process that learns of the stop may look at the image, copy it, or
 * resume it elsewhere. Only then may others get the used rings.
 *
 * Waits as long as the storage takes, as a drain does.
 */
static void vhost_blk_settle(struct vhost_blk *blk)
{
	unsigned int i;

	lockdep_assert_held(&blk->dev.mutex);
	vhost_blk_flush_answers(blk);
	for (i = 0; i < blk->nr_queues; i++) {
		struct vhost_blk_queue *q = blk->queues[i];

		if (vhost_blk_is_paused(q) && q->claim.held && vhost_blk_drained(q))
			vhost_blk_unclaim(q);
	}
}

/*
 * The end of a stop, with all rings concerned paused: settle, and then, with no claim left, wait
 * for the owners that are about to end and that our rings have been waiting for. An owner that does
 * not come to its end has not flushed its answers, so this flushes them.
 *
 * Returns an error when the caller is being killed.
 */
static int vhost_blk_end_stop(struct vhost_blk *blk)
{
	unsigned int i, looks = 2;

	vhost_blk_settle(blk);
	for (i = 0; i < blk->nr_queues; i++) {
		struct vhost_blk_queue *q = blk->queues[i];
		int ret = vhost_blk_is_paused(q) ? vhost_blk_ring_leave(q, looks) : 0;

		if (ret < 0)
			return ret;
		/* The other rings most likely wait for the same owner. */
		if (ret)
			looks = 0;
	}
	if (!looks && blk->bdev)
		vhost_blk_flush(blk);
	return 0;
}

/* Stop every ring. Returns as vhost_blk_end_stop(). */
static int vhost_blk_stop(struct vhost_blk *blk)
{
	unsigned int i;
	int ret;

	for (i = 0; i < blk->nr_queues; i++) {
		ret = vhost_blk_ring_pause(blk->queues[i]);
		if (ret)
			return ret;
	}
	return vhost_blk_end_stop(blk);
}

/* After rings have been paused and started again: nothing to do if all of them were. */
static void vhost_blk_settle_rest(struct vhost_blk *blk)
{
	bool any = false;
	unsigned int i;

	for (i = 0; i < blk->nr_queues; i++)
		any |= vhost_blk_is_paused(blk->queues[i]);
	if (any)
		vhost_blk_settle(blk);
}

/* Drop the block device, with all rings stopped and drained. */
static void vhost_blk_drop_backend(struct vhost_blk *blk)
{
	unsigned int i;

	for (i = 0; i < blk->nr_queues; i++) {
		vhost_blk_ring_free(blk->queues[i]);
		blk->queues[i]->unflushed = false;
	}
	blk->flush_failed = false;
	if (!blk->file)
		return;
	vhost_blk_clean_cache(blk);
	fput(blk->file);
	blk->file = NULL;
	blk->bdev = NULL;
	blk->mapping = NULL;
}

/*
 * Stop all that runs for the owner, however long its requests in flight and the flush after them
 * take. Returns the error of a flush, after everything has been done.
 */
static int vhost_blk_shut_down(struct vhost_blk *blk)
{
	unsigned int i;
	int ret;

	for (i = 0; i < blk->nr_queues; i++)
		vhost_blk_ring_halt(blk->queues[i]);
	for (i = 0; i < blk->nr_queues; i++)
		wait_event(blk->queues[i]->drained, vhost_blk_drained(blk->queues[i]));
	/* Their workers must not be woken any more. Queues with a used ring keep it for now. */
	for (i = 0; i < blk->nr_queues; i++)
		if (!blk->queues[i]->claim.held)
			vhost_blk_unclaim(blk->queues[i]);
	/* The last end of bio may still be about to wake an executor that finds nothing. */
	synchronize_rcu();
	vhost_dev_stop(&blk->dev);
	for (i = 0; i < blk->nr_queues; i++)
		flush_work(&blk->queues[i]->fallback_work);
	vhost_blk_settle(blk);
	ret = vhost_blk_tell_of_flush(blk);
	vhost_blk_drop_backend(blk);
	vhost_blk_put_css(blk->css);
	blk->css = NULL;
	if (blk->task)
		put_task_struct(blk->task);
	blk->task = NULL;
	if (blk->wq)
		destroy_workqueue(blk->wq);
	blk->wq = NULL;
	return ret;
}

static int vhost_blk_release(struct inode *inode, struct file *file)
{
	struct vhost_blk *blk = file->private_data;

	if (blk->ready) {
		mutex_lock(&blk->dev.mutex);
		WRITE_ONCE(blk->wanted, true);
		vhost_blk_shut_down(blk);
		mutex_unlock(&blk->dev.mutex);
		vhost_dev_cleanup(&blk->dev);
		vhost_blk_free_queues(blk);
	}
	ratelimit_state_exit(&blk->limit);
	kfree(blk);
	return 0;
}

/* Start every ring that has addresses; on failure, none. */
static int vhost_blk_start(struct vhost_blk *blk)
{
	unsigned int i;
	int ret;

	for (i = 0; i < blk->nr_queues; i++) {
		if (!vhost_blk_ring_has_addresses(blk->queues[i]))
			continue;
		ret = vhost_blk_ring_start(blk->queues[i]);
		if (ret)
			return ret;
	}
	return 0;
}

static int vhost_blk_check_backend(struct file *file)
{
	struct inode *inode = file_inode(file);

	if (!S_ISBLK(inode->i_mode))
		return -ENOTBLK;
	if (!(file->f_mode & FMODE_READ))
		return -EBADF;
	/* A guest without VIRTIO_BLK_F_ZONED would write anywhere. */
	if (bdev_is_zoned(I_BDEV(file->f_mapping->host)))
		return -EOPNOTSUPP;
	return 0;
}

static long vhost_blk_set_backend(struct vhost_blk *blk, void __user *argp)
{
	struct vhost_vring_file arg;
	struct file *file = NULL;
	int ret;

	if (copy_from_user(&arg, argp, sizeof(arg)))
		return -EFAULT;
	if (arg.index)
		return -EINVAL;
	if (arg.fd != VHOST_FILE_UNBIND) {
		file = fget(arg.fd);
		if (!file)
			return -EBADF;
		ret = vhost_blk_check_backend(file);
		if (ret)
			goto put;
	}
	ret = vhost_blk_stop(blk);
	if (ret)
		goto put;
	/* A device that cannot be flushed is dropped all the same, and no other takes its place. */
	ret = vhost_blk_tell_of_flush(blk);
	vhost_blk_drop_backend(blk);
	if (ret || !file)
		goto put;

	blk->file = file;
	blk->mapping = file->f_mapping;
	blk->bdev = I_BDEV(file->f_mapping->host);
	blk->writable = file->f_mode & FMODE_WRITE;
	vhost_blk_clean_cache(blk);
	ret = vhost_blk_start(blk);
	if (!ret)
		return 0;
	/* Rings that did start may have requests in flight; a caller being killed leaves them. */
	if (!vhost_blk_stop(blk))
		vhost_blk_drop_backend(blk);
	return ret;
put:
	if (file)
		fput(file);
	return ret;
}

/* The queue that an ioctl's argument names, which is read into @arg; or an error. */
static struct vhost_blk_queue *vhost_blk_get_state(struct vhost_blk *blk, void __user *argp,
						   struct vhost_vring_state *arg)
{
	if (copy_from_user(arg, argp, sizeof(*arg)))
		return ERR_PTR(-EFAULT);
	if (arg->index >= blk->nr_queues)
		return ERR_PTR(-ENOBUFS);
	return blk->queues[array_index_nospec(arg->index, blk->nr_queues)];
}

static long vhost_blk_set_ring(struct vhost_blk *blk, void __user *argp)
{
	struct vhost_vring_state arg;
	struct vhost_blk_queue *q = vhost_blk_get_state(blk, argp, &arg);
	int ret;

	if (IS_ERR(q))
		return PTR_ERR(q);
	switch (arg.num) {
	case 0:
		ret = vhost_blk_ring_pause(q);
		ret = ret ?: vhost_blk_end_stop(blk);
		return ret ?: vhost_blk_tell_of_flush(blk);
	case 1:
		ret = blk->bdev ? vhost_blk_ring_start(q) : -ENODEV;
		if (ret)
			vhost_blk_settle_rest(blk);
		return ret;
	default:
		return -EINVAL;
	}
}

static long vhost_blk_set_serial(struct vhost_blk *blk, void __user *argp)
{
	u8 serial[VHOST_BLK_SERIAL_BYTES];
	unsigned int i;

	if (copy_from_user(serial, argp, sizeof(serial)))
		return -EFAULT;
	for (i = 0; i < blk->nr_queues; i++) {
		struct vhost_blk_queue *q = blk->queues[i];

		mutex_lock(&q->vq.mutex);
		memcpy(q->serial, serial, sizeof(serial));
		mutex_unlock(&q->vq.mutex);
	}
	return 0;
}

/*
 * A guest that gives up flushing expects all that it has written to be safe from now on. A write
 * that is answered after this returns is durable: an executor that answers it sees the new mode,
 * and an executor that still saw the old one has answered before the flush.
 */
static long vhost_blk_set_writeback(struct vhost_blk *blk, void __user *argp)
{
	unsigned int i;
	u32 mode;
	int ret;

	if (get_user(mode, (u32 __user *)argp))
		return -EFAULT;
	if (mode > VHOST_BLK_WRITEBACK_UNKNOWN)
		return -EINVAL;
	if (mode == VHOST_BLK_WRITEBACK_UNKNOWN) {
		if (vhost_blk_any_running(blk))
			return -EBUSY;
		vhost_blk_forget_mode(blk);
		return 0;
	}
	blk->mode_set = true;
	WRITE_ONCE(blk->sure, true);
	WRITE_ONCE(blk->writeback, mode);
	WRITE_ONCE(blk->unsure, false);
	if (mode || !blk->bdev || !blk->writable)
		return 0;
	for (i = 0; i < blk->nr_queues; i++) {
		ret = vhost_blk_ring_lock(blk->queues[i]);
		if (ret)
			return ret;
		mutex_unlock(&blk->queues[i]->vq.mutex);
	}
	return blkdev_issue_flush(blk->bdev);
}

/*
 * Requests in flight use addresses of the old table to their end, so drain them: the owner may
 * unmap that memory when this returns.
 */
static long vhost_blk_set_memory(struct vhost_blk *blk, void __user *argp)
{
	long ret = vhost_dev_ioctl(&blk->dev, VHOST_SET_MEM_TABLE, argp);
	unsigned int i;
	int err;

	if (ret)
		return ret;
	/* Go through all rings even if one fails: none may use the old memory. */
	for (i = 0; i < blk->nr_queues; i++) {
		struct vhost_blk_queue *q = blk->queues[i];
		bool restart = vhost_blk_ring_running(q);

		err = vhost_blk_ring_pause(q);
		if (!err && restart)
			err = vhost_blk_ring_start(q);
		ret = ret ?: err;
	}
	vhost_blk_settle_rest(blk);
	return ret;
}

/*
 * The core waits for the work of a ring that leaves a worker only if the ring has a backend or a
 * kick; else it expects that none was left when the ring was stopped. But the end of the last bio
 * may still be about to wake the worker.
 */
static long vhost_blk_worker_ioctl(struct vhost_blk *blk, unsigned int cmd, void __user *argp)
{
	if (blk->unsettled) {
		synchronize_rcu();
		vhost_dev_flush(&blk->dev);
		blk->unsettled = false;
	}
	return vhost_worker_ioctl(&blk->dev, cmd, argp);
}

/*
 * Dirty logging is per request: requests in flight were not prepared for logging and would go
 * unlogged. Drain them before it begins.
 */
static long vhost_blk_set_features(struct vhost_blk *blk, void __user *argp)
{
	bool log_all;
	unsigned int i;
	u64 features;
	int ret = 0;

	if (copy_from_user(&features, argp, sizeof(features)))
		return -EFAULT;
	if (features & ~VHOST_BLK_FEATURES)
		return -EOPNOTSUPP;
	log_all = features & BIT_ULL(VHOST_F_LOG_ALL);
	if (log_all && !vhost_log_access_ok(&blk->dev))
		return -EFAULT;

	for (i = 0; i < blk->nr_queues && !ret; i++) {
		struct vhost_blk_queue *q = blk->queues[i];
		bool begins = log_all && !vhost_blk_has_feature(&q->vq, VHOST_F_LOG_ALL);
		bool restart = begins && vhost_blk_ring_running(q);

		/* A broken ring may have requests in flight, too. */
		ret = begins ? vhost_blk_ring_pause(q) : 0;
		if (ret)
			break;
		mutex_lock(&q->vq.mutex);
		q->vq.acked_features = features;
		mutex_unlock(&q->vq.mutex);
		if (restart)
			ret = vhost_blk_ring_start(q);
	}
	vhost_blk_settle_rest(blk);
	return ret;
}

static long vhost_blk_set_owner(struct vhost_blk *blk)
{
	struct workqueue_struct *wq;
	long ret;

	wq = alloc_workqueue("vhost-blk/%d", WQ_MEM_RECLAIM | WQ_UNBOUND, 0,
			     task_tgid_nr(current));
	if (!wq)
		return -ENOMEM;
	ret = vhost_dev_set_owner(&blk->dev);
	if (ret) {
		destroy_workqueue(wq);
		return ret;
	}
	blk->wq = wq;
	blk->css = vhost_blk_get_css();
	blk->owner = task_tgid_nr(current);
	blk->task = get_task_struct(current->group_leader);
	return 0;
}

static long vhost_blk_reset_owner(struct vhost_blk *blk)
{
	struct vhost_iotlb *umem = vhost_dev_reset_owner_prepare();
	unsigned int i;
	int ret;

	if (!umem)
		return -ENOMEM;
	ret = vhost_blk_stop(blk);
	if (ret) {
		vhost_iotlb_free(umem);
		return ret;
	}
	ret = vhost_blk_shut_down(blk);
	vhost_dev_reset_owner(&blk->dev, umem);
	/* The next owner finds the state of a fresh open. */
	vhost_blk_forget_mode(blk);
	for (i = 0; i < blk->nr_queues; i++)
		memset(blk->queues[i]->serial, 0, VHOST_BLK_SERIAL_BYTES);
	return ret;
}

static long vhost_blk_busyloop(struct vhost_blk *blk, void __user *argp)
{
	struct vhost_vring_state arg;
	struct vhost_blk_queue *q = vhost_blk_get_state(blk, argp, &arg);
	int ret;

	if (IS_ERR(q))
		return PTR_ERR(q);
	if (arg.num > VHOST_BLK_MAX_BUSYLOOP_US)
		return -EINVAL;
	/* Not by the core, which would read the argument again. */
	ret = vhost_blk_ring_lock(q);
	if (ret)
		return ret;
	q->vq.busyloop_timeout = arg.num;
	mutex_unlock(&q->vq.mutex);
	return 0;
}

/*
 * A stop that a signal cut short has left a ring without backend but with requests in flight. The
 * core checks no address of such a ring, and the requests still use the ring: before anything else
 * is done, the requests must have drained and the used ring must be released.
 */
static long vhost_blk_finish_stops(struct vhost_blk *blk)
{
	bool any = false;
	unsigned int i;
	int ret;

	for (i = 0; i < blk->nr_queues; i++) {
		if (!vhost_blk_is_paused(blk->queues[i]))
			continue;
		any = true;
		ret = vhost_blk_ring_pause(blk->queues[i]);
		if (ret)
			return ret;
	}
	/* The next stop reports a failed flush. */
	return any ? vhost_blk_end_stop(blk) : 0;
}

/* Everything that only the owner may do. */
static long vhost_blk_owner_ioctl(struct vhost_blk *blk, unsigned int cmd, void __user *argp)
{
	long ret = vhost_dev_check_owner(&blk->dev);

	if (!ret)
		ret = vhost_blk_finish_stops(blk);
	if (ret)
		return ret;
	switch (cmd) {
	case VHOST_BLK_SET_BACKEND:
		return vhost_blk_set_backend(blk, argp);
	case VHOST_BLK_SET_RING:
		return vhost_blk_set_ring(blk, argp);
	case VHOST_BLK_SET_SERIAL:
		return vhost_blk_set_serial(blk, argp);
	case VHOST_BLK_SET_WRITEBACK:
		return vhost_blk_set_writeback(blk, argp);
	case VHOST_SET_FEATURES:
		return vhost_blk_set_features(blk, argp);
	case VHOST_RESET_OWNER:
		return vhost_blk_reset_owner(blk);
	case VHOST_SET_VRING_BUSYLOOP_TIMEOUT:
		return vhost_blk_busyloop(blk, argp);
	case VHOST_NEW_WORKER:
	case VHOST_FREE_WORKER:
	case VHOST_ATTACH_VRING_WORKER:
	case VHOST_GET_VRING_WORKER:
		return vhost_blk_worker_ioctl(blk, cmd, argp);
	case VHOST_SET_MEM_TABLE:
		return vhost_blk_set_memory(blk, argp);
	default:
		ret = vhost_dev_ioctl(&blk->dev, cmd, argp);
		return ret == -ENOIOCTLCMD ? vhost_vring_ioctl(&blk->dev, cmd, argp) : ret;
	}
}

static long vhost_blk_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct vhost_blk *blk = file->private_data;
	void __user *argp = (void __user *)arg;
	u64 features = VHOST_BLK_FEATURES;
	long ret;

	if (cmd == VHOST_GET_FEATURES)
		return copy_to_user(argp, &features, sizeof(features)) ? -EFAULT : 0;
	if (cmd == VHOST_BLK_SET_QUEUES)
		return vhost_blk_set_queues(blk, argp);
	ret = vhost_blk_set_up(blk);
	if (ret)
		return ret;

	/* A drain may hold the mutex for as long as the storage takes. */
	if (mutex_lock_killable(&blk->dev.mutex))
		return -EINTR;
	WRITE_ONCE(blk->wanted, true);
	switch (cmd) {
	case VHOST_SET_OWNER:
		ret = vhost_blk_set_owner(blk);
		break;
	case VHOST_SET_FORK_FROM_OWNER:
	case VHOST_GET_FORK_FROM_OWNER:
		/* How workers are made is decided before there is an owner. */
		ret = vhost_dev_ioctl(&blk->dev, cmd, argp);
		break;
	default:
		ret = vhost_blk_owner_ioctl(blk, cmd, argp);
	}
	WRITE_ONCE(blk->wanted, false);
	mutex_unlock(&blk->dev.mutex);
	return ret;
}

static const struct file_operations vhost_blk_fops = {
	.owner = THIS_MODULE,
	.open = vhost_blk_open,
	.release = vhost_blk_release,
	.unlocked_ioctl = vhost_blk_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice vhost_blk_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "vhost-blk",
	.mode = 0600,
	.fops = &vhost_blk_fops,
};

static int __init vhost_blk_init(void)
{
	int ret = vhost_blk_check_layout();

	return ret ?: misc_register(&vhost_blk_misc);
}

static void __exit vhost_blk_exit(void)
{
	misc_deregister(&vhost_blk_misc);
}

module_init(vhost_blk_init);
module_exit(vhost_blk_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("vhost back end for virtio-blk on any block device");
