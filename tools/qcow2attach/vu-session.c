// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * vu-session.c - owns what each vhost-user message means. A message is checked
 * for its length, its descriptors and the protocol feature it belongs to before
 * its handler sees it.
 */
#include "vu-session.h"

#include <linux/vhost.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../vhost-blk/uapi/vhost_blk.h"
#include "util.h"
#include "vu-ring.h"

/* The result of a handler that has sent the answer itself. */
#define ANSWERED 1

#define PROTOCOL_FEATURES ((1ull << VU_PROTOCOL_F_MQ) | \
			   (1ull << VU_PROTOCOL_F_LOG_SHMFD) | \
			   (1ull << VU_PROTOCOL_F_REPLY_ACK) | \
			   (1ull << VU_PROTOCOL_F_BACKEND_REQ) | \
			   (1ull << VU_PROTOCOL_F_CONFIG) | \
			   (1ull << VU_PROTOCOL_F_RESET_DEVICE) | \
			   (1ull << VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS) | \
			   (1ull << VU_PROTOCOL_F_STATUS))

static int reply(struct vu_session *s, const struct vu_message *m, const void *data, uint32_t size)
{
	int ret = vu_send(s->sock, m->header.request, VU_FLAG_REPLY, data, size);

	return ret ? ret : ANSWERED;
}

static int reply_u64(struct vu_session *s, const struct vu_message *m, uint64_t value)
{
	return reply(s, m, &value, sizeof(value));
}

static int check_ring(const struct vu_session *s, uint32_t index)
{
	if (index >= s->vhost->queues)
		return cause("there is no ring %u: the disk has %u", index, s->vhost->queues);
	return 0;
}

static int get_features(struct vu_session *s, struct vu_message *m)
{
	return reply_u64(s, m, s->offered);
}

static int set_features(struct vu_session *s, struct vu_message *m)
{
	uint64_t features = m->payload.u64;
	uint64_t old = s->acked;

	if (features & ~s->offered)
		return cause("the front end takes features 0x%llx that were not offered",
			     (unsigned long long)(features & ~s->offered));
	if ((features & (1ull << VHOST_F_LOG_ALL)) && rings_any_running(s) && !log_covers(s))
		return cause("the front end wants writes logged without a log");
	s->acked = features;
	if (features_push(s)) {
		s->acked = old;
		return -1;
	}
	/* Without the protocol features there is no SET_VRING_ENABLE to wait for. */
	if (!(features & (1ull << VU_F_PROTOCOL_FEATURES))) {
		for (unsigned int i = 0; i < s->vhost->queues; i++)
			s->ring[i].enabled = true;
	}
	return rings_update(s);
}

/* The kernel device has been ours from the start: its owner is this process. */
static int set_owner(struct vu_session *s, struct vu_message *m)
{
	(void)s;
	(void)m;
	return 0;
}

/*
 * A reset keeps the cache mode. QEMU reads the configuration once, when it first connects: a guest
 * that chose to write through sees that mode from then on, whatever stops, resets and reconnects
 * the disk in between. A reset of the mode would lose data that the guest believes to be safe.
 */
static int reset_device(struct vu_session *s, struct vu_message *m)
{
	(void)m;
	if (rings_stop(s))
		return -1;
	for (unsigned int i = 0; i < s->vhost->queues; i++)
		ring_reset(s, i);
	s->status = 0;
	return 0;
}

/* Give the kernel the regions in @memory, with no ring running in the ones it had. */
static int push_memory(struct vu_session *s)
{
	struct vhost_memory *table = memory_to_vhost(&s->memory);
	int ret = VHOST_CALL(s->vhost, VHOST_SET_MEM_TABLE, table);

	free(table);
	return ret;
}

static int set_mem_table(struct vu_session *s, struct vu_message *m)
{
	const struct vu_mem_table *wire = &m->payload.table;
	static struct guest_memory old;
	bool ran = rings_any_running(s);

	if (wire->nregions > VU_TABLE_REGIONS)
		return cause("%u regions are more than the %u of a table", wire->nregions,
			     VU_TABLE_REGIONS);
	if (m->header.size < sizeof(*wire) -
	    (VU_TABLE_REGIONS - wire->nregions) * sizeof(wire->region[0]))
		return cause("%u regions do not fit into %u bytes", wire->nregions, m->header.size);
	if (m->nfds != wire->nregions)
		return cause("%u regions came with %u file descriptors", wire->nregions, m->nfds);
	old = s->memory;
	s->memory.n = 0;
	for (unsigned int i = 0; i < wire->nregions; i++) {
		if (memory_add(&s->memory, &wire->region[i], m->fds[i], s->vhost->max_regions))
			goto undo;
	}
	if (rings_stop(s) || push_memory(s))
		goto undo;
	memory_clear(&old);
	if (rings_update(s))
		return -1;
	if (ran && !rings_any_running(s))
		return cause("the new memory does not hold what the rings need");
	return 0;
undo:
	memory_clear(&s->memory);
	s->memory = old;
	/* The kernel still has the old memory, and the rings may resume in it. */
	rings_update(s);
	return -1;
}

static int get_max_mem_slots(struct vu_session *s, struct vu_message *m)
{
	return reply_u64(s, m, s->vhost->max_regions);
}

static int add_mem_reg(struct vu_session *s, struct vu_message *m)
{
	struct guest_region region;

	if (memory_add(&s->memory, &m->payload.mem_reg.region, m->fds[0], s->vhost->max_regions))
		return -1;
	if (log_in_use(s) && !log_covers(s)) {
		memory_drop(&s->memory, s->memory.n - 1, &region);
		region_unmap(&region);
		return cause("the log is too short for the memory that is added");
	}
	/* Rings go on: the memory that they use stays where it is. */
	if (!push_memory(s))
		return rings_update(s);
	memory_drop(&s->memory, s->memory.n - 1, &region);
	/* The kernel has the new table even if a ring could not resume with it. */
	if (rings_stop(s) || push_memory(s)) {
		memory_put_back(&s->memory, &region);
		s->broken = true;
		return -1;
	}
	region_unmap(&region);
	rings_update(s);
	return -1;
}

static int rem_mem_reg(struct vu_session *s, struct vu_message *m)
{
	int at = memory_find(&s->memory, &m->payload.mem_reg.region);
	struct guest_region region;

	if (at < 0 || rings_stop(s))
		return -1;
	memory_drop(&s->memory, at, &region);
	if (push_memory(s)) {
		/* The kernel still has the region, and so have the rings. */
		memory_put_back(&s->memory, &region);
		rings_update(s);
		return -1;
	}
	region_unmap(&region);
	return rings_update(s);
}

/*
 * The kernel changes the log ring by ring and would stop at a ring that it refuses, which leaves
 * the rings before that one with a log that is about to be unmapped. A ring that does not run is
 * never refused, so all rings are stopped first. The old log is not used after that: bits are set
 * before a request counts as answered, and a stop waits for the last answer.
 */
static int set_log_base(struct vu_session *s, struct vu_message *m)
{
	const struct vu_log *wire = &m->payload.log;
	char *old = s->log;
	size_t old_len = s->log_len;
	uint64_t base, page, skip, len;
	char *map;

	if (!wire->size || wire->size > INT64_MAX / 2 || wire->offset > INT64_MAX / 2)
		return cause("invalid log: %llu bytes at %llu",
			     (unsigned long long)wire->size, (unsigned long long)wire->offset);
	if (log_in_use(s) && !log_would_cover(s, wire->size))
		return cause("a log of %llu bytes is too short for the guest's memory, which ends "
			     "at 0x%llx", (unsigned long long)wire->size,
			     (unsigned long long)memory_end(&s->memory));
	if (memory_check_file(m->fds[0], "the log", &page))
		return -1;
	skip = wire->offset % page;
	len = (skip + wire->size + page - 1) / page * page;
	map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, m->fds[0],
		   wire->offset - skip);
	if (map == MAP_FAILED)
		return cause_errno("cannot map the log of %llu bytes",
				   (unsigned long long)wire->size);
	base = (uintptr_t)map + skip;
	if (rings_stop(s) || VHOST_CALL(s->vhost, VHOST_SET_LOG_BASE, &base)) {
		munmap(map, len);
		/* The kernel still has the old log, and the rings may resume with it. */
		rings_update(s);
		return -1;
	}
	s->log = map;
	s->log_len = len;
	s->log_bytes = wire->size;
	if (old)
		munmap(old, old_len);
	if (features_push(s) || rings_update(s))
		return -1;
	/* Answer as with REPLY_ACK even without it: some front ends wait for the number. */
	return reply_u64(s, m, 0);
}

static int set_log_fd(struct vu_session *s, struct vu_message *m)
{
	int fd = m->fds[0];

	return VHOST_CALL(s->vhost, VHOST_SET_LOG_FD, &fd);
}

static int set_vring_num(struct vu_session *s, struct vu_message *m)
{
	const struct vu_vring_state *state = &m->payload.state;

	if (check_ring(s, state->index))
		return -1;
	if (!state->num || (state->num & (state->num - 1)))
		return cause("ring %u: invalid size %u", state->index, state->num);
	if (state->num > s->vhost->ring_size)
		return cause("ring %u has %u entries, but no ring may have more than %u "
			     "(--queue-size)", state->index, state->num, s->vhost->ring_size);
	if (s->ring[state->index].running)
		return cause("the size of ring %u is set while it runs", state->index);
	s->ring[state->index].num = state->num;
	return ring_update(s, state->index);
}

static int set_vring_base(struct vu_session *s, struct vu_message *m)
{
	const struct vu_vring_state *state = &m->payload.state;

	if (check_ring(s, state->index))
		return -1;
	if (state->num > 0xffff)
		return cause("ring %u: invalid base %u", state->index, state->num);
	if (s->ring[state->index].running)
		return cause("the base of ring %u is set while it runs", state->index);
	s->ring[state->index].base = state->num;
	return 0;
}

static int get_vring_base(struct vu_session *s, struct vu_message *m)
{
	struct vu_vring_state state = m->payload.state;
	struct vu_ring *r;

	if (check_ring(s, state.index) || ring_stop(s, state.index))
		return -1;
	r = &s->ring[state.index];
	/* The ring starts again with the next kick descriptor. */
	if (r->kick >= 0)
		close(r->kick);
	r->kick = -1;
	state.num = r->base;
	return reply(s, m, &state, sizeof(state));
}

static int set_vring_addr(struct vu_session *s, struct vu_message *m)
{
	const struct vu_vring_addr *addr = &m->payload.addr;

	if (check_ring(s, addr->index))
		return -1;
	if (addr->flags & ~(1u << VHOST_VRING_F_LOG))
		return cause("ring %u has unknown address flags 0x%x", addr->index, addr->flags);
	return ring_set_addr(s, addr);
}

static int set_vring_file(struct vu_session *s, struct vu_message *m)
{
	uint32_t index = m->payload.u64 & VU_VRING_INDEX_MASK;
	bool none = m->payload.u64 & VU_VRING_NOFD;

	if (check_ring(s, index))
		return -1;
	if (none != !m->nfds)
		return cause("ring %u came with %u file descriptors", index, m->nfds);
	if (none && m->header.request == VU_SET_VRING_KICK)
		return cause("the front end wants ring %u polled; this disk works by eventfd only",
			     index);
	return ring_set_file(s, index, m->header.request, none ? -1 : vu_take_fd(m, 0));
}

static int get_protocol_features(struct vu_session *s, struct vu_message *m)
{
	return reply_u64(s, m, PROTOCOL_FEATURES);
}

static int set_protocol_features(struct vu_session *s, struct vu_message *m)
{
	if (m->payload.u64 & ~PROTOCOL_FEATURES)
		return cause("the front end takes protocol features 0x%llx that were not offered",
			     (unsigned long long)(m->payload.u64 & ~PROTOCOL_FEATURES));
	s->protocol = m->payload.u64;
	return 0;
}

static int get_queue_num(struct vu_session *s, struct vu_message *m)
{
	return reply_u64(s, m, s->vhost->queues);
}

static int set_vring_enable(struct vu_session *s, struct vu_message *m)
{
	const struct vu_vring_state *state = &m->payload.state;

	if (check_ring(s, state->index))
		return -1;
	if (state->num > 1)
		return cause("ring %u: invalid enable value %u", state->index, state->num);
	s->ring[state->index].enabled = state->num;
	return ring_update(s, state->index);
}

static int set_backend_req_fd(struct vu_session *s, struct vu_message *m)
{
	socklen_t len = sizeof(int);
	int type;

	if (getsockopt(m->fds[0], SOL_SOCKET, SO_TYPE, &type, &len) || type != SOCK_STREAM)
		return cause("the channel for our requests is not a stream socket");
	if (s->backend_sock >= 0)
		close(s->backend_sock);
	s->backend_sock = vu_take_fd(m, 0);
	return 0;
}

static int get_config(struct vu_session *s, struct vu_message *m)
{
	struct vu_config *wire = &m->payload.config;
	uint8_t all[VU_CONFIG_MAX] = { 0 };
	const uint32_t head = offsetof(struct vu_config, data);

	if (m->header.size < head || wire->offset > sizeof(all) ||
	    wire->size > sizeof(all) - wire->offset) {
		/*
		 * The protocol reports an error by an empty answer. A front end that waits for as
		 * many bytes as it asked for sees the end of the connection instead.
		 */
		reply(s, m, NULL, 0);
		return cause("the front end asks for %u bytes of configuration at %u", wire->size,
			     wire->offset);
	}
	memcpy(all, s->config, sizeof(*s->config));
	memcpy(wire->data, all + wire->offset, wire->size);
	return reply(s, m, wire, head + wire->size);
}

static int set_config(struct vu_session *s, struct vu_message *m)
{
	const struct vu_config *wire = &m->payload.config;
	__u32 writeback;

	if (m->header.size < offsetof(struct vu_config, data) ||
	    wire->size > m->header.size - offsetof(struct vu_config, data))
		return cause("%u bytes are too few for the announced payload", m->header.size);
	if (wire->offset != offsetof(struct virtio_blk_config, wce) || wire->size != 1 ||
	    !(s->acked & (1ull << VIRTIO_BLK_F_CONFIG_WCE)) || wire->data[0] > 1)
		return cause("the front end writes %u bytes of configuration at %u; only the "
			     "cache mode can be set, once it was negotiated", wire->size,
			     wire->offset);
	writeback = wire->data[0];
	/* A write that was begun in one mode must not be answered as if begun in the other. */
	if (rings_stop(s) || VHOST_CALL(s->vhost, VHOST_BLK_SET_WRITEBACK, &writeback)) {
		rings_update(s);
		return -1;
	}
	s->config->wce = writeback;
	return rings_update(s);
}

static int set_status(struct vu_session *s, struct vu_message *m)
{
	if (m->payload.u64 > 0xff)
		return cause("0x%llx is not a device status",
			     (unsigned long long)m->payload.u64);
	s->status = m->payload.u64;
	return s->status ? 0 : reset_device(s, m);
}

static int get_status(struct vu_session *s, struct vu_message *m)
{
	return reply_u64(s, m, s->status);
}

/**
 * struct message_rule - what a message must look like.
 * @name: for error texts; NULL where no message has this number.
 * @handler: what it does.
 * @min_size: the least payload.
 * @max_size: the greatest payload.
 * @min_fds: the fewest descriptors.
 * @max_fds: the most.
 * @feature: the protocol feature that must have been negotiated, or -1.
 */
struct message_rule {
	const char *name;
	int (*handler)(struct vu_session *s, struct vu_message *m);
	uint32_t min_size, max_size;
	unsigned int min_fds, max_fds;
	int feature;
};

#define U64 sizeof(uint64_t), sizeof(uint64_t)
#define STATE sizeof(struct vu_vring_state), sizeof(struct vu_vring_state)
#define CONFIG 0, sizeof(struct vu_config)
#define MEM_REG sizeof(struct vu_mem_reg), sizeof(struct vu_mem_reg)

static const struct message_rule rules[] = {
	[VU_GET_FEATURES] = { "GET_FEATURES", get_features, 0, 0, 0, 0, -1 },
	[VU_SET_FEATURES] = { "SET_FEATURES", set_features, U64, 0, 0, -1 },
	[VU_SET_OWNER] = { "SET_OWNER", set_owner, 0, 0, 0, 0, -1 },
	[VU_RESET_OWNER] = { "RESET_OWNER", reset_device, 0, 0, 0, 0, -1 },
	[VU_SET_MEM_TABLE] = { "SET_MEM_TABLE", set_mem_table, 8, sizeof(struct vu_mem_table),
			       0, VU_TABLE_REGIONS, -1 },
	[VU_SET_LOG_BASE] = { "SET_LOG_BASE", set_log_base, sizeof(struct vu_log),
			      sizeof(struct vu_log), 1, 1, VU_PROTOCOL_F_LOG_SHMFD },
	[VU_SET_LOG_FD] = { "SET_LOG_FD", set_log_fd, 0, sizeof(uint64_t), 1, 1, -1 },
	[VU_SET_VRING_NUM] = { "SET_VRING_NUM", set_vring_num, STATE, 0, 0, -1 },
	[VU_SET_VRING_ADDR] = { "SET_VRING_ADDR", set_vring_addr, sizeof(struct vu_vring_addr),
				sizeof(struct vu_vring_addr), 0, 0, -1 },
	[VU_SET_VRING_BASE] = { "SET_VRING_BASE", set_vring_base, STATE, 0, 0, -1 },
	[VU_GET_VRING_BASE] = { "GET_VRING_BASE", get_vring_base, STATE, 0, 0, -1 },
	[VU_SET_VRING_KICK] = { "SET_VRING_KICK", set_vring_file, U64, 0, 1, -1 },
	[VU_SET_VRING_CALL] = { "SET_VRING_CALL", set_vring_file, U64, 0, 1, -1 },
	[VU_SET_VRING_ERR] = { "SET_VRING_ERR", set_vring_file, U64, 0, 1, -1 },
	[VU_GET_PROTOCOL_FEATURES] = { "GET_PROTOCOL_FEATURES", get_protocol_features, 0, 0, 0, 0,
				       -1 },
	[VU_SET_PROTOCOL_FEATURES] = { "SET_PROTOCOL_FEATURES", set_protocol_features, U64, 0, 0,
				       -1 },
	[VU_GET_QUEUE_NUM] = { "GET_QUEUE_NUM", get_queue_num, 0, 0, 0, 0, VU_PROTOCOL_F_MQ },
	[VU_SET_VRING_ENABLE] = { "SET_VRING_ENABLE", set_vring_enable, STATE, 0, 0, -1 },
	[VU_SET_BACKEND_REQ_FD] = { "SET_BACKEND_REQ_FD", set_backend_req_fd, 0, sizeof(uint64_t),
				    1, 1, VU_PROTOCOL_F_BACKEND_REQ },
	[VU_GET_CONFIG] = { "GET_CONFIG", get_config, CONFIG, 0, 0, VU_PROTOCOL_F_CONFIG },
	[VU_SET_CONFIG] = { "SET_CONFIG", set_config, CONFIG, 0, 0, VU_PROTOCOL_F_CONFIG },
	[VU_RESET_DEVICE] = { "RESET_DEVICE", reset_device, 0, 0, 0, 0,
			      VU_PROTOCOL_F_RESET_DEVICE },
	[VU_GET_MAX_MEM_SLOTS] = { "GET_MAX_MEM_SLOTS", get_max_mem_slots, 0, 0, 0, 0,
				   VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS },
	[VU_ADD_MEM_REG] = { "ADD_MEM_REG", add_mem_reg, MEM_REG, 1, 1,
			     VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS },
	[VU_REM_MEM_REG] = { "REM_MEM_REG", rem_mem_reg, MEM_REG, 0, 1,
			     VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS },
	[VU_SET_STATUS] = { "SET_STATUS", set_status, U64, 0, 0, VU_PROTOCOL_F_STATUS },
	[VU_GET_STATUS] = { "GET_STATUS", get_status, 0, 0, 0, 0, VU_PROTOCOL_F_STATUS },
};

static int check_rule(const struct vu_session *s, const struct vu_message *m,
		      const struct message_rule *rule)
{
	if (m->header.flags & VU_FLAG_REPLY)
		return cause("%s is a reply to no request", rule->name);
	if (m->header.size < rule->min_size || m->header.size > rule->max_size)
		return cause("%s has a payload of %u bytes", rule->name, m->header.size);
	if (m->nfds < rule->min_fds || m->nfds > rule->max_fds)
		return cause("%s came with %u file descriptors", rule->name, m->nfds);
	if (rule->feature >= 0 && !(s->protocol & (1ull << rule->feature)))
		return cause("%s came although its feature was not negotiated", rule->name);
	return 0;
}

/*
 * Can a front end that asked for an acknowledgement be told of a failure by a number? Not where it
 * waits for another answer, which it would take that number for.
 */
static bool can_refuse(const struct vu_session *s, uint32_t request)
{
	return !s->broken && request != VU_GET_VRING_BASE && request != VU_GET_CONFIG;
}

int session_handle(struct vu_session *s, struct vu_message *m)
{
	uint32_t request = m->header.request;
	const struct message_rule *rule = request < ARRAY_SIZE(rules) ? &rules[request] : NULL;
	bool ack = (m->header.flags & VU_FLAG_NEED_REPLY) &&
		   (s->protocol & (1ull << VU_PROTOCOL_F_REPLY_ACK));
	int ret;

	if (!rule || !rule->handler)
		return cause("unknown message %u", request);
	if (check_rule(s, m, rule))
		return -1;
	ret = rule->handler(s, m);
	if (ret == ANSWERED)
		return 0;
	if (ret < 0)
		cause_prefix("%s", rule->name);
	if (ret < 0 && (!ack || !can_refuse(s, request)))
		return -1;
	if (ret < 0)
		note("refused: %s", cause_text());
	return ack ? (reply_u64(s, m, ret < 0) < 0 ? -1 : 0) : 0;
}

void session_config_changed(struct vu_session *s)
{
	if (s->backend_sock < 0)
		return;
	if (vu_send(s->backend_sock, VU_BACKEND_CONFIG_CHANGE, 0, NULL, 0)) {
		note("cannot tell the guest the new size: %s", cause_text());
		close(s->backend_sock);
		s->backend_sock = -1;
	}
}

void session_begin(struct vu_session *s, int sock, struct vhost_dev *vhost,
		   struct virtio_blk_config *config, uint64_t features)
{
	/* The cache mode stays as it is, as across a reset. */
	memset(s, 0, sizeof(*s));
	s->sock = sock;
	s->vhost = vhost;
	s->config = config;
	s->offered = features | (1ull << VU_F_PROTOCOL_FEATURES);
	s->backend_sock = -1;
	for (unsigned int i = 0; i < ARRAY_SIZE(s->ring); i++) {
		s->ring[i].kick = -1;
		s->ring[i].call = -1;
		s->ring[i].err = -1;
	}
}

int session_end(struct vu_session *s)
{
	struct vhost_memory no_memory = { .nregions = 0 };
	/* The next guest may count on a mode that it has told another server. */
	__u32 unknown = VHOST_BLK_WRITEBACK_UNKNOWN;
	uint64_t no_features = 0;
	int no_log = -1;
	int ret = rings_stop(s);

	close(s->sock);
	if (s->backend_sock >= 0)
		close(s->backend_sock);
	if (s->broken)
		return -1;
	for (unsigned int i = 0; i < s->vhost->queues; i++)
		ring_forget(s, i);
	/* The kernel lets go of the memory and the log before they are unmapped. */
	if (s->config->wce && VHOST_CALL(s->vhost, VHOST_BLK_SET_WRITEBACK, &unknown))
		return -1;
	if (VHOST_CALL(s->vhost, VHOST_SET_FEATURES, &no_features) ||
	    VHOST_CALL(s->vhost, VHOST_SET_LOG_FD, &no_log) ||
	    VHOST_CALL(s->vhost, VHOST_SET_MEM_TABLE, &no_memory))
		return -1;
	memory_clear(&s->memory);
	if (s->log)
		munmap(s->log, s->log_len);
	s->log = NULL;
	return ret;
}
