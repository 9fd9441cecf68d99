// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * socket-name.c - owns finding out at which Unix socket a process listens.
 *
 * The kernel is asked for a socket by its number, and answers with a name that has a length. Where
 * it cannot be asked (it has no unix_diag, or the socket is in another network namespace),
 * /proc/net/unix is read, whose lines hold names unescaped: a name with a newline in it is a line
 * that anybody can forge. So two lines about one socket are not believed.
 */
#include "socket-name.h"

#include <dirent.h>
#include <errno.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util.h"

/* The flag of a listening socket in /proc/net/unix (__SO_ACCEPTCON), and its state (TCP_LISTEN). */
#define LISTENS (1u << 16)
#define STATE_LISTEN 10

/**
 * struct one_socket - a socket of the process.
 * @inode: its number.
 * @seen: a line was about it.
 */
struct one_socket {
	unsigned long inode;
	bool seen;
};

/**
 * struct sockets - all of them.
 * @list: the sockets.
 * @n: how many.
 */
struct sockets {
	struct one_socket *list;
	size_t n;
};

static void find_sockets(const char *pid, struct sockets *s)
{
	char path[64], target[64];
	struct dirent *e;
	DIR *dir;

	memset(s, 0, sizeof(*s));
	snprintf(path, sizeof(path), "/proc/%.20s/fd", pid);
	dir = opendir(path);
	while (dir && (e = readdir(dir))) {
		ssize_t n = readlinkat(dirfd(dir), e->d_name, target, sizeof(target) - 1);
		unsigned long inode;

		if (n < 0)
			continue;
		target[n] = '\0';
		if (sscanf(target, "socket:[%lu]", &inode) != 1)
			continue;
		s->list = xrealloc(s->list, (s->n + 1) * sizeof(*s->list));
		s->list[s->n++] = (struct one_socket) { .inode = inode };
	}
	if (dir)
		closedir(dir);
}

static struct one_socket *find(const struct sockets *s, unsigned long inode)
{
	for (size_t i = 0; i < s->n; i++) {
		if (s->list[i].inode == inode)
			return &s->list[i];
	}
	return NULL;
}

/* Take the path from an answer that is about a listening socket with a path. */
static void take_name(const struct nlmsghdr *h, char *buf, size_t len)
{
	const struct unix_diag_msg *m = NLMSG_DATA(h);
	const struct rtattr *a = (const struct rtattr *)(m + 1);
	int left = (int)h->nlmsg_len - (int)NLMSG_LENGTH(sizeof(*m));

	if (left < 0 || m->udiag_state != STATE_LISTEN)
		return;
	for (; RTA_OK(a, left); a = RTA_NEXT(a, left)) {
		const char *name = RTA_DATA(a);
		size_t n = RTA_PAYLOAD(a);

		if (a->rta_type == UNIX_DIAG_NAME && n && name[0] == '/')
			snprintf(buf, len, "%.*s", (int)n, name);
	}
}

/* Ask for one socket. Returns whether the kernel knew it; if so @buf is its path, or empty. */
static bool ask_for(int fd, unsigned long inode, char *buf, size_t len)
{
	struct {
		struct nlmsghdr h;
		struct unix_diag_req r;
	} request = {
		.h = {
			.nlmsg_len = sizeof(request),
			.nlmsg_type = SOCK_DIAG_BY_FAMILY,
			.nlmsg_flags = NLM_F_REQUEST,
		},
		.r = {
			.sdiag_family = AF_UNIX,
			.udiag_ino = inode,
			.udiag_show = UDIAG_SHOW_NAME,
			.udiag_cookie = { ~0u, ~0u },
		},
	};
	union {
		struct nlmsghdr h;
		char bytes[4096];
	} answer;
	ssize_t n;

	/* The number has more bits in /proc than in a request. */
	if (request.r.udiag_ino != inode || send(fd, &request, sizeof(request), 0) < 0)
		return false;
	do {
		n = recv(fd, &answer, sizeof(answer), 0);
	} while (n < 0 && errno == EINTR);
	if (n < (ssize_t)sizeof(answer.h) || !NLMSG_OK(&answer.h, (size_t)n) ||
	    answer.h.nlmsg_type != SOCK_DIAG_BY_FAMILY)
		return false;
	take_name(&answer.h, buf, len);
	return true;
}

/* Returns whether the kernel has answered for any of the sockets. */
static bool ask_kernel(const struct sockets *s, char *buf, size_t len)
{
	int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	bool told = false;

	for (size_t i = 0; fd >= 0 && i < s->n && !buf[0]; i++)
		told = ask_for(fd, s->list[i].inode, buf, len) || told;
	if (fd >= 0)
		close(fd);
	return told;
}

static void read_list(const char *pid, struct sockets *s, char *buf, size_t len)
{
	char path[64], *line = NULL;
	size_t size = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%.20s/net/unix", pid);
	f = fopen(path, "re");
	while (f && getline(&line, &size, f) > 0) {
		struct one_socket *socket;
		unsigned long inode;
		unsigned int flags;
		int name = 0;

		if (sscanf(line, "%*s %*x %*x %x %*x %*x %lu %n", &flags, &inode, &name) != 2)
			continue;
		socket = find(s, inode);
		if (!socket)
			continue;
		if (socket->seen) {
			buf[0] = '\0';
			break;
		}
		socket->seen = true;
		if (buf[0] || !(flags & LISTENS) || line[name] != '/')
			continue;
		line[strcspn(line, "\n")] = '\0';
		snprintf(buf, len, "%s", line + name);
	}
	free(line);
	if (f)
		fclose(f);
}

void socket_name(const char *pid, char *buf, size_t len)
{
	struct sockets s;

	buf[0] = '\0';
	find_sockets(pid, &s);
	if (s.n && !ask_kernel(&s, buf, len))
		read_list(pid, &s, buf, len);
	free(s.list);
}
