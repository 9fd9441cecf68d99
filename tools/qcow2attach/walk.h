/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * walk.h - from a name to the file it leads to, step by step, so that each link and
 * each directory on the way is looked at once and can be judged.
 */
#ifndef QCOW2ATTACH_WALK_H
#define QCOW2ATTACH_WALK_H

#include "util.h"

/**
 * struct walk - where a name has led.
 * @fd: the file, opened with O_PATH.
 * @dir: the directory in which the name itself says that it is; names relative to it go on there.
 * @places: the directories in which the file was looked for by its last name, by their real paths:
 *          that of the name, and that of each link's target there. Only those that belong to root
 *          and that only root can write.
 */
struct walk {
	int fd;
	int dir;
	struct strv places;
};

/**
 * walk_open() - follow a name.
 * @w: filled; walk_close() it, also after a failure.
 * @dir: the directory that a relative name begins in, or AT_FDCWD.
 * @name: the name.
 *
 * No part of the name is followed twice. The links of /proc that lead to what a process has open
 * are not followed.
 *
 * Return: 0, or -1 with a cause.
 */
int walk_open(struct walk *w, int dir, const char *name);

/** walk_close() - close both descriptors, and forget the places. */
void walk_close(struct walk *w);

/**
 * real_place() - where an open file or directory is, whatever its name led through.
 * @fd: the file or directory.
 * @real: receives the path.
 * @len: bytes there.
 *
 * Return: 0, or -1 with a cause.
 */
int real_place(int fd, char *real, size_t len);

#endif
