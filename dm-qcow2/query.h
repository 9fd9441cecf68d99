/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * query.h - telling a process what a disk's extents are; see query.c.
 */
#ifndef DM_QCOW2_QUERY_H
#define DM_QCOW2_QUERY_H

#include "device.h"

/**
 * qcow2_query_map - one page of the answer to the message "map"
 * @dev: the device
 * @goff: guest offset to begin with, bytes, inside the disk
 * @result: where the text goes
 * @maxlen: bytes of memory there
 *
 * Each line is one extent: "START LENGTH KIND DEPTH", and for a cluster that has a place " HOST".
 * START and LENGTH are sectors; KIND is data, zero, compressed or unallocated; DEPTH is the number
 * of the layer that the extent is read from, 0 for the top; HOST is the byte position there.  The
 * extents follow one another without a gap, and the first begins at @goff.  A page ends where
 * @maxlen does, or after a tenth of a second: the next one begins where the last extent ends, and
 * may go on with what that was.
 *
 * A range that is written meanwhile is told as it was before or after.
 *
 * Sleeps for tables that a worker reads, and for memory that operations and commits give back; no
 * signal ends that.
 *
 * Return: 0; or an error when a table cannot be read, -EIO when an entry cannot be followed, and
 * nothing was told before.
 */
int qcow2_query_map(struct qcow2_dev *dev, u64 goff, char *result, unsigned int maxlen);

#endif /* DM_QCOW2_QUERY_H */
