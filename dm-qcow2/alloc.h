/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * alloc.h - host clusters: refcounts and free space.
 */
#ifndef DM_QCOW2_ALLOC_H
#define DM_QCOW2_ALLOC_H

#include "image.h"

struct freed_extent;

#define ALLOC_SPARES	257	/* one for each operation of the writer, and one for a table */

/**
 * struct qcow2_alloc - the allocator of a writable image
 *
 * All of it is under image.alloc_lock; status reads @nr_used and @end without, for show.
 */
struct qcow2_alloc {
	u64 run_next;		/* clusters reserved ahead, their refcounts already 1: */
	u64 run_end;		/* [run_next, run_end) */
	bool run_zeroed;	/* and they read as zeroes */
	u64 *spare;		/* more clusters with refcount 1 that nothing uses */
	unsigned int nr_spare;
	u64 cursor;		/* where to look for free clusters next */
	unsigned long full_until;	/* jiffies; 0 but after a long round in vain */
	u64 end;		/* the first cluster after the last one in use */
	u64 nr_used;		/* clusters whose refcount is not 0 */
	u16 *used;		/* the same, for each 4 KiB slice of refcounts */
	u64 nr_slices;		/* length of @used */
	bool passdown;		/* give freed clusters back to the host */
};

int qcow2_alloc_init(struct qcow2_image *img, const bool *abandoned, char **error);
void qcow2_alloc_exit(struct qcow2_image *img);

void qcow2_alloc_set_passdown(struct qcow2_image *img, bool passdown);
int qcow2_alloc_cluster(struct qcow2_image *img, u64 *host, bool *zeroed);
void qcow2_alloc_put_back(struct qcow2_image *img, u64 host);
int qcow2_alloc_return_run(struct qcow2_image *img);
int qcow2_alloc_reclaim(struct qcow2_image *img, struct freed_extent *ext);

#endif /* DM_QCOW2_ALLOC_H */
