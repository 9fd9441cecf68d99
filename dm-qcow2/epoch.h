/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * epoch.h - knowing when no I/O uses an unlinked host cluster any more.
 *
 * Every I/O on a writable image enters the current epoch before it looks up its mapping, and leaves
 * that epoch when the I/O on the mapped cluster has ended, on any CPU.  qcow2_epoch_flip() starts a
 * new epoch and waits until the old one is empty: then all I/O has ended that could have seen a
 * mapping removed before the flip.
 *
 * Two percpu_refs take turns, so that entering and leaving writes nothing that another CPU writes.
 *
 * Invariant: epoch_enter() reads @cur and takes the reference inside one RCU read-side section.
 * percpu_ref_kill() waits for an RCU grace period before it can find the count to be zero, so a
 * reader that saw the old @cur is either counted in the killed reference or finds it dead and
 * tries again; it can never slip into the old reference after that has been revived.
 */
#ifndef DM_QCOW2_EPOCH_H
#define DM_QCOW2_EPOCH_H

#include <linux/completion.h>
#include <linux/mutex.h>
#include <linux/percpu-refcount.h>

struct epoch {
	struct percpu_ref ref[2];
	int cur;			/* index of the live one; written under @flip_lock */
	struct mutex flip_lock;		/* one flip at a time */
	struct completion empty;	/* the killed reference has dropped to zero */
};

/**
 * qcow2_epoch_init - set up
 * @e: the epoch pair
 *
 * Return: 0 or -ENOMEM.
 */
int qcow2_epoch_init(struct epoch *e);

/**
 * qcow2_epoch_exit - tear down; no I/O may be in an epoch
 * @e: the epoch pair
 */
void qcow2_epoch_exit(struct epoch *e);

/**
 * qcow2_epoch_flip - wait until all I/O that is in the epoch now has left it
 * @e: the epoch pair
 *
 * Sleeps for as long as the slowest such I/O takes.  Must not be called from inside an epoch.
 */
void qcow2_epoch_flip(struct epoch *e);

/**
 * epoch_enter - enter the current epoch
 * @e: the epoch pair
 *
 * What the caller reads from now on is as new as what was written before the epoch began.
 *
 * Any context.  Return: what to pass to epoch_leave().
 */
static inline struct percpu_ref *epoch_enter(struct epoch *e)
{
	struct percpu_ref *ref;
	bool live;

	do {
		rcu_read_lock();
		ref = &e->ref[READ_ONCE(e->cur)];
		live = percpu_ref_tryget_live_rcu(ref);
		rcu_read_unlock();
	} while (unlikely(!live));
	smp_rmb();	/* pairs with the smp_wmb() in qcow2_epoch_flip() */
	return ref;
}

/**
 * epoch_leave - leave an epoch
 * @ref: what epoch_enter() returned
 *
 * Any context, any CPU.
 */
static inline void epoch_leave(struct percpu_ref *ref)
{
	percpu_ref_put(ref);
}

#endif /* DM_QCOW2_EPOCH_H */
