// SPDX-License-Identifier: GPL-2.0-only
/*
 * From the end of bios to the guest's interrupt: status byte, dirty log, used ring, one signal for
 * all that has gathered.
 *
 * The end of a bio only puts the request on queue->done (part.c). Guest memory is written by one of
 * two executors:
 *  - the queue's worker: at the end of its pass over the ring, else by done_work;
 *  - a work item under kthread_use_mm(), when the owner is being killed. Its workers are threads of
 *    the same process then: the core takes none of our work any more, or runs it in a thread with a
 *    fatal signal pending, where any page fault fails. Guests outlive their owner, so such a
 *    failure must never be blamed on the guest.
 * Both run with the ring's mutex held and take whatever is there; either may find nothing.
 *
 * The device may be freed as soon as its last request is off queue->done and the grace period that
 * release waits for is over: so the end of bio is one RCU read section.
 */
#include <linux/kthread.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "blk.h"
#include "cache.h"
#include "chain.h"
#include "complete.h"
#include "part.h"

/*
 * Mark the pages that the request has written, whose content is in place. After an error the device
 * may have written some of the data. Marking twice is harmless.
 */
static int vhost_blk_log(struct vhost_blk_req *req)
{
	struct vhost_virtqueue *vq = &req->queue->vq;
	int ret = 0;

	/* The owner may have turned logging off meanwhile, and unmapped the log. */
	if (!vhost_blk_has_feature(vq, VHOST_F_LOG_ALL))
		return 0;
	/* The core insists that the entries hold at least the length it is given. */
	if (req->data_len)
		ret = vhost_log_write(vq, req->data_log, req->nr_data_log, req->data_len, NULL, 0);
	if (!ret)
		ret = vhost_log_write(vq, &req->status_log, 1, req->status_log.len, NULL, 0);
	return ret;
}

/*
 * The core logs its writes to the used ring, but does not report a failure, as in a thread that was
 * killed meanwhile. Then the other executor marks the whole used ring.
 */
static void vhost_blk_check_used_log(struct vhost_blk_queue *q)
{
	struct vhost_virtqueue *vq = &q->vq;
	struct vhost_log log = {
		.addr = vq->log_addr,
		.len = struct_size(vq->used, ring, vq->num) + sizeof(u16),
	};

	if (fatal_signal_pending(current)) {
		q->unlogged_used = true;
		vhost_blk_use_fallback(q);
	} else if (q->unlogged_used) {
		q->unlogged_used = false;
		if (vhost_log_write(vq, &log, 1, log.len, NULL, 0))
			vhost_blk_break(q, "the dirty log cannot be written");
	}
}

/*
 * Finish a request whose bios have ended: everything but its used entry, which is added to q->used.
 * Returns 0, -EIOCBQUEUED when it has another round, -EINTR when the other executor must do it,
 * from the start or from where this one stopped.
 */
static int vhost_blk_finish(struct vhost_blk_req *req)
{
	struct vhost_blk_queue *q = req->queue;
	struct vring_used_elem *elem;
	u32 written = 0;
	int ret;

	vhost_blk_release_parts(req);
	if (unlikely(vhost_blk_has_pages(q->blk)) && req->sectors)
		vhost_blk_after_write(req);
	if (req->steps) {
		ret = req->steps->next(req);
		if (ret == -EIOCBQUEUED)
			return ret;
		if (ret) {
			if (fatal_signal_pending(current))
				return -EINTR;
			req->error = BLK_STS_IOERR;
		}
		vhost_blk_end_steps(req);
	}
	if (req->cached && !req->error && req->status == VIRTIO_BLK_S_OK) {
		/* A discard cannot be written through; or the mode has changed meanwhile. */
		if (unlikely(vhost_blk_write_through(q))) {
			req->cached = false;
			return vhost_blk_submit_flush(req);
		}
		q->unflushed = true;
	}
	if (unlikely(req->error)) {
		req->status = req->error == BLK_STS_NOTSUPP ? VIRTIO_BLK_S_UNSUPP :
							      VIRTIO_BLK_S_IOERR;
		/* The failed bio may have been the flush for which the mark was cleared. */
		q->unflushed = true;
	}
	if (req->status == VIRTIO_BLK_S_OK)
		written = req->data_len;
	if (likely(req->status_addr)) {
		if (likely(!put_user(req->status, req->status_addr))) {
			written++;
		} else {
			if (fatal_signal_pending(current))
				return -EINTR;
			vhost_blk_break(q, "a status byte cannot be written");
		}
		if (unlikely(req->status_log.len && vhost_blk_log(req))) {
			if (fatal_signal_pending(current))
				return -EINTR;
			vhost_blk_break(q, "the dirty log cannot be written");
		}
	}
	elem = &q->used[q->nr_used++];
	elem->id = vhost_blk_from_cpu32(&q->vq, req->head);
	elem->len = vhost_blk_from_cpu32(&q->vq, written);
	vhost_blk_forget(req);
	return 0;
}

/* Write the gathered used entries, and signal. Returns false when the other executor must. */
static bool vhost_blk_publish(struct vhost_blk_queue *q)
{
	struct vhost_virtqueue *vq = &q->vq;
	u16 old = vq->last_used_idx;
	unsigned int nr = q->nr_used + q->nr_hidden;

	if (!nr)
		return true;
	if (unlikely(vhost_blk_used_moved(q))) {
		/* The new place may belong to another queue. */
		vhost_blk_break(q, "its used ring was moved");
	} else if (unlikely(vhost_blk_add_used(vq, q->used, q->nr_used))) {
		if (fatal_signal_pending(current)) {
			/* The core counts entries that it wrote but does not show yet. */
			nr = (u16)(vq->last_used_idx - old);
			q->nr_hidden += nr;
			q->nr_used -= nr;
			memmove(q->used, q->used + nr, q->nr_used * sizeof(*q->used));
			return false;
		}
		vhost_blk_break(q, "the used ring cannot be written");
	}
	q->nr_hidden = 0;
	q->nr_used = 0;
	vhost_signal(&q->blk->dev, vq);
	/* Pairs with vhost_blk_drained(): then what the requests used may be freed. */
	smp_store_release(&q->inflight, q->inflight - nr);
	if (!q->inflight)
		wake_up_all(&q->drained);
	return true;
}

void vhost_blk_reap(struct vhost_blk_queue *q)
{
	struct llist_node *list;

	if (unlikely(fatal_signal_pending(current))) {
		q->unlogged_used = q->vq.log_used;
		vhost_blk_use_fallback(q);
		return;
	}
	list = llist_reverse_order(llist_del_all(&q->done));
	while (list) {
		struct vhost_blk_req *req = llist_entry(list, struct vhost_blk_req, node);
		struct llist_node *next = list->next;

		if (unlikely(vhost_blk_finish(req) == -EINTR)) {
			for (; list; list = next) {
				next = list->next;
				llist_add(list, &q->done);
			}
			vhost_blk_use_fallback(q);
			break;
		}
		list = next;
	}
	/* Before publishing: afterwards the ring may be drained and its worker gone. */
	if (unlikely(q->throttled) && q->held < VHOST_BLK_MAX_HELD) {
		q->throttled = false;
		if (q->vq.private_data)
			vhost_poll_queue(&q->vq.poll);
	}
	if (unlikely(!vhost_blk_publish(q)))
		vhost_blk_use_fallback(q);
	if (unlikely(q->vq.log_used))
		vhost_blk_check_used_log(q);
}

void vhost_blk_done_work(struct vhost_work *work)
{
	struct vhost_blk_queue *q = container_of(work, struct vhost_blk_queue, done_work);

	mutex_lock(&q->vq.mutex);
	vhost_blk_reap(q);
	mutex_unlock(&q->vq.mutex);
}

void vhost_blk_fallback_work(struct work_struct *work)
{
	struct vhost_blk_queue *q = container_of(work, struct vhost_blk_queue, fallback_work);

	kthread_use_mm(q->blk->dev.mm);
	mutex_lock(&q->vq.mutex);
	vhost_blk_reap(q);
	mutex_unlock(&q->vq.mutex);
	kthread_unuse_mm(q->blk->dev.mm);
}
