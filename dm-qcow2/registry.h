/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * registry.h - opening, sharing and closing images, and which device may write one; see registry.c.
 */
#ifndef DM_QCOW2_REGISTRY_H
#define DM_QCOW2_REGISTRY_H

#include "image.h"

/**
 * struct layer_spec - a layer as the table line gives it
 * @path: a path, or NULL when @fd is used
 * @fd: an open file of the calling process
 * @view: the view of the image that the layer shows, or NULL; then the image is open and written
 * @check: @dev and @ino must be those of the opened file
 */
struct layer_spec {
	bool raw;
	char *path;
	int fd;
	const char *view;
	bool check;
	dev_t dev;
	u64 ino;
};

/**
 * qcow2_layer_open - open a layer, or share it when it is open
 * @ti: the target
 * @layer: filled in
 * @spec: what the table line says
 * @top: it is the top layer
 * @write: the layer will be written
 * @cache_kib: bound of the table cache if the image is opened now, or 0 for the default
 *
 * Writes nothing.  Sleeps for as long as the storage takes, or until the caller is killed.
 *
 * Return: 0, or an error with ti->error set; qcow2_layer_close() must be called if @layer has an
 * image.
 */
int qcow2_layer_open(struct dm_target *ti, struct qcow2_layer *layer, const struct layer_spec *spec,
		     bool top, bool write, unsigned int cache_kib);

/**
 * qcow2_layer_close - release a layer
 * @ti: the target
 * @layer: opened by qcow2_layer_open()
 *
 * With the last table that may write an image go its views, also those that a device shows.
 * Sleeps, also on the storage.
 */
void qcow2_layer_close(struct dm_target *ti, struct qcow2_layer *layer);

int qcow2_registry_init(void);
void qcow2_registry_exit(void);

/**
 * qcow2_image_claim - a table becomes live: take the role that it has for one of its images
 * @img: the image
 * @ti: the target
 * @write: it will write
 *
 * Sleeps.  Return: 0, or -errno with nothing changed.
 */
int qcow2_image_claim(struct qcow2_image *img, struct dm_target *ti, bool write);

/**
 * qcow2_image_release - a table that writes stops being live: leave a clean image
 * @img: the image
 * @ti: the target; no bio is in flight
 *
 * Sleeps.  Errors are in the log and in the image's mode.
 */
void qcow2_image_release(struct qcow2_image *img, struct dm_target *ti);

#endif /* DM_QCOW2_REGISTRY_H */
