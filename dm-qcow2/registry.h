/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * registry.h - opening, sharing and closing images, and who may write one; see registry.c.
 */
#ifndef DM_QCOW2_REGISTRY_H
#define DM_QCOW2_REGISTRY_H

#include "image.h"

/**
 * struct layer_spec - a layer as the table line gives it
 * @path: a path, or NULL when @fd is used
 * @fd: an open file of the calling process
 * @check: @dev and @ino must be those of the opened file
 */
struct layer_spec {
	bool raw;
	char *path;
	int fd;
	bool check;
	dev_t dev;
	u64 ino;
};

int qcow2_layer_open(struct dm_target *ti, struct qcow2_layer *layer, const struct layer_spec *spec,
		     bool top, bool write, unsigned int cache_kib);
void qcow2_layer_close(struct dm_target *ti, struct qcow2_layer *layer);

int qcow2_registry_init(void);
void qcow2_registry_exit(void);

int qcow2_image_claim(struct qcow2_image *img, struct dm_target *ti, bool write);
void qcow2_image_release(struct qcow2_image *img, struct dm_target *ti);

#endif /* DM_QCOW2_REGISTRY_H */
