/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * extents.h - the extents of an attached disk, as the kernel tells them.
 */
#ifndef QCOW2ATTACH_EXTENTS_H
#define QCOW2ATTACH_EXTENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "dm.h"

enum extent_kind { DATA, ZERO, COMPRESSED, UNALLOCATED };

/**
 * struct disk_extent - a range of a disk.
 * @start: where it begins, bytes.
 * @length: bytes; those of an array of extents follow one another.
 * @kind: what is there; all but data and compressed data reads as zeroes.
 * @depth: the layer that decides, 0 for the top.
 * @has_offset: the range has one place in that layer's file,
 * @offset: which is there.
 */
struct disk_extent {
	uint64_t start, length;
	enum extent_kind kind;
	unsigned int depth;
	bool has_offset;
	uint64_t offset;
};

/**
 * extents_each() - go through the extents of a disk, from its start to its end.
 * @dev: the device, as dmdev_find() found it.
 * @each: called for each one. It returns 0 to go on, 1 for enough, or -1 with a cause.
 * @arg: handed to @each.
 *
 * The kernel answers in pages; extents that go on from one page to the next are put together.
 *
 * Return: 0, or -1 with a cause, also when another table was loaded meanwhile.
 */
int extents_each(const struct dm_device *dev, int (*each)(const struct disk_extent *e, void *arg),
		 void *arg);

#endif
