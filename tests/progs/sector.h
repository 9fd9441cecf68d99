/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The self-describing sector that test programs write: each 512 bytes carry the
 * sector number they belong to and the operation that wrote them, so that data
 * that turns up in the wrong place, or from the wrong time, says where it came
 * from.  Owns the layout only; no state.
 */
#ifndef TESTS_SECTOR_H
#define TESTS_SECTOR_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define SECTOR_SIZE	512
#define SECTOR_WORDS	(SECTOR_SIZE / sizeof(uint64_t))
#define SECTOR_MAGIC	0x716332746167b10cULL
#define SECTOR_STEP	0x9e3779b97f4a7c15ULL

enum sector_kind {
	SECTOR_ZERO,		/* all bytes zero */
	SECTOR_TAGGED,		/* a whole tagged sector */
	SECTOR_TORN,		/* a tag, but a body that is not its own */
	SECTOR_OTHER,		/* not written by a test program */
};

static inline uint64_t sector_mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ULL;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

static inline void sector_fill(void *buf, uint64_t sector, uint64_t op, uint64_t salt)
{
	uint64_t *word = buf;
	uint64_t body = sector_mix(sector ^ sector_mix(op ^ sector_mix(salt)));
	unsigned int i;

	word[0] = SECTOR_MAGIC;
	word[1] = sector;
	word[2] = op;
	word[3] = salt;
	for (i = 4; i < SECTOR_WORDS; i++) {
		body += SECTOR_STEP;
		word[i] = body;
	}
}

static inline bool sector_is_zero(const void *buf)
{
	const uint64_t *word = buf;

	return !word[0] && !memcmp(buf, word + 1, SECTOR_SIZE - sizeof(*word));
}

/* Say what @buf holds; the three values are set for a tagged or torn sector. */
static inline enum sector_kind sector_parse(const void *buf, uint64_t *sector, uint64_t *op,
					    uint64_t *salt)
{
	const uint64_t *word = buf;
	uint64_t whole[SECTOR_WORDS];

	if (word[0] != SECTOR_MAGIC)
		return sector_is_zero(buf) ? SECTOR_ZERO : SECTOR_OTHER;
	*sector = word[1];
	*op = word[2];
	*salt = word[3];
	sector_fill(whole, *sector, *op, *salt);
	return memcmp(buf, whole, SECTOR_SIZE) ? SECTOR_TORN : SECTOR_TAGGED;
}

#endif
