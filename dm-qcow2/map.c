// SPDX-License-Identifier: GPL-2.0-only
/*
 * map.c - the path of a bio that needs no change of metadata, and where the others are sent.
 *
 * Everything here runs in the submitter's context when the table slices are in memory: no lock, no
 * allocation, no queue.  A bio that has to wait goes to wait.c, and starts again in
 * qcow2_resume_io().  Takes no locks.
 */
#include <linux/device-mapper.h>

#include "chain.h"
#include "commit.h"
#include "decompress.h"
#include "device.h"
#include "entries.h"
#include "generation.h"
#include "image.h"
#include "io.h"
#include "lookup.h"
#include "map.h"
#include "note.h"
#include "view-map.h"
#include "wait.h"

/* The longest span of a bio at @goff that is certainly one extent once the bio is parked. */
static u64 unsplittable(struct qcow2_dev *dev, u64 goff)
{
	u64 len = dev->granule - (goff & (dev->granule - 1));
	unsigned int i;

	for (i = 0; i < dev->nr_layers; i++)
		if (goff < dev->layers[i].size)
			len = min(len, dev->layers[i].size - goff);
	return len;
}

/* Cut a bio in the map function, where DM allows it; DM sends the rest again. */
static void cut(struct bio *bio, u64 len)
{
	if (len < bio->bi_iter.bi_size)
		dm_accept_partial_bio(bio, len >> SECTOR_SHIFT);
}

/*
 * A bio that goes on in a worker is charged to its submitter, which is known only here: DM leaves
 * the charge to bio_set_dev(), which charges the task that runs.
 */
static void note_payer(struct bio *bio)
{
	bio_associate_blkg(bio);
}

static int read_zeroes(struct bio *bio)
{
	zero_fill_bio(bio);
	bio_endio(bio);
	return DM_MAPIO_SUBMITTED;
}

static int map_read(struct qcow2_io *io, struct bio *bio)
{
	struct qcow2_dev *dev = io->dev;
	u64 goff = io_start(io);
	struct extent ext;

	qcow2_io_enter(io);
	qcow2_chain_lookup(dev, 0, goff, bio->bi_iter.bi_size, &ext);
	switch (ext.type) {
	case EXTENT_DATA:
		cut(bio, ext.len);
		return ext.st->ops->map_bio(ext.st, io, bio, ext.host);
	case EXTENT_ZERO:
	case EXTENT_BEYOND:
		cut(bio, ext.len);
		return read_zeroes(bio);
	case EXTENT_MISS:
		cut(bio, unsplittable(dev, goff));
		note_payer(bio);
		qcow2_missed(io);
		return DM_MAPIO_SUBMITTED;
	case EXTENT_COMPRESSED:
		cut(bio, ext.len);
		qcow2_decompress_io(io, &ext);
		return DM_MAPIO_SUBMITTED;
	default:
		qcow2_io_leave(io);
		return DM_MAPIO_KILL;
	}
}

/*
 * The block device ends inside the cluster, and DM can no longer cut a bio that was parked: fill
 * the part behind the end, and read the rest.
 */
static void zero_rest(struct bio *bio, unsigned int from)
{
	struct bvec_iter iter, start = bio->bi_iter;
	struct bio_vec bv;

	bio_advance_iter(bio, &start, from);
	__bio_for_each_segment(bv, bio, iter, start)
		memzero_bvec(&bv);
	bio->bi_iter.bi_size = from;
}

static void resume_read(struct qcow2_io *io)
{
	struct bio *bio = io_bio(io);
	struct extent ext;

	qcow2_io_enter(io);
	qcow2_chain_lookup(io->dev, 0, io_start(io), bio->bi_iter.bi_size, &ext);
	switch (ext.type) {
	case EXTENT_DATA:
		if (unlikely(ext.len < bio->bi_iter.bi_size))
			zero_rest(bio, ext.len);
		qcow2_io_submit(io, ext.st, ext.host);
		break;
	case EXTENT_ZERO:
	case EXTENT_BEYOND:
		read_zeroes(bio);
		break;
	case EXTENT_MISS:
		qcow2_missed(io);
		break;
	case EXTENT_COMPRESSED:
		qcow2_decompress_io(io, &ext);
		break;
	default:
		qcow2_io_end(io, BLK_STS_IOERR);
	}
}

/*
 * FUA can be left to the storage only when the mapping is durable already.  The mapping is durable
 * when the image is clean now, after the mapping was read; pairs with the smp_wmb() in
 * qcow2_slice_dirty().
 */
static void decide_fua(struct qcow2_io *io, struct bio *bio, struct qcow2_image *img)
{
	if (!(bio->bi_opf & REQ_FUA))
		return;
	smp_rmb();	/* the entry before nr_dirty; see above */
	if (qcow2_is_clean(img))
		return;
	bio->bi_opf &= ~REQ_FUA;
	io->more = true;
}

/* Write to an own cluster; if the storage refuses for want of space, the write can start over. */
static void begin_in_place(struct qcow2_io *io, struct bio *bio, struct qcow2_image *img)
{
	qcow2_note_write(img, io_start(io), bio->bi_iter.bi_size);
	io->iter = bio->bi_iter;
	io->fua = bio->bi_opf & REQ_FUA;
	io->in_place = true;
	decide_fua(io, bio, img);
}

void qcow2_submit_in_place(struct qcow2_io *io, u64 host)
{
	struct qcow2_image *img = io->dev->layers[0].img;

	begin_in_place(io, io_bio(io), img);
	qcow2_io_submit(io, img->data, host);
}

void qcow2_retry_refused(struct qcow2_io *io)
{
	struct bio *bio = io_bio(io);
	struct percpu_ref *epoch = io->epoch;

	io->epoch = NULL;
	bio->bi_iter = io->iter;
	bio->bi_status = BLK_STS_OK;
	/* __bi_remaining is 0 when the storage had split the bio; and some storage clears FUA. */
	atomic_set(&bio->__bi_remaining, 1);
	if (io->fua)
		bio->bi_opf |= REQ_FUA;
	io->more = false;
	rcu_read_lock();	/* the image, too, is there until it is left; see io.h */
	qcow2_hand_to_writer(io->dev->layers[0].img, io);
	/* Last: code that waits for the epoch finds the write with the writer. */
	epoch_leave(epoch);
	rcu_read_unlock();
}

static int map_write(struct qcow2_io *io, struct bio *bio)
{
	struct qcow2_image *img = io->dev->layers[0].img;
	u64 goff = io_start(io);
	struct extent ext;

	if (!io->dev->writable || image_mode(img) >= MODE_READ_ONLY)
		return DM_MAPIO_KILL;
	qcow2_io_enter(io);
	qcow2_image_lookup(img, goff, bio->bi_iter.bi_size, &ext);
	if (written_in_place(&ext)) {
		cut(bio, ext.len);
		begin_in_place(io, bio, img);
		return ext.st->ops->map_bio(ext.st, io, bio, ext.host);
	}
	cut(bio, img->cluster_size - in_cluster(img, goff));
	note_payer(bio);
	if (ext.type == EXTENT_MISS) {
		qcow2_missed(io);
		return DM_MAPIO_SUBMITTED;
	}
	qcow2_io_leave(io);
	if (ext.type == EXTENT_INVALID)
		return DM_MAPIO_KILL;
	qcow2_hand_to_writer(img, io);
	return DM_MAPIO_SUBMITTED;
}

static void resume_write(struct qcow2_io *io)
{
	struct qcow2_image *img = io->dev->layers[0].img;
	struct bio *bio = io_bio(io);
	struct extent ext;

	qcow2_io_enter(io);
	qcow2_image_lookup(img, io_start(io), bio->bi_iter.bi_size, &ext);
	if (written_in_place(&ext)) {
		qcow2_submit_in_place(io, ext.host);
		return;
	}
	if (ext.type == EXTENT_MISS) {
		qcow2_missed(io);
		return;
	}
	qcow2_io_leave(io);
	qcow2_hand_to_writer(img, io);
}

void qcow2_resume_io(struct qcow2_io *io)
{
	switch (bio_op(io_bio(io))) {
	case REQ_OP_READ:
		resume_read(io);
		break;
	case REQ_OP_WRITE:
		resume_write(io);
		break;
	default:
		qcow2_hand_to_writer(io->dev->layers[0].img, io);
	}
}

/*
 * With nothing dirty a FLUSH only flushes the data's storage; on a block device the bio itself can
 * do that.
 */
static int map_flush(struct qcow2_io *io, struct bio *bio)
{
	struct qcow2_image *img = io->dev->layers[0].img;

	if (!io->dev->writable) {
		bio_endio(bio);
		return DM_MAPIO_SUBMITTED;
	}
	if (image_mode(img) == MODE_FAILED)
		return DM_MAPIO_KILL;
	if (img->data->bdev && qcow2_is_clean(img))
		return img->data->ops->map_bio(img->data, io, bio, 0);
	qcow2_commit_add_io(img, io);
	return DM_MAPIO_SUBMITTED;
}

int qcow2_map_bio(struct qcow2_dev *dev, struct bio *bio)
{
	struct qcow2_io *io = bio_io(bio);

	io->dev = dev;
	io->epoch = NULL;
	io->more = dev->features.has_view;
	io->in_place = false;
	io->retried = false;
	io->misses = 0;
	if (unlikely(bio->bi_opf & REQ_PREFLUSH))
		return map_flush(io, bio);
	switch (bio_op(bio)) {
	case REQ_OP_READ:
		return map_read(io, bio);
	case REQ_OP_WRITE:
		return map_write(io, bio);
	case REQ_OP_DISCARD:
	case REQ_OP_WRITE_ZEROES:
		if (!dev->writable || image_mode(dev->layers[0].img) >= MODE_READ_ONLY)
			return DM_MAPIO_KILL;
		io->pos = io_start(io);
		note_payer(bio);
		qcow2_hand_to_writer(dev->layers[0].img, io);
		return DM_MAPIO_SUBMITTED;
	default:
		return DM_MAPIO_KILL;
	}
}
