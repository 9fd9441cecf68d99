/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * chain.h - from a guest offset to the layer that has its bytes; see chain.c.
 */
#ifndef DM_QCOW2_CHAIN_H
#define DM_QCOW2_CHAIN_H

#include "device.h"
#include "lookup.h"

/**
 * qcow2_layer_lookup - what one layer says about a range
 * @layer: the layer
 * @goff: guest offset, inside the layer
 * @len: bytes wanted
 * @ext: the answer, for at least one byte
 *
 * Context: as qcow2_root_lookup().
 */
void qcow2_layer_lookup(const struct qcow2_layer *layer, u64 goff, u64 len, struct extent *ext);

/**
 * qcow2_chain_lookup - where a range is read from
 * @dev: the device
 * @from: the first layer to ask
 * @goff: guest offset
 * @len: bytes wanted
 * @ext: the answer, for at least one byte; never EXTENT_UNALLOCATED
 *
 * Context: as qcow2_root_lookup().
 */
void qcow2_chain_lookup(const struct qcow2_dev *dev, unsigned int from, u64 goff, u64 len,
			struct extent *ext);

#endif /* DM_QCOW2_CHAIN_H */
