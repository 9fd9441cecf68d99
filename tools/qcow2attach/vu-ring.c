// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * vu-ring.c - owns when a ring runs. The kernel reads and writes a ring at the addresses it is
 * given without checking that they are a guest's, so they are checked against the mapped memory
 * here, at every start.
 */
#include "vu-ring.h"

#include <errno.h>
#include <linux/vhost.h>
#include <string.h>
#include <unistd.h>

#include "../../vhost-blk/uapi/vhost_blk.h"
#include "util.h"

/* One bit of the log stands for this much guest memory. */
#define LOG_PAGE 4096ull

static uint64_t desc_bytes(uint32_t num)
{
	return 16ull * num;
}

static uint64_t avail_bytes(uint32_t num)
{
	return 6 + 2ull * num;
}

static uint64_t used_bytes(uint32_t num)
{
	return 6 + 8ull * num;
}

static bool wants_log(const struct vu_session *s)
{
	return s->acked & (1ull << VHOST_F_LOG_ALL);
}

static bool ring_logs(const struct vu_ring *r)
{
	return r->has_addr && (r->addr.flags & (1u << VHOST_VRING_F_LOG));
}

bool log_would_cover(const struct vu_session *s, uint64_t bytes)
{
	uint64_t room;

	if (__builtin_mul_overflow(bytes, 8 * LOG_PAGE, &room))
		room = UINT64_MAX;
	if (memory_end(&s->memory) > room)
		return false;
	for (unsigned int i = 0; i < s->vhost->queues; i++) {
		const struct vu_ring *r = &s->ring[i];
		uint64_t end;

		if (!ring_logs(r))
			continue;
		if (__builtin_add_overflow(r->addr.log, used_bytes(r->num), &end) || end > room)
			return false;
	}
	return true;
}

bool log_covers(const struct vu_session *s)
{
	return s->log && log_would_cover(s, s->log_bytes);
}

bool log_in_use(const struct vu_session *s)
{
	for (unsigned int i = 0; i < s->vhost->queues; i++) {
		if (s->ring[i].running && (wants_log(s) || ring_logs(&s->ring[i])))
			return true;
	}
	return false;
}

int features_push(struct vu_session *s)
{
	uint64_t features = s->acked & ~(1ull << VU_F_PROTOCOL_FEATURES);

	if (!log_covers(s))
		features &= ~(1ull << VHOST_F_LOG_ALL);
	return VHOST_CALL(s->vhost, VHOST_SET_FEATURES, &features);
}

static bool runnable(const struct vu_session *s, const struct vu_ring *r)
{
	return r->enabled && r->kick >= 0 && r->has_addr && r->num && s->memory.n &&
	       ((!wants_log(s) && !ring_logs(r)) || log_covers(s));
}

static int apply_addr(struct vu_session *s, unsigned int index)
{
	const struct vu_ring *r = &s->ring[index];
	struct vhost_vring_addr addr = {
		.index = index,
		.flags = r->addr.flags,
		.desc_user_addr = memory_translate(&s->memory, r->addr.desc, desc_bytes(r->num)),
		.avail_user_addr = memory_translate(&s->memory, r->addr.avail,
						    avail_bytes(r->num)),
		.used_user_addr = memory_translate(&s->memory, r->addr.used, used_bytes(r->num)),
		.log_guest_addr = r->addr.log,
	};

	if (!addr.desc_user_addr || !addr.avail_user_addr || !addr.used_user_addr)
		return cause("its %u entries are not inside the guest's memory", r->num);
	return VHOST_CALL(s->vhost, VHOST_SET_VRING_ADDR, &addr);
}

static int apply_file(struct vu_session *s, unsigned int index, unsigned long request,
		      const char *name, int fd)
{
	struct vhost_vring_file file = { .index = index, .fd = fd };

	return vhost_dev_call(s->vhost, request, name, &file);
}

#define APPLY_FILE(s, index, request, fd) apply_file(s, index, request, #request, fd)

static int ring_start(struct vu_session *s, unsigned int index)
{
	struct vu_ring *r = &s->ring[index];
	struct vhost_vring_state num = { .index = index, .num = r->num };
	struct vhost_vring_state base = { .index = index, .num = r->base };
	struct vhost_vring_state on = { .index = index, .num = 1 };

	/* The memory to be logged may have shrunk until the log covers it. */
	if (wants_log(s) && features_push(s))
		return -1;
	if (VHOST_CALL(s->vhost, VHOST_SET_VRING_NUM, &num) ||
	    VHOST_CALL(s->vhost, VHOST_SET_VRING_BASE, &base) || apply_addr(s, index) ||
	    APPLY_FILE(s, index, VHOST_SET_VRING_CALL, r->call) ||
	    APPLY_FILE(s, index, VHOST_SET_VRING_ERR, r->err) ||
	    APPLY_FILE(s, index, VHOST_SET_VRING_KICK, r->kick) ||
	    VHOST_CALL(s->vhost, VHOST_BLK_SET_RING, &on))
		return cause_prefix("ring %u", index);
	r->running = true;
	return 0;
}

int ring_stop(struct vu_session *s, unsigned int index)
{
	struct vu_ring *r = &s->ring[index];
	struct vhost_vring_state state = { .index = index, .num = 0 };
	bool unsafe = false;

	if (!r->running)
		return 0;
	if (VHOST_CALL(s->vhost, VHOST_BLK_SET_RING, &state)) {
		/* The ring has stopped, but the flush after that has failed. */
		unsafe = errno == EIO;
		s->broken = s->broken || !unsafe;
		if (!unsafe)
			return cause_prefix("ring %u cannot be stopped", index);
	}
	r->running = false;
	if (VHOST_CALL(s->vhost, VHOST_GET_VRING_BASE, &state))
		return cause_prefix("ring %u", index);
	r->base = state.num & 0xffff;
	return unsafe ? cause("the disk is stopped, but what was written to it cannot be flushed")
		      : 0;
}

int ring_update(struct vu_session *s, unsigned int index)
{
	struct vu_ring *r = &s->ring[index];
	bool should = runnable(s, r);

	if (should == r->running)
		return 0;
	return should ? ring_start(s, index) : ring_stop(s, index);
}

int rings_update(struct vu_session *s)
{
	for (unsigned int i = 0; i < s->vhost->queues; i++) {
		if (ring_update(s, i))
			return -1;
	}
	return 0;
}

int rings_stop(struct vu_session *s)
{
	int ret = 0;

	for (unsigned int i = 0; i < s->vhost->queues; i++) {
		if (ring_stop(s, i))
			ret = -1;
	}
	return ret;
}

bool rings_any_running(const struct vu_session *s)
{
	for (unsigned int i = 0; i < s->vhost->queues; i++) {
		if (s->ring[i].running)
			return true;
	}
	return false;
}

static void drop_file(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

int ring_set_file(struct vu_session *s, unsigned int index, uint32_t request, int fd)
{
	struct vu_ring *r = &s->ring[index];
	int *slot = request == VU_SET_VRING_KICK ? &r->kick
		  : request == VU_SET_VRING_CALL ? &r->call : &r->err;

	drop_file(slot);
	*slot = fd;
	if (!r->running || request == VU_SET_VRING_KICK) {
		/* A new kick restarts the ring, even if it had one. */
		if (ring_stop(s, index))
			return -1;
		return ring_update(s, index);
	}
	if (request == VU_SET_VRING_CALL)
		return APPLY_FILE(s, index, VHOST_SET_VRING_CALL, fd);
	return APPLY_FILE(s, index, VHOST_SET_VRING_ERR, fd);
}

int ring_set_addr(struct vu_session *s, const struct vu_vring_addr *addr)
{
	struct vu_ring *r = &s->ring[addr->index];
	bool same = r->has_addr && r->addr.desc == addr->desc && r->addr.avail == addr->avail &&
		    r->addr.used == addr->used;

	/* A ring that runs may only have its log switched on or off. */
	if (!same && ring_stop(s, addr->index))
		return -1;
	r->addr = *addr;
	r->has_addr = true;
	if (ring_update(s, addr->index))
		return -1;
	if (r->running && apply_addr(s, addr->index))
		return cause_prefix("ring %u", addr->index);
	return 0;
}

void ring_reset(struct vu_session *s, unsigned int index)
{
	struct vu_ring *r = &s->ring[index];

	drop_file(&r->kick);
	r->has_addr = false;
	r->enabled = false;
	r->num = 0;
	r->base = 0;
}

void ring_forget(struct vu_session *s, unsigned int index)
{
	ring_reset(s, index);
	drop_file(&s->ring[index].call);
	drop_file(&s->ring[index].err);
	/* The kernel holds references of its own to the eventfds; failing here frees nothing. */
	if (APPLY_FILE(s, index, VHOST_SET_VRING_KICK, -1) ||
	    APPLY_FILE(s, index, VHOST_SET_VRING_CALL, -1) ||
	    APPLY_FILE(s, index, VHOST_SET_VRING_ERR, -1))
		note("ring %u: %s", index, cause_text());
}
