// SPDX-License-Identifier: GPL-2.0-only
/*
 * cow.c - operations on guest clusters: which clusters are busy, and the I/O that fills and writes
 * them.
 *
 * Up to COPY_BYTES is read once and written with a single write of head, payload and tail.  A
 * larger copy is done in pieces first, then the payload is written.  Filling with zeroes needs no
 * memory.
 *
 * Everything is called by the writer's work item; only part_done() runs elsewhere, maybe in
 * interrupt context.  Takes no locks.
 */
#include <linux/device-mapper.h>
#include <linux/highmem.h>
#include <linux/interval_tree_generic.h>
#include <linux/slab.h>

#include "chain.h"
#include "compat.h"
#include "cow.h"
#include "decompress.h"
#include "device.h"
#include "entries.h"
#include "generation.h"
#include "image.h"
#include "io.h"
#include "lookup.h"
#include "storage.h"
#include "table-cache.h"
#include "view-map.h"
#include "writer.h"

#define MAX_ZERO_VECS	(MAX_OP_BYTES / ZERO_BUF_SIZE)

#define RESERVED_OPS		4
#define RESERVED_BUFFERS	2

static struct kmem_cache *op_slab;
static struct bio_vec zero_vecs[MAX_ZERO_VECS];	/* constant: MAX_OP_BYTES of zeroes */

#define OP_FIRST(op)	((op)->first)
#define OP_LAST(op)	((op)->last)
INTERVAL_TREE_DEFINE(struct cow_op, busy, u64, busy_last, OP_FIRST, OP_LAST,
		     static inline __maybe_unused, busy)

struct cow_op *qcow2_op_alloc(struct qcow2_writer *w, bool need_freed, bool need_buf)
{
	struct cow_op *op = mempool_alloc(&w->ops, NO_WAIT);

	if (!op)
		return NULL;
	memset(op, 0, offsetof(struct cow_op, parts));
	op->w = w;
	INIT_LIST_HEAD(&op->waiters);
	if (need_freed)
		op->freed = qcow2_freed_alloc(w->img);
	if (need_buf)
		op->buf = mempool_alloc(&w->buffers, NO_WAIT);
	if ((need_freed && !op->freed) || (need_buf && !op->buf)) {
		qcow2_op_free(w, op);
		return NULL;
	}
	return op;
}

void qcow2_op_free(struct qcow2_writer *w, struct cow_op *op)
{
	if (op->l2)
		qcow2_slice_put(op->l2);
	if (op->buf)
		mempool_free(op->buf, &w->buffers);
	qcow2_view_unpin(op->held);
	qcow2_freed_drop(w->img, op->freed);
	mempool_free(op, &w->ops);
}

/* Bytes of its clusters. */
static u32 op_size(const struct cow_op *op)
{
	return (op->last - op->first + 1) << op->w->img->cluster_bits;
}

static void put_parts(struct cow_op *op)
{
	struct qcow2_writer *w = op->w;

	rcu_read_lock();	/* see io.h */
	if (atomic_dec_and_test(&op->pending) && llist_add(&op->finished, &w->finished))
		qcow2_worker_kick(&w->img->write_worker);
	rcu_read_unlock();
}

static void part_done(struct storage_io *sio)
{
	struct cow_op *op = container_of(sio, struct op_part, sio)->op;

	if (sio->error)
		WRITE_ONCE(op->error, sio->error);
	put_parts(op);
}

static void begin_parts(struct cow_op *op, enum op_stage stage)
{
	op->stage = stage;
	op->nr_parts = 0;
	atomic_set(&op->pending, 1);
}

/* Start one I/O.  @bv is NULL for memory that is described by @page and @offset. */
static void add_part(struct cow_op *op, struct qcow2_storage *st, blk_opf_t opf, u64 pos, u32 len,
		     const struct bio_vec *bv, unsigned int nr_bv, unsigned int bv_skip,
		     struct page *page, u32 offset)
{
	struct op_part *part = &op->parts[op->nr_parts++];

	if (!bv) {
		bvec_set_page(&part->bv, page, len, offset);
		bv = &part->bv;
		nr_bv = 1;
	}
	part->op = op;
	part->sio.st = st;
	part->sio.opf = opf;
	part->sio.owner = op->io ? io_bio(op->io) : NULL;
	part->sio.pos = pos;
	part->sio.len = len;
	part->sio.bv = bv;
	part->sio.nr_bv = nr_bv;
	part->sio.bv_skip = bv_skip;
	part->sio.done = part_done;
	atomic_inc(&op->pending);
	if (op_is_write(opf))
		qcow2_storage_gather_write(&op->w->gather, &part->sio);
	else
		storage_submit(&part->sio);
}

/*
 * A table slice was evicted since qcow2_chain_reads_zeroes() saw it: read the slice synchronously.
 * The slice is never one of the top image, since the operation has that one pinned.  So waiting for
 * memory is allowed: all holders of slices of lower images give them back without the writer.
 */
static int load_again(struct qcow2_writer *w, const struct extent *ext)
{
	struct slice *s;

	qcow2_storage_gather_submit(&w->gather);
	s = qcow2_slice_get(&ext->img->cache, SLICE_L2, ext->host >> SLICE_SHIFT);

	if (IS_ERR(s))
		return PTR_ERR(s);
	qcow2_slice_put(s);
	return 0;
}

/*
 * Read [from, to) of the guest clusters into op->buf, which holds them from @base on.  Reads that
 * cannot all be started at once are synchronous, with all writes under way.
 */
static int read_range(struct qcow2_writer *w, struct cow_op *op, u32 from, u32 to, u32 base)
{
	u64 goff = op->first << w->img->cluster_bits;
	int r = 0;

	while (from < to && !r) {
		void *mem = page_address(op->buf) + from - base;
		struct extent ext;

		qcow2_chain_lookup(op->dev, 0, goff + from, to - from, &ext);
		switch (ext.type) {
		case EXTENT_MISS:
			r = load_again(w, &ext);
			continue;
		case EXTENT_ZERO:
		case EXTENT_BEYOND:
			memset(mem, 0, ext.len);
			break;
		case EXTENT_DATA:
			if (op->nr_parts < OP_PARTS) {
				add_part(op, ext.st, REQ_OP_READ, ext.host, ext.len, NULL, 0,
					 0, op->buf, from - base);
				break;
			}
			qcow2_storage_gather_submit(&w->gather);
			r = qcow2_storage_rw_sync(ext.st, REQ_OP_READ, ext.host, mem, ext.len);
			break;
		case EXTENT_COMPRESSED:
			qcow2_storage_gather_submit(&w->gather);
			r = qcow2_decompress_read(&ext, in_cluster(ext.img, goff + from), mem);
			break;
		default:
			r = -EIO;
		}
		from += ext.len;
	}
	return r;
}

/* The parts of the piece at op->copied that the payload does not overwrite. */
static void piece_ranges(struct qcow2_writer *w, const struct cow_op *op, u32 *head_end,
			 u32 *tail_start, u32 *end)
{
	u32 from = op->copied, to = min_t(u32, from + COPY_BYTES, op_size(op));

	*end = to;
	*head_end = clamp(op->start, from, to);
	*tail_start = clamp(op->start + op->len, from, to);
}

static void start_reads(struct qcow2_writer *w, struct cow_op *op)
{
	u32 head_end, tail_start, end;
	int r;

	piece_ranges(w, op, &head_end, &tail_start, &end);
	begin_parts(op, STAGE_READ);
	r = read_range(w, op, op->copied, head_end, op->copied);
	if (!r)
		r = read_range(w, op, tail_start, end, op->copied);
	if (r)
		WRITE_ONCE(op->error, r);
	put_parts(op);
}

static void write_piece(struct qcow2_writer *w, struct cow_op *op)
{
	struct qcow2_storage *st = w->img->data;
	u32 head_end, tail_start, end;

	piece_ranges(w, op, &head_end, &tail_start, &end);
	begin_parts(op, STAGE_WRITE_PIECE);
	if (head_end > op->copied)
		add_part(op, st, REQ_OP_WRITE, op->host + op->copied, head_end - op->copied, NULL,
			 0, 0, op->buf, 0);
	if (end > tail_start)
		add_part(op, st, REQ_OP_WRITE, op->host + tail_start, end - tail_start, NULL, 0, 0,
			 op->buf, tail_start - op->copied);
	put_parts(op);
}

static unsigned int add_zero_vecs(struct cow_op *op, unsigned int n, u32 len)
{
	for (; len; n++) {
		u32 bytes = min_t(u32, len, ZERO_BUF_SIZE);

		bvec_set_page(&op->vecs[n], qcow2_zero_page, bytes, 0);
		len -= bytes;
	}
	return n;
}

static unsigned int zero_vecs_for(u32 len)
{
	return DIV_ROUND_UP(len, ZERO_BUF_SIZE);
}

/* Head or tail of the clusters, as vectors. */
static unsigned int add_fill_vecs(struct cow_op *op, unsigned int n, u32 from, u32 len)
{
	if (!len)
		return n;
	if (op->fill == FILL_ZERO)
		return add_zero_vecs(op, n, len);
	bvec_set_page(&op->vecs[n], op->buf, len, from);
	return n + 1;
}

static unsigned int payload_vecs(const struct cow_op *op, struct bio *bio)
{
	struct bvec_iter iter;
	struct bio_vec bv;
	unsigned int n = 0;

	if (op->payload == PAYLOAD_ZEROES)
		return zero_vecs_for(op->len);
	if (op->payload == PAYLOAD_NONE)
		return 0;
	bio_for_each_bvec(bv, bio, iter)
		n++;
	return n;
}

/* Head, payload and tail in one write. */
static void write_combined(struct qcow2_writer *w, struct cow_op *op, struct bio *bio, u32 tail)
{
	unsigned int n = add_fill_vecs(op, 0, 0, op->start);

	if (op->payload == PAYLOAD_BIO) {
		struct bvec_iter iter;
		struct bio_vec bv;

		bio_for_each_bvec(bv, bio, iter)
			op->vecs[n++] = bv;
	} else {
		n = add_zero_vecs(op, n, op->len);
	}
	n = add_fill_vecs(op, n, op->start + op->len, tail);
	add_part(op, w->img->data, REQ_OP_WRITE, op->host, op_size(op), op->vecs, n, 0, NULL, 0);
}

static void write_payload(struct qcow2_writer *w, struct cow_op *op, struct bio *bio)
{
	struct qcow2_storage *st = w->img->data;

	if (op->payload == PAYLOAD_ZEROES)
		add_part(op, st, REQ_OP_WRITE, op->host + op->start, op->len, zero_vecs,
			 zero_vecs_for(op->len), 0, NULL, 0);
	else if (op->payload == PAYLOAD_BIO)
		add_part(op, st, REQ_OP_WRITE, op->host + op->start, op->len,
			 __bvec_iter_bvec(bio->bi_io_vec, bio->bi_iter), payload_vecs(op, bio),
			 bio->bi_iter.bi_offset, NULL, 0);
}

static void write_fill(struct qcow2_writer *w, struct cow_op *op, u32 from, u32 len)
{
	if (!len)
		return;
	if (op->fill == FILL_ZERO)
		add_part(op, w->img->data, REQ_OP_WRITE, op->host + from, len, zero_vecs,
			 zero_vecs_for(len), 0, NULL, 0);
	else
		add_part(op, w->img->data, REQ_OP_WRITE, op->host + from, len, NULL, 0, 0, op->buf,
			 from);
}

static void start_writes(struct qcow2_writer *w, struct cow_op *op)
{
	u32 tail = op_size(op) - op->start - op->len;
	struct bio *bio = op->io ? io_bio(op->io) : NULL;
	bool fill = op->fill != FILL_NONE && op->copied < op_size(op);

	begin_parts(op, STAGE_WRITE);
	if (!fill) {
		write_payload(w, op, bio);
	} else if (zero_vecs_for(op->start) + payload_vecs(op, bio) + zero_vecs_for(tail) <=
		   OP_VECS) {
		write_combined(w, op, bio, tail);
	} else {
		write_fill(w, op, 0, op->start);
		write_payload(w, op, bio);
		write_fill(w, op, op->start + op->len, tail);
	}
	put_parts(op);
}

void qcow2_op_start(struct qcow2_writer *w, struct cow_op *op)
{
	WARN_ON_ONCE(op->first > op->last || (op->new_cluster && op->first != op->last));
	op->epoch = epoch_enter(&w->img->epoch);
	busy_insert(op, &w->busy);
	WRITE_ONCE(w->nr_ops, w->nr_ops + 1);
	if (op->fill == FILL_COPY)
		start_reads(w, op);
	else
		start_writes(w, op);
}

void qcow2_op_release(struct qcow2_writer *w, struct cow_op *op)
{
	busy_remove(op, &w->busy);
	WRITE_ONCE(w->nr_ops, w->nr_ops - 1);
	epoch_leave(op->epoch);
}

struct cow_op *qcow2_op_of(struct qcow2_writer *w, u64 first, u64 last)
{
	return busy_iter_first(&w->busy, first, last);
}

bool qcow2_op_continue(struct qcow2_writer *w, struct cow_op *op)
{
	if (op->error || op->stage == STAGE_WRITE)
		return false;
	if (op_size(op) <= COPY_BYTES) {
		start_writes(w, op);
		return true;
	}
	if (op->stage == STAGE_READ) {
		write_piece(w, op);
		return true;
	}
	op->copied += COPY_BYTES;
	if (op->copied < op_size(op))
		start_reads(w, op);
	else
		start_writes(w, op);
	return true;
}

/*
 * Compound, since filesystems take references to single pages of the memory they get (NFS does).
 */
static void *copy_alloc(gfp_t gfp, void *unused)
{
	return alloc_pages(gfp | __GFP_COMP, COPY_ORDER);
}

static void copy_free(void *page, void *unused)
{
	__free_pages(page, COPY_ORDER);
}

int qcow2_op_pools_init(struct qcow2_writer *w)
{
	int r = mempool_init_slab_pool(&w->ops, RESERVED_OPS, op_slab);

	return r ?: mempool_init(&w->buffers, RESERVED_BUFFERS, copy_alloc, copy_free, NULL);
}

void qcow2_op_pools_exit(struct qcow2_writer *w)
{
	mempool_exit(&w->buffers);
	mempool_exit(&w->ops);
}

int qcow2_cow_module_init(void)
{
	unsigned int i;

	for (i = 0; i < MAX_ZERO_VECS; i++)
		bvec_set_page(&zero_vecs[i], qcow2_zero_page, ZERO_BUF_SIZE, 0);
	op_slab = KMEM_CACHE(cow_op, 0);
	return op_slab ? 0 : -ENOMEM;
}

void qcow2_cow_module_exit(void)
{
	kmem_cache_destroy(op_slab);
}
