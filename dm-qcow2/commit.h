/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * commit.h - the one place where durability is decided; the protocol is described in commit.c.
 */
#ifndef DM_QCOW2_COMMIT_H
#define DM_QCOW2_COMMIT_H

#include "io.h"

int qcow2_commit_init(struct qcow2_image *img);
void qcow2_commit_stop(struct qcow2_image *img);
void qcow2_commit_exit(struct qcow2_image *img);

void qcow2_commit_add_io(struct qcow2_image *img, struct qcow2_io *io);
int qcow2_commit_now(struct qcow2_image *img);
int qcow2_commit_for_caller(struct qcow2_image *img);
int qcow2_commit_everything(struct qcow2_image *img);

#endif /* DM_QCOW2_COMMIT_H */
