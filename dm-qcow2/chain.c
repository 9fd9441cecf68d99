// SPDX-License-Identifier: GPL-2.0-only
/*
 * chain.c - from a guest offset to the layer that has its bytes.
 *
 * Takes no locks.  Code that looks up on a device that shows a writable image is in an epoch, as
 * lookup.c says.
 */
#include <linux/minmax.h>

#include "chain.h"
#include "image.h"
#include "view-map.h"

/* A layer without tables of its own.  Not inline, to keep the lookup of the others short. */
static noinline void lookup_rootless(const struct qcow2_layer *layer, u64 goff, u64 len,
				     struct extent *ext)
{
	if (layer->view) {
		qcow2_view_lookup(layer->view, goff, len, ext);
		return;
	}
	ext->type = EXTENT_DATA;
	ext->img = layer->img;
	ext->st = layer->img->data;
	ext->host = goff;
	ext->own = false;
	ext->len = len;
}

void qcow2_layer_lookup(const struct qcow2_layer *layer, u64 goff, u64 len, struct extent *ext)
{
	if (layer->root)
		qcow2_root_lookup(layer->img, layer->root, goff, len, ext);
	else
		lookup_rootless(layer, goff, len, ext);
}

void qcow2_chain_lookup(const struct qcow2_dev *dev, unsigned int from, u64 goff, u64 len,
			struct extent *ext)
{
	unsigned int i;

	for (i = from; i < dev->nr_layers; i++) {
		const struct qcow2_layer *layer = &dev->layers[i];

		/* "Backing": past the end of a shorter layer are zeroes, whatever lies below. */
		if (goff >= layer->size)
			break;
		len = min(len, layer->size - goff);
		qcow2_layer_lookup(layer, goff, len, ext);
		len = ext->len;
		if (ext->type != EXTENT_UNALLOCATED)
			return;
	}
	ext->type = EXTENT_ZERO;
	ext->img = NULL;
	ext->st = NULL;
	ext->host = 0;
	ext->own = false;
	ext->len = len;
}
