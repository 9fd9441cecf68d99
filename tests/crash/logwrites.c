// SPDX-License-Identifier: GPL-2.0-or-later
/* Reads the log of a dm-log-writes device; see logwrites.h. */
#include "logwrites.h"

#include <endian.h>

#include "files.h"

#define SUPER_MAGIC	0x6a736677736872ULL
#define SUPER_VERSION	1

struct super {
	uint64_t magic;
	uint64_t version;
	uint64_t nr_entries;
	uint32_t sector_size;
} __attribute__((packed));

struct entry {
	uint64_t sector;
	uint64_t nr_sectors;
	uint64_t flags;
	uint64_t data_len;
} __attribute__((packed));

void log_load(struct log *log, const char *path)
{
	int fd = open(path, O_RDONLY);
	off_t bytes = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
	uint64_t at, unit, i;
	const uint8_t *map;
	struct super super;

	if (bytes < 0)
		bad(path, strerror(errno));
	if ((size_t)bytes < 4096)
		bad(path, "too short for a log");
	map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		bad(path, strerror(errno));
	close(fd);
	memcpy(&super, map, sizeof(super));
	if (le64toh(super.magic) != SUPER_MAGIC || le64toh(super.version) != SUPER_VERSION)
		bad(path, "not a log of dm-log-writes");
	unit = le32toh(super.sector_size);
	log->nr = le64toh(super.nr_entries);
	log->entries = calloc(log->nr, sizeof(*log->entries));
	if (!log->entries || unit < 512 || unit % 512)
		bad(path, "bad superblock");
	for (i = 0, at = unit; i < log->nr; i++, at += unit) {
		struct log_entry *to = &log->entries[i];
		struct entry from;
		uint64_t data;

		if (at + unit > (uint64_t)bytes)
			bad(path, "ends inside the log");
		memcpy(&from, map + at, sizeof(from));
		to->first = le64toh(from.sector) * (unit / 512);
		to->sectors = le64toh(from.nr_sectors) * (unit / 512);
		to->flags = le64toh(from.flags);
		if (to->flags & LOG_MARK)
			to->mark = (const char *)map + at + sizeof(from);
		if (to->flags & LOG_DISCARD || !to->sectors)
			continue;
		data = to->sectors * 512;
		if (data > (uint64_t)bytes - at - unit)
			bad(path, "ends inside the data of a write");
		to->data = map + at + unit;
		at += data;
	}
}
