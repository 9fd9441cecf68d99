/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * state.h - the mode of a writable image, and waking bios that wait; see state.c.
 */
#ifndef DM_QCOW2_STATE_H
#define DM_QCOW2_STATE_H

#include "image.h"

/**
 * qcow2_set_mode - change the mode of an image
 * @img: the image
 * @mode: the new mode; MODE_READ_ONLY and MODE_FAILED are never left for a better one
 * @why: for the log
 *
 * Any context.  Raises a DM event when the mode changes.
 */
void qcow2_set_mode(struct qcow2_image *img, enum image_mode mode, const char *why);

/**
 * qcow2_out_of_space - something waits for space
 * @img: a writable image
 * @refused: the storage has refused a write; only a write that succeeds shows that it has room
 *	again
 * @why: for the log
 *
 * From now on a retry follows every second, for as long as the table says.  Any context.
 */
void qcow2_out_of_space(struct qcow2_image *img, bool refused, const char *why);

/**
 * qcow2_has_room - the storage has taken a write that it had refused
 * @img: a writable image
 *
 * Any context.
 */
void qcow2_has_room(struct qcow2_image *img);

/**
 * qcow2_gives_up - must bios without space fail, rather than wait?
 * @img: a writable image
 */
bool qcow2_gives_up(struct qcow2_image *img);

/**
 * qcow2_no_space_status - the status of a bio that must not wait for space
 * @img: a writable image
 *
 * During a suspend with noflush, DM keeps the bio.
 */
blk_status_t qcow2_no_space_status(struct qcow2_image *img);

/**
 * qcow2_mark_corrupt - metadata says something impossible
 * @img: the image
 * @what: what it says
 * @pos: where, in bytes
 *
 * Any context.  The image takes no more changes, and its header will say that it needs repair.
 */
void qcow2_mark_corrupt(struct qcow2_image *img, const char *what, u64 pos);

/**
 * qcow2_event_work - tell userspace, and the header, of a change of mode
 * @work: image.event_work
 */
void qcow2_event_work(struct work_struct *work);

/**
 * qcow2_wake_writer - a commit has ended: stalled bios can go on
 * @img: a writable image
 */
void qcow2_wake_writer(struct qcow2_image *img);

/**
 * qcow2_retry_waiting - try everything that waits again
 * @img: a writable image
 *
 * Any context.
 */
void qcow2_retry_waiting(struct qcow2_image *img);

/**
 * qcow2_space_freed - there may be free clusters again
 * @img: a writable image
 *
 * Any context.  Free clusters do not tell whether a storage that refuses to write takes writes now:
 * a write is tried, and the mode stays.
 */
void qcow2_space_freed(struct qcow2_image *img);

/**
 * qcow2_kick_commit - start a commit soon
 * @img: a writable image
 *
 * Any context.
 */
void qcow2_kick_commit(struct qcow2_image *img);

/**
 * qcow2_commit_is_stuck - does a commit wait for room to be written?
 * @img: a writable image
 *
 * Any context.  The commit may have ended by the time the caller looks at the answer; then
 * everything that waits is tried again.
 */
bool qcow2_commit_is_stuck(struct qcow2_image *img);

#endif /* DM_QCOW2_STATE_H */
