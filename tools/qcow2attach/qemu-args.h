/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qemu-args.h - a QEMU command line, and what must be added to it so that the
 * guest has a vhost-user disk.
 */
#ifndef QCOW2ATTACH_QEMU_ARGS_H
#define QCOW2ATTACH_QEMU_ARGS_H

#include <stdbool.h>

#include "util.h"

/**
 * struct qemu_disk - the disk to add.
 * @name: its name, from which IDs for QEMU are made.
 * @socket: the vhost-user socket.
 * @queues: how many queues it has.
 * @bootindex: its place in the boot order; -1 to choose.
 * @properties: more properties of the device, comma-separated, or NULL.
 */
struct qemu_disk {
	const char *name;
	const char *socket;
	unsigned int queues;
	int bootindex;
	const char *properties;
};

/**
 * qemu_args_queues() - how many queues suit a guest.
 * @argv: its QEMU command line, NULL-terminated.
 * @most: the most there can be.
 *
 * Return: its number of processors, at least 1 and at most @most.
 */
unsigned int qemu_args_queues(char *const *argv, unsigned int most);

/**
 * qemu_args_build() - the command line with the disk.
 * @argv: QEMU's command line, NULL-terminated.
 * @disk: the disk.
 * @out: receives the new command line.
 *
 * A guest whose memory another process cannot map gets memory that another process can map. The
 * user's options about memory are kept, or refused when they cannot be. Options that would treat
 * this disk unlike QEMU's own disks are refused, too.
 *
 * Return: 0, or -1 with a cause.
 */
int qemu_args_build(char *const *argv, const struct qemu_disk *disk, struct strv *out);

#endif
