/* SPDX-License-Identifier: GPL-2.0-only OR GPL-2.0-or-later */
/*
 * qcow2-format.h - the QCOW2 format as it is on disk.
 *
 * Owns nothing at run time: structures, bits and limits only, shared by the kernel module and the
 * userspace tool.  Everything on disk is big-endian.  Section names in the comments are those of
 * the published specification (QEMU's docs/interop/qcow2.txt).
 */
#ifndef QCOW2_FORMAT_H
#define QCOW2_FORMAT_H

#include <linux/types.h>

#define QCOW2_MAGIC			0x514649fbU	/* "QFI\xfb" */

/* Limits.  The format allows more in places; these are the ones QEMU enforces at open. */
#define QCOW2_MIN_CLUSTER_BITS		9
#define QCOW2_MAX_CLUSTER_BITS		21
#define QCOW2_MAX_REFCOUNT_ORDER	6
#define QCOW2_MAX_L1_BYTES		(32U << 20)
#define QCOW2_MAX_REFTABLE_BYTES	(8U << 20)
#define QCOW2_MAX_SNAPSHOTS		65536U
#define QCOW2_MAX_BACKING_NAME		1023U
#define QCOW2_SNAPSHOT_BYTES		40U	/* minimum size of a snapshot table entry */

#define QCOW2_V2_HEADER_LENGTH		72U
#define QCOW2_V3_MIN_HEADER_LENGTH	104U
#define QCOW2_V2_REFCOUNT_ORDER		4

/* "Header": bits of incompatible_features. */
#define QCOW2_INCOMPAT_DIRTY		(1ULL << 0)
#define QCOW2_INCOMPAT_CORRUPT		(1ULL << 1)
#define QCOW2_INCOMPAT_DATA_FILE	(1ULL << 2)
#define QCOW2_INCOMPAT_COMPRESSION	(1ULL << 3)
#define QCOW2_INCOMPAT_EXTL2		(1ULL << 4)
#define QCOW2_INCOMPAT_KNOWN		0x1fULL

#define QCOW2_COMPAT_LAZY_REFCOUNTS	(1ULL << 0)

/* "Header": bits of autoclear_features. */
#define QCOW2_AUTOCLEAR_BITMAPS		(1ULL << 0)
#define QCOW2_AUTOCLEAR_DATA_FILE_RAW	(1ULL << 1)

/* "Header": crypt_method. */
#define QCOW2_CRYPT_NONE		0
#define QCOW2_CRYPT_AES			1
#define QCOW2_CRYPT_LUKS		2

/**
 * struct qcow2_header - "Header", at offset 0 of the image
 *
 * A version 2 header ends before @incompatible_features; the fields after it then read as: no
 * feature, refcount order 4, header length 72.
 */
struct qcow2_header {
	__be32 magic;
	__be32 version;
	__be64 backing_file_offset;
	__be32 backing_file_size;
	__be32 cluster_bits;
	__be64 size;			/* virtual size, in bytes */
	__be32 crypt_method;
	__be32 l1_size;			/* entries */
	__be64 l1_table_offset;
	__be64 refcount_table_offset;
	__be32 refcount_table_clusters;
	__be32 nb_snapshots;
	__be64 snapshots_offset;
	__be64 incompatible_features;
	__be64 compatible_features;
	__be64 autoclear_features;
	__be32 refcount_order;		/* a refcount is 1 << order bits wide */
	__be32 header_length;
	__u8 compression_type;		/* only when header_length covers it */
	__u8 padding[7];
} __attribute__((packed));

/* "Header extensions": type and length, then the data padded to 8 bytes. */
struct qcow2_header_ext {
	__be32 type;
	__be32 length;
} __attribute__((packed));

#define QCOW2_EXT_END			0x00000000U
#define QCOW2_EXT_BACKING_FORMAT	0xe2792acaU
#define QCOW2_EXT_FEATURE_NAMES		0x6803f857U
#define QCOW2_EXT_BITMAPS		0x23852875U
#define QCOW2_EXT_CRYPTO		0x0537be77U
#define QCOW2_EXT_DATA_FILE		0x44415441U

/* "Feature name table": one entry. */
struct qcow2_feature_name {
	__u8 type;			/* 0 incompatible, 1 compatible, 2 autoclear */
	__u8 bit;
	char name[46];			/* padded with zeros, not always terminated */
} __attribute__((packed));

/* "Cluster mapping": L1 and L2 entries, and refcount table entries. */
#define QCOW2_ENTRY_COPIED		(1ULL << 63)
#define QCOW2_L2_COMPRESSED		(1ULL << 62)
#define QCOW2_L2_ZERO			(1ULL << 0)
#define QCOW2_OFFSET_MASK		0x00fffffffffffe00ULL
#define QCOW2_L1_RESERVED		0x7f000000000001ffULL
#define QCOW2_L2_RESERVED		0x3f000000000001feULL	/* standard descriptor */
/* Bits 56-63 belong to the offset here, but no cluster that an L2 entry can name is there. */
#define QCOW2_REFTABLE_RESERVED		0xff000000000001ffULL

#endif /* QCOW2_FORMAT_H */
