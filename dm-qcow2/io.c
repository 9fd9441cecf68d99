// SPDX-License-Identifier: GPL-2.0-only
/*
 * io.c - the two ends of a bio that every path has: sending it to the storage, and ending it.
 *
 * Owns nothing and takes no locks.
 */
#include <linux/device-mapper.h>

#include "image.h"
#include "io.h"

void qcow2_io_end(struct qcow2_io *io, blk_status_t status)
{
	struct bio *bio = io_bio(io);

	bio->bi_status = status;
	bio_endio(bio);
}

void qcow2_io_submit(struct qcow2_io *io, struct qcow2_storage *st, u64 host)
{
	struct bio *bio = io_bio(io);

	/* The submitter has gone on: nobody is left to try again. */
	bio->bi_opf &= ~REQ_NOWAIT;
	if (st->ops->map_bio(st, io, bio, host) == DM_MAPIO_REMAPPED)
		submit_bio_noacct(bio);
}
