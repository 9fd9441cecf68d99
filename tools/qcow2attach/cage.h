/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * cage.h - running a program of somebody else's on an image of an enemy's: as a user
 * without rights, with an end to what it may take, and with one file that it may open
 * although that user could not.
 */
#ifndef QCOW2ATTACH_CAGE_H
#define QCOW2ATTACH_CAGE_H

#include <stdbool.h>
#include <sys/stat.h>
#include <sys/types.h>

/* What the program opens when it is to open the image. */
#define CAGE_IMAGE "/proc/self/fd/3"

/**
 * struct cage - a program that runs.
 * @pid: the process.
 * @image: the image, open; the caller's.
 * @writable: it may open the image for writing.
 * @listener: where it asks for files when it has another user than we, else -1. Readable when it
 *            asks; hung up when it has ended.
 */
struct cage {
	pid_t pid;
	int image;
	bool writable;
	int listener;
};

/**
 * cage_start() - start a program.
 * @cage: with @image and @writable filled in; the rest is filled. cage_close() it after a success.
 * @argv: the program, found as the shell would, and its arguments.
 * @st: attributes of the image.
 * @out: its standard output.
 * @err: its standard error.
 *
 * It has no terminal, and is killed when this process ends.
 *
 * Return: 0, or -1 with a cause; errno is ENOENT when there is no such program.
 */
int cage_start(struct cage *cage, char *const argv[], const struct stat *st, int out, int err);

/**
 * cage_answer() - open the image for the program, when that is what it asks for.
 * @cage: the cage; its listener is readable.
 */
void cage_answer(const struct cage *cage);

/** cage_close() - close the listener. */
void cage_close(struct cage *cage);

#endif
