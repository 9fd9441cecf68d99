// SPDX-License-Identifier: GPL-2.0-or-later
/* libs: blkio pthread */
/*
 * blkio_verify.c - random requests on several queues of a disk that libblkio
 * reaches, each sector checked against a model of what it must hold.
 *
 *   blkio_verify DRIVER PATH QUEUES OPERATIONS SEED [EXPECTED]
 *
 * The disk is zeroed first. Each queue has a thread and stripes of the disk of
 * its own, with up to 16 requests in flight that do not overlap. A sector holds
 * its number and a generation, so that data of another place or time is seen. A
 * discarded sector may read as what it held or as zeroes. With EXPECTED, what
 * the disk must hold at the end is written to that file.
 */
#define _GNU_SOURCE
#include <blkio.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#define SECTOR 512u
#define STRIPE_SECTORS 2048u		/* 1 MiB */
#define SLOTS 16
#define MAX_SECTORS 256u		/* of a read or write: 128 KiB */
#define MAX_SEGMENTS 8
#define SLOT_BYTES ((size_t)MAX_SECTORS * SECTOR)

enum op { OP_READ, OP_WRITE, OP_DISCARD, OP_ZERO, OP_FLUSH, OPS };

static const char *const op_names[OPS] = { "read", "write", "discard", "write-zeroes", "flush" };

/* What a sector must hold: the data of a generation, 0 for zeroes, or either. */
struct sector {
	uint32_t generation;
	bool maybe_zero;
};

struct slot {
	bool busy;
	enum op op;
	uint64_t sector;
	uint32_t n;
	uint32_t generation;
	char *buf;
	struct iovec iov[MAX_SEGMENTS];
};

struct worker {
	pthread_t thread;
	struct blkioq *queue;
	unsigned int index;
	uint64_t random;
	uint32_t generation;
	uint64_t left;
	uint64_t count[OPS];
	struct slot slot[SLOTS];
};

static struct sector *model;
static uint64_t sectors;
static unsigned int queues;
static uint64_t discard_align = 1;
static uint64_t seed;

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fprintf(stderr, "blkio_verify: seed %llu: ", (unsigned long long)seed);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
	exit(1);
}

static void check(int ret, const char *what)
{
	if (ret < 0)
		die("%s: %s: %s", what, strerror(-ret), blkio_get_error_msg());
}

static uint64_t draw(struct worker *w, uint64_t below)
{
	w->random ^= w->random << 13;
	w->random ^= w->random >> 7;
	w->random ^= w->random << 17;
	return w->random % below;
}

/* The content of a sector of a generation. */
static void fill(char *buf, uint64_t sector, uint32_t generation)
{
	uint64_t *word = (uint64_t *)buf;
	uint64_t mix = (sector + 1) * 0x9e3779b97f4a7c15ull ^ (uint64_t)generation << 32 ^ seed;

	if (!generation) {
		memset(buf, 0, SECTOR);
		return;
	}
	word[0] = sector;
	word[1] = generation;
	for (unsigned int i = 2; i < SECTOR / 8; i++)
		word[i] = mix += 0xbf58476d1ce4e5b9ull;
}

static void verify(const char *buf, uint64_t sector)
{
	const struct sector *s = &model[sector];
	const uint64_t *word = (const uint64_t *)buf;
	char wanted[SECTOR];

	fill(wanted, sector, s->generation);
	if (!memcmp(buf, wanted, SECTOR))
		return;
	if (s->maybe_zero) {
		fill(wanted, sector, 0);
		if (!memcmp(buf, wanted, SECTOR))
			return;
	}
	die("sector %llu holds sector %llu of generation %llu, not generation %u%s",
	    (unsigned long long)sector, (unsigned long long)word[0],
	    (unsigned long long)word[1], s->generation, s->maybe_zero ? " or zeroes" : "");
}

static bool overlaps(const struct worker *w, uint64_t sector, uint32_t n)
{
	for (int i = 0; i < SLOTS; i++) {
		const struct slot *s = &w->slot[i];

		if (s->busy && sector < s->sector + s->n && s->sector < sector + n)
			return true;
	}
	return false;
}

/* A range inside one stripe of this worker that no request in flight touches. */
static bool choose_range(struct worker *w, struct slot *s)
{
	uint64_t stripes = sectors / STRIPE_SECTORS / queues;
	uint64_t base = (draw(w, stripes) * queues + w->index) * STRIPE_SECTORS;
	uint32_t most = s->op == OP_DISCARD || s->op == OP_ZERO ? STRIPE_SECTORS : MAX_SECTORS;
	/* Small requests, sector by sector, are the rule; page-sized ones frequent. */
	uint32_t n = 1 + draw(w, draw(w, 3) ? 16 : most);
	uint64_t at = draw(w, STRIPE_SECTORS - n + 1);

	if (draw(w, 2) && n >= 8) {
		n &= ~7u;
		at &= ~7ull;
	}
	if (s->op == OP_DISCARD && discard_align > 1 && STRIPE_SECTORS > 2 * discard_align) {
		at -= at % discard_align;
		n = (n + discard_align - 1) / discard_align * discard_align;
		if (at + n > STRIPE_SECTORS)
			n = STRIPE_SECTORS - at;
	}
	s->sector = base + at;
	s->n = n;
	return !overlaps(w, s->sector, n);
}

/* Cut the buffer into segments of whole sectors. */
static int cut(struct worker *w, struct slot *s)
{
	uint32_t left = s->n;
	char *at = s->buf;
	int n = 0;

	while (left) {
		uint32_t part = n == MAX_SEGMENTS - 1 ? left : 1 + draw(w, left);

		s->iov[n].iov_base = at;
		s->iov[n++].iov_len = part * SECTOR;
		at += part * SECTOR;
		left -= part;
	}
	return n;
}

static void submit(struct worker *w, struct slot *s)
{
	static const enum op weights[] = {
		OP_READ, OP_READ, OP_READ, OP_READ, OP_WRITE, OP_WRITE, OP_WRITE, OP_WRITE,
		OP_WRITE, OP_DISCARD, OP_ZERO, OP_FLUSH,
	};
	uint64_t offset;

	s->op = weights[draw(w, sizeof(weights) / sizeof(weights[0]))];
	s->sector = 0;
	s->n = 0;
	if (s->op != OP_FLUSH) {
		while (!choose_range(w, s))
			;
	}
	s->busy = true;
	w->count[s->op]++;
	offset = s->sector * SECTOR;
	switch (s->op) {
	case OP_READ:
		memset(s->buf, 0xa5, s->n * SECTOR);
		blkioq_readv(w->queue, offset, s->iov, cut(w, s), s, 0);
		break;
	case OP_WRITE:
		s->generation = ++w->generation;
		for (uint32_t i = 0; i < s->n; i++)
			fill(s->buf + i * SECTOR, s->sector + i, s->generation);
		blkioq_writev(w->queue, offset, s->iov, cut(w, s), s, 0);
		break;
	case OP_DISCARD:
		blkioq_discard(w->queue, offset, s->n * SECTOR, s, 0);
		break;
	case OP_ZERO:
		blkioq_write_zeroes(w->queue, offset, s->n * SECTOR, s,
				    draw(w, 2) ? BLKIO_REQ_NO_UNMAP : 0);
		break;
	default:
		blkioq_flush(w->queue, s, 0);
		break;
	}
}

static void complete(struct slot *s, int ret)
{
	if (ret)
		die("%s of %u sectors at %llu failed: %s", op_names[s->op], s->n,
		    (unsigned long long)s->sector, strerror(-ret));
	for (uint32_t i = 0; i < s->n; i++) {
		struct sector *m = &model[s->sector + i];

		if (s->op == OP_READ)
			verify(s->buf + i * SECTOR, s->sector + i);
		else if (s->op == OP_WRITE)
			*m = (struct sector) { .generation = s->generation };
		else if (s->op == OP_DISCARD)
			m->maybe_zero = true;
		else if (s->op == OP_ZERO)
			*m = (struct sector) { 0 };
	}
	s->busy = false;
}

static void *work(void *arg)
{
	struct blkio_completion c[SLOTS];
	struct worker *w = arg;
	int inflight = 0;

	while (w->left || inflight) {
		int n;

		for (int i = 0; i < SLOTS && w->left; i++) {
			if (!w->slot[i].busy) {
				submit(w, &w->slot[i]);
				inflight++;
				w->left--;
			}
		}
		n = blkioq_do_io(w->queue, c, 1, SLOTS, NULL);
		check(n, "do_io");
		for (int i = 0; i < n; i++)
			complete(c[i].user_data, c[i].ret);
		inflight -= n;
	}
	return NULL;
}

static void one_request(struct blkioq *q, const char *what)
{
	struct blkio_completion c;

	check(blkioq_do_io(q, &c, 1, 1, NULL), what);
	if (c.ret)
		die("%s failed: %s", what, strerror(-c.ret));
}

static void zero_disk(struct blkioq *q)
{
	for (uint64_t at = 0; at < sectors; at += STRIPE_SECTORS) {
		blkioq_write_zeroes(q, at * SECTOR, STRIPE_SECTORS * SECTOR, NULL, 0);
		one_request(q, "zeroing the disk");
	}
}

/* Read everything once more, and tell what is there. */
static void final_pass(struct blkioq *q, char *buf, const char *expected)
{
	FILE *f = expected ? fopen(expected, "w") : NULL;

	if (expected && !f)
		die("%s: %s", expected, strerror(errno));
	for (uint64_t at = 0; at < sectors; at += MAX_SECTORS) {
		blkioq_read(q, at * SECTOR, buf, SLOT_BYTES, NULL, 0);
		one_request(q, "the final read");
		for (uint32_t i = 0; i < MAX_SECTORS; i++)
			verify(buf + i * SECTOR, at + i);
		if (f && fwrite(buf, SLOT_BYTES, 1, f) != 1)
			die("%s: %s", expected, strerror(errno));
	}
	if (f && fclose(f))
		die("%s: %s", expected, strerror(errno));
}

int main(int argc, char **argv)
{
	struct blkio_mem_region region;
	uint64_t capacity, total[OPS] = { 0 };
	struct worker *w;
	struct blkio *b;
	size_t len;
	int align;

	if (argc < 6) {
		fprintf(stderr, "usage: blkio_verify DRIVER PATH QUEUES OPERATIONS SEED "
			"[EXPECTED]\n");
		return 2;
	}
	queues = atoi(argv[3]);
	seed = strtoull(argv[5], NULL, 0);
	check(blkio_create(argv[1], &b), "create");
	check(blkio_set_str(b, "path", argv[2]), "path");
	check(blkio_connect(b), "connect");
	check(blkio_set_int(b, "num-queues", queues), "num-queues");
	check(blkio_start(b), "start");
	check(blkio_get_uint64(b, "capacity", &capacity), "capacity");
	if (!blkio_get_int(b, "discard-alignment", &align) && align > (int)SECTOR)
		discard_align = align / SECTOR;
	sectors = capacity / SECTOR / STRIPE_SECTORS * STRIPE_SECTORS;
	if (queues < 1 || sectors < (uint64_t)queues * STRIPE_SECTORS)
		die("the disk is too small for %u queues", queues);
	model = calloc(sectors, sizeof(*model));
	w = calloc(queues, sizeof(*w));
	if (!model || !w)
		die("out of memory");
	len = (queues * SLOTS * SLOT_BYTES + 0x1fffff) & ~(size_t)0x1fffff;
	check(blkio_alloc_mem_region(b, &region, len), "memory");
	check(blkio_map_mem_region(b, &region), "memory");
	zero_disk(blkio_get_queue(b, 0));
	for (unsigned int i = 0; i < queues; i++) {
		w[i].queue = blkio_get_queue(b, i);
		w[i].index = i;
		w[i].random = (seed + 1) * 0x9e3779b97f4a7c15ull + i;
		w[i].left = strtoull(argv[4], NULL, 0) / queues;
		for (unsigned int j = 0; j < SLOTS; j++)
			w[i].slot[j].buf = (char *)region.addr + (i * SLOTS + j) * SLOT_BYTES;
		if (pthread_create(&w[i].thread, NULL, work, &w[i]))
			die("no thread");
	}
	for (unsigned int i = 0; i < queues; i++)
		pthread_join(w[i].thread, NULL);
	final_pass(blkio_get_queue(b, 0), region.addr, argc > 6 ? argv[6] : NULL);
	printf("seed %llu, %u queue%s:", (unsigned long long)seed, queues, queues == 1 ? "" : "s");
	for (int i = 0; i < OPS; i++) {
		for (unsigned int j = 0; j < queues; j++)
			total[i] += w[j].count[i];
		printf(" %llu %s", (unsigned long long)total[i], op_names[i]);
	}
	printf("; all of %llu sectors are right\n", (unsigned long long)sectors);
	blkio_destroy(&b);
	free(model);
	free(w);
	return 0;
}
