/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * decompress.h - reading compressed clusters; see decompress.c.
 */
#ifndef DM_QCOW2_DECOMPRESS_H
#define DM_QCOW2_DECOMPRESS_H

#include "lookup.h"

int qcow2_decompress_read(const struct extent *ext, u32 skip, void *buf);
void qcow2_decompress_io(struct qcow2_io *io, const struct extent *ext);
void qcow2_decompress_exit(struct qcow2_image *img);

#endif /* DM_QCOW2_DECOMPRESS_H */
