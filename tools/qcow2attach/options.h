/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * options.h - the options of attach and of serve, which run takes, too.
 */
#ifndef QCOW2ATTACH_OPTIONS_H
#define QCOW2ATTACH_OPTIONS_H

#include "attach.h"
#include "server.h"

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
	SERVE_OPTIONS,		/* those of serve follow */
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

/* The long options of serve, the same way. */
enum {
	OPT_SOCKET = SERVE_OPTIONS,
	OPT_SOCKET_OWNER,
	OPT_USER,
	OPT_QUEUES,
	OPT_QUEUE_SIZE,
	OPT_WORKERS,
	OPT_POLL,
	OPT_SERIAL,
	OPT_OOM_SCORE_ADJ,
};

#define SERVE_LONG_OPTIONS \
	{ "socket", required_argument, NULL, OPT_SOCKET }, \
	{ "socket-owner", required_argument, NULL, OPT_SOCKET_OWNER }, \
	{ "user", required_argument, NULL, OPT_USER }, \
	{ "queues", required_argument, NULL, OPT_QUEUES }, \
	{ "queue-size", required_argument, NULL, OPT_QUEUE_SIZE }, \
	{ "workers", required_argument, NULL, OPT_WORKERS }, \
	{ "poll", required_argument, NULL, OPT_POLL }, \
	{ "serial", required_argument, NULL, OPT_SERIAL }, \
	{ "oom-score-adj", required_argument, NULL, OPT_OOM_SCORE_ADJ }

#define SERVE_HELP \
	"      --socket PATH          where to listen (default: below /run/qcow2attach)\n" \
	"      --socket-owner USER[:GROUP]\n" \
	"                             user that may connect (default: the caller)\n" \
	"      --user USER            user that the server becomes (default: qcow2attach)\n" \
	"      --queues N             number of queues (default: one per processor, at\n" \
	"                             most max_queues, a parameter of vhost-blk)\n" \
	"      --queue-size N         most entries of a queue (default: 1024)\n" \
	"      --workers 1|per-queue  kernel threads that serve them (default: 1)\n" \
	"      --poll MICROSECONDS    how long to busy-poll for requests (default: 0)\n" \
	"      --serial S             serial number, up to 20 characters (default: NAME)\n" \
	"      --oom-score-adj N      how soon the server is killed when memory is short,\n" \
	"                             from -1000 (never) to 1000 (default: -999)\n"

/**
 * serve_option() - take one option of serve.
 * @o: the options.
 * @opt: what getopt_long() returned.
 * @value: its argument.
 *
 * Return: 0, or -1 with a cause.
 */
int serve_option(struct server_options *o, int opt, const char *value);

#endif
