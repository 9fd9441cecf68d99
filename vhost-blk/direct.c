// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reads and writes of guest memory that the block layer can use in place. Owns the pinning of that
 * memory and the rounds in which a long request is done, so that the memory that one request pins,
 * and the memory that describes it, are bounded whatever its length.
 *
 * Everything runs with the ring's mutex held, in a context whose current->mm is the owner's.
 */
#include <linux/highmem.h>
#include <linux/slab.h>

#include "blk.h"
#include "direct.h"
#include "part.h"

/* Longest round: 4 MiB, more than a guest's block layer puts into one request. */
#define VHOST_BLK_ROUND_BYTES	(4U << 20)

/*
 * struct vhost_blk_direct - what is left of a request that takes more than one round
 */
struct vhost_blk_direct {
	struct iov_iter data;	/* guest memory that is in no bio yet; owns its iovec */
	const void *iov;	/* the iovec, to free it */
	unsigned int held;	/* bytes of memory, as counted in the queue */
	blk_opf_t opf;
	sector_t sector;	/* of the next round */
};

static int vhost_blk_direct_next(struct vhost_blk_req *req);

static void vhost_blk_direct_release(struct vhost_blk_req *req)
{
	struct vhost_blk_direct *d = req->priv;

	req->queue->held -= d->held;
	kfree(d->iov);
	kfree(d);
}

static const struct vhost_blk_steps vhost_blk_direct_steps = {
	.next = vhost_blk_direct_next,
	.release = vhost_blk_direct_release,
};

bool vhost_blk_is_direct(struct block_device *bdev, const struct iov_iter *iter,
			 unsigned int *nr_pages)
{
	const struct iovec *iov = iter_iov(iter);
	unsigned long addr_mask = bdev_dma_alignment(bdev);
	unsigned long len_mask = (bdev_logical_block_size(bdev) - 1) | addr_mask;
	size_t skip = iter->iov_offset, left = iov_iter_count(iter);

	for (*nr_pages = 0; left; iov++, skip = 0) {
		unsigned long addr = (unsigned long)iov->iov_base + skip;
		size_t len = min(iov->iov_len - skip, left);

		if (!len)
			continue;
		if ((addr & addr_mask) | (len & len_mask))
			return false;
		*nr_pages += DIV_ROUND_UP(offset_in_page(addr) + len, PAGE_SIZE);
		left -= len;
	}
	return true;
}

/*
 * Pin guest memory and add it to a bio, until either is used up. Segments are whole blocks; where
 * one has to be cut, the cut is at a block's end. @data is advanced by what was added. When that is
 * all of @data and no @more follows, @data is only truncated, which is far cheaper. Returns 0 if
 * anything was added.
 *
 * This is iov_iter_extract_pages() for segments of user memory, none of them empty: with one page
 * per request, the generality of that function would cost more than its work.
 */
static int vhost_blk_pin_pages(struct bio *bio, struct iov_iter *data, bool more)
{
	unsigned int block_mask = bdev_logical_block_size(bio->bi_bdev) - 1;
	unsigned int flags = iov_iter_rw(data) == READ ? FOLL_WRITE : 0;
	size_t trim = 0;

	bio_set_flag(bio, BIO_PAGE_PINNED);
	while (iov_iter_count(data) && bio->bi_vcnt < bio->bi_max_vecs && !trim) {
		unsigned int room = bio->bi_max_vecs - bio->bi_vcnt;
		struct bio_vec *bv = &bio->bi_io_vec[bio->bi_vcnt];
		/*
		 * The page pointers are kept at the end of the free vectors. A vector is twice as
		 * large as a pointer, so filling the vectors from the start never overtakes reading
		 * the pointers.
		 */
		struct page **pages = (struct page **)(bv + room) - room;
		unsigned long addr = (unsigned long)iter_iov_addr(data);
		size_t offset = offset_in_page(addr);
		size_t len = min3(iter_iov_len(data), iov_iter_count(data),
				  (size_t)U32_MAX - bio->bi_iter.bi_size);
		struct page *page, *last = NULL;
		int i, nr_pages;

		nr_pages = min_t(size_t, DIV_ROUND_UP(offset + len, PAGE_SIZE), room);
		nr_pages = pin_user_pages_fast(addr - offset, nr_pages, flags, pages);
		if (nr_pages <= 0) {
			if (bio->bi_vcnt)
				break;
			return nr_pages ? nr_pages : -EFAULT;
		}
		len = min(len, nr_pages * PAGE_SIZE - offset);
		trim = len & block_mask;
		len -= trim;
		if (len == iov_iter_count(data) && !more)
			iov_iter_truncate(data, 0);
		else
			iov_iter_advance(data, len);
		bio->bi_iter.bi_size += len;
		for (i = 0; len; i++) {
			size_t n = min_t(size_t, len, PAGE_SIZE - offset);

			page = pages[i];
			if (last && page == last + 1 && page_folio(page) == page_folio(last)) {
				bv[-1].bv_len += n;
			} else {
				bvec_set_page(bv++, page, n, offset);
				bio->bi_vcnt++;
			}
			last = page;
			len -= n;
			offset = 0;
		}
		for (; i < nr_pages; i++)
			unpin_user_page(pages[i]);
	}
	return bio->bi_vcnt ? 0 : -EFAULT;
}

/*
 * Build the bios of one round and advance @sector and @data by them. Returns 0 if there is anything
 * to submit; else nothing has changed. A part that fails, for whatever reason, ends the round: the
 * next round begins with that part and either gets it or fails.
 */
static int vhost_blk_direct_round(struct vhost_blk_req *req, blk_opf_t opf, sector_t *sector,
				  struct iov_iter *data, unsigned int nr_pages)
{
	size_t rest = 0;
	int ret = 0;

	if (iov_iter_count(data) > VHOST_BLK_ROUND_BYTES) {
		rest = iov_iter_count(data) - VHOST_BLK_ROUND_BYTES;
		iov_iter_truncate(data, VHOST_BLK_ROUND_BYTES);
	}
	while (nr_pages && !ret) {
		struct vhost_blk_part *part;

		part = vhost_blk_add_part(req, min(nr_pages, BIO_MAX_VECS), opf, *sector);
		if (!part)
			break;
		/* This bio may take only some of the memory; the rest goes into further bios. */
		ret = vhost_blk_pin_pages(&part->bio, data, rest);
		if (ret) {
			vhost_blk_drop_part(req, part);
		} else {
			*sector += part->bio.bi_iter.bi_size >> SECTOR_SHIFT;
			nr_pages = iov_iter_npages(data, BIO_MAX_VECS);
		}
	}
	iov_iter_reexpand(data, iov_iter_count(data) + rest);
	return req->parts ? 0 : ret;
}

/* Submit the next round. See struct vhost_blk_steps. */
static int vhost_blk_direct_next(struct vhost_blk_req *req)
{
	struct vhost_blk_direct *d = req->priv;
	int ret;

	if (req->error || !iov_iter_count(&d->data))
		return 0;
	ret = vhost_blk_direct_round(req, d->opf, &d->sector, &d->data,
				     iov_iter_npages(&d->data, BIO_MAX_VECS));
	return ret ? ret : vhost_blk_submit(req);
}

/* Remember what the first round has left over. */
static int vhost_blk_direct_keep(struct vhost_blk_req *req, blk_opf_t opf, sector_t sector,
				 struct iov_iter *data)
{
	struct vhost_blk_direct *d = kmalloc(sizeof(*d), GFP_KERNEL_ACCOUNT);

	if (!d)
		return -ENOMEM;
	d->iov = dup_iter(&d->data, data, GFP_KERNEL_ACCOUNT);
	if (!d->iov) {
		kfree(d);
		return -ENOMEM;
	}
	d->held = sizeof(*d) + data->nr_segs * sizeof(struct iovec);
	req->queue->held += d->held;
	d->opf = opf;
	d->sector = sector;
	req->priv = d;
	req->steps = &vhost_blk_direct_steps;
	return 0;
}

int vhost_blk_direct(struct vhost_blk_req *req, blk_opf_t opf, sector_t sector,
		     struct iov_iter *data, unsigned int nr_pages)
{
	int ret;

	req->dirties = !op_is_write(opf);
	ret = vhost_blk_direct_round(req, opf, &sector, data, nr_pages);
	if (!ret && unlikely(iov_iter_count(data)))
		ret = vhost_blk_direct_keep(req, opf, sector, data);
	return ret ? ret : vhost_blk_submit(req);
}
