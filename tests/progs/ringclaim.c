// SPDX-License-Identifier: GPL-2.0-or-later
/* libs: */
/*
 * Owners of /dev/vhost-blk that want the same ring in a guest's memory: ringclaim CASE DEVICE, a slow
 * one. The device is opened by all of them, for reading. Run by tests/test_vhost_claim.py.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "ringcase.h"

enum { DEPTH = 16, BYTES = 4096 };

/*
 * An owner in a process of its own; returns when it has set up. Commands: s stop, S stop a ring that
 * another owner runs, m set the memory again, k keep it open in another process, q quit.
 */
struct owner {
	pid_t pid;
	int command, answer;
};

/* Become the owner of an open that has queue 0. */
static void serve(struct guest *g)
{
	guest_connect(g, DEFAULT_FEATURES);
	queue_attach(g, 0);
	set_backend(g, device, O_RDONLY);
}

/* Shared by all processes: one that keeps an open whose owner may be gone. */
static pid_t *keeper;

static void keep_open(void)
{
	pid_t pid = must(fork());

	while (!pid)
		pause();
	*keeper = pid;
}

static void owner_main(struct guest *g, int command, int answer)
{
	char c = 'r';

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	serve(g);
	do {
		check_eq(write(answer, &c, 1), 1);
		if (read(command, &c, 1) != 1)
			_exit(1);
		if (c == 's') {
			must(set_ring(g, 0, 0));
			/* Where it is stopped nothing of it is in flight, whoever began it. */
			check_eq(vring_base(g, 0), used_idx(&g->q[0]));
		}
		if (c == 'S')
			must(set_ring(g, 0, 0));
		if (c == 'm')
			guest_set_memory(g);
		if (c == 'k')
			keep_open();
	} while (c != 'q');
	_exit(0);
}

static struct owner owner_start(struct guest *g)
{
	struct owner o;
	int to[2], from[2];
	char c;

	must(pipe2(to, O_CLOEXEC));
	must(pipe2(from, O_CLOEXEC));
	o.pid = must(fork());
	if (!o.pid)
		owner_main(g, to[0], from[1]);
	close(to[0]);
	close(from[1]);
	o.command = to[1];
	o.answer = from[0];
	if (read(o.answer, &c, 1) != 1)
		fail("the owner did not start");
	return o;
}

static void owner_tell(struct owner *o, char c)
{
	check_eq(write(o->command, &c, 1), 1);
}

static void owner_done(struct owner *o)
{
	char c;

	if (read(o->answer, &c, 1) != 1)
		fail("the owner failed");
}

static void owner_gone(struct owner *o)
{
	must(waitpid(o->pid, NULL, 0));
	close(o->command);
	close(o->answer);
}

static uint8_t *buffer(struct guest *g, unsigned int i)
{
	return memory_at(g, data_gpa(i * BYTES));
}

/* Reads of the whole depth, which take a while. */
static void offer_reads(struct queue *q)
{
	unsigned int i;

	for (i = 0; i < DEPTH; i++)
		add_request(q, i, T_IN, i * 8, data_gpa(i * BYTES), BYTES);
	kick(q);
	usleep(100000);
	check_eq(used_idx(q), q->used_seen);
}

/*
 * Take the answers as they come. The guest puts each buffer to other use when it has its answer, and
 * for a second after the last nothing may be written there, nor may anything be answered again.
 */
static void expect_once(struct guest *g, struct queue *q)
{
	bool answered[RING_MAX] = { false };
	uint16_t last = q->used_seen;
	double end = 0;
	unsigned int i, k, n = 0;

	while (n < DEPTH || now() < end) {
		uint16_t idx = used_idx(q);

		if ((int16_t)(idx - last) < 0)
			fail("the used index went back from %u to %u", last, idx);
		last = idx;
		if (idx != q->used_seen) {
			struct vring_used_elem e = next_used(q);

			if (n == DEPTH || e.id >= RING_MAX || answered[e.id])
				fail("head %u was answered twice", e.id);
			answered[e.id] = true;
			end = now() + 1;
			n++;
			continue;
		}
		for (i = 0; i < DEPTH && n == DEPTH; i++)
			memset(buffer(g, i), 0xcc, BYTES);
		while (n == DEPTH && now() < end && used_idx(q) == q->used_seen) {
			for (i = 0; i < DEPTH; i++)
				for (k = 0; k < BYTES; k++)
					if (buffer(g, i)[k] != 0xcc)
						fail("memory that the guest had reused was written");
			usleep(5000);
		}
	}
	for (i = 0; i < DEPTH; i++)
		check_eq(*status_of(q, i), S_OK);
}

static void start(struct guest *g)
{
	guest_memory(g);
	queue_init(g, 0, 64);
}

/* An owner is killed with reads in flight; the next one is there before they have ended. */
static void kill_and_follow(struct guest *g, struct owner *first, struct owner *second)
{
	struct queue *q = &g->q[0];

	start(g);
	*first = owner_start(g);
	offer_reads(q);
	must(kill(first->pid, SIGKILL));
	*second = owner_start(g);
	/* Otherwise nothing is tested. */
	check_eq(used_idx(q), q->used_seen);
}

/* The end of a test: the last owner serves, and goes. */
static void serve_and_go(struct guest *g, struct owner *last)
{
	check_eq(request(&g->q[0], T_IN, 0, data_gpa(0), BYTES, NULL), S_OK);
	must(kill(last->pid, SIGKILL));
	owner_gone(last);
}

/* Killed with reads in flight. */
static void case_killed(void)
{
	struct guest g;
	struct owner first, second;

	kill_and_follow(&g, &first, &second);
	expect_once(&g, &g.q[0]);
	owner_gone(&first);
	serve_and_go(&g, &second);
}

/* The next owner is told to stop, or is killed, while it waits: a third one has the ring then. */
static void case_waiting(void)
{
	struct guest g;
	struct queue *q = &g.q[0];
	struct owner first, second, third;
	unsigned int killed;

	for (killed = 0; killed < 2; killed++) {
		kill_and_follow(&g, &first, &second);
		if (killed) {
			must(kill(second.pid, SIGKILL));
			third = owner_start(&g);
			expect_once(&g, q);
		} else {
			owner_tell(&second, 's');
			owner_done(&second);
			/* It has stopped when all has been answered that the first had begun. */
			check_eq(used_idx(q), (uint16_t)(q->used_seen + DEPTH));
			expect_once(&g, q);
			third = owner_start(&g);
			owner_tell(&second, 'q');
		}
		owner_gone(&first);
		owner_gone(&second);
		serve_and_go(&g, &third);
	}
}

/* Two living owners: the second serves when the first stops; and back again. */
static void case_living(void)
{
	struct guest g;
	struct queue *q = &g.q[0];
	struct owner first, second;

	start(&g);
	first = owner_start(&g);
	check_eq(request(q, T_IN, 0, data_gpa(0), BYTES, NULL), S_OK);
	second = owner_start(&g);
	offer_reads(q);
	expect_once(&g, q);
	offer_reads(q);
	owner_tell(&first, 's');
	expect_once(&g, q);
	owner_done(&first);
	check_eq(request(q, T_IN, 0, data_gpa(0), BYTES, NULL), S_OK);
	owner_tell(&second, 'q');
	owner_tell(&first, 'q');
	owner_gone(&second);
	owner_gone(&first);
}

/* One that waits for an owner that runs on is stopped without waiting for that one's stop. */
static void case_stop_beside(void)
{
	struct guest g;
	struct queue *q = &g.q[0];
	struct owner first, second;

	start(&g);
	first = owner_start(&g);
	second = owner_start(&g);
	owner_tell(&second, 'S');
	owner_done(&second);
	check_eq(request(q, T_IN, 0, data_gpa(0), BYTES, NULL), S_OK);
	owner_tell(&second, 'q');
	owner_gone(&second);
	serve_and_go(&g, &first);
}

/*
 * One that waits for an owner that was killed, but whose open another process keeps: when it is
 * stopped, what that one had in flight has been answered, and it does not wait for the other process.
 */
static void case_kept_open(void)
{
	struct guest g;
	struct queue *q = &g.q[0];
	struct owner first, second;

	start(&g);
	keeper = mmap(NULL, sizeof(*keeper), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	check(keeper != MAP_FAILED);
	first = owner_start(&g);
	owner_tell(&first, 'k');
	owner_done(&first);
	offer_reads(q);
	must(kill(first.pid, SIGKILL));
	must(waitpid(first.pid, NULL, 0));
	second = owner_start(&g);
	owner_tell(&second, 's');
	owner_done(&second);
	check_eq(used_idx(q), (uint16_t)(q->used_seen + DEPTH));
	expect_once(&g, q);
	owner_tell(&second, 'q');
	owner_gone(&second);
	close(first.command);
	close(first.answer);
	must(kill(*keeper, SIGKILL));
}

/* An owner that changes its memory keeps the ring from another that waits for it. */
static void case_memory(void)
{
	struct guest g;
	struct queue *q = &g.q[0];
	struct owner first, second;
	unsigned int i;

	start(&g);
	first = owner_start(&g);
	second = owner_start(&g);
	for (i = 0; i < 3; i++) {
		offer_reads(q);
		owner_tell(&first, 'm');
		expect_once(&g, q);
		owner_done(&first);
	}
	/* It is the first that serves. */
	owner_tell(&second, 'q');
	owner_gone(&second);
	serve_and_go(&g, &first);
}

/* The guest names one used ring for two queues of a disk: the second one is not started. */
static void case_same(void)
{
	struct guest g;
	struct queue *q = &g.q[0];
	struct vring_used *used;
	int file;

	start(&g);
	serve(&g);
	queue_init(&g, 1, 64);
	used = g.q[1].ring.used;
	g.q[1].ring.used = q->ring.used;
	queue_attach(&g, 1);
	must_fail(set_ring(&g, 1, 1), EINVAL);
	check_eq(request(q, T_IN, 0, data_gpa(0), BYTES, NULL), S_OK);
	/* All of them at once: nothing is started, and nothing waits. */
	must(set_backend_fd(&g, -1));
	check_eq(set_backend_fd(&g, file = must(open(device, O_RDONLY))), -1);
	check_eq(errno, EINVAL);
	g.q[1].ring.used = used;
	queue_set_addresses(&g, 1);
	must(set_backend_fd(&g, file));
	g.q[1].ring.used = q->ring.used;
	must(set_ring(&g, 1, 0));
	queue_set_addresses(&g, 1);
	/* Both in either order, and none waits for the other. */
	must(set_ring(&g, 0, 0));
	must(set_ring(&g, 1, 1));
	must_fail(set_ring(&g, 0, 1), EINVAL);
	must(set_ring(&g, 0, 0));
	must(set_ring(&g, 1, 0));
	must(set_ring(&g, 0, 1));
	check_eq(request(q, T_IN, 0, data_gpa(0), BYTES, NULL), S_OK);
	must(close(g.fd));
}

/* Addresses are changed while the ring runs: nothing is written where it has no claim. */
static void case_moved(void)
{
	struct guest g;
	struct queue *q = &g.q[0];
	struct vring_used *old;

	start(&g);
	serve(&g);
	offer_reads(q);
	queue_init(&g, 1, 64);
	old = q->ring.used;
	q->ring.used = g.q[1].ring.used;
	queue_set_addresses(&g, 0);
	check(event_wait(q->err, 5000));
	usleep(1500000);
	check_eq(old->idx, 0);
	check_eq(q->ring.used->idx, 0);
	/* It starts where it is now. */
	must(set_ring(&g, 0, 0));
	must(set_ring(&g, 0, 1));
	must(close(g.fd));
}

static const struct ring_case cases[] = {
	{ "killed", case_killed }, { "waiting", case_waiting }, { "living", case_living },
	{ "stop_beside", case_stop_beside }, { "kept_open", case_kept_open },
	{ "memory", case_memory }, { "same", case_same }, { "moved", case_moved }, LAST_CASE
};

int main(int argc, char **argv)
{
	return run_case(argc, argv, cases);
}
