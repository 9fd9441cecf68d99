/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * wrapper.h - a qcow2 file around a device: what QEMU's tools read in its place.
 */
#ifndef QCOW2ATTACH_WRAPPER_H
#define QCOW2ATTACH_WRAPPER_H

#include <stdint.h>

#include "dm.h"

/**
 * wrapper_make() - describe a device to QEMU's tools.
 * @dev: the device, as dmdev_find() found it. Its content must not change.
 * @data: receives how many bytes of the disk have data.
 *
 * The wrapper is an image whose external data file is the device. Its tables map the ranges that
 * have data; so a program that reads the image reads nothing else. It is in memory only, and a
 * child process gets at it as /dev/fd/N.
 *
 * Return: its descriptor, which is not closed on exec, or -1 with a cause.
 */
int wrapper_make(const struct dm_device *dev, uint64_t *data);

#endif
