/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * tables.h - the top of the table trees when an image is opened; see tables.c.
 */
#ifndef DM_QCOW2_TABLES_H
#define DM_QCOW2_TABLES_H

#include "image.h"

/**
 * qcow2_tables_load - read the L1 and refcount tables and learn where all metadata is
 * @img: the image, its header read
 * @error: set to the reason when the image is refused, for ti->error
 *
 * Return: 0 or -errno.
 */
int qcow2_tables_load(struct qcow2_image *img, char **error);

/**
 * qcow2_tables_reserve - give every table its room on the host before the first write
 * @img: a writable image
 *
 * Images are made with tables that are holes in the file.  A commit must not be the first to find
 * the host full: everything that it writes has had its room since it was allocated, or since this
 * call.  L2 tables behind the end of the disk are never written.
 *
 * Return: 0 or -errno.
 */
int qcow2_tables_reserve(struct qcow2_image *img);

#endif /* DM_QCOW2_TABLES_H */
