// SPDX-License-Identifier: GPL-2.0-only
/*
 * write.c - the writer: allocating writes from the bio that needs one to the new mapping.
 *
 * How a write that finds no cluster of its own goes:
 *  1. start_allocating(): make sure the L2 table exists, take a host cluster, decide what the rest
 *     of the cluster must be filled with.  One operation per guest cluster: later bios of that
 *     cluster wait on it, and mostly find a cluster of their own afterwards.
 *  2. cow.c: write the guest's data, and what fills the cluster, in one I/O where it can be.
 *  3. finish_op(): when that has completed, enter the mapping in memory and end the bio.  The
 *     mapping reaches the disk with the next commit; a FUA bio waits for that.
 *
 * Takes meta_lock to change mappings, and alloc_lock through alloc_cluster().
 */
#include <linux/device-mapper.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "alloc.h"
#include "compat.h"
#include "hooks.h"
#include "write.h"

#define RESERVED_OPS		4
#define RESERVED_BUFFERS	2

static struct kmem_cache *op_slab;

/* Try again when there may be space, unless nothing is to wait for that any more. */
static void wait_for_space(struct qcow2_writer *w, struct qcow2_io *io, bool refused,
			   const char *why)
{
	if (image_mode(w->img) >= MODE_READ_ONLY) {
		qcow2_io_end(io, BLK_STS_IOERR);
		return;
	}
	image_out_of_space(w->img, refused, why);
	qcow2_reclaim_hurry(w->img);
	if (image_gives_up(w->img))
		qcow2_io_end(io, image_no_space_status(w->img));
	else
		list_add_tail(&io->node, &w->no_space);
}

/* The storage has refused to write what @io needs, for want of space. */
static void was_refused(struct qcow2_writer *w, struct qcow2_io *io)
{
	io->retried = true;
	wait_for_space(w, io, true, "the storage has no room");
}

/* Try again when an operation, a commit or a reclaim has ended. */
void stall_io(struct qcow2_writer *w, struct qcow2_io *io)
{
	if (qcow2_commit_is_stuck(w->img)) {
		/* It ends when there is space, and a bio does not wait for that without an end. */
		wait_for_space(w, io, true, "a commit waits for room");
		return;
	}
	list_add_tail(&io->node, &w->stalled);
	qcow2_commit_relieve(w->img);
}

struct cow_op *find_busy(struct qcow2_writer *w, u64 cluster)
{
	struct cow_op *op;

	hash_for_each_possible(w->busy, op, busy, cluster)
		if (op->cluster == cluster)
			return op;
	return NULL;
}

/* A bio is done as far as the writer is concerned. */
void finish_io(struct qcow2_writer *w, struct qcow2_io *io)
{
	if (io_bio(io)->bi_opf & REQ_FUA)
		commit_add_io(w->img, io);
	else
		qcow2_io_end(io, BLK_STS_OK);
}

/* There was no cluster for @io. */
void failed_alloc(struct qcow2_writer *w, struct qcow2_io *io, int error)
{
	struct qcow2_image *img = w->img;

	if (error == -ENOMEM) {
		stall_io(w, io);
		qcow2_kick_commit(img);
		return;
	}
	if (error == -EDQUOT) {
		was_refused(w, io);
	} else if (error != -ENOSPC) {
		qcow2_io_end(io, errno_to_blk_status(error));
	} else if (qcow2_frees_pending(img) && !qcow2_commit_is_stuck(img)) {
		/* Space is on its way. */
		list_add_tail(&io->node, &w->no_space);
		qcow2_reclaim_hurry(img);
		qcow2_kick_commit(img);
	} else {
		wait_for_space(w, io, false, "no free cluster and no room to grow");
	}
}

/*
 * The L2 table of L1 entry @i does not exist: make it, full of zeroes on disk.  -EDQUOT: there was
 * a cluster, but the storage refused to write it; freeing another one does not help.
 */
static int add_l2_table(struct qcow2_image *img, u32 i)
{
	struct slice *l1 = flat_slice(&img->l1, i);
	struct freed_extent *freed;
	bool zeroed;
	u64 pos;
	int r;

	if (!qcow2_slice_has_place(l1))
		return -ENOSPC;
	freed = qcow2_freed_alloc(img);
	if (!freed || !qcow2_slice_try_prepare(l1)) {
		r = -ENOMEM;
		goto out;
	}
	r = alloc_cluster(img, &pos, &zeroed);
	if (r)
		goto out;
	if (!zeroed)
		r = storage_zero_sync(&img->st, pos, img->cluster_size);
	if (r == -ENOSPC) {
		alloc_put_back(img, pos);
		r = -EDQUOT;
		goto out;
	}
	if (!r)
		r = qcow2_add_metadata(img, pos, img->cluster_size);
	mutex_lock(&img->meta_lock);
	if (!r) {
		qcow2_slice_dirty(l1);
		slice_set_entry(l1, i, qcow2_l1_entry_make(pos));
	} else {
		qcow2_freed_add(img, &freed, pos >> img->cluster_bits);
	}
	mutex_unlock(&img->meta_lock);
out:
	qcow2_freed_drop(img, freed);
	return r == -EEXIST ? -EIO : r;
}

/* The L2 slice for @goff, pinned and ready to be changed. */
struct slice *get_l2(struct qcow2_image *img, u64 goff)
{
	u32 i = qcow2_l1_index(img, goff);
	struct slice *s;
	int r;

	if (!qcow2_table_pos(flat_entry(&img->l1, i))) {
		r = add_l2_table(img, i);
		if (r)
			return ERR_PTR(r);
	}
	s = slice_try_get(&img->cache, SLICE_L2, qcow2_l2_slice_index(img, goff));
	if (IS_ERR(s))
		return s;
	r = !qcow2_slice_has_place(s) ? -ENOSPC : !qcow2_slice_try_prepare(s) ? -ENOMEM : 0;
	if (r) {
		slice_put(s);
		return ERR_PTR(r);
	}
	return s;
}

/*
 * What must a part of a cluster be filled with, seen from layer @from of the chain?  Returns
 * FILL_ZERO or FILL_COPY; or -EAGAIN when the bio has been parked on a slice that tells.
 */
static int judge_fill(struct qcow2_writer *w, struct qcow2_io *io, unsigned int from, u64 goff,
		      u64 len)
{
	struct extent ext;

	while (len) {
		chain_lookup(io->dev, from, goff, len, &ext);
		if (ext.type == EXTENT_MISS) {
			if (load_missed(io, ext.img, goff, &w->gather))
				continue;
			return -EAGAIN;
		}
		if (ext.type != EXTENT_ZERO)
			return FILL_COPY;
		goff += ext.len;
		len -= ext.len;
	}
	return FILL_ZERO;
}

static void start_op(struct qcow2_writer *w, struct cow_op *op, struct qcow2_io *io, u64 goff,
		     u32 len)
{
	op->io = io;
	op->cluster = qcow2_cluster_index(w->img, goff);
	op->start = in_cluster(w->img, goff);
	op->len = len;
	op->epoch = epoch_enter(&w->img->epoch);
	hash_add(w->busy, &op->busy, op->cluster);
	WRITE_ONCE(w->nr_ops, w->nr_ops + 1);
	op_start(w, op);
}

/**
 * start_allocating - start an operation that gives a guest cluster a host cluster of its own
 * @w: the writer
 * @io: the bio; not owned by the caller afterwards, whatever the result
 * @goff: guest offset of what is written, in one cluster
 * @len: its length
 * @zeroes: write zeroes, not the bio's data
 * @ext: what image_lookup() said about @goff; not EXTENT_MISS
 *
 * Return: 0 if the operation was started, -EAGAIN if the bio waits for something.
 */
int start_allocating(struct qcow2_writer *w, struct qcow2_io *io, u64 goff, u32 len, bool zeroes,
		     const struct extent *ext)
{
	struct qcow2_image *img = w->img;
	u32 head = in_cluster(img, goff), tail = img->cluster_size - head - len;
	bool reuse = ext->type == EXTENT_ZERO && ext->own && ext->host;
	unsigned int from = ext->type == EXTENT_UNALLOCATED ? 1 : 0;
	u64 start = goff - head;
	int fill = FILL_NONE, r;
	struct cow_op *op;
	struct slice *l2;
	bool zeroed = false;

	if (ext->type == EXTENT_ZERO)
		fill = FILL_ZERO;
	else if (head || tail)
		fill = judge_fill(w, io, from, start, img->cluster_size);
	if (fill < 0)
		return -EAGAIN;

	/* From here on: all resources, or none. */
	if (w->nr_ops >= MAX_OPS)
		goto stall;
	op = op_alloc(w, true, fill == FILL_COPY);
	if (!op)
		goto stall;
	l2 = get_l2(img, goff);
	if (IS_ERR(l2)) {
		op_free(w, op);
		failed_alloc(w, io, PTR_ERR(l2));
		return -EAGAIN;
	}
	op->l2 = l2;
	if (reuse) {
		op->host = ext->host;
	} else {
		r = alloc_cluster(img, &op->host, &zeroed);
		if (r) {
			op_free(w, op);
			failed_alloc(w, io, r);
			return -EAGAIN;
		}
		op->new_cluster = true;
	}
	if (fill == FILL_ZERO && zeroed)
		fill = FILL_NONE;
	op->fill = fill;
	op->remap = true;
	if (zeroes)
		op->payload = zeroed && fill == FILL_NONE ? PAYLOAD_NONE : PAYLOAD_ZEROES;
	if (unlikely(image_mode(img) == MODE_OUT_OF_SPACE) && !reuse &&
	    !READ_ONCE(img->waits.refused))
		qcow2_space_freed(img);
	start_op(w, op, io, goff, len);
	return 0;
stall:
	stall_io(w, io);
	return -EAGAIN;
}

/**
 * start_in_place - start an operation that writes zeroes to part of an own cluster
 * @w: the writer
 * @io: the bio; not owned by the caller afterwards
 * @goff: guest offset
 * @len: bytes, inside one cluster
 * @ext: written in place
 *
 * Return: 0 if the operation was started, -EAGAIN if the bio waits.
 */
int start_in_place(struct qcow2_writer *w, struct qcow2_io *io, u64 goff, u32 len,
		   const struct extent *ext)
{
	struct cow_op *op;

	op = w->nr_ops < MAX_OPS ? op_alloc(w, false, false) : NULL;
	if (!op) {
		stall_io(w, io);
		return -EAGAIN;
	}
	op->host = ext->host - in_cluster(w->img, goff);
	op->payload = PAYLOAD_ZEROES;
	start_op(w, op, io, goff, len);
	return 0;
}

static void process_write(struct qcow2_writer *w, struct qcow2_io *io)
{
	struct qcow2_image *img = w->img;
	struct bio *bio = io_bio(io);
	u64 goff = io_start(io);
	struct extent ext;

	/* In no epoch: only the writer changes mappings, so what it finds cannot go away. */
	do {
		image_lookup(img, goff, bio->bi_iter.bi_size, &ext);
	} while (ext.type == EXTENT_MISS && load_missed(io, img, goff, &w->gather));
	if (written_in_place(&ext)) {
		/* The usual case after waiting for an operation on the same cluster. */
		resume_io(io);
		return;
	}
	switch (ext.type) {
	case EXTENT_MISS:
		/* Not ours any more: it waits, or has been ended. */
		break;
	case EXTENT_INVALID:
		qcow2_io_end(io, BLK_STS_IOERR);
		break;
	default:
		start_allocating(w, io, goff, bio->bi_iter.bi_size, false, &ext);
	}
}

static bool spans_clusters(struct qcow2_writer *w, struct qcow2_io *io)
{
	return in_cluster(w->img, io_start(io)) + io_bio(io)->bi_iter.bi_size >
	       w->img->cluster_size;
}

/*
 * A write to several own clusters that the storage had refused: DM cuts it no more, so it goes
 * where it went.  Where some of it is mapped elsewhere by now, a discard of the guest's has
 * overtaken it, and what a disk then holds is anybody's guess.
 */
static void process_long_write(struct qcow2_writer *w, struct qcow2_io *io)
{
	struct qcow2_image *img = w->img;
	u64 goff = io_start(io), end = goff + io_bio(io)->bi_iter.bi_size, host = 0;
	struct extent ext;
	struct slice *s;

	/* In no epoch: only the writer changes mappings, and it submits before it goes on. */
	for (; goff < end; goff += ext.len) {
		image_lookup(img, goff, end - goff, &ext);
		if (ext.type == EXTENT_MISS) {
			storage_gather_submit(&w->gather);
			s = slice_try_get(&img->cache, SLICE_L2, qcow2_l2_slice_index(img, goff));
			if (s == ERR_PTR(-ENOMEM)) {
				stall_io(w, io);
				return;
			}
			if (!IS_ERR(s)) {
				image_lookup(img, goff, end - goff, &ext);
				slice_put(s);
			}
		}
		if (!host)
			host = ext.host;
		if (!written_in_place(&ext) || ext.host - host != goff - io_start(io)) {
			qcow2_io_end(io, BLK_STS_IOERR);
			return;
		}
	}
	io->epoch = epoch_enter(&img->epoch);
	submit_in_place(io, host);
}

static void process(struct qcow2_writer *w, struct qcow2_io *io)
{
	struct bio *bio = io_bio(io);
	struct cow_op *op;

	if (image_mode(w->img) >= MODE_READ_ONLY) {
		qcow2_io_end(io, BLK_STS_IOERR);
		return;
	}
	if (io->in_place) {
		/* It was on its way to an own cluster. */
		io->in_place = false;
		was_refused(w, io);
		return;
	}
	if (qcow2_commit_pressure(w->img)) {
		stall_io(w, io);
		return;
	}
	op = find_busy(w, (bio_op(bio) == REQ_OP_WRITE ? io_start(io) : io->pos) >>
		       w->img->cluster_bits);
	if (op) {
		list_add_tail(&io->node, &op->waiters);
		return;
	}
	switch (bio_op(bio)) {
	case REQ_OP_WRITE:
		if (unlikely(spans_clusters(w, io)))
			process_long_write(w, io);
		else
			process_write(w, io);
		break;
	case REQ_OP_DISCARD:
		process_discard(w, io);
		break;
	default:
		process_write_zeroes(w, io);
	}
}

static void process_list(struct qcow2_writer *w, struct list_head *ios)
{
	struct qcow2_io *io, *next;

	list_for_each_entry_safe(io, next, ios, node)
		process(w, io);
}

/**
 * free_l2_reference - an L2 entry is replaced: its clusters lose a reference
 * @img: the image; the caller holds meta_lock
 * @freed: from qcow2_freed_alloc(); one extent is enough
 * @entry: the old entry
 */
void free_l2_reference(struct qcow2_image *img, struct freed_extent **freed, u64 entry)
{
	u64 first, last;

	if (!qcow2_l2_entry_clusters(img, entry, &first, &last))
		return;
	for (; first <= last; first++)
		qcow2_freed_add(img, freed, first);
}

/* The data is written: map it. */
static void enter_mapping(struct qcow2_writer *w, struct cow_op *op)
{
	struct qcow2_image *img = w->img;
	u32 i = op->cluster & (SLICE_ENTRIES - 1);
	u64 old, val = qcow2_l2_entry_make_data(op->host);

	mutex_lock(&img->meta_lock);
	old = slice_entry(op->l2, i);
	qcow2_slice_dirty(op->l2);
	slice_set_entry(op->l2, i, val);
	if (op->new_cluster)
		free_l2_reference(img, &op->freed, old);
	mutex_unlock(&img->meta_lock);
}

static void finish_op(struct qcow2_writer *w, struct cow_op *op)
{
	struct qcow2_image *img = w->img;
	struct qcow2_io *io = op->io;
	LIST_HEAD(waiters);

	if (!op->error && op->remap) {
		enter_mapping(w, op);
	} else if (op->error == -ENOSPC && op->new_cluster) {
		/* Through a commit it would only come back to be refused again. */
		alloc_put_back(img, op->host);
	} else if (op->error && op->new_cluster) {
		mutex_lock(&img->meta_lock);
		qcow2_freed_add(img, &op->freed, op->host >> img->cluster_bits);
		mutex_unlock(&img->meta_lock);
	}
	/* Of those that had been refused none is left to tell when they were failed. */
	if (!op->error && unlikely(READ_ONCE(img->waits.refused)) &&
	    (io->retried || (op->new_cluster && image_gives_up(img)))) {
		io->retried = false;
		image_has_room(img);
	}
	hash_del(&op->busy);
	WRITE_ONCE(w->nr_ops, w->nr_ops - 1);
	WRITE_ONCE(img->waits.wake, true);
	list_splice(&op->waiters, &waiters);
	epoch_leave(op->epoch);

	if (op->error == -ENOSPC) {
		was_refused(w, io);
	} else if (op->error) {
		qcow2_io_end(io, errno_to_blk_status(op->error));
	} else if (bio_op(io_bio(io)) == REQ_OP_WRITE) {
		finish_io(w, io);
	} else {
		io->pos += op->len;
		io->misses = 0;
		list_add(&io->node, &waiters);
	}
	op_free(w, op);
	process_list(w, &waiters);
}

static void take_list(struct list_head *from, bool *flag, struct list_head *to)
{
	if (xchg(flag, false))
		list_splice_tail_init(from, to);
}

/*
 * Nobody is to wait for space any longer, but for clusters that are on their way. What is moved to
 * @ios gets them, or is ended by failed_alloc().
 */
static void stop_waiting(struct qcow2_writer *w, struct list_head *ios)
{
	if (image_mode(w->img) < MODE_READ_ONLY && qcow2_frees_pending(w->img) &&
	    !qcow2_commit_is_stuck(w->img)) {
		qcow2_reclaim_hurry(w->img);
		qcow2_commit_relieve(w->img);
	} else {
		list_splice_tail_init(&w->no_space, ios);
	}
}

static void writer_work(struct work_struct *work)
{
	struct qcow2_image *img = container_of(work, struct qcow2_image, write_worker.work);
	struct qcow2_writer *w = img->writer;
	unsigned int noio = memalloc_noio_save();
	struct qcow2_io *io, *next_io;
	struct cow_op *op, *next;
	struct llist_node *list;
	struct blk_plug plug;
	LIST_HEAD(ios);

	hook_writer();
	blk_start_plug(&plug);
	list = llist_reverse_order(llist_del_all(&w->finished));
	llist_for_each_entry_safe(op, next, list, finished)
		if (!op_continue(w, op))
			finish_op(w, op);
	/* What comes next may have to wait, for a table or for space. */
	storage_gather_submit(&w->gather);
	/* Without a bio the writer touches nothing but itself: writer_stop() relies on it. */
	if (!list_empty(&w->no_space) &&
	    (READ_ONCE(img->waits.release) || READ_ONCE(img->waits.expired)))
		stop_waiting(w, &ios);
	take_list(&w->stalled, &img->waits.wake, &ios);
	take_list(&w->no_space, &img->waits.space, &ios);
	list = llist_reverse_order(llist_del_all(&w->incoming));
	llist_for_each_entry_safe(io, next_io, list, lnode)
		list_add_tail(&io->node, &ios);
	process_list(w, &ios);
	storage_gather_submit(&w->gather);
	blk_finish_plug(&plug);
	if (READ_ONCE(img->waits.wake) && !list_empty(&w->stalled))
		qcow2_worker_kick(&img->write_worker);
	memalloc_noio_restore(noio);
}

/**
 * writer_add - hand a bio to the writer
 * @img: a writable image
 * @io: a write that needs an allocation, cut to one cluster; or a DISCARD or WRITE_ZEROES
 *
 * Any context.
 */
void writer_add(struct qcow2_image *img, struct qcow2_io *io)
{
	rcu_read_lock();	/* see io.h */
	if (llist_add(&io->lnode, &img->writer->incoming))
		qcow2_worker_kick(&img->write_worker);
	rcu_read_unlock();
}

/**
 * writer_grown - somebody says that the storage has room now
 * @img: a writable image
 *
 * Whatever waits is tried, and may wait anew.
 */
void writer_grown(struct qcow2_image *img)
{
	WRITE_ONCE(img->waits.refused, false);
	qcow2_space_freed(img);
	if (qcow2_commit_is_stuck(img))
		qcow2_kick_commit(img);
}

static void space_poll(struct work_struct *work)
{
	struct qcow2_image *img = container_of(to_delayed_work(work), struct qcow2_image,
					       waits.poll);
	struct qcow2_waits *w = &img->waits;

	if (READ_ONCE(w->release))
		return;
	/*
	 * Before the mode is looked at: whoever saw no stuck commit yet may just be saying that
	 * there is room.  A commit that fails again says otherwise, and has this called again.
	 */
	if (qcow2_commit_is_stuck(img))
		qcow2_kick_commit(img);
	if (image_mode(img) != MODE_OUT_OF_SPACE)
		return;
	/* Where no size tells, the storage is simply asked again. */
	if (!img->st.bdev || READ_ONCE(w->refused) ||
	    img->st.ops->limit(&img->st) > READ_ONCE(w->last_limit))
		qcow2_retry_waiting(img);
	if (w->space_timeout && !READ_ONCE(w->expired) &&
	    time_after(jiffies, READ_ONCE(w->no_space_since) +
				(unsigned long)w->space_timeout * HZ)) {
		DMERR("%s: no space for %u seconds: failing writes", img->name, w->space_timeout);
		WRITE_ONCE(w->expired, true);
		qcow2_worker_kick(&img->write_worker);
	}
	queue_delayed_work(img->write_worker.wq, &w->poll, SPACE_POLL);
}

/**
 * writer_release_waiting - end the bios that wait for space
 * @img: a writable image that is being suspended
 * @noflush: give them back to DM instead of failing them
 *
 * Until writer_resume() such bios are ended as soon as they come.
 */
void writer_release_waiting(struct qcow2_image *img, bool noflush)
{
	cancel_delayed_work_sync(&img->waits.poll);
	img->waits.noflush = noflush;
	/* Who sees it also sees noflush; pairs with the smp_load_acquire() of its readers. */
	smp_store_release(&img->waits.release, true);
	qcow2_worker_kick(&img->write_worker);
	if (qcow2_commit_is_stuck(img))
		qcow2_kick_commit(img);
}

/**
 * writer_flush - wait until the writer has nothing to do
 * @img: a writable image; no bio is coming
 */
void writer_flush(struct qcow2_image *img)
{
	cancel_delayed_work_sync(&img->waits.poll);
	do {
		flush_work(&img->write_worker.work);
	} while (READ_ONCE(img->writer->nr_ops));
}

/**
 * writer_resume - take bios again
 * @img: a writable image
 */
void writer_resume(struct qcow2_image *img)
{
	WRITE_ONCE(img->waits.release, false);
	writer_grown(img);
}

/**
 * qcow2_writer_configure - take over what the table says
 * @img: a writable image that is suspended
 * @f: the features of the table that becomes live
 */
void qcow2_writer_configure(struct qcow2_image *img, const struct qcow2_features *f)
{
	img->waits.error_if_no_space = f->error_if_no_space;
	img->waits.space_timeout = f->space_timeout;
	img->writer->discard_no_unref = f->discard_no_unref;
	qcow2_alloc_set_passdown(img, !f->no_discard_passdown);
}

/*
 * Compound, since filesystems take references to single pages of what they are given (NFS does).
 */
static void *copy_alloc(gfp_t gfp, void *unused)
{
	return alloc_pages(gfp | __GFP_COMP, COPY_ORDER);
}

static void copy_free(void *page, void *unused)
{
	__free_pages(page, COPY_ORDER);
}

/**
 * writer_init - set up
 * @img: the image
 *
 * Return: 0 or -ENOMEM; writer_exit() must be called either way.
 */
int writer_init(struct qcow2_image *img)
{
	struct qcow2_writer *w = kzalloc(sizeof(*w), GFP_KERNEL);
	int r;

	if (!w)
		return -ENOMEM;
	img->writer = w;
	w->img = img;
	init_llist_head(&w->incoming);
	init_llist_head(&w->finished);
	hash_init(w->busy);
	INIT_LIST_HEAD(&w->stalled);
	INIT_LIST_HEAD(&w->no_space);
	INIT_WORK(&img->write_worker.work, writer_work);
	INIT_DELAYED_WORK(&img->waits.poll, space_poll);
	r = mempool_init_slab_pool(&w->ops, RESERVED_OPS, op_slab);
	if (!r)
		r = mempool_init(&w->buffers, RESERVED_BUFFERS, copy_alloc, copy_free, NULL);
	if (r)
		return r;
	img->write_worker.wq = alloc_workqueue("qcow2_writer", WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	return img->write_worker.wq ? 0 : -ENOMEM;
}

/**
 * writer_stop_polling - look for space no more
 * @img: the image, quiet; before commit_stop(), since looking for space starts commits
 */
void writer_stop_polling(struct qcow2_image *img)
{
	if (!img->writer)
		return;
	WRITE_ONCE(img->waits.release, true);
	cancel_delayed_work_sync(&img->waits.poll);
}

/**
 * writer_stop - let what has been queued come to its end
 * @img: the image, quiet, after commit_stop(): nobody wakes the writer any more
 */
void writer_stop(struct qcow2_image *img)
{
	if (img->write_worker.wq)
		destroy_workqueue(img->write_worker.wq);
	img->write_worker.wq = NULL;
}

/**
 * writer_exit - free what writer_init() made
 * @img: the image, after writer_stop()
 */
void writer_exit(struct qcow2_image *img)
{
	struct qcow2_writer *w = img->writer;

	if (!w)
		return;
	mempool_exit(&w->buffers);
	mempool_exit(&w->ops);
	kfree(w);
	img->writer = NULL;
}

int writer_module_init(void)
{
	op_slab = KMEM_CACHE(cow_op, 0);
	return op_slab ? 0 : -ENOMEM;
}

void writer_module_exit(void)
{
	kmem_cache_destroy(op_slab);
}
