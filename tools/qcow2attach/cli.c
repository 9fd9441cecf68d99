// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cli.c - what every verb does with its command line. Owns nothing.
 */
#include <stdio.h>

#include "cli.h"
#include "util.h"

/* What `qcow2attach VERB --help` prints. */
static void print_help(const struct verb *verb)
{
	printf("%s\n      --help                 this text\n", verb->help);
}

int next_option(const struct verb *verb, int argc, char **argv, const struct option *options,
		int *exit_code)
{
	int opt;

	opterr = 0;
	opt = getopt_long(argc, argv, ":h", options, NULL);
	if (opt == 'h') {
		print_help(verb);
		*exit_code = EXIT_OK;
		return -2;
	}
	if (opt == ':') {
		*exit_code = usage_error("%s needs a value", argv[optind - 1]);
		return -2;
	}
	if (opt == '?') {
		*exit_code = usage_error("unknown option '%s'", argv[optind - 1]);
		return -2;
	}
	return opt;
}
