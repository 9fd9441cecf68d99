// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * tool-session.c - front ends, polite and hostile, against a session whose kernel
 * is a model: it notices when a ring runs outside mapped memory, when memory goes
 * away below a running ring, and when a log is too short for what it would mark.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/vhost.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../vhost-blk/uapi/vhost_blk.h"
#include "tool-test.h"
#include "util.h"
#include "vu-session.h"

#define QUEUES 2u
#define ALL_FEATURES ((1ull << VIRTIO_F_VERSION_1) | (1ull << VHOST_F_LOG_ALL) | \
		      (1ull << VIRTIO_BLK_F_CONFIG_WCE) | (1ull << VIRTIO_BLK_F_MQ))
#define WITH_PROTOCOL (1ull << VU_F_PROTOCOL_FEATURES)

/* The cache mode that the model begins with, which is none. */
#define NEVER_SET 7

/* The model of the kernel's half. */
static struct {
	uint64_t features;
	uint64_t log_base;
	struct vhost_memory_region region[16];
	unsigned int nregions;
	struct vhost_vring_addr addr[QUEUES];
	uint32_t num[QUEUES];
	uint32_t base[QUEUES];
	bool running[QUEUES];
	uint32_t writeback;
	unsigned int fail_one_in;	/* 0: never */
	unsigned long fail_always;	/* the ioctl that fails; 0: none */
	bool fail_flush;		/* the one of the last ring that stops */
} kernel;

static struct vu_session session;
static struct vu_inbox inbox;
static struct virtio_blk_config config;
static int front;	/* the other end of the session's socket */

static bool is_mapped(uint64_t addr, uint64_t len)
{
	uint64_t page = 4096, begin = addr & ~(page - 1);

	return !msync((void *)(uintptr_t)begin, (addr + len - begin + page - 1) & ~(page - 1),
		      MS_ASYNC);
}

static bool in_memory(uint64_t addr, uint64_t len)
{
	for (unsigned int i = 0; i < kernel.nregions; i++) {
		const struct vhost_memory_region *r = &kernel.region[i];

		if (addr >= r->userspace_addr && addr - r->userspace_addr <= r->memory_size &&
		    len <= r->memory_size - (addr - r->userspace_addr))
			return true;
	}
	return false;
}

/* All that a running ring may touch must be there. */
static void check_ring_memory(unsigned int i)
{
	const struct vhost_vring_addr *a = &kernel.addr[i];
	uint64_t n = kernel.num[i];

	if (!kernel.running[i])
		return;
	CHECK(n && in_memory(a->desc_user_addr, 16 * n), "ring %u: descriptors", i);
	CHECK(in_memory(a->avail_user_addr, 6 + 2 * n), "ring %u: avail", i);
	CHECK(in_memory(a->used_user_addr, 6 + 8 * n), "ring %u: used", i);
	for (unsigned int j = 0; j < kernel.nregions; j++)
		CHECK(is_mapped(kernel.region[j].userspace_addr, kernel.region[j].memory_size),
		      "ring %u runs with region %u unmapped", i, j);
	if (kernel.features & (1ull << VHOST_F_LOG_ALL)) {
		for (unsigned int j = 0; j < kernel.nregions; j++) {
			uint64_t last = kernel.region[j].guest_phys_addr +
					kernel.region[j].memory_size - 1;

			CHECK(kernel.log_base && is_mapped(kernel.log_base + last / 4096 / 8, 1),
			      "the log is too short");
		}
	}
	if (a->flags & 1)
		CHECK(kernel.log_base &&
		      is_mapped(kernel.log_base + (a->log_guest_addr + 5 + 8 * n) / 4096 / 8, 1),
		      "the log is too short for a used ring");
}

static void check_all(void)
{
	for (unsigned int i = 0; i < QUEUES; i++)
		check_ring_memory(i);
}

static int set_table(const struct vhost_memory *m)
{
	bool running = kernel.running[0] || kernel.running[1];

	if (m->nregions > ARRAY_SIZE(kernel.region)) {
		errno = E2BIG;
		return -1;
	}
	/* What a running ring's requests are in may not go. */
	for (unsigned int i = 0; running && i < kernel.nregions; i++) {
		bool stays = false;

		for (unsigned int j = 0; j < m->nregions; j++)
			stays = stays || !memcmp(&m->regions[j], &kernel.region[i],
						 sizeof(kernel.region[i]));
		CHECK(stays, "memory was taken from a running ring");
	}
	kernel.nregions = m->nregions;
	memcpy(kernel.region, m->regions, m->nregions * sizeof(kernel.region[0]));
	return 0;
}

static int fake_call(struct vhost_dev *dev, unsigned long request, void *arg)
{
	const struct vhost_vring_state *state = arg;
	const struct vhost_vring_addr *addr = arg;
	const struct vhost_vring_file *file = arg;
	uint32_t index = state ? state->index : 0;

	(void)dev;
	/* A drain never fails but when the caller is being killed. */
	if (request == kernel.fail_always ||
	    (kernel.fail_one_in && !random_below(kernel.fail_one_in) &&
	     request != VHOST_BLK_SET_RING)) {
		errno = EIO;
		return -1;
	}
	switch (request) {
	case VHOST_SET_FEATURES:
		CHECK(!(*(uint64_t *)arg & ~ALL_FEATURES));
		kernel.features = *(uint64_t *)arg;
		return 0;
	case VHOST_SET_MEM_TABLE:
		return set_table(arg);
	case VHOST_SET_LOG_BASE:
		/* It would stop at the first ring that it refuses, with others changed already. */
		CHECK(!kernel.running[0] && !kernel.running[1]);
		kernel.log_base = *(uint64_t *)arg;
		return 0;
	case VHOST_SET_LOG_FD:
		return 0;
	case VHOST_SET_VRING_NUM:
		CHECK(index < QUEUES && !kernel.running[index]);
		kernel.num[index] = state->num;
		return 0;
	case VHOST_SET_VRING_BASE:
		CHECK(index < QUEUES && !kernel.running[index]);
		kernel.base[index] = state->num;
		return 0;
	case VHOST_GET_VRING_BASE:
		CHECK(index < QUEUES);
		((struct vhost_vring_state *)arg)->num = kernel.base[index];
		return 0;
	case VHOST_SET_VRING_ADDR:
		CHECK(addr->index < QUEUES);
		kernel.addr[addr->index] = *addr;
		return 0;
	case VHOST_SET_VRING_KICK:
	case VHOST_SET_VRING_CALL:
	case VHOST_SET_VRING_ERR:
		CHECK(file->index < QUEUES);
		CHECK(file->fd == -1 || fcntl(file->fd, F_GETFD) >= 0);
		return 0;
	case VHOST_BLK_SET_RING:
		CHECK(index < QUEUES && state->num <= 1);
		kernel.running[index] = state->num;
		/* It has served something by the time it stops. */
		if (!state->num)
			kernel.base[index] = (kernel.base[index] + 7) & 0xffff;
		check_ring_memory(index);
		if (!state->num && kernel.fail_flush && !kernel.running[0] && !kernel.running[1]) {
			errno = EIO;
			return -1;
		}
		return 0;
	case VHOST_BLK_SET_WRITEBACK:
		CHECK(!kernel.running[0] && !kernel.running[1]);
		kernel.writeback = *(__u32 *)arg;
		return 0;
	}
	CHECK(0, "an unexpected ioctl %lx", request);
	return -1;
}

static struct vhost_dev vhost = {
	.fd = -1, .call = fake_call, .queues = QUEUES, .max_regions = 12, .ring_size = 1024,
	.features = ALL_FEATURES,
};

static void begin(void)
{
	int pair[2];

	memset(&kernel, 0, sizeof(kernel));
	kernel.writeback = NEVER_SET;
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair));
	front = pair[0];
	session_begin(&session, pair[1], &vhost, &config, ALL_FEATURES);
}

static unsigned int count_lines(const char *path, const char *word)
{
	char line[512];
	FILE *f = fopen(path, "r");
	unsigned int n = 0;

	while (f && fgets(line, sizeof(line), f))
		n += !!strstr(line, word);
	if (f)
		fclose(f);
	return n;
}

static unsigned int count_fds(void)
{
	unsigned int n = 0;

	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* End the session; nothing of it may be left. */
static void end(void)
{
	kernel.fail_one_in = 0;
	kernel.fail_flush = false;
	vu_inbox_clear(&inbox);
	CHECK(!session_end(&session), "%s", cause_text());
	close(front);
	CHECK(!kernel.running[0] && !kernel.running[1] && !kernel.nregions);
	CHECK(!count_lines("/proc/self/maps", "memfd:guest"), "guest memory is still mapped");
}

static void send_message(uint32_t request, uint32_t flags, const void *payload, uint32_t size,
			 uint32_t claimed, const int *fds, unsigned int nfds)
{
	char control[CMSG_SPACE(32 * sizeof(int))] = { 0 };
	struct vu_header header = { request, flags, claimed };
	struct iovec iov[2] = {
		{ &header, sizeof(header) }, { (void *)payload, size },
	};
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };
	struct cmsghdr *c;

	if (nfds) {
		msg.msg_control = control;
		msg.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, nfds * sizeof(int));
	}
	CHECK(sendmsg(front, &msg, MSG_NOSIGNAL) >= 0, "%s", strerror(errno));
}

/* Let the session take what was sent: 0 handled, 1 more must come, -1 closed. */
static int deliver(void)
{
	int ret = vu_receive(session.sock, &inbox);

	if (ret == 1) {
		ret = session_handle(&session, &inbox.message);
		vu_inbox_clear(&inbox);
		check_all();
		return ret;
	}
	check_all();
	return ret ? -1 : 1;
}

static int ask_fds(uint32_t request, const void *payload, uint32_t size, const int *fds,
		   unsigned int nfds)
{
	send_message(request, VU_VERSION, payload, size, size, fds, nfds);
	return deliver();
}

static int ask(uint32_t request, const void *payload, uint32_t size)
{
	return ask_fds(request, payload, size, NULL, 0);
}

static int ask_u64(uint32_t request, uint64_t value)
{
	return ask(request, &value, sizeof(value));
}

static int ask_state(uint32_t request, uint32_t index, uint32_t num)
{
	struct vu_vring_state state = { index, num };

	return ask(request, &state, sizeof(state));
}

/* The reply to the last question; its payload's size. */
static uint32_t answer(void *payload, size_t len)
{
	struct vu_header header;
	ssize_t n = recv(front, &header, sizeof(header), 0);

	CHECK(n == sizeof(header), "no reply");
	CHECK(header.flags == (VU_VERSION | VU_FLAG_REPLY) && header.size <= len);
	if (header.size)
		CHECK(recv(front, payload, header.size, 0) == (ssize_t)header.size);
	return header.size;
}

static uint64_t get_u64(uint32_t request)
{
	uint64_t value = 0;

	CHECK(!ask(request, NULL, 0), "%s", cause_text());
	CHECK(answer(&value, sizeof(value)) == sizeof(value));
	return value;
}

static int guest_file(uint64_t size)
{
	int fd = memfd_create("guest", MFD_CLOEXEC);

	CHECK(fd >= 0 && !ftruncate(fd, size));
	return fd;
}

static int file_for_ring(uint32_t request, uint32_t index)
{
	uint64_t value = index;
	int fd = eventfd(0, EFD_CLOEXEC), ret;

	ret = ask_fds(request, &value, sizeof(value), &fd, 1);
	close(fd);
	return ret;
}

static int set_table_of(uint64_t guest, uint64_t size, uint64_t front_addr)
{
	struct vu_mem_table table = {
		.nregions = 1,
		.region[0] = { .guest_addr = guest, .size = size, .front_addr = front_addr },
	};
	int fd = guest_file(size), ret;

	ret = ask_fds(VU_SET_MEM_TABLE, &table, 8 + sizeof(table.region[0]), &fd, 1);
	close(fd);
	return ret;
}

static int set_addr(uint32_t index, uint64_t at, uint32_t flags)
{
	struct vu_vring_addr addr = {
		.index = index, .flags = flags, .desc = at, .avail = at + 0x1000,
		.used = at + 0x2000, .log = 0x2000,
	};

	return ask(VU_SET_VRING_ADDR, &addr, sizeof(addr));
}

/* What QEMU does before a guest's driver has the disk. */
static void negotiate(uint64_t features)
{
	CHECK(get_u64(VU_GET_FEATURES) == (ALL_FEATURES | WITH_PROTOCOL));
	CHECK(!ask_u64(VU_SET_PROTOCOL_FEATURES, get_u64(VU_GET_PROTOCOL_FEATURES)));
	CHECK(get_u64(VU_GET_QUEUE_NUM) == QUEUES);
	CHECK(!ask(VU_SET_OWNER, NULL, 0));
	CHECK(!ask_u64(VU_SET_FEATURES, features));
}

static void start_ring(uint32_t index)
{
	CHECK(!ask_state(VU_SET_VRING_NUM, index, 128));
	CHECK(!ask_state(VU_SET_VRING_BASE, index, 5));
	CHECK(!set_addr(index, 0x7000000 + index * 0x4000, 0));
	CHECK(!file_for_ring(VU_SET_VRING_KICK, index));
	CHECK(!file_for_ring(VU_SET_VRING_CALL, index));
}

static void test_polite(void)
{
	struct vu_vring_state state;
	struct vu_config wire = { .size = sizeof(config) };
	uint64_t features = (1ull << VIRTIO_F_VERSION_1) | WITH_PROTOCOL |
			    (1ull << VIRTIO_BLK_F_CONFIG_WCE);

	config.capacity = 4711;
	begin();
	negotiate(features);
	CHECK(!set_table_of(0, 1 << 20, 0x7000000));
	start_ring(0);
	start_ring(1);
	/* With the protocol features nothing runs before it is enabled. */
	CHECK(!kernel.running[0] && !kernel.running[1]);
	CHECK(!ask_state(VU_SET_VRING_ENABLE, 0, 1));
	CHECK(kernel.running[0] && !kernel.running[1]);
	CHECK(kernel.features == (features & ~WITH_PROTOCOL));
	/* Other memory: the ring was stopped for it, and goes on. */
	CHECK(!set_table_of(0x100000, 1 << 20, 0x7000000));
	CHECK(kernel.running[0]);
	/* Stopping keeps the state of the ring ... */
	CHECK(!ask_state(VU_SET_VRING_ENABLE, 0, 0) && !kernel.running[0]);
	CHECK(!ask_state(VU_SET_VRING_ENABLE, 0, 1) && kernel.running[0]);
	/* ... and its base is where the kernel stopped. */
	CHECK(!ask_state(VU_GET_VRING_BASE, 0, 0) && !kernel.running[0]);
	CHECK(answer(&state, sizeof(state)) == sizeof(state));
	CHECK(state.index == 0 && state.num == kernel.base[0], "%u", state.num);
	/* Where the flush behind it fails it is stopped all the same, and can go on. */
	kernel.fail_flush = true;
	start_ring(0);
	CHECK(kernel.running[0]);
	CHECK(ask_state(VU_GET_VRING_BASE, 0, 0) == -1 &&
	      strstr(cause_text(), "cannot be flushed"), "%s", cause_text());
	CHECK(!kernel.running[0] && !session.broken);
	kernel.fail_flush = false;
	/* A ring that never ran has the base that it was given. */
	CHECK(!ask_state(VU_GET_VRING_BASE, 1, 0));
	CHECK(answer(&state, sizeof(state)) && state.num == 5, "%u", state.num);
	/* It waits for its kick. */
	CHECK(!ask_state(VU_SET_VRING_ENABLE, 1, 1) && !kernel.running[1]);

	CHECK(!ask(VU_GET_CONFIG, &wire, 12 + wire.size));
	CHECK(answer(&wire, sizeof(wire)) == 12 + sizeof(config));
	CHECK(!memcmp(wire.data, &config, sizeof(config)));
	wire.offset = 250;
	wire.size = 7;
	/* A wrong range is answered with nothing, and nothing more comes. */
	CHECK(ask(VU_GET_CONFIG, &wire, 12) == -1 && answer(&wire, sizeof(wire)) == 0);
	wire.offset = offsetof(struct virtio_blk_config, wce);
	wire.size = 1;
	wire.data[0] = 0;
	kernel.writeback = 1;
	CHECK(!ask_state(VU_SET_VRING_ENABLE, 0, 1));
	CHECK(!file_for_ring(VU_SET_VRING_KICK, 0) && kernel.running[0]);
	CHECK(!ask(VU_SET_CONFIG, &wire, 13) && !kernel.writeback && !config.wce);
	CHECK(kernel.running[0]);
	CHECK(!ask_u64(VU_SET_STATUS, 0xf));
	CHECK(get_u64(VU_GET_STATUS) == 0xf);
	/* Nobody is told the mode again: it survives a reset ... */
	CHECK(!ask_u64(VU_SET_STATUS, 0) && !kernel.running[0]);
	CHECK(!kernel.writeback && !config.wce);
	end();
	/* ... and a new connection. */
	begin();
	CHECK(kernel.writeback == NEVER_SET && !config.wce);
	end();

	/* Without the protocol features the kick is all that a ring waits for. */
	begin();
	CHECK(!ask_u64(VU_SET_FEATURES, 1ull << VIRTIO_F_VERSION_1));
	CHECK(!set_table_of(0, 1 << 20, 0x7000000));
	start_ring(0);
	CHECK(kernel.running[0]);
	end();
}

static void test_hotplug(void)
{
	struct vu_mem_reg reg = {
		.region = { .guest_addr = 0, .size = 1 << 20, .front_addr = 0x7000000 },
	};
	int fd = guest_file(4 << 20);

	begin();
	negotiate((1ull << VIRTIO_F_VERSION_1) | WITH_PROTOCOL);
	CHECK(get_u64(VU_GET_MAX_MEM_SLOTS) == vhost.max_regions);
	CHECK(!ask_fds(VU_ADD_MEM_REG, &reg, sizeof(reg), &fd, 1));
	start_ring(0);
	CHECK(!ask_state(VU_SET_VRING_ENABLE, 0, 1) && kernel.running[0]);
	reg.region.guest_addr = 1 << 20;
	reg.region.front_addr = 0x8000000;
	reg.region.mmap_offset = (1 << 20) + 512;
	CHECK(!ask_fds(VU_ADD_MEM_REG, &reg, sizeof(reg), &fd, 1));
	CHECK(kernel.running[0] && kernel.nregions == 2);
	CHECK(!ask(VU_REM_MEM_REG, &reg, sizeof(reg)));
	CHECK(kernel.running[0] && kernel.nregions == 1);
	CHECK(ask(VU_REM_MEM_REG, &reg, sizeof(reg)) == -1 &&
	      strstr(cause_text(), "never added"), "%s", cause_text());
	/* Its own memory goes: the ring stops, and stays stopped. */
	reg.region.guest_addr = 0;
	reg.region.front_addr = 0x7000000;
	CHECK(!ask(VU_REM_MEM_REG, &reg, sizeof(reg)) && !kernel.running[0]);
	end();
	close(fd);
}

static void test_log(void)
{
	struct vu_log log = { .size = 4096 };
	struct vu_log tiny = { .size = 16 };
	uint64_t features = (1ull << VIRTIO_F_VERSION_1) | WITH_PROTOCOL;
	uint64_t logged = features | (1ull << VHOST_F_LOG_ALL);
	int fd = guest_file(4096), ret;
	uint64_t base, told = 77;

	begin();
	negotiate(features);
	CHECK(!set_table_of(0, 16 << 20, 0x7000000));
	start_ring(0);
	CHECK(!ask_state(VU_SET_VRING_ENABLE, 0, 1) && kernel.running[0]);
	/* Logging needs a log, and one that is long enough. */
	CHECK(ask_u64(VU_SET_FEATURES, logged) == -1 && strstr(cause_text(), "without a log"));
	CHECK(!ask_fds(VU_SET_LOG_BASE, &tiny, sizeof(tiny), &fd, 1));
	CHECK(answer(&told, 8) == 8 && !told);
	CHECK(ask_u64(VU_SET_FEATURES, logged) == -1);
	CHECK(!ask_fds(VU_SET_LOG_BASE, &log, sizeof(log), &fd, 1));
	CHECK(answer(&told, 8) == 8 && !told);
	CHECK(!ask_u64(VU_SET_FEATURES, logged) && kernel.features & (1ull << VHOST_F_LOG_ALL));
	CHECK(kernel.running[0]);
	CHECK(!set_addr(0, 0x7000000, 1) && kernel.running[0] && kernel.addr[0].flags == 1);
	/* While it is written to, another log is taken only if it is long enough. */
	base = kernel.log_base;
	CHECK(ask_fds(VU_SET_LOG_BASE, &tiny, sizeof(tiny), &fd, 1) == -1 &&
	      strstr(cause_text(), "too short"), "%s", cause_text());
	CHECK(kernel.log_base == base && kernel.running[0]);
	kernel.fail_always = VHOST_SET_LOG_BASE;
	CHECK(ask_fds(VU_SET_LOG_BASE, &log, sizeof(log), &fd, 1) == -1 &&
	      strstr(cause_text(), "VHOST_SET_LOG_BASE"), "%s", cause_text());
	kernel.fail_always = 0;
	CHECK(!ask_u64(VU_SET_FEATURES, logged) && kernel.log_base == base && kernel.running[0]);
	CHECK(!ask_fds(VU_SET_LOG_BASE, &log, sizeof(log), &fd, 1));
	CHECK(answer(&told, 8) == 8 && !told);
	CHECK(kernel.log_base != base && !is_mapped(base, 1) && kernel.running[0]);
	CHECK(!ask_u64(VU_SET_FEATURES, features));
	CHECK(!set_addr(0, 0x7000000, 0) && kernel.running[0] && !kernel.addr[0].flags);
	/* Memory above what the log has bits for. */
	CHECK(!ask_u64(VU_SET_FEATURES, logged));
	ret = set_table_of(1ull << 40, 1 << 20, 0x7000000);
	CHECK(ret == -1 && strstr(cause_text(), "does not hold"), "%s", cause_text());
	end();

	/* In the order of an incoming migration: the log comes last. */
	begin();
	negotiate(logged);
	CHECK(!(kernel.features & (1ull << VHOST_F_LOG_ALL)));
	CHECK(!set_table_of(0, 1 << 20, 0x7000000));
	start_ring(0);
	CHECK(!ask_state(VU_SET_VRING_ENABLE, 0, 1) && !kernel.running[0]);
	CHECK(!ask_fds(VU_SET_LOG_BASE, &log, sizeof(log), &fd, 1));
	CHECK(kernel.running[0] && kernel.features & (1ull << VHOST_F_LOG_ALL));
	told = 77;
	CHECK(answer(&told, 8) == 8 && !told);
	end();
	close(fd);
}

/* What the kernel may have to wait for is refused, as guest memory and as a log. */
static void test_places(void)
{
	struct vu_mem_reg reg = { .region = { .size = 4096, .front_addr = 0x7000000 } };
	struct vu_log log = { .size = 4096 };
	int proc = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
	int zero = open("/dev/zero", O_RDWR | O_CLOEXEC);

	CHECK(proc >= 0 && zero >= 0);
	begin();
	negotiate((1ull << VIRTIO_F_VERSION_1) | WITH_PROTOCOL);
	CHECK(ask_fds(VU_ADD_MEM_REG, &reg, sizeof(reg), &proc, 1) == -1 &&
	      strstr(cause_text(), "filesystem (type 0x9fa0)"), "%s", cause_text());
	CHECK(ask_fds(VU_ADD_MEM_REG, &reg, sizeof(reg), &zero, 1) == -1 &&
	      strstr(cause_text(), "guest memory is not in a regular file"), "%s", cause_text());
	CHECK(ask_fds(VU_SET_LOG_BASE, &log, sizeof(log), &proc, 1) == -1 &&
	      strstr(cause_text(), "the log is in a file on a filesystem"), "%s", cause_text());
	CHECK(!session.memory.n && !session.log);
	end();
	close(proc);
	close(zero);
}

static void expect_closed(int ret, const char *words)
{
	CHECK(ret == -1, "accepted what is about '%s'", words);
	CHECK(strstr(cause_text(), words), "'%s' is not about '%s'", cause_text(), words);
}

static void test_hostile(void)
{
	struct vu_mem_table table = { .nregions = 9 };
	struct vu_vring_addr addr = { .desc = 0x7000000, .avail = 0x7001000,
				      .used = 0x7000000 + (1 << 20) - 1029 };
	uint64_t value = 0;
	int fds[20];

	for (int i = 0; i < 20; i++)
		fds[i] = guest_file(1 << 20);
	begin();
	negotiate((1ull << VIRTIO_F_VERSION_1) | WITH_PROTOCOL);
	expect_closed(ask(99, NULL, 0), "message 99");
	expect_closed(ask(0, NULL, 0), "message 0");
	expect_closed(ask(VU_SET_FEATURES, &value, 4), "payload of 4");
	expect_closed(ask_u64(VU_SET_FEATURES, ~0ull), "not offered");
	expect_closed(ask_u64(VU_SET_PROTOCOL_FEATURES, ~0ull), "not offered");
	expect_closed(ask(VU_SET_MEM_TABLE, &table, sizeof(table)), "9 regions");
	table.nregions = 2;
	expect_closed(ask(VU_SET_MEM_TABLE, &table, 40), "do not fit into 40 bytes");
	expect_closed(ask_fds(VU_SET_MEM_TABLE, &table, 72, fds, 1), "2 regions came with 1");
	expect_closed(ask_fds(VU_SET_MEM_TABLE, &table, 72, fds, 2), "has no size");
	table.region[0].size = table.region[1].size = 1 << 20;
	expect_closed(ask_fds(VU_SET_MEM_TABLE, &table, 72, fds, 2), "overlap");
	table.region[1].guest_addr = 1 << 20;
	expect_closed(ask_fds(VU_SET_MEM_TABLE, &table, 72, fds, 2), "overlap");
	table.region[1].front_addr = ~0ull - 4096;
	expect_closed(ask_fds(VU_SET_MEM_TABLE, &table, 72, fds, 2), "wraps around");
	table.region[1].front_addr = 1 << 30;
	table.region[1].mmap_offset = ~0ull - 4096;
	expect_closed(ask_fds(VU_SET_MEM_TABLE, &table, 72, fds, 2), "wraps around");
	table.region[1].mmap_offset = 0;
	table.region[1].size = 1ull << 62;
	expect_closed(ask_fds(VU_SET_MEM_TABLE, &table, 72, fds, 2), "cannot map");
	CHECK(!set_table_of(0, 1 << 20, 0x7000000));

	expect_closed(ask_state(VU_SET_VRING_NUM, 2, 128), "no ring 2");
	expect_closed(ask_state(VU_SET_VRING_NUM, 0, 100), "invalid size 100");
	expect_closed(ask_state(VU_SET_VRING_NUM, 0, 0), "invalid size 0");
	expect_closed(ask_state(VU_SET_VRING_NUM, 0, 65536), "65536 entries");
	expect_closed(ask_state(VU_SET_VRING_NUM, 0, 2048), "no ring may have more than 1024");
	CHECK(!ask_state(VU_SET_VRING_NUM, 0, 1024));
	expect_closed(ask_state(VU_SET_VRING_BASE, 0, 65536), "invalid base 65536");
	expect_closed(ask_state(VU_GET_VRING_BASE, 77, 0), "no ring 77");
	expect_closed(ask_state(VU_SET_VRING_ENABLE, 0, 2), "invalid enable value 2");
	expect_closed(set_addr(0, 0, 2), "flags 0x2");
	value = 0 | VU_VRING_NOFD;
	expect_closed(ask(VU_SET_VRING_KICK, &value, 8), "polled");
	expect_closed(ask_fds(VU_SET_VRING_CALL, &value, 8, fds, 1), "came with 1 file descriptors");
	value = 0;
	expect_closed(ask(VU_SET_VRING_KICK, &value, 8), "came with 0 file descriptors");
	expect_closed(ask_fds(VU_SET_VRING_KICK, &value, 8, fds, 2), "2 file descriptors");
	/* A kick and no addresses: it waits. A used ring past the end: it is refused. */
	CHECK(!file_for_ring(VU_SET_VRING_KICK, 0));
	CHECK(!ask_state(VU_SET_VRING_ENABLE, 0, 1) && !kernel.running[0]);
	CHECK(!ask_state(VU_SET_VRING_NUM, 0, 128) && !kernel.running[0]);
	expect_closed(ask(VU_SET_VRING_ADDR, &addr, sizeof(addr)), "not inside the guest");
	addr.used--;
	CHECK(!ask(VU_SET_VRING_ADDR, &addr, sizeof(addr)) && kernel.running[0]);
	expect_closed(ask_state(VU_SET_VRING_NUM, 0, 256), "while it runs");
	expect_closed(ask_fds(VU_SET_BACKEND_REQ_FD, NULL, 0, fds, 1), "not a stream socket");
	end();

	begin();
	expect_closed(ask(VU_GET_QUEUE_NUM, NULL, 0), "not negotiated");
	send_message(VU_GET_FEATURES, 2, NULL, 0, 0, NULL, 0);
	expect_closed(deliver(), "version 2");
	end();
	begin();
	send_message(VU_GET_FEATURES, VU_VERSION, NULL, 0, 1 << 20, NULL, 0);
	expect_closed(deliver(), "is too long");
	end();
	begin();
	send_message(VU_GET_FEATURES, VU_VERSION, NULL, 0, 0, fds, 20);
	expect_closed(deliver(), "too many file descriptors");
	end();
	/* Half a message, and away. */
	begin();
	send_message(VU_SET_FEATURES, VU_VERSION, &value, 4, 8, fds, 1);
	CHECK(deliver() == 1);
	shutdown(front, SHUT_WR);
	expect_closed(deliver(), "in the middle");
	end();
	for (int i = 0; i < 20; i++)
		close(fds[i]);
}

/* A refusal that can be told does not cost the connection. */
static void test_ack(void)
{
	struct vu_vring_state state = { 9, 9 };
	uint64_t result = 77;

	begin();
	negotiate((1ull << VIRTIO_F_VERSION_1) | WITH_PROTOCOL);
	send_message(VU_SET_VRING_NUM, VU_VERSION | VU_FLAG_NEED_REPLY, &state, 8, 8, NULL, 0);
	CHECK(!deliver() && answer(&result, 8) == 8 && result == 1);
	state.index = 1;
	state.num = 64;
	send_message(VU_SET_VRING_NUM, VU_VERSION | VU_FLAG_NEED_REPLY, &state, 8, 8, NULL, 0);
	CHECK(!deliver() && answer(&result, 8) == 8 && result == 0);
	/* Where something else is waited for, a refusal would be taken for that. */
	state.index = 9;
	send_message(VU_GET_VRING_BASE, VU_VERSION | VU_FLAG_NEED_REPLY, &state, 8, 8, NULL, 0);
	CHECK(deliver() == -1 && recv(front, &result, 8, 0) == -1 && errno == EAGAIN);
	end();
}

static uint64_t some_address(void)
{
	static const uint64_t few[] = { 0, 0x100000, 0x200000, 0x7000000, 0x7100000, 0x7200000 };

	return few[random_below(ARRAY_SIZE(few))] + (random_below(8) ? 0 : random_below(1 << 21));
}

static void random_payload(union vu_payload *p, uint32_t request)
{
	memset(p, 0, sizeof(*p));
	switch (request) {
	case VU_SET_MEM_TABLE:
		p->table.nregions = 1 + random_below(3);
		for (unsigned int i = 0; i < p->table.nregions; i++) {
			p->table.region[i].guest_addr = some_address();
			p->table.region[i].front_addr = some_address();
			p->table.region[i].size = 0x1000 << random_below(10);
			p->table.region[i].mmap_offset = random_below(3) << 11;
		}
		break;
	case VU_ADD_MEM_REG:
	case VU_REM_MEM_REG:
		p->mem_reg.region.guest_addr = some_address();
		p->mem_reg.region.front_addr = some_address();
		p->mem_reg.region.size = 0x1000 << random_below(10);
		break;
	case VU_SET_LOG_BASE:
		p->log.size = 1 << random_below(14);
		break;
	case VU_SET_VRING_ADDR:
		p->addr.index = random_below(QUEUES);
		p->addr.flags = !random_below(4);
		p->addr.desc = some_address();
		p->addr.avail = p->addr.desc + 0x1000;
		p->addr.used = p->addr.desc + 0x2000;
		p->addr.log = random_below(4) ? some_address() : random_u64();
		break;
	case VU_SET_FEATURES:
		p->u64 = (random_below(4) ? WITH_PROTOCOL : 0) | (1ull << VIRTIO_F_VERSION_1) |
			 (random_below(3) ? 0 : 1ull << VHOST_F_LOG_ALL);
		break;
	case VU_SET_PROTOCOL_FEATURES:
		p->u64 = random_below(4) ? 0x1a22b : random_u64() & 0x1a22b;
		break;
	case VU_SET_STATUS:
		p->u64 = random_below(8);
		break;
	case VU_SET_VRING_NUM:
		p->state.index = random_below(QUEUES);
		p->state.num = 1 << random_below(9);
		break;
	default:
		p->state.index = random_below(QUEUES);
		p->state.num = random_below(2);
		break;
	}
	for (uint64_t n = random_below(6) ? 0 : 1 + random_below(4); n; n--)
		((uint8_t *)p)[random_below(96)] = random_u64();
}

static const struct {
	uint32_t request, size, fds;
} shapes[] = {
	{ VU_GET_FEATURES, 0, 0 }, { VU_SET_FEATURES, 8, 0 }, { VU_SET_OWNER, 0, 0 },
	{ VU_RESET_OWNER, 0, 0 }, { VU_SET_MEM_TABLE, 104, 3 }, { VU_SET_MEM_TABLE, 104, 3 },
	{ VU_SET_LOG_BASE, 16, 1 }, { VU_SET_LOG_FD, 0, 1 }, { VU_SET_VRING_NUM, 8, 0 },
	{ VU_SET_VRING_ADDR, 40, 0 }, { VU_SET_VRING_ADDR, 40, 0 }, { VU_SET_VRING_BASE, 8, 0 },
	{ VU_GET_VRING_BASE, 8, 0 }, { VU_SET_VRING_KICK, 8, 1 }, { VU_SET_VRING_KICK, 8, 1 },
	{ VU_SET_VRING_CALL, 8, 1 }, { VU_SET_VRING_ERR, 8, 1 },
	{ VU_GET_PROTOCOL_FEATURES, 0, 0 }, { VU_SET_PROTOCOL_FEATURES, 8, 0 },
	{ VU_GET_QUEUE_NUM, 0, 0 }, { VU_SET_VRING_ENABLE, 8, 0 }, { VU_SET_VRING_ENABLE, 8, 0 },
	{ VU_SET_BACKEND_REQ_FD, 0, 1 }, { VU_GET_CONFIG, 40, 0 }, { VU_SET_CONFIG, 13, 0 },
	{ VU_RESET_DEVICE, 0, 0 }, { VU_GET_MAX_MEM_SLOTS, 0, 0 }, { VU_ADD_MEM_REG, 40, 1 },
	{ VU_ADD_MEM_REG, 40, 1 }, { VU_REM_MEM_REG, 40, 0 }, { VU_SET_STATUS, 8, 0 },
	{ VU_GET_STATUS, 0, 0 },
};

static bool random_message(const int *files)
{
	uint64_t pick = random_below(ARRAY_SIZE(shapes));
	uint32_t request = shapes[pick].request, size = shapes[pick].size, nfds = shapes[pick].fds;
	uint32_t flags = VU_VERSION | (random_below(4) ? VU_FLAG_NEED_REPLY : 0);
	union vu_payload payload;
	int fds[8];

	random_payload(&payload, request);
	if (request == VU_SET_MEM_TABLE)
		nfds = payload.table.nregions;
	if (!random_below(40))
		nfds = random_below(8);
	if (!random_below(40))
		size = random_below(sizeof(payload));
	if (!random_below(200))
		request = random_below(64);
	for (uint32_t i = 0; i < nfds && i < 8; i++)
		fds[i] = files[request >= VU_SET_VRING_KICK && request <= VU_SET_VRING_ERR
			       ? 0 : 1 + random_below(2)];
	send_message(request, flags, &payload, size, size, fds, nfds < 8 ? nfds : 8);
	return deliver() >= 0;
}

static void test_random(void)
{
	double until = clock_seconds() + random_seconds();
	int files[3] = { eventfd(0, EFD_CLOEXEC), guest_file(4 << 20), guest_file(1 << 16) };
	uint64_t sessions = 0, messages = 0, ran = 0;
	unsigned int fds = count_fds();
	char sink[4096];

	random_begin();
	while (clock_seconds() < until) {
		bool open = true;

		begin();
		negotiate((1ull << VIRTIO_F_VERSION_1) | WITH_PROTOCOL);
		if (random_below(4)) {
			CHECK(!set_table_of(0, 4 << 20, 0x7000000));
			start_ring(0);
			CHECK(!ask_state(VU_SET_VRING_ENABLE, 0, 1));
		}
		kernel.fail_one_in = random_below(2) ? 0 : 50;
		kernel.fail_flush = !random_below(4);
		for (uint64_t n = random_below(300); open && n; n--) {
			open = random_message(files);
			messages++;
			ran += kernel.running[0] || kernel.running[1];
			while (recv(front, sink, sizeof(sink), 0) > 0)
				;
		}
		if (session.broken) {
			/* The process would end here; the model's rings are stopped by hand. */
			session.broken = false;
			memset(kernel.running, 0, sizeof(kernel.running));
		}
		end();
		sessions++;
		CHECK(count_fds() == fds, "%u descriptors, not %u", count_fds(), fds);
	}
	CHECK(ran > messages / 100, "rings ran after only %llu of %llu messages",
	      (unsigned long long)ran, (unsigned long long)messages);
	printf("  %llu connections, %llu messages, %llu of them with a ring running\n",
	       (unsigned long long)sessions, (unsigned long long)messages,
	       (unsigned long long)ran);
	for (size_t i = 0; i < ARRAY_SIZE(files); i++)
		close(files[i]);
}

int main(void)
{
	set_verb("test");
	/* What a refused message prints is expected here, thousands of times. */
	CHECK(freopen("/dev/null", "w", stderr) || true);
	test_polite();
	test_hotplug();
	test_log();
	test_places();
	test_hostile();
	test_ack();
	test_random();
	return 0;
}
