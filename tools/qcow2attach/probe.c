// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * probe.c - owns the process that reads headers and partition tables, and the distrust of its
 * answer.
 */
#include "probe.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ptable.h"
#include "sandbox.h"
#include "spawn.h"
#include "util.h"

/* How long reading a disk's first sectors may take. Nothing depends on these sectors. */
#define DISK_WAIT_MS 5000

/**
 * struct question - what the child is to find out.
 * @disk: it reads a disk's partition table, not an image's header.
 * @bytes: the disk's size.
 * @sector: its sector size.
 */
struct question {
	bool disk;
	uint64_t bytes;
	unsigned int sector;
};

/* What the child writes to the pipe, in one piece. */
struct answer {
	bool accepted;
	char error[256];
	struct image_header header;
	unsigned int sector_size;
};

static ssize_t read_image(void *ctx, void *buf, size_t len, uint64_t offset)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = pread(*(int *)ctx, (char *)buf + done, len - done, offset + done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		if (!n)
			break;
		done += n;
	}
	return done;
}

/* Direct I/O needs memory that is aligned to the largest sector size. */
static void read_disk(int fd, const struct question *q, struct answer *answer)
{
	static uint8_t begin[PTABLE_BYTES] __attribute__((aligned(4096)));
	ssize_t n = read_image(&fd, begin, sizeof(begin), 0);

	answer->accepted = n >= 0;
	if (n >= 0)
		answer->sector_size = ptable_sector_size(begin, n, q->bytes, q->sector);
}

static void __attribute__((noreturn)) child(const struct sandbox_user *user, int fd, int out,
					    const struct question *q)
{
	static struct answer answer;

	if (sandbox_header_reader(user, fd, out))
		snprintf(answer.error, sizeof(answer.error),
			 "the header reader cannot give up its privileges: %s", cause_text());
	else if (q->disk)
		read_disk(fd, q, &answer);
	else
		answer.accepted = !header_parse(read_image, &fd, &answer.header, answer.error,
						sizeof(answer.error));
	write_all(out, &answer, sizeof(answer));
	_exit(0);
}

static bool terminated(const char *text, size_t size)
{
	return memchr(text, '\0', size);
}

/* The image may have taken over the child: accept only a plausible answer. */
static bool plausible(const struct answer *a)
{
	const struct image_header *h = &a->header;

	if (!terminated(a->error, sizeof(a->error)) ||
	    !terminated(h->backing_name, sizeof(h->backing_name)) ||
	    !terminated(h->backing_format, sizeof(h->backing_format)))
		return false;
	/* A refused header may be half read. */
	if (!a->accepted)
		return true;
	return h->size <= INT64_MAX && h->has_backing == !!h->backing_name[0];
}

/* Ask a child. @wait_ms is how long it may take, -1 without a limit. */
static int ask(int fd, const struct question *q, int wait_ms, struct answer *answer)
{
	struct pollfd p = { .events = POLLIN };
	struct sandbox_user user;
	struct spawned reader;
	int status = 0, ret;

	if (sandbox_find_user(NULL, &user))
		return -1;
	if (spawn(&reader, "header reader", 0))
		return -1;
	if (!reader.pid)
		child(&user, fd, reader.fd, q);
	p.fd = reader.fd;
	while ((ret = poll(&p, 1, wait_ms)) < 0 && errno == EINTR)
		;
	if (!ret) {
		/* The child may not even die before its disk answers. */
		kill(reader.pid, SIGKILL);
		close(reader.fd);
		waitpid(reader.pid, NULL, WNOHANG);
		return cause("the disk does not answer");
	}
	ret = read_all(reader.fd, answer, sizeof(*answer));
	close(reader.fd);
	while (waitpid(reader.pid, &status, 0) < 0 && errno == EINTR)
		;
	if (ret && WIFSIGNALED(status))
		return cause("the header reader was stopped by signal %d (%s): the image is not "
			     "what it should be", WTERMSIG(status), strsignal(WTERMSIG(status)));
	if (ret || !plausible(answer))
		return cause("the header reader gave no usable answer");
	return 0;
}

int probe_header(int fd, struct image_header *header)
{
	static const struct question question = { .disk = false };
	static struct answer answer;

	if (ask(fd, &question, -1, &answer))
		return -1;
	if (!answer.accepted) {
		cause("%s", answer.error);
		return cause_code(EXIT_REFUSED);
	}
	*header = answer.header;
	return 0;
}

unsigned int probe_sector_size(int fd, uint64_t bytes, unsigned int sector)
{
	const struct question question = { .disk = true, .bytes = bytes, .sector = sector };
	static struct answer answer;

	if (ask(fd, &question, DISK_WAIT_MS, &answer) || !answer.accepted)
		return 0;
	return answer.sector_size == 512 || answer.sector_size == 4096 ? answer.sector_size : 0;
}
