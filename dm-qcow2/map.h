/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * map.h - the first try of a bio, and starting over; see map.c.
 */
#ifndef DM_QCOW2_MAP_H
#define DM_QCOW2_MAP_H

#include "device.h"

int qcow2_map_bio(struct qcow2_dev *dev, struct bio *bio);
void qcow2_resume_io(struct qcow2_io *io);
void qcow2_submit_in_place(struct qcow2_io *io, u64 host);
void qcow2_retry_refused(struct qcow2_io *io);

#endif /* DM_QCOW2_MAP_H */
