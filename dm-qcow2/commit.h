/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * commit.h - the one place where durability is decided; the protocol is described in commit.c.
 */
#ifndef DM_QCOW2_COMMIT_H
#define DM_QCOW2_COMMIT_H

#include "io.h"

/**
 * struct freed_extent - host clusters that lost a reference
 * @node:	On the open generation's list (meta_lock), the commit's, or the reclaimer's.
 * @start:	First cluster (number, not bytes).
 * @nr:		How many.
 */
struct freed_extent {
	struct list_head node;
	u64 start;
	u64 nr;
};

int commit_init(struct qcow2_image *img);
void commit_stop(struct qcow2_image *img);
void commit_exit(struct qcow2_image *img);

bool commit_is_clean(struct qcow2_image *img);
void commit_start_timer(struct qcow2_image *img);
void commit_add_io(struct qcow2_image *img, struct qcow2_io *io);
bool commit_hold(struct qcow2_image *img);
void commit_release(struct qcow2_image *img);
void commit_reftable_moved(struct qcow2_image *img, u32 clusters);
int commit_now(struct qcow2_image *img);
int commit_for_caller(struct qcow2_image *img);
int commit_everything(struct qcow2_image *img);
bool commit_pressure(struct qcow2_image *img);
bool commit_discard_pressure(struct qcow2_image *img);
void commit_hurry(struct qcow2_image *img);
bool commit_in_haste(struct qcow2_image *img);
void commit_relieve(struct qcow2_image *img);

struct freed_extent *freed_alloc(struct qcow2_image *img);
void freed_add(struct qcow2_image *img, struct freed_extent **ext, u64 cluster);
void freed_drop(struct qcow2_image *img, struct freed_extent *ext);
bool commit_frees_pending(struct qcow2_image *img);

int commit_module_init(void);
void commit_module_exit(void);

#endif /* DM_QCOW2_COMMIT_H */
