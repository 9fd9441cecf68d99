// SPDX-License-Identifier: GPL-2.0-only
/*
 * From a descriptor chain to bios: reads the virtio-blk header, checks it, submits. Owns which
 * requests are served, and how the others are answered.
 *
 * Every function runs with the ring's mutex held, in a context whose current->mm is the owner's.
 *
 * Results inside this file: 0: the request has succeeded; -EIOCBQUEUED: its bios are under way;
 * -EIO and -EOPNOTSUPP: the guest asked for what cannot be done; -ENOMEM: there is no memory for
 * the request and nothing has begun; anything else: guest memory cannot be accessed.
 */
#include <linux/highmem.h>
#include <linux/nospec.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "blk.h"
#include "bounce.h"
#include "cache.h"
#include "direct.h"
#include "part.h"
#include "range.h"
#include "request.h"

/*
 * The guest flushes, so it does not count on writes being durable without a flush. Those answered
 * so far were made durable. A ring that starts at this moment may make the mode unsure again; then
 * the next flush settles that.
 */
static void vhost_blk_note_flush(struct vhost_blk *blk)
{
	if (unlikely(!READ_ONCE(blk->sure)))
		WRITE_ONCE(blk->sure, true);
	if (unlikely(READ_ONCE(blk->unsure)))
		WRITE_ONCE(blk->unsure, false);
}

/* IN and OUT. */
static int vhost_blk_read_write(struct vhost_blk_req *req, bool write, u64 sector,
				struct iov_iter *data)
{
	struct vhost_blk *blk = req->queue->blk;
	size_t len = iov_iter_count(data);
	blk_opf_t opf = REQ_OP_READ;
	unsigned int nr_pages;

	/* used.len has to hold the data and the status. */
	if (len >= U32_MAX || len & (SECTOR_SIZE - 1) ||
	    !vhost_blk_in_capacity(blk, sector, len >> SECTOR_SHIFT))
		return -EIO;
	if (write) {
		/* The descriptor, and the device as it is now: it can turn read-only. */
		if (!blk->writable || bdev_read_only(blk->bdev))
			return -EIO;
		opf = REQ_OP_WRITE | REQ_SYNC | REQ_IDLE;
		if (vhost_blk_write_through(req->queue))
			opf |= REQ_FUA;
		else
			req->cached = true;
	} else {
		req->data_len = len;
	}
	if (!len)
		return 0;
	if (write)
		vhost_blk_before_write(req, sector, len >> SECTOR_SHIFT);
	else
		vhost_blk_before_read(blk, sector, len >> SECTOR_SHIFT);
	return vhost_blk_is_direct(blk->bdev, data, &nr_pages) ?
		vhost_blk_direct(req, opf, sector, data, nr_pages) :
		vhost_blk_bounce(req, opf, sector, data);
}

static int vhost_blk_get_id(struct vhost_blk_req *req, struct iov_iter *data)
{
	size_t len = min_t(size_t, iov_iter_count(data), VHOST_BLK_SERIAL_BYTES);

	req->data_len = len;
	return copy_to_iter(req->queue->serial, len, data) == len ? 0 : -EFAULT;
}

/*
 * Read the header off the front of the segments that the device reads; the rest of them is the data
 * to write.
 */
static int vhost_blk_read_header(struct vhost_virtqueue *vq, struct iovec *iov, unsigned int nr,
				 u32 *type, u64 *sector, struct iov_iter *data)
{
	size_t len = iov_length(iov, nr);
	struct virtio_blk_outhdr hdr;

	if (len < sizeof(hdr))
		return -EIO;
	if (likely(iov->iov_len >= sizeof(hdr) &&
		   (IS_ENABLED(CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS) ||
		    IS_ALIGNED((unsigned long)iov->iov_base, __alignof__(hdr))))) {
		struct virtio_blk_outhdr __user *p = iov->iov_base;

		if (get_user(hdr.type, &p->type) || get_user(hdr.sector, &p->sector))
			return -EFAULT;
		iov->iov_base = p + 1;
		iov->iov_len -= sizeof(hdr);
		/* vhost_blk_pin_pages() relies on no segment being empty. */
		if (!iov->iov_len) {
			iov++;
			nr--;
		}
		iov_iter_init(data, ITER_SOURCE, iov, nr, len - sizeof(hdr));
	} else {
		iov_iter_init(data, ITER_SOURCE, iov, nr, len);
		if (!copy_from_iter_full(&hdr, sizeof(hdr), data))
			return -EFAULT;
	}
	*type = vhost_blk_to_cpu32(vq, hdr.type);
	*sector = vhost_blk_to_cpu64(vq, hdr.sector);
	return 0;
}

/* Do what the header says. */
static int vhost_blk_execute(struct vhost_blk_req *req, u32 type, u64 sector, struct iov_iter *out,
			     struct iov_iter *in)
{
	/* Data in the wrong direction would be skipped silently. */
	switch (type) {
	case VIRTIO_BLK_T_IN:
		return iov_iter_count(out) ? -EIO : vhost_blk_read_write(req, false, sector, in);
	case VIRTIO_BLK_T_OUT:
		return iov_iter_count(in) ? -EIO : vhost_blk_read_write(req, true, sector, out);
	case VIRTIO_BLK_T_FLUSH:
		if (iov_iter_count(in) || iov_iter_count(out))
			return -EIO;
		/* Nothing can have been written through a file that is open read-only. */
		if (!req->queue->blk->writable)
			return 0;
		vhost_blk_note_flush(req->queue->blk);
		/* The flush covers this ring's answers so far; later ones set the mark again. */
		req->queue->unflushed = false;
		return vhost_blk_submit_flush(req);
	case VIRTIO_BLK_T_GET_ID:
		return iov_iter_count(out) ? -EIO : vhost_blk_get_id(req, in);
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES:
		if (iov_iter_count(in))
			return -EIO;
		return vhost_blk_range(req, type == VIRTIO_BLK_T_DISCARD, out);
	default:
		return -EOPNOTSUPP;
	}
}

/* Remember the guest-physical addresses of what the request will write. */
static int vhost_blk_save_log(struct vhost_blk_req *req, unsigned int nr_log)
{
	struct vhost_log *log = req->queue->vq.log;
	struct vhost_log *last = &log[nr_log - 1];

	/* The core makes no entries for empty descriptors: the last holds the status. */
	req->status_log.addr = last->addr + last->len - 1;
	req->status_log.len = 1;
	if (nr_log == 1 && last->len == 1)
		return 0;
	req->data_log = kmemdup(log, nr_log * sizeof(*log), GFP_KERNEL_ACCOUNT);
	if (!req->data_log)
		return -ENOMEM;
	req->nr_data_log = nr_log;
	req->queue->held += nr_log * sizeof(*log);
	return 0;
}

int vhost_blk_request(struct vhost_blk_queue *q, u16 head, unsigned int out, unsigned int in,
		      unsigned int nr_log)
{
	struct vhost_blk_req *req = &q->reqs[array_index_nospec(head, q->nr_reqs)];
	struct iovec *iov = q->vq.iov;
	size_t in_len = iov_length(iov + out, in);
	struct iov_iter src, dst;
	u64 sector;
	u32 type;
	int ret = 0;

	if (unlikely(req->busy))
		return -EINVAL;
	req->busy = true;
	req->dirties = false;
	req->cached = false;
	req->head = head;
	req->error = BLK_STS_OK;
	req->status = VIRTIO_BLK_S_OK;
	req->status_addr = NULL;
	req->status_log.len = 0;
	req->data_len = 0;
	req->sectors = 0;
	WRITE_ONCE(q->inflight, q->inflight + 1);

	if (likely(in_len)) {
		struct iovec *last = &iov[out + in - 1];

		req->status_addr = (u8 __user *)last->iov_base + last->iov_len - 1;
		in_len--;
		if (unlikely(nr_log))
			ret = vhost_blk_save_log(req, nr_log);
	}
	/* Without a status byte no answer can be given, so nothing is done either. */
	if (unlikely(!req->status_addr))
		ret = -EIO;
	if (likely(!ret))
		ret = vhost_blk_read_header(&q->vq, iov, out, &type, &sector, &src);
	if (likely(!ret)) {
		iov_iter_init(&dst, ITER_DEST, iov + out, in, in_len);
		ret = vhost_blk_execute(req, type, sector, &src, &dst);
	}
	if (likely(ret == -EIOCBQUEUED))
		return 0;

	vhost_blk_release_parts(req);
	switch (ret) {
	case 0:
		req->status = VIRTIO_BLK_S_OK;
		break;
	case -EOPNOTSUPP:
		req->status = VIRTIO_BLK_S_UNSUPP;
		break;
	default:
		if (ret == -ENOMEM || (ret != -EIO && fatal_signal_pending(current))) {
			vhost_blk_forget(req);
			WRITE_ONCE(q->inflight, q->inflight - 1);
			return ret == -ENOMEM ? ret : -EINTR;
		}
		req->status = VIRTIO_BLK_S_IOERR;
	}
	llist_add(&req->node, &q->done);
	return 0;
}
