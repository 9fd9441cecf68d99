/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * decompress.h - reading compressed clusters; see decompress.c.
 */
#ifndef DM_QCOW2_DECOMPRESS_H
#define DM_QCOW2_DECOMPRESS_H

#include "lookup.h"

/**
 * qcow2_decompress_read - read part of a compressed cluster into memory
 * @ext: EXTENT_COMPRESSED; its length is the number of bytes to read
 * @skip: offset in the cluster
 * @buf: destination
 *
 * Sleeps.  Return: 0 or -errno.
 */
int qcow2_decompress_read(const struct extent *ext, u32 skip, void *buf);

/**
 * qcow2_decompress_io - read a compressed cluster for a bio
 * @io: the bio, inside one cluster
 * @ext: where the cluster is
 *
 * Does not sleep; a worker ends the bio.  The cluster may have another mapping by then: the data at
 * the old one stays as long as the bio is in its epoch.
 */
void qcow2_decompress_io(struct qcow2_io *io, const struct extent *ext);

/**
 * qcow2_decompress_exit - free the decompressed clusters that an image keeps
 * @img: the image, quiet
 */
void qcow2_decompress_exit(struct qcow2_image *img);

#endif /* DM_QCOW2_DECOMPRESS_H */
