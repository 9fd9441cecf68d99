// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Requests of all kinds on /dev/vhost-blk while the kernel may run out of memory at any moment:
 * ringfault DEVICE ROUNDS SEED. Each round opens the device anew. A step of setting up may fail with
 * ENOMEM; nothing else may go wrong, and no request may fail. Prints how many of each there were. The
 * device's content is lost.
 */
#define _GNU_SOURCE
#include <linux/fs.h>

#include "ring.h"

#define RING_NUM	64u
#define REQUESTS	60u
#define UNIT		(64u << 10)	/* of the device that one request is about */
#define UNITS		64u
#define UNKNOWN		0x100u		/* what a unit holds: not known */

static unsigned int nr_refused, nr_requests;
static unsigned int content[UNITS];

/* Whether a step of setting up was done; it may lack memory, which the kernel tells by @error. */
static bool done(const char *what, long long r, int error)
{
	if (r >= 0)
		return true;
	if (errno != ENOMEM && errno != error)
		fail("%s: %s", what, strerror(errno));
	nr_refused++;
	return false;
}

static bool connect_guest(struct guest *g)
{
	struct {
		struct vhost_memory m;
		struct vhost_memory_region r[2];
	} table = {
		.m.nregions = 2,
		.r = {
			{ LOW_GPA, LOW_SIZE, (uintptr_t)g->low, 0 },
			{ HIGH_GPA, HIGH_SIZE, (uintptr_t)g->high, 0 },
		},
	};
	uint64_t features = DEFAULT_FEATURES;

	g->fd = open("/dev/vhost-blk", O_RDWR | O_CLOEXEC);
	return done("open", g->fd, ENOMEM) &&
	       done("SET_OWNER", ioctl(g->fd, VHOST_SET_OWNER), ENOMEM) &&
	       done("SET_FEATURES", ioctl(g->fd, VHOST_SET_FEATURES, &features), ENOMEM) &&
	       /* the vhost core's answer when a region finds no memory */
	       done("SET_MEM_TABLE", ioctl(g->fd, VHOST_SET_MEM_TABLE, &table), EFAULT);
}

static bool start(struct guest *g, const char *path)
{
	int fd;
	bool ok;

	queue_init(g, 0, RING_NUM);
	g->nr_queues = 1;
	if (!connect_guest(g))
		return false;
	queue_attach(g, 0);
	fd = must(open(path, O_RDWR | O_CLOEXEC));
	ok = done("SET_BACKEND", set_backend_fd(g, fd), ENOMEM);
	close(fd);
	return ok;
}

/* A read or a write of a whole unit, its memory cut in one of several ways. */
static uint8_t transfer(struct guest *g, unsigned int unit, bool write, unsigned int cut)
{
	struct queue *q = &g->q[0];
	uint64_t gpa = data_gpa(cut & 1 ? 100 : 0);
	uint32_t step = cut & 2 ? 4096 : cut & 4 ? 1536 : UNIT, left = UNIT;
	struct seg seg[48] = {
		{ header(q, 0, write ? T_OUT : T_IN, (uint64_t)unit * UNIT / SECTOR), 16, false }
	};
	unsigned int nr = 1;

	for (; left; left -= step) {
		if (step > left)
			step = left;
		seg[nr++] = (struct seg){ gpa, step, !write };
		gpa += step;
	}
	seg[nr++] = (struct seg){ status_gpa(q, 0), 1, true };
	if (nr > RING_NUM / 2)
		add_indirect(q, seg, nr);
	else
		add_direct(q, seg, nr);
	kick(q);
	next_used(q);
	return *status_of(q, 0);
}

static uint8_t write_zeroes(struct guest *g, unsigned int unit)
{
	struct queue *q = &g->q[0];
	struct virtio_blk_discard_write_zeroes range = {
		.sector = (uint64_t)unit * UNIT / SECTOR,
		.num_sectors = UNIT / SECTOR,
	};

	memcpy(memory_at(g, data_gpa(0)), &range, sizeof(range));
	return request(q, T_WRITE_ZEROES, 0, data_gpa(0), sizeof(range), NULL);
}

static void one_request(struct guest *g, uint64_t *seed)
{
	unsigned int unit = rnd(seed) % UNITS, cut = rnd(seed) % 8, i;
	unsigned int byte = 1 + rnd(seed) % 255;
	uint8_t *data = memory_at(g, data_gpa(cut & 1 ? 100 : 0)), status;

	nr_requests++;
	switch (rnd(seed) % 4) {
	case 0:
		status = write_zeroes(g, unit);
		content[unit] = 0;
		break;
	case 1:
		memset(data, byte, UNIT);
		status = transfer(g, unit, true, cut);
		content[unit] = byte;
		break;
	default:
		memset(data, 0xa5, UNIT);
		status = transfer(g, unit, false, cut);
		for (i = 0; i < UNIT && content[unit] != UNKNOWN; i++)
			if (data[i] != content[unit])
				fail("unit %u has %#x at %u, expected %#x", unit, data[i], i,
				     content[unit]);
	}
	check_eq(status, S_OK);
}

int main(int argc, char **argv)
{
	unsigned int rounds, i;
	uint64_t seed;

	if (argc != 4) {
		fprintf(stderr, "usage: ringfault DEVICE ROUNDS SEED\n");
		return 2;
	}
	test_name = "ringfault";
	rounds = strtoul(argv[2], NULL, 0);
	seed = strtoull(argv[3], NULL, 0);
	for (i = 0; i < UNITS; i++)
		content[i] = UNKNOWN;
	while (rounds--) {
		struct guest g;

		guest_memory(&g);
		if (start(&g, argv[1]))
			for (i = 0; i < REQUESTS; i++)
				one_request(&g, &seed);
		if (g.fd < 0)
			g.fd = must(open("/dev/null", O_RDWR));
		guest_stop(&g);
	}
	printf("%u requests, %u refused\n", nr_requests, nr_refused);
	return 0;
}
