// SPDX-License-Identifier: GPL-2.0-only
/*
 * epoch.c - starting a new epoch and waiting for the old one; see epoch.h.
 *
 * Takes epoch.flip_lock, below which nothing else is taken.
 */
#include "epoch.h"

static void epoch_empty(struct percpu_ref *ref)
{
	struct epoch *e = container_of(ref, struct epoch, ref[0]);

	complete(&e->empty);
}

static void epoch_empty_second(struct percpu_ref *ref)
{
	struct epoch *e = container_of(ref, struct epoch, ref[1]);

	complete(&e->empty);
}

int qcow2_epoch_init(struct epoch *e)
{
	int r;

	mutex_init(&e->flip_lock);
	init_completion(&e->empty);
	e->cur = 0;
	r = percpu_ref_init(&e->ref[0], epoch_empty, PERCPU_REF_ALLOW_REINIT, GFP_KERNEL);
	if (r)
		return r;
	r = percpu_ref_init(&e->ref[1], epoch_empty_second, PERCPU_REF_ALLOW_REINIT, GFP_KERNEL);
	if (r)
		percpu_ref_exit(&e->ref[0]);
	return r;
}

void qcow2_epoch_exit(struct epoch *e)
{
	percpu_ref_exit(&e->ref[0]);
	percpu_ref_exit(&e->ref[1]);
}

void qcow2_epoch_flip(struct epoch *e)
{
	struct percpu_ref *old;

	mutex_lock(&e->flip_lock);
	old = &e->ref[e->cur];
	reinit_completion(&e->empty);
	smp_wmb();	/* what was unlinked or marked before the new epoch; see epoch_enter() */
	WRITE_ONCE(e->cur, !e->cur);
	percpu_ref_kill(old);
	wait_for_completion(&e->empty);
	percpu_ref_reinit(old);
	mutex_unlock(&e->flip_lock);
}
