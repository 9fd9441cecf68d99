/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * The user interface of /dev/vhost-blk: what it adds to the standard vhost ioctls of
 * <linux/vhost.h>. Owns the ioctl numbers and the limits that a front end must respect when it
 * fills the virtio-blk configuration space, which is the front end's and not the module's.
 *
 * Order of use: VHOST_BLK_SET_QUEUES if wanted, VHOST_SET_OWNER, VHOST_SET_FEATURES,
 * VHOST_SET_MEM_TABLE; per ring VHOST_SET_VRING_NUM, _ADDR, _CALL, _ERR, _KICK;
 * VHOST_BLK_SET_BACKEND. docs/vhost-blk.md describes it in full.
 */
#ifndef _UAPI_VHOST_BLK_H
#define _UAPI_VHOST_BLK_H

#include <linux/types.h>
#include <linux/vhost.h>

/**
 * VHOST_BLK_SET_BACKEND - set or drop the block device that serves all rings
 *
 * index must be 0. fd is an open block device, or -1. A device that was set before is drained,
 * flushed and dropped first; then every ring that has addresses is started at its used index.
 * Requests that change the device are executed only if the file was opened for writing. EIO: the
 * device that was set before could not be flushed; none is set now.
 */
#define VHOST_BLK_SET_BACKEND	_IOW(VHOST_VIRTIO, 0xFF, struct vhost_vring_file)

/**
 * VHOST_BLK_SET_SERIAL - the serial number that GET_ID requests return
 *
 * VHOST_BLK_SERIAL_BYTES bytes, padded with NULs, not necessarily NUL-terminated.
 */
#define VHOST_BLK_SET_SERIAL	_IOW(VHOST_VIRTIO, 0xFE, __u8[VHOST_BLK_SERIAL_BYTES])
#define VHOST_BLK_SERIAL_BYTES	20

/**
 * VHOST_BLK_SET_RING - stop or start one ring
 *
 * num 0: take no further request, wait for those in flight, stop; if no ring runs any more, flush
 * what the guest was told is written. VHOST_GET_VRING_BASE then gives the index to resume at. EIO:
 * the ring is stopped, but what was written may not be on stable storage. num 1: start at the used
 * index. Starting a running ring changes nothing, except that a broken ring is read again.
 */
#define VHOST_BLK_SET_RING	_IOW(VHOST_VIRTIO, 0xFD, struct vhost_vring_state)

/**
 * VHOST_BLK_SET_WRITEBACK - the cache mode of the disk
 *
 * 1: a completed write may be volatile until a flush. 0: writes are durable when they complete, as
 * a guest that cleared 'writeback' in the configuration space may expect. When this returns, that
 * holds for every write that has completed or will, whenever it began. Without VIRTIO_BLK_F_FLUSH
 * among the features, every write is durable in either mode.
 *
 * VHOST_BLK_WRITEBACK_UNKNOWN, the default: as 1 for a guest that starts with fresh rings. A guest
 * whose rings have been served before may have cleared 'writeback' then, if it has
 * VIRTIO_BLK_F_CONFIG_WCE: its writes are durable until it flushes or starts anew. EBUSY while a
 * ring runs.
 */
#define VHOST_BLK_SET_WRITEBACK	_IOW(VHOST_VIRTIO, 0xFC, __u32)
#define VHOST_BLK_WRITEBACK_UNKNOWN	2

/**
 * VHOST_BLK_SET_QUEUES - how many rings this open has
 *
 * 1 to the module parameter max_queues (EINVAL), which is also the default. The first ioctl besides
 * this one and VHOST_GET_FEATURES allocates the rings; after that it is too late (EBUSY).
 */
#define VHOST_BLK_SET_QUEUES	_IOW(VHOST_VIRTIO, 0xFB, __u32)

/* Most data segments in one request (seg_max): a header and a status may each need one more. */
#define VHOST_BLK_MAX_SEGMENTS		1022

/* Most ranges in one DISCARD or WRITE_ZEROES request (max_discard_seg, max_write_zeroes_seg). */
#define VHOST_BLK_MAX_RANGES		32

/* Longest VHOST_SET_VRING_BUSYLOOP_TIMEOUT, in microseconds. */
#define VHOST_BLK_MAX_BUSYLOOP_US	1000000

#endif
