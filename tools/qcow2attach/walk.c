// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * walk.c - owns following a name through directories and links.
 *
 * The kernel can follow a name by itself, but reports only where it has ended. Here each part of
 * the name is opened with O_PATH in the directory that is open already; when it is a link, its
 * target is read from that descriptor. So a process that changes a directory meanwhile can send us
 * elsewhere, but cannot make us judge one way and go another.
 */
#include "walk.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

/* As many as the kernel follows. */
#define MAX_LINKS 40

/* The flag in statfs of a mount where no link is followed (<linux/statfs.h>). */
#define MOUNT_NOSYMFOLLOW 0x2000

/**
 * struct steps - a walk that is under way.
 * @at: the directory that has been reached, open, or AT_FDCWD.
 * @rest: the part of the name that is still to be followed, allocated.
 * @links: how many links were followed.
 */
struct steps {
	int at;
	char *rest;
	unsigned int links;
};

int real_place(int fd, char *real, size_t len)
{
	char link[64];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, real, len);
	if (n < 0 || (size_t)n == len)
		return cause_errno("cannot determine its path");
	real[n] = '\0';
	return 0;
}

static int fail(int err)
{
	return cause("%s", strerror(err));
}

static void arrive(struct steps *s, int fd)
{
	if (s->at >= 0)
		close(s->at);
	s->at = fd;
}

/* Begin anew at the root, when the rest of the name says so. */
static int begin(struct steps *s)
{
	int fd;

	if (!*s->rest)
		return fail(ENOENT);
	if (*s->rest != '/' && s->at != AT_FDCWD)
		return 0;
	fd = open(*s->rest == '/' ? "/" : ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return fail(errno);
	arrive(s, fd);
	return 0;
}

/* Take the next part off the rest of the name. *@last: nothing follows it, not even a slash. */
static bool take_part(struct steps *s, char *part, bool *last)
{
	char *from = s->rest + strspn(s->rest, "/");
	size_t n = strcspn(from, "/");

	if (!n || n > NAME_MAX)
		return false;
	memcpy(part, from, n);
	part[n] = '\0';
	*last = !from[n];
	memmove(s->rest, from + n, strlen(from + n) + 1);
	return true;
}

/* May this link, found in the directory that was reached, be followed? Else -1 with a cause. */
static int judge_link(const struct steps *s, int fd, const struct stat *st)
{
	struct statfs fs;
	struct stat dir;

	if (s->links >= MAX_LINKS)
		return fail(ELOOP);
	if (fstatfs(fd, &fs) || fstat(s->at, &dir))
		return fail(errno);
	/* The target of such a link does not lead to what a process has open. */
	if (fs.f_type == PROC_SUPER_MAGIC)
		return cause("links below /proc, and so /dev/fd/N, are not followed: use the "
			     "file's own name");
	if (fs.f_flags & MOUNT_NOSYMFOLLOW)
		return cause("links are not followed on a filesystem that is mounted with "
			     "nosymfollow");
	/* As with fs.protected_symlinks: in /tmp anybody can plant a link. */
	if ((dir.st_mode & (S_ISVTX | S_IWOTH)) == (S_ISVTX | S_IWOTH) &&
	    st->st_uid != geteuid() && st->st_uid != dir.st_uid)
		return fail(EACCES);
	return 0;
}

/* Put a link's target in front of the rest of the name. */
static int follow(struct steps *s, int fd, const struct stat *st)
{
	char text[PATH_MAX], *rest;
	ssize_t n;

	if (judge_link(s, fd, st))
		return -1;
	n = readlinkat(fd, "", text, sizeof(text));
	if (n < 0)
		return fail(errno);
	if (!n || n == sizeof(text) || n + strlen(s->rest) >= PATH_MAX)
		return fail(n ? ENAMETOOLONG : ENOENT);
	rest = xasprintf("%.*s%s", (int)n, text, s->rest);
	free(s->rest);
	s->rest = rest;
	s->links++;
	return begin(s);
}

/*
 * Open a part with O_PATH. A directory on the way may be an automount, which O_PATH does not
 * trigger: statx() does, but fstatat() never does. The attributes are not used.
 */
static int open_part(const struct steps *s, const char *part, bool last)
{
	struct statx unused;

	if (!last)
		(void)statx(s->at, part, AT_SYMLINK_NOFOLLOW, STATX_TYPE, &unused);
	return openat(s->at, part, O_PATH | O_NOFOLLOW | O_CLOEXEC);
}

/* Note the directory in which the file is looked for by its last name. */
static int note_place(struct walk *w, const struct steps *s)
{
	char real[PATH_MAX];
	struct stat st;

	if (fstat(s->at, &st))
		return fail(errno);
	if (!st.st_uid && !(st.st_mode & (S_IWGRP | S_IWOTH))) {
		if (real_place(s->at, real, sizeof(real)))
			return -1;
		strv_add(&w->places, xstrdup(real));
	}
	if (w->dir >= 0)
		return 0;
	w->dir = fcntl(s->at, F_DUPFD_CLOEXEC, 0);
	return w->dir < 0 ? fail(errno) : 0;
}

/* Go one part further. Returns 1 when the end is reached, in @w->fd; 0; or -1 with a cause. */
static int step(struct walk *w, struct steps *s)
{
	char part[NAME_MAX + 1];
	struct stat st;
	bool last;
	int fd, ret;

	if (!take_part(s, part, &last)) {
		if (s->rest[strspn(s->rest, "/")])
			return fail(ENAMETOOLONG);
		/* A name that ends with a slash is its directory's. */
		w->fd = s->at;
		s->at = -1;
		return 1;
	}
	if (last && note_place(w, s))
		return -1;
	fd = open_part(s, part, last);
	if (fd < 0)
		return fail(errno);
	if (fstat(fd, &st)) {
		ret = fail(errno);
	} else if (S_ISLNK(st.st_mode)) {
		ret = follow(s, fd, &st);
	} else if (last) {
		w->fd = fd;
		fd = -1;
		ret = 1;
	} else if (S_ISDIR(st.st_mode)) {
		arrive(s, fd);
		fd = -1;
		ret = 0;
	} else {
		ret = fail(ENOTDIR);
	}
	if (fd >= 0)
		close(fd);
	return ret;
}

int walk_open(struct walk *w, int dir, const char *name)
{
	struct steps s = { .at = AT_FDCWD, .rest = xstrdup(name) };
	int ret = 0;

	*w = (struct walk) { .fd = -1, .dir = -1 };
	if (dir != AT_FDCWD) {
		s.at = fcntl(dir, F_DUPFD_CLOEXEC, 0);
		if (s.at < 0)
			ret = fail(errno);
	}
	if (!ret)
		ret = begin(&s);
	while (!ret)
		ret = step(w, &s);
	if (s.at >= 0)
		close(s.at);
	free(s.rest);
	if (ret < 0)
		return -1;
	/* Only a directory was named; names that begin in it go on there. */
	if (w->dir < 0)
		w->dir = fcntl(w->fd, F_DUPFD_CLOEXEC, 0);
	return w->dir < 0 ? fail(errno) : 0;
}

void walk_close(struct walk *w)
{
	if (w->fd >= 0)
		close(w->fd);
	if (w->dir >= 0)
		close(w->dir);
	strv_free(&w->places);
	w->fd = -1;
	w->dir = -1;
}
