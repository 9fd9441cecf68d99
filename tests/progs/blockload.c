// SPDX-License-Identifier: GPL-2.0-or-later
/* libs: uring pthread */
/*
 * blockload.c - load on a block device or file, past the page cache: a thread
 * with a ring of its own each, a fixed number of requests in flight, and one
 * line of JSON with the rate and the latencies.
 *
 *   blockload ENGINE PATH LOAD...
 *
 * ENGINE is uring (io_uring) or aio (Linux AIO); load.h tells how a load is
 * described (randread, randwrite, read, write). It is made to cost little: what
 * has ended is reaped and sent again in batches, with one look at the clock for
 * each.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "load.h"

#define BATCH 64

struct worker {
	pthread_t thread;
	int index;
	char *buf;
	int inflight;
	struct source source;
	uint64_t started[MAX_DEPTH];
	struct io_uring ring;
	aio_context_t aio;
	struct iocb iocb[MAX_DEPTH];
};

/* What has ended: the slots, and how. */
struct ended {
	int n;
	int slot[BATCH];
	int64_t result[BATCH];
};

static struct load load;
static bool writes, by_uring;
static int fd;

static void must(long ret, const char *what)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "blockload: %s: %s\n", what, strerror(-ret));
	exit(1);
}

static long must_sys(long ret, const char *what)
{
	must(ret < 0 ? -errno : ret, what);
	return ret;
}

static void engine_init(struct worker *w)
{
	struct io_uring_params p = {
		.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
	};

	if (by_uring) {
		must(io_uring_queue_init_params(load.depth, &w->ring, &p), "io_uring");
		must(io_uring_register_files(&w->ring, &fd, 1), "io_uring: file");
	} else {
		must_sys(syscall(SYS_io_setup, load.depth, &w->aio), "io_setup");
	}
}

static void engine_exit(struct worker *w)
{
	if (by_uring)
		io_uring_queue_exit(&w->ring);
	else
		syscall(SYS_io_destroy, w->aio);
}

static void prepare_uring(struct worker *w, int slot, uint64_t offset)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&w->ring);
	char *buf = w->buf + slot * load.block;

	if (writes)
		io_uring_prep_write(sqe, 0, buf, load.block, offset);
	else
		io_uring_prep_read(sqe, 0, buf, load.block, offset);
	io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
	io_uring_sqe_set_data64(sqe, slot);
}

static void prepare_aio(struct worker *w, int slot, uint64_t offset)
{
	w->iocb[slot] = (struct iocb) {
		.aio_data = slot,
		.aio_lio_opcode = writes ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
		.aio_fildes = fd,
		.aio_buf = (uintptr_t)(w->buf + slot * load.block),
		.aio_nbytes = load.block,
		.aio_offset = offset,
	};
}

/* Fills N idle slots and sends them; then waits until something has ended. */
static void exchange_uring(struct worker *w, const int *slots, int n, struct ended *e)
{
	struct io_uring_cqe *cqes[BATCH];

	for (int i = 0; i < n; i++)
		prepare_uring(w, slots[i], source_offset(&load, &w->source));
	must(io_uring_submit_and_wait(&w->ring, 1), "io_uring_enter");
	e->n = io_uring_peek_batch_cqe(&w->ring, cqes, BATCH);
	for (int i = 0; i < e->n; i++) {
		e->slot[i] = cqes[i]->user_data;
		e->result[i] = cqes[i]->res;
	}
	io_uring_cq_advance(&w->ring, e->n);
}

static void exchange_aio(struct worker *w, const int *slots, int n, struct ended *e)
{
	struct iocb *list[MAX_DEPTH];
	struct io_event events[BATCH];
	int sent = 0;

	for (int i = 0; i < n; i++) {
		prepare_aio(w, slots[i], source_offset(&load, &w->source));
		list[i] = &w->iocb[slots[i]];
	}
	while (sent < n)
		sent += must_sys(syscall(SYS_io_submit, w->aio, (long)(n - sent), list + sent),
				 "io_submit");
	do
		e->n = syscall(SYS_io_getevents, w->aio, 1L, (long)BATCH, events, NULL);
	while (e->n < 0 && errno == EINTR);
	must_sys(e->n, "io_getevents");
	for (int i = 0; i < e->n; i++) {
		e->slot[i] = events[i].data;
		e->result[i] = events[i].res;
	}
}

static void *work(void *arg)
{
	struct worker *w = arg;
	uint64_t until_flush = load.flush_every, now;
	int idle[MAX_DEPTH], nr_idle = load.depth;

	engine_init(w);
	source_init(&load, &w->source, w->index);
	now = w->source.begin;
	for (int i = 0; i < load.depth; i++)
		idle[i] = i;
	for (;;) {
		struct ended e;
		uint64_t left = nr_idle;

		if (load.requests && load.requests - w->source.issued < left)
			left = load.requests - w->source.issued;
		if (load.flush_every && until_flush < left)
			left = until_flush;
		if (source_ended(&load, &w->source))
			left = 0;
		if (!left && !w->inflight) {
			if (!load.flush_every || until_flush)
				break;
			must_sys(fdatasync(fd), "fdatasync");
			until_flush = load.flush_every;
			now = now_ns();
			continue;
		}
		for (uint64_t i = 0; i < left; i++)
			w->started[idle[nr_idle - 1 - i]] = now;
		until_flush -= left;
		nr_idle -= left;
		w->inflight += left;
		if (by_uring)
			exchange_uring(w, idle + nr_idle, left, &e);
		else
			exchange_aio(w, idle + nr_idle, left, &e);
		now = now_ns();
		for (int i = 0; i < e.n; i++) {
			bool ok = e.result[i] == (int64_t)load.block;

			if (!ok && !w->source.errors)
				fprintf(stderr, "blockload: a request failed: %s\n",
					e.result[i] < 0 ? strerror(-e.result[i]) : "short");
			source_done(&w->source, now - w->started[e.slot[i]], ok);
			idle[nr_idle++] = e.slot[i];
		}
		w->inflight -= e.n;
	}
	w->source.end = now;
	engine_exit(w);
	return NULL;
}

static uint64_t size_of(void)
{
	uint64_t size;
	struct stat st;

	must_sys(fstat(fd, &st), "fstat");
	if (S_ISREG(st.st_mode))
		return st.st_size;
	must_sys(ioctl(fd, BLKGETSIZE64, &size), "size");
	return size;
}

static void run(struct worker *w)
{
	size_t len = (size_t)load.depth * load.block;

	for (int i = 0; i < load.threads; i++) {
		w[i].buf = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		must_sys(w[i].buf == MAP_FAILED ? -1 : 0, "memory");
		memset(w[i].buf, 0x5a, len);
		w[i].index = i;
	}
	for (int i = 0; i < load.threads; i++)
		must(-pthread_create(&w[i].thread, NULL, work, &w[i]), "thread");
	load_wait(&load);
	for (int i = 0; i < load.threads; i++)
		pthread_join(w[i].thread, NULL);
}

int main(int argc, char **argv)
{
	struct source **sources;
	struct worker *w;

	if (argc < 4 || !load_parse(&load, argc - 3, argv + 3) || load.op > WRITE ||
	    (strcmp(argv[1], "uring") && strcmp(argv[1], "aio"))) {
		fprintf(stderr, "usage: blockload uring|aio PATH randread|randwrite|read|write DEPTH "
			"THREADS HOWLONG [BLOCKSIZE [SPAN [REGIONS [FLUSH_EVERY]]]]\n");
		return 2;
	}
	by_uring = argv[1][0] == 'u';
	writes = load.op == RANDWRITE || load.op == WRITE;
	fd = must_sys(open(argv[2], (writes ? O_RDWR : O_RDONLY) | O_DIRECT), argv[2]);
	if (!load_fit(&load, size_of())) {
		fprintf(stderr, "blockload: the disk is smaller than a block\n");
		return 1;
	}
	w = calloc(load.threads, sizeof(*w));
	sources = calloc(load.threads, sizeof(*sources));
	if (!w || !sources)
		return 1;
	for (int i = 0; i < load.threads; i++)
		sources[i] = &w[i].source;
	run(w);
	return load_report(&load, sources) ? 0 : 1;
}
