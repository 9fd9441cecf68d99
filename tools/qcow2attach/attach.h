/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * attach.h - making a device of an image.
 */
#ifndef QCOW2ATTACH_ATTACH_H
#define QCOW2ATTACH_ATTACH_H

#include <stdbool.h>
#include <sys/stat.h>

#include "util.h"

/**
 * struct attach_options - how an image is attached.
 * @name: the device's name, or NULL for the image's.
 * @read_only: attach it read-only.
 * @cache_kib: limit of the table cache, or 0 for the kernel's.
 * @discard_no_unref: discarded clusters keep their place in the image.
 * @no_discard_passdown: freed clusters are not discarded on the storage.
 * @error_if_no_space: fail writes at once when the storage is full.
 * @has_space_timeout: there is a @space_timeout.
 * @space_timeout: for how many seconds such writes wait otherwise, 0 for no limit.
 * @allow_dirs: directories from which backing files may come.
 * @backing: files that may be backing files.
 * @no_backing: no image may have a backing file.
 */
struct attach_options {
	const char *name;
	bool read_only;
	unsigned int cache_kib;
	bool discard_no_unref;
	bool no_discard_passdown;
	bool error_if_no_space;
	bool has_space_timeout;
	unsigned int space_timeout;
	struct strv allow_dirs;
	struct strv backing;
	bool no_backing;
};

/** attach_options_free() - free what the options hold. */
void attach_options_free(struct attach_options *o);

/**
 * attach_image() - attach an image.
 * @image: its name.
 * @o: how.
 * @hold: NULL, or as in dmdev_create(): the device goes with its last user.
 *
 * Return: the device's name, allocated; or NULL with a cause.
 */
char *attach_image(const char *image, const struct attach_options *o, int *hold);

/**
 * image_is_attached() - is an image one of our devices?
 * @st: its attributes.
 *
 * Return: 0 when it is not, or -1 with a cause that names the device.
 */
int image_is_attached(const struct stat *st);

/**
 * attach_check_name() - can a device have this name?
 * @name: the name.
 *
 * Return: 0, or -1 with a cause.
 */
int attach_check_name(const char *name);

#endif
