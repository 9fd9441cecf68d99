// SPDX-License-Identifier: GPL-2.0-or-later
/* libs: */
/*
 * The ioctls of /dev/vhost-blk: ringctl CASE DEVICE. What is refused and how, dirty logging, busy
 * polling, the cache mode. Run by tests/test_vhost_ring.py.
 */
#define _GNU_SOURCE
#include <linux/fs.h>
#include <sys/wait.h>

#include "ringcase.h"

#define LOG_BYTES ((HOLE_GPA + HOLE_SIZE) / 4096 / 8)

/* The logged pages must be these, no more and no fewer; a list of addresses that ends with 0. */
static void expect_log(struct guest *g, uint8_t *log, const char *what, const uint64_t *gpa)
{
	struct vhost_vring_state base = { .index = 0 };
	unsigned int i;
	uint64_t page;

	/*
	 * The used index is logged after it has been written. This waits for the ring's mutex, and so
	 * for the worker that answered.
	 */
	must(ioctl(g->fd, VHOST_GET_VRING_BASE, &base));
	for (i = 0; gpa[i]; i++) {
		page = gpa[i] / 4096;
		if (!(log[page / 8] & 1 << page % 8))
			fail("%s: page of %#llx is not logged", what, (unsigned long long)gpa[i]);
	}
	for (; i; i--) {
		page = gpa[i - 1] / 4096;
		log[page / 8] &= ~(1 << page % 8);
	}
	for (page = 0; page < LOG_BYTES; page++)
		if (log[page])
			fail("%s: page at %#llx was logged for nothing (bits %#x)", what,
			     (unsigned long long)page * 8 * 4096, log[page]);
}

/* Dirty logging marks exactly the pages that were written: data, status, used ring. */
static void case_log(void)
{
	uint8_t *log = mmap(NULL, LOG_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			    -1, 0);
	uint64_t base = (uintptr_t)log, d = data_gpa(0), used, st;
	struct vhost_vring_addr addr = { .index = 0, .flags = 1 << VHOST_VRING_F_LOG };
	struct guest g;
	struct queue *q = &g.q[0];
	struct seg seg[4];
	uint64_t bytes;
	int fd = must(open(device, O_RDONLY));

	must(ioctl(fd, BLKGETSIZE64, &bytes));
	close(fd);
	check(log != MAP_FAILED);
	guest_start(&g, device, O_RDWR, 1, 64, DEFAULT_FEATURES);
	used = q->ring_gpa + ((uint8_t *)q->ring.used - q->ring_mem);
	st = status_gpa(q, 0);

	check_eq(request(q, T_IN, 0, d, 4096, NULL), S_OK);
	expect_log(&g, log, "logging is off", (uint64_t[]){ 0 });

	/* A log that is not in user space. */
	must(ioctl(g.fd, VHOST_SET_LOG_BASE, &(uint64_t){ 0xffff888000000000 }));
	g.features |= 1ull << VHOST_F_LOG_ALL;
	must_fail(ioctl(g.fd, VHOST_SET_FEATURES, &g.features), EFAULT);
	check_eq(request(q, T_IN, 0, d, 4096, NULL), S_OK);

	must(ioctl(g.fd, VHOST_SET_LOG_BASE, &base));
	g.features |= 1ull << VHOST_F_LOG_ALL;
	must(ioctl(g.fd, VHOST_SET_FEATURES, &g.features));
	check_eq(request(q, T_IN, 0, d, 4096, NULL), S_OK);
	expect_log(&g, log, "IN", (uint64_t[]){ d, st, 0 });

	addr.desc_user_addr = (uintptr_t)q->ring.desc;
	addr.avail_user_addr = (uintptr_t)q->ring.avail;
	addr.used_user_addr = (uintptr_t)q->ring.used;
	addr.log_guest_addr = used;
	must(ioctl(g.fd, VHOST_SET_VRING_ADDR, &addr));
	memset(log, 0, LOG_BYTES);

	check_eq(request(q, T_IN, 0, d, 4096, NULL), S_OK);
	expect_log(&g, log, "IN of a page", (uint64_t[]){ d, st, used, 0 });
	check_eq(request(q, T_IN, 0, d + 3584, 1024, NULL), S_OK);
	expect_log(&g, log, "IN across pages", (uint64_t[]){ d, d + 4096, st, used, 0 });
	check_eq(request(q, T_IN, 0, d + 4097, 512, NULL), S_OK);
	expect_log(&g, log, "IN, bounced", (uint64_t[]){ d + 4096, st, used, 0 });
	check_eq(request(q, T_OUT, 0, d, 4096, NULL), S_OK);
	expect_log(&g, log, "OUT", (uint64_t[]){ st, used, 0 });
	check_eq(request(q, T_FLUSH, 0, 0, 0, NULL), S_OK);
	expect_log(&g, log, "FLUSH", (uint64_t[]){ st, used, 0 });
	check_eq(request(q, T_GET_ID, 0, d + 4090, 20, NULL), S_OK);
	expect_log(&g, log, "GET_ID across pages", (uint64_t[]){ d, d + 4096, st, used, 0 });
	check_eq(request(q, T_GET_ID, 0, d + 4070, 4096, NULL), S_OK);
	expect_log(&g, log, "GET_ID in a large buffer", (uint64_t[]){ d, st, used, 0 });
	check_eq(request(q, T_IN, bytes / SECTOR, d, 4096, NULL), S_IOERR);
	expect_log(&g, log, "IN that is refused", (uint64_t[]){ st, used, 0 });
	check_eq(request(q, 99, 0, d, 4096, NULL), S_UNSUPP);
	expect_log(&g, log, "unknown", (uint64_t[]){ st, used, 0 });

	/* Both regions of memory, the status at the end of the data. */
	seg[0] = (struct seg){ header(q, 0, T_IN, 0), 16, false };
	seg[1] = (struct seg){ HIGH_GPA + HIGH_SIZE - 8192, 8192, true };
	seg[2] = (struct seg){ LOW_GPA + LOW_SIZE - 8192 - 1, 8192 + 1, true };
	add_direct(q, seg, 3);
	kick(q);
	check_eq(next_used(q).len, 16385);
	expect_log(&g, log, "IN to two regions",
		   (uint64_t[]){ HIGH_GPA + HIGH_SIZE - 8192, HIGH_GPA + HIGH_SIZE - 4096,
				 LOW_GPA + LOW_SIZE - 8193, LOW_GPA + LOW_SIZE - 8192,
				 LOW_GPA + LOW_SIZE - 4096, used, 0 });
	/* The status in a page of its own, with data and without. */
	seg[0] = (struct seg){ header(q, 0, T_IN, 0), 16, false };
	seg[1] = (struct seg){ d, 4097, true };
	add_direct(q, seg, 2);
	kick(q);
	check_eq(next_used(q).len, 4097);
	expect_log(&g, log, "IN, then the status", (uint64_t[]){ d, d + 4096, used, 0 });
	header(q, 0, T_IN, bytes / SECTOR);
	add_direct(q, seg, 2);
	kick(q);
	check_eq(next_used(q).len, 1);
	expect_log(&g, log, "the status alone", (uint64_t[]){ d + 4096, used, 0 });
	/* The same without room for a status. */
	seg[1].len = 512;
	seg[1].write = false;
	add_direct(q, seg, 2);
	kick(q);
	check_eq(next_used(q).len, 0);
	expect_log(&g, log, "no status", (uint64_t[]){ used, 0 });

	g.features &= ~(1ull << VHOST_F_LOG_ALL);
	must(ioctl(g.fd, VHOST_SET_FEATURES, &g.features));
	check_eq(request(q, T_IN, 0, d, 4096, NULL), S_OK);
	expect_log(&g, log, "logging is off again", (uint64_t[]){ used, 0 });
	guest_stop(&g);
}

/* Busy polling: for a while after a request, the next needs no kick. */
static void case_busyloop(void)
{
	struct vhost_vring_state s = { 0, 200000 };
	struct guest g;
	struct queue *q = &g.q[0];
	unsigned int i, served = 0;
	double t;

	guest_start(&g, device, O_RDWR, 1, 64, DEFAULT_FEATURES);
	/* Off by default: a request without a kick waits for one. */
	check_eq(request(q, T_IN, 0, data_gpa(0), 4096, NULL), S_OK);
	add_request(q, 0, T_IN, 0, data_gpa(0), 4096);
	usleep(50000);
	check_quiet(q, 1);
	kick(q);
	next_used(q);

	must_fail(ioctl(g.fd, VHOST_SET_VRING_BUSYLOOP_TIMEOUT,
			&(struct vhost_vring_state){ 0, VHOST_BLK_MAX_BUSYLOOP_US + 1 }), EINVAL);
	must(ioctl(g.fd, VHOST_SET_VRING_BUSYLOOP_TIMEOUT, &s));
	s.num = 0;
	must(ioctl(g.fd, VHOST_GET_VRING_BUSYLOOP_TIMEOUT, &s));
	check_eq(s.num, 200000);
	/* The scheduler may end the polling early when the machine is busy, but not every time. */
	for (i = 0; i < 50; i++) {
		request(q, T_IN, 0, data_gpa(0), 4096, NULL);
		add_request(q, 0, T_IN, 0, data_gpa(0), 4096);
		if (wait_used_idx(q, q->used_seen + 1, 20))
			served++;
		kick(q);
		next_used(q);
	}
	printf("%u of %u served without a kick\n", served, i);
	/* With one processor the client cannot run while the worker polls. */
	check(served > 0 || sysconf(_SC_NPROCESSORS_ONLN) == 1);
	/* Stopping does not wait for the polling. */
	request(q, T_IN, 0, data_gpa(0), 4096, NULL);
	t = now();
	must(set_backend_fd(&g, -1));
	check(now() - t < 0.15);
	guest_stop(&g);
}

/* Everything that is refused, and with what. */
static void case_ioctls(void)
{
	struct vhost_vring_file none = { 0, -1 }, other = { 1, -1 };
	uint64_t features = DEFAULT_FEATURES;
	uint32_t mode;
	struct guest g;
	int fd, status;
	pid_t pid;

	guest_memory(&g);
	g.fd = must(open("/dev/vhost-blk", O_RDWR | O_CLOEXEC));
	/* Nobody owns it yet. */
	must_fail(ioctl(g.fd, VHOST_BLK_SET_BACKEND, &none), EPERM);
	must_fail(ioctl(g.fd, VHOST_SET_FEATURES, &features), EPERM);
	must_fail(ioctl(g.fd, VHOST_BLK_SET_SERIAL, g.low), EPERM);
	must_fail(ioctl(g.fd, VHOST_NEW_WORKER, g.low), EPERM);
	must(ioctl(g.fd, VHOST_SET_OWNER));
	must_fail(ioctl(g.fd, VHOST_SET_OWNER), EBUSY);
	must_fail(ioctl(g.fd, _IO(VHOST_VIRTIO, 0xEE), &none), ENOTTY);

	features |= 1ull << VIRTIO_F_RING_PACKED;
	must_fail(ioctl(g.fd, VHOST_SET_FEATURES, &features), EOPNOTSUPP);
	features = DEFAULT_FEATURES | 1ull << VIRTIO_F_ACCESS_PLATFORM;
	must_fail(ioctl(g.fd, VHOST_SET_FEATURES, &features), EOPNOTSUPP);
	must_fail(ioctl(g.fd, VHOST_SET_FEATURES, NULL), EFAULT);
	features = DEFAULT_FEATURES;
	must(ioctl(g.fd, VHOST_SET_FEATURES, &features));
	guest_set_memory(&g);

	must_fail(ioctl(g.fd, VHOST_BLK_SET_BACKEND, &other), EINVAL);
	must(ioctl(g.fd, VHOST_BLK_SET_BACKEND, &none));
	must_fail(set_backend_fd(&g, 9999), EBADF);
	must_fail(set_backend_fd(&g, g.memfd), ENOTBLK);
	must_fail(set_backend_fd(&g, g.fd), ENOTBLK);
	fd = must(open(device, O_WRONLY));
	must_fail(set_backend_fd(&g, fd), EBADF);
	close(fd);
	must_fail(set_ring(&g, 0, 1), ENODEV);
	must(set_ring(&g, 0, 0));
	must_fail(set_ring(&g, 9999, 0), ENOBUFS);
	must_fail(set_ring(&g, 0, 2), EINVAL);
	mode = 3;
	must_fail(ioctl(g.fd, VHOST_BLK_SET_WRITEBACK, &mode), EINVAL);

	/* A ring whose addresses are not in user space: no ring is left running, no device open. */
	queue_init(&g, 0, 64);
	queue_init(&g, 1, 64);
	g.nr_queues = 2;
	queue_attach(&g, 0);
	g.q[1].ring.used = (void *)0xffff888000000000;
	queue_attach(&g, 1);
	fd = must(open(device, O_RDWR));
	must_fail(set_backend_fd(&g, fd), EFAULT);
	must_fail(set_ring(&g, 0, 1), ENODEV);
	add_request(&g.q[0], 0, T_IN, 0, data_gpa(0), 512);
	kick(&g.q[0]);
	check_quiet(&g.q[0], 30);
	/* A place in user space where nothing is. */
	g.q[1].ring.used = (void *)g.hole;
	queue_attach(&g, 1);
	must_fail(set_backend_fd(&g, fd), EFAULT);
	vring_init(&g.q[1].ring, 64, g.q[1].ring_mem, 4096);
	queue_attach(&g, 1);
	must(set_backend_fd(&g, fd));
	close(fd);
	next_used(&g.q[0]);

	/* The core's own rules while a ring runs. */
	must_fail(ioctl(g.fd, VHOST_SET_VRING_BASE, &(struct vhost_vring_state){ 0, 0 }), EBUSY);

	/* Another process has the file, but is not the owner. */
	pid = must(fork());
	if (!pid) {
		must_fail(ioctl(g.fd, VHOST_BLK_SET_BACKEND, &none), EPERM);
		must_fail(ioctl(g.fd, VHOST_RESET_OWNER), EPERM);
		must_fail(set_ring(&g, 0, 0), EPERM);
		_exit(0);
	}
	must(waitpid(pid, &status, 0));
	check(WIFEXITED(status) && !WEXITSTATUS(status));

	/* Giving up the ownership stops everything; it can be taken again. */
	must(ioctl(g.fd, VHOST_BLK_SET_SERIAL, "of the first owner   "));
	must(ioctl(g.fd, VHOST_RESET_OWNER));
	must_fail(ioctl(g.fd, VHOST_SET_FEATURES, &features), EPERM);
	add_request(&g.q[0], 0, T_IN, 0, data_gpa(0), 512);
	kick(&g.q[0]);
	check_quiet(&g.q[0], 30);
	must(ioctl(g.fd, VHOST_SET_OWNER));
	must(ioctl(g.fd, VHOST_SET_FEATURES, &features));
	guest_set_memory(&g);
	queue_attach(&g, 0);
	set_backend(&g, device, O_RDWR);
	next_used(&g.q[0]);
	memset(memory_at(&g, data_gpa(0)), 0xaa, 20);
	check_eq(request(&g.q[0], T_GET_ID, 0, data_gpa(0), 20, NULL), S_OK);
	check_eq(*(uint8_t *)memory_at(&g, data_gpa(0)), 0);
	guest_stop(&g);
}

/* Writes as a guest does that may not or will not flush: DEVICE logs what reaches it. */
static void case_writethrough(void)
{
	static const uint32_t off;
	struct guest g;
	struct queue *q = &g.q[0];

	guest_start(&g, device, O_RDWR, 1, 64, DEFAULT_FEATURES);
	check_eq(request(q, T_OUT, 0, data_gpa(0), 4096, NULL), S_OK);
	must(ioctl(g.fd, VHOST_BLK_SET_WRITEBACK, &off));
	check_eq(request(q, T_OUT, 8, data_gpa(0), 4096, NULL), S_OK);
	check_eq(request(q, T_OUT, 16, data_gpa(1), 4096, NULL), S_OK);
	must(ioctl(g.fd, VHOST_BLK_SET_WRITEBACK, &(uint32_t){ 1 }));
	check_eq(request(q, T_OUT, 24, data_gpa(0), 4096, NULL), S_OK);
	guest_stop(&g);

	guest_start(&g, device, O_RDWR, 1, 64, DEFAULT_FEATURES & ~(1ull << VIRTIO_BLK_F_FLUSH));
	check_eq(request(q, T_OUT, 32, data_gpa(0), 4096, NULL), S_OK);
	memcpy(memory_at(&g, data_gpa(0)), (uint64_t[]){ 40, 8 }, 16);
	check_eq(request(q, T_DISCARD, 0, data_gpa(0), 16, NULL), S_OK);
	check_eq(request(q, T_FLUSH, 0, 0, 0, NULL), S_OK);
	guest_stop(&g);
}

/* On a slow device: writes that are in flight when the guest gives up flushing. */
static void case_writeback(void)
{
	static const uint32_t off;
	struct guest g;
	struct queue *q = &g.q[0];
	unsigned int i;

	guest_start(&g, device, O_RDWR, 1, 64, DEFAULT_FEATURES);
	for (i = 0; i < 3; i++)
		add_request(q, i, T_OUT, i * 8, data_gpa(i), 4096);
	add_request(q, i, T_IN, 0, data_gpa(1 << 20), 4096);
	kick(q);
	usleep(50000);
	check_eq(used_idx(q), 0);
	must(ioctl(g.fd, VHOST_BLK_SET_WRITEBACK, &off));
	for (i = 0; i < 4; i++)
		next_used(q);
	for (i = 0; i < 4; i++)
		check_eq(*status_of(q, i), S_OK);
	guest_stop(&g);
}

/* On a slow device: logging ends and the log is gone before a request that was to be logged. */
static void case_unlogged(void)
{
	uint8_t *log = mmap(NULL, LOG_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			    -1, 0);
	uint64_t base = (uintptr_t)log;
	struct guest g;
	struct queue *q = &g.q[0];

	check(log != MAP_FAILED);
	guest_start(&g, device, O_RDWR, 1, 64, DEFAULT_FEATURES);
	must(ioctl(g.fd, VHOST_SET_LOG_BASE, &base));
	g.features |= 1ull << VHOST_F_LOG_ALL;
	must(ioctl(g.fd, VHOST_SET_FEATURES, &g.features));
	add_request(q, 0, T_IN, 0, data_gpa(0), 4096);
	kick(q);
	usleep(50000);
	check_eq(used_idx(q), 0);
	g.features &= ~(1ull << VHOST_F_LOG_ALL);
	must(ioctl(g.fd, VHOST_SET_FEATURES, &g.features));
	must(munmap(log, LOG_BYTES));
	next_used(q);
	check_eq(*status_of(q, 0), S_OK);
	check(!event_taken(q->err));
	check_eq(request(q, T_IN, 0, data_gpa(0), 4096, NULL), S_OK);
	guest_stop(&g);
}

/* A new owner of the ring of a guest that has been served before. */
static void next_owner(struct guest *g)
{
	close(g->fd);
	guest_connect(g, g->features);
	queue_attach(g, 0);
	set_backend(g, device, O_RDWR);
}

/*
 * A guest that may choose to write through says so once, to its first owner. DEVICE logs what reaches
 * it: each write is one sector, at 0, 1, 2 and so on.
 */
static void case_resumed(void)
{
	static const uint32_t off, on = 1, unknown = VHOST_BLK_WRITEBACK_UNKNOWN;
	struct guest g;
	struct queue *q = &g.q[0];
	unsigned int n = 0, i;

#define WRITE_NEXT() check_eq(request(q, T_OUT, n++, data_gpa(0), 512, NULL), S_OK)
	guest_start(&g, device, O_RDWR, 1, 64, DEFAULT_FEATURES | 1ull << VIRTIO_BLK_F_CONFIG_WCE);
	WRITE_NEXT();			/* 0: new */
	next_owner(&g);
	WRITE_NEXT();			/* 1: written through */
	must(set_ring(&g, 0, 0));
	must(set_ring(&g, 0, 1));
	WRITE_NEXT();			/* 2: written through */
	check_eq(request(q, T_FLUSH, 0, 0, 0, NULL), S_OK);
	WRITE_NEXT();			/* 3: it has flushed */
	must(set_ring(&g, 0, 0));
	must(set_ring(&g, 0, 1));
	WRITE_NEXT();			/* 4: and this is the same guest */
	must_fail(ioctl(g.fd, VHOST_BLK_SET_WRITEBACK, &unknown), EBUSY);
	must(set_ring(&g, 0, 0));
	must(ioctl(g.fd, VHOST_BLK_SET_WRITEBACK, &unknown));
	must(set_ring(&g, 0, 1));
	WRITE_NEXT();			/* 5: written through: it may be another */
	must(ioctl(g.fd, VHOST_BLK_SET_WRITEBACK, &on));
	WRITE_NEXT();			/* 6: the owner knows better */
	next_owner(&g);
	must(ioctl(g.fd, VHOST_BLK_SET_WRITEBACK, &off));
	WRITE_NEXT();			/* 7: written through */
	must(set_ring(&g, 0, 0));
	must(ioctl(g.fd, VHOST_BLK_SET_WRITEBACK, &unknown));
	/* The driver starts over. */
	close(q->kick);
	close(q->call);
	close(q->err);
	queue_init(&g, 0, 64);
	queue_attach(&g, 0);
	must(set_ring(&g, 0, 1));
	WRITE_NEXT();			/* 8: new */
	/* An index that has come round is not a new ring. */
	for (i = 1; i < 65536; i++) {
		add_request(q, i % 16, T_IN, 0, data_gpa(0), 512);
		if (i % 16 == 15 || i == 65535)
			kick(q);
		while (i % 16 == 15 && q->used_seen != q->avail_idx)
			next_used(q);
	}
	check_eq(used_idx(q), 0);
	next_owner(&g);
	WRITE_NEXT();			/* 9: written through */
	g.features &= ~(1ull << VIRTIO_BLK_F_CONFIG_WCE);
	next_owner(&g);
	WRITE_NEXT();			/* 10: it cannot have chosen */
	guest_stop(&g);
}

static const struct ring_case cases[] = {
	{ "resumed", case_resumed }, { "log", case_log }, { "busyloop", case_busyloop }, { "ioctls", case_ioctls },
	{ "writethrough", case_writethrough }, { "writeback", case_writeback },
	{ "unlogged", case_unlogged }, LAST_CASE
};

int main(int argc, char **argv)
{
	return run_case(argc, argv, cases);
}
