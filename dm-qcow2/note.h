/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * note.h - notes the ranges that a guest changes.
 *
 * Only a hook for tests keeps such a record yet; it finds a path that forgets the call.
 */
#ifndef DM_QCOW2_NOTE_H
#define DM_QCOW2_NOTE_H

#include "hooks.h"

struct qcow2_image;

/**
 * qcow2_note_write - note that the content of a guest range is about to change
 * @img: a writable image
 * @goff: guest offset
 * @len: bytes
 *
 * Called for every write, discard and write-zeroes once its outcome is certain, and before its data
 * is submitted or its mapping changes.  The caller is the writer, or in an epoch, so that a point
 * in time falls before or after the change.  A bio that starts over is noted again.
 *
 * Any context; does not sleep.
 */
static inline void qcow2_note_write(struct qcow2_image *img, u64 goff, u64 len)
{
	hook_noted(goff, len);
}

#endif /* DM_QCOW2_NOTE_H */
