/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * cli.h - the verbs, and what several of them share.
 */
#ifndef QCOW2ATTACH_CLI_H
#define QCOW2ATTACH_CLI_H

#include <getopt.h>
#include <stdbool.h>

#include "chain.h"
#include "policy.h"

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
extern const struct verb verb_serve;
extern const struct verb verb_run;
extern const struct verb verb_check;

/** print_help() - what `qcow2attach VERB --help` prints. */
void print_help(const struct verb *verb);

/**
 * struct attach_options - how an image is attached.
 * @name: the device's name, or NULL for the image's.
 * @read_only: attach it read-only.
 * @cache_kib: limit of the table cache, or 0 for the kernel's.
 * @discard_no_unref: discarded clusters keep their place in the image.
 * @no_discard_passdown: what is freed is not discarded on the storage below.
 * @error_if_no_space: fail writes at once when the storage is full.
 * @has_space_timeout: there is a @space_timeout.
 * @space_timeout: for how many seconds they wait else, 0 for no limit.
 * @allow_dirs: directories from which backing files may come.
 * @backing: files that may be backing files.
 * @no_backing: no image may have a backing file.
 */
struct attach_options {
	const char *name;
	bool read_only;
	unsigned int cache_kib;
	bool discard_no_unref;
	bool no_discard_passdown;
	bool error_if_no_space;
	bool has_space_timeout;
	unsigned int space_timeout;
	struct strv allow_dirs;
	struct strv backing;
	bool no_backing;
};

/* The long options of attach, for verbs that take them along with their own. */
enum {
	OPT_NAME = 256,
	OPT_READ_ONLY,
	OPT_FORMAT,
	OPT_CACHE,
	OPT_ALLOW_DIR,
	OPT_BACKING,
	OPT_NO_BACKING,
	OPT_DISCARD_NO_UNREF,
	OPT_NO_DISCARD_PASSDOWN,
	OPT_ERROR_IF_NO_SPACE,
	OPT_SPACE_TIMEOUT,
	OPT_OTHERS,		/* the verb's own begin here */
};

#define ATTACH_LONG_OPTIONS \
	{ "name", required_argument, NULL, OPT_NAME }, \
	{ "read-only", no_argument, NULL, OPT_READ_ONLY }, \
	{ "format", required_argument, NULL, OPT_FORMAT }, \
	{ "cache", required_argument, NULL, OPT_CACHE }, \
	{ "allow-dir", required_argument, NULL, OPT_ALLOW_DIR }, \
	{ "backing", required_argument, NULL, OPT_BACKING }, \
	{ "no-backing", no_argument, NULL, OPT_NO_BACKING }, \
	{ "discard-no-unref", no_argument, NULL, OPT_DISCARD_NO_UNREF }, \
	{ "no-discard-passdown", no_argument, NULL, OPT_NO_DISCARD_PASSDOWN }, \
	{ "error-if-no-space", no_argument, NULL, OPT_ERROR_IF_NO_SPACE }, \
	{ "space-timeout", required_argument, NULL, OPT_SPACE_TIMEOUT }

#define ATTACH_HELP \
	"      --name NAME            name of the device (default: the image's name)\n" \
	"      --read-only            attach without writing to the image\n" \
	"      --format FORMAT        format of IMAGE: qcow2, which it must be\n" \
	"      --cache SIZE           most memory for the image's tables, e.g. 4M\n" \
	"      --allow-dir DIR        also take backing files from DIR (repeatable)\n" \
	"      --backing FILE         also take FILE as a backing file (repeatable)\n" \
	"      --no-backing           refuse an image that has a backing file\n" \
	"      --discard-no-unref     keep discarded clusters for this image to use again\n" \
	"      --no-discard-passdown  do not discard freed clusters on the storage below\n" \
	"      --error-if-no-space    fail writes at once when the storage is full\n" \
	"      --space-timeout SECONDS\n" \
	"                             how long they wait, 0: no limit (default: 60)\n"

/**
 * attach_option() - take one option of attach.
 * @o: the options.
 * @opt: what getopt_long() returned.
 * @value: its argument.
 *
 * Return: 0, or -1 with a cause.
 */
int attach_option(struct attach_options *o, int opt, const char *value);

/** attach_options_free() - free what the options hold. */
void attach_options_free(struct attach_options *o);

/**
 * attach_image() - attach an image.
 * @image: its name.
 * @o: how.
 * @hold: NULL, or as dmdev_create() has it: the device goes with its last user.
 *
 * Return: the device's name, allocated; or NULL with a cause.
 */
char *attach_image(const char *image, const struct attach_options *o, int *hold);

/**
 * image_is_attached() - is an image one of our devices?
 * @st: its attributes.
 *
 * Return: 0 when it is not, or -1 with a cause that names the device.
 */
int image_is_attached(const struct stat *st);

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
