/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * cli.h - the verbs, and what each of them does with its command line.
 */
#ifndef QCOW2ATTACH_CLI_H
#define QCOW2ATTACH_CLI_H

#include <getopt.h>

/* Values of a verb's own long options begin here; before it are those of options.h. */
#define OPT_OWN 512

/**
 * struct verb - one word after qcow2attach.
 * @name: the word.
 * @summary: what it does, in a line.
 * @help: what --help of it prints after the summary.
 * @run: does it; argv[0] is the verb. Returns the exit code.
 */
struct verb {
	const char *name;
	const char *summary;
	const char *help;
	int (*run)(int argc, char **argv);
};

extern const struct verb verb_attach;
extern const struct verb verb_detach;
extern const struct verb verb_list;
extern const struct verb verb_status;
extern const struct verb verb_map;
extern const struct verb verb_serve;
extern const struct verb verb_run;
extern const struct verb verb_check;
extern const struct verb verb_backup;

/**
 * next_option() - getopt_long() that answers --help and reports mistakes.
 * @verb: the verb, for its help.
 * @argc: arguments.
 * @argv: arguments, argv[0] the verb.
 * @options: its options; --help is added by the caller as value 'h'.
 * @exit_code: set when the verb must end.
 *
 * Return: the option; -1 after the last; -2 when the verb must end.
 */
int next_option(const struct verb *verb, int argc, char **argv, const struct option *options,
		int *exit_code);

#endif
