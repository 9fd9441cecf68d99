// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * icount_mark.c - tells the profiler (tests/bench/icount-plugin.c) when to count: from now on, for
 * so many milliseconds of the guest's time.
 *
 *   icount_mark MILLISECONDS
 *
 * The marks are instructions that do nothing, with a number in them that nobody else uses.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv)
{
	long ms = argc > 1 ? atol(argv[1]) : 0;
	struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };

	if (ms <= 0) {
		fprintf(stderr, "usage: icount_mark MILLISECONDS\n");
		return 2;
	}
	__asm__ volatile(".byte 0x0f, 0x1f, 0x80, 0x71, 0x63, 0x6f, 0x77" ::: "memory");
	nanosleep(&ts, NULL);
	__asm__ volatile(".byte 0x0f, 0x1f, 0x80, 0x71, 0x63, 0x6f, 0x78" ::: "memory");
	return 0;
}
