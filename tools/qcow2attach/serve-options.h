/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * serve-options.h - the options of serve, which run takes, too.
 */
#ifndef QCOW2ATTACH_SERVE_OPTIONS_H
#define QCOW2ATTACH_SERVE_OPTIONS_H

#include "cli.h"
#include "server.h"

enum {
	OPT_SOCKET = OPT_OTHERS,
	OPT_SOCKET_OWNER,
	OPT_USER,
	OPT_QUEUES,
	OPT_QUEUE_SIZE,
	OPT_WORKERS,
	OPT_POLL,
	OPT_SERIAL,
	OPT_OOM_SCORE_ADJ,
	SERVE_OPT_OTHERS,
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
	"                             who may connect (default: who runs this)\n" \
	"      --user USER            whom the server becomes (default: qcow2attach)\n" \
	"      --queues N             number of queues (default: one per processor, at\n" \
	"                             most max_queues, a parameter of vhost-blk)\n" \
	"      --queue-size N         most entries of a queue (default: 1024)\n" \
	"      --workers 1|per-queue  kernel threads that serve them (default: 1)\n" \
	"      --poll MICROSECONDS    how long to wait awake for requests (default: 0)\n" \
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
