// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * vu-wire.c - owns the framing of vhost-user messages: their length is bounded
 * before a byte of payload is read, and no descriptor is ever lost.
 */
#include "vu-wire.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util.h"

#define SEND_TIMEOUT_MS 10000

static void take_over_fds(struct vu_message *m, const int *fds, size_t n, bool *too_many)
{
	for (size_t i = 0; i < n; i++) {
		if (m->nfds < ARRAY_SIZE(m->fds)) {
			m->fds[m->nfds++] = fds[i];
		} else {
			close(fds[i]);
			*too_many = true;
		}
	}
}

/* Receive up to @len bytes at @buf, adding descriptors to the message. */
static ssize_t receive_some(int sock, struct vu_message *m, void *buf, size_t len)
{
	/* More than a message may carry, so that an excess is seen and closed. */
	char control[CMSG_SPACE(sizeof(int) * 4 * VU_TABLE_REGIONS)]
		__attribute__((aligned(__alignof__(struct cmsghdr))));
	struct iovec iov = { .iov_base = buf, .iov_len = len };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	bool too_many = false;
	ssize_t n;

	do {
		n = recvmsg(sock, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return n;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		int fds[4 * VU_TABLE_REGIONS];
		size_t bytes;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		bytes = c->cmsg_len - CMSG_LEN(0);
		memcpy(fds, CMSG_DATA(c), bytes);
		take_over_fds(m, fds, bytes / sizeof(int), &too_many);
	}
	if (too_many || (msg.msg_flags & MSG_CTRUNC)) {
		cause("the front end sent too many file descriptors with one message");
		errno = EPROTO;
		return -1;
	}
	return n;
}

int vu_receive(int sock, struct vu_inbox *box)
{
	struct vu_message *m = &box->message;
	const size_t head = sizeof(m->header);

	for (;;) {
		size_t want = head;
		char *to;
		ssize_t n;

		if (box->have >= head) {
			if ((m->header.flags & VU_VERSION_MASK) != VU_VERSION)
				return cause("the front end speaks version %u of vhost-user, "
					     "not %u",
					     m->header.flags & VU_VERSION_MASK, VU_VERSION);
			if (m->header.size > sizeof(m->payload))
				return cause("message %u of %u bytes is too long",
					     m->header.request, m->header.size);
			want += m->header.size;
		}
		if (box->have >= want)
			return 1;
		to = box->have < head ? (char *)&m->header + box->have
				      : (char *)&m->payload + (box->have - head);
		n = receive_some(sock, m, to, want - box->have);
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return 0;
		if (n < 0)
			return errno == EPROTO ? -1 : cause_errno("the connection was lost");
		if (n == 0)
			return box->have ? cause("the front end left in the middle of a message")
					 : -2;
		box->have += n;
	}
}

void vu_inbox_clear(struct vu_inbox *box)
{
	for (unsigned int i = 0; i < box->message.nfds; i++) {
		if (box->message.fds[i] >= 0)
			close(box->message.fds[i]);
	}
	memset(box, 0, sizeof(*box));
}

int vu_take_fd(struct vu_message *message, unsigned int i)
{
	int fd = message->fds[i];

	message->fds[i] = -1;
	return fd;
}

int vu_send(int sock, uint32_t request, uint32_t flags, const void *payload, uint32_t size)
{
	struct vu_header header = {
		.request = request,
		.flags = VU_VERSION | flags,
		.size = size,
	};
	struct iovec iov[2] = {
		{ .iov_base = &header, .iov_len = sizeof(header) },
		{ .iov_base = (void *)payload, .iov_len = size },
	};
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };
	uint64_t until = now_ms() + SEND_TIMEOUT_MS;

	while (iov[0].iov_len || iov[1].iov_len) {
		ssize_t n = sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
			struct pollfd p = { .fd = sock, .events = POLLOUT };
			uint64_t now = now_ms();

			/* One limit for the whole message: a slow peer must not block us. */
			if (now < until && poll(&p, 1, until - now) > 0)
				continue;
			return cause("the front end does not read its replies");
		}
		if (n < 0)
			return cause_errno("cannot answer the front end");
		for (unsigned int i = 0; i < ARRAY_SIZE(iov); i++) {
			size_t part = (size_t)n < iov[i].iov_len ? (size_t)n : iov[i].iov_len;

			iov[i].iov_base = (char *)iov[i].iov_base + part;
			iov[i].iov_len -= part;
			n -= part;
		}
	}
	return 0;
}
