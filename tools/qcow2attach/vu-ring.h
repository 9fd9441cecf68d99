/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * vu-ring.h - starting and stopping the rings of a session in the kernel.
 */
#ifndef QCOW2ATTACH_VU_RING_H
#define QCOW2ATTACH_VU_RING_H

#include "vu-session.h"

/**
 * ring_update() - run a ring if it has all that it needs, else stop it.
 *
 * Return: 0, or -1 with a cause.
 */
int ring_update(struct vu_session *s, unsigned int index);

/** rings_update() - ring_update() of all rings. */
int rings_update(struct vu_session *s);

/**
 * ring_stop() - stop a ring and wait until its last request has been answered; if
 * it was the last ring that ran, also until what was written is durable.
 *
 * Return: 0, or -1 with a cause. The session is broken then, unless the ring has
 * stopped and only the storage failed.
 */
int ring_stop(struct vu_session *s, unsigned int index);

/** rings_stop() - ring_stop() of all rings. */
int rings_stop(struct vu_session *s);

/** rings_any_running() - does the kernel serve any ring? */
bool rings_any_running(const struct vu_session *s);

/**
 * ring_set_file() - take over an eventfd for a ring and tell the kernel.
 * @s: the session.
 * @index: the ring.
 * @request: VU_SET_VRING_KICK, _CALL or _ERR.
 * @fd: the descriptor, owned by the ring from now on, or -1 for none.
 *
 * Return: 0, or -1 with a cause.
 */
int ring_set_file(struct vu_session *s, unsigned int index, uint32_t request, int fd);

/**
 * ring_set_addr() - change the addresses of a ring.
 *
 * Return: 0, or -1 with a cause.
 */
int ring_set_addr(struct vu_session *s, const struct vu_vring_addr *addr);

/**
 * ring_reset() - forget where a stopped ring is, and that it was enabled.
 *
 * The call eventfd is kept: front ends send it once, when they connect.
 */
void ring_reset(struct vu_session *s, unsigned int index);

/** ring_forget() - forget everything about a stopped ring. */
void ring_forget(struct vu_session *s, unsigned int index);

/**
 * log_covers() - is there a log that has a bit for all that the kernel may mark?
 *
 * The kernel sets bits in the log wherever a guest address leads, so a log that is too short would
 * let a front end set bits elsewhere in this process.
 */
bool log_covers(const struct vu_session *s);

/** log_would_cover() - would a log of @bytes have those bits? */
bool log_would_cover(const struct vu_session *s, uint64_t bytes);

/**
 * features_push() - tell the kernel the features; logging only while log_covers().
 *
 * Return: 0, or -1 with a cause.
 */
int features_push(struct vu_session *s);

/** log_in_use() - does any ring run whose requests, or whose used ring, are logged? */
bool log_in_use(const struct vu_session *s);

#endif
