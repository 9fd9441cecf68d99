/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sandbox.h - giving up what a process does not need before it reads bytes that
 * somebody else wrote.
 */
#ifndef QCOW2ATTACH_SANDBOX_H
#define QCOW2ATTACH_SANDBOX_H

/**
 * sandbox_header_reader() - leave a process only what reading a header takes.
 * @image_fd: the file it may read from, at any offset.
 * @answer_fd: the only descriptor it may write to.
 *
 * Closes every other descriptor but standard error, becomes nobody, and allows
 * three system calls: pread64 of @image_fd, write to @answer_fd, and exit.
 * Anything else kills the process.
 *
 * Return: 0, or -1 with a cause.
 */
int sandbox_header_reader(int image_fd, int answer_fd);

/**
 * sandbox_server() - leave a process only what serving a disk takes.
 *
 * Becomes nobody when it was root, which drops all capabilities, asks for a
 * SIGTERM when its parent dies, and allows the system calls that accept a
 * connection, map memory and drive the vhost device with what is already open.
 * It can open no file and start no program.
 *
 * Return: 0, or -1 with a cause.
 */
int sandbox_server(void);

#endif
