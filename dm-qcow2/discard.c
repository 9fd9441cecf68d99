// SPDX-License-Identifier: GPL-2.0-only
/*
 * discard.c - DISCARD and WRITE_ZEROES: piece by piece, by changing mappings where that is possible
 * and by writing zeroes where it is not.
 *
 * What a guest sees: a DISCARD makes every whole cluster in it read as zeroes on a version 3 image,
 * and on a version 2 image that has no backing; elsewhere, and in partial clusters, it does
 * nothing.  WRITE_ZEROES always makes the range read as zeroes.  A last cluster that the end of the
 * disk cuts short counts as whole.
 *
 * A piece is a cluster, or several that an L2 slice maps to host clusters side by side.
 *
 * A bio walks along its range by io->pos.  When it must wait (for a slice, an operation, a commit)
 * it comes back through the writer's queue and goes on from there.
 *
 * Called by the writer's work item.  Takes no locks itself.
 */
#include <linux/device-mapper.h>

#include "cow.h"
#include "device.h"
#include "discard.h"
#include "entries.h"
#include "generation.h"
#include "image.h"
#include "io.h"
#include "lookup.h"
#include "mapping.h"
#include "note.h"
#include "table-cache.h"
#include "view-map.h"
#include "wait.h"
#include "write.h"
#include "writer.h"

#define MAX_CLUSTERS	4096	/* before other bios get a turn */

enum step {
	STEP_NEXT,		/* the piece is done: go on behind it */
	STEP_WAIT,		/* the caller no longer owns the bio */
};

static bool whole_cluster(struct qcow2_io *io, u64 pos, u64 end)
{
	struct qcow2_image *img = io->dev->layers[0].img;

	return !in_cluster(img, pos) &&
	       (end - pos >= img->cluster_size || end == io->dev->size);
}

/* Do the layers below read as zeroes for this cluster?  STEP_WAIT when the bio was parked. */
static enum step below_is_zero(struct qcow2_writer *w, struct qcow2_io *io, u64 pos, bool *zero)
{
	int r = qcow2_chain_reads_zeroes(w, io, 1, pos, min_t(u64, w->img->cluster_size,
							      io->dev->size - pos));

	*zero = r > 0;
	return r < 0 ? STEP_WAIT : STEP_NEXT;
}

/*
 * Set the entries of the @nr clusters at @pos.  This drops the clusters of the old entries,
 * unless @keep: then @val is the entry that keeps the host cluster of the first one.
 */
static enum step set_entries(struct qcow2_writer *w, struct qcow2_io *io, u64 pos, u32 nr, u64 val,
			     bool keep)
{
	struct qcow2_image *img = w->img;
	struct freed_extent *freed;
	struct slice *s;

	freed = qcow2_freed_alloc(img);
	if (!freed) {
		qcow2_stall_io(w, io);
		return STEP_WAIT;
	}
	s = qcow2_get_l2(img, pos);
	if (IS_ERR(s)) {
		qcow2_freed_drop(img, freed);
		qcow2_failed_alloc(w, io, PTR_ERR(s));
		return STEP_WAIT;
	}
	if (!keep)
		qcow2_view_prepare(img, qcow2_cluster_index(img, pos), nr);
	qcow2_note_write(img, pos, (u64)nr << img->cluster_bits);
	qcow2_set_mapping(img, s, qcow2_cluster_index(img, pos), nr, val,
			  keep ? img->cluster_size : 0, keep ? NULL : &freed);
	qcow2_slice_put(s);
	qcow2_freed_drop(img, freed);
	return STEP_NEXT;
}

/* The entry that makes an unmapped cluster read as zeroes; false if there is none. */
static bool zero_entry(struct qcow2_io *io, u64 *val)
{
	struct qcow2_image *img = io->dev->layers[0].img;

	*val = qcow2_l2_entry_make_none();
	if (io->dev->nr_layers == 1)
		return true;
	*val = qcow2_l2_entry_make_zero(0);
	return img->version >= 3;
}

static enum step discard_piece(struct qcow2_writer *w, struct qcow2_io *io, u64 pos, u32 nr,
			       const struct extent *ext)
{
	u64 val;

	if (!zero_entry(io, &val))
		return STEP_NEXT;
	if (ext->type == EXTENT_ZERO && !ext->host)
		return STEP_NEXT;
	if (ext->type == EXTENT_UNALLOCATED) {
		bool zero;
		enum step step = below_is_zero(w, io, pos, &zero);

		if (step == STEP_WAIT || zero)
			return step;
	}
	if (!w->discard_no_unref || !qcow2_may_write_in_place(ext) || w->img->version < 3)
		return set_entries(w, io, pos, nr, val, false);
	if (ext->type == EXTENT_ZERO)
		return STEP_NEXT;
	return set_entries(w, io, pos, nr, qcow2_l2_entry_make_zero(ext->host), true);
}

static enum step zero_piece(struct qcow2_writer *w, struct qcow2_io *io, u64 pos, u64 end, u32 nr,
			    const struct extent *ext)
{
	struct qcow2_image *img = w->img;
	bool whole = whole_cluster(io, pos, end);
	bool unmap = !(io_bio(io)->bi_opf & REQ_NOUNMAP);
	u32 head = in_cluster(img, pos);
	u32 len = min_t(u64, end - pos, ((u64)nr << img->cluster_bits) - head);
	u64 val;

	if (ext->type == EXTENT_UNALLOCATED) {
		bool zero;
		enum step step = below_is_zero(w, io, cluster_start(img, pos), &zero);

		if (step == STEP_WAIT || zero)
			return step;
	} else if (ext->type == EXTENT_ZERO && !(whole && unmap && ext->host)) {
		return STEP_NEXT;
	}
	if (whole && !unmap && qcow2_may_write_in_place(ext) && img->version >= 3)
		return set_entries(w, io, pos, nr, qcow2_l2_entry_make_zero(ext->host), true);
	if (whole && (unmap || !qcow2_may_write_in_place(ext)) && zero_entry(io, &val))
		return set_entries(w, io, pos, nr, val, false);
	if (written_in_place(ext))
		qcow2_start_in_place(w, io, pos, min(len, MAX_OP_BYTES - head), ext);
	else
		qcow2_start_allocating(w, io, pos, min(len, img->cluster_size - head), true, ext);
	return STEP_WAIT;
}

/*
 * How many clusters from @pos on, where @ext is, are handled at once: 1, or those whose data lies
 * side by side, except a last one that is not whole, up to the first that is busy.
 */
static u32 piece(struct qcow2_writer *w, struct qcow2_io *io, u64 pos, u64 end,
		 const struct extent *ext)
{
	struct qcow2_image *img = w->img;
	u64 first = qcow2_cluster_index(img, pos), last;
	struct extent more;
	struct cow_op *op;

	if (ext->type != EXTENT_DATA || !whole_cluster(io, pos, end))
		return 1;
	/*
	 * Only one cluster is known if the slice has been evicted meanwhile; and a block device may
	 * end inside the cluster, which cuts its data short.
	 */
	qcow2_image_lookup(img, pos, end - pos, &more);
	if (more.type != EXTENT_DATA || more.len <= img->cluster_size)
		return 1;
	last = pos + more.len == io->dev->size ?
	       qcow2_cluster_index(img, pos + more.len - 1) :
	       qcow2_cluster_index(img, pos + more.len) - 1;
	op = qcow2_op_of(w, first, last);
	return (op ? op->first : last + 1) - first;
}

/* Find out what the cluster at @pos is; the slice is read if need be. */
static enum step look(struct qcow2_writer *w, struct qcow2_io *io, u64 pos, struct extent *ext)
{
	if (qcow2_wait_for_op(w, io, qcow2_cluster_index(w->img, pos)))
		return STEP_WAIT;
	if (bio_op(io_bio(io)) == REQ_OP_DISCARD ? qcow2_commit_discard_pressure(w->img) :
						   qcow2_commit_pressure(w->img)) {
		qcow2_stall_io(w, io);
		return STEP_WAIT;
	}
	do {
		qcow2_image_lookup(w->img, pos, w->img->cluster_size - in_cluster(w->img, pos),
				   ext);
	} while (ext->type == EXTENT_MISS && qcow2_load_missed(io, ext, &w->gather));
	if (ext->type == EXTENT_MISS)
		return STEP_WAIT;
	if (ext->type == EXTENT_INVALID) {
		qcow2_io_end(io, BLK_STS_IOERR);
		return STEP_WAIT;
	}
	return STEP_NEXT;
}

static void advance(struct qcow2_io *io, u64 pos)
{
	io->pos = pos;
	io->misses = 0;
}

static void process_range(struct qcow2_writer *w, struct qcow2_io *io, bool discard)
{
	struct qcow2_image *img = w->img;
	struct bio *bio = io_bio(io);
	u64 end = io_start(io) + bio->bi_iter.bi_size;
	u32 nr, clusters = 0;

	for (; io->pos < end; clusters += nr) {
		u64 pos = io->pos, next = cluster_start(img, pos) + img->cluster_size;
		struct extent ext;

		if (clusters >= MAX_CLUSTERS) {
			qcow2_hand_to_writer(img, io);
			return;
		}
		nr = 1;
		if (discard && !whole_cluster(io, pos, end)) {
			advance(io, next);
			continue;
		}
		if (look(w, io, pos, &ext) == STEP_WAIT)
			return;
		if (ext.type == EXTENT_UNALLOCATED && io->dev->nr_layers == 1) {
			/*
			 * Nothing is mapped: skip the rest of the slice, or of the missing table,
			 * at once.  A mapping that a write in flight is about to add there comes
			 * after us.
			 */
			qcow2_root_lookup(img, &img->root, pos, end - pos, &ext);
			advance(io, ext.type == EXTENT_UNALLOCATED ? pos + ext.len : next);
			continue;
		}
		nr = piece(w, io, pos, end, &ext);
		if ((discard ? discard_piece(w, io, pos, nr, &ext) :
			       zero_piece(w, io, pos, end, nr, &ext)) == STEP_WAIT)
			return;
		advance(io, next + (u64)(nr - 1) * img->cluster_size);
	}
	qcow2_finish_io(w, io);
}

void qcow2_process_discard(struct qcow2_writer *w, struct qcow2_io *io)
{
	process_range(w, io, true);
}

void qcow2_process_write_zeroes(struct qcow2_writer *w, struct qcow2_io *io)
{
	process_range(w, io, false);
}
