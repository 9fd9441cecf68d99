/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Leave a mark in the log of a dm-log-writes device, in order with the writes
 * that have completed.  Owns nothing; the device-mapper ioctl alone, so that a
 * test program needs no library and no process for it.
 */
#ifndef TESTS_DM_MARK_H
#define TESTS_DM_MARK_H

#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Send "mark @text", one word, to the device called @name; 0, or -1 with errno set. */
static inline int dm_mark(const char *name, const char *text)
{
	struct {
		struct dm_ioctl ioctl;
		__u64 sector;		/* the struct dm_target_msg */
		char text[256];
	} message = {
		.ioctl = {
			.version = { DM_VERSION_MAJOR, 0, 0 },
			.data_size = sizeof(message),
			.data_start = sizeof(message.ioctl),
		},
	};
	int control = open("/dev/mapper/control", O_RDWR | O_CLOEXEC), ret;

	if (control < 0)
		return -1;
	snprintf(message.ioctl.name, sizeof(message.ioctl.name), "%s", name);
	snprintf(message.text, sizeof(message.text), "mark %s", text);
	ret = ioctl(control, DM_TARGET_MSG, &message);
	close(control);
	return ret;
}

#endif
