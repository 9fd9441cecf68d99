/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * probe.h - reading a header, or a partition table, in a process that can do nothing else.
 */
#ifndef QCOW2ATTACH_PROBE_H
#define QCOW2ATTACH_PROBE_H

#include "header.h"

/**
 * probe_header() - read the header of an open image.
 * @fd: the image.
 * @header: the result.
 *
 * A child process that has no privileges, no files but this one and no system calls but reading it
 * does the work; its answer is not trusted either.
 *
 * Return: 0, or -1 with a cause.
 */
int probe_header(int fd, struct image_header *header);

/**
 * probe_sector_size() - for which sector size a disk's partition table was plainly made.
 * @fd: the disk, open for direct reading, so that no page of it stays in the host's memory.
 * @bytes: its size.
 * @sector: its sector size.
 *
 * A child process does this, too. A child that does not answer within some seconds is not waited
 * for.
 *
 * Return: 512, 4096, or 0 where that is not known.
 */
unsigned int probe_sector_size(int fd, uint64_t bytes, unsigned int sector);

#endif
