/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * mapping.h - changing mappings of a writable image; see mapping.c.
 */
#ifndef DM_QCOW2_MAPPING_H
#define DM_QCOW2_MAPPING_H

#include "generation.h"

/**
 * qcow2_get_l2 - get the L2 slice that maps a guest offset, to change it
 * @img: a writable image
 * @goff: the guest offset
 *
 * Makes an L2 table if there is none.  Sleeps, but not for memory that operations or commits hold.
 *
 * Return: the slice, pinned and ready to be changed; -ENOSPC; -EDQUOT when there is a cluster for a
 * table, but the storage refused to write it; -ENOMEM when trying again after a commit or an
 * operation may work; or another error.
 */
struct slice *qcow2_get_l2(struct qcow2_image *img, u64 goff);

/**
 * qcow2_set_mapping - change the L2 entries of contiguous guest clusters
 * @img: a writable image
 * @l2: from qcow2_get_l2() for one of these clusters, and not put since; it maps them all
 * @cluster: number of the first guest cluster
 * @nr: how many
 * @entry: the new entry of the first; the data that it refers to is written
 * @step: what is added to @entry for each one that follows: the cluster size if their host clusters
 *	lie side by side, or 0
 * @freed: from qcow2_freed_alloc(): the clusters of the old entries lose a reference, and with
 *	@nr > 1 they lie side by side; set to NULL if it was used.  NULL: the new entries keep
 *	the host clusters
 *
 * While there is a view, the clusters are prepared (qcow2_view_prepare()).  The view keeps the old
 * entries that it needs, with their clusters.
 *
 * All entries change in one section of meta_lock, for which this sleeps: a commit has all of them
 * or none.
 */
void qcow2_set_mapping(struct qcow2_image *img, struct slice *l2, u64 cluster, u32 nr, u64 entry,
		       u32 step, struct freed_extent **freed);

/**
 * qcow2_free_reference - record that the host clusters of an L2 entry lost its reference
 * @img: a writable image; the caller holds meta_lock
 * @freed: from qcow2_freed_alloc(); set to NULL if it was used
 * @entry: the entry, which is in no table any more, and in no view's map
 */
void qcow2_free_reference(struct qcow2_image *img, struct freed_extent **freed, u64 entry);

#endif /* DM_QCOW2_MAPPING_H */
