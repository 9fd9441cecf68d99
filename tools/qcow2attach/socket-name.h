/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * socket-name.h - where a process listens.
 */
#ifndef QCOW2ATTACH_SOCKET_NAME_H
#define QCOW2ATTACH_SOCKET_NAME_H

#include <stddef.h>

/**
 * socket_name() - the one listening Unix socket with a path that a process has.
 * @pid: the process, as /proc calls it.
 * @buf: receives the path, or an empty string when there is none or it cannot be known.
 * @len: bytes in @buf.
 */
void socket_name(const char *pid, char *buf, size_t len);

#endif
