/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Judges an image that a power cut may have left: its metadata, and every sector of
 * the guest's disk against what the workload was promised.  Owns what it knows of
 * the last state that was judged whole, so that of a state that differs from it only
 * in places, only those are compared.  No locks: one thread.
 */
#ifndef CRASH_JUDGE_H
#define CRASH_JUDGE_H

#include <stdbool.h>
#include <stdint.h>

#include "journal.h"
#include "qcow2.h"

struct judge {
	struct journal journal;
	struct qcow2 image;
	unsigned int cluster_bits;	/* as the first image has it, and all must */
	const uint8_t *backing;		/* raw content of what lies below; NULL: zeroes */
	uint64_t backing_sectors;
	uint64_t *known;		/* per guest cluster: mapping of the whole state */
	uint8_t *touched;		/* per host cluster: differs from the whole state */
	struct qcow2_verdict verdict;	/* of the last image judged */
};

/**
 * judge_init() - take the geometry from an image, and load the workload's journal
 * @initial, @backing: raw files, or NULL for zeroes
 * Exits with a message when something cannot be read.
 */
void judge_init(struct judge *judge, const void *data, uint64_t size, const char *journal,
		const char *initial, const char *backing);

/**
 * judge_image() - is this image one that a power cut may leave?
 * @whole: compare every sector, and remember the mapping for later partial calls
 * Returns false, having printed why, if it is not.
 */
bool judge_image(struct judge *judge, const void *data, uint64_t size, bool whole);

#endif
