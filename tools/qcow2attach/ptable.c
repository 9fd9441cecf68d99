// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * ptable.c - owns reading the beginning of a guest's disk, as far as that tells the sector size
 * that its partition table counts in. The guest wrote these bytes: they are only compared, never
 * followed.
 */
#include "ptable.h"

#include <stdbool.h>
#include <string.h>

#define MBR_ENTRIES 4
#define MBR_TABLE 446
#define MBR_ENTRY 16
#define TYPE_PROTECTIVE 0xee

/* The alignment that programs give partitions, in bytes. */
#define ALIGNMENT (1u << 20)

/* A partition of an MBR, in sectors of unknown size. */
struct partition {
	uint64_t start;
	uint64_t count;
};

static uint32_t le32(const uint8_t *p)
{
	return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
}

/* A GPT header lies in the second sector, and says so. */
static bool gpt_at(const uint8_t *begin, size_t len, size_t at)
{
	static const uint8_t second[8] = { 1 };
	uint32_t bytes;

	if (len < at + 92 || memcmp(begin + at, "EFI PART", 8))
		return false;
	bytes = le32(begin + at + 12);
	return bytes >= 92 && bytes <= 512 && !memcmp(begin + at + 24, second, 8);
}

/*
 * The partitions of an MBR; 0 when there are none, or this is no MBR but, for instance, the boot
 * sector of a filesystem, which ends with the same two bytes.
 */
static unsigned int mbr_read(const uint8_t *begin, size_t len, struct partition *list)
{
	unsigned int n = 0;

	if (len < 512 || begin[510] != 0x55 || begin[511] != 0xaa)
		return 0;
	for (unsigned int i = 0; i < MBR_ENTRIES; i++) {
		const uint8_t *e = begin + MBR_TABLE + i * MBR_ENTRY;

		if (e[0] & 0x7f)
			return 0;
		if (!e[4])
			continue;
		if (e[4] == TYPE_PROTECTIVE || !le32(e + 8) || !le32(e + 12))
			return 0;
		list[n].start = le32(e + 8);
		list[n++].count = le32(e + 12);
	}
	return n;
}

static bool fits(const struct partition *list, unsigned int n, uint64_t disk, unsigned int sector)
{
	for (unsigned int i = 0; i < n; i++) {
		if ((list[i].start + list[i].count) * sector > disk)
			return false;
	}
	return true;
}

static bool aligned(const struct partition *list, unsigned int n, unsigned int sector)
{
	for (unsigned int i = 0; i < n; i++) {
		if (list[i].start * sector % ALIGNMENT)
			return false;
	}
	return true;
}

unsigned int ptable_sector_size(const uint8_t *begin, size_t len, uint64_t disk,
				unsigned int sector)
{
	bool small = gpt_at(begin, len, 512), large = gpt_at(begin, len, 4096);
	unsigned int other = sector == 512 ? 4096 : 512, n;
	struct partition list[MBR_ENTRIES];

	/* One of the headers may be left over from an earlier table. */
	if (small || large)
		return small && large ? 0 : small ? 512 : 4096;
	n = mbr_read(begin, len, list);
	if (!n || !fits(list, n, disk, other))
		return 0;
	if (!fits(list, n, disk, sector))
		return other;
	/* A table that fits both ways is judged by where its partitions begin, if at all. */
	if (aligned(list, n, other) && !aligned(list, n, sector))
		return other;
	return 0;
}
