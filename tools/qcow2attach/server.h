/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * server.h - the processes behind `qcow2attach serve`.
 *
 * Two: one that keeps its privileges and does nothing but wait for signals and
 * remove the socket at the end; and one that talks to front ends, which opened
 * everything it will ever need before it gave its privileges up.
 */
#ifndef QCOW2ATTACH_SERVER_H
#define QCOW2ATTACH_SERVER_H

#include <stdbool.h>

#include "listen.h"

/*
 * How long a server may take to end after it was told to, and then after it was killed. Both may
 * take until the storage's last answers: the kernel waits for those on its own.
 */
#define SERVER_GRACE_MS 10000
#define SERVER_KILL_MS 5000

/**
 * struct server_options - what to serve, and how.
 * @device: the device.
 * @socket: where to listen, or NULL for /run/qcow2attach/NAME.sock.
 * @owner: the users that may connect.
 * @user: the user that the process that talks to front ends becomes, or NULL for SANDBOX_USER.
 * @queues: how many rings, 0 for as many as there are processors.
 * @queue_size: the most entries of a ring, 0 for VHOST_DEFAULT_RING_SIZE.
 * @worker_per_queue: a kernel worker for each ring.
 * @poll_us: for how many microseconds a worker looks at an empty ring before it sleeps.
 * @read_only: serve it read-only.
 * @serial: the serial number, or NULL for the device's name.
 * @has_oom_score_adj: @oom_score_adj was given.
 * @oom_score_adj: how soon the kernel kills the process that talks to front ends when memory is
 * short,
 *	as in /proc/PID/oom_score_adj.
 * @background: keep nothing of the process that started it.
 */
struct server_options {
	const char *device;
	const char *socket;
	struct socket_owner owner;
	const char *user;
	unsigned int queues;
	unsigned int queue_size;
	bool worker_per_queue;
	unsigned int poll_us;
	bool read_only;
	const char *serial;
	bool has_oom_score_adj;
	int oom_score_adj;
	bool background;
};

/**
 * struct server_info - the server, reported when it is ready.
 * @socket: where it listens.
 * @queues: how many rings it has.
 * @read_only: it is read-only.
 */
struct server_info {
	char socket[128];
	unsigned int queues;
	bool read_only;
};

/**
 * server_run() - serve until SIGTERM, SIGINT or SIGHUP.
 * @o: what to serve.
 * @ready: called once a front end can connect.
 * @ctx: passed to @ready.
 *
 * Returns within SERVER_GRACE_MS and SERVER_KILL_MS of the signal, whatever the process that speaks
 * to front ends waits for.
 *
 * Return: 0, or -1 with a cause.
 */
int server_run(const struct server_options *o,
	       void (*ready)(const struct server_info *info, void *ctx), void *ctx);

#endif
