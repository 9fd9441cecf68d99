/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dm.h - the device-mapper devices of this tool.
 *
 * No state is kept outside the kernel: a device is ours when its UUID begins with QCOW2-, and the
 * kernel is asked for everything else.
 */
#ifndef QCOW2ATTACH_DM_H
#define QCOW2ATTACH_DM_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define DM_UUID_OURS "QCOW2-"
#define DM_NAME_MAX 127
#define DM_UUID_MAX 128

/**
 * struct dm_device - what the kernel says about one device.
 * @name: its name under /dev/mapper.
 * @uuid: its UUID.
 * @dev: its device number.
 * @sequence: a number that no other device has had since the host was started.
 * @open_count: how often it is open, by anybody.
 * @suspended: I/O is held.
 * @read_only: its table is read-only.
 * @deferred_remove: it will go when its last user closes it.
 * @sectors: its size.
 * @target: the type of its first target, empty when it has no live table.
 * @table: that target's table line, without start, length and type; or NULL.
 * @status: likewise its status line; or NULL.
 */
struct dm_device {
	char name[DM_NAME_MAX + 1];
	char uuid[DM_UUID_MAX + 1];
	dev_t dev;
	uint64_t sequence;
	int open_count;
	bool suspended;
	bool read_only;
	bool deferred_remove;
	uint64_t sectors;
	char target[17];
	char *table;
	char *status;
};

/**
 * dmdev_create() - create a device with one qcow2 target and make it live.
 * @name: its name.
 * @uuid: its UUID.
 * @read_only: give it a read-only table.
 * @sectors: its size.
 * @params: the target's table line. File descriptors named in it are the caller's.
 * @hold: if the device is to go with its last user: receives a descriptor of the open device, which
 *        is its first user. Else NULL.
 *
 * When this process is killed meanwhile, another one removes what has been made so far, and with
 * @hold the whole device; from then on the kernel does. The host's udev rules are told to leave the
 * content alone: it is a guest's. When the kernel refuses, the cause is the kernel's own reason and
 * no device is left, or, as a note then says, one that is in use already, which goes with its last
 * user.
 *
 * Return: 0, or -1 with a cause.
 */
int dmdev_create(const char *name, const char *uuid, bool read_only, uint64_t sectors,
		 const char *params, int *hold);

/**
 * dmdev_remove() - remove a device.
 * @dev: the device, as dmdev_find() found it. Another device that has got its name since stays.
 * @deferred: when it is open, let it go with its last user.
 *
 * Return: 0, also when it has gone already; 1 when a deferred removal waits for a user; -1 with a
 * cause, whose code is EXIT_BUSY when the device is open.
 */
int dmdev_remove(const struct dm_device *dev, bool deferred);

/**
 * dmdev_is_there() - does this very device still exist?
 * @dev: the device, as dmdev_find() found it.
 */
bool dmdev_is_there(const struct dm_device *dev);

/**
 * dmdev_replace_by_error() - make all I/O of a device fail from now on.
 * @dev: the device, as dmdev_find() found it. Another device that has got its name since is left
 *	alone.
 *
 * The image below is committed, closed and given back.
 *
 * Return: 0, or -1 with a cause.
 */
int dmdev_replace_by_error(const struct dm_device *dev);

/**
 * dmdev_message() - send a message to the first target of a device.
 * @name: the device.
 * @text: the message.
 *
 * Return: 0, or -1 with a cause.
 */
int dmdev_message(const char *name, const char *text);

/**
 * dmdev_ask() - send a message that the first target of a device answers.
 * @dev: the device, as dmdev_find() found it.
 * @text: the message.
 * @answer: receives the answer, to be freed.
 *
 * Return: 0, or -1 with a cause, and errno set to the kernel's, or 0.
 */
int dmdev_ask(const struct dm_device *dev, const char *text, char **answer);

/**
 * dmdev_find() - find a device of ours.
 * @which: its name, or a path that leads to it.
 * @dev: filled; released with dmdev_release().
 *
 * Return: 0, or -1 with a cause.
 */
int dmdev_find(const char *which, struct dm_device *dev);

/**
 * dmdev_exists() - is there a device of this name, ours or not?
 * @name: the name.
 */
bool dmdev_exists(const char *name);

/** dmdev_release() - free what dmdev_find() or dmdev_list() put in a device. */
void dmdev_release(struct dm_device *dev);

/**
 * dmdev_list() - all devices of ours, sorted by name.
 * @list: receives an array to be freed with dmdev_list_free().
 *
 * Return: how many, or -1 with a cause.
 */
int dmdev_list(struct dm_device **list);

/**
 * dmdev_let_go() - close what the library has open, which a program that is started would inherit.
 *
 * The library opens it again when needed.
 */
void dmdev_let_go(void);

/** dmdev_list_free() - free what dmdev_list() returned. */
void dmdev_list_free(struct dm_device *list, int n);

#endif
