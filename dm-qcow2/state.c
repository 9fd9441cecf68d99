// SPDX-License-Identifier: GPL-2.0-only
/*
 * state.c - the mode of a writable image: one setter, events, and what follows from each change;
 * and waking bios that wait for space, for a commit, or for the writer's turn.
 *
 * Takes image.state_lock (innermost) and, to raise events, image.event_lock (outermost but for the
 * registry's).
 */
#include <linux/device-mapper.h>
#include <linux/module.h>
#include <linux/sched/mm.h>

#include "header.h"
#include "hooks.h"
#include "image.h"
#include "state.h"

#ifdef DM_QCOW2_TEST_HOOKS
unsigned long test_noted;
module_param(test_noted, ulong, 0600);
#endif

static const char * const mode_names[] = {
	[MODE_RW] = "read-write",
	[MODE_OUT_OF_SPACE] = "out of space",
	[MODE_READ_ONLY] = "read-only",
	[MODE_FAILED] = "failed",
};

bool qcow2_commit_is_stuck(struct qcow2_image *img)
{
	return READ_ONCE(img->waits.stuck);
}

void qcow2_kick_commit(struct qcow2_image *img)
{
	qcow2_worker_kick(&img->commit_worker);
}

void qcow2_wake_writer(struct qcow2_image *img)
{
	WRITE_ONCE(img->waits.wake, true);
	qcow2_worker_kick(&img->write_worker);
}

void qcow2_retry_waiting(struct qcow2_image *img)
{
	WRITE_ONCE(img->waits.space, true);
	qcow2_wake_writer(img);
}

void qcow2_set_mode(struct qcow2_image *img, enum image_mode mode, const char *why)
{
	unsigned long flags;
	bool changed;

	spin_lock_irqsave(&img->state_lock, flags);
	changed = img->mode != mode && (img->mode < MODE_READ_ONLY || mode > img->mode);
	if (changed)
		WRITE_ONCE(img->mode, mode);
	spin_unlock_irqrestore(&img->state_lock, flags);
	if (!changed)
		return;
	if (mode == MODE_RW)
		DMINFO("%s: %s again: %s", img->name, mode_names[mode], why);
	else
		DMERR("%s: now %s: %s", img->name, mode_names[mode], why);
	schedule_work(&img->event_work);
	/* Nothing else would wake bios that wait for space that will not come. */
	if (mode >= MODE_READ_ONLY && img->write_worker.wq) {
		qcow2_retry_waiting(img);
		if (qcow2_commit_is_stuck(img))
			qcow2_kick_commit(img);
	}
}

void qcow2_space_freed(struct qcow2_image *img)
{
	if (!READ_ONCE(img->waits.refused)) {
		WRITE_ONCE(img->waits.expired, false);
		if (image_mode(img) == MODE_OUT_OF_SPACE)
			qcow2_set_mode(img, MODE_RW, "clusters were freed or the storage grew");
	}
	qcow2_retry_waiting(img);
}

void qcow2_out_of_space(struct qcow2_image *img, bool refused, const char *why)
{
	struct qcow2_waits *w = &img->waits;

	if (refused)
		WRITE_ONCE(w->refused, true);
	if (image_mode(img) == MODE_RW) {
		WRITE_ONCE(w->last_limit, img->st.ops->limit(&img->st));
		WRITE_ONCE(w->no_space_since, jiffies);
		WRITE_ONCE(w->expired, false);
		qcow2_set_mode(img, MODE_OUT_OF_SPACE, why);
	}
	/* A suspended image is left alone: its release stops the polling after setting this. */
	if (!READ_ONCE(w->release))
		queue_delayed_work(img->write_worker.wq, &w->poll, SPACE_POLL);
}

void qcow2_has_room(struct qcow2_image *img)
{
	if (qcow2_commit_is_stuck(img))
		return;
	WRITE_ONCE(img->waits.refused, false);
	qcow2_space_freed(img);
}

bool qcow2_gives_up(struct qcow2_image *img)
{
	const struct qcow2_waits *w = &img->waits;

	return w->error_if_no_space || READ_ONCE(w->release) || READ_ONCE(w->expired);
}

blk_status_t qcow2_no_space_status(struct qcow2_image *img)
{
	const struct qcow2_waits *w = &img->waits;

	/* Pairs with the release in qcow2_writer_release_waiting(): @noflush is set by then. */
	return smp_load_acquire(&w->release) && w->noflush ? BLK_STS_DM_REQUEUE : BLK_STS_NOSPC;
}

void qcow2_mark_corrupt(struct qcow2_image *img, const char *what, u64 pos)
{
	unsigned long flags;
	bool first;

	spin_lock_irqsave(&img->state_lock, flags);
	first = !img->corrupt;
	WRITE_ONCE(img->corrupt, true);
	spin_unlock_irqrestore(&img->state_lock, flags);
	if (!first)
		return;
	DMERR("%s: image is corrupt: %s (at %llu)", img->name, what, pos);
	qcow2_set_mode(img, MODE_READ_ONLY, "corrupt metadata");
}

void qcow2_event_work(struct work_struct *work)
{
	struct qcow2_image *img = container_of(work, struct qcow2_image, event_work);

	unsigned int noio = memalloc_noio_save();

	/* Under the lock: a target that is going away clears img->ti first. */
	mutex_lock(&img->event_lock);
	if (img->ti) {
		if (READ_ONCE(img->corrupt) && qcow2_header_set_corrupt(img))
			DMERR("%s: cannot mark the image corrupt", img->name);
		dm_table_event(img->ti->table);
	}
	mutex_unlock(&img->event_lock);
	memalloc_noio_restore(noio);
}
