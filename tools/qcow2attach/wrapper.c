// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * wrapper.c - writes the wrapper of a device: header, L1 table, the L2 tables that are needed, and
 * refcounts for these.
 *
 * "External data file": the guest's clusters are in the device, each at its own guest offset, and
 * are not counted.
 */
#include <endian.h>
#include <libdevmapper.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../dm-qcow2/qcow2-format.h"
#include "extents.h"
#include "util.h"
#include "wrapper.h"

#define CLUSTER_BITS 16
#define CLUSTER (1ull << CLUSTER_BITS)
#define L2_ENTRIES (CLUSTER / 8)
#define BLOCK_REFCOUNTS (CLUSTER / 2)	/* of 16 bits, in a refcount block */

struct wrapper {
	int fd;
	uint64_t size;			/* of the disk */
	uint64_t next;			/* the first free cluster, bytes */
	uint64_t *l1;
	uint64_t nr_l1;
	uint64_t *l2;			/* the table of @at, or empty */
	uint64_t at;			/* its L1 entry; UINT64_MAX: none yet */
	uint64_t data;
};

static int put(struct wrapper *w, uint64_t at, const void *buf, size_t len)
{
	if (lseek(w->fd, at, SEEK_SET) < 0 || write_all(w->fd, buf, len))
		return cause_errno("cannot write the wrapper in memory");
	return 0;
}

static uint64_t clusters_of(uint64_t bytes)
{
	return (bytes + CLUSTER - 1) / CLUSTER;
}

/* Write the L2 table that is being filled. */
static int end_l2(struct wrapper *w)
{
	uint64_t pos = w->next;

	if (w->at == UINT64_MAX)
		return 0;
	w->next += CLUSTER;
	w->l1[w->at] = htobe64(pos | QCOW2_ENTRY_COPIED);
	return put(w, pos, w->l2, CLUSTER);
}

static int add_cluster(struct wrapper *w, uint64_t cluster)
{
	uint64_t at = cluster / L2_ENTRIES;

	if (at != w->at) {
		if (end_l2(w))
			return -1;
		memset(w->l2, 0, CLUSTER);
		w->at = at;
	}
	w->l2[cluster % L2_ENTRIES] = htobe64(cluster << CLUSTER_BITS | QCOW2_ENTRY_COPIED);
	return 0;
}

static int add_extent(const struct disk_extent *e, void *arg)
{
	struct wrapper *w = arg;

	if (e->kind != DATA && e->kind != COMPRESSED)
		return 0;
	w->data += e->length;
	for (uint64_t c = e->start / CLUSTER; c <= (e->start + e->length - 1) / CLUSTER; c++)
		if (add_cluster(w, c))
			return -1;
	return 0;
}

/* Refcounts of everything in the file, each 1; then the table of their blocks. */
static int write_refcounts(struct wrapper *w, struct qcow2_header *header)
{
	uint64_t blocks = 0, table = 0, used = w->next / CLUSTER, total, *entries;
	uint16_t *counts;
	int ret = 0;

	/* They count themselves, too. */
	do {
		total = used + blocks + table;
		blocks = (total + BLOCK_REFCOUNTS - 1) / BLOCK_REFCOUNTS;
		table = clusters_of(blocks * 8);
	} while (used + blocks + table > total);
	counts = calloc(blocks, CLUSTER);
	entries = calloc(table, CLUSTER);
	if (!counts || !entries) {
		free(counts);
		free(entries);
		return cause("no memory for the refcounts");
	}
	for (uint64_t i = 0; i < used + blocks + table; i++)
		counts[i] = htobe16(1);
	for (uint64_t i = 0; i < blocks; i++)
		entries[i] = htobe64(w->next + i * CLUSTER);
	ret = put(w, w->next, counts, blocks * CLUSTER);
	w->next += blocks * CLUSTER;
	header->refcount_table_offset = htobe64(w->next);
	header->refcount_table_clusters = htobe32(table);
	if (!ret)
		ret = put(w, w->next, entries, table * CLUSTER);
	w->next += table * CLUSTER;
	free(counts);
	free(entries);
	return ret;
}

static int write_header(struct wrapper *w, struct qcow2_header *header, const char *data_file)
{
	struct qcow2_header_ext ext = {
		.type = htobe32(QCOW2_EXT_DATA_FILE),
		.length = htobe32(strlen(data_file)),
	};

	header->magic = htobe32(QCOW2_MAGIC);
	header->version = htobe32(3);
	header->cluster_bits = htobe32(CLUSTER_BITS);
	header->size = htobe64(w->size);
	header->l1_size = htobe32(w->nr_l1);
	header->l1_table_offset = htobe64(CLUSTER);
	header->incompatible_features = htobe64(QCOW2_INCOMPAT_DATA_FILE);
	header->refcount_order = htobe32(4);
	header->header_length = htobe32(sizeof(*header));
	/* What follows the name is zeroes: its padding, and the end of the extensions. */
	if (put(w, 0, header, sizeof(*header)) || put(w, sizeof(*header), &ext, sizeof(ext)))
		return -1;
	return put(w, sizeof(*header) + sizeof(ext), data_file, strlen(data_file));
}

static int fill(struct wrapper *w, const struct dm_device *dev)
{
	char *path = xasprintf("%s/%s", dm_dir(), dev->name);
	struct qcow2_header header = { 0 };
	int ret = extents_each(dev, add_extent, w);

	if (!ret)
		ret = end_l2(w);
	if (!ret)
		ret = put(w, CLUSTER, w->l1, w->nr_l1 * 8);
	if (!ret)
		ret = write_refcounts(w, &header);
	if (!ret)
		ret = write_header(w, &header, path);
	if (!ret && ftruncate(w->fd, w->next))
		ret = cause_errno("cannot write the wrapper in memory");
	free(path);
	return ret;
}

int wrapper_make(const struct dm_device *dev, uint64_t *data)
{
	struct wrapper w = { .size = dev->sectors * 512, .at = UINT64_MAX };
	int ret;

	w.nr_l1 = (clusters_of(w.size) + L2_ENTRIES - 1) / L2_ENTRIES;
	if (w.nr_l1 * 8 > QCOW2_MAX_L1_BYTES)
		return cause("the disk is too large: QEMU's tools read at most %llu TiB so",
			     QCOW2_MAX_L1_BYTES / 8 * L2_ENTRIES * CLUSTER >> 40);
	w.next = CLUSTER + clusters_of(w.nr_l1 * 8) * CLUSTER;
	w.fd = memfd_create("qcow2attach-wrapper", 0);
	if (w.fd < 0)
		return cause_errno("cannot make a file in memory");
	w.l1 = calloc(w.nr_l1, 8);
	w.l2 = calloc(1, CLUSTER);
	ret = w.l1 && w.l2 ? fill(&w, dev) : cause("no memory for the tables");
	free(w.l1);
	free(w.l2);
	*data = w.data;
	if (!ret)
		return w.fd;
	close(w.fd);
	return -1;
}
