// SPDX-License-Identifier: GPL-2.0-or-later
/* Reader and checker of a QCOW2 image in memory; see qcow2.h.  Owns no state. */
#include "qcow2.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC			0x514649fbU
#define OFFSET_MASK		0x00fffffffffffe00ULL
#define FLAG_COPIED		(1ULL << 63)
#define FLAG_COMPRESSED		(1ULL << 62)
#define FLAG_ZERO		1ULL
#define L1_RESERVED		0x7f000000000001ffULL
#define L2_RESERVED		0x3f000000000001feULL
#define KNOWN_INCOMPATIBLE	3ULL	/* dirty, corrupt */

static uint32_t be32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3];
}

static uint64_t be64(const uint8_t *p)
{
	return (uint64_t)be32(p) << 32 | be32(p + 4);
}

const char *qcow2_open(struct qcow2 *image, const void *data, uint64_t size)
{
	const uint8_t *h = data;
	uint64_t per_l2;

	if (size < 104 || be32(h) != MAGIC)
		return "no qcow2 header";
	memset(image, 0, sizeof(*image));
	image->data = data;
	image->size = size;
	image->version = be32(h + 4);
	image->cluster_bits = be32(h + 20);
	image->disk_size = be64(h + 24);
	image->l1_entries = be32(h + 36);
	image->l1_offset = be64(h + 40);
	image->refcount_offset = be64(h + 48);
	image->backing = be64(h + 8) != 0;
	image->refcount_order = 4;
	if (image->version != 2 && image->version != 3)
		return "bad version";
	if (image->cluster_bits < 9 || image->cluster_bits > 21)
		return "bad cluster_bits";
	if (be32(h + 32))
		return "encrypted";
	if (be32(h + 60))
		return "has internal snapshots";
	if (image->version == 3) {
		image->incompatible = be64(h + 72);
		image->refcount_order = be32(h + 96);
		if (image->incompatible & ~KNOWN_INCOMPATIBLE)
			return "unknown incompatible feature";
		if (image->refcount_order > 6)
			return "bad refcount_order";
	}
	image->cluster_size = 1ULL << image->cluster_bits;
	image->refcount_bytes = (uint64_t)be32(h + 56) << image->cluster_bits;
	image->guest_clusters = (image->disk_size + image->cluster_size - 1) >>
				image->cluster_bits;
	per_l2 = image->cluster_size / 8;
	if (image->l1_offset % image->cluster_size || image->l1_offset > size ||
	    image->l1_entries * 8 > size - image->l1_offset)
		return "L1 table outside the image";
	if (image->l1_entries < (image->guest_clusters + per_l2 - 1) / per_l2)
		return "L1 table too small";
	if (image->refcount_offset % image->cluster_size || image->refcount_offset > size ||
	    image->refcount_bytes > size - image->refcount_offset || !image->refcount_bytes)
		return "refcount table outside the image";
	return NULL;
}

/* A whole cluster at @offset, inside the image and aligned? */
static bool cluster_fits(const struct qcow2 *image, uint64_t offset)
{
	return offset && offset % image->cluster_size == 0 && offset < image->size &&
	       image->size - offset >= image->cluster_size;
}

enum qcow2_mapping qcow2_map(const struct qcow2 *image, uint64_t cluster, uint64_t *host)
{
	uint64_t per_l2 = image->cluster_size / 8, l1, l2;

	l1 = be64(image->data + image->l1_offset + cluster / per_l2 * 8);
	if (l1 & L1_RESERVED)
		return QCOW2_BROKEN;
	if (!(l1 & OFFSET_MASK))
		return QCOW2_BACKING;
	if (!cluster_fits(image, l1 & OFFSET_MASK))
		return QCOW2_BROKEN;
	l2 = be64(image->data + (l1 & OFFSET_MASK) + cluster % per_l2 * 8);
	if (l2 & (FLAG_COMPRESSED | L2_RESERVED))
		return QCOW2_BROKEN;
	if (l2 & FLAG_ZERO)
		return image->version == 3 ? QCOW2_ZEROES : QCOW2_BROKEN;
	if (!(l2 & OFFSET_MASK))
		return l2 ? QCOW2_BROKEN : QCOW2_BACKING;
	*host = l2 & OFFSET_MASK;
	return *host % image->cluster_size || *host >= image->size ? QCOW2_BROKEN : QCOW2_DATA;
}

static void __attribute__((format(printf, 2, 3)))
complain(struct qcow2_verdict *verdict, const char *fmt, ...)
{
	size_t used = strlen(verdict->text);
	va_list args;

	verdict->corruptions++;
	va_start(args, fmt);
	vsnprintf(verdict->text + used, sizeof(verdict->text) - used, fmt, args);
	va_end(args);
}

/* The references found, one count per host cluster. */
struct tally {
	uint32_t *count;
	uint64_t clusters;
};

static void tally_add(const struct qcow2 *image, struct tally *tally, uint64_t offset,
		      uint64_t bytes, const char *what, struct qcow2_verdict *verdict)
{
	uint64_t at;

	if (offset % image->cluster_size) {
		complain(verdict, "%s at %#llx is misaligned; ", what, (unsigned long long)offset);
		return;
	}
	for (at = offset; at < offset + bytes; at += image->cluster_size) {
		if (at >= image->size) {
			complain(verdict, "%s at %#llx is past the end; ", what,
				 (unsigned long long)at);
			return;
		}
		tally->count[at >> image->cluster_bits]++;
	}
}

static uint64_t refcount(const struct qcow2 *image, uint64_t cluster)
{
	unsigned int order = image->refcount_order, bits = 1U << order;
	uint64_t per_block = image->cluster_size * 8 >> order, block, value = 0;
	const uint8_t *p;
	unsigned int i;

	if (cluster / per_block >= image->refcount_bytes / 8)
		return 0;
	block = be64(image->data + image->refcount_offset + cluster / per_block * 8) & ~511ULL;
	if (!cluster_fits(image, block))
		return 0;
	p = image->data + block;
	cluster %= per_block;
	if (bits < 8)
		return p[cluster * bits / 8] >> (cluster * bits % 8) & ((1U << bits) - 1);
	for (i = 0; i < bits / 8; i++)
		value = value << 8 | p[cluster * (bits / 8) + i];
	return value;
}

static void check_copied(const struct qcow2 *image, uint64_t entry, uint64_t offset,
			 const char *what, uint64_t index, struct qcow2_verdict *verdict)
{
	uint64_t count;

	if (offset >= image->size)
		return;
	count = refcount(image, offset >> image->cluster_bits);
	if ((count == 1) != !!(entry & FLAG_COPIED))
		complain(verdict, "%s %llu -> %#llx: COPIED %d, refcount %llu; ", what,
			 (unsigned long long)index, (unsigned long long)offset,
			 !!(entry & FLAG_COPIED), (unsigned long long)count);
}

static void walk_l2(const struct qcow2 *image, struct tally *tally, uint64_t l1_index,
		    uint64_t table, struct qcow2_verdict *verdict)
{
	uint64_t per_l2 = image->cluster_size / 8, i;

	for (i = 0; i < per_l2; i++) {
		uint64_t entry = be64(image->data + table + i * 8), host = entry & OFFSET_MASK;
		uint64_t index = l1_index * per_l2 + i;

		if (!entry)
			continue;
		if (entry & (FLAG_COMPRESSED | L2_RESERVED) ||
		    (image->version == 2 && entry & FLAG_ZERO)) {
			complain(verdict, "L2 entry %llu is %#llx; ", (unsigned long long)index,
				 (unsigned long long)entry);
			continue;
		}
		if (!host) {
			if (entry & FLAG_COPIED)
				complain(verdict, "L2 entry %llu is %#llx; ",
					 (unsigned long long)index, (unsigned long long)entry);
			continue;
		}
		tally_add(image, tally, host, image->cluster_size, "data", verdict);
		check_copied(image, entry, host, "guest cluster", index, verdict);
	}
}

static void walk_refcounts(const struct qcow2 *image, struct tally *tally,
			   struct qcow2_verdict *verdict)
{
	uint64_t i, block;

	for (i = 0; i < image->refcount_bytes / 8; i++) {
		block = be64(image->data + image->refcount_offset + i * 8);
		if (!block)
			continue;
		if (block & 511 || !cluster_fits(image, block)) {
			complain(verdict, "refcount table entry %llu is %#llx; ",
				 (unsigned long long)i, (unsigned long long)block);
			continue;
		}
		tally_add(image, tally, block, image->cluster_size, "refcount block", verdict);
		if (refcount(image, block >> image->cluster_bits) != 1)
			complain(verdict, "refcount block %llu has refcount %llu; ",
				 (unsigned long long)i,
				 (unsigned long long)refcount(image, block >> image->cluster_bits));
	}
}

void qcow2_check(const struct qcow2 *image, struct qcow2_verdict *verdict)
{
	struct tally tally = { };
	uint64_t i;

	memset(verdict, 0, sizeof(*verdict));
	tally.clusters = (image->size + image->cluster_size - 1) >> image->cluster_bits;
	tally.count = calloc(tally.clusters, sizeof(*tally.count));
	if (!tally.count) {
		complain(verdict, "no memory");
		return;
	}
	tally.count[0]++;
	tally_add(image, &tally, image->l1_offset, image->l1_entries * 8, "L1 table", verdict);
	tally_add(image, &tally, image->refcount_offset, image->refcount_bytes, "refcount table",
		  verdict);
	walk_refcounts(image, &tally, verdict);
	for (i = 0; i < image->l1_entries; i++) {
		uint64_t entry = be64(image->data + image->l1_offset + i * 8);
		uint64_t table = entry & OFFSET_MASK;

		if (!entry)
			continue;
		if (entry & L1_RESERVED || !cluster_fits(image, table)) {
			complain(verdict, "L1 entry %llu is %#llx; ", (unsigned long long)i,
				 (unsigned long long)entry);
			continue;
		}
		tally_add(image, &tally, table, image->cluster_size, "L2 table", verdict);
		check_copied(image, entry, table, "L1 entry", i, verdict);
		walk_l2(image, &tally, i, table, verdict);
	}
	for (i = 0; i < tally.clusters; i++) {
		uint64_t count = refcount(image, i);

		if (count < tally.count[i])
			complain(verdict, "host cluster %#llx: refcount %llu, %u references; ",
				 (unsigned long long)i << image->cluster_bits,
				 (unsigned long long)count, tally.count[i]);
		else if (count > tally.count[i])
			verdict->leaks++;
	}
	free(tally.count);
}
