// SPDX-License-Identifier: GPL-2.0-only
/*
 * header.c - reading, judging and changing the header of an image.
 *
 * Takes image.header_lock around changes of the header block.  Each change is a read-modify-write
 * of that block.  Every field that we change lies in its first 512 bytes, so that a torn write
 * leaves either the old header or the new.
 */
#include <linux/device-mapper.h>
#include <linux/log2.h>
#include <linux/slab.h>

#include "header.h"
#include "image.h"
#include "storage.h"

/* Enough for header and extensions of any sane image; the rest of the cluster is not needed. */
#define MAX_EXT_AREA	(64U << 10)

#define fail(error, msg) ({ *(error) = (msg); -EINVAL; })

static bool is_v3(const struct qcow2_header *h)
{
	return be32_to_cpu(h->version) == 3;
}

/* Look up the name of an unknown incompatible bit in the image's own table. */
static void log_unknown_feature(struct qcow2_image *img, const u8 *area, u32 from, u32 to, u64 bits)
{
	unsigned int bit = __ffs64(bits);

	while (from + sizeof(struct qcow2_header_ext) <= to) {
		const struct qcow2_header_ext *ext = (const void *)(area + from);
		u32 type = be32_to_cpu(ext->type), len = be32_to_cpu(ext->length);
		u32 i;

		from += sizeof(*ext);
		if (type == QCOW2_EXT_END || len > to - from)
			break;
		for (i = 0; type == QCOW2_EXT_FEATURE_NAMES &&
			    (i + 1) * sizeof(struct qcow2_feature_name) <= len; i++) {
			const struct qcow2_feature_name *f = (const void *)(area + from);

			f += i;
			if (f->type == 0 && f->bit == bit) {
				DMERR("%s: unsupported feature '%.46s'", img->name, f->name);
				return;
			}
		}
		from += round_up(len, 8);
	}
	DMERR("%s: unsupported incompatible feature bit %u", img->name, bit);
}

static int check_extensions(struct qcow2_image *img, const u8 *area, u32 from, u32 to, bool write,
			    char **error)
{
	while (from + sizeof(struct qcow2_header_ext) <= to) {
		const struct qcow2_header_ext *ext = (const void *)(area + from);
		u32 type = be32_to_cpu(ext->type), len = be32_to_cpu(ext->length);

		from += sizeof(*ext);
		if (type == QCOW2_EXT_END)
			return 0;
		if (len > to - from)
			return fail(error, "Header extension reaches outside its area");
		switch (type) {
		case QCOW2_EXT_BACKING_FORMAT:
			if (len >= sizeof(img->backing_format))
				return fail(error, "Backing format name is too long");
			memcpy(img->backing_format, area + from, len);
			break;
		case QCOW2_EXT_BITMAPS:
			if (write)
				return fail(error, "Bitmaps are not supported on a writable image");
			break;
		}
		from += round_up(len, 8);
	}
	return 0;
}

static int check_features(struct qcow2_image *img, const struct qcow2_header *h, bool write,
			  char **error)
{
	u64 incompat = be64_to_cpu(h->incompatible_features);

	if (incompat & ~QCOW2_INCOMPAT_KNOWN)
		return fail(error, "Unsupported incompatible feature");
	if (!(incompat & QCOW2_INCOMPAT_DATA_FILE) &&
	    be64_to_cpu(h->autoclear_features) & QCOW2_AUTOCLEAR_DATA_FILE_RAW)
		return fail(error, "Raw external data without an external data file");
	if (incompat & QCOW2_INCOMPAT_DATA_FILE)
		return fail(error, "External data files are not supported");
	if (incompat & QCOW2_INCOMPAT_COMPRESSION)
		return fail(error, "Compression type zstd is not supported");
	if (incompat & QCOW2_INCOMPAT_EXTL2)
		return fail(error, "Extended L2 entries are not supported");
	if (write && incompat & QCOW2_INCOMPAT_CORRUPT)
		return fail(error, "Image is marked corrupt: repair it, or attach it read-only");
	if (write && incompat & QCOW2_INCOMPAT_DIRTY)
		return fail(error, "Image is marked dirty: repair it (qcow2attach check --repair)");
	return 0;
}

static int check_geometry(struct qcow2_image *img, const struct qcow2_header *h, char **error)
{
	u64 size = be64_to_cpu(h->size), cluster = 1ULL << img->cluster_bits;
	u64 l1_pos = be64_to_cpu(h->l1_table_offset);
	u64 rt_pos = be64_to_cpu(h->refcount_table_offset);
	u64 rt_bytes = (u64)be32_to_cpu(h->refcount_table_clusters) << img->cluster_bits;
	u64 l1_bytes = (u64)be32_to_cpu(h->l1_size) * sizeof(__be64);
	u64 snap_pos = be64_to_cpu(h->snapshots_offset);
	u64 storage = img->st.ops->size(&img->st);
	u64 covered;

	if (!IS_ALIGNED(l1_pos, cluster) || (l1_bytes && !l1_pos))
		return fail(error, "L1 table is misaligned");
	if (l1_bytes > QCOW2_MAX_L1_BYTES)
		return fail(error, "L1 table is too large");
	/* A table may end behind the end of the storage: the rest of it reads as zeroes. */
	if (l1_pos > storage)
		return fail(error, "L1 table reaches outside the image");
	/* An L1 entry covers cluster_bits + l2_bits <= 21 + 18 bits. */
	covered = 1ULL << (img->cluster_bits + img->l2_bits);
	if (size > (u64)LLONG_MAX - covered || DIV64_U64_ROUND_UP(size, covered) >
	    be32_to_cpu(h->l1_size))
		return fail(error, "L1 table does not cover the virtual size");
	if (!rt_pos || !IS_ALIGNED(rt_pos, cluster))
		return fail(error, "Refcount table is misaligned");
	if (!rt_bytes)
		return fail(error, "Refcount table is empty");
	if (rt_bytes > QCOW2_MAX_REFTABLE_BYTES)
		return fail(error, "Refcount table is too large");
	if (rt_pos > storage)
		return fail(error, "Refcount table reaches outside the image");
	if (be32_to_cpu(h->nb_snapshots) > QCOW2_MAX_SNAPSHOTS)
		return fail(error, "Image has too many snapshots");
	/* QEMU's tools refuse an image with an impossible snapshot table, even an empty one. */
	if (!IS_ALIGNED(snap_pos, cluster) ||
	    snap_pos > LLONG_MAX - (u64)be32_to_cpu(h->nb_snapshots) * QCOW2_SNAPSHOT_BYTES)
		return fail(error, "Snapshot table is misaligned");
	/* As QEMU does: a guest cannot address part of a sector. */
	img->root.size = round_down(size, SECTOR_SIZE);
	return 0;
}

static int check_backing(struct qcow2_image *img, const struct qcow2_header *h, u32 area_len,
			 char **error)
{
	u64 off = be64_to_cpu(h->backing_file_offset);
	u32 len = be32_to_cpu(h->backing_file_size);

	img->has_backing = off && len;
	/* A place without a name is judged, too, since it ends the header extensions. */
	if (!off)
		return 0;
	if (len > QCOW2_MAX_BACKING_NAME)
		return fail(error, "Backing file name is too long");
	if (off > area_len || len > area_len - off)
		return fail(error, "Backing file name reaches outside the first cluster");
	return 0;
}

static int parse(struct qcow2_image *img, u8 *area, u32 len, bool write, char **error)
{
	struct qcow2_header *h = (void *)area;
	u32 version = be32_to_cpu(h->version), hlen = QCOW2_V2_HEADER_LENGTH;
	u64 ext_end;
	int r;

	if (be32_to_cpu(h->magic) != QCOW2_MAGIC)
		return fail(error, "Not a qcow2 image");
	if (version != 2 && version != 3)
		return fail(error, "Unsupported qcow2 version");
	img->version = version;
	img->cluster_bits = be32_to_cpu(h->cluster_bits);
	if (img->cluster_bits < QCOW2_MIN_CLUSTER_BITS ||
	    img->cluster_bits > QCOW2_MAX_CLUSTER_BITS)
		return fail(error, "Invalid cluster size");
	if (img->cluster_bits < SLICE_SHIFT)
		return fail(error, "Clusters smaller than 4 KiB are not supported");
	img->cluster_size = 1U << img->cluster_bits;
	img->l2_bits = img->cluster_bits - ilog2(sizeof(__be64));
	img->slice_bits = img->cluster_bits + SLICE_ENTRY_SHIFT;
	img->l2_slices = 1U << (img->cluster_bits - SLICE_SHIFT);
	img->refcount_order = QCOW2_V2_REFCOUNT_ORDER;
	if (is_v3(h)) {
		hlen = be32_to_cpu(h->header_length);
		if (hlen < QCOW2_V3_MIN_HEADER_LENGTH || !IS_ALIGNED(hlen, 8) ||
		    hlen > img->cluster_size || hlen > len)
			return fail(error, "Invalid header length");
		img->refcount_order = be32_to_cpu(h->refcount_order);
		if (img->refcount_order > QCOW2_MAX_REFCOUNT_ORDER)
			return fail(error, "Invalid refcount width");
		if (be64_to_cpu(h->incompatible_features) & ~QCOW2_INCOMPAT_KNOWN)
			log_unknown_feature(img, area, hlen, len,
					    be64_to_cpu(h->incompatible_features) &
					    ~QCOW2_INCOMPAT_KNOWN);
		r = check_features(img, h, write, error);
		if (r)
			return r;
		if (hlen > offsetof(struct qcow2_header, compression_type) &&
		    h->compression_type)
			return fail(error, "Invalid compression type");
	}
	img->refblock_bits = img->cluster_bits + 3 - img->refcount_order;
	img->rb_slice_bits = SLICE_SHIFT + 3 - img->refcount_order;

	switch (be32_to_cpu(h->crypt_method)) {
	case QCOW2_CRYPT_NONE:
		break;
	case QCOW2_CRYPT_AES:
		return fail(error, "AES-encrypted images are not supported");
	case QCOW2_CRYPT_LUKS:
		return fail(error, "LUKS-encrypted images are not supported");
	default:
		return fail(error, "Unknown encryption method");
	}
	if (write && h->nb_snapshots)
		return fail(error, "Internal snapshots are not supported on a writable image");
	r = check_geometry(img, h, error);
	if (r)
		return r;
	r = check_backing(img, h, min(len, img->cluster_size), error);
	if (r)
		return r;
	ext_end = be64_to_cpu(h->backing_file_offset) ?: img->cluster_size;
	return check_extensions(img, area, hlen, min_t(u64, ext_end, len), write, error);
}

int qcow2_header_read(struct qcow2_image *img, bool write, char **error)
{
	u64 storage = img->st.ops->size(&img->st);
	u8 *area;
	int r;

	if (storage < QCOW2_V2_HEADER_LENGTH)
		return fail(error, "Image is too short to hold a header");
	area = (u8 *)__get_free_pages(GFP_KERNEL | __GFP_ZERO | __GFP_COMP,
				      get_order(MAX_EXT_AREA));
	if (!area) {
		*error = "Out of memory reading the header";
		return -ENOMEM;
	}
	r = qcow2_storage_rw_sync(&img->st, REQ_OP_READ, 0, area,
				  min_t(u64, MAX_EXT_AREA, round_up(storage, img->st.block_size)));
	if (r) {
		*error = "Cannot read the header";
		goto out;
	}
	r = parse(img, area, MAX_EXT_AREA, write, error);
	if (r)
		goto out;
	img->header_len = img->st.block_size;
	/* A page: see buffer_alloc() in table-cache.c. */
	img->header = (void *)__get_free_page(GFP_KERNEL);
	if (img->header) {
		memcpy(img->header, area, img->header_len);
	} else {
		*error = "Out of memory reading the header";
		r = -ENOMEM;
	}
out:
	free_pages((unsigned long)area, get_order(MAX_EXT_AREA));
	return r;
}

static int header_write(struct qcow2_image *img)
{
	int r = qcow2_storage_rw_sync(&img->st, REQ_OP_WRITE, 0, img->header, img->header_len);

	/* Unlike a write, a flush that fails is not tried again, whatever its error. */
	return r ?: (img->st.ops->flush(&img->st) ? -EIO : 0);
}

int qcow2_header_prepare_write(struct qcow2_image *img)
{
	struct qcow2_header *h = img->header;
	__be64 autoclear;
	int r = 0;

	mutex_lock(&img->header_lock);
	autoclear = h->autoclear_features;
	if (is_v3(h) && autoclear) {
		h->autoclear_features = 0;
		r = header_write(img);
		/* The next attempt to write must not think that the bits are cleared. */
		if (r)
			h->autoclear_features = autoclear;
	}
	mutex_unlock(&img->header_lock);
	return r;
}

int qcow2_header_set_corrupt(struct qcow2_image *img)
{
	struct qcow2_header *h = img->header;
	int r = 0;

	mutex_lock(&img->header_lock);
	if (is_v3(h)) {
		h->incompatible_features |= cpu_to_be64(QCOW2_INCOMPAT_CORRUPT);
		r = header_write(img);
	}
	mutex_unlock(&img->header_lock);
	return r;
}

int qcow2_header_set_reftable(struct qcow2_image *img, u64 pos, u32 clusters)
{
	struct qcow2_header *h = img->header;
	int r;

	mutex_lock(&img->header_lock);
	h->refcount_table_offset = cpu_to_be64(pos);
	h->refcount_table_clusters = cpu_to_be32(clusters);
	r = header_write(img);
	mutex_unlock(&img->header_lock);
	return r;
}

void qcow2_header_free(struct qcow2_image *img)
{
	free_page((unsigned long)img->header);
	img->header = NULL;
}
