// SPDX-License-Identifier: GPL-2.0-or-later
/* libs: */
/*
 * What /dev/vhost-blk has to do with requests: ringtest CASE DEVICE [ARGUMENT]. Each case is one
 * test, run by tests/test_vhost_ring.py on a device that suits it, and exits with 1 and a message
 * at the first thing that is not as the virtio specification or docs/vhost-blk.md says.
 * ringlife.c has the cases about starting, stopping and owners.
 */
#define _GNU_SOURCE
#include <linux/fs.h>

#include "ringcase.h"

static uint64_t capacity;	/* in sectors */

/* What the device holds, read around the page cache. */
static void device_io(bool write, void *buf, uint64_t sector, size_t len)
{
	int fd = must(open(device, O_RDWR | O_DIRECT | O_CLOEXEC));
	void *aligned = aligned_alloc(4096, (len + 4095) & ~4095ul);

	check(aligned);
	if (write)
		memcpy(aligned, buf, len);
	check_eq(write ? pwrite(fd, aligned, len, sector * SECTOR) :
			 pread(fd, aligned, len, sector * SECTOR), len);
	if (!write)
		memcpy(buf, aligned, len);
	free(aligned);
	close(fd);
}

static void fill(void *buf, size_t len, uint64_t seed)
{
	uint8_t *p = buf;
	size_t i;

	for (i = 0; i < len; i += 8) {
		uint64_t v = rnd(&seed);

		memcpy(p + i, &v, len - i < 8 ? len - i : 8);
	}
}

static bool is_zero(const uint8_t *p, size_t len)
{
	return !len || (!p[0] && !memcmp(p, p + 1, len - 1));
}

static void case_basic(void)
{
	uint8_t serial[VHOST_BLK_SERIAL_BYTES] = "a serial number 1234";
	uint8_t *data, *want = malloc(1 << 20);
	uint32_t len, size, sizes[] = { 512, 1024, 4096, 32768, 65536, 131072, 1 << 20 };
	struct guest g;
	struct queue *q = &g.q[0];
	unsigned int i;

	guest_start(&g, device, O_RDWR, 1, 64, DEFAULT_FEATURES);
	data = memory_at(&g, data_gpa(0));

	for (i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		size = sizes[i];
		fill(want, size, i);
		memcpy(data, want, size);
		check_eq(request(q, T_OUT, 8 + i, data_gpa(0), size, &len), S_OK);
		check_eq(len, 1);
		device_io(false, data, 8 + i, size);
		check(!memcmp(data, want, size));

		fill(want, size, i + 100);
		device_io(true, want, 16 + i, size);
		memset(data, 0, size);
		data[size] = 0x77;
		check_eq(request(q, T_IN, 16 + i, data_gpa(0), size, &len), S_OK);
		check_eq(len, size + 1);
		check(!memcmp(data, want, size));
		check_eq(data[size], 0x77);
	}
	check_eq(request(q, T_FLUSH, 0, 0, 0, &len), S_OK);
	check_eq(len, 1);

	/* The last sectors are there, and nothing behind them. */
	check_eq(request(q, T_IN, capacity - 8, data_gpa(0), 4096, NULL), S_OK);
	check_eq(request(q, T_IN, capacity, data_gpa(0), 0, NULL), S_OK);

	must(ioctl(g.fd, VHOST_BLK_SET_SERIAL, serial));
	memset(data, 0xaa, 64);
	check_eq(request(q, T_GET_ID, 0, data_gpa(0), 20, &len), S_OK);
	check_eq(len, 21);
	check(!memcmp(data, serial, 20) && data[20] == 0xaa);
	memset(data, 0xaa, 64);
	check_eq(request(q, T_GET_ID, 0, data_gpa(0), 5, &len), S_OK);
	check_eq(len, 6);
	check(!memcmp(data, serial, 5) && data[5] == 0xaa);
	check_eq(request(q, T_GET_ID, 0, data_gpa(0), 40, &len), S_OK);
	check_eq(len, 21);

	/* Zone commands, SCSI, secure erase, nonsense. */
	for (i = 2; i < 40; i++) {
		if (i == T_FLUSH || i == T_GET_ID ||
		    i == T_DISCARD || i == T_WRITE_ZEROES)
			continue;
		check_eq(request(q, i, 0, 0, 0, &len), S_UNSUPP);
		check_eq(len, 1);
	}
	check_eq(request(q, 0x80000000, 0, 0, 0, &len), S_UNSUPP);
	free(want);
	guest_stop(&g);
}

/* Many in flight at once, over and over: data, heads and order of the used ring. */
static void case_depth(void)
{
	enum { DEPTH = 64, ROUNDS = 60, SIZE = 4096 };
	bool busy[256] = { false };
	uint64_t seed = 1;
	uint8_t *want = malloc(DEPTH * SIZE);
	struct guest g;
	struct queue *q = &g.q[0];
	unsigned int i, round, slot_of[256];

	guest_start(&g, device, O_RDWR, 1, 256, DEFAULT_FEATURES);
	for (round = 0; round < ROUNDS; round++) {
		bool write = !(round & 1);

		if (write)
			seed = round + 1;
		for (i = 0; i < DEPTH; i++) {
			uint16_t head;

			if (write) {
				fill(want + i * SIZE, SIZE, seed * 1000 + i);
				memcpy(memory_at(&g, data_gpa(i * SIZE)), want + i * SIZE, SIZE);
			} else {
				memset(memory_at(&g, data_gpa(i * SIZE)), 0, SIZE);
			}
			head = add_request(q, i, write ? T_OUT : T_IN,
					   (uint64_t)i * SIZE / SECTOR, data_gpa(i * SIZE), SIZE);
			busy[head] = true;
			slot_of[head] = i;
			/* Not one kick per request, nor one for all. */
			if (rnd(&seed) % 5 == 0)
				kick(q);
		}
		kick(q);
		for (i = 0; i < DEPTH; i++) {
			struct vring_used_elem e = next_used(q);

			check(e.id < 256 && busy[e.id]);
			busy[e.id] = false;
			check_eq(*status_of(q, slot_of[e.id]), S_OK);
			check_eq(e.len, write ? 1 : SIZE + 1);
		}
		if (!write)
			check(!memcmp(memory_at(&g, data_gpa(0)), want, DEPTH * SIZE));
	}
	check_quiet(q, 20);
	free(want);
	guest_stop(&g);
}

/* How a piece of a request is cut into segments: lengths, the last repeated to the end. */
struct cut {
	const char *name;
	uint32_t len[8];
};

static unsigned int cut_up(struct seg *seg, uint64_t gpa, uint32_t len, const struct cut *cut,
			   bool write)
{
	unsigned int nr = 0, i = 0;

	while (len) {
		uint32_t n = cut->len[i] < len ? cut->len[i] : len;

		seg[nr++] = (struct seg){ gpa, n, write };
		gpa += n;
		len -= n;
		if (cut->len[i + 1])
			i++;
	}
	return nr;
}

/*
 * Every way to lay a request out: the header in pieces or joined with the data, the data in pieces
 * at any alignment, the status alone or at the end of the data, empty segments between them, by
 * direct and indirect descriptors.
 */
static void one_layout(struct guest *g, bool write, bool indirect, const struct cut *hdr_cut,
		       const struct cut *data_cut, uint32_t size, uint32_t shift, bool joined,
		       bool empties)
{
	static uint8_t want[2 << 20];
	struct queue *q = &g->q[0];
	uint64_t base = data_gpa(4096 + shift), data = base + 16, hdr = header(q, 0, write, 24);
	static struct seg seg[RING_MAX];
	uint8_t *mem = memory_at(g, base - 64);
	struct vring_used_elem e;
	unsigned int nr = 0;
	uint16_t head;
	char what[200];

	snprintf(what, sizeof(what), "%s %s header %s data %s size %u shift %u%s%s",
		 write ? "OUT" : "IN", indirect ? "indirect" : "direct", hdr_cut->name,
		 data_cut->name, size, shift, joined ? " joined" : "", empties ? " empties" : "");
	fill(want, size, size + shift + write);
	memset(mem, 0x3c, size + 256);
	if (write)
		memcpy(mem + 64 + 16, want, size);
	else
		device_io(true, want, 24, size);

	/* Joined: the header lies before the data to write, the status after the data to read. */
	if (joined && write) {
		memcpy(mem + 64, memory_at(g, hdr), 16);
		nr += cut_up(seg + nr, base, 16 + size, data_cut, false);
	} else {
		nr += cut_up(seg + nr, hdr, 16, hdr_cut, false);
		if (empties)
			seg[nr++] = (struct seg){ base, 0, false };
		nr += cut_up(seg + nr, data, size + (joined ? 1 : 0), data_cut, !write);
	}
	if (empties)
		seg[nr++] = (struct seg){ base, 0, true };
	if (!joined || write)
		seg[nr++] = (struct seg){ status_gpa(q, 0), 1, true };
	if (empties)
		seg[nr++] = (struct seg){ base, 0, true };

	check(nr <= RING_MAX);
	head = indirect ? add_indirect(q, seg, nr) : add_direct(q, seg, nr);
	kick(q);
	e = next_used(q);
	if (e.id != head || e.len != (write ? 1 : size + 1))
		fail("%s: used %u len %u", what, e.id, e.len);
	if (joined && !write) {
		if (mem[64 + 16 + size] != S_OK)
			fail("%s: status %#x", what, mem[64 + 16 + size]);
		mem[64 + 16 + size] = 0x3c;
	} else if (*status_of(q, 0) != S_OK) {
		fail("%s: status %#x", what, *status_of(q, 0));
	}

	if (write) {
		static uint8_t got[2 << 20];

		device_io(false, got, 24, size);
		if (memcmp(got, want, size))
			fail("%s: wrong data on the device", what);
	} else if (memcmp(mem + 64 + 16, want, size)) {
		fail("%s: wrong data in memory", what);
	}
	/* Nothing around the data was touched. */
	for (nr = 0; nr < 64; nr++)
		if (mem[nr] != 0x3c || mem[64 + 16 + size + nr] != 0x3c)
			fail("%s: memory around the data was written", what);
}

static void case_layouts(void)
{
	static const struct cut hdr_cuts[] = {
		{ "16", { 16 } }, { "8+8", { 8 } }, { "15+1", { 15, 1 } }, { "1s", { 1 } },
		{ "3+13", { 3, 13 } },
	};
	static const struct cut data_cuts[] = {
		{ "whole", { 1 << 30 } }, { "512s", { 512 } }, { "4096s", { 4096 } },
		{ "100+rest", { 100, 1 << 30 } }, { "1+511+rest", { 1, 511, 1 << 30 } },
		{ "primes", { 7, 4099, 13, 8191 } }, { "512+4096s", { 512, 4096 } },
	};
	static const struct cut ones = { "1s", { 1 } }, s512 = { "512s", { 512 } },
				s2048 = { "2048s", { 2048 } }, whole = { "16", { 16 } };
	static const uint32_t shifts[] = { 4080, 0, 1, 4, 512 - 16, 2044 };
	static const uint32_t sizes[] = { 512, 4096, 65536, 66048 };
	unsigned int i, h, d, s, z, way, n = 0;
	struct guest g;

	guest_start(&g, device, O_RDWR, 1, RING_MAX, DEFAULT_FEATURES);
	for (i = 0; i < 5 * 7 * 6 * 4 * 16; i++) {
		h = i % 5, d = i / 5 % 7, s = i / 35 % 6, z = i / 210 % 4, way = i / 840;
		/* Not all of the product: it is a lot. */
		if (h && (s + z + way + d) % 5 != h)
			continue;
		one_layout(&g, way & 1, way & 2, &hdr_cuts[h], &data_cuts[d], sizes[z], shifts[s],
			   way & 4, way & 8);
		n++;
	}
	/* More segments than a bio has vectors; as many as may be; one-byte segments. */
	for (way = 0; way < 8; way++) {
		one_layout(&g, way & 1, way & 2, &whole, &s512, 600 * 512, 4080, way & 4, false);
		one_layout(&g, way & 1, way & 2, &whole, &s512, 1021 * 512, 496, way & 4, false);
		one_layout(&g, way & 1, way & 2, &whole, &ones, 512, 0, way & 4, false);
		one_layout(&g, way & 1, way & 2, &whole, &s2048, 900 * 2048, 2032, way & 4, true);
		n += 4;
	}
	/* Longer than one bio can be, in one segment, aligned and not. */
	for (way = 0; way < 4; way++) {
		const struct cut *one = &data_cuts[0];

		one_layout(&g, way & 1, way & 2, &whole, one, 2 << 20, 4080, false, false);
		one_layout(&g, way & 1, way & 2, &whole, one, (2 << 20) - 512, 1, false, false);
		n += 2;
	}
	printf("%u layouts\n", n);
	guest_stop(&g);
}

/* A request that spans the two regions of guest memory, which are far apart on the host. */
static void case_regions(void)
{
	static uint8_t want[65536];
	struct guest g;
	struct queue *q = &g.q[0];
	struct seg seg[4];

	guest_start(&g, device, O_RDWR, 1, 64, DEFAULT_FEATURES);
	fill(want, sizeof(want), 5);
	device_io(true, want, 0, sizeof(want));
	seg[0] = (struct seg){ header(q, 0, T_IN, 0), 16, false };
	seg[1] = (struct seg){ HIGH_GPA + HIGH_SIZE - 16384, 16384, true };
	seg[2] = (struct seg){ LOW_GPA + LOW_SIZE - 49152, 49152, true };
	seg[3] = (struct seg){ status_gpa(q, 0), 1, true };
	add_direct(q, seg, 4);
	kick(q);
	check_eq(next_used(q).len, sizeof(want) + 1);
	check_eq(*status_of(q, 0), S_OK);
	check(!memcmp(memory_at(&g, seg[1].gpa), want, 16384));
	check(!memcmp(memory_at(&g, seg[2].gpa), want + 16384, 49152));

	/* Memory that is in the table but not there: the guest is told, the ring goes on. */
	check_eq(request(q, T_IN, 0, HOLE_GPA, 4096, NULL), S_IOERR);
	check_eq(request(q, T_OUT, 0, HOLE_GPA, 4096, NULL), S_IOERR);
	check_eq(request(q, T_OUT, 0, HOLE_GPA + 1, 4096, NULL), S_IOERR);
	check_eq(request(q, T_IN, 0, HOLE_GPA + 1, 4096, NULL), S_IOERR);
	check_eq(request(q, T_GET_ID, 0, HOLE_GPA, 20, NULL), S_IOERR);
	check_eq(request(q, T_WRITE_ZEROES, 0, HOLE_GPA, 16, NULL), S_IOERR);
	/* Partly there: the first pages were pinned already. */
	seg[0].gpa = header(q, 0, T_IN, 0);
	seg[2].gpa = HOLE_GPA;
	add_direct(q, seg, 4);
	kick(q);
	check_eq(next_used(q).len, 1);
	check_eq(*status_of(q, 0), S_IOERR);
	/* The header is not there. */
	seg[0].gpa = HOLE_GPA;
	seg[1] = (struct seg){ status_gpa(q, 0), 1, true };
	*status_of(q, 0) = NO_STATUS;
	add_direct(q, seg, 2);
	kick(q);
	next_used(q);
	check_eq(*status_of(q, 0), S_IOERR);
	check_eq(request(q, T_IN, 0, data_gpa(0), 4096, NULL), S_OK);
	guest_stop(&g);
}

/* Requests that are wrong but whose chain is sound: an answer to each, and the ring goes on. */
static void case_malformed(void)
{
	struct guest g;
	struct queue *q = &g.q[0];
	uint64_t d = data_gpa(0);
#define HDR	{ 1, 16, 0 }
#define STATUS	{ 2, 1, 1 }
	struct {
		const char *what;
		uint32_t type;
		uint64_t sector;
		int status;		/* -1: there is no status byte */
		uint32_t used_len;
		struct seg seg[5];	/* gpa 1 stands for the header, 2 for the status */
	} t[] = {
		{ "no status", 0, 0, -1, 0, { HDR } },
		{ "no status, OUT with data", 1, 0, -1, 0, { HDR, { d, 4096, 0 } } },
		{ "no header", 0, 0, 1, 1, { STATUS } },
		{ "short header", 0, 0, 1, 1, { { 1, 15, 0 }, { d, 512, 1 }, STATUS } },
		{ "header of one byte", 0, 0, 1, 1, { { 1, 1, 0 }, STATUS } },
		{ "IN not of whole sectors", 0, 0, 1, 1, { HDR, { d, 511, 1 }, STATUS } },
		{ "IN of a byte too much", 0, 0, 1, 1, { HDR, { d, 513, 1 }, STATUS } },
		{ "OUT not of whole sectors", 1, 0, 1, 1, { HDR, { d, 100, 0 }, STATUS } },
		{ "IN at the end", 0, capacity, 1, 1, { HDR, { d, 512, 1 }, STATUS } },
		{ "IN across the end", 0, capacity - 1, 1, 1, { HDR, { d, 1024, 1 }, STATUS } },
		{ "OUT across the end", 1, capacity - 7, 1, 1, { HDR, { d, 4096, 0 }, STATUS } },
		{ "IN far behind", 0, 1ull << 55, 1, 1, { HDR, { d, 512, 1 }, STATUS } },
		{ "overflow in bytes", 0, 1ull << 55 | 8, 1, 1, { HDR, { d, 512, 1 }, STATUS } },
		{ "last sector number", 1, ~0ull, 1, 1, { HDR, { d, 512, 0 }, STATUS } },
		{ "sum that wraps", 1, ~0ull - 6, 1, 1, { HDR, { d, 4096, 0 }, STATUS } },
		{ "IN with data to read", 0, 0, 1, 1, { HDR, { d, 512, 0 }, STATUS } },
		{ "IN, data both ways", 0, 0, 1, 1, { HDR, { d, 512, 0 }, { d, 512, 1 }, STATUS } },
		{ "OUT with data to write", 1, 0, 1, 1, { HDR, { d, 512, 1 }, STATUS } },
		{ "FLUSH with data", 4, 0, 1, 1, { HDR, { d, 512, 0 }, STATUS } },
		{ "GET_ID with data to read", 8, 0, 1, 1, { HDR, { d, 20, 0 }, STATUS } },
		{ "WRITE_ZEROES without ranges", 13, 0, 1, 1, { HDR, STATUS } },
		{ "WRITE_ZEROES with half a range", 13, 0, 1, 1, { HDR, { d, 8, 0 }, STATUS } },
		{ "WRITE_ZEROES, range to write", 13, 0, 1, 1, { HDR, { d, 16, 1 }, STATUS } },
		{ "WRITE_ZEROES with 33 ranges", 13, 0, 1, 1, { HDR, { d, 33 * 16, 0 }, STATUS } },
		{ "IN longer than the disk", 0, 0, 1, 1,
		  { HDR, { d, 1 << 25, 1 }, { d, 1 << 25, 1 }, STATUS } },
	};
	uint32_t before[1024], after[1024];
	unsigned int i, k, nr, indirect;

	guest_start(&g, device, O_RDWR, 1, 64, DEFAULT_FEATURES);
	memset(memory_at(&g, d), 0, 65536);
	device_io(false, before, 0, sizeof(before));
	for (i = 0; i < sizeof(t) / sizeof(*t); i++) {
		for (indirect = 0; indirect < 2; indirect++) {
			struct vring_used_elem e;
			struct seg seg[5];

			for (nr = 0; nr < 5 && t[i].seg[nr].len; nr++) {
				seg[nr] = t[i].seg[nr];
				if (seg[nr].gpa == 1)
					seg[nr].gpa = header(q, 0, t[i].type, t[i].sector);
				else if (seg[nr].gpa == 2)
					seg[nr].gpa = status_gpa(q, 0);
			}
			/* The last entry is beyond what the device holds. */
			if (strstr(t[i].what, "longer") && capacity * SECTOR >= 1 << 26)
				continue;
			*status_of(q, 0) = NO_STATUS;
			k = indirect ? add_indirect(q, seg, nr) : add_direct(q, seg, nr);
			kick(q);
			e = next_used(q);
			check_eq(e.id, k);
			if (e.len != t[i].used_len)
				fail("%s: used length %u", t[i].what, e.len);
			if (*status_of(q, 0) != (t[i].status < 0 ? NO_STATUS : t[i].status))
				fail("%s: status %#x", t[i].what, *status_of(q, 0));
		}
	}
	check(!event_taken(q->err));
	check_eq(request(q, T_IN, 0, d, 4096, NULL), S_OK);
	device_io(false, after, 0, sizeof(after));
	check(!memcmp(before, after, sizeof(before)));
	guest_stop(&g);
}

struct range {
	uint64_t sector;
	uint32_t sectors, flags;
};

static uint8_t ranges(struct guest *g, uint32_t type, const struct range *r, unsigned int nr)
{
	memcpy(memory_at(g, data_gpa(0)), r, nr * sizeof(*r));
	return request(&g->q[0], type, 0, data_gpa(0), nr * sizeof(*r), NULL);
}

/* Which of the first sectors are zero, one character each. */
static void expect_sectors(const char *want)
{
	static uint8_t buf[256 * SECTOR];
	unsigned int i, n = strlen(want);

	device_io(false, buf, 0, n * SECTOR);
	for (i = 0; i < n; i++)
		if (is_zero(buf + i * SECTOR, SECTOR) != (want[i] == '0'))
			fail("sector %u is %szero, expected %s", i,
			     want[i] == '0' ? "not " : "", want);
}

static void dirty_sectors(void)
{
	static uint8_t buf[1 << 20];

	fill(buf, sizeof(buf), 99);
	device_io(true, buf, 0, sizeof(buf));
}

/* The same for both, on a device whose discarded blocks read as zeroes. ARGUMENT: nodiscard. */
static void case_ranges(void)
{
	bool discards = !argument || strcmp(argument, "nodiscard");
	struct guest g;
	uint32_t type;

	guest_start(&g, device, O_RDWR, 1, 64, DEFAULT_FEATURES);
	for (type = T_DISCARD; type <= T_WRITE_ZEROES; type += 2) {
		bool discard = type == T_DISCARD;
		struct range many[VHOST_BLK_MAX_RANGES];
		struct range three[] = { { 0, 8, 0 }, { 4, 0, 0 }, { 16, 8, 0 } };
		struct range across[] = { { 0, 8, 0 }, { capacity - 4, 8, 0 } };
		unsigned int i;

		if (discard && !discards) {
			dirty_sectors();
			check_eq(ranges(&g, type, &(struct range){ 0, 8, 0 }, 1), S_UNSUPP);
			expect_sectors("11111111");
			continue;
		}
		dirty_sectors();
		check_eq(ranges(&g, type, &(struct range){ 8, 8, 0 }, 1), S_OK);
		expect_sectors("111111110000000011111111");

		dirty_sectors();
		check_eq(ranges(&g, type, three, 3), S_OK);
		expect_sectors("0000000011111111000000001111");

		/* Only empty ranges; as many ranges as may be. */
		check_eq(ranges(&g, type, &(struct range){ 0, 0, 0 }, 1), S_OK);
		dirty_sectors();
		for (i = 0; i < VHOST_BLK_MAX_RANGES; i++)
			many[i] = (struct range){ i * 16, 8, 0 };
		check_eq(ranges(&g, type, many, VHOST_BLK_MAX_RANGES), S_OK);
		expect_sectors("000000001111111100000000111111110000000011111111");

		/* One wrong range, and nothing at all is done. */
		dirty_sectors();
		check_eq(ranges(&g, type, (struct range[]){ { 0, 8, 0 }, { capacity, 8, 0 } }, 2),
			 S_IOERR);
		check_eq(ranges(&g, type, across, 2), S_IOERR);
		check_eq(ranges(&g, type, (struct range[]){ { 0, 8, 0 }, { ~0ull, 2, 0 } }, 2),
			 S_IOERR);
		check_eq(ranges(&g, type, &(struct range){ 0, ~0u, 0 }, 1), S_IOERR);
		check_eq(ranges(&g, type, (struct range[]){ { 0, 8, 0 }, { 8, 8, 2 } }, 2),
			 S_UNSUPP);
		check_eq(ranges(&g, type, &(struct range){ 0, 8, 1u << 31 }, 1), S_UNSUPP);
		expect_sectors("1111111111111111");
		/* Unmapping is a choice for WRITE_ZEROES only. */
		check_eq(ranges(&g, type, &(struct range){ 0, 8, 1 }, 1),
			 discard ? S_UNSUPP : S_OK);
		expect_sectors(discard ? "11111111" : "00000000");

		/* The whole device, more than one bio where zeroes have to be written. */
		dirty_sectors();
		check_eq(ranges(&g, type, &(struct range){ 0, capacity, 0 }, 1), S_OK);
		expect_sectors("0000000000000000000000000000000000");
		check_eq(ranges(&g, type, &(struct range){ capacity - 8, 8, 0 }, 1), S_OK);
	}
	guest_stop(&g);
}

/* A file opened for reading: nothing that changes the device is done, whatever was negotiated. */
static void case_readonly(void)
{
	struct guest g;
	struct queue *q = &g.q[0];
	uint32_t before[1024], after[1024];

	device_io(false, before, 0, sizeof(before));
	guest_start(&g, device, O_RDONLY, 1, 64, DEFAULT_FEATURES);
	memset(memory_at(&g, data_gpa(0)), 0x42, 4096);
	check_eq(request(q, T_OUT, 0, data_gpa(0), 4096, NULL), S_IOERR);
	check_eq(request(q, T_OUT, 0, data_gpa(1), 4096, NULL), S_IOERR);
	check_eq(ranges(&g, T_DISCARD, &(struct range){ 0, 8, 0 }, 1), S_IOERR);
	check_eq(ranges(&g, T_WRITE_ZEROES, &(struct range){ 0, 8, 0 }, 1), S_IOERR);
	check_eq(request(q, T_FLUSH, 0, 0, 0, NULL), S_OK);
	check_eq(request(q, T_IN, 0, data_gpa(0), 4096, NULL), S_OK);
	check(!memcmp(memory_at(&g, data_gpa(0)), before, 4096));
	device_io(false, after, 0, sizeof(after));
	check(!memcmp(before, after, sizeof(before)));
	/* The same rings on a file opened for writing. */
	set_backend(&g, device, O_RDWR);
	check_eq(request(q, T_OUT, 0, data_gpa(0), 4096, NULL), S_OK);
	guest_stop(&g);
}

/* A device with 4 KiB blocks takes nothing smaller. */
static void case_block4k(void)
{
	struct guest g;
	struct queue *q = &g.q[0];
	uint64_t d = data_gpa(0);
	static const struct cut whole = { "16", { 16 } }, s512 = { "512s", { 512 } },
				odd = { "100+3996s", { 100, 3996 } },
				all = { "whole", { 1 << 30 } };

	guest_start(&g, device, O_RDWR, 1, RING_MAX, DEFAULT_FEATURES);
	check_eq(request(q, T_IN, 0, d, 4096, NULL), S_OK);
	check_eq(request(q, T_IN, 0, d, 512, NULL), S_IOERR);
	check_eq(request(q, T_OUT, 0, d, 4096 + 512, NULL), S_IOERR);
	check_eq(request(q, T_OUT, 1, d, 4096, NULL), S_IOERR);
	check_eq(ranges(&g, T_WRITE_ZEROES, &(struct range){ 4, 8, 0 }, 1), S_IOERR);
	check_eq(ranges(&g, T_WRITE_ZEROES, &(struct range){ 8, 4, 0 }, 1), S_IOERR);
	check_eq(ranges(&g, T_WRITE_ZEROES, &(struct range){ 8, 8, 0 }, 1), S_OK);
	/* Blocks made of smaller segments, at any address. */
	one_layout(&g, true, false, &whole, &s512, 65536, 4080, false, false);
	one_layout(&g, false, false, &whole, &s512, 65536, 4080, false, false);
	one_layout(&g, true, false, &whole, &odd, 65536, 4080, false, false);
	one_layout(&g, false, false, &whole, &odd, 65536, 3, false, false);
	one_layout(&g, true, false, &whole, &all, 2 << 20, 496, false, false);
	one_layout(&g, false, false, &whole, &all, 2 << 20, 496, false, false);
	guest_stop(&g);
}

/* A device that fails: the status says so and the used entry comes. ARGUMENT: nothing works. */
static void case_errors(void)
{
	struct guest g;
	struct queue *q = &g.q[0];
	uint32_t len;
	int i;

	guest_start(&g, device, O_RDWR, 1, 64, DEFAULT_FEATURES);
	for (i = 0; i < 20; i++) {
		check_eq(request(q, T_IN, 0, data_gpa(i), 4096, &len), S_IOERR);
		check_eq(len, 1);
		check_eq(request(q, T_OUT, 0, data_gpa(i), 4096, &len), S_IOERR);
		check_eq(len, 1);
		/* Several bios, all of which fail. */
		check_eq(request(q, T_IN, 0, data_gpa(4096), 4 << 20, &len), S_IOERR);
		check_eq(ranges(&g, T_WRITE_ZEROES, &(struct range){ 0, 8, 0 }, 1),
			 S_IOERR);
	}
	check_quiet(q, 10);
	guest_stop(&g);
}

/* EVENT_IDX: a call when the used index passes used_event and not before; kicks are asked for. */
static void case_event_idx(void)
{
	struct guest g;
	struct queue *q = &g.q[0];
	int i;

	guest_start(&g, device, O_RDWR, 1, 64, DEFAULT_FEATURES | 1ull << VIRTIO_RING_F_EVENT_IDX);
	set_used_event(q, 0);
	request(q, T_IN, 0, data_gpa(0), 512, NULL);
	while (event_taken(q->call))
		;
	set_used_event(q, 9);	/* the tenth entry */
	for (i = 1; i < 20; i++) {
		add_request(q, 0, T_IN, 0, data_gpa(0), 512);
		kick(q);
		q->used_seen++;
		while (used_idx(q) != q->used_seen)
			usleep(100);
		usleep(10000);
		check_eq(event_taken(q->call), i == 9);
		/* Idle, the device wants to hear of the next request. */
		check_eq(avail_event(q), q->avail_idx);
	}
	guest_stop(&g);

	/* Without it, flags turn calls off, and kicks while the device works. */
	guest_start(&g, device, O_RDWR, 1, 64, DEFAULT_FEATURES);
	q->ring.avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
	add_request(q, 0, T_IN, 0, data_gpa(0), 512);
	kick(q);
	while (used_idx(q) != 1)
		usleep(100);
	usleep(10000);
	check(!event_taken(q->call));
	check_eq(q->ring.used->flags, 0);
	guest_stop(&g);
}

static void measure_device(const char *path)
{
	uint64_t bytes;
	int fd = must(open(path, O_RDONLY));

	must(ioctl(fd, BLKGETSIZE64, &bytes));
	close(fd);
	capacity = bytes / SECTOR;
}

static const struct ring_case cases[] = {
	{ "basic", case_basic }, { "depth", case_depth }, { "layouts", case_layouts },
	{ "regions", case_regions }, { "malformed", case_malformed }, { "ranges", case_ranges },
	{ "readonly", case_readonly }, { "block4k", case_block4k }, { "errors", case_errors },
	{ "event_idx", case_event_idx }, LAST_CASE
};

int main(int argc, char **argv)
{
	if (argc > 2)
		measure_device(argv[2]);
	return run_case(argc, argv, cases);
}
