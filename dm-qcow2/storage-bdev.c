// SPDX-License-Identifier: GPL-2.0-only
/*
 * storage-bdev.c - an image on a block device: guest bios are remapped, our own I/O is bios.
 *
 * Takes no locks.  map_bio() writes nothing but the bio, so that it scales with the submitters.
 */
#include <linux/device-mapper.h>
#include <linux/slab.h>

#include "compat.h"
#include "io.h"
#include "storage.h"

static int bdev_map_bio(struct qcow2_storage *st, struct qcow2_io *io, struct bio *bio, u64 pos)
{
	if (!st->nowait)
		bio->bi_opf &= ~REQ_NOWAIT;
	bio_set_dev(bio, st->bdev);
	bio->bi_iter.bi_sector = pos >> SECTOR_SHIFT;
	return DM_MAPIO_REMAPPED;
}

static void bdev_io_put(struct storage_io *sio)
{
	if (atomic_dec_and_test(&sio->ref))
		sio->done(sio);
}

static void bdev_bio_done(struct bio *bio)
{
	struct storage_io *sio = bio->bi_private;

	if (bio->bi_status)
		WRITE_ONCE(sio->error, blk_status_to_errno(bio->bi_status));
	bio_put(bio);
	bdev_io_put(sio);
}

/*
 * Submits several bios when there are more segments than one bio holds.  sio->ref counts them, plus
 * one for this function, so that done() cannot run before the last is submitted.
 */
static void bdev_submit(struct storage_io *sio)
{
	struct qcow2_storage *st = sio->st;
	struct bvec_iter iter = { .bi_size = sio->len, .bi_offset = sio->bv_skip };
	sector_t sector = sio->pos >> SECTOR_SHIFT;
	struct bio *bio = NULL;

	atomic_set(&sio->ref, 1);
	while (iter.bi_size) {
		struct bio_vec bv = mp_bvec_iter_bvec(sio->bv, iter);

		if (!bio) {
			unsigned int left = sio->nr_bv - iter.bi_idx;

			bio = bio_alloc_bioset(st->bdev, bio_max_segs(left), sio->opf, GFP_NOIO,
					       st->bs);
			bio->bi_iter.bi_sector = sector;
			bio->bi_private = sio;
			bio->bi_end_io = bdev_bio_done;
			if (sio->owner) {
				bio_clone_blkg_association(bio, sio->owner);
				bio->bi_ioprio = sio->owner->bi_ioprio;
			}
			atomic_inc(&sio->ref);
		}
		if (bio_add_page(bio, bv.bv_page, bv.bv_len, bv.bv_offset) != bv.bv_len) {
			submit_bio(bio);
			bio = NULL;
			continue;
		}
		sector += bv.bv_len >> SECTOR_SHIFT;
		bvec_iter_advance(sio->bv, &iter, bv.bv_len);
	}
	if (bio)
		submit_bio(bio);
	bdev_io_put(sio);
}

static int bdev_flush(struct qcow2_storage *st)
{
	return blkdev_issue_flush(st->bdev);
}

static int bdev_discard(struct qcow2_storage *st, u64 pos, u64 len)
{
	if (!bdev_max_discard_sectors(st->bdev))
		return -EOPNOTSUPP;
	return blkdev_issue_discard(st->bdev, pos >> SECTOR_SHIFT, len >> SECTOR_SHIFT, GFP_NOIO);
}

static int bdev_prepare(struct qcow2_storage *st, u64 pos, u64 len, bool *zeroed)
{
	*zeroed = false;
	if (pos + len > bdev_nr_bytes(st->bdev))
		return -ENOSPC;
	/* Zeroing by command is cheap; zeroing by writing would cost more than it can save. */
	if (bdev_write_zeroes_sectors(st->bdev))
		*zeroed = !blkdev_issue_zeroout(st->bdev, pos >> SECTOR_SHIFT, len >> SECTOR_SHIFT,
						GFP_NOIO, BLKDEV_ZERO_NOFALLBACK);
	return 0;
}

static int bdev_reserve(struct qcow2_storage *st, u64 pos, u64 len)
{
	return 0;
}

/*
 * Our bios bypass the page cache of the device.  Data that a process has written into the cache
 * would not be read here, and would overwrite committed metadata some time later.
 */
static int bdev_take_over(struct qcow2_storage *st)
{
	int r = sync_blockdev(st->bdev);

	if (!r)
		invalidate_bdev(st->bdev);
	return r;
}

/* Never write back here: a page that was made dirty since may hold old metadata. */
static void bdev_hand_back(struct qcow2_storage *st)
{
	invalidate_bdev(st->bdev);
}

static u64 bdev_size(struct qcow2_storage *st)
{
	return bdev_nr_bytes(st->bdev);
}

static u64 bdev_used(struct qcow2_storage *st, u64 end)
{
	return end;
}

static void bdev_close(struct qcow2_storage *st)
{
	if (st->bs) {
		bioset_exit(st->bs);
		kfree(st->bs);
	}
}

static const struct storage_ops bdev_ops = {
	.map_bio = bdev_map_bio,
	.submit = bdev_submit,
	.flush = bdev_flush,
	.discard = bdev_discard,
	.prepare = bdev_prepare,
	.reserve = bdev_reserve,
	.take_over = bdev_take_over,
	.hand_back = bdev_hand_back,
	.size = bdev_size,
	.limit = bdev_size,
	.used = bdev_used,
	.close = bdev_close,
};

int qcow2_storage_init_bdev(struct qcow2_storage *st, struct block_device *bdev)
{
	int r;

	st->bs = kzalloc(sizeof(*st->bs), GFP_KERNEL);
	if (!st->bs)
		return -ENOMEM;
	r = bioset_init(st->bs, 16, 0, BIOSET_NEED_BVECS);
	if (r) {
		kfree(st->bs);
		st->bs = NULL;
		return r;
	}
	st->bdev = bdev;
	st->nowait = bdev_nowait(bdev);
	st->block_size = bdev_logical_block_size(bdev);
	st->mem_align = bdev_dma_alignment(bdev) + 1;
	st->ops = &bdev_ops;
	return 0;
}
