/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * users.h - the users of a block device.
 */
#ifndef QCOW2ATTACH_USERS_H
#define QCOW2ATTACH_USERS_H

#include <stdbool.h>
#include <sys/types.h>

#include "util.h"

enum user_kind {
	USER_PROCESS,		/* a process has it open */
	USER_MOUNT,		/* it is mounted */
	USER_SWAP,		/* it is swap space */
	USER_DEVICE,		/* another device is on top of it */
};

/**
 * struct device_user - one user.
 * @dev: the device that it uses.
 * @kind: what it is.
 * @pid: the process.
 * @name: the process's name, the mount point, or the device.
 * @serves: the process is a `qcow2attach serve`.
 * @socket: where it listens, or empty.
 */
struct device_user {
	dev_t dev;
	enum user_kind kind;
	pid_t pid;
	char name[256];
	bool serves;
	char socket[128];
};

/**
 * struct users - the users of all block devices, as they were at one time.
 * @list: the users.
 * @n: how many.
 */
struct users {
	struct device_user *list;
	int n;
};

/**
 * users_scan() - look for the users of all devices, once.
 * @users: filled; users_free() it.
 *
 * Processes that this one may not inspect are not seen.
 */
void users_scan(struct users *users);

/**
 * users_of() - the users of one device.
 * @users: the users of all.
 * @dev: the device's number.
 * @list: receives an array to be freed.
 *
 * Return: how many.
 */
int users_of(const struct users *users, dev_t dev, struct device_user **list);

/**
 * device_name() - a block device as people call it.
 * @dev: its number.
 * @buf: where to write, for instance "/dev/mapper/vm1" or "/dev/sda1".
 * @len: bytes in @buf.
 *
 * Return: @buf.
 */
const char *device_name(dev_t dev, char *buf, size_t len);

/** users_free() - free what users_scan() found. */
void users_free(struct users *users);

/**
 * users_find() - both at once, for a single device.
 * @dev: its number.
 * @list: receives an array to be freed.
 *
 * Return: how many.
 */
int users_find(dev_t dev, struct device_user **list);

/**
 * user_describe() - one user in words.
 * @u: the user.
 * @buf: where to write, for instance "in use by qemu (process 17)".
 * @len: bytes in @buf.
 *
 * Return: @buf.
 */
const char *user_describe(const struct device_user *u, char *buf, size_t len);

/**
 * users_describe() - the users in words.
 * @list: the users.
 * @n: how many.
 * @buf: where to write, for instance "in use by qemu (process 17)".
 * @len: bytes in @buf.
 */
void users_describe(const struct device_user *list, int n, char *buf, size_t len);

#endif
