/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * locks.h - byte-range locks that QEMU understands; see locks.c.
 */
#ifndef DM_QCOW2_LOCKS_H
#define DM_QCOW2_LOCKS_H

#include <linux/fs.h>

/**
 * qcow2_image_lock - take an image's locks
 * @file: the file or device node that the user named
 * @write: for writing
 *
 * Return: 0; -EAGAIN when another process uses the image in a way that excludes ours; or an error.
 */
int qcow2_image_lock(struct file *file, bool write);

/**
 * qcow2_image_lock_downgrade - go from writing to reading
 * @file: as given to qcow2_image_lock()
 */
void qcow2_image_lock_downgrade(struct file *file);

/**
 * qcow2_image_unlock - release all of an image's locks
 * @file: as given to qcow2_image_lock()
 */
void qcow2_image_unlock(struct file *file);

#endif /* DM_QCOW2_LOCKS_H */
