// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * options.c - the options that several verbs take: how an image is attached, how it is served.
 */
#include <stdlib.h>
#include <string.h>

#include "../../vhost-blk/uapi/vhost_blk.h"
#include "listen.h"
#include "options.h"
#include "util.h"
#include "vhost-dev.h"
#include "vu-session.h"

/* The longest finite wait for space, in seconds: a year. */
#define MAX_SPACE_TIMEOUT (365 * 24 * 3600)

/* The largest cache that the kernel accepts. */
#define MAX_CACHE_BYTES (1ull << 30)

static int exclude_each_other(void)
{
	return cause("--backing and --no-backing exclude each other");
}

int attach_option(struct attach_options *o, int opt, const char *value)
{
	uint64_t bytes;

	switch (opt) {
	case OPT_NAME:
		o->name = value;
		return attach_check_name(value);
	case OPT_READ_ONLY:
		o->read_only = true;
		return 0;
	case OPT_FORMAT:
		if (!strcmp(value, "qcow2"))
			return 0;
		if (!strcmp(value, "raw"))
			return cause("a raw image is a disk already: 'losetup --direct-io=on' "
				     "makes a block device of it, which can be served");
		return cause("unsupported format '%s': only qcow2 is supported", value);
	case OPT_CACHE:
		if (parse_size(value, 1, &bytes))
			return -1;
		if (bytes < 1024 || bytes > MAX_CACHE_BYTES)
			return cause("invalid cache size '%s': it must be from 1K to 1G", value);
		o->cache_kib = bytes / 1024;
		return 0;
	case OPT_ALLOW_DIR:
		strv_add(&o->allow_dirs, xstrdup(value));
		return 0;
	case OPT_BACKING:
		strv_add(&o->backing, xstrdup(value));
		return o->no_backing ? exclude_each_other() : 0;
	case OPT_NO_BACKING:
		o->no_backing = true;
		return o->backing.n ? exclude_each_other() : 0;
	case OPT_DISCARD_NO_UNREF:
		o->discard_no_unref = true;
		return 0;
	case OPT_NO_DISCARD_PASSDOWN:
		o->no_discard_passdown = true;
		return 0;
	case OPT_ERROR_IF_NO_SPACE:
		o->error_if_no_space = true;
		return 0;
	case OPT_SPACE_TIMEOUT:
		o->has_space_timeout = true;
		return parse_uint(value, "the time to wait for space", 0, MAX_SPACE_TIMEOUT,
				  &o->space_timeout);
	}
	return cause("unknown option");
}

static int parse_oom_score_adj(const char *value, int *adj)
{
	bool negative = value[0] == '-';
	unsigned int n;

	if (parse_uint(value + negative, "the OOM score adjustment", 0, 1000, &n))
		return cause("invalid OOM score adjustment '%s': it must be from -1000 to 1000",
			     value);
	*adj = negative ? -(int)n : (int)n;
	return 0;
}

int serve_option(struct server_options *o, int opt, const char *value)
{
	switch (opt) {
	case OPT_SOCKET:
		o->socket = value;
		return 0;
	case OPT_SOCKET_OWNER:
		return parse_socket_owner(value, &o->owner);
	case OPT_USER:
		o->user = value;
		return 0;
	case OPT_QUEUES:
		return parse_uint(value, "the number of queues", 1, SESSION_MAX_RINGS,
				  &o->queues);
	case OPT_QUEUE_SIZE:
		return parse_uint(value, "the size of queues", 1, VHOST_MAX_RING_SIZE,
				  &o->queue_size);
	case OPT_WORKERS:
		if (!strcmp(value, "per-queue"))
			o->worker_per_queue = true;
		else if (!strcmp(value, "1"))
			o->worker_per_queue = false;
		else
			return cause("invalid number of workers '%s': use 1 or per-queue", value);
		return 0;
	case OPT_POLL:
		return parse_uint(value, "the time to poll", 0, VHOST_BLK_MAX_BUSYLOOP_US,
				  &o->poll_us);
	case OPT_SERIAL:
		if (strlen(value) > 20)
			return cause("serial number too long: at most 20 characters");
		o->serial = value;
		return 0;
	case OPT_OOM_SCORE_ADJ:
		o->has_oom_score_adj = true;
		return parse_oom_score_adj(value, &o->oom_score_adj);
	}
	return cause("unknown option");
}
