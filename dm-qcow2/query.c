// SPDX-License-Identifier: GPL-2.0-only
/*
 * query.c - what the extents of a disk are: the answer to the message "map".
 *
 * Each layer is asked in turn, since the answer also names the layer.  Nothing is read from the
 * clusters that are found, so no epoch is entered.
 *
 * A worker does it for the process that asks: guest bios may wait for the same table, and reading
 * the table must not end early for a signal, nor have the process's priority or charge its cgroup.
 * A page ends soon, since a suspend, with the guest's I/O held, waits until a message has ended.
 *
 * Takes no locks.
 */
#include <linux/device-mapper.h>
#include <linux/jiffies.h>
#include <linux/sched/mm.h>
#include <linux/workqueue.h>

#include "chain.h"
#include "device.h"
#include "entries.h"
#include "image.h"
#include "lookup.h"
#include "query.h"
#include "table-cache.h"

#define PAGE_TIME	(HZ / 10)	/* after which a page ends with the next extent */
#define MAX_LINE	96		/* bytes of one extent's line */

struct told {
	const char *kind;
	unsigned int depth;
	u64 start;
	u64 len;
	u64 host;		/* NO_PLACE: no cluster has a place */
};

#define NO_PLACE	U64_MAX

/* Ask one layer about @goff; read the slice that tells, if it is not in memory. */
static int ask_layer(const struct qcow2_layer *layer, u64 goff, u64 len, struct extent *ext)
{
	struct slice *s;

	for (;;) {
		qcow2_layer_lookup(layer, goff, len, ext);
		if (ext->type != EXTENT_MISS)
			return 0;
		s = qcow2_slice_get(&ext->img->cache, SLICE_L2, ext->host >> SLICE_SHIFT);
		if (IS_ERR(s))
			return PTR_ERR(s);
		/* With the pin the slice stays for one more look. */
		qcow2_layer_lookup(layer, goff, len, ext);
		qcow2_slice_put(s);
		if (ext->type != EXTENT_MISS)
			return 0;
	}
}

static int ask_chain(struct qcow2_dev *dev, u64 goff, struct told *t)
{
	u64 len = dev->size - goff;
	struct extent ext;
	int r;

	*t = (struct told){ .kind = "unallocated", .start = goff, .len = len, .host = NO_PLACE };
	for (t->depth = 0; t->depth < dev->nr_layers; t->depth++) {
		const struct qcow2_layer *layer = &dev->layers[t->depth];

		/* "Backing": past the end of a shorter layer are zeroes, whatever lies below. */
		if (goff >= layer->size)
			break;
		t->len = min(t->len, layer->size - goff);
		if (layer->img->raw) {
			t->kind = "data";
			t->host = goff;
			return 0;
		}
		r = ask_layer(layer, goff, t->len, &ext);
		if (r)
			return r;
		t->len = ext.len;
		switch (ext.type) {
		case EXTENT_UNALLOCATED:
			continue;
		case EXTENT_ZERO:
			/* The next cluster may keep another host cluster, or none. */
			t->kind = "zero";
			if (ext.host) {
				t->host = ext.host + in_cluster(ext.img, goff);
				t->len = min_t(u64, t->len, ext.img->cluster_size -
							    in_cluster(ext.img, goff));
			}
			return 0;
		case EXTENT_DATA:
		case EXTENT_BEYOND:
			t->kind = "data";
			t->host = ext.host;
			return 0;
		case EXTENT_COMPRESSED:
			t->kind = "compressed";
			return 0;
		default:
			return -EIO;
		}
	}
	t->depth--;
	return 0;
}

static bool goes_on(const struct told *t, const struct told *next)
{
	return t->kind == next->kind && t->depth == next->depth &&
	       (t->host == NO_PLACE ? next->host == NO_PLACE : next->host == t->host + t->len);
}

static unsigned int emit(const struct told *t, char *result, unsigned int sz, unsigned int maxlen)
{
	DMEMIT("%llu %llu %s %u", t->start >> SECTOR_SHIFT, t->len >> SECTOR_SHIFT, t->kind,
	       t->depth);
	if (t->host != NO_PLACE)
		DMEMIT(" %llu", t->host);
	DMEMIT("\n");
	return sz;
}

/* Answer with one page. */
static int tell(struct qcow2_dev *dev, u64 goff, char *result, unsigned int maxlen)
{
	unsigned long end = jiffies + PAGE_TIME;
	struct told next, t = { };
	unsigned int sz = 0;
	int r = 0;

	do {
		r = ask_chain(dev, goff, &next);
		if (r) {
			DMERR("%s: map: bad table at guest offset %llu: error %d",
			      dev->layers[0].img->name, goff, r);
			break;
		}
		goff += next.len;
		if (t.len && goes_on(&t, &next)) {
			t.len += next.len;
		} else {
			if (t.len) {
				sz = emit(&t, result, sz, maxlen);
				t.len = 0;
				if (sz + 2 * MAX_LINE > maxlen)
					return 0;
			}
			t = next;
		}
		cond_resched();
	} while (goff < dev->size && time_before(jiffies, end));
	if (t.len)
		sz = emit(&t, result, sz, maxlen);
	return sz ? 0 : r;
}

struct query {
	struct work_struct work;
	struct qcow2_dev *dev;
	u64 goff;
	char *result;
	unsigned int maxlen;
	int ret;
};

static void query_work(struct work_struct *work)
{
	struct query *q = container_of(work, struct query, work);
	unsigned int noio = memalloc_noio_save();

	q->ret = tell(q->dev, q->goff, q->result, q->maxlen);
	memalloc_noio_restore(noio);
}

int qcow2_query_map(struct qcow2_dev *dev, u64 goff, char *result, unsigned int maxlen)
{
	struct query q = { .dev = dev, .goff = goff, .result = result, .maxlen = maxlen };

	INIT_WORK_ONSTACK(&q.work, query_work);
	queue_work(system_long_wq, &q.work);
	flush_work(&q.work);
	destroy_work_on_stack(&q.work);
	return q.ret;
}
