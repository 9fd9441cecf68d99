// SPDX-License-Identifier: GPL-2.0-only
/*
 * storage.c - what the two storage backends have in common: synchronous I/O on kernel memory and
 * the shared buffer of zeroes.
 *
 * Takes no locks.
 */
#include <linux/completion.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "storage.h"

struct page *qcow2_zero_page;

struct sync_io {
	struct storage_io sio;
	struct completion done;
};

static void sync_io_done(struct storage_io *sio)
{
	complete(&container_of(sio, struct sync_io, sio)->done);
}

static int run_sync(struct qcow2_storage *st, blk_opf_t opf, u64 pos, const struct bio_vec *bv,
		    unsigned int nr_bv, unsigned int len)
{
	struct sync_io s = {
		.sio = {
			.st = st,
			.pos = pos,
			.len = len,
			.nr_bv = nr_bv,
			.opf = opf | REQ_SYNC | REQ_META,
			.bv = bv,
			.done = sync_io_done,
		},
	};

	init_completion(&s.done);
	storage_submit(&s.sio);
	wait_for_completion_io(&s.done);
	return s.sio.error;
}

int qcow2_storage_rw_sync(struct qcow2_storage *st, blk_opf_t opf, u64 pos, void *buf,
			  unsigned int len)
{
	struct bio_vec bv;

	bvec_set_virt(&bv, buf, len);
	return run_sync(st, opf, pos, &bv, 1, len);
}

int qcow2_storage_read_table(struct qcow2_storage *st, u64 pos, void *buf, u32 len)
{
	u64 size = st->ops->size(st);
	u32 there = len;

	if (pos >= size)
		there = 0;
	else if (st->bdev)	/* a file reads as zeroes there by itself */
		there = min_t(u64, len, size - pos);
	memset(buf + there, 0, len - there);
	return there ? qcow2_storage_rw_sync(st, REQ_OP_READ, pos, buf, there) : 0;
}

int qcow2_storage_zero_sync(struct qcow2_storage *st, u64 pos, u64 len)
{
	struct bio_vec bv;
	int r = 0;

	while (len && !r) {
		unsigned int n = min_t(u64, len, ZERO_BUF_SIZE);

		bvec_set_page(&bv, qcow2_zero_page, n, 0);
		r = run_sync(st, REQ_OP_WRITE, pos, &bv, 1, n);
		pos += n;
		len -= n;
	}
	return r;
}

void qcow2_storage_close(struct qcow2_storage *st)
{
	if (st->ops)
		st->ops->close(st);
	if (st->file)
		filp_close(st->file, NULL);
	st->file = NULL;
}

int qcow2_storage_module_init(void)
{
	qcow2_zero_page = alloc_pages(GFP_KERNEL | __GFP_ZERO | __GFP_COMP, ZERO_BUF_ORDER);
	return qcow2_zero_page ? 0 : -ENOMEM;
}

void qcow2_storage_module_exit(void)
{
	__free_pages(qcow2_zero_page, ZERO_BUF_ORDER);
}
