/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the programs of test cases for /dev/vhost-blk have in common: PROGRAM CASE DEVICE [ARGUMENT]. */
#ifndef TESTS_RINGCASE_H
#define TESTS_RINGCASE_H

#include "ring.h"

struct ring_case {
	const char *name;
	void (*run)(void);
};

static const char *device, *argument;

/* Ends the table that run_case() takes. */
#define LAST_CASE	{ NULL, NULL }

/* The rest of main(): its return value. */
static inline int run_case(int argc, char **argv, const struct ring_case *c)
{
	if (argc < 3) {
		fprintf(stderr, "usage: %s CASE DEVICE [ARGUMENT]\n", argv[0]);
		return 2;
	}
	test_name = argv[1];
	device = argv[2];
	argument = argv[3];
	for (; c->name; c++) {
		if (!strcmp(argv[1], c->name)) {
			c->run();
			printf("%s: ok\n", argv[1]);
			return 0;
		}
	}
	fprintf(stderr, "%s: no case %s\n", argv[0], argv[1]);
	return 2;
}

#endif
