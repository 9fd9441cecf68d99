// SPDX-License-Identifier: GPL-2.0-only
/*
 * storage-gather.c - writes that lie side by side in a file become one.
 *
 * A filesystem has work to do for each write, above all where it has to note that a reserved block
 * is written now; and clusters that the writer allocates in a row lie side by side.  A block device
 * needs no gathering: the block layer merges bios itself.
 *
 * The members belong to the gathered write until that ends.  When the gathered write fails, all its
 * members are submitted again, each by itself, so that none fails for another's sector.
 *
 * Takes no locks: one task at a time gathers, and the end of a write touches only that write.
 */
#include <linux/blk-cgroup.h>
#include <linux/bvec.h>
#include <linux/slab.h>

#include "compat.h"
#include "storage.h"

#define GATHER_BYTES	(1U << 20)
#define GATHER_VECS	256U

struct gathered_io {
	struct storage_io sio;
	struct work_struct work;	/* submits the members again */
	struct llist_node *members;	/* storage_io.node */
	struct bio_vec bv[];
};

static void submit_members(struct llist_node *members)
{
	struct storage_io *sio, *next;

	llist_for_each_entry_safe(sio, next, members, node)
		storage_submit(sio);
}

static void gathered_again(struct work_struct *work)
{
	struct gathered_io *g = container_of(work, struct gathered_io, work);

	submit_members(g->members);
	kfree(g);
}

static void gathered_done(struct storage_io *gathered)
{
	struct gathered_io *g = container_of(gathered, struct gathered_io, sio);
	struct storage_io *sio, *next;

	if (gathered->error) {
		queue_work(gathered->st->wq, &g->work);
		return;
	}
	llist_for_each_entry_safe(sio, next, g->members, node) {
		sio->error = 0;
		sio->done(sio);
	}
	kfree(g);
}

static unsigned int copy_vecs(struct bio_vec *to, const struct storage_io *sio)
{
	struct bvec_iter iter = { .bi_size = sio->len, .bi_offset = sio->bv_skip };
	unsigned int n;

	for (n = 0; iter.bi_size; n++) {
		to[n] = mp_bvec_iter_bvec(sio->bv, iter);
		bvec_iter_advance(sio->bv, &iter, to[n].bv_len);
	}
	return n;
}

static struct gathered_io *join(const struct storage_gather *gather)
{
	struct storage_io *sio;
	struct gathered_io *g;

	g = kmalloc(struct_size(g, bv, gather->nr_bv), GFP_NOIO | __GFP_NORETRY | __GFP_NOWARN);
	if (!g)
		return NULL;
	INIT_WORK(&g->work, gathered_again);
	g->members = gather->first;
	g->sio.st = gather->st;
	g->sio.pos = gather->end - gather->len;
	g->sio.len = gather->len;
	g->sio.opf = gather->opf;
	g->sio.owner = gather->owner;
	g->sio.bv = g->bv;
	g->sio.bv_skip = 0;
	g->sio.nr_bv = 0;
	g->sio.done = gathered_done;
	llist_for_each_entry(sio, g->members, node)
		g->sio.nr_bv += copy_vecs(g->bv + g->sio.nr_bv, sio);
	return g;
}

/* Do both have the same cgroup and priority? */
static bool alike(struct bio *a, struct bio *b)
{
	if (!a || !b)
		return a == b;
	return bio_blkcg_css(a) == bio_blkcg_css(b) &&
	       a->bi_ioprio == b->bi_ioprio;
}

void qcow2_storage_gather_submit(struct storage_gather *gather)
{
	struct gathered_io *g = NULL;

	if (!gather->first)
		return;
	if (gather->first->next)
		g = join(gather);
	if (g)
		storage_submit(&g->sio);
	else
		submit_members(gather->first);
	gather->first = NULL;
}

void qcow2_storage_gather_write(struct storage_gather *gather, struct storage_io *sio)
{
	if (sio->st->bdev) {
		storage_submit(sio);
		return;
	}
	if (gather->first &&
	    (sio->st != gather->st || sio->pos != gather->end || sio->opf != gather->opf ||
	     !alike(sio->owner, gather->owner) ||
	     gather->len + sio->len > GATHER_BYTES || gather->nr_bv + sio->nr_bv > GATHER_VECS))
		qcow2_storage_gather_submit(gather);
	if (!gather->first) {
		gather->st = sio->st;
		gather->opf = sio->opf;
		gather->owner = sio->owner;
		gather->len = 0;
		gather->nr_bv = 0;
		gather->last = &gather->first;
	}
	sio->node.next = NULL;
	*gather->last = &sio->node;
	gather->last = &sio->node.next;
	gather->end = sio->pos + sio->len;
	gather->len += sio->len;
	gather->nr_bv += sio->nr_bv;
}
