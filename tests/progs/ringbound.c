// SPDX-License-Identifier: GPL-2.0-or-later
/* libs: */
/*
 * What requests on /dev/vhost-blk may hold while they are in flight: ringbound CASE DEVICE. A guest
 * offers more than that at once, on a slow device; what is pinned, allocated or under way there is
 * counted, and then all of it has to be answered. Run by tests/test_vhost_ring.py.
 */
#define _GNU_SOURCE
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "ringcase.h"

/* I/O that the device has not ended. */
static unsigned int under_way(void)
{
	unsigned int reads, writes;
	char path[64];
	struct stat st;
	FILE *f;

	must(stat(device, &st));
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/inflight", major(st.st_rdev),
		 minor(st.st_rdev));
	f = fopen(path, "r");
	check(f && fscanf(f, "%u %u", &reads, &writes) == 2);
	fclose(f);
	return reads + writes;
}

/* Pages that are pinned for I/O. */
static long pinned(void)
{
	FILE *f = fopen("/proc/sys/vm/stat_refresh", "r");
	char line[128];
	long n, sum = 0;

	/* Each processor counts for itself; reading this adds it up. */
	if (f) {
		while (fgets(line, sizeof(line), f))
			;
		fclose(f);
	}
	f = fopen("/proc/vmstat", "r");
	check(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "nr_foll_pin_acquired %ld", &n) == 1)
			sum += n;
		else if (sscanf(line, "nr_foll_pin_released %ld", &n) == 1)
			sum -= n;
	}
	fclose(f);
	return sum;
}

static void fill(uint8_t *p, size_t len, uint64_t seed)
{
	for (; len; p += 8, len -= 8)
		*(uint64_t *)p = rnd(&seed);
}

/* Offer that many requests of one segment to the same data, and wait until some are under way. */
static void offer_many(struct queue *q, unsigned int nr, uint32_t type, uint64_t gpa, uint32_t len)
{
	double end = now() + 10;
	unsigned int i;

	for (i = 0; i < nr; i++)
		add_request(q, i, type, 0, gpa, len);
	kick(q);
	while (!under_way() && now() < end)
		usleep(1000);
	usleep(20000);
	check_eq(used_idx(q), q->used_seen);
}

static void expect_answers(struct queue *q, unsigned int nr)
{
	unsigned int i;

	for (i = 0; i < nr; i++)
		next_used(q);
	for (i = 0; i < nr; i++)
		check_eq(*status_of(q, i), S_OK);
}

/* Long requests: each keeps no more than a round pinned, and none of the data is lost. */
static void case_huge(void)
{
	enum { NR = 6, BYTES = 24 << 20, ROUND = 4 << 20 };
	uint8_t *want = malloc(BYTES), *mem;
	long before = pinned(), most;
	struct guest g;
	struct queue *q = &g.q[0];
	int write;

	guest_start(&g, device, O_RDWR, 1, 64, DEFAULT_FEATURES);
	mem = memory_at(&g, data_gpa(0));
	for (write = 1; write >= 0; write--) {
		if (write) {
			fill(want, BYTES, 5);
			memcpy(mem, want, BYTES);
		} else {
			memset(mem, 0, BYTES);
		}
		offer_many(q, NR, write ? T_OUT : T_IN, data_gpa(0), BYTES);
		most = pinned() - before;
		printf("%ld pages pinned for %u requests of %u\n", most, NR, BYTES / 4096);
		check(most > 0 && most <= NR * (ROUND / 4096));
		expect_answers(q, NR);
	}
	check(!memcmp(mem, want, BYTES));

	/* Rounds that end inside segments, one of which ends inside a page. */
	memset(mem, 0, BYTES);
	{
		struct seg seg[6] = { { header(q, 0, T_IN, 0), 16, false } };
		uint64_t at = data_gpa(512);
		uint32_t lens[] = { 3 << 20 | 512, 5 << 20, 512, 9 << 20 }, sum = 0;
		unsigned int i;

		for (i = 0; i < 4; i++) {
			seg[1 + i] = (struct seg){ at, lens[i], true };
			/* With holes between them. */
			at += lens[i] + 4096;
			sum += lens[i];
		}
		seg[5] = (struct seg){ status_gpa(q, 0), 1, true };
		add_direct(q, seg, 6);
		kick(q);
		check_eq(next_used(q).len, sum + 1);
		check_eq(*status_of(q, 0), S_OK);
		for (i = 0, sum = 0; i < 4; i++) {
			uint8_t *p = memory_at(&g, seg[1 + i].gpa);

			check(!memcmp(p, want + sum, lens[i]));
			check(!p[-1] && !p[lens[i]]);
			sum += lens[i];
		}
	}
	free(want);
	guest_stop(&g);
}

/* Bounced requests of a megabyte: the ring is not read on when they hold too much, but later. */
static void case_held(void)
{
	enum { NR = 40, BYTES = 1 << 20, MOST = 9 };
	struct guest g;
	struct queue *q = &g.q[0];
	unsigned int most, round;

	guest_start(&g, device, O_RDWR, 1, 256, DEFAULT_FEATURES);
	for (round = 0; round < 2; round++) {
		offer_many(q, NR, round ? T_OUT : T_IN, data_gpa(1), BYTES);
		most = under_way();
		printf("%u of %u requests under way\n", most, NR);
		check(most > 0 && most <= MOST);
		expect_answers(q, NR);
	}
	check_quiet(q, 20);
	/* A stop in the middle of it, and a start. */
	offer_many(q, NR, T_IN, data_gpa(1), BYTES);
	must(set_ring(&g, 0, 0));
	check(used_idx(q) != (uint16_t)(q->used_seen + NR));
	must(set_ring(&g, 0, 1));
	expect_answers(q, NR);
	guest_stop(&g);
}

/* A discard on a device that takes it in small pieces: some of them at a time. */
static void case_commands(void)
{
	enum { MOST = 64 };
	uint64_t range[2] = { 0 }, bytes;
	int fd = must(open(device, O_RDWR | O_DIRECT));
	uint8_t *buf = aligned_alloc(4096, 1 << 20);
	unsigned int most, i;
	struct guest g;
	struct queue *q = &g.q[0];

	must(ioctl(fd, BLKGETSIZE64, &bytes));
	range[1] = bytes / SECTOR;
	memset(buf, 0x5a, 1 << 20);
	check_eq(pwrite(fd, buf, 1 << 20, bytes - (1 << 20)), 1 << 20);
	guest_start(&g, device, O_RDWR, 1, 64, DEFAULT_FEATURES);
	memcpy(memory_at(&g, data_gpa(0)), range, 16);
	offer_many(q, 1, T_DISCARD, data_gpa(0), 16);
	most = under_way();
	printf("%u commands under way\n", most);
	check(most > 1 && most <= MOST);
	expect_answers(q, 1);
	check_eq(pread(fd, buf, 1 << 20, bytes - (1 << 20)), 1 << 20);
	for (i = 0; i < 1 << 20; i++)
		check_eq(buf[i], 0);
	free(buf);
	close(fd);
	guest_stop(&g);
}

static const struct ring_case cases[] = {
	{ "huge", case_huge }, { "held", case_held }, { "commands", case_commands }, LAST_CASE
};

int main(int argc, char **argv)
{
	return run_case(argc, argv, cases);
}
