/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * tool-test.h - the little that the tool's unit tests share: checks that say
 * where they failed, and random numbers that can be had again.
 *
 * TOOL_TEST_SEED replays a run, TOOL_TEST_SECONDS sets how long the random part
 * of a test takes.
 */
#ifndef TOOL_TEST_H
#define TOOL_TEST_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define CHECK(cond, ...) do { \
	if (!(cond)) { \
		printf("%s:%d: not true: %s\n  ", __FILE__, __LINE__, #cond); \
		printf(" " __VA_ARGS__); \
		putchar('\n'); \
		exit(1); \
	} \
} while (0)

static uint64_t random_state;

static inline uint64_t random_u64(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static inline uint64_t random_below(uint64_t n)
{
	return random_u64() % n;
}

static inline void random_begin(void)
{
	const char *seed = getenv("TOOL_TEST_SEED");

	random_state = seed ? strtoull(seed, NULL, 0) : (uint64_t)time(NULL) * 2654435761u + 1;
	printf("  seed %llu\n", (unsigned long long)random_state);
	fflush(stdout);
}

static inline double random_seconds(void)
{
	const char *text = getenv("TOOL_TEST_SECONDS");

	return text ? atof(text) : 3;
}

static inline double clock_seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

#endif
