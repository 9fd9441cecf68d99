/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * writer.h - the writer of an image: everything that changes mappings happens in one work item.
 *
 * The writer is one work item, which never runs twice at once, so data that only the writer touches
 * needs no lock.  The writer never waits for anything that needs the writer: it does not wait for
 * memory that comes back when an operation ends, and it stalls a bio that cannot be served until an
 * operation or a commit ends.
 */
#ifndef DM_QCOW2_WRITER_H
#define DM_QCOW2_WRITER_H

#include <linux/mempool.h>
#include <linux/rbtree.h>

#include "device.h"

#define MAX_OPS		256		/* at a time */
struct qcow2_writer {
	struct qcow2_image *img;

	struct llist_head incoming;	/* bios; lock-free */
	struct llist_head finished;	/* operations whose I/O has ended; lock-free */

	/* The writer's own. */
	struct rb_root_cached busy;	/* operations under way, by guest clusters (cow.c) */
	struct list_head stalled;
	struct list_head no_space;
	struct storage_gather gather;	/* writes of operations; empty between two runs */
	unsigned int nr_ops;
	mempool_t ops;
	mempool_t buffers;

	/* Constant while a table is live. */
	bool discard_no_unref;
};

/**
 * qcow2_writer_init - set up
 * @img: the image
 *
 * Return: 0 or -ENOMEM; qcow2_writer_exit() must be called either way.
 */
int qcow2_writer_init(struct qcow2_image *img);

/**
 * qcow2_writer_stop_polling - stop looking for space
 * @img: the image, quiet; before qcow2_commit_stop(), since looking for space starts commits
 */
void qcow2_writer_stop_polling(struct qcow2_image *img);

/**
 * qcow2_writer_stop - let queued work finish
 * @img: the image, quiet, after qcow2_commit_stop(): nothing wakes the writer any more
 */
void qcow2_writer_stop(struct qcow2_image *img);

/**
 * qcow2_writer_exit - free what qcow2_writer_init() made
 * @img: the image, after qcow2_writer_stop()
 */
void qcow2_writer_exit(struct qcow2_image *img);

/**
 * qcow2_writer_configure - apply the features of a table
 * @img: a writable image that is suspended
 * @f: the features of the table that becomes live
 */
void qcow2_writer_configure(struct qcow2_image *img, const struct qcow2_features *f);

/**
 * qcow2_writer_grown - assume that the storage has room now
 * @img: a writable image
 *
 * Everything that waits is tried again, and may wait anew.
 */
void qcow2_writer_grown(struct qcow2_image *img);

/**
 * qcow2_writer_release_waiting - end the bios that wait for space
 * @img: a writable image that is being suspended
 * @noflush: give them back to DM instead of failing them
 *
 * Until qcow2_writer_resume() such bios are ended as soon as they come.
 */
void qcow2_writer_release_waiting(struct qcow2_image *img, bool noflush);

/**
 * qcow2_writer_flush - wait until the writer has nothing to do
 * @img: a writable image; no bio is coming
 */
void qcow2_writer_flush(struct qcow2_image *img);

/**
 * qcow2_writer_resume - take bios again
 * @img: a writable image
 */
void qcow2_writer_resume(struct qcow2_image *img);

#endif /* DM_QCOW2_WRITER_H */
