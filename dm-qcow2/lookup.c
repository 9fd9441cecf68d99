// SPDX-License-Identifier: GPL-2.0-only
/*
 * lookup.c - from a guest offset to where its bytes are.
 *
 * Takes no lock and writes nothing but a slice's "used" mark: table slices are found and read
 * under RCU.  Who looks up on a writable image is in an epoch, so that the cluster found cannot be
 * reused before the I/O on it has ended.
 */
#include <linux/minmax.h>

#include "device.h"

static enum extent_type classify(const struct qcow2_image *img, u64 entry, u64 *host, bool *own)
{
	*host = 0;
	*own = false;
	if (!entry)
		return EXTENT_UNALLOCATED;
	if (entry & QCOW2_L2_COMPRESSED)
		return EXTENT_COMPRESSED;
	*host = entry & QCOW2_OFFSET_MASK;
	/* Without a host cluster COPIED means nothing: there is nothing to own. */
	*own = *host && entry & QCOW2_ENTRY_COPIED;
	/* A zero cluster may keep a host cluster; its content is never read. */
	if (entry & QCOW2_L2_ZERO)
		return EXTENT_ZERO;
	return *host ? EXTENT_DATA : EXTENT_UNALLOCATED;
}

/* How many more bytes from @goff on the L2 table of that offset covers. */
static u64 l2_rest(const struct qcow2_image *img, u64 goff)
{
	u64 covers = 1ULL << (img->cluster_bits + img->l2_bits);

	return covers - (goff & (covers - 1));
}

/*
 * The slice has entries that are invalid, or that map data which the storage, as it was when the
 * slice was read, does not hold in full.  Is this one of them?
 */
static void judge_suspect(struct qcow2_image *img, struct extent *ext, u32 skip, u64 *got)
{
	u64 size;

	if (!l2_entry_valid(img, ext->entry)) {
		ext->type = EXTENT_INVALID;
		return;
	}
	if (ext->type != EXTENT_DATA)
		return;
	size = img->st.ops->size(&img->st);
	if (ext->host + skip >= size)
		ext->type = EXTENT_BEYOND;
	else if (img->st.bdev)	/* a file reads as zeroes there by itself */
		*got = min(*got, size - ext->host - skip);
}

/**
 * image_lookup - what one image says about a range
 * @img: the image, not raw
 * @goff: guest offset, inside the image
 * @len: bytes wanted
 * @ext: the answer, for at least one byte
 *
 * Any context that may take an RCU read lock.
 */
void image_lookup(struct qcow2_image *img, u64 goff, u64 len, struct extent *ext)
{
	u64 index = goff >> img->slice_bits;
	u32 i = (goff >> img->cluster_bits) & (SLICE_ENTRIES - 1);
	u64 host, got = img->cluster_size - in_cluster(img, goff);
	struct slice *s;
	bool own;

	ext->img = img;
	rcu_read_lock();
	s = slice_find(&img->cache.l2, index);
	if (!s) {
		rcu_read_unlock();
		ext->own = false;
		ext->host = 0;
		ext->entry = 0;
		if (flat_entry(&img->l1, goff >> (img->cluster_bits + img->l2_bits)) &
		    QCOW2_OFFSET_MASK) {
			ext->type = EXTENT_MISS;
			ext->len = len;
			return;
		}
		ext->type = EXTENT_UNALLOCATED;
		ext->len = min(len, l2_rest(img, goff));
		return;
	}
	ext->entry = slice_entry(s, i);
	ext->type = classify(img, ext->entry, &ext->host, &ext->own);
	if (unlikely(s->suspect) && ext->entry)
		judge_suspect(img, ext, in_cluster(img, goff), &got);
	host = ext->host;

	/* Take what follows of the same kind, up to the end of the slice. */
	while (got < len && ++i < SLICE_ENTRIES && ext->type != EXTENT_COMPRESSED &&
	       ext->type != EXTENT_INVALID && !s->suspect) {
		u64 next;

		if (classify(img, slice_entry(s, i), &next, &own) != ext->type || own != ext->own)
			break;
		host += img->cluster_size;
		if (ext->type == EXTENT_DATA && next != host)
			break;
		got += img->cluster_size;
	}
	rcu_read_unlock();
	if (ext->type == EXTENT_DATA || ext->type == EXTENT_BEYOND)
		ext->host += in_cluster(img, goff);
	ext->len = min(len, got);
}

/**
 * chain_lookup - where a range is read from
 * @dev: the device
 * @from: the first layer to ask
 * @goff: guest offset
 * @len: bytes wanted
 * @ext: the answer, for at least one byte; never EXTENT_UNALLOCATED
 *
 * Context: as image_lookup().
 */
void chain_lookup(struct qcow2_dev *dev, unsigned int from, u64 goff, u64 len, struct extent *ext)
{
	unsigned int i;

	for (i = from; i < dev->nr_layers; i++) {
		struct qcow2_layer *layer = &dev->layers[i];

		/* "Backing": past the end of a shorter layer are zeroes, whatever lies below. */
		if (goff >= layer->size)
			break;
		len = min(len, layer->size - goff);
		if (layer->img->raw) {
			ext->type = EXTENT_DATA;
			ext->img = layer->img;
			ext->host = goff;
			ext->entry = 0;
			ext->own = false;
			ext->len = len;
			return;
		}
		image_lookup(layer->img, goff, len, ext);
		len = ext->len;
		if (ext->type != EXTENT_UNALLOCATED)
			return;
	}
	ext->type = EXTENT_ZERO;
	ext->img = NULL;
	ext->host = 0;
	ext->entry = 0;
	ext->own = false;
	ext->len = len;
}
