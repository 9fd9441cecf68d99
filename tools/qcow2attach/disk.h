/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * disk.h - the block device that is served, and how a guest sees it.
 */
#ifndef QCOW2ATTACH_DISK_H
#define QCOW2ATTACH_DISK_H

#include <linux/virtio_blk.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/**
 * struct disk - one block device.
 * @fd: open; for writing exclusively.
 * @dev: its number.
 * @sequence: a number that no other device has had since the host was started.
 * @path: its name.
 * @read_only: it is served read-only.
 * @config: what the guest reads.
 * @features: the virtio features that it has.
 */
struct disk {
	int fd;
	dev_t dev;
	uint64_t sequence;
	char *path;
	bool read_only;
	struct virtio_blk_config config;
	uint64_t features;
};

/**
 * disk_open() - open a device.
 * @disk: filled.
 * @which: the name of a device of ours, or a path.
 * @read_only: for reading only.
 * @stop: a descriptor that becomes readable when waiting must end.
 *
 * A writable device is opened exclusively. When a server was killed, the kernel keeps that claim
 * until the last request has been answered; this function waits for that.
 *
 * Return: 0, or -1 with a cause.
 */
int disk_open(struct disk *disk, const char *which, bool read_only, int stop);

/**
 * disk_describe() - fill in what the guest reads, from the device's limits.
 * @disk: the disk.
 * @kernel: the features that the kernel's side has.
 *
 * Return: 0, or -1 with a cause.
 */
int disk_describe(struct disk *disk, uint64_t kernel);

/**
 * disk_set_queues() - tell the guest how many rings there are.
 * @disk: the disk.
 * @queues: how many.
 * @kernel: the features that the kernel's side has.
 */
void disk_set_queues(struct disk *disk, unsigned int queues, uint64_t kernel);

/**
 * disk_resized() - look whether the size has changed, and take the new one over.
 *
 * Return: whether it has.
 */
bool disk_resized(struct disk *disk);

#endif
