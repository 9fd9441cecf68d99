// SPDX-License-Identifier: GPL-2.0-only
/*
 * A round of bios of a request: built, submitted, ended. Owns the parts that the bios live in, and
 * what their end does.
 *
 * The end of a bio comes in any context, takes no lock, and only puts the request on queue->done.
 * Everything else runs with the ring's mutex held.
 */
#include <linux/slab.h>

#include "blk.h"
#include "part.h"

bool vhost_blk_in_capacity(struct vhost_blk *blk, u64 sector, u64 sectors)
{
	u64 capacity = bdev_nr_sectors(blk->bdev);
	unsigned int block_mask = (bdev_logical_block_size(blk->bdev) >> SECTOR_SHIFT) - 1;

	return sector <= capacity && sectors <= capacity - sector &&
	       !((sector | sectors) & block_mask);
}

void vhost_blk_end_io(struct bio *bio)
{
	struct vhost_blk_req *req = bio->bi_private;
	struct vhost_blk_queue *q = req->queue;

	if (unlikely(bio->bi_status))
		WRITE_ONCE(req->error, bio->bi_status);
	if (!atomic_dec_and_test(&req->pending))
		return;

	/*
	 * A worker that gathers clears the flag before it looks at the list for the last time: see
	 * vhost_blk_handle_kick(). llist_add() is a full barrier.
	 */
	rcu_read_lock();
	if (llist_add(&req->node, &q->done) && !READ_ONCE(q->gathering) &&
	    !vhost_vq_work_queue(&q->vq, &q->done_work))
		vhost_blk_use_fallback(q);
	rcu_read_unlock();
}

/* The memory of an allocated part, as counted in the queue. */
static size_t vhost_blk_part_bytes(unsigned int nr_vecs)
{
	return sizeof(struct vhost_blk_part) + nr_vecs * sizeof(struct bio_vec);
}

struct vhost_blk_part *vhost_blk_add_part(struct vhost_blk_req *req, unsigned int nr_vecs,
					  blk_opf_t opf, sector_t sector)
{
	struct vhost_blk *blk = req->queue->blk;
	struct vhost_blk_part **link = &req->parts;
	struct vhost_blk_part *part = NULL;
	struct bio_vec *vecs;
	struct bio *bio;

	if (*link || nr_vecs > VHOST_BLK_INLINE_VECS)
		part = kmalloc(vhost_blk_part_bytes(nr_vecs),
			       GFP_KERNEL_ACCOUNT | __GFP_NORETRY | __GFP_NOWARN);
	if (part) {
		req->queue->held += vhost_blk_part_bytes(nr_vecs);
		vecs = (struct bio_vec *)(part + 1);
		while (*link)
			link = &(*link)->next;
	} else {
		if (*link)
			return NULL;
		part = &req->part;
		vecs = req->inline_vecs;
		nr_vecs = min(nr_vecs, VHOST_BLK_INLINE_VECS);
	}
	part->next = NULL;
	*link = part;

	bio = &part->bio;
	bio_init(bio, blk->bdev, vecs, nr_vecs, opf);
	/*
	 * A vhost task is in its owner's cgroup by itself, and follows when the owner moves. An
	 * interrupt may change other flags of the task meanwhile.
	 */
	if (unlikely(data_race(current->flags & PF_KTHREAD)) && blk->css)
		bio_associate_blkg_from_css(bio, blk->css);
	bio->bi_iter.bi_sector = sector;
	bio->bi_private = req;
	bio->bi_end_io = vhost_blk_end_io;
	return part;
}

/*
 * Unpin the pages of a bio; mark them dirty if the device wrote to them. A vector's pages are of
 * one folio, which is nearly always dirty already, and then need not be locked.
 */
static void vhost_blk_release_pages(struct bio *bio, bool dirties)
{
	unsigned int i;

	if (!bio_flagged(bio, BIO_PAGE_PINNED))
		return;
	for (i = 0; i < bio->bi_vcnt; i++) {
		struct bio_vec *bv = &bio->bi_io_vec[i];

		unpin_user_page_range_dirty_lock(bv->bv_page,
						 DIV_ROUND_UP(bv->bv_offset + bv->bv_len,
							      PAGE_SIZE), dirties);
	}
}

static void vhost_blk_free_part(struct vhost_blk_req *req, struct vhost_blk_part *part)
{
	vhost_blk_release_pages(&part->bio, req->dirties);
	bio_uninit(&part->bio);
	if (part == &req->part)
		return;
	req->queue->held -= vhost_blk_part_bytes(part->bio.bi_max_vecs);
	kfree(part);
}

void vhost_blk_release_parts(struct vhost_blk_req *req)
{
	struct vhost_blk_part *part = req->parts, *next;

	req->parts = NULL;
	for (; part; part = next) {
		next = part->next;
		vhost_blk_free_part(req, part);
	}
}

void vhost_blk_drop_part(struct vhost_blk_req *req, struct vhost_blk_part *part)
{
	struct vhost_blk_part **link = &req->parts;

	while (*link != part)
		link = &(*link)->next;
	*link = NULL;
	vhost_blk_free_part(req, part);
}

int vhost_blk_submit(struct vhost_blk_req *req)
{
	struct vhost_blk_part *part, *next;
	unsigned int nr = 0;

	for (part = req->parts; part; part = part->next)
		nr++;
	req->error = BLK_STS_OK;
	atomic_set(&req->pending, nr);
	for (part = req->parts; part; part = next) {
		next = part->next;
		submit_bio(&part->bio);
	}
	return -EIOCBQUEUED;
}

int vhost_blk_submit_flush(struct vhost_blk_req *req)
{
	vhost_blk_add_part(req, 0, REQ_OP_WRITE | REQ_SYNC | REQ_PREFLUSH, 0);
	return vhost_blk_submit(req);
}

void vhost_blk_end_steps(struct vhost_blk_req *req)
{
	if (req->steps)
		req->steps->release(req);
	req->steps = NULL;
	req->priv = NULL;
}

void vhost_blk_forget(struct vhost_blk_req *req)
{
	vhost_blk_end_steps(req);
	if (unlikely(req->data_log)) {
		req->queue->held -= req->nr_data_log * sizeof(*req->data_log);
		kfree(req->data_log);
		req->data_log = NULL;
	}
	req->busy = false;
}
