/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * load.h - what the load generators share: the description of a load on their command lines, where
 * the next request goes, latencies, and the line of JSON at the end. Takes no locks: each thread
 * has a struct source of its own.
 *
 *	OP DEPTH THREADS HOWLONG [BLOCKSIZE [SPAN [REGIONS [FLUSH_EVERY]]]]
 *
 * OP is one of randread, randwrite, read, write, flush, discard, writezeroes; DEPTH requests are in
 * flight in each thread. HOWLONG is a number of seconds, or xN for N requests of each thread. SPAN
 * bounds the part of the disk that is used, in bytes (0: all of it); it lies at the disk's
 * beginning, or in REGIONS equal pieces spread evenly over the disk. With FLUSH_EVERY N each thread
 * waits after N requests for their end and makes them durable.
 */
#ifndef LOAD_H
#define LOAD_H

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

struct load {
	enum op op;
	int depth;
	int threads;
	double seconds;
	uint64_t requests;	/* of each thread, 0 for a time */
	size_t block;
	uint64_t span;
	uint64_t regions;
	uint64_t flush_every;
	uint64_t blocks;	/* in all regions */
	uint64_t region_blocks;
	uint64_t stride;	/* from the beginning of a region to that of the next, in bytes */
};

/* One thread's requests. */
struct source {
	uint64_t seed;
	uint64_t next;		/* sequential: the next block */
	uint64_t issued;
	uint64_t done;
	uint64_t errors;
	uint64_t begin, end;	/* of its requests, without what is set up and torn down */
	uint64_t classes[CLASSES];
};

static volatile bool load_stop;	/* the time is over */

static inline uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

/* The words behind the program's own; false when they make no sense. */
static inline bool load_parse(struct load *l, int argc, char **argv)
{
	if (argc < 4)
		return false;
	memset(l, 0, sizeof(*l));
	while (l->op < OPS && strcmp(argv[0], op_names[l->op]))
		l->op++;
	l->depth = atoi(argv[1]);
	l->threads = atoi(argv[2]);
	if (argv[3][0] == 'x')
		l->requests = strtoull(argv[3] + 1, NULL, 0);
	else
		l->seconds = atof(argv[3]);
	l->block = argc > 4 ? strtoull(argv[4], NULL, 0) : 4096;
	l->span = argc > 5 ? strtoull(argv[5], NULL, 0) : 0;
	l->regions = argc > 6 ? strtoull(argv[6], NULL, 0) : 1;
	l->flush_every = argc > 7 ? strtoull(argv[7], NULL, 0) : 0;
	return l->op < OPS && l->depth >= 1 && l->depth <= MAX_DEPTH && l->threads >= 1 &&
	       (l->requests || l->seconds > 0) && l->block >= 512 && l->regions;
}

/* Lay the regions over a disk of so many bytes; false when it is too small. */
static inline bool load_fit(struct load *l, uint64_t capacity)
{
	uint64_t span = l->span && l->span < capacity ? l->span : capacity;

	l->region_blocks = span / l->regions / l->block;
	l->stride = capacity / l->regions / l->block * l->block;
	l->blocks = l->region_blocks * l->regions;
	return l->blocks;
}

static inline void source_init(const struct load *l, struct source *s, int thread)
{
	s->seed = thread * 7919 + 1;
	s->next = l->blocks / l->threads * thread;
	s->begin = now_ns();
}

/* The place of the next request. */
static inline uint64_t source_offset(const struct load *l, struct source *s)
{
	uint64_t block;

	s->issued++;
	if (l->op == READ || l->op == WRITE) {
		block = s->next++ % l->blocks;
	} else {
		s->seed = s->seed * 6364136223846793005ull + 1442695040888963407ull;
		block = (s->seed >> 20) % l->blocks;
	}
	return block / l->region_blocks * l->stride + block % l->region_blocks * l->block;
}

/* Has the thread issued all that it is to issue? */
static inline bool source_ended(const struct load *l, const struct source *s)
{
	return l->requests ? s->issued >= l->requests : load_stop;
}

static inline unsigned int class_of(uint64_t ns)
{
	unsigned int bits = 63 - __builtin_clzll(ns | SUBCLASSES);

	return bits * SUBCLASSES + (ns >> (bits - 4)) % SUBCLASSES;
}

/* The middle of a class, in nanoseconds. */
static inline double value_of(unsigned int class)
{
	unsigned int bits = class / SUBCLASSES;

	return (double)(1ull << bits) * (1 + (class % SUBCLASSES + 0.5) / SUBCLASSES);
}

static inline void source_done(struct source *s, uint64_t ns, bool ok)
{
	s->classes[class_of(ns)]++;
	if (ok)
		s->done++;
	else
		s->errors++;
}

/* Sleep until the time is over. Threads that count their requests end by themselves. */
static inline void load_wait(const struct load *l)
{
	uint64_t begin = now_ns();

	while (!l->requests && now_ns() - begin < l->seconds * 1e9) {
		struct timespec ts = { .tv_nsec = 10000000 };

		nanosleep(&ts, NULL);
	}
	load_stop = true;
}

/* S[i] belongs to thread i. Prints the result; true when no request failed. */
static inline bool load_report(const struct load *l, struct source *const *s)
{
	static const double parts[2] = { 0.50, 0.99 };
	uint64_t done = 0, errors = 0, seen = 0, begin = s[0]->begin, end = s[0]->end;
	double percentile[2] = { 0, 0 }, took;

	for (int i = 0; i < l->threads; i++) {
		done += s[i]->done;
		errors += s[i]->errors;
		begin = s[i]->begin < begin ? s[i]->begin : begin;
		end = s[i]->end > end ? s[i]->end : end;
	}
	took = (end - begin) / 1e9;
	for (unsigned int class = 0; class < CLASSES; class++) {
		for (int i = 0; i < l->threads; i++)
			seen += s[i]->classes[class];
		for (int p = 0; p < 2; p++)
			if (seen && !percentile[p] && seen >= (done + errors) * parts[p])
				percentile[p] = value_of(class) / 1000;
	}
	printf("{\"op\": \"%s\", \"block\": %zu, \"depth\": %d, \"queues\": %d, \"seconds\": %.4f, "
	       "\"requests\": %llu, \"iops\": %.0f, \"p50_us\": %.1f, \"p99_us\": %.1f, "
	       "\"errors\": %llu}\n",
	       op_names[l->op], l->block, l->depth, l->threads, took, (unsigned long long)done,
	       done / took, percentile[0], percentile[1], (unsigned long long)errors);
	return !errors;
}

#endif
