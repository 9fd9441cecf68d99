// SPDX-License-Identifier: GPL-2.0-only
/*
 * To which queue of which open a used ring in a guest's memory belongs. Owns the table of them,
 * which is one for the whole module, and its lock, which is the innermost of all.
 *
 * A guest outlives the owners of its rings. When one has been killed its requests go on to their
 * end, and the used index tells nothing of them yet: whoever started the ring again meanwhile would
 * answer the same chains a second time, while the first time's data still goes to memory that the
 * guest has put to other use. An exclusive claim on the block device does not keep the next owner
 * away where several have it open, as read-only ones do. So the ring itself is claimed, from its
 * start until it is stopped: halted, drained, and, when it was the last of its open, what was
 * answered made durable. A pause, in which the owner changes its memory, keeps the claim. A ring
 * that somebody else has is started, but begins when that one is done.
 *
 * The stop of a ring that waits is not over before the requests of one that is about to end. For
 * one that lives and runs on it does not wait: that may be as long as that one likes, and where the
 * guest has named one used ring for queues of two disks, for as long as the guest likes. Whoever
 * waits so holds no claim, or two that wait for each other's would wait without an end.
 *
 * A used ring is known by the file that it is mapped from and its place there, which are the same
 * for all processes that share the memory; memory that is private to a process by that and its
 * address.
 */
#define pr_fmt(fmt) "vhost-blk: " fmt

#include <linux/file.h>
#include <linux/hashtable.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>

#include "blk.h"
#include "claim.h"

static DEFINE_SPINLOCK(vhost_blk_claims_lock);
static DEFINE_HASHTABLE(vhost_blk_claims, 8);	/* held and waited for; vhost_blk_claims_lock */

/* Woken whenever a claim begins or ends, and when a ring goes on that has one. */
static DECLARE_WAIT_QUEUE_HEAD(vhost_blk_claims_wait);

static unsigned long vhost_blk_claim_hash(const struct vhost_blk_claim *claim)
{
	return (unsigned long)claim->memory + (unsigned long)claim->at;
}

static bool vhost_blk_claim_same(const struct vhost_blk_claim *a, const struct vhost_blk_claim *b)
{
	return a->memory == b->memory && a->at == b->at;
}

static struct vhost_blk_queue *vhost_blk_claimant(struct vhost_blk_claim *claim)
{
	return container_of(claim, struct vhost_blk_queue, claim);
}

/* How long a waiter waits before it looks again at the one that is about to end. */
#define VHOST_BLK_LOOK		(HZ / 2)

/*
 * Was the owner killed? A SIGKILL is seen as soon as it is sent. Without its lock: whoever sees it
 * too late sees it at the next look.
 */
static bool vhost_blk_is_dying(struct vhost_blk_queue *q)
{
	return READ_ONCE(q->blk->task->signal->flags) & SIGNAL_GROUP_EXIT;
}

/* Enter a claim into the table; no two queues of one open may have the same. */
static int vhost_blk_claim_enter(struct vhost_blk_queue *q)
{
	struct vhost_blk_claim *claim = &q->claim, *other;
	int ret = 0;

	spin_lock(&vhost_blk_claims_lock);
	hash_for_each_possible(vhost_blk_claims, other, node, vhost_blk_claim_hash(claim)) {
		if (vhost_blk_claim_same(other, claim) &&
		    vhost_blk_claimant(other)->blk == q->blk) {
			ret = -EINVAL;
			break;
		}
	}
	if (!ret)
		hash_add(vhost_blk_claims, &claim->node, vhost_blk_claim_hash(claim));
	spin_unlock(&vhost_blk_claims_lock);
	return ret;
}

int vhost_blk_claim_prepare(struct vhost_blk_queue *q)
{
	unsigned long addr = (unsigned long)q->vq.used;
	struct vhost_blk_claim *claim = &q->claim;
	struct mm_struct *mm = q->blk->dev.mm;
	struct vm_area_struct *vma;
	struct file *file = NULL;
	const void *memory = NULL;
	u64 at = 0;
	int ret;

	lockdep_assert_held(&q->blk->dev.mutex);
	lockdep_assert_held(&q->vq.mutex);

	if (mmap_read_lock_killable(mm))
		return -EINTR;
	vma = vma_lookup(mm, addr);
	if (vma && vma->vm_file && vma->vm_flags & VM_MAYSHARE) {
		/* As long as the file is open no other can have its mapping's address. */
		file = get_file(vma->vm_file);
		memory = file->f_mapping;
		at = ((u64)vma->vm_pgoff << PAGE_SHIFT) + addr - vma->vm_start;
	} else if (vma) {
		memory = mm;
		at = addr;
	}
	mmap_read_unlock(mm);
	if (!memory)
		return -EFAULT;
	claim->addr = q->vq.used;
	if (claim->memory == memory && claim->at == at) {
		if (file)
			fput(file);
		return 0;
	}
	vhost_blk_unclaim(q);
	claim->file = file;
	claim->memory = memory;
	claim->at = at;
	ret = vhost_blk_claim_enter(q);
	if (ret)
		vhost_blk_unclaim(q);
	return ret;
}

/*
 * What a ring that waits has to know of the one that has its used ring. That one is about to end
 * when it is halted, its owner was killed, or its worker was, as by execve(). It ends when its open
 * is released. Another process may keep that open, though: then it has ended as far as it ever does
 * when it has no request in flight and nobody is at work on it, and goes on if it has a worker.
 */
static void vhost_blk_look(struct vhost_blk_claim *claim, struct vhost_blk_queue *holder)
{
	bool halted = !READ_ONCE(holder->vq.private_data);
	bool worker = rcu_access_pointer(holder->vq.worker);

	claim->awaited = holder->blk->owner;
	claim->awaited_ends = halted || !worker || vhost_blk_is_dying(holder);
	claim->awaited_stays = (!halted && worker) ||
			       (vhost_blk_drained(holder) && !READ_ONCE(holder->blk->wanted));
}

bool vhost_blk_claim(struct vhost_blk_queue *q)
{
	struct vhost_blk_claim *claim = &q->claim, *other;

	spin_lock(&vhost_blk_claims_lock);
	claim->held = true;
	hash_for_each_possible(vhost_blk_claims, other, node, vhost_blk_claim_hash(claim)) {
		if (other != claim && other->held && vhost_blk_claim_same(other, claim)) {
			claim->held = false;
			vhost_blk_look(claim, vhost_blk_claimant(other));
			break;
		}
	}
	spin_unlock(&vhost_blk_claims_lock);
	/* Whoever waits for the end of this queue's claim may have seen it paused. */
	if (claim->held)
		wake_up_all(&vhost_blk_claims_wait);
	return claim->held;
}

int vhost_blk_claim_wait(struct vhost_blk_queue *q, unsigned int looks)
{
	unsigned int stays = 0;

	while (!vhost_blk_claim(q) && q->claim.awaited_ends) {
		long left;

		stays = q->claim.awaited_stays ? stays + 1 : 0;
		if (stays > looks)
			return 1;
		left = wait_event_killable_timeout(vhost_blk_claims_wait,
						   vhost_blk_claim(q) || !q->claim.awaited_ends,
						   VHOST_BLK_LOOK);
		if (left < 0)
			return left;
	}
	return 0;
}

void vhost_blk_unclaim(struct vhost_blk_queue *q)
{
	struct vhost_blk_claim *claim = &q->claim, *other;

	if (!claim->memory)
		return;
	spin_lock(&vhost_blk_claims_lock);
	if (!hlist_unhashed(&claim->node))
		hash_del(&claim->node);
	claim->held = false;
	/* Those who wait stay in the table, and so exist, until they have taken the lock. */
	hash_for_each_possible(vhost_blk_claims, other, node, vhost_blk_claim_hash(claim))
		if (!other->held && vhost_blk_claim_same(other, claim))
			vhost_poll_queue(&vhost_blk_claimant(other)->vq.poll);
	spin_unlock(&vhost_blk_claims_lock);
	wake_up_all(&vhost_blk_claims_wait);
	if (claim->file)
		fput(claim->file);
	claim->file = NULL;
	claim->memory = NULL;
}
