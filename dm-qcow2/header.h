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
 * @error: set to the reason when the image is refused, for ti->error
 *
 * Return: 0 or -errno.
 */
int qcow2_header_read(struct qcow2_image *img, bool write, char **error);

/**
 * qcow2_header_prepare_write - clear the autoclear bits before the first write
 * @img: the image
 *
 * We know none of these features well enough to keep their bits ("Header", autoclear_features).
 * qcow2_header_read() has refused bits whose features we would have to maintain.
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
 * @pos: its byte position
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
