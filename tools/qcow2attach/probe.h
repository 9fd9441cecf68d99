/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * probe.h - reading a header in a process that can do nothing else.
 */
#ifndef QCOW2ATTACH_PROBE_H
#define QCOW2ATTACH_PROBE_H

#include "header.h"

/**
 * probe_header() - read the header of an open image.
 * @fd: the image.
 * @header: the result.
 *
 * A child process does it that has no privileges, no files but this one and no
 * system calls but reading it; its answer is not trusted either.
 *
 * Return: 0, or -1 with a cause.
 */
int probe_header(int fd, struct image_header *header);

#endif
