/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * discard.h - the writer's job for DISCARD and WRITE_ZEROES; see discard.c.
 */
#ifndef DM_QCOW2_DISCARD_H
#define DM_QCOW2_DISCARD_H

#include "writer.h"

/**
 * qcow2_process_discard - go on with a DISCARD
 * @w: the writer
 * @io: the bio
 */
void qcow2_process_discard(struct qcow2_writer *w, struct qcow2_io *io);

/**
 * qcow2_process_write_zeroes - go on with a WRITE_ZEROES
 * @w: the writer
 * @io: the bio
 */
void qcow2_process_write_zeroes(struct qcow2_writer *w, struct qcow2_io *io);

#endif /* DM_QCOW2_DISCARD_H */
