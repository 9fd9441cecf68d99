/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * listen.h - the socket at which a virtual machine finds its disk.
 */
#ifndef QCOW2ATTACH_LISTEN_H
#define QCOW2ATTACH_LISTEN_H

#include <stdbool.h>
#include <sys/types.h>

/* Where sockets are by default, and what root locks. */
#define SOCKET_DIR "/run/qcow2attach"

/**
 * struct listener - a listening socket.
 * @fd: the socket, non-blocking.
 * @path: its name, from the root directory on.
 * @base: the last part of it.
 * @dir: the directory that the socket is in, opened with O_PATH.
 * @dev: with @ino, the identity of the socket's file.
 * @ino: see @dev.
 */
struct listener {
	int fd;
	char *path;
	const char *base;
	int dir;
	dev_t dev;
	ino_t ino;
};

/**
 * struct socket_owner - the users that may connect.
 * @given: another user than this process's may.
 * @uid: the user.
 * @gid: the group, or -1 for none.
 */
struct socket_owner {
	bool given;
	uid_t uid;
	gid_t gid;
};

/**
 * parse_socket_owner() - read USER or USER:GROUP.
 *
 * Return: 0, or -1 with a cause.
 */
int parse_socket_owner(const char *text, struct socket_owner *owner);

/**
 * listener_open() - listen at a path.
 * @l: filled.
 * @path: where; a socket that nobody listens at any more is replaced.
 * @owner: the users that may connect.
 *
 * Servers of one user do this one at a time: each briefly locks a file that only that user can
 * open, root below SOCKET_DIR, others in the socket's directory.
 *
 * Return: 0, or -1 with a cause.
 */
int listener_open(struct listener *l, const char *path, const struct socket_owner *owner);

/** listener_unlink() - remove the name from its directory, if it still is this socket's. */
void listener_unlink(const struct listener *l);

/** listener_close() - close and free what listener_open() filled. */
void listener_close(struct listener *l);

#endif
