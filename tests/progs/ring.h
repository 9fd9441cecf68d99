/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A client of /dev/vhost-blk that plays the guest and its VMM at once: a few regions of memory at
 * made-up guest-physical addresses, split rings built by hand in them, and eventfds. Owns the
 * layout of that guest memory. For test programs of one thread per ring.
 */
#ifndef TESTS_RING_H
#define TESTS_RING_H

#include <errno.h>
#include <fcntl.h>
#include <linux/vhost.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "vhost_blk.h"

#ifndef VHOST_SET_FORK_FROM_OWNER
#define VHOST_FORK_OWNER_KTHREAD	0
#define VHOST_SET_FORK_FROM_OWNER	_IOW(VHOST_VIRTIO, 0x83, __u8)
#endif

#define SECTOR		512u
#define RING_MAX	1024u
#define QUEUES_MAX	4u

/*
 * Guest memory. Low and high are one file, mapped at places that have nothing to do with their
 * guest-physical addresses; the hole is in the memory table but behind it is no memory.
 */
#define LOW_GPA		0x0000000040000000ull
#define HIGH_GPA	0x0000000140000000ull
#define HOLE_GPA	0x0000000200000000ull
#define LOW_SIZE	(48ul << 20)
#define HIGH_SIZE	(16ul << 20)
#define HOLE_SIZE	(1ul << 20)
#define RING_AREA	(128ul << 10)	/* per queue, at the start of low memory */
#define INDIRECT_AREA	(RING_MAX * 16ul)
#define HEADER_AREA	(64ul << 10)
#define DATA_OFFSET	(QUEUES_MAX * (RING_AREA + INDIRECT_AREA + HEADER_AREA))

enum {
	T_IN = VIRTIO_BLK_T_IN,
	T_OUT = VIRTIO_BLK_T_OUT,
	T_FLUSH = VIRTIO_BLK_T_FLUSH,
	T_GET_ID = VIRTIO_BLK_T_GET_ID,
	T_DISCARD = VIRTIO_BLK_T_DISCARD,
	T_WRITE_ZEROES = VIRTIO_BLK_T_WRITE_ZEROES,
};

enum {
	S_OK = VIRTIO_BLK_S_OK,
	S_IOERR = VIRTIO_BLK_S_IOERR,
	S_UNSUPP = VIRTIO_BLK_S_UNSUPP,
};

#define NO_STATUS	0xee		/* what a status byte holds before it is written */

struct seg {
	uint64_t gpa;
	uint32_t len;
	bool write;			/* the device writes it */
};

struct queue {
	unsigned int index, num;
	struct vring ring;
	uint16_t avail_idx, used_seen;	/* the driver's positions */
	uint16_t next_desc;		/* where chains are built, round and round */
	int kick, call, err;
	uint8_t *ring_mem, *indirect, *headers;
	uint64_t ring_gpa, indirect_gpa, headers_gpa;
};

struct guest {
	int fd;				/* /dev/vhost-blk */
	int memfd;
	uint8_t *low, *high, *hole;
	uint64_t features;
	unsigned int nr_queues;
	struct queue q[QUEUES_MAX];
};

static const char *test_name = "ring";

static inline void __attribute__((noreturn, format(printf, 3, 4)))
fail_at(const char *file, int line, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fflush(stdout);
	fprintf(stderr, "FAILED %s: %s:%d: ", test_name, file, line);
	vfprintf(stderr, fmt, ap);
	fprintf(stderr, "\n");
	va_end(ap);
	exit(1);
}

#define fail(...) fail_at(__FILE__, __LINE__, __VA_ARGS__)

#define check(cond) do {						\
	if (!(cond))							\
		fail("%s", #cond);					\
} while (0)

#define check_eq(a, b) do {						\
	long long a_ = (long long)(a), b_ = (long long)(b);		\
	if (a_ != b_)							\
		fail("%s is %lld (%#llx), expected %lld (%#llx)",	\
		     #a, a_, a_, b_, b_);				\
} while (0)

/* A system call that has to succeed. */
#define must(call) ({							\
	long long r_ = (long long)(call);				\
	if (r_ < 0)							\
		fail("%s: %s", #call, strerror(errno));			\
	r_;								\
})

/* A system call that has to fail with the given error. */
#define must_fail(call, error) do {					\
	errno = 0;							\
	if ((long long)(call) >= 0)					\
		fail("%s succeeded, expected %s", #call, strerror(error)); \
	if (errno != (error))						\
		fail("%s: %s, expected %s", #call, strerror(errno), strerror(error)); \
} while (0)

static inline double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static inline uint64_t rnd(uint64_t *seed)
{
	uint64_t z = (*seed += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

/* Guest memory by guest-physical address. */
static inline void *memory_at(struct guest *g, uint64_t gpa)
{
	if (gpa >= LOW_GPA && gpa < LOW_GPA + LOW_SIZE)
		return g->low + (gpa - LOW_GPA);
	if (gpa >= HIGH_GPA && gpa < HIGH_GPA + HIGH_SIZE)
		return g->high + (gpa - HIGH_GPA);
	fail("no guest memory at %#llx", (unsigned long long)gpa);
}

static inline uint64_t data_gpa(uint64_t offset)
{
	return LOW_GPA + DATA_OFFSET + offset;
}

#define DATA_SIZE (LOW_SIZE - DATA_OFFSET)

static inline void guest_memory(struct guest *g)
{
	memset(g, 0, sizeof(*g));
	g->fd = -1;
	g->memfd = must(memfd_create("guest", MFD_CLOEXEC));
	must(ftruncate(g->memfd, LOW_SIZE + HIGH_SIZE));
	g->low = mmap(NULL, LOW_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, g->memfd, 0);
	g->high = mmap(NULL, HIGH_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, g->memfd, LOW_SIZE);
	g->hole = mmap(NULL, HOLE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(g->low != MAP_FAILED && g->high != MAP_FAILED && g->hole != MAP_FAILED);
}

static inline void guest_set_memory(struct guest *g)
{
	struct {
		struct vhost_memory m;
		struct vhost_memory_region r[3];
	} table = {
		.m.nregions = 3,
		.r = {
			{ LOW_GPA, LOW_SIZE, (uintptr_t)g->low, 0 },
			{ HIGH_GPA, HIGH_SIZE, (uintptr_t)g->high, 0 },
			{ HOLE_GPA, HOLE_SIZE, (uintptr_t)g->hole, 0 },
		},
	};

	must(ioctl(g->fd, VHOST_SET_MEM_TABLE, &table));
}

#define DEFAULT_FEATURES (1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_INDIRECT_DESC | \
			  1ull << VIRTIO_BLK_F_FLUSH | 1ull << VIRTIO_BLK_F_MQ |	\
			  1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES)

/* Become owner of a new open of the device, with features and memory. */
static inline void guest_connect(struct guest *g, uint64_t features)
{
	uint64_t offered;

	g->fd = must(open("/dev/vhost-blk", O_RDWR | O_CLOEXEC));
	g->features = features;
	must(ioctl(g->fd, VHOST_GET_FEATURES, &offered));
	check((features & ~offered) == 0);
	/* Workers that are kernel threads instead of threads of ours. */
	if (getenv("RING_KTHREAD")) {
		uint8_t mode = VHOST_FORK_OWNER_KTHREAD;

		must(ioctl(g->fd, VHOST_SET_FORK_FROM_OWNER, &mode));
	}
	must(ioctl(g->fd, VHOST_SET_OWNER));
	must(ioctl(g->fd, VHOST_SET_FEATURES, &features));
	guest_set_memory(g);
}

/* Tell the kernel where queue i lies. */
static inline void queue_set_addresses(struct guest *g, unsigned int i)
{
	struct queue *q = &g->q[i];
	struct vhost_vring_addr addr = {
		.index = i,
		.desc_user_addr = (uintptr_t)q->ring.desc,
		.avail_user_addr = (uintptr_t)q->ring.avail,
		.used_user_addr = (uintptr_t)q->ring.used,
	};

	must(ioctl(g->fd, VHOST_SET_VRING_ADDR, &addr));
}

/* Give the kernel queue i, with num descriptors; the ring's contents stay as they are. */
static inline void queue_attach(struct guest *g, unsigned int i)
{
	struct queue *q = &g->q[i];
	struct vhost_vring_state num = { i, q->num };
	struct vhost_vring_file kick = { i, q->kick }, call = { i, q->call }, err = { i, q->err };

	must(ioctl(g->fd, VHOST_SET_VRING_NUM, &num));
	queue_set_addresses(g, i);
	must(ioctl(g->fd, VHOST_SET_VRING_CALL, &call));
	must(ioctl(g->fd, VHOST_SET_VRING_ERR, &err));
	must(ioctl(g->fd, VHOST_SET_VRING_KICK, &kick));
}

/* Lay out an empty ring in guest memory. */
static inline void queue_init(struct guest *g, unsigned int i, unsigned int num)
{
	struct queue *q = &g->q[i];
	uint64_t base = i * (RING_AREA + INDIRECT_AREA + HEADER_AREA);

	memset(q, 0, sizeof(*q));
	q->index = i;
	q->num = num;
	q->ring_gpa = LOW_GPA + base;
	q->indirect_gpa = q->ring_gpa + RING_AREA;
	q->headers_gpa = q->indirect_gpa + INDIRECT_AREA;
	q->ring_mem = memory_at(g, q->ring_gpa);
	q->indirect = memory_at(g, q->indirect_gpa);
	q->headers = memory_at(g, q->headers_gpa);
	memset(q->ring_mem, 0, RING_AREA);
	vring_init(&q->ring, num, q->ring_mem, 4096);
	check(vring_size(num, 4096) <= RING_AREA);
	q->kick = must(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
	q->call = must(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
	q->err = must(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
}

static inline int set_backend_fd(struct guest *g, int fd)
{
	struct vhost_vring_file f = { 0, fd };

	return ioctl(g->fd, VHOST_BLK_SET_BACKEND, &f);
}

static inline void set_backend(struct guest *g, const char *path, int flags)
{
	int fd = must(open(path, flags | O_CLOEXEC));

	must(set_backend_fd(g, fd));
	close(fd);
}

static inline int set_ring(struct guest *g, unsigned int i, unsigned int num)
{
	struct vhost_vring_state s = { i, num };

	return ioctl(g->fd, VHOST_BLK_SET_RING, &s);
}

static inline unsigned int vring_base(struct guest *g, unsigned int i)
{
	struct vhost_vring_state s = { i, 0 };

	must(ioctl(g->fd, VHOST_GET_VRING_BASE, &s));
	return s.num;
}

/* A guest with nr queues of num descriptors on a device that is running. */
static inline void guest_start(struct guest *g, const char *path, int flags, unsigned int nr,
			       unsigned int num, uint64_t features)
{
	unsigned int i;

	guest_memory(g);
	guest_connect(g, features);
	g->nr_queues = nr;
	for (i = 0; i < nr; i++) {
		queue_init(g, i, num);
		queue_attach(g, i);
	}
	set_backend(g, path, flags);
}

static inline void guest_stop(struct guest *g)
{
	unsigned int i;

	must(close(g->fd));
	for (i = 0; i < g->nr_queues; i++) {
		close(g->q[i].kick);
		close(g->q[i].call);
		close(g->q[i].err);
	}
	munmap(g->low, LOW_SIZE);
	munmap(g->high, HIGH_SIZE);
	munmap(g->hole, HOLE_SIZE);
	close(g->memfd);
}

/* The other side's counters change behind the compiler's back. */
static inline uint16_t used_idx(struct queue *q)
{
	return __atomic_load_n(&q->ring.used->idx, __ATOMIC_ACQUIRE);
}

/* With EVENT_IDX: where the device wants a kick, and where the driver wants a call. */
static inline uint16_t avail_event(struct queue *q)
{
	uint16_t *p = (void *)&q->ring.used->ring[q->num];

	return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static inline void set_used_event(struct queue *q, uint16_t idx)
{
	__atomic_store_n(&q->ring.avail->ring[q->num], idx, __ATOMIC_RELEASE);
}

static inline void kick(struct queue *q)
{
	uint64_t one = 1;

	check_eq(write(q->kick, &one, sizeof(one)), sizeof(one));
}

static inline bool event_taken(int fd)
{
	uint64_t n;

	return read(fd, &n, sizeof(n)) == sizeof(n);
}

/* Wait for an eventfd; false after a timeout. */
static inline bool event_wait(int fd, int ms)
{
	struct pollfd p = { fd, POLLIN, 0 };

	return poll(&p, 1, ms) == 1 && event_taken(fd);
}

/* Fill descriptors from index first on, chained; returns how many. */
static inline unsigned int fill_chain(struct vring_desc *desc, unsigned int mask,
				      unsigned int first, const struct seg *seg, unsigned int nr)
{
	unsigned int i;

	for (i = 0; i < nr; i++) {
		struct vring_desc *d = &desc[(first + i) & mask];

		d->addr = seg[i].gpa;
		d->len = seg[i].len;
		d->flags = (seg[i].write ? VRING_DESC_F_WRITE : 0) |
			   (i + 1 < nr ? VRING_DESC_F_NEXT : 0);
		d->next = (first + i + 1) & mask;
	}
	return nr;
}

/* Offer the chain that begins at a descriptor. */
static inline void offer(struct queue *q, uint16_t head)
{
	q->ring.avail->ring[q->avail_idx % q->num] = head;
	__atomic_store_n(&q->ring.avail->idx, ++q->avail_idx, __ATOMIC_RELEASE);
}

/* Build a chain of direct descriptors and offer it; returns its head. */
static inline uint16_t add_direct(struct queue *q, const struct seg *seg, unsigned int nr)
{
	uint16_t head = q->next_desc;

	check(nr <= q->num);
	fill_chain(q->ring.desc, q->num - 1, head, seg, nr);
	q->next_desc = (head + nr) & (q->num - 1);
	offer(q, head);
	return head;
}

/* The same by way of the queue's one indirect table, so that only one can be in flight. */
static inline uint16_t add_indirect(struct queue *q, const struct seg *seg, unsigned int nr)
{
	struct vring_desc *d = &q->ring.desc[q->next_desc];
	uint16_t head = q->next_desc;

	check(nr * sizeof(struct vring_desc) <= INDIRECT_AREA);
	fill_chain((struct vring_desc *)q->indirect, RING_MAX - 1, 0, seg, nr);
	d->addr = q->indirect_gpa;
	d->len = nr * sizeof(struct vring_desc);
	d->flags = VRING_DESC_F_INDIRECT;
	d->next = 0;
	q->next_desc = (head + 1) & (q->num - 1);
	offer(q, head);
	return head;
}

/* Wait until the used index has reached a value, by the call eventfd or, without, by looking. */
static inline bool wait_used_idx(struct queue *q, uint16_t idx, int ms)
{
	double end = now() + ms / 1000.;

	while ((int16_t)(used_idx(q) - idx) < 0) {
		if (now() > end)
			return false;
		event_wait(q->call, 5);
	}
	return true;
}

/* Take the next used entry; fails the test when none comes. */
static inline struct vring_used_elem next_used(struct queue *q)
{
	struct vring_used_elem e;

	if (!wait_used_idx(q, q->used_seen + 1, 30000))
		fail("queue %u: no used entry (seen %u, used %u, offered %u)", q->index,
		     q->used_seen, used_idx(q), q->avail_idx);
	e = q->ring.used->ring[q->used_seen++ % q->num];
	return e;
}

/* Does nothing come any more? */
static inline void check_quiet(struct queue *q, int ms)
{
	usleep(ms * 1000);
	check_eq(used_idx(q), q->used_seen);
}

/* A request header in the queue's header area, slot i. */
static inline uint64_t header(struct queue *q, unsigned int slot, uint32_t type, uint64_t sector)
{
	struct virtio_blk_outhdr *h = (void *)(q->headers + slot * 32);

	h->type = type;
	h->ioprio = 0;
	h->sector = sector;
	q->headers[slot * 32 + 16] = NO_STATUS;
	return q->headers_gpa + slot * 32;
}

static inline uint64_t status_gpa(struct queue *q, unsigned int slot)
{
	return q->headers_gpa + slot * 32 + 16;
}

static inline uint8_t *status_of(struct queue *q, unsigned int slot)
{
	return q->headers + slot * 32 + 16;
}

/* Offer an ordinary request: header, at most one data segment, status. */
static inline uint16_t add_request(struct queue *q, unsigned int slot, uint32_t type,
				   uint64_t sector, uint64_t gpa, uint32_t len)
{
	bool write = type == T_IN || type == T_GET_ID;
	struct seg seg[3] = { { header(q, slot, type, sector), 16, false } };
	unsigned int nr = 1;

	if (len)
		seg[nr++] = (struct seg){ gpa, len, write };
	seg[nr++] = (struct seg){ status_gpa(q, slot), 1, true };
	return add_direct(q, seg, nr);
}

/* Do one ordinary request and return its status; the used length goes to *len. */
static inline uint8_t request(struct queue *q, uint32_t type, uint64_t sector, uint64_t gpa,
			      uint32_t len, uint32_t *used_len)
{
	uint16_t head = add_request(q, 0, type, sector, gpa, len);
	struct vring_used_elem e;

	kick(q);
	e = next_used(q);
	check_eq(e.id, head);
	if (used_len)
		*used_len = e.len;
	return *status_of(q, 0);
}

#endif
