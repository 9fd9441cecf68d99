// SPDX-License-Identifier: GPL-2.0-only
/*
 * entries.c - what table entries may say, and where the tables are; see entries.h.
 *
 * Metadata is untrusted: an entry that maps a guest cluster onto the header would let a guest write
 * the name of its own backing file.  So a maple tree (image.metadata) records the clusters that
 * hold metadata; it is read under RCU and changed under its own lock.  Takes state_lock, to mark an
 * image corrupt.
 */
#include <linux/device-mapper.h>
#include <linux/sched.h>

#include "entries.h"
#include "image.h"
#include "state.h"

void qcow2_l2_entry_compressed(const struct qcow2_image *img, u64 entry, u64 *pos, u32 *len)
{
	u32 x = 62 - (img->cluster_bits - 8);
	u32 sectors = (entry & (QCOW2_L2_COMPRESSED - 1)) >> x;

	*pos = entry & ((1ULL << x) - 1);
	*len = (sectors + 1) * SECTOR_SIZE - (*pos & (SECTOR_SIZE - 1));
}

int qcow2_add_metadata(struct qcow2_image *img, u64 pos, u64 len)
{
	unsigned long first = pos >> img->cluster_bits;
	unsigned long last = (pos + len - 1) >> img->cluster_bits;

	return mtree_insert_range(&img->metadata, first, last, xa_mk_value(1), GFP_NOIO);
}

void qcow2_remove_metadata(struct qcow2_image *img, u64 pos)
{
	unsigned long cluster = pos >> img->cluster_bits;

	/*
	 * Erasing may need memory, and does not report when there was none.  A range that stays
	 * noted would make the image corrupt as soon as the cluster is used for something else.
	 */
	mtree_erase(&img->metadata, cluster);
	while (mtree_load(&img->metadata, cluster)) {
		schedule_timeout_uninterruptible(1);
		mtree_erase(&img->metadata, cluster);
	}
}

bool qcow2_is_metadata(struct qcow2_image *img, u64 pos)
{
	return mtree_load(&img->metadata, pos >> img->cluster_bits) != NULL;
}

static bool inside(struct qcow2_image *img, u64 pos)
{
	return pos < img->st.ops->size(&img->st);
}

bool qcow2_l2_entry_valid(struct qcow2_image *img, u64 entry)
{
	u64 host = entry & QCOW2_OFFSET_MASK;

	if (entry & QCOW2_L2_COMPRESSED) {
		u32 len;

		/* Compressed data may begin in one host cluster and end in the next. */
		qcow2_l2_entry_compressed(img, entry, &host, &len);
		return !(entry & QCOW2_ENTRY_COPIED) && len <= img->cluster_size + SECTOR_SIZE &&
		       inside(img, host) && !qcow2_is_metadata(img, host) &&
		       !qcow2_is_metadata(img, host + len - 1);
	}
	if (entry & QCOW2_L2_RESERVED)
		return false;
	if (entry & QCOW2_L2_ZERO && img->version < 3)
		return false;
	/* COPIED without an offset means nothing to QEMU and its check. */
	return !host || (!in_cluster(img, host) && !qcow2_is_metadata(img, host));
}

bool qcow2_l2_entry_clusters(const struct qcow2_image *img, u64 entry, u64 *first, u64 *last)
{
	u64 pos = entry & QCOW2_OFFSET_MASK;
	u32 len = 1;

	if (entry & QCOW2_L2_COMPRESSED)
		qcow2_l2_entry_compressed(img, entry, &pos, &len);
	*first = pos >> img->cluster_bits;
	*last = (pos + len - 1) >> img->cluster_bits;
	return *first;
}

bool qcow2_top_entry_valid(struct qcow2_image *img, enum slice_kind kind, u64 entry)
{
	u64 reserved = kind == SLICE_L1 ? QCOW2_L1_RESERVED : QCOW2_REFTABLE_RESERVED;
	u64 pos = qcow2_table_pos(entry);

	return !(entry & reserved) && !in_cluster(img, pos) && pos && inside(img, pos);
}

/* Does an entry map data that the storage does not hold, or not in full? */
static bool reaches_beyond(struct qcow2_image *img, u64 entry)
{
	u64 host = entry & QCOW2_OFFSET_MASK;

	if (!host || entry & (QCOW2_L2_COMPRESSED | QCOW2_L2_ZERO))
		return false;
	return !inside(img, host) || (img->st.bdev && !inside(img, host + img->cluster_size - 1));
}

void qcow2_slice_check(struct qcow2_image *img, struct slice *s)
{
	unsigned int i;

	if (s->kind != SLICE_L2)
		return;
	for (i = 0; i < SLICE_ENTRIES; i++) {
		u64 e = slice_entry(s, i);

		if (!e)
			continue;
		if (qcow2_l2_entry_valid(img, e)) {
			s->suspect |= reaches_beyond(img, e);
			continue;
		}
		s->suspect = true;
		DMERR_LIMIT("%s: invalid L2 entry %#llx (at %llu)", img->name, e,
			    s->pos + i * sizeof(__be64));
		if (qcow2_is_metadata(img, e & QCOW2_OFFSET_MASK) && e & QCOW2_OFFSET_MASK)
			qcow2_mark_corrupt(img, "L2 entry maps guest data onto metadata",
					   e & QCOW2_OFFSET_MASK);
	}
}

int qcow2_slice_position(struct qcow2_image *img, enum slice_kind kind, u64 index, u64 *pos)
{
	unsigned int shift = img->cluster_bits - SLICE_SHIFT;
	u64 table = index >> shift, e;

	if (kind == SLICE_L2) {
		*pos = index << SLICE_SHIFT;
		/* Without a table the index lies in the first cluster, where no table can be. */
		return *pos < img->cluster_size ? -ENOENT : 0;
	}
	if (table >= img->reftable.nr_entries)
		return -ENOENT;
	e = qcow2_table_pos(flat_entry(&img->reftable, table));
	if (!e)
		return -ENOENT;
	*pos = e + ((index & ((1ULL << shift) - 1)) << SLICE_SHIFT);
	return 0;
}

u64 qcow2_refcount_get(const struct qcow2_image *img, const struct slice *s, u32 i)
{
	const void *data = s->data;

	switch (img->refcount_order) {
	case 6:
		return be64_to_cpup((const __be64 *)data + i);
	case 5:
		return be32_to_cpup((const __be32 *)data + i);
	case 4:
		return be16_to_cpup((const __be16 *)data + i);
	case 3:
		return ((const u8 *)data)[i];
	default: {
		u32 per_byte_bits = 3 - img->refcount_order;
		u32 width = 1U << img->refcount_order;
		u8 byte = ((const u8 *)data)[i >> per_byte_bits];

		return (byte >> ((i & ((1U << per_byte_bits) - 1)) * width)) & ((1U << width) - 1);
	}
	}
}

void qcow2_refcount_set(const struct qcow2_image *img, struct slice *s, u32 i, u64 val)
{
	void *data = s->data;

	lockdep_assert_held(&img->meta_lock);
	switch (img->refcount_order) {
	case 6:
		((__be64 *)data)[i] = cpu_to_be64(val);
		break;
	case 5:
		((__be32 *)data)[i] = cpu_to_be32(val);
		break;
	case 4:
		((__be16 *)data)[i] = cpu_to_be16(val);
		break;
	case 3:
		((u8 *)data)[i] = val;
		break;
	default: {
		u32 per_byte_bits = 3 - img->refcount_order;
		u32 width = 1U << img->refcount_order;
		u32 shift = (i & ((1U << per_byte_bits) - 1)) * width;
		u8 mask = ((1U << width) - 1) << shift;
		u8 *byte = (u8 *)data + (i >> per_byte_bits);

		*byte = (*byte & ~mask) | (val << shift);
	}
	}
}
