// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * header.c - owns reading QCOW2 headers. Every byte of them may have been written by an attacker:
 * no length or offset is used before it is bounded, and memory use does not depend on the image.
 */
#include "header.h"

#include <endian.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "../../dm-qcow2/qcow2-format.h"

/* "Bitmaps extension", and the limits that QEMU has for it. */
struct bitmaps_ext {
	__be32 nb_bitmaps;
	__be32 reserved;
	__be64 directory_size;
	__be64 directory_offset;
} __attribute__((packed));

#define MAX_BITMAPS 65535
#define MAX_BITMAP_DIRECTORY (1024ull * MAX_BITMAPS)

/* The smallest size of an entry of the snapshot table. */
#define SNAPSHOT_BYTES 40

/* What the steps of one header_parse() share. */
struct parse {
	header_read_fn read_at;
	void *ctx;
	struct image_header *out;
	char *error;
	size_t error_len;
	uint64_t backing_offset;
	uint64_t extensions;	/* where the first header extension begins */
	uint64_t autoclear;
	uint32_t crypt_method;
};

__attribute__((format(printf, 2, 3)))
static int refuse(struct parse *p, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(p->error, p->error_len, fmt, ap);
	va_end(ap);
	return -1;
}

static int read_exact(struct parse *p, void *buf, size_t len, uint64_t offset, const char *what)
{
	ssize_t n = p->read_at(p->ctx, buf, len, offset);

	if (n < 0)
		return refuse(p, "the %s cannot be read", what);
	if ((size_t)n < len)
		return refuse(p, "the image ends inside its %s", what);
	return 0;
}

/*
 * The rest of the header as QEMU judges it, even where nothing of it is used: a guest must not
 * write to an image that QEMU's tools will not open afterwards. What the kernel checks is left to
 * the kernel.
 */
static int check_fixed(struct parse *p, const struct qcow2_header *h)
{
	uint64_t cluster = 1ull << p->out->cluster_bits;
	uint64_t snapshots = be64toh(h->snapshots_offset);
	uint32_t count = be32toh(h->nb_snapshots);

	if (count > QCOW2_MAX_SNAPSHOTS)
		return refuse(p, "the header has %u snapshots, more than %u", count,
			      QCOW2_MAX_SNAPSHOTS);
	if (snapshots % cluster || snapshots > (uint64_t)INT64_MAX - SNAPSHOT_BYTES * count)
		return refuse(p, "the header has %u snapshots at offset %llu, which is invalid",
			      count, (unsigned long long)snapshots);
	if (p->out->version < 3)
		return 0;
	p->autoclear = be64toh(h->autoclear_features);
	if ((p->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW) &&
	    !(be64toh(h->incompatible_features) & QCOW2_INCOMPAT_DATA_FILE))
		return refuse(p, "the header says that an external data file is raw, but there is "
			      "none");
	return 0;
}

static int parse_fixed(struct parse *p)
{
	struct image_header *out = p->out;
	struct qcow2_header h = { 0 };
	uint32_t magic, length, name_len;
	uint64_t cluster;

	if (p->read_at(p->ctx, &h.magic, sizeof(h.magic), 0) < (ssize_t)sizeof(h.magic))
		return refuse(p, "this is not a qcow2 image: it is too short");
	memcpy(&magic, &h.magic, sizeof(magic));
	if (be32toh(magic) != QCOW2_MAGIC)
		return refuse(p, "this is not a qcow2 image");
	if (read_exact(p, &h, QCOW2_V2_HEADER_LENGTH, 0, "header"))
		return -1;
	out->version = be32toh(h.version);
	if (out->version != 2 && out->version != 3)
		return refuse(p, "qcow2 version %u is not supported, only 2 and 3", out->version);
	out->cluster_bits = be32toh(h.cluster_bits);
	if (out->cluster_bits < QCOW2_MIN_CLUSTER_BITS ||
	    out->cluster_bits > QCOW2_MAX_CLUSTER_BITS)
		return refuse(p, "the header has cluster_bits %u, outside %u to %u",
			      out->cluster_bits, QCOW2_MIN_CLUSTER_BITS, QCOW2_MAX_CLUSTER_BITS);
	cluster = 1ull << out->cluster_bits;
	out->size = be64toh(h.size);
	if (out->size > INT64_MAX)
		return refuse(p, "the header has an impossible size of %llu bytes",
			      (unsigned long long)out->size);
	p->extensions = QCOW2_V2_HEADER_LENGTH;
	if (out->version == 3) {
		if (read_exact(p, &h, QCOW2_V3_MIN_HEADER_LENGTH, 0, "header"))
			return -1;
		length = be32toh(h.header_length);
		if (length < QCOW2_V3_MIN_HEADER_LENGTH || length % 8 ||
		    length > cluster)
			return refuse(p, "the header has an impossible length of %u bytes",
				      length);
		p->extensions = length;
	}
	if (check_fixed(p, &h))
		return -1;
	p->crypt_method = be32toh(h.crypt_method);
	p->backing_offset = be64toh(h.backing_file_offset);
	name_len = be32toh(h.backing_file_size);
	if (!p->backing_offset)
		return 0;
	if (!name_len || name_len > QCOW2_MAX_BACKING_NAME ||
	    p->backing_offset < p->extensions || p->backing_offset > cluster ||
	    name_len > cluster - p->backing_offset)
		return refuse(p, "the header has an invalid backing file name of %u bytes at "
			      "offset %llu", name_len,
			      (unsigned long long)p->backing_offset);
	if (read_exact(p, out->backing_name, name_len, p->backing_offset, "backing file name"))
		return -1;
	for (uint32_t i = 0; i < name_len; i++) {
		unsigned char c = out->backing_name[i];

		if (c < 0x20 || c == 0x7f)
			return refuse(p, "the backing file name has the control character 0x%02x",
				      c);
	}
	out->has_backing = true;
	return 0;
}

/* As QEMU does; our own parts have no use for bitmaps. */
static int check_bitmaps(struct parse *p, uint32_t length, uint64_t at)
{
	uint64_t cluster = 1ull << p->out->cluster_bits;
	struct bitmaps_ext b;
	uint32_t count;

	if (length != sizeof(b))
		return refuse(p, "the bitmaps extension has %u bytes", length);
	if (!(p->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
		return 0;	/* not valid, and ignored by every reader */
	if (read_exact(p, &b, sizeof(b), at, "bitmaps extension"))
		return -1;
	count = be32toh(b.nb_bitmaps);
	if (!count || count > MAX_BITMAPS || b.reserved ||
	    be64toh(b.directory_offset) % cluster ||
	    be64toh(b.directory_size) > MAX_BITMAP_DIRECTORY)
		return refuse(p, "the bitmaps extension has %u bitmaps in %llu bytes at offset "
			      "%llu, which is invalid", count,
			      (unsigned long long)be64toh(b.directory_size),
			      (unsigned long long)be64toh(b.directory_offset));
	return 0;
}

static int parse_extensions(struct parse *p)
{
	uint64_t end = p->backing_offset ? p->backing_offset : 1ull << p->out->cluster_bits;
	uint64_t at = p->extensions;

	while (at < end) {
		struct qcow2_header_ext ext;
		uint32_t type, length;
		ssize_t n = p->read_at(p->ctx, &ext, sizeof(ext), at);

		if (n < 0)
			return refuse(p, "the header extensions cannot be read");
		/* Without an end mark they end with the image. */
		if ((size_t)n < sizeof(ext))
			return 0;
		if (end - at < sizeof(ext))
			return refuse(p, "the header has %llu bytes for an extension, which needs "
				      "more", (unsigned long long)(end - at));
		type = be32toh(ext.type);
		length = be32toh(ext.length);
		at += sizeof(ext);
		if (type == QCOW2_EXT_END)
			return 0;
		if (length > end - at)
			return refuse(p, "header extension 0x%08x of %u bytes does not fit into "
				      "the header", type, length);
		if (type == QCOW2_EXT_BACKING_FORMAT) {
			if (!length || length >= sizeof(p->out->backing_format))
				return refuse(p, "the backing format has %u bytes", length);
			if (read_exact(p, p->out->backing_format, length, at, "backing format"))
				return -1;
		}
		if (type == QCOW2_EXT_BITMAPS && check_bitmaps(p, length, at))
			return -1;
		if (type == QCOW2_EXT_CRYPTO && p->crypt_method != QCOW2_CRYPT_LUKS)
			return refuse(p, "the header has an encryption header, but no encryption");
		at += (length + 7ull) & ~7ull;
	}
	return 0;
}

int header_parse(header_read_fn read_at, void *ctx, struct image_header *header, char *error,
		 size_t error_len)
{
	struct parse p = {
		.read_at = read_at,
		.ctx = ctx,
		.out = header,
		.error = error,
		.error_len = error_len,
	};

	memset(header, 0, sizeof(*header));
	if (parse_fixed(&p) || parse_extensions(&p))
		return -1;
	for (const char *c = header->backing_format; *c; c++) {
		if (*c <= 0x20 || *c >= 0x7f)
			return refuse(&p, "the backing format is not a word");
	}
	return 0;
}
