// SPDX-License-Identifier: GPL-2.0-or-later
/* libs: blkio pthread */
/*
 * blkio_bench.c - load on any disk that libblkio reaches, such as a
 * vhost-user-blk socket: one thread and one queue each, a fixed number of
 * requests in flight, and one line of JSON with the rate and the latencies.
 *
 *   blkio_bench DRIVER PATH LOAD...
 *
 * DRIVER is libblkio's (virtio-blk-vhost-user, io_uring); load.h tells how a
 * load is described.
 */
#define _GNU_SOURCE
#include <blkio.h>
#include <errno.h>
#include <pthread.h>

#include "load.h"

struct worker {
	pthread_t thread;
	int index;
	struct blkioq *queue;
	char *buf;
	int inflight;
	struct source source;
	uint64_t started[MAX_DEPTH];
};

static struct load load;

static void check(int ret, const char *what)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "blkio_bench: %s: %s: %s\n", what, strerror(-ret),
		blkio_get_error_msg());
	exit(1);
}

static void submit(struct worker *w, int slot)
{
	void *user = (void *)(intptr_t)slot;
	char *buf = w->buf + slot * load.block;
	uint64_t offset = source_offset(&load, &w->source);

	w->inflight++;
	w->started[slot] = now_ns();
	switch (load.op) {
	case RANDREAD:
	case READ:
		blkioq_read(w->queue, offset, buf, load.block, user, 0);
		break;
	case RANDWRITE:
	case WRITE:
		blkioq_write(w->queue, offset, buf, load.block, user, 0);
		break;
	case FLUSH:
		blkioq_flush(w->queue, user, 0);
		break;
	case DISCARD:
		blkioq_discard(w->queue, offset, load.block, user, 0);
		break;
	default:
		blkioq_write_zeroes(w->queue, offset, load.block, user, 0);
		break;
	}
}

static int reap(struct worker *w, struct blkio_completion *c, int max)
{
	int n = blkioq_do_io(w->queue, c, 1, max, NULL);

	check(n, "do_io");
	for (int i = 0; i < n; i++) {
		int slot = (intptr_t)c[i].user_data;

		w->inflight--;
		if (c[i].ret && !w->source.errors)
			fprintf(stderr, "blkio_bench: a request failed: %s\n", strerror(-c[i].ret));
		source_done(&w->source, now_ns() - w->started[slot], !c[i].ret);
	}
	return n;
}

/* Nothing is in flight. */
static void make_durable(struct worker *w)
{
	struct blkio_completion c;

	blkioq_flush(w->queue, NULL, 0);
	check(blkioq_do_io(w->queue, &c, 1, 1, NULL), "flush");
	check(c.ret, "flush");
}

static void *work(void *arg)
{
	struct blkio_completion c[64];
	struct worker *w = arg;
	uint64_t until_flush = load.flush_every;
	int idle[MAX_DEPTH], nr_idle = load.depth;

	for (int i = 0; i < load.depth; i++)
		idle[i] = i;
	source_init(&load, &w->source, w->index);
	for (;;) {
		while (nr_idle && !source_ended(&load, &w->source) &&
		       (!load.flush_every || until_flush)) {
			until_flush--;
			submit(w, idle[--nr_idle]);
		}
		if (w->inflight) {
			int n = reap(w, c, 64);

			while (n--)
				idle[nr_idle++] = (intptr_t)c[n].user_data;
		} else if (load.flush_every && !until_flush) {
			make_durable(w);
			until_flush = load.flush_every;
		} else {
			w->source.end = now_ns();
			return NULL;
		}
	}
}

static struct blkio *open_disk(const char *driver, const char *path, int queues)
{
	struct blkio *b;

	check(blkio_create(driver, &b), "create");
	check(blkio_set_str(b, "path", path), "path");
	if (!strcmp(driver, "io_uring"))
		check(blkio_set_bool(b, "direct", true), "direct");
	check(blkio_connect(b), "connect");
	check(blkio_set_int(b, "num-queues", queues), "num-queues");
	check(blkio_start(b), "start");
	return b;
}

static void run(struct blkio *b, struct worker *w)
{
	struct blkio_mem_region region;
	size_t len = (size_t)load.threads * load.depth * load.block;
	uint64_t align = 0;

	if (blkio_get_uint64(b, "mem-region-alignment", &align) || !align)
		align = 1 << 21;
	len = (len + align - 1) / align * align;
	check(blkio_alloc_mem_region(b, &region, len), "memory");
	check(blkio_map_mem_region(b, &region), "memory");
	memset(region.addr, 0x5a, len);
	for (int i = 0; i < load.threads; i++) {
		w[i].queue = blkio_get_queue(b, i);
		w[i].buf = (char *)region.addr + (size_t)i * load.depth * load.block;
		w[i].index = i;
		if (pthread_create(&w[i].thread, NULL, work, &w[i]))
			check(-EAGAIN, "thread");
	}
	load_wait(&load);
	for (int i = 0; i < load.threads; i++)
		pthread_join(w[i].thread, NULL);
}

int main(int argc, char **argv)
{
	struct source **sources;
	uint64_t capacity;
	struct worker *w;
	struct blkio *b;
	bool ok;

	if (argc < 4 || !load_parse(&load, argc - 3, argv + 3)) {
		fprintf(stderr, "usage: blkio_bench DRIVER PATH OP DEPTH QUEUES HOWLONG "
			"[BLOCKSIZE [SPAN [REGIONS [FLUSH_EVERY]]]]\n");
		return 2;
	}
	b = open_disk(argv[1], argv[2], load.threads);
	check(blkio_get_uint64(b, "capacity", &capacity), "capacity");
	if (!load_fit(&load, capacity)) {
		fprintf(stderr, "blkio_bench: the disk is smaller than a block\n");
		return 1;
	}
	w = calloc(load.threads, sizeof(*w));
	sources = calloc(load.threads, sizeof(*sources));
	if (!w || !sources)
		return 1;
	for (int i = 0; i < load.threads; i++)
		sources[i] = &w[i].source;
	run(b, w);
	ok = load_report(&load, sources);
	free(sources);
	free(w);
	blkio_destroy(&b);
	return ok ? 0 : 1;
}
