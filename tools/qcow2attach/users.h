/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * users.h - who uses a block device.
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
	USER_DEVICE,		/* another device stands on it */
};

/**
 * struct device_user - one user.
 * @kind: what it is.
 * @pid: the process.
 * @name: the process's name, the mount point, or the device.
 * @serves: the process is a `qcow2attach serve`.
 */
struct device_user {
	enum user_kind kind;
	pid_t pid;
	char name[256];
	bool serves;
};

/**
 * users_find() - look for the users of a device.
 * @dev: its number.
 * @list: receives an array to be freed.
 *
 * Processes that may not be looked into are not seen.
 *
 * Return: how many.
 */
int users_find(dev_t dev, struct device_user **list);

/**
 * user_describe() - one user in words.
 * @u: the user.
 * @buf: where to write, for instance "used by qemu (process 17)".
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
