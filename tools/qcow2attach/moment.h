/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * moment.h - a view of an attached disk, shown by a device, for as long as one command runs.
 */
#ifndef QCOW2ATTACH_MOMENT_H
#define QCOW2ATTACH_MOMENT_H

#include <stdbool.h>
#include <sys/types.h>

#include "dm.h"

/**
 * struct moment - a point in time of a disk.
 * @live: the disk's device.
 * @dev: the device that shows the view.
 * @view: the view's name.
 * @partial: a file to be removed along once it has been made, or NULL.
 * @made: it has.
 * @cleaner: the process that removes all of that if this one is killed.
 * @alive: a pipe to it, which ends when this process does.
 */
struct moment {
	const struct dm_device *live;
	struct dm_device dev;
	char view[64];
	char *partial;
	bool made;
	pid_t cleaner;
	int alive;
};

/**
 * moment_take() - take a view of a disk and show it.
 * @m: filled; ended with moment_end().
 * @live: the device, as dmdev_find() found it: attached read-write.
 * @partial: a file that is to be removed if this process is killed, once moment_made() has said
 *	that it is ours; or NULL.
 *
 * The view and its device go when this process ends, also when it is killed. Views and devices that
 * commands have left that were killed together with the process that cleans up after them are
 * removed first.
 *
 * Return: 0, or -1 with a cause and nothing left.
 */
int moment_take(struct moment *m, const struct dm_device *live, const char *partial);

/** moment_made() - say that @partial is there, and ours. */
void moment_made(struct moment *m);

/**
 * moment_end() - remove the view and its device, and @partial if it has been made.
 * @m: from moment_take().
 *
 * What cannot be removed is reported. The remembered cause stays.
 */
void moment_end(struct moment *m);

#endif
