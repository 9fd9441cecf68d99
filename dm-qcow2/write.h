/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * write.h - the writer's job for a write that has no cluster of its own; see write.c.
 */
#ifndef DM_QCOW2_WRITE_H
#define DM_QCOW2_WRITE_H

#include "lookup.h"
#include "writer.h"

/**
 * qcow2_process_write - go on with a write
 * @w: the writer
 * @io: the bio; not owned by the caller afterwards
 */
void qcow2_process_write(struct qcow2_writer *w, struct qcow2_io *io);

/**
 * qcow2_start_allocating - start an operation that gives a guest cluster a host cluster of its own
 * @w: the writer
 * @io: the bio; not owned by the caller afterwards, whatever the result
 * @goff: guest offset of what is written, in one cluster
 * @len: its length
 * @zeroes: write zeroes, not the bio's data
 * @ext: what qcow2_image_lookup() said about @goff; not EXTENT_MISS
 *
 * Return: 0 if the operation was started, -EAGAIN if the bio waits for something.
 */
int qcow2_start_allocating(struct qcow2_writer *w, struct qcow2_io *io, u64 goff, u32 len,
			   bool zeroes, const struct extent *ext);

/**
 * qcow2_start_in_place - start an operation that writes zeroes to own clusters, or to parts of some
 * @w: the writer
 * @io: the bio; not owned by the caller afterwards
 * @goff: guest offset
 * @len: bytes, in clusters of @ext that together are MAX_OP_BYTES at most and not busy
 * @ext: written in place, from @goff on
 *
 * Return: 0 if the operation was started, -EAGAIN if the bio waits.
 */
int qcow2_start_in_place(struct qcow2_writer *w, struct qcow2_io *io, u64 goff, u32 len,
			 const struct extent *ext);

/**
 * qcow2_chain_reads_zeroes - does part of a chain read as zeroes?
 * @w: the writer
 * @io: the bio that asks
 * @from: the first layer to ask
 * @goff: guest offset
 * @len: bytes
 *
 * Return: 1 or 0; or -EAGAIN when the bio has been parked on a slice that the answer needs.
 */
int qcow2_chain_reads_zeroes(struct qcow2_writer *w, struct qcow2_io *io, unsigned int from,
			     u64 goff, u64 len);

#endif /* DM_QCOW2_WRITE_H */
