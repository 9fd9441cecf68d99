// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reads and writes of guest memory that the block layer cannot use in place: segments that are not
 * whole logical blocks, or addresses below the device's DMA alignment. Legal in virtio, rare in
 * practice. Owns the bounce pages; their number is bounded, and a longer request is done in rounds.
 * With fewer pages a request takes more rounds.
 *
 * Everything runs with the ring's mutex held, in a context whose current->mm is the owner's.
 */
#include <linux/highmem.h>
#include <linux/slab.h>

#include "blk.h"
#include "bounce.h"
#include "part.h"

/* Most bounce pages of a request: 1 MiB with 4 KiB pages. */
#define VHOST_BLK_BOUNCE_PAGES	BIO_MAX_VECS

/*
 * struct vhost_blk_bounce - the state of a bounced request
 */
struct vhost_blk_bounce {
	struct iov_iter data;	/* guest memory that is not copied yet; owns its iovec */
	const void *iov;	/* the iovec, to free it */
	blk_opf_t opf;
	sector_t sector;	/* of the next round */
	u32 round;		/* bytes of the round under way, 0 before the first */
	unsigned int held;	/* bytes of memory, as counted in the queue */
	unsigned int nr_pages;
	struct page *pages[];
};

static int vhost_blk_bounce_next(struct vhost_blk_req *req);
static void vhost_blk_bounce_release(struct vhost_blk_req *req);

static const struct vhost_blk_steps vhost_blk_bounce_steps = {
	.next = vhost_blk_bounce_next,
	.release = vhost_blk_bounce_release,
};

static void vhost_blk_bounce_release(struct vhost_blk_req *req)
{
	struct vhost_blk_bounce *b = req->priv;

	req->queue->held -= b->held;
	while (b->nr_pages)
		__free_page(b->pages[--b->nr_pages]);
	kfree(b->iov);
	kfree(b);
}

/* Copy between guest memory and the first @bytes of the pages; an error reverts the iterator. */
static int vhost_blk_bounce_copy(struct vhost_blk_bounce *b, u32 bytes)
{
	bool write = op_is_write(b->opf);
	u32 copied = 0;

	while (copied < bytes) {
		struct page *page = b->pages[copied >> PAGE_SHIFT];
		size_t len = min_t(size_t, bytes - copied, PAGE_SIZE);
		size_t n = write ? copy_page_from_iter(page, 0, len, &b->data) :
				   copy_page_to_iter(page, 0, len, &b->data);

		copied += n;
		if (n != len) {
			iov_iter_revert(&b->data, copied);
			return -EFAULT;
		}
	}
	return 0;
}

/* Finish the round that ended, submit the next. See struct vhost_blk_steps. */
static int vhost_blk_bounce_next(struct vhost_blk_req *req)
{
	struct vhost_blk_bounce *b = req->priv;
	struct vhost_blk_part *part;
	bool write = op_is_write(b->opf);
	u32 bytes, done;

	if (req->error)
		return 0;
	if (!write && b->round) {
		int ret = vhost_blk_bounce_copy(b, b->round);

		if (ret)
			return ret;
		b->round = 0;
	}
	if (!iov_iter_count(&b->data))
		return 0;
	bytes = min_t(size_t, iov_iter_count(&b->data), (size_t)b->nr_pages << PAGE_SHIFT);
	part = vhost_blk_add_part(req, DIV_ROUND_UP(bytes, PAGE_SIZE), b->opf, b->sector);
	bytes = round_down(min_t(u32, bytes, part->bio.bi_max_vecs << PAGE_SHIFT),
			   bdev_logical_block_size(req->queue->blk->bdev));
	if (!bytes) {
		vhost_blk_release_parts(req);
		return -ENOMEM;
	}
	if (write) {
		int ret = vhost_blk_bounce_copy(b, bytes);

		if (ret) {
			vhost_blk_release_parts(req);
			return ret;
		}
	}
	for (done = 0; done < bytes; done += PAGE_SIZE)
		__bio_add_page(&part->bio, b->pages[done >> PAGE_SHIFT],
			       min_t(u32, bytes - done, PAGE_SIZE), 0);
	b->round = bytes;
	b->sector += bytes >> SECTOR_SHIFT;
	return vhost_blk_submit(req);
}

int vhost_blk_bounce(struct vhost_blk_req *req, blk_opf_t opf, sector_t sector,
		     struct iov_iter *data)
{
	unsigned int nr_pages = min_t(size_t, VHOST_BLK_BOUNCE_PAGES,
				      DIV_ROUND_UP(iov_iter_count(data), PAGE_SIZE));
	struct vhost_blk_bounce *b;
	int ret = -ENOMEM;

	b = kzalloc(struct_size(b, pages, nr_pages), GFP_KERNEL_ACCOUNT);
	if (!b)
		return -ENOMEM;
	b->opf = opf;
	b->sector = sector;
	b->iov = dup_iter(&b->data, data, GFP_KERNEL_ACCOUNT);
	while (b->iov && b->nr_pages < nr_pages) {
		struct page *page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_NORETRY | __GFP_NOWARN);

		if (!page)
			break;
		b->pages[b->nr_pages++] = page;
	}
	b->held = (b->nr_pages << PAGE_SHIFT) + data->nr_segs * sizeof(struct iovec);
	req->queue->held += b->held;
	req->priv = b;
	req->steps = &vhost_blk_bounce_steps;
	if (b->nr_pages)
		ret = vhost_blk_bounce_next(req);
	if (ret != -EIOCBQUEUED)
		vhost_blk_end_steps(req);
	return ret;
}
