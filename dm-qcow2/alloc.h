/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * alloc.h - host clusters: refcounts and free space.
 */
#ifndef DM_QCOW2_ALLOC_H
#define DM_QCOW2_ALLOC_H

#include "image.h"

struct freed_extent;

/**
 * qcow2_alloc_init - learn which clusters are in use
 * @img: the image, its tables loaded; nobody else uses it yet
 * @abandoned: becomes true when the process that opens the image is killed
 * @error: set to the reason of a failure, for ti->error
 *
 * Reads all refcount blocks once.  The refcounts of an image that is to be written must cover its
 * metadata.
 *
 * Return: 0 or -errno.
 */
int qcow2_alloc_init(struct qcow2_image *img, const bool *abandoned, char **error);

/**
 * qcow2_alloc_exit - forget the allocator
 * @img: the image; the run has been given back, or the image failed
 */
void qcow2_alloc_exit(struct qcow2_image *img);

/**
 * qcow2_alloc_used - how many clusters are in use
 * @img: an image with an allocator
 *
 * Any context; for show, since no lock is taken.
 */
u64 qcow2_alloc_used(const struct qcow2_image *img);

/**
 * qcow2_alloc_end - the end of the clusters in use, in bytes
 * @img: an image with an allocator
 *
 * Any context; for show, since no lock is taken.
 */
u64 qcow2_alloc_end(const struct qcow2_image *img);

/**
 * qcow2_alloc_set_passdown - say whether freed clusters are given back to the host
 * @img: a writable image that is suspended
 * @passdown: true to give them back
 */
void qcow2_alloc_set_passdown(struct qcow2_image *img, bool passdown);

/**
 * qcow2_alloc_cluster - take a free host cluster
 * @img: a writable image
 * @host: set to its byte position
 * @zeroed: set to whether it reads as zeroes
 *
 * Its refcount is 1 in the open generation, or in an earlier one.  Sleeps.
 *
 * Return: 0; -ENOSPC when neither image nor storage has room; -ENOMEM when a retry after the next
 * commit may work; or another error.
 */
int qcow2_alloc_cluster(struct qcow2_image *img, u64 *host, bool *zeroed);

/**
 * qcow2_alloc_put_back - keep a cluster that could not be used: the next allocation gets it
 * @img: a writable image
 * @host: from qcow2_alloc_cluster(); no I/O on it is in flight, and nothing refers to it
 *
 * Each of the writer's operations holds at most one cluster, and there is room for all of them.
 * Sleeps.
 */
void qcow2_alloc_put_back(struct qcow2_image *img, u64 host);

/**
 * qcow2_alloc_return_run - give back the rest of the current run, and the clusters that were put
 * back
 * @img: the image; no allocation is going on
 *
 * Nothing has ever referred to these clusters, so no generation has to become durable first.
 *
 * Return: 0 or -errno.
 */
int qcow2_alloc_return_run(struct qcow2_image *img);

/**
 * qcow2_alloc_reclaim - drop the references that an extent lost
 * @img: the image
 * @ext: the extent; the loss is durable, and no I/O that could use the clusters is in flight
 *
 * Sleeps, also on discards.
 *
 * Return: 0 or the first error; the clusters of a failed part stay leaked.
 */
int qcow2_alloc_reclaim(struct qcow2_image *img, struct freed_extent *ext);

#endif /* DM_QCOW2_ALLOC_H */
