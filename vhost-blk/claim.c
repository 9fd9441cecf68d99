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
 * start until it is halted and drained; a ring that somebody else has is started, but begins when
 * that one is done.
 *
 * A used ring is known by the file that it is mapped from and its place there, which are the same
 * for all processes that share the memory; memory that is private to a process by that and its
 * address.
 */
#define pr_fmt(fmt) "vhost-blk: " fmt

#include <linux/file.h>
#include <linux/hashtable.h>
#include <linux/mm.h>

#include "blk.h"

static DEFINE_SPINLOCK(vhost_blk_claims_lock);
static DEFINE_HASHTABLE(vhost_blk_claims, 8);	/* held and waited for; vhost_blk_claims_lock */

/* Woken whenever a claim ends. */
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

/**
 * vhost_blk_claim_prepare - find out which memory a ring's used ring is
 * @q: the ring, stopped and drained, with addresses
 *
 * Context: dev.mutex held, by the owner.
 *
 * Return: 0, -EFAULT when nothing is mapped there, -EINTR when the caller is being killed
 */
int vhost_blk_claim_prepare(struct vhost_blk_queue *q)
{
	unsigned long addr = (unsigned long)q->vq.used;
	struct vhost_blk_claim *claim = &q->claim;
	struct mm_struct *mm = q->blk->dev.mm;
	struct vm_area_struct *vma;
	int ret = 0;

	if (mmap_read_lock_killable(mm))
		return -EINTR;
	vma = vma_lookup(mm, addr);
	if (!vma) {
		ret = -EFAULT;
	} else if (vma->vm_file && vma->vm_flags & VM_MAYSHARE) {
		/* As long as the file is open no other can have its mapping's address. */
		claim->file = get_file(vma->vm_file);
		claim->memory = vma->vm_file->f_mapping;
		claim->at = ((u64)vma->vm_pgoff << PAGE_SHIFT) + addr - vma->vm_start;
	} else {
		claim->memory = mm;
		claim->at = addr;
	}
	mmap_read_unlock(mm);
	return ret;
}

/**
 * vhost_blk_claim - claim the used ring
 * @q: the ring, after vhost_blk_claim_prepare()
 *
 * When another queue has it, the ring is entered as waiting: its worker is called when it may try
 * again.
 *
 * Context: the ring's mutex held, or the ring halted and dev.mutex held.
 *
 * Return: whether the used ring is @q's
 */
bool vhost_blk_claim(struct vhost_blk_queue *q)
{
	struct vhost_blk_claim *claim = &q->claim, *other;

	spin_lock(&vhost_blk_claims_lock);
	if (hlist_unhashed(&claim->node))
		hash_add(vhost_blk_claims, &claim->node, vhost_blk_claim_hash(claim));
	claim->held = true;
	hash_for_each_possible(vhost_blk_claims, other, node, vhost_blk_claim_hash(claim)) {
		if (other != claim && other->held && vhost_blk_claim_same(other, claim)) {
			claim->held = false;
			claim->awaited = vhost_blk_claimant(other)->blk->owner;
			break;
		}
	}
	spin_unlock(&vhost_blk_claims_lock);
	return claim->held;
}

/**
 * vhost_blk_claim_wait - wait until the used ring is ours
 * @q: the ring, halted, after vhost_blk_claim() in vain
 *
 * Return: 0, or -ERESTARTSYS when the caller is being killed
 */
int vhost_blk_claim_wait(struct vhost_blk_queue *q)
{
	return wait_event_killable(vhost_blk_claims_wait, vhost_blk_claim(q));
}

/**
 * vhost_blk_unclaim - give up a claim, or stop waiting for it
 * @q: the ring, halted and drained
 *
 * After this nobody calls the ring's worker for it any more. May be called without a claim.
 *
 * Context: dev.mutex held.
 */
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
