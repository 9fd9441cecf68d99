/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * note.h - where it is noted what a guest changes.
 *
 * Nothing keeps such a record yet but a hook for tests, which finds a path that forgets to tell.
 */
#ifndef DM_QCOW2_NOTE_H
#define DM_QCOW2_NOTE_H

#include "hooks.h"

struct qcow2_image;

/**
 * qcow2_note_write - what an image reads as is about to change
 * @img: a writable image
 * @goff: guest offset
 * @len: bytes
 *
 * Called for every write, discard and write-zeroes when it is certain what becomes of it, and
 * before its data is submitted or its mapping changes: by the writer, or in an epoch, so that a
 * point in time falls before or after.  A bio that starts over is noted again.
 *
 * Any context; does not sleep.
 */
static inline void qcow2_note_write(struct qcow2_image *img, u64 goff, u64 len)
{
	hook_noted(goff, len);
}

#endif /* DM_QCOW2_NOTE_H */
