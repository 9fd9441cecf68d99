// SPDX-License-Identifier: GPL-2.0-only
/*
 * storage-file.c - an image in a file: everything is direct I/O by kiocb on the file.
 *
 * Guest bios are submitted in their submitter's context where that is safe (may_submit_inline()
 * says when) and works without waiting; otherwise from a per-CPU worker, where the filesystem may
 * sleep for an extent block or a journal.  Takes no locks of its own; the filesystem's locks nest
 * inside all of ours.
 */
#include <linux/blk-cgroup.h>
#include <linux/device-mapper.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/ioprio.h>
#include <linux/kthread.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task_stack.h>
#include <linux/slab.h>
#include <linux/stat.h>
#include <linux/uio.h>

#include "compat.h"
#include "io.h"
#include "storage.h"

/* Bios that one CPU has handed to its worker. */
struct storage_cpu_queue {
	struct llist_head bios;		/* lock-free; drained by @work only */
	struct work_struct work;
};

static unsigned int enter_noio(void)
{
	/*
	 * The flags change only in this task.  That includes the scheduler, when it preempts the
	 * task while its block plug is open, which KCSAN would take for a race.
	 */
	return data_race(memalloc_noio_save());
}

static void leave_noio(unsigned int noio)
{
	/* As in enter_noio(). */
	data_race((memalloc_noio_restore(noio), 0));
}

/* Zero what a read past the end of the file has not filled. */
static void zero_rest(struct storage_io *sio, unsigned int done)
{
	struct bvec_iter iter = { .bi_size = sio->len, .bi_offset = sio->bv_skip };

	bvec_iter_advance(sio->bv, &iter, done);
	while (iter.bi_size) {
		struct bio_vec bv = bvec_iter_bvec(sio->bv, iter);

		memzero_bvec(&bv);
		bvec_iter_advance(sio->bv, &iter, bv.bv_len);
	}
}

/*
 * Any context.  The task that submits the bio is charged, unless that was noted already; most bios
 * that would have had to wait come here at once, in that task.
 */
static void hand_to_worker(struct storage_io *sio)
{
	struct qcow2_storage *st = sio->st;
	struct storage_cpu_queue *q;

	if (in_task())
		bio_associate_blkg(sio->owner);
	q = get_cpu_ptr(st->queues);
	if (llist_add(&sio->node, &q->bios))
		queue_work_on(smp_processor_id(), st->wq, &q->work);
	put_cpu_ptr(st->queues);
}

static void file_io_put(struct storage_io *sio)
{
	if (!atomic_dec_and_test(&sio->ref))
		return;
	if (sio->again)
		hand_to_worker(sio);
	else
		sio->done(sio);
}

static void file_complete(struct kiocb *iocb, long ret)
{
	struct storage_io *sio = container_of(iocb, struct storage_io, iocb);
	bool write = op_is_write(sio->opf);

	if (write)
		kiocb_end_write(iocb);
	if (iocb->ki_flags & IOCB_NOWAIT && ret != sio->len) {
		/* The I/O may only have been unable to wait: doing it once more is harmless. */
		sio->again = true;
	} else if (ret < 0) {
		sio->error = ret == -EDQUOT ? -ENOSPC : ret;
	} else if (ret < sio->len && write) {
		/* A write that stops half-way without an error has no more room. */
		sio->error = -ENOSPC;
	} else if (ret < sio->len) {
		/*
		 * A short read at the end of the file, which may have grown since: the part behind
		 * the old end reads as zeroes.  Anywhere else it is an error.
		 */
		if (sio->pos + ret < sio->end)
			sio->error = -EIO;
		else
			zero_rest(sio, ret);
	}
	file_io_put(sio);
}

static u16 io_priority(const struct storage_io *sio)
{
	if (sio->owner && IOPRIO_PRIO_CLASS(sio->owner->bi_ioprio) != IOPRIO_CLASS_NONE)
		return sio->owner->bi_ioprio;
	return get_current_ioprio();
}

/*
 * sio->ref is 2: one for the completion and one for us, because filesystems look at the kiocb
 * after they have completed it.
 */
static void start_kiocb(struct storage_io *sio, int flags)
{
	struct file *file = sio->st->file;
	struct kiocb *iocb = &sio->iocb;
	unsigned int noio = enter_noio();
	struct iov_iter iter;
	ssize_t ret;

	iov_iter_bvec(&iter, flags & IOCB_WRITE ? ITER_SOURCE : ITER_DEST, sio->bv, sio->nr_bv,
		      sio->len);
	iter.iov_offset = sio->bv_skip;

	memset(iocb, 0, sizeof(*iocb));
	iocb->ki_filp = file;
	iocb->ki_pos = sio->pos;
	iocb->ki_flags = IOCB_DIRECT | flags;
	iocb->ki_complete = file_complete;
	iocb->ki_ioprio = io_priority(sio);
	sio->again = false;
	sio->end = i_size_read(file_inode(file));
	atomic_set(&sio->ref, 2);
	ret = flags & IOCB_WRITE ? file->f_op->write_iter(iocb, &iter) :
				   file->f_op->read_iter(iocb, &iter);
	if (ret != -EIOCBQUEUED)
		file_complete(iocb, ret);
	file_io_put(sio);
	leave_noio(noio);
}

static void file_submit(struct storage_io *sio)
{
	struct super_block *sb = file_inode(sio->st->file)->i_sb;
	int flags = 0;

	if (op_is_write(sio->opf)) {
		flags = IOCB_WRITE;
		if (sio->opf & REQ_FUA)
			flags |= IOCB_DSYNC;
		sb_start_write(sb);
		__sb_writers_release(sb, SB_FREEZE_WRITE);	/* another task may end it */
	}
	if (sio->owner)
		kthread_associate_blkcg(bio_blkcg_css(sio->owner));
	start_kiocb(sio, flags);
	kthread_associate_blkcg(NULL);
}

/* Half a stack is enough for a filesystem and a stack of block devices below us. */
static bool stack_is_roomy(void)
{
	unsigned long room = (unsigned long)__builtin_frame_address(0) -
			     (unsigned long)task_stack_page(current);

	return room >= THREAD_SIZE / 2 && room < THREAD_SIZE;
}

/*
 * May the filesystem be called in the submitter's context?  Not when
 *  - the submitter is in a transaction of its own: the filesystem below would take that for its
 *    own;
 *  - bios of the submitter wait for its return: they may hold what the filesystem needs.  Nor may
 *    the filesystem's own bios join them, since the filesystem may wait for one in spite of
 *    IOCB_NOWAIT (ext4 reads extent blocks so): submit_inline() takes the list away;
 *  - the submitter is reclaiming memory: the filesystem would allocate from the last reserves;
 *  - the submitter's file size limit would be applied to the image;
 *  - the write must be durable: that is a flush of the filesystem, which waits.
 */
static bool may_submit_inline(const struct storage_io *sio)
{
	const struct bio_list *lists = current->bio_list;

	return sio->st->nowait && !(sio->opf & REQ_FUA) && !current->journal_info &&
	       !(current->flags & PF_MEMALLOC) &&
	       (!lists || (bio_list_empty(&lists[0]) && bio_list_empty(&lists[1]))) &&
	       (!op_is_write(sio->opf) || rlimit(RLIMIT_FSIZE) == RLIM_INFINITY) &&
	       stack_is_roomy();
}

/* Returns whether the I/O was started; an I/O that would wait goes to a worker. */
static bool submit_inline(struct storage_io *sio)
{
	struct super_block *sb = file_inode(sio->st->file)->i_sb;
	struct bio_list *lists = current->bio_list;
	int flags = IOCB_NOWAIT;

	if (!may_submit_inline(sio))
		return false;
	if (op_is_write(sio->opf)) {
		if (!sb_start_write_trylock(sb))
			return false;
		__sb_writers_release(sb, SB_FREEZE_WRITE);
		flags |= IOCB_WRITE;
	}
	current->bio_list = NULL;
	start_kiocb(sio, flags);
	current->bio_list = lists;
	return true;
}

static void file_bio_done(struct storage_io *sio)
{
	struct qcow2_io *io = container_of(sio, struct qcow2_io, sio);

	qcow2_io_end(io, errno_to_blk_status(sio->error));
}

static void file_submit_bios(struct work_struct *work)
{
	struct storage_cpu_queue *q = container_of(work, struct storage_cpu_queue, work);
	unsigned int throttle = current->flags & PF_LOCAL_THROTTLE;
	struct storage_io *sio, *next;
	struct llist_node *list;
	struct blk_plug plug;

	/*
	 * Our writes may clean the pages of an upper filesystem: do not let the lower one's dirty
	 * throttling hold them back.
	 */
	current->flags |= PF_LOCAL_THROTTLE;
	blk_start_plug(&plug);
	while ((list = llist_del_all(&q->bios))) {
		list = llist_reverse_order(list);
		llist_for_each_entry_safe(sio, next, list, node)
			file_submit(sio);
	}
	blk_finish_plug(&plug);
	if (!throttle)
		current->flags &= ~PF_LOCAL_THROTTLE;
}

static int file_map_bio(struct qcow2_storage *st, struct qcow2_io *io, struct bio *bio, u64 pos)
{
	const struct bio_vec *bv = __bvec_iter_bvec(bio->bi_io_vec, bio->bi_iter);
	unsigned int span = bio->bi_iter.bi_size + bio->bi_iter.bi_offset;
	struct storage_io *sio = &io->sio;
	unsigned int nr = 0, sum = 0;

	while (sum < span)
		sum += bv[nr++].bv_len;
	sio->st = st;
	sio->pos = pos;
	sio->len = bio->bi_iter.bi_size;
	sio->bv = bv;
	sio->bv_skip = bio->bi_iter.bi_offset;
	sio->nr_bv = nr;
	sio->opf = bio->bi_opf;
	sio->owner = bio;
	sio->error = 0;
	sio->done = file_bio_done;

	if (!submit_inline(sio))
		hand_to_worker(sio);
	return DM_MAPIO_SUBMITTED;
}

static int file_flush(struct qcow2_storage *st)
{
	unsigned int noio = enter_noio();
	int r = vfs_fsync_range(st->file, 0, LLONG_MAX, 1);

	leave_noio(noio);
	return r;
}

static int file_fallocate(struct qcow2_storage *st, int mode, u64 pos, u64 len)
{
	unsigned int noio = enter_noio();
	int r = vfs_fallocate(st->file, mode, pos, len);

	leave_noio(noio);
	return r == -EDQUOT ? -ENOSPC : r;
}

static int file_discard(struct qcow2_storage *st, u64 pos, u64 len)
{
	return file_fallocate(st, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, pos, len);
}

/*
 * At best the filesystem reserves the range and makes it read as zeroes at once: then later writes
 * cannot meet ENOSPC and need not fill what the guest has not written.  At least the file must
 * reach the end of the range.
 */
static int file_prepare(struct qcow2_storage *st, u64 pos, u64 len, bool *zeroed)
{
	struct inode *inode = file_inode(st->file);
	bool fresh = pos >= i_size_read(inode);
	int r;

	*zeroed = true;
	r = file_fallocate(st, FALLOC_FL_ZERO_RANGE, pos, len);
	if (r != -EOPNOTSUPP)
		return r;
	*zeroed = fresh;
	r = file_fallocate(st, 0, pos, len);
	if (r != -EOPNOTSUPP)
		return r;
	if (pos + len <= i_size_read(inode))
		return 0;
	return qcow2_storage_zero_sync(st, pos + len - st->block_size, st->block_size);
}

static int file_reserve(struct qcow2_storage *st, u64 pos, u64 len)
{
	int r = file_fallocate(st, FALLOC_FL_KEEP_SIZE, pos, len);

	return r == -EOPNOTSUPP ? 0 : r;
}

/*
 * A program that made or copied the image has left pages of it in the page cache.  Each direct
 * write has to remove the pages in its way, which may sleep: so none of the first writes could be
 * submitted inline.  Reads wait for dirty pages only.
 */
static int file_take_over(struct qcow2_storage *st)
{
	int r = filemap_write_and_wait(st->file->f_mapping);

	if (!r && st->file->f_mode & FMODE_WRITE)
		invalidate_mapping_pages(st->file->f_mapping, 0, -1);
	return r;
}

/* Direct writes to a file remove the pages in their way. */
static void file_hand_back(struct qcow2_storage *st)
{
}

static u64 file_size(struct qcow2_storage *st)
{
	return i_size_read(file_inode(st->file));
}

static u64 file_limit(struct qcow2_storage *st)
{
	return file_inode(st->file)->i_sb->s_maxbytes;
}

static u64 file_used(struct qcow2_storage *st, u64 end)
{
	struct kstat stat;

	/* Filesystems know better than inode.i_blocks, which some leave at 0. */
	if (vfs_getattr(&st->file->f_path, &stat, STATX_BLOCKS, AT_STATX_DONT_SYNC))
		return 0;
	return stat.blocks << SECTOR_SHIFT;
}

static void file_close(struct qcow2_storage *st)
{
	if (st->wq)
		destroy_workqueue(st->wq);
	free_percpu(st->queues);
}

static const struct storage_ops file_ops = {
	.map_bio = file_map_bio,
	.submit = file_submit,
	.flush = file_flush,
	.discard = file_discard,
	.prepare = file_prepare,
	.reserve = file_reserve,
	.take_over = file_take_over,
	.hand_back = file_hand_back,
	.size = file_size,
	.limit = file_limit,
	.used = file_used,
	.close = file_close,
};

int qcow2_storage_init_file(struct qcow2_storage *st)
{
	struct kstat stat;
	int cpu, r;

	if (!st->file->f_op->read_iter || !st->file->f_op->write_iter ||
	    !(st->file->f_mode & FMODE_CAN_ODIRECT))
		return -EOPNOTSUPP;
	r = vfs_getattr(&st->file->f_path, &stat, STATX_BASIC_STATS | STATX_DIOALIGN,
			AT_STATX_SYNC_AS_STAT);
	if (r)
		return r;
	st->block_size = SECTOR_SIZE;
	st->mem_align = SECTOR_SIZE;
	if (stat.result_mask & STATX_DIOALIGN) {
		if (!stat.dio_offset_align)
			return -EOPNOTSUPP;
		st->block_size = max_t(u32, SECTOR_SIZE, stat.dio_offset_align);
		st->mem_align = max_t(u32, 4, stat.dio_mem_align);
	} else if (file_inode(st->file)->i_sb->s_bdev) {
		st->block_size = bdev_logical_block_size(file_inode(st->file)->i_sb->s_bdev);
		st->mem_align = st->block_size;
	}
	st->queues = alloc_percpu(struct storage_cpu_queue);
	if (!st->queues)
		return -ENOMEM;
	for_each_possible_cpu(cpu) {
		struct storage_cpu_queue *q = per_cpu_ptr(st->queues, cpu);

		init_llist_head(&q->bios);
		INIT_WORK(&q->work, file_submit_bios);
	}
	st->wq = alloc_workqueue("qcow2_file", WQ_MEM_RECLAIM | WQ_PERCPU, 0);
	if (!st->wq) {
		free_percpu(st->queues);
		return -ENOMEM;
	}
	st->nowait = st->file->f_mode & FMODE_NOWAIT;
	st->ops = &file_ops;
	return 0;
}
