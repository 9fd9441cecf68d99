// SPDX-License-Identifier: GPL-2.0-only
/*
 * From the available ring to a descriptor chain, and breaking a malformed ring. Owns the quick
 * path, which nearly every chain takes: a few segments, each of which lies in one memory region, in
 * the ring or in one indirect table.
 *
 * Everything else is left to the core, and so is every judgement: a chain that the quick path does
 * not take, for whatever reason, vhost_get_vq_desc() reads again from the start. So the quick path
 * never has to say what is wrong, takes nothing that the core would not take, and keeps nothing of
 * a chain that it does not take. The guest may change the chain between the two reads: that is
 * harmless.
 *
 * Runs with the ring's mutex held, under which vq->umem does not change, in a context whose
 * current->mm is the owner's.
 */
#define pr_fmt(fmt) "vhost-blk: " fmt

#include <linux/sched/signal.h>
#include <linux/uaccess.h>
#include <linux/vhost_iotlb.h>

#include "blk.h"
#include "chain.h"

/* Longest indirect table: its descriptors have numbers of 16 bits. */
#define VHOST_BLK_MAX_TABLE	((USHRT_MAX + 1U) * sizeof(struct vring_desc))

/* The regions found last: a chain seldom has more, since its header and status lie side by side. */
struct vhost_blk_regions {
	const struct vhost_iotlb_map *last, *before;
};

static const struct vhost_iotlb_map vhost_blk_no_region;

static __always_inline bool vhost_blk_in_region(const struct vhost_iotlb_map *map, u64 addr)
{
	return addr - map->start < map->size;
}

/*
 * Where the owner has a range of guest memory; NULL if it is empty, not in one region, or may not
 * be accessed so.
 */
static __always_inline void __user *vhost_blk_translate(struct vhost_virtqueue *vq,
							struct vhost_blk_regions *regions,
							u64 addr, u32 len, u32 perm)
{
	const struct vhost_iotlb_map *map = regions->last;
	u64 offset;

	if (!vhost_blk_in_region(map, addr)) {
		map = regions->before;
		if (!vhost_blk_in_region(map, addr)) {
			map = vhost_iotlb_itree_first(vq->umem, addr, addr);
			if (!map)
				return NULL;
		}
		regions->before = regions->last;
		regions->last = map;
	}
	offset = addr - map->start;
	if (!len || len > map->size - offset || !(map->perm & perm))
		return NULL;
	return (void __user *)(uintptr_t)(map->addr + offset);
}

/* Does the ring have a chain that was not read? An index that jumps is left to the core. */
static __always_inline bool vhost_blk_has_chain(struct vhost_virtqueue *vq)
{
	__virtio16 ring_idx;
	u16 idx;

	if (vq->avail_idx != vq->last_avail_idx)
		return true;
	if (get_user(ring_idx, &vq->avail->idx))
		return false;
	idx = vhost_blk_to_cpu16(vq, ring_idx);
	if (idx == vq->last_avail_idx || (u16)(idx - vq->last_avail_idx) > vq->num)
		return false;
	vq->avail_idx = idx;
	/* The index before the entries and the chains; pairs with the driver's write barrier. */
	smp_rmb();
	return true;
}

void vhost_blk_break(struct vhost_blk_queue *q, const char *why)
{
	vhost_blk_notice(q->blk, "ring %u of process %d is stopped: %s\n", q->index, q->blk->owner,
			 why);
	WRITE_ONCE(q->broken, true);
	if (q->vq.error_ctx)
		eventfd_signal(q->vq.error_ctx);
}

bool vhost_blk_index_jumps(struct vhost_virtqueue *vq)
{
	__virtio16 idx;

	if (get_user(idx, &vq->avail->idx))
		return !fatal_signal_pending(current);
	return (u16)(vhost_blk_to_cpu16(vq, idx) - vq->last_avail_idx) > vq->num;
}

/*
 * Copy as much as may be needed of an indirect table. The guest chooses its address, so this takes
 * copy_from_user(), which guards against a mispredicted check.
 */
static bool vhost_blk_load_table(struct vhost_blk_queue *q, struct vhost_blk_regions *regions,
				 unsigned int *nr)
{
	struct vring_desc *d = q->descs;
	u32 len = vhost_blk_to_cpu32(&q->vq, d->len);
	void __user *table = vhost_blk_translate(&q->vq, regions,
						 vhost_blk_to_cpu64(&q->vq, d->addr), len,
						 VHOST_MAP_RO);

	if (!table || len % sizeof(*d) || len > VHOST_BLK_MAX_TABLE)
		return false;
	*nr = min(len / sizeof(*d), ARRAY_SIZE(q->descs));
	return !copy_from_user(d, table, *nr * sizeof(*d));
}

/* Returns the head, or -EAGAIN when the core must read the chain. */
static int vhost_blk_quick_chain(struct vhost_blk_queue *q, unsigned int *out, unsigned int *in)
{
	struct vhost_blk_regions regions = { &vhost_blk_no_region, &vhost_blk_no_region };
	struct vhost_virtqueue *vq = &q->vq;
	unsigned int nr = vq->num, nr_loaded = 1, nr_iov;
	struct iovec *iov = vq->iov, *first_in = NULL;
	struct vring_desc *d = q->descs;
	__virtio16 ring_head;
	u16 head;

	if (!vhost_blk_has_chain(vq) ||
	    get_user(ring_head, &vq->avail->ring[vq->last_avail_idx & (nr - 1)]))
		return -EAGAIN;
	head = vhost_blk_to_cpu16(vq, ring_head);
	if (head >= nr || __copy_from_user(d, vq->desc + head, sizeof(*d)))
		return -EAGAIN;
	if (vhost_blk_to_cpu16(vq, d->flags) == VRING_DESC_F_INDIRECT) {
		if (!vhost_blk_load_table(q, &regions, &nr_loaded))
			return -EAGAIN;
		/* No descriptor of the ring may follow. */
		nr = 0;
	}
	for (nr_iov = 0; nr_iov < ARRAY_SIZE(q->descs); nr_iov++, d++) {
		u16 flags, next;
		bool write;

		if (nr_iov == nr_loaded) {
			next = vhost_blk_to_cpu16(vq, d[-1].next);
			if (next >= nr || __copy_from_user(d, vq->desc + next, sizeof(*d)))
				break;
			nr_loaded++;
		}
		flags = vhost_blk_to_cpu16(vq, d->flags);
		write = flags & VRING_DESC_F_WRITE;
		if (flags & VRING_DESC_F_INDIRECT || (first_in && !write))
			break;
		iov->iov_len = vhost_blk_to_cpu32(vq, d->len);
		iov->iov_base = vhost_blk_translate(vq, &regions, vhost_blk_to_cpu64(vq, d->addr),
						    iov->iov_len,
						    write ? VHOST_MAP_WO : VHOST_MAP_RO);
		if (!iov->iov_base)
			break;
		if (write && !first_in)
			first_in = iov;
		iov++;
		if (!(flags & VRING_DESC_F_NEXT)) {
			*out = (first_in ?: iov) - vq->iov;
			*in = iov - vq->iov - *out;
			vq->last_avail_idx++;
			return head;
		}
	}
	return -EAGAIN;
}

int vhost_blk_next_chain(struct vhost_blk_queue *q, unsigned int *out, unsigned int *in,
			 unsigned int *nr_log)
{
	struct vhost_virtqueue *vq = &q->vq;
	bool log_all = vhost_blk_has_feature(vq, VHOST_F_LOG_ALL);
	int head;

	*nr_log = 0;
	if (likely(!log_all)) {
		head = vhost_blk_quick_chain(q, out, in);
		if (likely(head >= 0))
			return head;
	}
	return vhost_get_vq_desc(vq, vq->iov, ARRAY_SIZE(vq->iov), out, in,
				 log_all ? vq->log : NULL, nr_log);
}
