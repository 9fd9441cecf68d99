// SPDX-License-Identifier: GPL-2.0-or-later
/* libs: */
/*
 * What is on stable storage when a ring of /dev/vhost-blk has stopped: ringstop CASE DEVICE. The guest
 * writes and does not flush. Run by tests/test_vhost_stop.py, which looks at what reached DEVICE.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "ringcase.h"

static unsigned int slot;	/* where the next write goes, in pages */
static int direct = -1;		/* DEVICE, for writes of the host's own */

/* Says what DEVICE is to see: x a write, F a flush. */
static void expect(const char *what)
{
	fputs(what, stdout);
	fflush(stdout);
}

static void guest_write(struct queue *q)
{
	expect("x");
	check_eq(request(q, T_OUT, 8 * slot++, data_gpa(0), 4096, NULL), S_OK);
}

/* A write past vhost-blk: what is before it in DEVICE's log came before now. */
static void mark(void)
{
	static uint8_t page[4096] __attribute__((aligned(4096)));

	expect("x");
	check_eq(pwrite(direct, page, sizeof(page), 4096 * slot++), sizeof(page));
}

/* An owner in a process of its own, that writes, and then ends in some way. */
static void owner_ends(bool killed)
{
	struct guest g;
	pid_t pid;
	int status;

	guest_memory(&g);
	queue_init(&g, 0, 64);
	pid = must(fork());
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		guest_connect(&g, DEFAULT_FEATURES);
		queue_attach(&g, 0);
		set_backend(&g, device, O_RDWR);
		check_eq(request(&g.q[0], T_OUT, 8 * slot, data_gpa(0), 4096, NULL), S_OK);
		if (killed)
			raise(SIGKILL);
		_exit(0);
	}
	slot++;
	expect("xF");
	must(waitpid(pid, &status, 0));
	check(killed ? WIFSIGNALED(status) : WIFEXITED(status) && !WEXITSTATUS(status));
	mark();
}

/* Every way to stop. The host's writes show where in the log each has ended. */
static void case_ways(void)
{
	static const uint32_t off;
	struct guest g;
	unsigned int how;

	direct = must(open(device, O_RDWR | O_DIRECT | O_CLOEXEC));
	for (how = 0; how < 9; how++) {
		guest_start(&g, device, O_RDWR, 2, 64, DEFAULT_FEATURES);
		guest_write(&g.q[1]);
		switch (how) {
		case 0:		/* one ring after the other: the last that runs */
			must(set_ring(&g, 1, 0));
			mark();
			must(set_ring(&g, 0, 0));
			expect("F");
			break;
		case 1:		/* the device goes */
			must(set_backend_fd(&g, -1));
			expect("F");
			break;
		case 2:		/* another takes its place */
			set_backend(&g, device, O_RDWR);
			expect("F");
			break;
		case 3:		/* the owner resigns */
			must(ioctl(g.fd, VHOST_RESET_OWNER));
			expect("F");
			break;
		case 4:		/* the guest has flushed, by the ring that wrote */
			check_eq(request(&g.q[1], T_FLUSH, 0, 0, 0, NULL), S_OK);
			expect("F");
			must(set_backend_fd(&g, -1));
			break;
		case 5:		/* by another one, which says nothing of this one */
			check_eq(request(&g.q[0], T_FLUSH, 0, 0, 0, NULL), S_OK);
			must(set_backend_fd(&g, -1));
			expect("FF");
			break;
		case 6:		/* rings pause while their memory changes, and are closed later */
			guest_set_memory(&g);
			mark();
			break;
		case 7:		/* written through: a flush by the ioctl alone */
			must(ioctl(g.fd, VHOST_BLK_SET_WRITEBACK, &off));
			expect("F");
			break;
		}
		if (how < 6)
			mark();
		if (how == 2)
			guest_write(&g.q[0]);
		guest_stop(&g);
		/* By closing, where something was left to flush. */
		if (how == 2 || how >= 6)
			expect("F");
		mark();
	}
	owner_ends(false);
	owner_ends(true);
	must(fsync(direct));
	expect("F");
	printf("\n");
}

/* Nothing is flushed for a guest that only reads, nor on a device that is open for reading. */
static void case_clean(void)
{
	struct guest g;
	unsigned int i;

	direct = must(open(device, O_RDWR | O_DIRECT | O_CLOEXEC));
	for (i = 0; i < 2; i++) {
		guest_start(&g, device, i ? O_RDONLY : O_RDWR, 1, 64, DEFAULT_FEATURES);
		check_eq(request(&g.q[0], T_IN, 0, data_gpa(0), 4096, NULL), S_OK);
		if (i)
			check_eq(request(&g.q[0], T_OUT, 0, data_gpa(0), 4096, NULL), S_IOERR);
		must(set_ring(&g, 0, 0));
		guest_stop(&g);
		mark();
	}
	must(fsync(direct));
	expect("F");
	printf("\n");
}

/* A device whose flushes fail: the ring stops, and the one who stopped it is told, each time. */
static void case_failing(void)
{
	struct guest g;
	int fd = must(open(device, O_RDWR | O_CLOEXEC));

	guest_start(&g, device, O_RDWR, 2, 64, DEFAULT_FEATURES);
	check_eq(request(&g.q[0], T_OUT, 0, data_gpa(0), 4096, NULL), S_OK);
	must(set_ring(&g, 1, 0));
	must_fail(set_ring(&g, 0, 0), EIO);
	check_eq(vring_base(&g, 0), 1);
	/* It is stopped, and not forgotten. */
	add_request(&g.q[0], 0, T_IN, 0, data_gpa(0), 4096);
	kick(&g.q[0]);
	check_quiet(&g.q[0], 30);
	must_fail(set_ring(&g, 0, 0), EIO);
	must(set_ring(&g, 0, 1));
	next_used(&g.q[0]);
	must_fail(set_backend_fd(&g, fd), EIO);
	/* The device is gone all the same, and what was written to it with it. */
	must_fail(set_ring(&g, 0, 1), ENODEV);
	must(set_backend_fd(&g, -1));
	must(set_backend_fd(&g, fd));
	check_eq(request(&g.q[0], T_OUT, 0, data_gpa(0), 4096, NULL), S_OK);
	must_fail(ioctl(g.fd, VHOST_RESET_OWNER), EIO);
	must(ioctl(g.fd, VHOST_SET_OWNER));
	close(fd);
	guest_stop(&g);
}

static const struct ring_case cases[] = {
	{ "ways", case_ways }, { "clean", case_clean }, { "failing", case_failing }, LAST_CASE
};

int main(int argc, char **argv)
{
	return run_case(argc, argv, cases);
}
