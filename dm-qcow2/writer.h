/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * writer.h - the writer of an image: everything that changes mappings happens in one work item.
 *
 * Since the writer is one work item, which never runs twice at once, what only it touches needs no
 * lock.  It never waits for anything that needs it: memory that comes back when an operation ends
 * is asked for without waiting, and a bio that cannot be served is put aside ("stalled") until
 * an operation or a commit ends.
 */
#ifndef DM_QCOW2_WRITER_H
#define DM_QCOW2_WRITER_H

#include <linux/hashtable.h>
#include <linux/mempool.h>

#include "device.h"

#define MAX_OPS		256		/* at a time */
struct qcow2_writer {
	struct qcow2_image *img;

	struct llist_head incoming;	/* bios; lock-free */
	struct llist_head finished;	/* operations whose I/O has ended; lock-free */

	/* The writer's own. */
	DECLARE_HASHTABLE(busy, 7);
	struct list_head stalled;
	struct list_head no_space;
	struct storage_gather gather;	/* writes of operations; empty between two runs */
	unsigned int nr_ops;
	mempool_t ops;
	mempool_t buffers;

	/* Constant while a table is live. */
	bool discard_no_unref;
};

int qcow2_writer_init(struct qcow2_image *img);
void qcow2_writer_stop_polling(struct qcow2_image *img);
void qcow2_writer_stop(struct qcow2_image *img);
void qcow2_writer_exit(struct qcow2_image *img);
void qcow2_writer_configure(struct qcow2_image *img, const struct qcow2_features *f);
void qcow2_writer_grown(struct qcow2_image *img);
void qcow2_writer_release_waiting(struct qcow2_image *img, bool noflush);
void qcow2_writer_flush(struct qcow2_image *img);
void qcow2_writer_resume(struct qcow2_image *img);

#endif /* DM_QCOW2_WRITER_H */
