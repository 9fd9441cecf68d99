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
 * qcow2_set_mapping - change the L2 entry of a guest cluster
 * @img: a writable image
 * @l2: from qcow2_get_l2() for that cluster, and not put since
 * @cluster: the guest cluster's number
 * @entry: the new entry; what it refers to is written
 * @freed: from qcow2_freed_alloc(): what the old entry referred to loses a reference; set to NULL
 *	if it was used.  NULL: the new entry keeps the host cluster
 *
 * Sleeps for meta_lock.
 */
void qcow2_set_mapping(struct qcow2_image *img, struct slice *l2, u64 cluster, u64 entry,
		       struct freed_extent **freed);

#endif /* DM_QCOW2_MAPPING_H */
