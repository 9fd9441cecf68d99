/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * view.h - making, deleting and freeing views: the writer's part and the messages; see view.c.
 */
#ifndef DM_QCOW2_VIEW_H
#define DM_QCOW2_VIEW_H

#include "view-map.h"
#include "writer.h"

#define VIEW_LIMIT_MIB		64U		/* unless the table says */
#define MAX_VIEW_LIMIT_MIB	(1U << 20)

/**
 * struct qcow2_view_cost - what the views of an image take
 * @nr:		Views that can be read.
 * @clusters:	Guest clusters whose old content is kept for them, or not freed yet.
 * @bytes:	Memory of their maps.
 */
struct qcow2_view_cost {
	unsigned int nr;
	u64 clusters;
	u64 bytes;
};

/**
 * qcow2_view_message - do what the message "view ..." asks for
 * @img: the image of a device that is writable
 * @argc: number of words after "view"
 * @argv: the words: "create NAME [hold]", "release", "delete NAME" or "list"
 * @result: where the answer to "list" goes
 * @maxlen: bytes of memory there
 *
 * "create" sleeps until the operations and then the I/O that are under way have ended.  With "hold"
 * nothing is written to the disk afterwards, until "release" or for HOLD_TIME at most; so several
 * devices can be marked at one moment.
 *
 * "list" answers "NAME SECTORS CLUSTERS KIB" for each view: the last two are what its own map has.
 *
 * Return: 0; 1 when there is an answer; or -errno, with the reason in the log: -EEXIST, -ENOENT,
 * -EBUSY when a device shows the view, or the disk is held; -ETIME when a hold has ended by itself;
 * -ENOSPC when writes wait for room, or the view had to be given up at once; -EMFILE for too many
 * views.
 */
int qcow2_view_message(struct qcow2_image *img, unsigned int argc, char **argv, char *result,
		       unsigned int maxlen);

/**
 * qcow2_view_work - do what messages ask for, and free what no view needs
 * @w: the writer
 *
 * Context: the writer's work item, with the operations that have ended off the list.
 */
void qcow2_view_work(struct qcow2_writer *w);

/**
 * qcow2_view_sample - see whether bios must wait in this run of the writer
 * @img: a writable image
 *
 * Called before bios are taken, and not between two of them: so one that was handed over before
 * such a wait ended has its turn with, or before, those that waited.
 *
 * Context: the writer's work item.
 */
void qcow2_view_sample(struct qcow2_image *img);

/* Must bios wait that would start an operation?  Context: the writer's work item. */
static inline bool qcow2_view_stalls(const struct qcow2_image *img)
{
	const struct qcow2_views *views = &img->views;

	return views->stalling || views->draining || views->stale;
}

/**
 * qcow2_view_pause - stop freeing clusters: the device is being suspended
 * @img: a writable image; no bio is coming
 *
 * What the writer has begun goes on until its work is flushed.  qcow2_view_resume() ends this.
 */
void qcow2_view_pause(struct qcow2_image *img);
void qcow2_view_resume(struct qcow2_image *img);

/**
 * qcow2_view_unhold - end a hold: bios must come through
 * @img: a writable image
 *
 * Sleeps for the hold's timer.
 */
void qcow2_view_unhold(struct qcow2_image *img);

/**
 * qcow2_view_cost - what the views take
 * @img: a writable image
 * @cost: filled in
 *
 * For show.  Does not sleep.
 */
void qcow2_view_cost(struct qcow2_image *img, struct qcow2_view_cost *cost);

/**
 * qcow2_view_finish - drop all views, and free their clusters
 * @img: a writable image that is suspended, whose device goes or stops writing
 *
 * Writes and commits.  When that is not possible, the clusters stay leaked.  Sleeps.
 */
void qcow2_view_finish(struct qcow2_image *img);

/**
 * qcow2_view_init - set up
 * @img: an image that is new
 */
void qcow2_view_init(struct qcow2_image *img);

/**
 * qcow2_view_exit - free the memory of views that could not be finished
 * @img: an image whose writer is stopped
 */
void qcow2_view_exit(struct qcow2_image *img);

#endif /* DM_QCOW2_VIEW_H */
