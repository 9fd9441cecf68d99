// SPDX-License-Identifier: GPL-2.0-or-later
/* libs: */
/*
 * The host's page cache of a device that /dev/vhost-blk serves: ringcache CASE DEVICE. The host reads and
 * writes it buffered while a guest does, too. Run by tests/test_vhost_cache.py.
 */
#define _GNU_SOURCE
#include <linux/fs.h>

#include "ringcase.h"

enum { MOST = 9 << 20 };

static int host;	/* DEVICE, open for buffered I/O all the time, as anything on the host may */
static uint8_t *seen;

static void host_expect(const char *what, uint64_t offset, size_t len, uint8_t byte)
{
	size_t i;

	check_eq(pread(host, seen, len, offset), len);
	for (i = 0; i < len; i++)
		if (seen[i] != byte)
			fail("%s: the host reads %#x at %zu, not %#x", what, seen[i], i, byte);
}

static void begin(struct guest *g, uint64_t features)
{
	seen = malloc(MOST);
	host = must(open(device, O_RDWR | O_CLOEXEC));
	guest_start(g, device, O_RDWR, 1, 64, features);
}

static void end(struct guest *g)
{
	guest_stop(g);
	close(host);
	free(seen);
}

static void fill(struct guest *g, uint64_t gpa, size_t len, uint8_t byte)
{
	memset(memory_at(g, gpa), byte, len);
}

static uint8_t ranges(struct guest *g, uint32_t type, uint64_t offset, size_t len)
{
	struct virtio_blk_discard_write_zeroes range = {
		.sector = offset / SECTOR, .num_sectors = len / SECTOR,
	};

	memcpy(memory_at(g, data_gpa(0)), &range, sizeof(range));
	return request(&g->q[0], type, 0, data_gpa(0), sizeof(range), NULL);
}

/* The host has read what the guest then changes, in all ways there are. */
static void case_read(void)
{
	struct { const char *what; uint64_t gpa; size_t len; } writes[] = {
		{ "a sector", data_gpa(0), 512 }, { "a page", data_gpa(0), 4096 },
		{ "64 KiB", data_gpa(0), 65536 }, { "bounced", data_gpa(1), 65536 },
		{ "in rounds", data_gpa(0), MOST },
	};
	struct guest g;
	struct queue *q = &g.q[0];
	unsigned int i;
	uint8_t *map;

	begin(&g, DEFAULT_FEATURES);
	for (i = 0; i < sizeof(writes) / sizeof(*writes); i++) {
		fill(&g, writes[i].gpa, writes[i].len, 0x11);
		check_eq(request(q, T_OUT, 8, writes[i].gpa, writes[i].len, NULL), S_OK);
		host_expect(writes[i].what, 4096, writes[i].len, 0x11);
		fill(&g, writes[i].gpa, writes[i].len, 0x22 + i);
		check_eq(request(q, T_OUT, 8, writes[i].gpa, writes[i].len, NULL), S_OK);
		host_expect(writes[i].what, 4096, writes[i].len, 0x22 + i);
	}
	check_eq(ranges(&g, T_WRITE_ZEROES, 4096, MOST), S_OK);
	host_expect("zeroes", 4096, MOST, 0);
	fill(&g, data_gpa(0), MOST, 0x33);
	check_eq(request(q, T_OUT, 0, data_gpa(0), MOST, NULL), S_OK);
	host_expect("before a discard", 0, MOST, 0x33);
	if (!argument) {
		check_eq(ranges(&g, T_DISCARD, 0, MOST), S_OK);
		host_expect("discarded", 0, MOST, 0);
	}
	/* Mapped by the host, where a page is not dropped as easily. */
	map = mmap(NULL, 65536, PROT_READ, MAP_SHARED, host, 0);
	check(map != MAP_FAILED);
	fill(&g, data_gpa(0), 65536, 0x44);
	check_eq(request(q, T_OUT, 0, data_gpa(0), 65536, NULL), S_OK);
	for (i = 0; i < 65536; i++)
		check_eq(map[i], 0x44);
	munmap(map, 65536);
	end(&g);
}

/* On a device that is slow at writing: what the host reads while the guest's write is under way. */
static void case_meanwhile(void)
{
	struct guest g;
	struct queue *q = &g.q[0];

	begin(&g, DEFAULT_FEATURES);
	fill(&g, data_gpa(0), 4096, 0x11);
	check_eq(request(q, T_OUT, 0, data_gpa(0), 4096, NULL), S_OK);
	fill(&g, data_gpa(0), 4096, 0x22);
	add_request(q, 0, T_OUT, 0, data_gpa(0), 4096);
	kick(q);
	usleep(100000);
	host_expect("meanwhile", 0, 4096, 0x11);
	check_eq(used_idx(q), q->used_seen);
	next_used(q);
	check_eq(*status_of(q, 0), S_OK);
	host_expect("afterwards", 0, 4096, 0x22);
	end(&g);
}

/* What the host has written and not synced: the guest reads it, and overwrites it for good. */
static void case_dirty(void)
{
	struct guest g;
	struct queue *q = &g.q[0];
	int fd;

	begin(&g, DEFAULT_FEATURES);
	memset(seen, 0x55, 65536);
	check_eq(pwrite(host, seen, 65536, 0), 65536);
	check_eq(request(q, T_IN, 8, data_gpa(0), 4096, NULL), S_OK);
	check_eq(*(uint8_t *)memory_at(&g, data_gpa(4095)), 0x55);
	memset(seen, 0x66, 65536);
	check_eq(pwrite(host, seen, 65536, 0), 65536);
	fill(&g, data_gpa(0), 4096, 0x77);
	check_eq(request(q, T_OUT, 8, data_gpa(0), 4096, NULL), S_OK);
	must(fsync(host));
	must(ioctl(host, BLKFLSBUF));
	host_expect("before it", 0, 4096, 0x66);
	host_expect("the guest's", 4096, 4096, 0x77);
	host_expect("behind it", 8192, 4096, 0x66);
	/* From before it was served. */
	must(set_backend_fd(&g, -1));
	memset(seen, 0x88, 4096);
	check_eq(pwrite(host, seen, 4096, 0), 4096);
	fd = must(open(device, O_RDONLY));
	must(set_backend_fd(&g, fd));
	check_eq(request(q, T_IN, 0, data_gpa(0), 4096, NULL), S_OK);
	check_eq(*(uint8_t *)memory_at(&g, data_gpa(0)), 0x88);
	close(fd);
	end(&g);
}

static const struct ring_case cases[] = {
	{ "read", case_read }, { "meanwhile", case_meanwhile }, { "dirty", case_dirty }, LAST_CASE
};

int main(int argc, char **argv)
{
	return run_case(argc, argv, cases);
}
