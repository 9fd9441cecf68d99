// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * vhost-dev.c - owns opening /dev/vhost-blk and becoming the owner of it: how many rings there are,
 * which workers serve them, and which disk they lead to.
 */
#include "vhost-dev.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "util.h"
#include "vu-memory.h"

static int real_call(struct vhost_dev *dev, unsigned long request, void *arg)
{
	return ioctl(dev->fd, request, arg);
}

int vhost_dev_call(struct vhost_dev *dev, unsigned long request, const char *name, void *arg)
{
	if (dev->call(dev, request, arg) < 0) {
		int err = errno;

		cause_errno("the kernel refused %s", name);
		errno = err;
		return -1;
	}
	return 0;
}

/* A parameter of a kernel module. */
static unsigned int parameter(const char *path, unsigned int otherwise)
{
	char text[32];

	return read_small_file(path, text, sizeof(text)) ? otherwise : strtoul(text, NULL, 10);
}

int vhost_dev_open(struct vhost_dev *dev)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	memset(dev, 0, sizeof(*dev));
	dev->call = real_call;
	dev->ring_size = VHOST_DEFAULT_RING_SIZE;
	/* Read here, since the sandboxed server cannot. */
	dev->cpus = cpus < 1 ? 1 : cpus;
	dev->fd = open(VHOST_DEV_PATH, O_RDWR | O_CLOEXEC);
	if (dev->fd < 0) {
		if (errno == ENOENT || errno == ENODEV || errno == ENXIO)
			return cause("%s not found: load the module vhost-blk "
				     "(modprobe vhost-blk)", VHOST_DEV_PATH);
		return cause_errno("cannot open %s", VHOST_DEV_PATH);
	}
	dev->max_queues = parameter("/sys/module/vhost_blk/parameters/max_queues", 16);
	dev->max_ring_size = parameter("/sys/module/vhost_blk/parameters/max_ring_size", 1024);
	if (dev->ring_size > dev->max_ring_size)
		dev->ring_size = dev->max_ring_size;
	dev->max_regions = parameter("/sys/module/vhost/parameters/max_mem_regions", 64);
	if (dev->max_regions > MEMORY_MAX_REGIONS)
		dev->max_regions = MEMORY_MAX_REGIONS;
	return VHOST_CALL(dev, VHOST_GET_FEATURES, &dev->features);
}

static int worker_per_ring(struct vhost_dev *dev)
{
	/* Ring 0 keeps the worker that came with the owner. */
	for (unsigned int i = 1; i < dev->queues; i++) {
		struct vhost_worker_state worker = { 0 };
		struct vhost_vring_worker attach = { .index = i };

		if (VHOST_CALL(dev, VHOST_NEW_WORKER, &worker))
			return -1;
		attach.worker_id = worker.worker_id;
		if (VHOST_CALL(dev, VHOST_ATTACH_VRING_WORKER, &attach))
			return -1;
	}
	return 0;
}

int vhost_dev_own(struct vhost_dev *dev, unsigned int queues, bool workers, int disk_fd,
		  const char *serial)
{
	struct vhost_vring_file backend = { .index = 0, .fd = disk_fd };
	__u8 bytes[VHOST_BLK_SERIAL_BYTES] = { 0 };
	__u32 count = queues;

	if (queues > dev->max_queues)
		return cause("%u queues are more than the %u that the kernel serves (the parameter "
			     "max_queues of the module vhost-blk, in "
			     "/sys/module/vhost_blk/parameters)", queues, dev->max_queues);
	if (!queues)
		count = dev->cpus < dev->max_queues ? dev->cpus : dev->max_queues;
	dev->queues = count;
	/* Each ring takes memory from the moment when there is an owner. */
	if (VHOST_CALL(dev, VHOST_BLK_SET_QUEUES, &count) ||
	    VHOST_CALL(dev, VHOST_SET_OWNER, NULL))
		return -1;
	if (workers && worker_per_ring(dev))
		return -1;
	memcpy(bytes, serial, strnlen(serial, sizeof(bytes)));
	if (VHOST_CALL(dev, VHOST_BLK_SET_SERIAL, bytes))
		return -1;
	/* No ring has an address yet, so none starts; each is started by itself later. */
	return VHOST_CALL(dev, VHOST_BLK_SET_BACKEND, &backend);
}

int vhost_dev_poll(struct vhost_dev *dev, unsigned int us)
{
	for (unsigned int i = 0; us && i < dev->queues; i++) {
		struct vhost_vring_state state = { .index = i, .num = us };

		if (VHOST_CALL(dev, VHOST_SET_VRING_BUSYLOOP_TIMEOUT, &state))
			return -1;
	}
	return 0;
}
