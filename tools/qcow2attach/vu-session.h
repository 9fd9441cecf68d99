/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * vu-session.h - one connection of a front end: what it set up so far, and what of that the kernel
 * uses.
 *
 * A ring runs in the kernel exactly while it is enabled, kicked, has a size and addresses inside
 * mapped memory, and, when writes are to be logged, a log that is large enough. A ring is stopped
 * and drained before anything that it uses goes away.
 */
#ifndef QCOW2ATTACH_VU_SESSION_H
#define QCOW2ATTACH_VU_SESSION_H

#include <linux/virtio_blk.h>
#include <stdbool.h>
#include <stddef.h>

#include "vhost-dev.h"
#include "vu-memory.h"
#include "vu-wire.h"

/* As many rings as a number of VRING_KICK can name. */
#define SESSION_MAX_RINGS 256

/**
 * struct vu_ring - one ring.
 * @num: its size, 0 when not set.
 * @base: where it resumes: as the front end set it, or as it was at the last stop.
 * @addr: its addresses, as the front end gave them.
 * @has_addr: @addr is set.
 * @enabled: the front end wants it served.
 * @running: the kernel serves it.
 * @kick: eventfd the guest's notifications come by, or -1.
 * @call: eventfd for interrupts, or -1.
 * @err: eventfd for a broken ring, or -1.
 */
struct vu_ring {
	uint32_t num;
	uint32_t base;
	struct vu_vring_addr addr;
	bool has_addr;
	bool enabled;
	bool running;
	int kick;
	int call;
	int err;
};

/**
 * struct vu_session - one connection.
 * @sock: its socket.
 * @vhost: the kernel device.
 * @config: the disk as the guest sees it; the cache mode in it may change.
 * @offered: the features offered.
 * @acked: the features the front end took.
 * @protocol: the protocol features it took.
 * @status: the device status that it set.
 * @backend_sock: the channel for our own requests, or -1.
 * @broken: a ring could not be stopped, so nothing may be unmapped: the process
 *	must end, which makes the kernel drain it.
 * @log: the mapped dirty log, or NULL.
 * @log_len: bytes mapped there.
 * @log_bytes: bytes of the log in it.
 * @memory: the guest's memory.
 * @ring: the rings; the device's first so many are used.
 */
struct vu_session {
	int sock;
	struct vhost_dev *vhost;
	struct virtio_blk_config *config;
	uint64_t offered;
	uint64_t acked;
	uint64_t protocol;
	uint64_t status;
	int backend_sock;
	bool broken;
	char *log;
	size_t log_len;
	uint64_t log_bytes;
	struct guest_memory memory;
	struct vu_ring ring[SESSION_MAX_RINGS];
};

/**
 * session_begin() - start with a new connection.
 * @s: the session; it must have been zeroed once or ended.
 * @sock: the connection, owned by the session from now on.
 * @vhost: the kernel device, owned by this process.
 * @config: the disk.
 * @features: the features to offer.
 */
void session_begin(struct vu_session *s, int sock, struct vhost_dev *vhost,
		   struct virtio_blk_config *config, uint64_t features);

/**
 * session_handle() - do what one message asks, and answer it.
 * @s: the session.
 * @message: the message.
 *
 * Return: 0, or -1 with a cause when the connection must be closed.
 */
int session_handle(struct vu_session *s, struct vu_message *message);

/**
 * session_config_changed() - tell the front end, if possible, to read the configuration again.
 */
void session_config_changed(struct vu_session *s);

/**
 * session_end() - stop and drain everything, unmap, close.
 *
 * Return: 0, or -1 with a cause when a ring could not be stopped, or what was
 * written could not be made durable.
 */
int session_end(struct vu_session *s);

#endif
