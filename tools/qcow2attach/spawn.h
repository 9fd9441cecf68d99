/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * spawn.h - a process of our own that tells the one that started it something by a pipe.
 */
#ifndef QCOW2ATTACH_SPAWN_H
#define QCOW2ATTACH_SPAWN_H

#include <sys/types.h>

/**
 * struct spawned - the two ends of it.
 * @pid: the new process; 0 in that.
 * @fd: where the new process writes what it has to tell, and the other reads it. It is closed when
 *	a program is started.
 */
struct spawned {
	pid_t pid;
	int fd;
};

/**
 * spawn() - start a process that goes on from here.
 * @s: set in both processes.
 * @what: what it is, for the message when there is none.
 * @with_us: a signal that it gets when the process that started it has ended, even if that is
 *	before this returns; or 0.
 *
 * Return: 0, in both; or -1 with a cause, and then there is no other process.
 */
int spawn(struct spawned *s, const char *what, int with_us);

#endif
