/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * header.h - what the tool needs to know from a QCOW2 header: the size, and the backing file. The
 * kernel checks everything else.
 */
#ifndef QCOW2ATTACH_HEADER_H
#define QCOW2ATTACH_HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/**
 * struct image_header - the checked content of a header.
 * @version: 2 or 3.
 * @cluster_bits: log2 of the cluster size.
 * @size: virtual size in bytes.
 * @has_backing: the image has a backing file.
 * @backing_name: its name as written in the header.
 * @backing_format: its format as written there, empty when there is none.
 */
struct image_header {
	uint32_t version;
	uint32_t cluster_bits;
	uint64_t size;
	bool has_backing;
	char backing_name[1024];
	char backing_format[32];
};

/**
 * header_read_fn - read bytes of an image.
 * @ctx: as given to header_parse().
 * @buf: where to put them.
 * @len: how many.
 * @offset: from where.
 *
 * Return: how many were there, less than @len at the end of the image; or -1.
 */
typedef ssize_t (*header_read_fn)(void *ctx, void *buf, size_t len, uint64_t offset);

/**
 * header_parse() - read and check a header.
 * @read_at: reads from the image.
 * @ctx: passed to @read_at.
 * @header: the result.
 * @error: receives why it is refused.
 * @error_len: bytes in @error.
 *
 * Return: 0, or -1.
 */
int header_parse(header_read_fn read_at, void *ctx, struct image_header *header, char *error,
		 size_t error_len);

#endif
