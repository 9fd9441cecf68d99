/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * spawn.h - a process of our own that reports to its parent through a pipe.
 */
#ifndef QCOW2ATTACH_SPAWN_H
#define QCOW2ATTACH_SPAWN_H

#include <sys/types.h>

/**
 * struct spawned - the new process, and this end of the pipe.
 * @pid: the new process; 0 in the new process itself.
 * @fd: the pipe, which the new process writes to, and its parent reads. It is closed on exec.
 */
struct spawned {
	pid_t pid;
	int fd;
};

/**
 * spawn() - start a process that goes on from here.
 * @s: set in both processes.
 * @what: its name, for the message on failure.
 * @with_us: a signal that the process gets when its parent has ended, even if that is before this
 *	returns; or 0.
 *
 * Return: 0, in both; or -1 with a cause, and then there is no other process.
 */
int spawn(struct spawned *s, const char *what, int with_us);

#endif
