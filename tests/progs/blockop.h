/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a test program can ask of a block device, by name, and how the requests
 * that carry no data are made.  Owns no state and takes no lock.
 */
#ifndef TESTS_BLOCKOP_H
#define TESTS_BLOCKOP_H

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum op_type {
	OP_READ, OP_WRITE, OP_WRITE_FUA, OP_DISCARD, OP_ZEROOUT, OP_PUNCH, OP_ZERO_RANGE,
	OP_FLUSH, OP_TYPES
};

static const char *const op_name[OP_TYPES] = {
	"read", "write", "write-fua", "discard", "zeroout", "punch-hole", "zero-range", "flush"
};

/* One request that carries no data, of @bytes from @at; 0 or -1 and errno. */
static inline int blockop_submit(int fd, enum op_type type, uint64_t at, uint64_t bytes)
{
	uint64_t range[2] = { at, bytes };
	int ret;

	switch (type) {
	case OP_DISCARD:
		return ioctl(fd, BLKDISCARD, range);
	case OP_ZEROOUT:
		return ioctl(fd, BLKZEROOUT, range);
	case OP_PUNCH:
		ret = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, bytes);
		/* DM offers none where the storage has no write-zeroes */
		return ret && errno == EOPNOTSUPP ? ioctl(fd, BLKZEROOUT, range) : ret;
	case OP_ZERO_RANGE:
		return fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, at, bytes);
	case OP_FLUSH:
		return fsync(fd);
	default:
		errno = EINVAL;
		return -1;
	}
}

#endif
