/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sandbox.h - giving up what a process does not need before it reads untrusted bytes.
 */
#ifndef QCOW2ATTACH_SANDBOX_H
#define QCOW2ATTACH_SANDBOX_H

#include <stdbool.h>
#include <sys/types.h>

/* The user that processes without privileges run as; `make install` makes it. */
#define SANDBOX_USER "qcow2attach"

/**
 * struct sandbox_user - the user that a root process becomes.
 * @uid: the user; never root.
 * @gid: its group.
 * @shared: it is nobody, which other programs become, too, since this host has no SANDBOX_USER.
 */
struct sandbox_user {
	uid_t uid;
	gid_t gid;
	bool shared;
};

/**
 * sandbox_find_user() - look up the user to become.
 * @name: a user, or NULL for SANDBOX_USER, or nobody where that does not exist.
 * @user: filled.
 *
 * Only root can become another user: any other user must give no @name, and keeps its identity.
 *
 * Return: 0, or -1 with a cause.
 */
int sandbox_find_user(const char *name, struct sandbox_user *user);

/**
 * sandbox_header_reader() - leave a process only what reading a header takes.
 * @user: the user that it becomes when it is root.
 * @image_fd: the file it may read from, at any offset.
 * @answer_fd: the only descriptor it may write to.
 *
 * Closes every other descriptor but standard error, becomes @user, and allows
 * three system calls: pread64 of @image_fd, write to @answer_fd, and exit.
 * Anything else kills the process.
 *
 * Return: 0, or -1 with a cause.
 */
int sandbox_header_reader(const struct sandbox_user *user, int image_fd, int answer_fd);

/**
 * sandbox_server() - leave a process only what serving a disk takes.
 * @user: the user that it becomes when it is root.
 *
 * Becomes @user when it was root, which drops all capabilities, asks for a
 * SIGTERM when its parent dies, and allows the system calls that accept a
 * connection, map memory and drive the vhost device with what is already open.
 * It can open no file and start no program.
 *
 * Return: 0, or -1 with a cause.
 */
int sandbox_server(const struct sandbox_user *user);

#endif
