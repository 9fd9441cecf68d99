// SPDX-License-Identifier: GPL-2.0-only
/*
 * One ring: its life (start, stop, drain, break) and the worker's pass over it.
 *
 * A ring runs while the core's private_data is set, from start to halt. A broken ring still runs as
 * far as its requests in flight are concerned, but is not read any more.
 *
 * Start, halt and drain are called with vhost_dev.mutex held, the pass by the queue's worker.
 */
#define pr_fmt(fmt) "vhost-blk: " fmt

#include <linux/ktime.h>
#include <linux/moduleparam.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "blk.h"
#include "chain.h"
#include "claim.h"
#include "complete.h"
#include "request.h"
#include "ring.h"

/* Requests that are submitted together and answered together. */
#define VHOST_BLK_BATCH		32

/*
 * Block layer requests that are allocated together. More would save little more, and not fit into a
 * word of the map of a device with a short queue.
 */
#define VHOST_BLK_ANNOUNCE	8U

/* Requests after which other rings of the same worker get their turn. */
#define VHOST_BLK_WEIGHT	256

/* How long a chain for which there was no memory stays in the ring. */
#define VHOST_BLK_RETRY_DELAY	msecs_to_jiffies(10)

#define VHOST_BLK_DEFAULT_RING_SIZE	1024	/* the longest that QEMU has */
#define VHOST_BLK_LIMIT_RING_SIZE	32768	/* the longest that virtio has */

/* Longest ring that is started. */
static unsigned int vhost_blk_max_ring_size = VHOST_BLK_DEFAULT_RING_SIZE;

static int vhost_blk_set_max_ring_size(const char *val, const struct kernel_param *kp)
{
	return param_set_uint_minmax(val, kp, 1, VHOST_BLK_LIMIT_RING_SIZE);
}

static const struct kernel_param_ops vhost_blk_max_ring_size_ops = {
	.set = vhost_blk_set_max_ring_size,
	.get = param_get_uint,
};
module_param_cb(max_ring_size, &vhost_blk_max_ring_size_ops, &vhost_blk_max_ring_size, 0644);
MODULE_PARM_DESC(max_ring_size, "Descriptors of a ring, 1 to 32768 (default 1024)");

/*
 * Make the block layer allocate its requests together, one for each chain that the ring is known to
 * have. blk_start_plug_nr_ios() does that, but is not exported, and the number is known only after
 * the plug has begun. Unused requests are freed when the plug ends or the worker sleeps.
 */
static void vhost_blk_announce(const struct vhost_virtqueue *vq, struct blk_plug *plug)
{
	unsigned int nr = 1 + (u16)(vq->avail_idx - vq->last_avail_idx);

	plug->nr_ios = min(nr, VHOST_BLK_ANNOUNCE);
}

/*
 * Begin at most VHOST_BLK_BATCH requests. Returns their number, -EBUSY when reaping those in flight
 * will restart the pass, -ENOMEM when a timer will, or another error when the ring must not be read
 * any more.
 */
static int vhost_blk_fetch(struct vhost_blk_queue *q, struct blk_plug *plug)
{
	struct vhost_virtqueue *vq = &q->vq;
	int nr;

	for (nr = 0; nr < VHOST_BLK_BATCH; nr++) {
		unsigned int out, in, nr_log;
		int head, ret;

		if (unlikely(q->held >= VHOST_BLK_MAX_HELD)) {
			q->throttled = true;
			return -EBUSY;
		}
		head = vhost_blk_next_chain(q, &out, &in, &nr_log);
		if (head == vq->num)
			break;
		if (unlikely(head < 0)) {
			/* The dying owner's memory is unreadable: that says nothing of the ring. */
			if (fatal_signal_pending(current))
				return -EINTR;
			vhost_blk_break(q, "a malformed ring or descriptor chain");
			return head;
		}
		if (nr % VHOST_BLK_ANNOUNCE == 0)
			vhost_blk_announce(vq, plug);
		ret = vhost_blk_request(q, head, out, in, nr_log);
		if (unlikely(ret)) {
			vhost_blk_unread(vq);
			if (ret == -ENOMEM)
				mod_timer(&q->retry, jiffies + VHOST_BLK_RETRY_DELAY);
			else if (ret != -EINTR)
				vhost_blk_break(q, "a chain was offered again in flight");
			return ret;
		}
	}
	return nr;
}

/*
 * The ring is empty: with VHOST_SET_VRING_BUSYLOOP_TIMEOUT, spin until nothing has happened for
 * that long. Returns true when the ring has a chain.
 */
static bool vhost_blk_busy_poll(struct vhost_blk_queue *q)
{
	struct vhost_virtqueue *vq = &q->vq;
	ktime_t end;

	if (!vq->busyloop_timeout)
		return false;
	end = ktime_add_us(ktime_get(), vq->busyloop_timeout);
	do {
		if (!llist_empty(&q->done)) {
			vhost_blk_reap(q);
			end = ktime_add_us(ktime_get(), vq->busyloop_timeout);
		}
		if (!vhost_vq_avail_empty(&q->blk->dev, vq))
			return true;
		/* Others need the processor, the worker, or the mutex that we hold. */
		if (need_resched() || signal_pending(current) || vhost_vq_has_work(vq) ||
		    READ_ONCE(q->blk->wanted))
			break;
		cpu_relax();
	} while (ktime_before(ktime_get(), end));
	return false;
}

/* Read the ring from its used index, which no other owner changes any more. */
static int vhost_blk_ring_begin(struct vhost_blk_queue *q)
{
	struct vhost_virtqueue *vq = &q->vq;
	int ret = vhost_vq_init_access(vq);

	if (ret)
		return ret;
	vq->last_avail_idx = vq->last_used_idx;
	vq->avail_idx = vq->last_used_idx;
	return 0;
}

/* A ring that was started while another owner was not done with it: is it ours now? */
static bool vhost_blk_ring_take_over(struct vhost_blk_queue *q)
{
	if (!vhost_blk_claim(q))
		return false;
	if (!vhost_blk_ring_begin(q))
		return true;
	if (!fatal_signal_pending(current))
		vhost_blk_break(q, "the used ring cannot be accessed");
	return false;
}

/* The worker's pass over the ring: after a kick, a start, or VHOST_BLK_WEIGHT requests. */
static void vhost_blk_handle_kick(struct vhost_work *work)
{
	struct vhost_virtqueue *vq = container_of(work, struct vhost_virtqueue, poll.work);
	struct vhost_blk_queue *q = container_of(vq, struct vhost_blk_queue, vq);
	struct vhost_dev *dev = &q->blk->dev;
	int nr, total = 0;

	mutex_lock(&vq->mutex);
	if (!vq->private_data || q->broken || fatal_signal_pending(current))
		goto unlock;
	if (unlikely(vhost_blk_used_moved(q))) {
		vhost_blk_break(q, "its used ring was moved");
		goto unlock;
	}
	if (unlikely(!q->claim.held) && !vhost_blk_ring_take_over(q))
		goto unlock;

	WRITE_ONCE(q->gathering, true);
	vhost_disable_notify(dev, vq);
	for (;;) {
		struct blk_plug plug;

		blk_start_plug(&plug);
		nr = vhost_blk_fetch(q, &plug);
		blk_finish_plug(&plug);
		vhost_blk_reap(q);
		if (nr < 0 || q->broken)
			break;
		total += nr;
		if (total >= VHOST_BLK_WEIGHT) {
			vhost_poll_queue(&vq->poll);
			break;
		}
		if (nr == VHOST_BLK_BATCH || vhost_blk_busy_poll(q))
			continue;
		if (!vhost_enable_notify(dev, vq)) {
			/* The core takes an index that jumps for an empty ring: no kick comes. */
			if (unlikely(vhost_blk_index_jumps(vq)))
				vhost_blk_break(q, "the available index jumps");
			break;
		}
		vhost_disable_notify(dev, vq);
	}
	WRITE_ONCE(q->gathering, false);
	/* Pairs with llist_add() in vhost_blk_end_io(): it sees the flag, or we see the request. */
	smp_mb();
	if (!llist_empty(&q->done))
		vhost_blk_reap(q);
unlock:
	mutex_unlock(&vq->mutex);
}

static void vhost_blk_retry(struct timer_list *timer)
{
	struct vhost_blk_queue *q = container_of(timer, struct vhost_blk_queue, retry);

	vhost_poll_queue(&q->vq.poll);
}

void vhost_blk_queue_init(struct vhost_blk_queue *q, struct vhost_blk *blk, unsigned int index)
{
	q->blk = blk;
	q->index = index;
	q->vq.handle_kick = vhost_blk_handle_kick;
	init_llist_head(&q->done);
	init_waitqueue_head(&q->drained);
	vhost_work_init(&q->done_work, vhost_blk_done_work);
	INIT_WORK(&q->fallback_work, vhost_blk_fallback_work);
	timer_setup(&q->retry, vhost_blk_retry, 0);
}

void vhost_blk_ring_free(struct vhost_blk_queue *q)
{
	kvfree(q->reqs);
	kvfree(q->used);
	q->reqs = NULL;
	q->used = NULL;
	q->nr_reqs = 0;
}

static int vhost_blk_ring_alloc(struct vhost_blk_queue *q, unsigned int nr)
{
	unsigned int i;

	if (q->nr_reqs == nr)
		return 0;
	vhost_blk_ring_free(q);
	q->reqs = kvcalloc(nr, sizeof(*q->reqs), GFP_KERNEL_ACCOUNT);
	q->used = kvcalloc(nr, sizeof(*q->used), GFP_KERNEL_ACCOUNT);
	if (!q->reqs || !q->used) {
		vhost_blk_ring_free(q);
		return -ENOMEM;
	}
	q->nr_reqs = nr;
	for (i = 0; i < nr; i++)
		q->reqs[i].queue = q;
	return 0;
}

int vhost_blk_ring_lock(struct vhost_blk_queue *q)
{
	return mutex_lock_killable(&q->vq.mutex);
}

bool vhost_blk_ring_has_addresses(struct vhost_blk_queue *q)
{
	return q->vq.desc && q->vq.avail && q->vq.used;
}

bool vhost_blk_ring_running(struct vhost_blk_queue *q)
{
	return q->vq.private_data && !READ_ONCE(q->broken);
}

bool vhost_blk_any_running(struct vhost_blk *blk)
{
	unsigned int i;

	for (i = 0; i < blk->nr_queues; i++)
		if (blk->queues[i]->vq.private_data)
			return true;
	return false;
}

void vhost_blk_ring_halt(struct vhost_blk_queue *q)
{
	mutex_lock(&q->vq.mutex);
	/* Claims look at it without the mutex. */
	WRITE_ONCE(q->vq.private_data, NULL);
	mutex_unlock(&q->vq.mutex);
	timer_delete_sync(&q->retry);
}

static int vhost_blk_ring_drain(struct vhost_blk_queue *q)
{
	return wait_event_killable(q->drained, vhost_blk_drained(q));
}

/* A ring has stopped that never began: its place is the used index that the last owner left. */
static void vhost_blk_ring_find_place(struct vhost_blk_queue *q)
{
	struct vhost_virtqueue *vq = &q->vq;
	bool little = vhost_blk_has_feature(vq, VIRTIO_F_VERSION_1) ||
		      virtio_legacy_is_little_endian();
	__virtio16 idx;

	if (get_user(idx, &vq->used->idx))
		return;
	/* The core learns a ring's byte order only when it begins. */
	vq->last_used_idx = __virtio16_to_cpu(little, idx);
	vq->last_avail_idx = vq->last_used_idx;
	vq->avail_idx = vq->last_used_idx;
}

int vhost_blk_ring_pause(struct vhost_blk_queue *q)
{
	int ret = vhost_blk_ring_lock(q);

	if (ret)
		return ret;
	if (q->vq.private_data)
		q->blk->unsettled = true;
	WRITE_ONCE(q->vq.private_data, NULL);
	mutex_unlock(&q->vq.mutex);
	timer_delete_sync(&q->retry);
	return vhost_blk_ring_drain(q);
}

int vhost_blk_ring_leave(struct vhost_blk_queue *q, unsigned int looks)
{
	int ret = vhost_blk_claim_wait(q, looks);

	if (ret < 0)
		return ret;
	vhost_blk_ring_find_place(q);
	vhost_blk_unclaim(q);
	return ret;
}

/*
 * Has this ring been served before? Its used index can have wrapped to 0, but then its last entry
 * has been used; a driver begins with a ring of zeroes.
 */
static bool vhost_blk_ring_is_used(struct vhost_virtqueue *vq)
{
	__virtio32 len;

	return vq->last_used_idx || get_user(len, &vq->used->ring[vq->num - 1].len) || len;
}

/*
 * What the start of a ring says of the cache mode. A guest that has been served before may have
 * chosen to write through, and would not say so again. A guest whose first ring is new has
 * forgotten its choice. Under dev.mutex, since only starts make the mode unsure.
 */
static void vhost_blk_judge_mode(struct vhost_blk_queue *q, bool first)
{
	struct vhost_blk *blk = q->blk;

	if (blk->mode_set || !vhost_blk_has_feature(&q->vq, VIRTIO_BLK_F_CONFIG_WCE))
		return;
	/* A ring that waits for an earlier owner has been served. */
	if (!q->claim.held || vhost_blk_ring_is_used(&q->vq)) {
		if (!READ_ONCE(blk->sure))
			WRITE_ONCE(blk->unsure, true);
	} else if (first) {
		WRITE_ONCE(blk->sure, false);
		WRITE_ONCE(blk->unsure, false);
	}
}

int vhost_blk_ring_start(struct vhost_blk_queue *q)
{
	struct vhost_virtqueue *vq = &q->vq;
	bool first, kept;
	int ret;

	if (vhost_blk_ring_running(q))
		return 0;
	ret = vhost_blk_ring_pause(q);
	if (ret)
		return ret;
	ret = vhost_blk_ring_lock(q);
	if (ret)
		return ret;
	if (!vhost_blk_ring_has_addresses(q)) {
		ret = -EINVAL;
		goto unlock;
	}
	/* A ring takes 400 bytes for each of its descriptors. */
	if (vq->num > READ_ONCE(vhost_blk_max_ring_size)) {
		vhost_blk_notice(q->blk,
				 "ring %u of process %d has %u descriptors, max_ring_size is %u\n",
				 q->index, q->blk->owner, vq->num, vhost_blk_max_ring_size);
		ret = -E2BIG;
		goto unlock;
	}
	if (!vhost_vq_access_ok(vq)) {
		ret = -EFAULT;
		goto unlock;
	}
	ret = vhost_blk_ring_alloc(q, vq->num);
	if (ret)
		goto unlock;

	ret = vhost_blk_claim_prepare(q);
	if (ret) {
		if (ret == -EINVAL)
			vhost_blk_notice(q->blk,
					 "ring %u of process %d has another ring's used ring\n",
					 q->index, q->blk->owner);
		goto unlock;
	}

	kept = q->claim.held;
	first = !vhost_blk_any_running(q->blk);
	WRITE_ONCE(vq->private_data, q);
	if (vhost_blk_claim(q))
		ret = vhost_blk_ring_begin(q);
	else
		vhost_blk_notice(q->blk,
				 "ring %u of process %d waits for process %d to be done with it\n",
				 q->index, q->blk->owner, q->claim.awaited);
	if (ret) {
		WRITE_ONCE(vq->private_data, NULL);
		/* The end of another queue's claim may have called the worker meanwhile. */
		q->blk->unsettled = true;
		goto unlock;
	}
	if (!kept)
		vhost_blk_judge_mode(q, first);
	WRITE_ONCE(q->broken, false);
	q->throttled = false;
	q->unlogged_used = false;
	vhost_poll_queue(&vq->poll);
unlock:
	mutex_unlock(&vq->mutex);
	return ret;
}
