/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The log of a dm-log-writes device, as the kernel's documentation describes it,
 * read from a file or device.  Owns the mapping of that file.  No locks.
 */
#ifndef CRASH_LOGWRITES_H
#define CRASH_LOGWRITES_H

#include <stdint.h>

#define LOG_FLUSH	1U
#define LOG_FUA		2U
#define LOG_DISCARD	4U
#define LOG_MARK	8U
#define LOG_METADATA	16U		/* a file system's own, not of a file in it */

struct log_entry {
	uint64_t first;			/* in 512-byte sectors */
	uint64_t sectors;
	uint32_t flags;
	const uint8_t *data;		/* of a write; NULL for a discard or an empty flush */
	const char *mark;		/* of a mark, NUL-terminated by its padding */
};

struct log {
	struct log_entry *entries;
	uint64_t nr;
};

/**
 * log_load() - read a whole log
 * Exits with a message when it cannot be read or is not such a log.
 */
void log_load(struct log *log, const char *path);

#endif
