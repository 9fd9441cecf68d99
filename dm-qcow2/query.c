// SPDX-License-Identifier: GPL-2.0-only
/*
 * query.c - what the extents of a disk are: the answer to the message "map".
 *
 * Each layer is asked in turn, since the answer also names the layer.  Nothing is read from the
 * clusters that are found, so no epoch is entered.
 *
 * Called by a process that sends a message.  Takes no locks.
 */
#include <linux/device-mapper.h>
#include <linux/sched/signal.h>

#include "device.h"
#include "entries.h"
#include "image.h"
#include "lookup.h"
#include "query.h"
#include "table-cache.h"

#define MAX_LOOKUPS	8192	/* in one page */
#define MAX_LINE	96	/* bytes of one extent's line */

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
		qcow2_root_lookup(layer->img, layer->root, goff, len, ext);
		if (ext->type != EXTENT_MISS)
			return 0;
		s = qcow2_slice_get(&ext->img->cache, SLICE_L2, ext->host >> SLICE_SHIFT);
		if (IS_ERR(s))
			return PTR_ERR(s);
		/* With the pin the slice stays for one more look. */
		qcow2_root_lookup(layer->img, layer->root, goff, len, ext);
		qcow2_slice_put(s);
		if (ext->type != EXTENT_MISS)
			return 0;
		if (fatal_signal_pending(current))
			return -EINTR;
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

int qcow2_query_map(struct qcow2_dev *dev, u64 goff, char *result, unsigned int maxlen)
{
	unsigned int sz = 0, lookups;
	struct told next, t = { };
	int r = 0;

	for (lookups = 0; goff < dev->size && lookups < MAX_LOOKUPS; lookups++) {
		r = fatal_signal_pending(current) ? -EINTR : ask_chain(dev, goff, &next);
		if (r) {
			if (r != -EINTR)
				DMERR("%s: map: cannot follow the tables: guest offset %llu: error %d",
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
	}
	if (t.len)
		sz = emit(&t, result, sz, maxlen);
	return sz && r != -EINTR ? 0 : r;
}
