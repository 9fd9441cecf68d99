/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An independent, small reader and checker of a QCOW2 image held in memory.  It
 * shares nothing with the module it judges.  No locks: one thread.
 *
 * Not read, and refused by qcow2_open(): compressed clusters, extended L2,
 * external data files, encryption, internal snapshots.
 */
#ifndef CRASH_QCOW2_H
#define CRASH_QCOW2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct qcow2 {
	const uint8_t *data;		/* the image */
	uint64_t size;			/* its length in bytes */
	unsigned int version;
	unsigned int cluster_bits;
	unsigned int refcount_order;
	uint64_t cluster_size;
	uint64_t disk_size;		/* virtual, bytes */
	uint64_t guest_clusters;
	uint64_t l1_offset, l1_entries;
	uint64_t refcount_offset, refcount_bytes;	/* the refcount table */
	uint64_t incompatible;
	bool backing;
};

enum qcow2_mapping {
	QCOW2_BACKING,			/* unallocated: backing, or zeroes without one */
	QCOW2_ZEROES,
	QCOW2_DATA,			/* qcow2_map() gives the host offset */
	QCOW2_BROKEN,			/* an entry that cannot be read through */
};

/* What qcow2_check() found; the first complaints are kept as text. */
struct qcow2_verdict {
	unsigned int corruptions;
	unsigned int leaks;
	char text[1024];
};

/**
 * qcow2_open() - parse the header of an image in memory
 * Returns NULL, or why it cannot be read.
 */
const char *qcow2_open(struct qcow2 *image, const void *data, uint64_t size);

/**
 * qcow2_map() - find the host offset of guest cluster @cluster
 */
enum qcow2_mapping qcow2_map(const struct qcow2 *image, uint64_t cluster, uint64_t *host);

/**
 * qcow2_check() - count every reference and compare with the refcounts
 *
 * As `qemu-img check` judges: more references than the refcount, a COPIED bit that
 * disagrees with a refcount of one, or an entry that points outside the image is
 * corruption; a refcount without a reference is a leak.
 */
void qcow2_check(const struct qcow2 *image, struct qcow2_verdict *verdict);

#endif
