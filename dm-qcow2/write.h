/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * write.h - the writer's job for a write that has no cluster of its own; see write.c.
 */
#ifndef DM_QCOW2_WRITE_H
#define DM_QCOW2_WRITE_H

#include "lookup.h"
#include "writer.h"

void qcow2_process_write(struct qcow2_writer *w, struct qcow2_io *io);
int qcow2_start_allocating(struct qcow2_writer *w, struct qcow2_io *io, u64 goff, u32 len,
			   bool zeroes, const struct extent *ext);
int qcow2_start_in_place(struct qcow2_writer *w, struct qcow2_io *io, u64 goff, u32 len,
			 const struct extent *ext);
int qcow2_chain_reads_zeroes(struct qcow2_writer *w, struct qcow2_io *io, unsigned int from,
			     u64 goff, u64 len);

#endif /* DM_QCOW2_WRITE_H */
