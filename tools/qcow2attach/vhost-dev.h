/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * vhost-dev.h - /dev/vhost-blk, the kernel's half of a disk.
 */
#ifndef QCOW2ATTACH_VHOST_DEV_H
#define QCOW2ATTACH_VHOST_DEV_H

#include <stdbool.h>
#include <stdint.h>

#include "../../vhost-blk/uapi/vhost_blk.h"

/* Debian 12's <linux/vhost.h> is older than these. */
#ifndef VHOST_NEW_WORKER
struct vhost_worker_state {
	unsigned int worker_id;
};

struct vhost_vring_worker {
	unsigned int index;
	unsigned int worker_id;
};

#define VHOST_NEW_WORKER _IOR(VHOST_VIRTIO, 0x8, struct vhost_worker_state)
#define VHOST_ATTACH_VRING_WORKER _IOW(VHOST_VIRTIO, 0x15, struct vhost_vring_worker)
#endif

#define VHOST_DEV_PATH "/dev/vhost-blk"

/*
 * The most entries of a ring by default: QEMU's maximum. The kernel keeps some hundred bytes for
 * each entry while the ring runs.
 */
#define VHOST_DEFAULT_RING_SIZE 1024
#define VHOST_MAX_RING_SIZE 32768

/**
 * struct vhost_dev - one open vhost device.
 * @fd: the open file.
 * @call: its ioctl; a test substitutes its own kernel.
 * @features: what the kernel offers.
 * @max_regions: how many memory regions it takes.
 * @max_queues: how many rings it has at most.
 * @max_ring_size: how many entries each of them may have.
 * @queues: how many rings this disk has.
 * @ring_size: how many entries a ring of this disk may have.
 * @cpus: how many processors the host has.
 */
struct vhost_dev {
	int fd;
	int (*call)(struct vhost_dev *dev, unsigned long request, void *arg);
	uint64_t features;
	unsigned int max_regions;
	unsigned int max_queues;
	unsigned int max_ring_size;
	unsigned int queues;
	unsigned int ring_size;
	unsigned int cpus;
};

/**
 * vhost_dev_open() - open the device and read what never changes.
 * @dev: filled.
 *
 * Return: 0, or -1 with a cause.
 */
int vhost_dev_open(struct vhost_dev *dev);

/**
 * vhost_dev_own() - make this process the owner whose memory the rings are in.
 * @dev: the device.
 * @queues: how many rings; 0 for as many as there are processors.
 * @workers: a kernel worker for each ring instead of one for all.
 * @disk_fd: the block device behind it.
 * @serial: what the guest reads as the disk's serial number.
 *
 * Return: 0, or -1 with a cause.
 */
int vhost_dev_own(struct vhost_dev *dev, unsigned int queues, bool workers, int disk_fd,
		  const char *serial);

/**
 * vhost_dev_poll() - make the kernel's workers busy-poll for requests.
 * @dev: the device, owned.
 * @us: for how many microseconds after the last request; 0 for not at all.
 *
 * Return: 0, or -1 with a cause.
 */
int vhost_dev_poll(struct vhost_dev *dev, unsigned int us);

/**
 * vhost_dev_call() - one ioctl, its failure named.
 * @dev: the device.
 * @request: the ioctl.
 * @name: its name for the cause.
 * @arg: its argument.
 *
 * Return: 0, or -1 with a cause and errno set.
 */
int vhost_dev_call(struct vhost_dev *dev, unsigned long request, const char *name, void *arg);

#define VHOST_CALL(dev, request, arg) vhost_dev_call(dev, request, #request, arg)

#endif
