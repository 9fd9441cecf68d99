/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a workload did and what it was promised: the operation log that
 * `differential --oplog` writes, and the marks it left on the storage.  Owns, per
 * sector, the last operation that a power cut must not undo.  No locks: one thread.
 */
#ifndef CRASH_JOURNAL_H
#define CRASH_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* What a discard leaves on the storage unless it is told to leave zeroes: anything may be there. */
#define JOURNAL_DISCARDED	0xdb

struct journal_op {
	uint64_t begun, done;		/* the workload's clock */
	uint64_t id;			/* as in the tag of a written sector */
	char type[16];
	uint64_t first, end;		/* the sectors it changes */
	bool writes;			/* leaves tagged sectors; otherwise zeroes */
};

struct journal_id {
	uint64_t id;
	uint32_t index;			/* of the operation, in journal.ops */
};

struct journal {
	struct journal_op *ops;		/* ordered by begun */
	struct journal_id *ids;		/* the same operations, ordered by id */
	unsigned int nr_ops;
	uint64_t seed;			/* the salt of tagged sectors */
	uint64_t sectors;
	uint32_t *must;			/* per sector: index + 1 of the op that must be seen; 0: none */
	uint32_t *last_zero;		/* per sector: index + 1 of the last op that zeroes it */
	const uint8_t *initial;		/* the disk before the workload; NULL: zeroes */
	uint64_t initial_sectors;
};

/**
 * journal_load() - read an operation log
 * Exits with a message when the file cannot be read or does not make sense.
 */
void journal_load(struct journal *journal, const char *path, uint64_t sectors);

/**
 * journal_mark() - the storage carries mark @text: raise what must be seen
 *
 * "flush:T": a flush that began at tick T is complete, and everything that was
 * done before T is durable.  "fua:ID": that one write is.
 */
void journal_mark(struct journal *journal, const char *text);

/**
 * journal_allows() - may sector @sector hold @buf after a power cut now?
 *
 * Allowed is what must be seen, and anything a later operation on that sector left.
 * If not, and @out is not NULL, says there why.
 */
bool journal_allows(const struct journal *journal, uint64_t sector, const void *buf, FILE *out);

#endif
