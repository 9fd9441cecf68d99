// SPDX-License-Identifier: GPL-2.0-or-later
/* libs: pthread */
/*
 * The life of rings on /dev/vhost-blk: ringlife CASE DEVICE [DEVICE2]. Rings that break, stop,
 * start, change their owner, lose it; workers. Run by tests/test_vhost_ring.py on devices that suit
 * each case, some of which have to be slow.
 */
#define _GNU_SOURCE
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "ringcase.h"

/* Forget what is in the ring and was not answered: the driver starts over. */
static void forget_offers(struct queue *q)
{
	q->used_seen = used_idx(q);
	q->avail_idx = q->used_seen;
	__atomic_store_n(&q->ring.avail->idx, q->avail_idx, __ATOMIC_RELEASE);
}

/* A good chain in the indirect table; returns its length. */
static uint32_t fill_table(struct queue *q)
{
	struct seg seg[3] = { { header(q, 0, T_IN, 0), 16, false }, { data_gpa(0), 4096, true },
			      { status_gpa(q, 0), 1, true } };

	return fill_chain((void *)q->indirect, -1, 0, seg, 3) * sizeof(struct vring_desc);
}

/* A descriptor behind the ring's, in the gap before the used ring, which begins a page. */
static unsigned int desc_outside(struct queue *q)
{
	unsigned int i = 2 * q->num;

	check((uint8_t *)&q->ring.desc[i] >= (uint8_t *)&q->ring.avail->ring[q->num + 1] &&
	      (uint8_t *)&q->ring.desc[i + 1] <= (uint8_t *)q->ring.used);
	return i;
}

static void break_head(struct guest *g, struct queue *q)
{
	unsigned int i = desc_outside(q);

	(void)g;
	q->ring.desc[i] = (struct vring_desc){ q->indirect_gpa, fill_table(q),
					       VRING_DESC_F_INDIRECT, 0 };
	offer(q, i);
}

static void break_loop(struct guest *g, struct queue *q)
{
	struct seg seg[2] = { { data_gpa(0), 16, false }, { data_gpa(0), 16, false } };

	(void)g;
	fill_chain(q->ring.desc, q->num - 1, 0, seg, 2);
	q->ring.desc[1].flags |= VRING_DESC_F_NEXT;
	q->ring.desc[1].next = 0;
	offer(q, 0);
}

static void break_index(struct guest *g, struct queue *q)
{
	(void)g;
	__atomic_store_n(&q->ring.avail->idx, q->avail_idx + q->num + 1, __ATOMIC_RELEASE);
}

static void break_next(struct guest *g, struct queue *q)
{
	struct seg seg[3] = { { header(q, 0, T_IN, 0), 16, false }, { data_gpa(0), 4096, true },
			      { status_gpa(q, 0), 1, true } };
	unsigned int i = desc_outside(q);

	(void)g;
	fill_chain(q->ring.desc, q->num - 1, q->next_desc, seg, 3);
	fill_chain(q->ring.desc, -1, i, &seg[2], 1);
	q->ring.desc[(q->next_desc + 1) & (q->num - 1)].next = i;
	offer(q, q->next_desc);
}

static void break_order(struct guest *g, struct queue *q)
{
	struct seg seg[3] = { { header(q, 0, 0, 0), 16, false }, { status_gpa(q, 0), 1, true },
			      { data_gpa(0), 512, false } };

	(void)g;
	add_direct(q, seg, 3);
}

static void break_address(struct guest *g, struct queue *q)
{
	(void)g;
	add_request(q, 0, T_IN, 0, 0x1000, 4096);
}

static void break_wrap(struct guest *g, struct queue *q)
{
	(void)g;
	add_request(q, 0, T_IN, 0, ~0ull - 100, 4096);
}

static void break_end(struct guest *g, struct queue *q)
{
	(void)g;
	add_request(q, 0, T_IN, 0, LOW_GPA + LOW_SIZE - 512, 4096);
}

static void offer_indirect(struct queue *q, uint64_t gpa, uint32_t len)
{
	struct vring_desc *d = &q->ring.desc[0];

	d->addr = gpa;
	d->len = len;
	d->flags = VRING_DESC_F_INDIRECT;
	offer(q, 0);
}

static void break_indirect_length(struct guest *g, struct queue *q)
{
	(void)g;
	offer_indirect(q, q->indirect_gpa, fill_table(q) + 8);
}

static void break_indirect_empty(struct guest *g, struct queue *q)
{
	(void)g;
	offer_indirect(q, q->indirect_gpa, 0);
}

static void break_indirect_long(struct guest *g, struct queue *q)
{
	struct seg seg[2] = { { header(q, 40, T_FLUSH, 0), 16, false },
			      { status_gpa(q, 40), 1, true } };

	fill_chain(memory_at(g, data_gpa(0)), -1, 0, seg, 2);
	offer_indirect(q, data_gpa(0), 65537 * 16);
}

static void break_indirect_address(struct guest *g, struct queue *q)
{
	(void)g;
	offer_indirect(q, 0x2000, 32);
}

static void break_indirect_hole(struct guest *g, struct queue *q)
{
	(void)g;
	offer_indirect(q, HOLE_GPA, 32);
}

static void break_indirect_nested(struct guest *g, struct queue *q)
{
	struct vring_desc *d = (void *)q->indirect;

	(void)g;
	d[0] = (struct vring_desc){ q->indirect_gpa + 64, 32, VRING_DESC_F_INDIRECT, 0 };
	offer_indirect(q, q->indirect_gpa, 16);
}

static void break_indirect_loop(struct guest *g, struct queue *q)
{
	struct vring_desc *d = (void *)q->indirect;

	(void)g;
	d[0] = (struct vring_desc){ data_gpa(0), 16, VRING_DESC_F_NEXT, 1 };
	d[1] = (struct vring_desc){ data_gpa(0), 16, VRING_DESC_F_NEXT, 0 };
	offer_indirect(q, q->indirect_gpa, 32);
}

static void break_segments(struct guest *g, struct queue *q)
{
	struct vring_desc *d = memory_at(g, data_gpa(8 << 20));
	unsigned int i;

	for (i = 0; i < 1100; i++)
		d[i] = (struct vring_desc){ data_gpa(1 << 20), 16, VRING_DESC_F_NEXT, i + 1 };
	d[1099].flags = 0;
	offer_indirect(q, data_gpa(8 << 20), 1100 * 16);
}

static const struct {
	const char *name;
	void (*run)(struct guest *g, struct queue *q);
} breaks[] = {
	{ "head out of range", break_head }, { "loop", break_loop },
	{ "available index jumps", break_index }, { "next out of range", break_next },
	{ "readable after writable", break_order }, { "address nowhere", break_address },
	{ "address wraps", break_wrap }, { "segment leaves memory", break_end },
	{ "indirect of odd length", break_indirect_length },
	{ "indirect without entries", break_indirect_empty },
	{ "indirect too long", break_indirect_long },
	{ "indirect table nowhere", break_indirect_address },
	{ "indirect table in the hole", break_indirect_hole },
	{ "indirect in indirect", break_indirect_nested },
	{ "loop in indirect", break_indirect_loop },
	{ "too many segments", break_segments },
};

/*
 * Rings that make no sense: that ring stops, says so by the error eventfd, uses nothing and holds
 * nobody up; the other ring goes on; restarted, the ring works again.
 */
static void case_broken(void)
{
	struct guest g;
	struct queue *q = &g.q[0];
	unsigned int i, good;

	guest_start(&g, device, O_RDWR, 2, 64, DEFAULT_FEATURES);
	for (i = 0; i < sizeof(breaks) / sizeof(*breaks); i++) {
		test_name = breaks[i].name;
		/* With good requests before it, which are answered; a bad index hides them. */
		for (good = 0; breaks[i].run != break_index && good < i % 3; good++)
			add_request(q, good, T_IN, 0, data_gpa(4 << 20), 4096);
		breaks[i].run(&g, q);
		kick(q);
		if (!event_wait(q->err, 10000))
			fail("no error was reported");
		while (good--) {
			next_used(q);
			check_eq(*status_of(q, good), S_OK);
		}
		kick(q);
		check_quiet(q, 20);
		check_eq(request(&g.q[1], T_IN, 0, data_gpa(0), 4096, NULL), S_OK);

		/* Started without repair, it breaks again; repaired, it works. */
		must(set_ring(&g, 0, 1));
		if (!event_wait(q->err, 10000))
			fail("no error was reported after a restart");
		must(set_ring(&g, 0, 0));
		forget_offers(q);
		q->next_desc = 0;
		must(set_ring(&g, 0, 1));
		check_eq(request(q, T_IN, 0, data_gpa(0), 4096, NULL), S_OK);
		while (event_taken(q->err))
			;
	}
	guest_stop(&g);
}

/* Guest memory that turns unwritable under requests in flight: reported, and nothing waits. */
static void case_unwritable(void)
{
	struct guest g;
	struct queue *q = &g.q[0];
	uint8_t *used_page;
	unsigned int i;

	guest_start(&g, device, O_RDWR, 1, 64, DEFAULT_FEATURES);
	used_page = (uint8_t *)((uintptr_t)q->ring.used & ~4095ul);
	for (i = 0; i < 2; i++) {
		uint16_t head = q->next_desc;
		struct seg seg[3] = {
			{ header(q, 0, T_IN, 0), 16, false }, { data_gpa(0), 4096, true },
			{ status_gpa(q, 0), 1, true }
		};

		fill_chain(q->ring.desc, q->num - 1, head, seg, 3);
		/* Only then offered: a worker that has not slept yet would need no kick to take it. */
		must(mprotect(i ? used_page : q->headers, 4096, PROT_READ));
		offer(q, head);
		kick(q);
		if (!event_wait(q->err, 10000))
			fail("no error was reported");
		must(set_ring(&g, 0, 0));
		must(mprotect(i ? used_page : q->headers, 4096, PROT_READ | PROT_WRITE));
		forget_offers(q);
		must(set_ring(&g, 0, 1));
		check_eq(request(q, T_IN, 0, data_gpa(0), 4096, NULL), S_OK);
		q->next_desc = 0;
		while (event_taken(q->err))
			;
	}
	guest_stop(&g);
}

/* Stopped rings take nothing, keep their place, and go on where the used index is. */
static void case_resume(void)
{
	struct guest g;
	struct queue *q = &g.q[0];
	struct vhost_vring_state base = { 0, 12345 };
	unsigned int i;

	guest_start(&g, device, O_RDWR, 2, 64, DEFAULT_FEATURES);
	for (i = 0; i < 100; i++)
		check_eq(request(q, T_IN, 0, data_gpa(0), 4096, NULL), S_OK);
	must(set_ring(&g, 0, 0));
	check_eq(vring_base(&g, 0), 100);
	for (i = 0; i < 5; i++)
		add_request(q, i, T_IN, 0, data_gpa(i * 4096), 4096);
	kick(q);
	check_quiet(q, 50);
	check_eq(request(&g.q[1], T_IN, 0, data_gpa(0), 4096, NULL), S_OK);
	/* What the owner thinks of the place does not matter, and no kick is needed. */
	must(ioctl(g.fd, VHOST_SET_VRING_BASE, &base));
	while (event_taken(q->kick))
		;
	must(set_ring(&g, 0, 1));
	must(set_ring(&g, 0, 1));
	for (i = 0; i < 5; i++)
		next_used(q);
	check_quiet(q, 20);

	/* A new owner on the same rings, with requests that nobody kicks for. */
	close(g.fd);
	for (i = 0; i < 5; i++)
		add_request(q, i, T_IN, 0, data_gpa(i * 4096), 4096);
	guest_connect(&g, DEFAULT_FEATURES);
	queue_attach(&g, 0);
	set_backend(&g, device, O_RDWR);
	for (i = 0; i < 5; i++)
		next_used(q);
	/* The second ring has no addresses yet; it can follow. */
	must_fail(set_ring(&g, 1, 1), EINVAL);
	queue_attach(&g, 1);
	must(set_ring(&g, 1, 1));
	check_eq(request(&g.q[1], T_IN, 0, data_gpa(0), 4096, NULL), S_OK);

	/* A ring of another size. */
	must_fail(ioctl(g.fd, VHOST_SET_VRING_NUM, &(struct vhost_vring_state){ 0, 128 }), EBUSY);
	must(set_ring(&g, 0, 0));
	close(q->kick);
	close(q->call);
	close(q->err);
	queue_init(&g, 0, 256);
	queue_attach(&g, 0);
	must(set_ring(&g, 0, 1));
	for (i = 0; i < 300; i++)
		check_eq(request(q, T_IN, 0, data_gpa(0), 4096, NULL), S_OK);
	guest_stop(&g);
}

/* On a slow device: everything that stops a ring waits for what is in flight, and for that only. */
static void case_drain(void)
{
	enum { DEPTH = 16 };
	struct guest g;
	struct queue *q = &g.q[0];
	unsigned int i, how;
	double t;

	guest_start(&g, device, O_RDWR, 2, 64, DEFAULT_FEATURES);
	for (how = 0; how < 5; how++) {
		for (i = 0; i < DEPTH; i++)
			add_request(q, i, T_OUT, i * 8, data_gpa(i * 4096), 4096);
		kick(q);
		usleep(30000);
		check_eq(used_idx(q), q->used_seen);
		t = now();
		switch (how) {
		case 0:
			must(set_backend_fd(&g, -1));
			break;
		case 1:
			must(set_ring(&g, 0, 0));
			break;
		case 2:		/* another device, with nothing left behind on the old */
			set_backend(&g, argument, O_RDWR);
			break;
		case 3:		/* logging begins with nothing unlogged in flight */
			g.features |= 1ull << VHOST_F_LOG_ALL;
			must(ioctl(g.fd, VHOST_SET_FEATURES, &g.features));
			break;
		case 4:
			close(g.fd);
			break;
		}
		if (used_idx(q) != (uint16_t)(q->used_seen + DEPTH))
			fail("way %u: %u of %u answered when it returned", how,
			     (uint16_t)(used_idx(q) - q->used_seen), DEPTH);
		check(now() - t < 10);
		for (i = 0; i < DEPTH; i++) {
			next_used(q);
			check_eq(*status_of(q, i), S_OK);
		}
		if (how < 2) {
			check_eq(vring_base(&g, 0), q->used_seen);
			add_request(q, 0, T_IN, 0, data_gpa(0), 4096);
			kick(q);
			check_quiet(q, 50);
			if (how == 0)
				set_backend(&g, device, O_RDWR);
			else
				must(set_ring(&g, 0, 1));
			next_used(q);
		} else if (how == 2) {
			set_backend(&g, device, O_RDWR);
		}
	}
}

/* On a slow device: the same chain offered twice is a broken ring; the first offer is answered. */
static void case_twice(void)
{
	struct guest g;
	struct queue *q = &g.q[0];
	uint16_t head;

	guest_start(&g, device, O_RDWR, 1, 64, DEFAULT_FEATURES);
	head = add_request(q, 0, T_OUT, 0, data_gpa(0), 4096);
	kick(q);
	usleep(20000);
	offer(q, head);
	kick(q);
	check(event_wait(q->err, 10000));
	check_eq(next_used(q).id, head);
	check_eq(*status_of(q, 0), S_OK);
	check_quiet(q, 50);
	/* The second was not taken. */
	must(set_ring(&g, 0, 0));
	check_eq(vring_base(&g, 0), q->used_seen);
	/* Started again, it is just another request. */
	must(set_ring(&g, 0, 1));
	check_eq(next_used(q).id, head);
	guest_stop(&g);
}

/* Requests to sectors of their own, one in flight for each, so that the last write is known. */
struct load {
	struct guest *g;
	struct queue *q;
	uint64_t seed;
	uint32_t model[64];	/* tag that was acknowledged last, per slot */
	uint32_t tag[64];	/* tag in flight, 0 if none */
	bool write[64];
	int slot_of[RING_MAX];
	uint32_t next_tag;
	unsigned int answered;
};

enum { SLOTS = 32, SLOT_BYTES = 4096 };

static void load_init(struct load *l, struct guest *g, unsigned int index, uint64_t seed)
{
	memset(l, 0, sizeof(*l));
	l->g = g;
	l->q = &g->q[index];
	l->seed = seed;
	memset(l->slot_of, -1, sizeof(l->slot_of));
}

static uint64_t load_offset(struct load *l, unsigned int slot)
{
	return (uint64_t)(l->q->index * SLOTS + slot) * SLOT_BYTES;
}

static uint32_t *load_memory(struct load *l, unsigned int slot)
{
	return memory_at(l->g, data_gpa(load_offset(l, slot)));
}

static void load_submit(struct load *l)
{
	unsigned int slot, n = 0;

	for (slot = 0; slot < SLOTS; slot++) {
		uint32_t *mem = load_memory(l, slot), i;
		uint16_t head;

		if (l->tag[slot] || rnd(&l->seed) % 4 == 0)
			continue;
		l->tag[slot] = ++l->next_tag;
		l->write[slot] = rnd(&l->seed) % 2;
		for (i = 0; i < SLOT_BYTES / 4; i++)
			mem[i] = l->write[slot] ? l->tag[slot] : ~0u;
		head = add_request(l->q, slot, l->write[slot] ? T_OUT : T_IN,
				   load_offset(l, slot) / SECTOR, data_gpa(load_offset(l, slot)),
				   SLOT_BYTES);
		check_eq(l->slot_of[head], -1);
		l->slot_of[head] = slot;
		n++;
	}
	if (n)
		kick(l->q);
}

static void load_reap(struct load *l)
{
	while (used_idx(l->q) != l->q->used_seen) {
		struct vring_used_elem e = next_used(l->q);
		int slot = e.id < RING_MAX ? l->slot_of[e.id] : -1;
		uint32_t i, *mem;

		if (slot < 0)
			fail("queue %u: head %u answered, not in flight", l->q->index, e.id);
		check_eq(*status_of(l->q, slot), S_OK);
		check_eq(e.len, l->write[slot] ? 1 : SLOT_BYTES + 1);
		if (l->write[slot]) {
			l->model[slot] = l->tag[slot];
		} else {
			mem = load_memory(l, slot);
			for (i = 0; i < SLOT_BYTES / 4; i++)
				if (mem[i] != l->model[slot])
					fail("queue %u slot %d: read %u, last write was %u",
					     l->q->index, slot, mem[i], l->model[slot]);
		}
		l->tag[slot] = 0;
		l->slot_of[e.id] = -1;
		l->answered++;
	}
}

static bool load_idle(struct load *l)
{
	unsigned int slot;

	for (slot = 0; slot < SLOTS; slot++)
		if (l->tag[slot])
			return false;
	return true;
}

/* Submit and reap for a while; with no time left, only until all is answered. */
static void load_run(struct load *l, double seconds)
{
	double end = now() + seconds, last = now() + seconds + 30;

	for (;;) {
		bool more = now() < end;

		if (more)
			load_submit(l);
		event_wait(l->q->call, 2);
		load_reap(l);
		if (!more && load_idle(l))
			return;
		if (now() > last)
			fail("queue %u: requests in flight are not answered", l->q->index);
	}
}

static void zero_device(const char *path)
{
	static uint8_t zeroes[QUEUES_MAX * SLOTS * SLOT_BYTES];
	int fd = must(open(path, O_WRONLY));

	check_eq(write(fd, zeroes, sizeof(zeroes)), sizeof(zeroes));
	must(fsync(fd));
	close(fd);
}

/* The owner in a process of its own, with the guest's memory and eventfds. */
static pid_t start_owner(struct guest *g, unsigned int nr, bool exclusive, bool exits)
{
	int ready[2];
	pid_t pid;
	char c;

	must(pipe(ready));
	pid = must(fork());
	if (!pid) {
		unsigned int i;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		guest_connect(g, DEFAULT_FEATURES);
		for (i = 0; i < nr; i++)
			queue_attach(g, i);
		for (;;) {
			int fd = open(device, O_RDWR | O_CLOEXEC | (exclusive ? O_EXCL : 0));

			if (fd >= 0) {
				must(set_backend_fd(g, fd));
				close(fd);
				break;
			}
			check_eq(errno, EBUSY);
			usleep(1000);
		}
		check_eq(write(ready[1], "", 1), 1);
		if (exits) {
			usleep(20000);
			_exit(0);
		}
		pause();
		_exit(0);
	}
	close(ready[1]);
	if (read(ready[0], &c, 1) != 1)
		fail("the owner did not start");
	close(ready[0]);
	return pid;
}

/*
 * The owner is killed, or exits, again and again while the guest lives on. Every request is
 * answered once, by this owner or the next, and every write has happened when it is answered.
 */
static void case_kill(void)
{
	enum { ROUNDS = 12, NR = 2 };
	struct load l[NR];
	struct guest g;
	unsigned int i, round, total = 0, taken_over = 0;
	uint64_t seed = 7;
	pid_t last;

	zero_device(device);
	guest_memory(&g);
	for (i = 0; i < NR; i++) {
		queue_init(&g, i, 128);
		load_init(&l[i], &g, i, i + 1);
	}
	for (round = 0; round < ROUNDS; round++) {
		bool exits = round % 3 == 2;
		pid_t pid = start_owner(&g, NR, true, exits);
		double end = now() + 0.01 + rnd(&seed) % 60 / 1000.;
		int status;

		while (now() < end)
			for (i = 0; i < NR; i++) {
				load_submit(&l[i]);
				load_reap(&l[i]);
			}
		if (!exits)
			must(kill(pid, SIGKILL));
		/* The guest goes on meanwhile. */
		for (i = 0; i < NR; i++)
			load_submit(&l[i]);
		must(waitpid(pid, &status, 0));
		check(exits ? WIFEXITED(status) && !WEXITSTATUS(status) :
			      WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		for (i = 0; i < NR; i++) {
			load_reap(&l[i]);
			taken_over += (uint16_t)(l[i].q->avail_idx - l[i].q->used_seen);
		}
	}
	last = start_owner(&g, NR, true, false);
	for (i = 0; i < NR; i++) {
		/* No kick for what the old owners left. */
		double until = now() + 30;

		while (!load_idle(&l[i])) {
			load_reap(&l[i]);
			if (now() > until)
				fail("queue %u: not answered after the last owner's end", i);
			usleep(1000);
		}
		load_run(&l[i], 0.05);
		check_eq(l[i].answered, l[i].q->used_seen + 65536u * (l[i].answered / 65536u));
		total += l[i].answered;
	}
	printf("%u requests, %u of them taken over by a later owner\n", total, taken_over);
	/* Otherwise nothing was tested. */
	check(taken_over > 0);
	must(kill(last, SIGKILL));
	must(waitpid(last, NULL, 0));
}

/* On a slow device: it stays busy for others until the last request of a killed owner ended. */
static void case_busy(void)
{
	struct guest g;
	struct queue *q = &g.q[0];
	unsigned int i, busy = 0;
	pid_t pid;
	int fd;

	guest_memory(&g);
	queue_init(&g, 0, 64);
	pid = start_owner(&g, 1, true, false);
	for (i = 0; i < 16; i++)
		add_request(q, i, T_OUT, i * 8, data_gpa(i * 4096), 4096);
	kick(q);
	usleep(30000);
	must(kill(pid, SIGKILL));
	while ((fd = open(device, O_RDWR | O_EXCL)) < 0) {
		check_eq(errno, EBUSY);
		busy++;
		usleep(1000);
	}
	check(busy > 0);
	check_eq(used_idx(q), 16);
	for (i = 0; i < 16; i++)
		check_eq(*status_of(q, i), S_OK);
	close(fd);
	must(waitpid(pid, NULL, 0));
}

static void *load_thread(void *arg)
{
	struct load *l = arg;

	load_run(l, 1.5);
	return NULL;
}

/* A worker per queue by the worker ioctls, changed under load. */
static void case_workers(void)
{
	struct vhost_worker_state w[2];
	struct vhost_vring_worker a, b;
	struct load l[2];
	struct guest g;
	pthread_t t[2];
	unsigned int i, n;

	zero_device(device);
	guest_start(&g, device, O_RDWR, 2, 128, DEFAULT_FEATURES);
	a.index = 0;
	b.index = 1;
	must(ioctl(g.fd, VHOST_GET_VRING_WORKER, &a));
	must(ioctl(g.fd, VHOST_GET_VRING_WORKER, &b));
	check_eq(a.worker_id, b.worker_id);
	for (i = 0; i < 2; i++) {
		must(ioctl(g.fd, VHOST_NEW_WORKER, &w[i]));
		load_init(&l[i], &g, i, i + 11);
	}
	check(w[0].worker_id != w[1].worker_id);
	for (i = 0; i < 2; i++) {
		struct vhost_vring_worker at = { i, w[i].worker_id };

		must(ioctl(g.fd, VHOST_ATTACH_VRING_WORKER, &at));
		must(ioctl(g.fd, VHOST_GET_VRING_WORKER, &at));
		check_eq(at.worker_id, w[i].worker_id);
		must_fail(ioctl(g.fd, VHOST_FREE_WORKER, &w[i]), EBUSY);
	}
	for (i = 0; i < 2; i++)
		check(!pthread_create(&t[i], NULL, load_thread, &l[i]));
	for (n = 0; n < 40; n++) {
		struct vhost_vring_worker at = { n % 2, w[(n / 2) % 2].worker_id };

		must(ioctl(g.fd, VHOST_ATTACH_VRING_WORKER, &at));
		usleep(20000);
	}
	for (i = 0; i < 2; i++) {
		pthread_join(t[i], NULL);
		check(l[i].answered > 100);
	}
	for (i = 0; i < 2; i++) {
		struct vhost_vring_worker at = { i, a.worker_id };

		must(ioctl(g.fd, VHOST_ATTACH_VRING_WORKER, &at));
	}
	for (i = 0; i < 2; i++)
		must(ioctl(g.fd, VHOST_FREE_WORKER, &w[i]));
	printf("%u + %u requests\n", l[0].answered, l[1].answered);
	guest_stop(&g);
}

/* Stop, start, change the device of one ring and of all, under load. */
static void case_churn(void)
{
	struct load l[2];
	struct guest g;
	pthread_t t[2];
	unsigned int i;
	double end;

	zero_device(device);
	guest_start(&g, device, O_RDWR, 2, 128, DEFAULT_FEATURES);
	for (i = 0; i < 2; i++) {
		load_init(&l[i], &g, i, i + 21);
		check(!pthread_create(&t[i], NULL, load_thread, &l[i]));
	}
	for (end = now() + 1.3, i = 0; now() < end; i++) {
		switch (i % 3) {
		case 0:
			must(set_ring(&g, i / 3 % 2, 0));
			usleep(2000);
			must(set_ring(&g, i / 3 % 2, 1));
			break;
		case 1:
			must(set_backend_fd(&g, -1));
			set_backend(&g, device, O_RDWR);
			break;
		case 2:
			guest_set_memory(&g);
			set_backend(&g, device, O_RDWR);
			break;
		}
		usleep(3000);
	}
	set_backend(&g, device, O_RDWR);
	for (i = 0; i < 2; i++) {
		pthread_join(t[i], NULL);
		check(l[i].answered > 100);
	}
	printf("%u + %u requests\n", l[0].answered, l[1].answered);
	guest_stop(&g);
}

/* On a slow device: when another memory table has been set nothing uses the old one any more. */
static void case_memory(void)
{
	enum { DEPTH = 8 };
	struct guest g;
	struct queue *q = &g.q[0];
	unsigned int i, round;

	guest_start(&g, device, O_RDWR, 2, 64, DEFAULT_FEATURES);
	for (round = 0; round < 2; round++) {
		for (i = 0; i < DEPTH; i++)
			add_request(q, i, T_IN, i * 8, data_gpa(i * 4096), 4096);
		kick(q);
		usleep(30000);
		check_eq(used_idx(q), q->used_seen);
		guest_set_memory(&g);
		check_eq(used_idx(q), (uint16_t)(q->used_seen + DEPTH));
		for (i = 0; i < DEPTH; i++) {
			next_used(q);
			check_eq(*status_of(q, i), S_OK);
		}
	}
	/* A ring that was stopped is not started by it. */
	must(set_ring(&g, 1, 0));
	guest_set_memory(&g);
	add_request(&g.q[1], 0, T_IN, 0, data_gpa(0), 4096);
	kick(&g.q[1]);
	check_quiet(&g.q[1], 50);
	guest_stop(&g);
}

/*
 * A ring that is stopped and has no kick goes to another worker, and the one it had is freed at
 * once: nothing of the ring may be left there. Over and over under load.
 */
static void case_rewire(void)
{
	struct vhost_vring_file none = { 0, -1 };
	struct vhost_worker_state first, old, fresh;
	struct vhost_vring_worker at = { 0, 0 };
	struct load l;
	struct guest g;
	pthread_t t;
	unsigned int n = 0;
	double end;

	zero_device(device);
	guest_start(&g, device, O_RDWR, 1, 128, DEFAULT_FEATURES);
	must(ioctl(g.fd, VHOST_GET_VRING_WORKER, &at));
	first.worker_id = at.worker_id;
	must(ioctl(g.fd, VHOST_NEW_WORKER, &old));
	at.worker_id = old.worker_id;
	must(ioctl(g.fd, VHOST_ATTACH_VRING_WORKER, &at));
	load_init(&l, &g, 0, 31);
	check(!pthread_create(&t, NULL, load_thread, &l));
	for (end = now() + 1.3; now() < end; n++) {
		must(set_ring(&g, 0, 0));
		must(ioctl(g.fd, VHOST_SET_VRING_KICK, &none));
		must(ioctl(g.fd, VHOST_NEW_WORKER, &fresh));
		at.worker_id = fresh.worker_id;
		must(ioctl(g.fd, VHOST_ATTACH_VRING_WORKER, &at));
		must(ioctl(g.fd, VHOST_FREE_WORKER, &old));
		old = fresh;
		queue_attach(&g, 0);
		must(set_ring(&g, 0, 1));
		usleep(2000);
	}
	pthread_join(t, NULL);
	/* The other ring still has it. */
	must_fail(ioctl(g.fd, VHOST_FREE_WORKER, &first), EBUSY);
	printf("%u times, %u requests\n", n, l.answered);
	check(n > 5 && l.answered > 100);
	guest_stop(&g);
}

#define LOG_BYTES ((HOLE_GPA + HOLE_SIZE) / 4096 / 8)
/*
 * Where the used ring's entries are said to be for the log: in another page of the log than the
 * flags and the index before them, which are written at the start, and than all memory.
 */
#define USED_LOG_GPA	0x00000000c0000000ull

static bool take_logged(uint8_t *log, uint64_t gpa)
{
	uint8_t *byte = &log[gpa / 4096 / 8], bit = 1 << gpa / 4096 % 8;
	bool logged = *byte & bit;

	*byte &= ~bit;
	return logged;
}

/*
 * The owner is killed while a request is being entered into the dirty log. The log is DEVICE2,
 * mapped: each of its pages takes that device's time to appear. So the worker is killed within the
 * marking of the data, of the status, of the used ring, in turn. All of it has to be in the log
 * when the owner is gone, and the ring must not be taken for broken.
 */
static void case_killlog(void)
{
	int stage, log_fd = must(open(argument, O_RDWR));
	uint8_t *log;

	for (stage = 0; stage < 3; stage++) {
		uint64_t data = HIGH_GPA + 4096 * 7, st = data_gpa(0);
		bool data_logged, st_logged, used_logged;
		struct seg seg[3];
		struct guest g;
		struct queue *q = &g.q[0];
		double end = now() + 20;
		pid_t pid;

		/* Out of memory with it. */
		must(ioctl(log_fd, BLKFLSBUF));
		log = mmap(NULL, LOG_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, log_fd, 0);
		check(log != MAP_FAILED);
		/* One page at a time. */
		must(madvise(log, LOG_BYTES, MADV_RANDOM));
		guest_memory(&g);
		queue_init(&g, 0, 64);
		pid = must(fork());
		if (!pid) {
			struct vhost_vring_addr addr = {
				.flags = 1 << VHOST_VRING_F_LOG,
				.desc_user_addr = (uintptr_t)q->ring.desc,
				.avail_user_addr = (uintptr_t)q->ring.avail,
				.used_user_addr = (uintptr_t)q->ring.used,
				.log_guest_addr = USED_LOG_GPA - 4,
			};
			uint64_t base = (uintptr_t)log;

			prctl(PR_SET_PDEATHSIG, SIGKILL);
			guest_connect(&g, DEFAULT_FEATURES);
			must(ioctl(g.fd, VHOST_SET_LOG_BASE, &base));
			g.features |= 1ull << VHOST_F_LOG_ALL;
			must(ioctl(g.fd, VHOST_SET_FEATURES, &g.features));
			queue_attach(&g, 0);
			must(ioctl(g.fd, VHOST_SET_VRING_ADDR, &addr));
			set_backend(&g, device, O_RDWR);
			pause();
			_exit(1);
		}
		seg[0] = (struct seg){ header(q, 0, T_IN, 0), 16, false };
		seg[1] = (struct seg){ data, 4096, true };
		seg[2] = (struct seg){ st, 1, true };
		*(uint8_t *)memory_at(&g, st) = NO_STATUS;
		add_direct(q, seg, 3);
		kick(q);
		while (*(volatile uint8_t *)memory_at(&g, st) == NO_STATUS) {
			if (now() > end)
				fail("no status");
			usleep(1000);
		}
		usleep(150000 + stage * 500000);
		printf("killed with used index %u\n", used_idx(q));
		must(kill(pid, SIGKILL));
		must(waitpid(pid, NULL, 0));
		check_eq(next_used(q).len, 4097);
		check_eq(*(uint8_t *)memory_at(&g, st), S_OK);
		check(!event_taken(q->err));
		data_logged = take_logged(log, data);
		st_logged = take_logged(log, st);
		used_logged = take_logged(log, USED_LOG_GPA);
		if (!data_logged || !st_logged || !used_logged)
			fail("killed in stage %u, logged are: data %u status %u used ring %u",
			     stage, data_logged, st_logged, used_logged);
		must(munmap(log, LOG_BYTES));
		must(fsync(log_fd));
	}
	close(log_fd);
}

static const struct ring_case cases[] = {
	{ "broken", case_broken }, { "unwritable", case_unwritable }, { "resume", case_resume },
	{ "drain", case_drain }, { "twice", case_twice }, { "kill", case_kill },
	{ "busy", case_busy }, { "workers", case_workers }, { "churn", case_churn },
	{ "memory", case_memory }, { "rewire", case_rewire }, { "killlog", case_killlog }, LAST_CASE
};

int main(int argc, char **argv)
{
	return run_case(argc, argv, cases);
}
