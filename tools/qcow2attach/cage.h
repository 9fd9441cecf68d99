/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * cage.h - running a foreign program on an untrusted image: as an unprivileged user, with limited
 * resources, and with one file that it may open although that user could not.
 */
#ifndef QCOW2ATTACH_CAGE_H
#define QCOW2ATTACH_CAGE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

/* What the program opens when it is to open the image. */
#define CAGE_IMAGE "/proc/self/fd/3"

/**
 * struct cage - a program that runs.
 * @pid: the process.
 * @image: the image, open; the caller's.
 * @writable: it may open the image for writing.
 * @listener: where the program asks for files when it runs as another user, else -1. Readable when
 *            it asks; hung up when it has ended.
 * @idle_limit: seconds after which it is killed when it has done nothing: no processor time, no
 *              reading or writing, and no storage that it waits for; 0: never.
 * @killed: why we have killed it, else NULL.
 * @looked: when it was last checked, in milliseconds.
 * @work: what it had done by then.
 * @idle: for how many seconds that has been the same.
 * @left: seconds after which it is killed whatever it does.
 */
struct cage {
	pid_t pid;
	int image;
	bool writable;
	int listener;
	unsigned int idle_limit;
	const char *killed;
	uint64_t looked;
	uint64_t work;
	unsigned int idle;
	uint64_t left;
};

/**
 * cage_start() - start a program.
 * @cage: with @image, @writable and @idle_limit filled in; the rest is filled. cage_end() it after
 *        a success.
 * @argv: the program, found as the shell would, and its arguments.
 * @st: attributes of the image.
 * @out: its standard output.
 * @err: its standard error.
 *
 * The program has no terminal, and is killed when this process ends.
 *
 * Return: 0, or -1 with a cause; errno is ENOENT when there is no such program.
 */
int cage_start(struct cage *cage, char *const argv[], const struct stat *st, int out, int err);

/**
 * cage_answer() - open the image for the program, when the program asks for it.
 * @cage: the cage; its listener is readable.
 */
void cage_answer(const struct cage *cage);

/**
 * cage_watch() - kill the program when it shows no sign of work, or takes too long.
 * @cage: the cage. To be called every second or more often.
 *
 * Return: whether it has been killed.
 */
bool cage_watch(struct cage *cage);

/**
 * cage_end() - wait until the program has ended, and kill it if that takes more than some seconds.
 * @cage: the cage, whose program has closed its output or was killed. The program is gone
 *	afterwards.
 *
 * Return: its status, as of waitpid().
 */
int cage_end(struct cage *cage);

#endif
