// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * kmsg.c - owns reading /dev/kmsg, and knowing which of its lines explain a
 * refused device-mapper request.
 */
#include "kmsg.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "util.h"

void kmsg_begin(struct kmsg *log)
{
	log->fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (log->fd >= 0)
		lseek(log->fd, 0, SEEK_END);
}

static const char *after(const char *text, const char *prefix)
{
	size_t n = strlen(prefix);

	return strncmp(text, prefix, n) ? NULL : text + n;
}

const char *kmsg_line_reason(const char *line, const char *dev)
{
	const char *text = after(line, "device-mapper: ");
	const char *rest;

	if (!text)
		return NULL;
	/* What the core adds to every refusal says nothing that the cause does not. */
	if (after(text, "ioctl: error adding target to table"))
		return NULL;
	rest = after(text, "table: ");
	if (rest) {
		rest = after(rest, dev);
		rest = rest ? after(rest, ": ") : NULL;
		if (rest && after(rest, "qcow2: "))
			rest = after(rest, "qcow2: ");
		return rest;
	}
	return after(text, "qcow2: ");
}

/* Take the errno that device-mapper appends off the end of a line. */
static void strip_errno(char *text)
{
	char *at = strrchr(text, '(');

	if (at && at > text && at[-1] == ' ' && !strncmp(at, "(-E", 3) &&
	    text[strlen(text) - 1] == ')')
		at[-1] = '\0';
}

void kmsg_reasons(struct kmsg *log, unsigned int major, unsigned int minor, char *buf, size_t len)
{
	char record[8192];
	char dev[32];
	size_t at = 0;
	ssize_t n;

	buf[0] = '\0';
	if (log->fd < 0)
		return;
	snprintf(dev, sizeof(dev), "%u:%u", major, minor);
	/* One read gives one record: "prio,seq,time,flags;text\n" and dictionary lines. */
	while ((n = read(log->fd, record, sizeof(record) - 1)) > 0) {
		const char *reason;
		char *text;

		record[n] = '\0';
		text = strchr(record, ';');
		if (!text)
			continue;
		text[strcspn(text, "\n")] = '\0';
		strip_errno(text);
		reason = kmsg_line_reason(text + 1, dev);
		if (!reason || strstr(buf, reason))
			continue;
		at += snprintf(buf + at, len - at, "%s%s", at ? "; " : "", reason);
		if (at >= len)
			break;
	}
	close(log->fd);
	log->fd = -1;
}
