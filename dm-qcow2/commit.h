/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * commit.h - the one place where durability is decided; the protocol is described in commit.c.
 */
#ifndef DM_QCOW2_COMMIT_H
#define DM_QCOW2_COMMIT_H

#include "io.h"

/**
 * qcow2_commit_init - set up
 * @img: the image
 *
 * Return: 0 or -ENOMEM; qcow2_commit_exit() must be called either way.
 */
int qcow2_commit_init(struct qcow2_image *img);

/**
 * qcow2_commit_stop - let queued work finish
 * @img: the image, quiet: the writer has no bio and no operation, so the writer starts no commit
 *
 * The last commit wakes the writer, which must be stopped after this call and before
 * qcow2_commit_exit().
 */
void qcow2_commit_stop(struct qcow2_image *img);

/**
 * qcow2_commit_exit - free what qcow2_commit_init() made
 * @img: the image, after qcow2_commit_stop() and before qcow2_generation_exit()
 */
void qcow2_commit_exit(struct qcow2_image *img);

/**
 * qcow2_commit_add_io - end a FLUSH or FUA bio after the next commit
 * @img: a writable image
 * @io: the bio; the changes that it waits for are in memory already
 *
 * Any context.
 */
void qcow2_commit_add_io(struct qcow2_image *img, struct qcow2_io *io);

/**
 * qcow2_commit_now - make everything that has been acknowledged durable
 * @img: a writable image
 *
 * Also ends the FLUSH and FUA bios that waited.  Sleeps.
 *
 * Return: 0; the error that made the image MODE_FAILED, now or earlier; or -ENOSPC, -EAGAIN or
 * -ENOMEM when the commit will be tried again.
 */
int qcow2_commit_now(struct qcow2_image *img);

/**
 * qcow2_commit_for_caller - qcow2_commit_now() when a process asks for it
 * @img: a writable image
 *
 * A worker commits: a filesystem applies the file size limit of the task that writes, and may stop
 * waiting when that task is killed.  Neither must fail an image.  Sleeps.
 *
 * Return: as qcow2_commit_now()
 */
int qcow2_commit_for_caller(struct qcow2_image *img);

/**
 * qcow2_commit_everything - leave a clean image with no leaked cluster
 * @img: a writable image; no I/O and no allocation is going on
 *
 * Return: 0 or -errno.
 */
int qcow2_commit_everything(struct qcow2_image *img);

#endif /* DM_QCOW2_COMMIT_H */
