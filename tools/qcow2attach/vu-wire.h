/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * vu-wire.h - whole vhost-user messages, with their file descriptors, off and
 * onto a socket.
 */
#ifndef QCOW2ATTACH_VU_WIRE_H
#define QCOW2ATTACH_VU_WIRE_H

#include <stddef.h>

#include "vu-proto.h"

/**
 * struct vu_message - one message.
 * @header: its header.
 * @payload: @header.size bytes of it are valid, the rest is zero.
 * @fds: the descriptors that came with it; -1 where a handler took one over.
 * @nfds: how many came.
 */
struct vu_message {
	struct vu_header header;
	union vu_payload payload;
	int fds[VU_TABLE_REGIONS];
	unsigned int nfds;
};

/**
 * struct vu_inbox - the message being received.
 * @message: the message.
 * @have: bytes of header and payload received so far.
 */
struct vu_inbox {
	struct vu_message message;
	size_t have;
};

/**
 * vu_receive() - receive as much of a message as is there.
 * @sock: a non-blocking socket.
 * @box: keeps the part that has come; zeroed before the first call.
 *
 * Return: 1 when a message is complete (handle it, then call vu_inbox_clear()),
 * 0 when more must come, -1 with a cause when the connection is unusable, -2
 * when the peer closed it between two messages.
 */
int vu_receive(int sock, struct vu_inbox *box);

/** vu_inbox_clear() - close what was not taken from a message, and begin anew. */
void vu_inbox_clear(struct vu_inbox *box);

/** vu_take_fd() - take descriptor @i out of a message; the caller closes it. */
int vu_take_fd(struct vu_message *message, unsigned int i);

/**
 * vu_send() - send a message without descriptors.
 * @sock: the socket.
 * @request: its number.
 * @flags: VU_FLAG_*; the version is added.
 * @payload: the payload.
 * @size: its bytes.
 *
 * A peer that does not read for ten seconds has lost its connection.
 *
 * Return: 0, or -1 with a cause.
 */
int vu_send(int sock, uint32_t request, uint32_t flags, const void *payload, uint32_t size);

#endif
