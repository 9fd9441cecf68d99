/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * locks.h - byte-range locks that QEMU understands; see locks.c.
 */
#ifndef DM_QCOW2_LOCKS_H
#define DM_QCOW2_LOCKS_H

#include <linux/fs.h>

int qcow2_image_lock(struct file *file, bool write);
void qcow2_image_lock_downgrade(struct file *file);
void qcow2_image_unlock(struct file *file);

#endif /* DM_QCOW2_LOCKS_H */
