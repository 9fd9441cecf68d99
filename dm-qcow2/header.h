/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * header.h - the header of an image: read and judged once, and changed by its writer; see header.c.
 */
#ifndef DM_QCOW2_HEADER_H
#define DM_QCOW2_HEADER_H

#include "image.h"

/**
 * qcow2_header_read - read and judge the header
 * @img: the image, its storage opened; geometry and backing fields are filled in
 * @write: the image is to be written
 * @error: set to the reason when it is refused, for ti->error
 *
 * Return: 0 or -errno.
 */
int qcow2_header_read(struct qcow2_image *img, bool write, char **error);

/**
 * qcow2_header_prepare_write - make the header honest before the first write
 * @img: the image
 *
 * Clears the autoclear bits: we know none of the features well enough to keep them ("Header",
 * autoclear_features).  Bits that stand for something that we would have to maintain have been
 * refused by qcow2_header_read().
 *
 * Return: 0 or -errno.
 */
int qcow2_header_prepare_write(struct qcow2_image *img);

/**
 * qcow2_header_set_corrupt - record on disk that the image needs repair
 * @img: a writable image; version 2 has nowhere to record it
 *
 * Return: 0 or -errno.
 */
int qcow2_header_set_corrupt(struct qcow2_image *img);

/**
 * qcow2_header_set_reftable - switch to a refcount table that has been written elsewhere
 * @img: the image
 * @pos: where, in bytes
 * @clusters: its length
 *
 * Both fields lie in one sector.  Durable on return.
 *
 * Return: 0 or -errno.
 */
int qcow2_header_set_reftable(struct qcow2_image *img, u64 pos, u32 clusters);

/**
 * qcow2_header_free - forget the header
 * @img: the image
 */
void qcow2_header_free(struct qcow2_image *img);

#endif /* DM_QCOW2_HEADER_H */
