/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * map.h - the first try of a bio, and starting over; see map.c.
 */
#ifndef DM_QCOW2_MAP_H
#define DM_QCOW2_MAP_H

#include "device.h"

/**
 * qcow2_map_bio - the target's map function
 * @dev: the device
 * @bio: the bio, its sector relative to the device
 *
 * Return: one of DM_MAPIO_*.
 */
int qcow2_map_bio(struct qcow2_dev *dev, struct bio *bio);

/**
 * qcow2_resume_io - start a bio again after it has waited
 * @io: the bio; a read or write fits in one cluster of every layer
 *
 * Context: a worker.
 */
void qcow2_resume_io(struct qcow2_io *io);

/**
 * qcow2_submit_in_place - submit, to its own clusters, a write that qcow2_map_bio() has kept
 * @io: the bio, in an epoch
 * @host: byte position in the storage of the top image's data, where the whole bio is mapped
 *	contiguously
 */
void qcow2_submit_in_place(struct qcow2_io *io, u64 host);

/**
 * qcow2_retry_refused - let a write wait, after the storage had no space for it in an own cluster
 * @io: the bio, which the storage has just ended
 *
 * Any context.  The writer owns the bio afterwards.
 */
void qcow2_retry_refused(struct qcow2_io *io);

#endif /* DM_QCOW2_MAP_H */
