/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * kmsg.h - the kernel's own words about a request that it refused.
 *
 * Device-mapper answers an ioctl with an errno; the reason goes to the kernel
 * log. It is read from there, from the moment of the request on.
 */
#ifndef QCOW2ATTACH_KMSG_H
#define QCOW2ATTACH_KMSG_H

#include <stddef.h>

/**
 * struct kmsg - a place in the kernel log.
 * @fd: /dev/kmsg, or -1 when it may not be read.
 */
struct kmsg {
	int fd;
};

/** kmsg_begin() - remember the end of the log as it is now. */
void kmsg_begin(struct kmsg *log);

/**
 * kmsg_reasons() - what device-mapper and the qcow2 target logged since then.
 * @log: from kmsg_begin(); closed by this call.
 * @major: the device the request was about; lines about others are left out.
 * @minor: likewise.
 * @buf: receives the reasons, joined by "; ", empty when there are none.
 * @len: bytes in @buf.
 */
void kmsg_reasons(struct kmsg *log, unsigned int major, unsigned int minor, char *buf, size_t len);

/**
 * kmsg_line_reason() - the reason in one line of the log, if it holds one.
 * @line: the line's text, without the priority fields.
 * @dev: the device as "major:minor".
 *
 * Return: a pointer into @line, or NULL when the line is about something else.
 */
const char *kmsg_line_reason(const char *line, const char *dev);

#endif
