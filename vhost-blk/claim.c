// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which queue of which open a used ring in a guest's memory belongs to. Owns the table of claims,
 * one for the whole module, and its lock, the innermost of all.
 *
 * A guest outlives the owners of its rings. When an owner has been killed, its requests go on to
 * their end, and the used index does not count them yet: a process that started the ring again
 * meanwhile would answer the same chains a second time, while data of the first time still goes to
 * memory that the guest has reused. An exclusive claim on the block device does not keep the next
 * owner away where several owners have the device open, as read-only ones do. So the ring itself is
 * claimed, from its start until it is stopped: halted, drained, and, when it was the last ring of
 * its open, its answers made durable. A pause, in which the owner changes its memory, keeps the
 * claim. A ring that another queue has claimed is started, but begins when that queue is done.
 *
 * The stop of a ring that waits for a claim also waits for the requests of a holder that is about
 * to end. It does not wait for a holder that lives and runs on: that may take as long as its owner
 * likes, and where the guest has named one used ring for queues of two disks, as long as the guest
 * likes. A stop that waits holds no claim, or two stops could wait for each other forever.
 *
 * A used ring is identified by the file that it is mapped from and its offset there, which are the
 * same for all processes that share the memory; in memory that is private to a process, by that
 * process's mm and the address.
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

/* Woken whenever a claim begins or ends, and when a ring that has one resumes. */
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

/* How long a waiter waits before it looks again at a holder that is about to end. */
#define VHOST_BLK_LOOK		(HZ / 2)

/*
 * Was the owner killed? A SIGKILL is seen as soon as it is sent. Read without siglock: a waiter
 * that misses it sees it at the next look.
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
		/* While the file is open, no other file's mapping has the same address. */
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
 * What a ring that waits must know of the holder of its used ring. A holder is about to end when it
 * is halted, its owner was killed, or its worker was, as by execve(). It ends when its open is
 * released. Another process may keep that open, though: then the holder has ended as far as it ever
 * does when it has no request in flight and no ioctl or release is under way, and it goes on if it
 * has a worker.
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
	/* A waiter for the end of this queue's claim may have seen the queue paused. */
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
	/* Waiters stay in the table, and so exist, until they have taken the lock. */
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
