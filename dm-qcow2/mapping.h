/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * mapping.h - changing mappings of a writable image; see mapping.c.
 */
#ifndef DM_QCOW2_MAPPING_H
#define DM_QCOW2_MAPPING_H

#include "generation.h"

struct slice *qcow2_get_l2(struct qcow2_image *img, u64 goff);
void qcow2_set_mapping(struct qcow2_image *img, struct slice *l2, u64 cluster, u64 entry,
		       struct freed_extent **freed);

#endif /* DM_QCOW2_MAPPING_H */
