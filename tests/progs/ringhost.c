// SPDX-License-Identifier: GPL-2.0-or-later
/* libs: */
/*
 * What one owner or guest of /dev/vhost-blk can do to the host and to others: ringhost CASE DEVICE. How
 * long ioctls wait, what is said in the kernel's log, how much memory there is. Run by
 * tests/test_vhost_host.py.
 */
#define _GNU_SOURCE
#include "ringcase.h"

/* Every ioctl ends the polling of all rings, whose mutexes it may need: none waits it out. */
static void case_polling(void)
{
	struct vhost_vring_state s = { .num = 1000000 };
	struct vhost_vring_file none = { 0, -1 };
	struct vhost_vring_worker at = { 0, 0 };
	uint64_t features = DEFAULT_FEATURES;
	static const int no_log = -1;
	unsigned int i, round;
	struct guest g;

	guest_start(&g, device, O_RDWR, 2, 64, DEFAULT_FEATURES);
	for (i = 0; i < 2; i++) {
		s.index = i;
		must(ioctl(g.fd, VHOST_SET_VRING_BUSYLOOP_TIMEOUT, &s));
	}
	for (round = 0; round < 400; round++) {
		/* From now on the worker polls for a second. */
		for (i = 0; i < 2; i++)
			check_eq(request(&g.q[i], T_IN, 0, data_gpa(0), 4096, NULL), S_OK);
		switch (round % 8) {
		case 0:
			vring_base(&g, 1);
			break;
		case 1:
			must(ioctl(g.fd, VHOST_SET_LOG_FD, &no_log));
			break;
		case 2:
			must(ioctl(g.fd, VHOST_SET_FEATURES, &features));
			break;
		case 3:
			must(ioctl(g.fd, VHOST_BLK_SET_SERIAL, "serial              "));
			break;
		case 4:
			guest_set_memory(&g);
			break;
		case 5:
			must(ioctl(g.fd, VHOST_SET_VRING_ERR, &none));
			break;
		case 6:
			must(ioctl(g.fd, VHOST_GET_VRING_WORKER, &at));
			must(ioctl(g.fd, VHOST_ATTACH_VRING_WORKER, &at));
			break;
		case 7:
			must(ioctl(g.fd, VHOST_GET_VRING_BUSYLOOP_TIMEOUT, &s));
			break;
		}
	}
	guest_stop(&g);
}

/*
 * Wait until the ring is stopped.  Mostly the core complains of the index, and only then does
 * vhost-blk, so the first of two signals comes at a moment when a good index would still be taken.
 * But when the index jumps between the core's look and vhost-blk's there is one signal alone.
 */
static bool wait_stopped(struct queue *q)
{
	struct pollfd p = { q->err, POLLIN, 0 };
	uint64_t n, signals = 0;

	while (signals < 2) {
		if (poll(&p, 1, signals ? 1000 : 5000) != 1)
			break;
		if (read(q->err, &n, sizeof(n)) == sizeof(n))
			signals += n;
	}
	return signals;
}

/*
 * The available index jumps at any moment around that at which the device asks for kicks. A driver
 * that sees that it has not asked yet need not kick: the device has to find that by itself.
 */
static void case_jump(void)
{
	unsigned int round, unasked = 0;
	uint64_t seed = 3;
	struct guest g;
	struct queue *q = &g.q[0];

	guest_start(&g, device, O_RDWR, 1, 64, DEFAULT_FEATURES);
	for (round = 0; round < 3000; round++) {
		volatile unsigned int spin = rnd(&seed) % 64;
		bool asked;

		add_request(q, 0, T_IN, 0, data_gpa(0), 512);
		kick(q);
		while (used_idx(q) == q->used_seen)
			;
		while (spin)
			spin--;
		__atomic_store_n(&q->ring.avail->idx, q->avail_idx + 1000, __ATOMIC_RELEASE);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		asked = !(__atomic_load_n(&q->ring.used->flags, __ATOMIC_ACQUIRE) &
			  VRING_USED_F_NO_NOTIFY);
		if (asked)
			kick(q);
		if (!wait_stopped(q))
			fail("round %u: not stopped, %sasked to kick", round, asked ? "" : "not ");
		next_used(q);
		if (!asked) {
			/* The error is no mere complaint: the ring is not read any more. */
			unasked++;
			add_request(q, 0, T_IN, 0, data_gpa(0), 512);
			kick(q);
			check_quiet(q, 20);
		}
		must(set_ring(&g, 0, 0));
		__atomic_store_n(&q->ring.avail->idx, q->avail_idx, __ATOMIC_RELEASE);
		while (event_taken(q->err))
			;
		must(set_ring(&g, 0, 1));
		if (!asked)
			next_used(q);
	}
	printf("%u of %u unasked\n", unasked, round);
	guest_stop(&g);
}

static void break_ring(struct guest *g, unsigned int i)
{
	struct queue *q = &g->q[i];

	offer(q, q->num);
	kick(q);
	check(event_wait(q->err, 10000));
	must(set_ring(g, i, 0));
	__atomic_store_n(&q->ring.avail->idx, --q->avail_idx, __ATOMIC_RELEASE);
	must(set_ring(g, i, 1));
}

/* One guest's ring 0 breaks over and over; then another's ring 1 breaks once. */
static void case_notices(void)
{
	struct guest g[2];
	unsigned int i;

	for (i = 0; i < 2; i++)
		guest_start(&g[i], device, O_RDWR, 2, 64, DEFAULT_FEATURES);
	for (i = 0; i < 60; i++)
		break_ring(&g[0], 0);
	break_ring(&g[1], 1);
	for (i = 0; i < 2; i++)
		guest_stop(&g[i]);
}

/* As many rings as were asked for, and none longer than the host allows. */
static void case_sizes(void)
{
	static const uint32_t zero, two = 2, many = 100000;
	struct vhost_vring_state s = { .index = 0, .num = 2048 };
	struct guest g;
	int fd;

	fd = must(open("/dev/vhost-blk", O_RDWR | O_CLOEXEC));
	must_fail(ioctl(fd, VHOST_BLK_SET_QUEUES, &zero), EINVAL);
	must_fail(ioctl(fd, VHOST_BLK_SET_QUEUES, &many), EINVAL);
	must_fail(ioctl(fd, VHOST_BLK_SET_QUEUES, NULL), EFAULT);
	must(ioctl(fd, VHOST_BLK_SET_QUEUES, &(uint32_t){ 3 }));
	must(ioctl(fd, VHOST_BLK_SET_QUEUES, &two));
	must(ioctl(fd, VHOST_SET_OWNER));
	must_fail(ioctl(fd, VHOST_BLK_SET_QUEUES, &two), EBUSY);
	s.index = 1;
	must(ioctl(fd, VHOST_GET_VRING_BASE, &s));
	s.index = 2;
	must_fail(ioctl(fd, VHOST_GET_VRING_BASE, &s), ENOBUFS);
	must(ioctl(fd, VHOST_RESET_OWNER));
	must(ioctl(fd, VHOST_SET_OWNER));
	must_fail(ioctl(fd, VHOST_GET_VRING_BASE, &s), ENOBUFS);
	close(fd);
	/* One that was only opened. */
	close(must(open("/dev/vhost-blk", O_RDWR | O_CLOEXEC)));

	guest_start(&g, device, O_RDWR, 1, 1024, DEFAULT_FEATURES);
	check_eq(request(&g.q[0], T_IN, 0, data_gpa(0), 4096, NULL), S_OK);
	must(set_ring(&g, 0, 0));
	s = (struct vhost_vring_state){ .index = 0, .num = 2048 };
	must(ioctl(g.fd, VHOST_SET_VRING_NUM, &s));
	must_fail(set_ring(&g, 0, 1), E2BIG);
	s.num = 1024;
	must(ioctl(g.fd, VHOST_SET_VRING_NUM, &s));
	must(set_ring(&g, 0, 1));
	check_eq(request(&g.q[0], T_IN, 0, data_gpa(0), 4096, NULL), S_OK);
	guest_stop(&g);
}

static const struct ring_case cases[] = {
	{ "polling", case_polling }, { "jump", case_jump }, { "notices", case_notices },
	{ "sizes", case_sizes }, LAST_CASE
};

int main(int argc, char **argv)
{
	return run_case(argc, argv, cases);
}
