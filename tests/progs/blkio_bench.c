// SPDX-License-Identifier: GPL-2.0-or-later
/* libs: blkio pthread */
/*
 * blkio_bench.c - load on any disk that libblkio reaches, such as a
 * vhost-user-blk socket: one thread and one queue each, a fixed number of
 * requests in flight, and one line of JSON with the rate and the latencies.
 *
 *   blkio_bench DRIVER PATH OP DEPTH QUEUES SECONDS [BLOCKSIZE [SPAN]]
 *
 * DRIVER is libblkio's (virtio-blk-vhost-user, io_uring), OP one of randread,
 * randwrite, read, write, flush, discard, writezeroes. SPAN bounds the part of
 * the disk that is used, in bytes.
 */
#define _GNU_SOURCE
#include <blkio.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_DEPTH 1024

/* Latencies fall into classes 1/16 of a power of two wide. */
#define SUBCLASSES 16
#define CLASSES (64 * SUBCLASSES)

enum op { RANDREAD, RANDWRITE, READ, WRITE, FLUSH, DISCARD, WRITEZEROES, OPS };

static const char *const op_names[OPS] = {
	"randread", "randwrite", "read", "write", "flush", "discard", "writezeroes",
};

struct worker {
	pthread_t thread;
	struct blkioq *queue;
	char *buf;
	uint64_t seed;
	uint64_t next;		/* sequential: the next block */
	uint64_t done;
	uint64_t errors;
	uint64_t started[MAX_DEPTH];
	uint64_t classes[CLASSES];
};

static enum op op;
static int depth;
static size_t block = 4096;
static uint64_t blocks;
static volatile bool stop;

static void check(int ret, const char *what)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "blkio_bench: %s: %s: %s\n", what, strerror(-ret),
		blkio_get_error_msg());
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static unsigned int class_of(uint64_t ns)
{
	unsigned int bits = 63 - __builtin_clzll(ns | SUBCLASSES);

	return bits * SUBCLASSES + (ns >> (bits - 4)) % SUBCLASSES;
}

/* The middle of a class, in nanoseconds. */
static double value_of(unsigned int class)
{
	unsigned int bits = class / SUBCLASSES;

	return (double)(1ull << bits) * (1 + (class % SUBCLASSES + 0.5) / SUBCLASSES);
}

static void submit(struct worker *w, int slot)
{
	void *user = (void *)(intptr_t)slot;
	char *buf = w->buf + slot * block;
	uint64_t offset;

	if (op == READ || op == WRITE) {
		offset = w->next++ % blocks * block;
	} else {
		w->seed = w->seed * 6364136223846793005ull + 1442695040888963407ull;
		offset = (w->seed >> 20) % blocks * block;
	}
	w->started[slot] = now_ns();
	switch (op) {
	case RANDREAD:
	case READ:
		blkioq_read(w->queue, offset, buf, block, user, 0);
		break;
	case RANDWRITE:
	case WRITE:
		blkioq_write(w->queue, offset, buf, block, user, 0);
		break;
	case FLUSH:
		blkioq_flush(w->queue, user, 0);
		break;
	case DISCARD:
		blkioq_discard(w->queue, offset, block, user, 0);
		break;
	default:
		blkioq_write_zeroes(w->queue, offset, block, user, 0);
		break;
	}
}

static void complete(struct worker *w, const struct blkio_completion *c)
{
	int slot = (intptr_t)c->user_data;

	w->classes[class_of(now_ns() - w->started[slot])]++;
	if (!c->ret) {
		w->done++;
		return;
	}
	if (!w->errors++)
		fprintf(stderr, "blkio_bench: a request failed: %s\n", strerror(-c->ret));
}

static void *work(void *arg)
{
	struct blkio_completion c[64];
	struct worker *w = arg;
	int inflight = depth;

	for (int i = 0; i < depth; i++)
		submit(w, i);
	while (inflight) {
		int n = blkioq_do_io(w->queue, c, 1, 64, NULL);

		check(n, "do_io");
		for (int i = 0; i < n; i++) {
			complete(w, &c[i]);
			if (stop)
				inflight--;
			else
				submit(w, (intptr_t)c[i].user_data);
		}
	}
	return NULL;
}

static double percentile_us(const struct worker *w, int n, double part)
{
	uint64_t total = 0, seen = 0;

	for (int i = 0; i < n; i++)
		total += w[i].done + w[i].errors;
	for (unsigned int class = 0; class < CLASSES; class++) {
		for (int i = 0; i < n; i++)
			seen += w[i].classes[class];
		if (seen && seen >= total * part)
			return value_of(class) / 1000;
	}
	return 0;
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

static double run(struct blkio *b, struct worker *w, int queues, double seconds)
{
	struct blkio_mem_region region;
	size_t len = (size_t)queues * depth * block;
	uint64_t align = 0, begin;

	if (blkio_get_uint64(b, "mem-region-alignment", &align) || !align)
		align = 1 << 21;
	len = (len + align - 1) / align * align;
	check(blkio_alloc_mem_region(b, &region, len), "memory");
	check(blkio_map_mem_region(b, &region), "memory");
	memset(region.addr, 0x5a, len);
	begin = now_ns();
	for (int i = 0; i < queues; i++) {
		w[i].queue = blkio_get_queue(b, i);
		w[i].buf = (char *)region.addr + (size_t)i * depth * block;
		w[i].seed = i * 7919 + 1;
		w[i].next = blocks / queues * i;
		if (pthread_create(&w[i].thread, NULL, work, &w[i]))
			check(-EAGAIN, "thread");
	}
	while (now_ns() - begin < seconds * 1e9) {
		struct timespec ts = { .tv_nsec = 10000000 };

		nanosleep(&ts, NULL);
	}
	stop = true;
	for (int i = 0; i < queues; i++)
		pthread_join(w[i].thread, NULL);
	return (now_ns() - begin) / 1e9;
}

int main(int argc, char **argv)
{
	uint64_t capacity, done = 0, errors = 0;
	struct worker *w;
	struct blkio *b;
	double took;
	int queues;

	if (argc < 7) {
		fprintf(stderr, "usage: blkio_bench DRIVER PATH OP DEPTH QUEUES SECONDS "
			"[BLOCKSIZE [SPAN]]\n");
		return 2;
	}
	while (op < OPS && strcmp(argv[3], op_names[op]))
		op++;
	depth = atoi(argv[4]);
	queues = atoi(argv[5]);
	if (argc > 7)
		block = strtoul(argv[7], NULL, 0);
	if (op == OPS || depth < 1 || depth > MAX_DEPTH || queues < 1 || block < 512) {
		fprintf(stderr, "blkio_bench: no such operation, depth, or number of queues\n");
		return 2;
	}
	b = open_disk(argv[1], argv[2], queues);
	check(blkio_get_uint64(b, "capacity", &capacity), "capacity");
	if (argc > 8 && strtoull(argv[8], NULL, 0) < capacity)
		capacity = strtoull(argv[8], NULL, 0);
	blocks = capacity / block;
	if (!blocks) {
		fprintf(stderr, "blkio_bench: the disk is smaller than a block\n");
		return 1;
	}
	w = calloc(queues, sizeof(*w));
	if (!w)
		return 1;
	took = run(b, w, queues, atof(argv[6]));
	for (int i = 0; i < queues; i++) {
		done += w[i].done;
		errors += w[i].errors;
	}
	printf("{\"op\": \"%s\", \"block\": %zu, \"depth\": %d, \"queues\": %d, \"seconds\": %.2f, "
	       "\"iops\": %.0f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"errors\": %llu}\n",
	       op_names[op], block, depth, queues, took, done / took,
	       percentile_us(w, queues, 0.50), percentile_us(w, queues, 0.99),
	       (unsigned long long)errors);
	free(w);
	blkio_destroy(&b);
	return errors ? 1 : 0;
}
