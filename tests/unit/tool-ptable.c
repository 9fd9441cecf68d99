// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * tool-ptable.c - for which sector size a partition table was made, as far as that can
 * be told; and that no bytes confuse who looks.
 */
#include <string.h>

#include "ptable.h"
#include "tool-test.h"

#define DISK (64ull << 20)

static uint8_t begin[PTABLE_BYTES];

static void put32(size_t at, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		begin[at + i] = value >> (8 * i);
}

static void put_partition(unsigned int i, uint8_t type, uint32_t start, uint32_t count)
{
	begin[446 + 16 * i + 4] = type;
	put32(446 + 16 * i + 8, start);
	put32(446 + 16 * i + 12, count);
	begin[510] = 0x55;
	begin[511] = 0xaa;
}

static void put_gpt(size_t at)
{
	put_partition(0, 0xee, 1, 0xffffffff);
	memcpy(begin + at, "EFI PART", 8);
	put32(at + 12, 92);
	put32(at + 24, 1);
}

static void expect(unsigned int sector, unsigned int made_for)
{
	unsigned int got = ptable_sector_size(begin, sizeof(begin), DISK, sector);

	CHECK(got == made_for, "%u on a disk of %u", got, sector);
	memset(begin, 0, sizeof(begin));
}

static void test_gpt(void)
{
	put_gpt(512);
	expect(512, 512);
	put_gpt(512);
	expect(4096, 512);
	put_gpt(4096);
	expect(512, 4096);
	put_gpt(4096);
	expect(4096, 4096);
	/* Both: one was left there. */
	put_gpt(512);
	put_gpt(4096);
	expect(512, 0);
	/* Only the words. */
	memcpy(begin + 512, "EFI PART", 8);
	expect(4096, 0);
	put_gpt(512);
	put32(512 + 24, 2);
	expect(4096, 0);
}

static void test_mbr(void)
{
	/* As fdisk makes it for all of the disk, with either size. */
	put_partition(0, 0x83, 2048, DISK / 512 - 2048);
	expect(4096, 512);
	put_partition(0, 0x83, 2048, DISK / 512 - 2048);
	expect(512, 0);
	put_partition(0, 0x83, 256, DISK / 4096 - 256);
	expect(512, 4096);
	put_partition(0, 0x83, 256, DISK / 4096 - 256);
	expect(4096, 0);
	/* It fits both ways, and begins at a MiB both ways; it fits neither way. */
	put_partition(0, 0x83, 2048, 2048);
	expect(4096, 0);
	put_partition(0, 0x83, 2048, 1u << 30);
	expect(4096, 0);
	/* One of several tells. */
	put_partition(0, 0x83, 2048, 2048);
	put_partition(2, 0x82, 65536, 65536);
	expect(4096, 512);
	/* What old programs make tells nothing for the larger size. */
	put_partition(0, 0x06, 63, 2048);
	expect(512, 0);
	/* None at all; and the boot sector of a filesystem. */
	expect(4096, 0);
	put_partition(0, 0x83, 2048, DISK / 512 - 2048);
	begin[446 + 16] = 0x41;
	expect(4096, 0);
	put_partition(0, 0x83, 2048, DISK / 512 - 2048);
	begin[511] = 0;
	expect(4096, 0);
	put_partition(0, 0x83, UINT32_MAX, UINT32_MAX);
	expect(512, 0);
}

static void test_random(void)
{
	double until = clock_seconds() + random_seconds() / 3;

	random_begin();
	while (clock_seconds() < until) {
		size_t len = random_below(sizeof(begin) + 1);
		unsigned int got;
		uint8_t *copy;

		/* A copy of that length: what lies behind it is not looked at. */
		for (int i = 0; i < 32; i++)
			begin[random_below(2) ? 440 + random_below(80) : random_below(5000)] =
				random_u64();
		if (random_below(2))
			put_gpt(random_below(2) ? 512 : 4096);
		copy = malloc(len ? len : 1);
		memcpy(copy, begin, len);
		got = ptable_sector_size(copy, len, random_u64() >> random_below(64),
					 random_below(2) ? 512 : 4096);
		CHECK(got == 0 || got == 512 || got == 4096);
		free(copy);
		memset(begin, 0, sizeof(begin));
	}
}

int main(void)
{
	test_gpt();
	test_mbr();
	test_random();
	return 0;
}
