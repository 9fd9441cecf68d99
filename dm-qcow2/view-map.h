/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * view-map.h - views: what the clusters of a disk were at points in time; see view-map.c.
 *
 * A view maps each guest cluster that has changed since its moment to the L2 entry of that moment.
 * The host clusters of these entries belong to the view; the others are in the live table, and must
 * not change there as long as the view needs them.  So while there is a view, a cluster is own only
 * when it has changed since the newest view's moment.
 */
#ifndef DM_QCOW2_VIEW_MAP_H
#define DM_QCOW2_VIEW_MAP_H

#include <linux/list.h>
#include <linux/rcupdate.h>
#include <linux/refcount.h>
#include <linux/xarray.h>

#include "image.h"
#include "lookup.h"

#define VIEW_NAME_SIZE		64	/* with the zero at the end */
#define VIEW_CHUNK_CLUSTERS	BITS_PER_LONG

/**
 * struct view_chunk - a part of a view's map: VIEW_CHUNK_CLUSTERS consecutive guest clusters
 * @known:	A bit for each cluster of which @old says what it was.
 * @moved:	A bit for each cluster whose live entry has changed since.
 * @pins:	Operations that will record something here; the writer's.
 * @old:	L2 entries.
 *
 * The writer changes it, under image.meta_lock, in this order: @old, @known, the live entry,
 * @moved.  Readers hold the RCU read lock.  A reader of the view that finds @known clear reads the
 * live entry, then @known again: a live entry that is too new shows itself by @known.  A write that
 * finds @moved set reads the live entry afterwards: so it never gets the old one.
 */
struct view_chunk {
	unsigned long known;
	unsigned long moved;
	unsigned int pins;
	struct rcu_head rcu;
	u64 old[VIEW_CHUNK_CLUSTERS];
};

/**
 * struct qcow2_view - a point in time of a live image
 * @node:	In qcow2_views.list; the writer changes that list, readers walk it under RCU.
 * @img:	The image.
 * @name:	Unique among the views that are not dropped.
 * @size:	Of the disk, bytes.
 * @users:	The list, and devices.
 * @ready:	All writes from before have ended: it can be read.  Set once, by its creator.
 * @dropped:	It can no longer be read.  Set once, by the writer, before any of its clusters is
 *		freed.
 * @map:	Chunks, by the number of the first cluster divided by their size; the writer's to
 *		change.
 * @bytes:	Of the chunks; the writer's to change.
 * @clusters:	How many guest clusters the chunks know; the writer's to change.
 * @reaped:	@dropped: up to which chunk everything that no older view needs has been freed; the
 *		writer's.
 */
struct qcow2_view {
	struct list_head node;
	struct qcow2_image *img;
	char name[VIEW_NAME_SIZE];
	u64 size;
	refcount_t users;
	bool ready;
	bool dropped;
	struct xarray map;
	u64 bytes;
	u64 clusters;
	unsigned long reaped;
	struct rcu_head rcu;
};

/**
 * qcow2_view_lookup - what a range was at a view's moment
 * @view: the view, ready
 * @goff: guest offset, inside the disk
 * @len: bytes wanted
 * @ext: the answer, for at least one byte; EXTENT_INVALID when the view has been dropped
 *
 * The caller is in an epoch if it will use the cluster.  Any context that may take an RCU read
 * lock.
 */
void qcow2_view_lookup(struct qcow2_view *view, u64 goff, u64 len, struct extent *ext);

/**
 * qcow2_marked_lookup - what the live root says about a range, while there is a view
 * @img: a writable image
 * @goff: guest offset, inside the disk
 * @len: bytes wanted
 * @ext: the answer, for at least one byte; a cluster that a view needs is not own
 *
 * Context: as qcow2_image_lookup(), which calls this.
 */
void qcow2_marked_lookup(struct qcow2_image *img, u64 goff, u64 len, struct extent *ext);

/**
 * qcow2_image_lookup - what the live root says about a range
 * @img: a writable image
 * @goff: guest offset, inside the disk
 * @len: bytes wanted
 * @ext: the answer, for at least one byte
 *
 * The caller is the writer, or in an epoch; then @ext->own stays true until it leaves that.  Any
 * context that may take an RCU read lock.
 */
static inline void qcow2_image_lookup(struct qcow2_image *img, u64 goff, u64 len,
				      struct extent *ext)
{
	if (likely(!READ_ONCE(img->views.newest)))
		qcow2_root_lookup(img, &img->root, goff, len, ext);
	else
		qcow2_marked_lookup(img, goff, len, ext);
}

/**
 * qcow2_view_prepare - get memory to record what clusters were
 * @img: a writable image
 * @cluster: number of the first guest cluster
 * @nr: how many
 *
 * Without memory, or past the limit, views are given up, the oldest first, until there is memory or
 * none is left.  So this never fails.  Context: the writer's work item.
 */
void qcow2_view_prepare(struct qcow2_image *img, u64 cluster, u32 nr);

/**
 * qcow2_view_pin - keep what qcow2_view_prepare() got for one cluster until an operation has ended
 * @img: a writable image
 * @cluster: number of the guest cluster
 *
 * Context: the writer's work item.  Return: what to pass to qcow2_view_unpin(), or NULL.
 */
struct view_chunk *qcow2_view_pin(struct qcow2_image *img, u64 cluster);

/* The operation has ended; @chunk may be NULL.  Context: the writer's work item. */
static inline void qcow2_view_unpin(struct view_chunk *chunk)
{
	if (chunk)
		chunk->pins--;
}

/**
 * qcow2_view_record - an L2 entry is about to change: record it if a view needs it
 * @img: a writable image; the caller is the writer, and holds meta_lock
 * @cluster: number of the guest cluster, prepared
 * @old: the entry
 *
 * Return: the chunk that has it, for qcow2_view_recorded(), and then the host clusters of @old
 * belong to the view; or NULL if no view needs it.
 */
struct view_chunk *qcow2_view_record(struct qcow2_image *img, u64 cluster, u64 old);

/**
 * qcow2_view_recorded - the L2 entry has changed
 * @chunk: from qcow2_view_record(); meta_lock has not been released since
 * @cluster: the same
 */
void qcow2_view_recorded(struct view_chunk *chunk, u64 cluster);

/**
 * qcow2_view_drop - give up a view
 * @view: one that is not dropped
 *
 * From now on it cannot be read; what it holds is freed by and by.  Context: the writer's work
 * item.
 */
void qcow2_view_drop(struct qcow2_view *view);

/**
 * qcow2_view_choose_newest - let clusters be own that no view needs any more
 * @img: a writable image that has no operation under way: one copies a cluster that is not own, and
 *	nothing may write to that meanwhile
 *
 * Context: the writer's work item, when qcow2_views.stale says so.
 */
void qcow2_view_choose_newest(struct qcow2_image *img);

/**
 * qcow2_view_is_dropped - is what was read from a view's clusters, or its maps, to be thrown away?
 * @view: the view
 *
 * Asked after the read.  Any context.
 */
static inline bool qcow2_view_is_dropped(const struct qcow2_view *view)
{
	smp_rmb();	/* pairs with the smp_wmb() in qcow2_view_drop() */
	return unlikely(READ_ONCE(view->dropped));
}

/**
 * qcow2_view_give_up - give up the oldest view, because room or memory has run out
 * @img: a writable image
 * @why: for the log
 *
 * Raises a DM event.  Context: the writer's work item.  Return: whether there was one.
 */
bool qcow2_view_give_up(struct qcow2_image *img, const char *why);

/**
 * qcow2_view_needs - does a view need what a dropped one has for a cluster?
 * @view: a dropped view
 * @cluster: number of the guest cluster, which @view knows
 *
 * Context: the writer's work item.
 */
bool qcow2_view_needs(const struct qcow2_view *view, u64 cluster);

/**
 * qcow2_view_drop_chunk - free an empty chunk without pins
 * @view: its view
 * @index: where it is in the map
 *
 * Context: the writer's work item, or an image that is being closed.
 */
void qcow2_view_drop_chunk(struct qcow2_view *view, unsigned long index);

/**
 * qcow2_view_put - drop a reference to a view
 * @view: the view
 */
void qcow2_view_put(struct qcow2_view *view);

/**
 * qcow2_view_find - find a view that can be read, by name
 * @img: the image
 * @name: the name
 *
 * Return: the view, with a reference for the caller; or NULL.
 */
struct qcow2_view *qcow2_view_find(struct qcow2_image *img, const char *name);

int qcow2_view_module_init(void);
void qcow2_view_module_exit(void);

#endif /* DM_QCOW2_VIEW_MAP_H */
