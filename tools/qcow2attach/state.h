/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * state.h - the table and status lines of the qcow2 target, taken apart.
 */
#ifndef QCOW2ATTACH_STATE_H
#define QCOW2ATTACH_STATE_H

#include <json-c/json.h>

#include "dm.h"
#include "users.h"
#include "util.h"

/**
 * struct device_state - one device, as people and programs want it.
 * @mode: rw, ro, out_of_space, failed; removed, empty or unknown when not live.
 * @allocated: clusters in use on the host; -1 where the kernel does not count.
 * @total: clusters of the disk.
 * @host_bytes: bytes the image takes on the host.
 * @cache_kib: memory its tables take.
 * @cache_max_kib: most they may take.
 * @attention: words that ask for attention.
 * @layers: the files, top first, each preceded by its format: qcow2 PATH.
 * @identities: for each of these, what it is: MAJOR:MINOR:INODE, or nothing.
 */
struct device_state {
	char mode[24];
	int64_t allocated;
	uint64_t total;
	uint64_t host_bytes;
	uint64_t cache_kib;
	uint64_t cache_max_kib;
	struct strv attention;
	struct strv layers;
	struct strv identities;
};

/**
 * state_parse() - read a device's lines.
 * @dev: the device.
 * @state: filled; state_free() it.
 */
void state_parse(const struct dm_device *dev, struct device_state *state);

/** state_free() - free what a state holds. */
void state_free(struct device_state *state);

/**
 * state_layer_path() - the path in one of the layers.
 * @layer: an element of @layers.
 */
const char *state_layer_path(const char *layer);

/**
 * state_layer_moved() - has one of the layers lost its name?
 * @state: the device's state.
 * @i: which.
 *
 * The kernel reports the current name of a file where it was opened; a mount may hide that name
 * from this process. A lookup on another host might hang forever, so only files on block devices of
 * this host are looked for.
 *
 * Return: words for people, or NULL.
 */
const char *state_layer_moved(const struct device_state *state, size_t i);

/**
 * state_json() - a device as a JSON object.
 * @dev: the device.
 * @users: the users of all devices, for everything that status shows; or NULL for what list shows.
 *
 * Return: a new object.
 */
struct json_object *state_json(const struct dm_device *dev, const struct users *users);

/**
 * users_json() - the users of a device, as a JSON array.
 * @users: the users of all devices.
 * @dev: the device's number.
 *
 * Return: a new array.
 */
struct json_object *users_json(const struct users *users, dev_t dev);

/** print_json() - print an object, and release it. */
void print_json(struct json_object *object);

#endif
