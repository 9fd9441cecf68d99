// SPDX-License-Identifier: GPL-2.0-only
/*
 * DISCARD and WRITE_ZEROES. Owns the check of their ranges and the rounds in which they are done:
 * one bio at a time, so that a guest's "zero two terabytes" ties up neither the worker nor memory,
 * however slow the device is and however small its commands are. The range list is copied before it
 * is checked; the guest cannot change it afterwards.
 *
 * Everything runs with the ring's mutex held.
 */
#include <linux/highmem.h>
#include <linux/slab.h>

#include "blk.h"
#include "cache.h"
#include "part.h"
#include "range.h"

/* Longest discard or write-zeroes bio: 1 GiB, a multiple of any sane granularity. */
#define VHOST_BLK_ROUND_SECTORS		(1U << 21)

/*
 * Commands of the device that one bio may be split into. The block layer makes all of them at once,
 * and the worker sleeps when the device has no room for more.
 */
#define VHOST_BLK_ROUND_COMMANDS	64U

/* Pages of zeroes in one bio where the device cannot write zeroes itself. */
#define VHOST_BLK_ZERO_PAGES		BIO_MAX_VECS

/* What is left of one range of sectors, in CPU byte order. */
struct vhost_blk_extent {
	u64 sector;
	u32 sectors;
	bool unmap;
};

/*
 * struct vhost_blk_ranges - what is left of a DISCARD or WRITE_ZEROES request
 */
struct vhost_blk_ranges {
	bool discard;
	bool by_pages;		/* the device cannot write zeroes: write a page of them */
	u32 round;		/* sectors of the round under way */
	unsigned int nr;
	unsigned int i;		/* the range under way */
	struct vhost_blk_extent extents[] __counted_by(nr);
};

static int vhost_blk_range_next(struct vhost_blk_req *req);

static void vhost_blk_range_release(struct vhost_blk_req *req)
{
	kfree(req->priv);
}

static const struct vhost_blk_steps vhost_blk_range_steps = {
	.next = vhost_blk_range_next,
	.release = vhost_blk_range_release,
};

/* Longest round on a device that takes at most @max sectors in one command. */
static u32 vhost_blk_max_round(struct block_device *bdev, unsigned int max)
{
	u64 sectors = min_t(u64, (u64)max * VHOST_BLK_ROUND_COMMANDS, VHOST_BLK_ROUND_SECTORS);
	u32 block = bdev_logical_block_size(bdev) >> SECTOR_SHIFT;

	return max_t(u32, round_down(sectors, block), block);
}

/* End rounds at a discard granularity boundary: a unit that lies across two would not be freed. */
static u32 vhost_blk_discard_round(struct block_device *bdev, struct vhost_blk_extent *e)
{
	u32 granularity = bdev_discard_granularity(bdev) >> SECTOR_SHIFT;
	u32 round = vhost_blk_max_round(bdev, bdev_max_discard_sectors(bdev));
	sector_t end = get_start_sect(bdev) + e->sector + round;
	u32 tail;

	if (e->sectors <= round)
		return e->sectors;
	tail = granularity ? sector_div(end, granularity) : 0;
	return tail < round ? round - tail : round;
}

static int vhost_blk_zero_pages(struct vhost_blk_req *req, struct vhost_blk_extent *e)
{
	struct vhost_blk_ranges *ranges = req->priv;
	blk_opf_t opf = REQ_OP_WRITE | REQ_SYNC | REQ_IDLE;
	struct vhost_blk_part *part;
	u32 bytes, max;

	part = vhost_blk_add_part(req, VHOST_BLK_ZERO_PAGES, opf, e->sector);
	max = round_down(part->bio.bi_max_vecs * (PAGE_SIZE >> SECTOR_SHIFT),
			 bdev_logical_block_size(part->bio.bi_bdev) >> SECTOR_SHIFT);
	ranges->round = min(e->sectors, max);
	if (!ranges->round) {
		vhost_blk_release_parts(req);
		return -ENOMEM;
	}
	vhost_blk_before_write(req, e->sector, ranges->round);
	for (bytes = ranges->round << SECTOR_SHIFT; bytes; ) {
		u32 len = min_t(u32, bytes, PAGE_SIZE);

		__bio_add_page(&part->bio, ZERO_PAGE(0), len, 0);
		bytes -= len;
	}
	return vhost_blk_submit(req);
}

/* Submit the next round. See struct vhost_blk_steps. */
static int vhost_blk_range_next(struct vhost_blk_req *req)
{
	struct block_device *bdev = req->queue->blk->bdev;
	struct vhost_blk_ranges *ranges = req->priv;
	unsigned int max_zeroes = bdev_write_zeroes_sectors(bdev);
	struct vhost_blk_extent *e;
	blk_opf_t opf;

	if (req->error) {
		/* Some devices admit only now that they cannot write zeroes. */
		if (ranges->discard || ranges->by_pages || max_zeroes || !ranges->round)
			return 0;
		req->error = BLK_STS_OK;
		ranges->round = 0;
	}
	if (ranges->round) {
		e = &ranges->extents[ranges->i];
		e->sector += ranges->round;
		e->sectors -= ranges->round;
		ranges->round = 0;
	}
	while (ranges->i < ranges->nr && !ranges->extents[ranges->i].sectors)
		ranges->i++;
	if (ranges->i == ranges->nr)
		return 0;

	e = &ranges->extents[ranges->i];
	req->cached = true;
	if (ranges->discard) {
		ranges->round = vhost_blk_discard_round(bdev, e);
		opf = REQ_OP_DISCARD;
	} else if (max_zeroes) {
		ranges->round = min(e->sectors, vhost_blk_max_round(bdev, max_zeroes));
		opf = REQ_OP_WRITE_ZEROES | (e->unmap ? 0 : REQ_NOUNMAP);
	} else {
		ranges->by_pages = true;
		return vhost_blk_zero_pages(req, e);
	}
	vhost_blk_before_write(req, e->sector, ranges->round);
	vhost_blk_add_part(req, 0, opf, e->sector)->bio.bi_iter.bi_size =
		ranges->round << SECTOR_SHIFT;
	return vhost_blk_submit(req);
}

/* Check one range as the virtio specification says. */
static int vhost_blk_check_range(struct vhost_blk_queue *q, bool discard,
				 const struct virtio_blk_discard_write_zeroes *raw,
				 struct vhost_blk_extent *e)
{
	u32 flags = le32_to_cpu(raw->flags);

	/* A discard unmaps by its nature; the flag is for WRITE_ZEROES alone. */
	if (flags & ~VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP || (discard && flags))
		return -EOPNOTSUPP;
	e->sector = le64_to_cpu(raw->sector);
	e->sectors = le32_to_cpu(raw->num_sectors);
	e->unmap = flags;
	return vhost_blk_in_capacity(q->blk, e->sector, e->sectors) ? 0 : -EIO;
}

int vhost_blk_range(struct vhost_blk_req *req, bool discard, struct iov_iter *data)
{
	struct virtio_blk_discard_write_zeroes raw;
	struct vhost_blk_queue *q = req->queue;
	size_t len = iov_iter_count(data);
	struct vhost_blk_ranges *ranges;
	unsigned int i, nr = len / sizeof(raw);
	int ret = 0;

	if (!q->blk->writable || bdev_read_only(q->blk->bdev))
		return -EIO;
	if (discard && !bdev_max_discard_sectors(q->blk->bdev))
		return -EOPNOTSUPP;
	if (!len || len % sizeof(raw) || len > VHOST_BLK_MAX_RANGES * sizeof(raw))
		return -EIO;

	ranges = kzalloc(struct_size(ranges, extents, nr), GFP_KERNEL_ACCOUNT);
	if (!ranges)
		return -ENOMEM;
	ranges->nr = nr;
	ranges->discard = discard;
	for (i = 0; i < nr && !ret; i++) {
		if (copy_from_iter_full(&raw, sizeof(raw), data))
			ret = vhost_blk_check_range(q, discard, &raw, &ranges->extents[i]);
		else
			ret = -EFAULT;
	}
	if (ret) {
		kfree(ranges);
		return ret;
	}

	req->priv = ranges;
	req->steps = &vhost_blk_range_steps;
	ret = vhost_blk_range_next(req);
	/* Only empty ranges: done, without a bio. */
	if (!ret)
		vhost_blk_end_steps(req);
	return ret;
}
