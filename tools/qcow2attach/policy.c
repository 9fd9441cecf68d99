// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * policy.c - owns the decision which backing files are followed.
 */
#include "policy.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "walk.h"

int policy_allow(struct policy *p, const char *dir)
{
	char *real = realpath(dir, NULL);
	struct stat st;

	if (!real)
		return cause_errno("allowed directory '%s'", dir);
	if (stat(real, &st) || !S_ISDIR(st.st_mode)) {
		free(real);
		return cause("allowed directory '%s' is not a directory", dir);
	}
	strv_add(&p->granted, real);
	return 0;
}

bool same_file(const struct stat *a, const struct stat *b)
{
	if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
		return a->st_rdev == b->st_rdev;
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

int policy_allow_file(struct policy *p, const char *path)
{
	struct policy_file f = { .fd = open(path, O_PATH | O_CLOEXEC) };

	if (f.fd < 0)
		return cause_errno("allowed backing file '%s'", path);
	if (fstat(f.fd, &f.st) || (!S_ISREG(f.st.st_mode) && !S_ISBLK(f.st.st_mode))) {
		close(f.fd);
		return cause("allowed backing file '%s' is neither a file nor a block device%s",
			     path,
			     S_ISDIR(f.st.st_mode) ? " (--allow-dir allows a directory)" : "");
	}
	p->files = xrealloc(p->files, (p->nfiles + 1) * sizeof(*p->files));
	p->files[p->nfiles++] = f;
	return 0;
}

int policy_read_config(struct policy *p, const char *path)
{
	FILE *f = fopen(path, "re");
	unsigned int number = 0;
	char line[PATH_MAX + 32];
	struct stat st;
	int ret = 0;

	if (!f)
		return errno == ENOENT ? 0 : cause_errno("cannot read %s", path);
	if (fstat(fileno(f), &st) || (st.st_uid && st.st_uid != geteuid()) ||
	    (st.st_mode & (S_IWGRP | S_IWOTH))) {
		fclose(f);
		return cause("%s can be written by others than its administrator; it is not read",
			     path);
	}
	while (!ret && fgets(line, sizeof(line), f)) {
		char *word = line, *value;

		number++;
		line[strcspn(line, "\n")] = '\0';
		while (isspace((unsigned char)*word))
			word++;
		if (!*word || *word == '#')
			continue;
		value = word + strcspn(word, " \t");
		if (*value)
			*value++ = '\0';
		while (isspace((unsigned char)*value))
			value++;
		if (strcmp(word, "allow-dir"))
			ret = cause("%s:%u: unknown setting '%s'", path, number, word);
		else if (*value != '/')
			ret = cause("%s:%u: allow-dir takes an absolute path", path, number);
		else if (access(value, F_OK))
			continue;
		else if (policy_allow(p, value))
			ret = cause_prefix("%s:%u", path, number);
	}
	fclose(f);
	return ret;
}

static bool inside(const char *path, const char *dir)
{
	size_t n = strlen(dir);

	if (!strcmp(dir, "/"))
		return true;
	return !strncmp(path, dir, n) && (path[n] == '/' || !path[n]);
}

int policy_set_home(struct policy *p, int dir)
{
	char real[PATH_MAX];

	if (real_place(dir, real, sizeof(real)))
		return -1;
	/*
	 * The directory of a device node holds every other device of the host, and the root
	 * directory all that there is.
	 */
	if (inside(real, "/dev") || !strcmp(real, "/"))
		return 0;
	p->home = fcntl(dir, F_DUPFD_CLOEXEC, 0);
	if (p->home < 0)
		return cause_errno("its directory cannot be kept open");
	p->has_home = true;
	return 0;
}

static bool is_granted(const struct policy *p, const char *path)
{
	for (size_t i = 0; i < p->granted.n; i++) {
		if (inside(path, p->granted.v[i]))
			return true;
	}
	return false;
}

static bool is_named(const struct policy *p, const struct stat *st)
{
	for (size_t i = 0; i < p->nfiles; i++) {
		if (same_file(&p->files[i].st, st))
			return true;
	}
	return false;
}

/* A file in the image's own directory, which no option names: may it be its backing file? */
static int check_neighbour(const struct stat *st, bool raw, const struct stat *overlay)
{
	/* Disks of several owners may lie in one directory. */
	if (st->st_uid && st->st_uid != overlay->st_uid) {
		cause("it belongs to user %u, but the image that names it to user %u "
		      "(--backing FILE allows it, --allow-dir DIR all of a directory)", st->st_uid,
		      overlay->st_uid);
		return cause_code(EXIT_REFUSED);
	}
	if (!raw)
		return 0;
	/* Any file can be said to be a raw disk: a key, a password, another tenant's disk. */
	cause("it is a raw file, which may be anybody's: only the image says that it is its "
	      "backing file (--backing FILE allows it, --allow-dir DIR all of a directory)");
	return cause_code(EXIT_REFUSED);
}

/*
 * The nodes of LVM and udev are links to /dev/dm-N and the like. So below /dev the place of a link
 * counts, in directories where only the administrator makes links: not in /dev/shm, nor in a
 * directory that a user has made there. Returns that directory when it is allowed; else NULL, and
 * *@hint is a directory that would do.
 */
static const char *granted_place(const struct policy *p, const struct strv *places,
				 const char **hint)
{
	for (size_t i = 0; i < places->n; i++) {
		if (!inside(places->v[i], "/dev"))
			continue;
		if (is_granted(p, places->v[i]))
			return places->v[i];
		if (strcmp(places->v[i], "/dev"))
			*hint = places->v[i];
	}
	return NULL;
}

int policy_check(const struct policy *p, int fd, const struct strv *places, const struct stat *st,
		 bool raw, const struct stat *overlay)
{
	char real[PATH_MAX], home[PATH_MAX];
	const char *hint = "DIR";

	if (is_named(p, st))
		return 0;
	if (real_place(fd, real, sizeof(real)))
		return -1;
	if (is_granted(p, real))
		return 0;
	if (S_ISBLK(st->st_mode)) {
		if (granted_place(p, places, &hint))
			return 0;
	} else if (p->has_home) {
		if (real_place(p->home, home, sizeof(home)))
			return -1;
		if (inside(real, home))
			return check_neighbour(st, raw, overlay);
	}
	cause("%s is not in a directory that backing files may come from "
	      "(--allow-dir %s allows one, --backing FILE just this file)", real, hint);
	return cause_code(EXIT_REFUSED);
}

int policy_check_name(const struct policy *p, const char *name)
{
	size_t n = strcspn(name, ":/");

	if (p->none) {
		cause("the image has a backing file, and --no-backing allows none");
		return cause_code(EXIT_REFUSED);
	}
	if (name[n] != ':')
		return 0;
	if (!strncmp(name, "json:", 5))
		cause("it is a json: description; only plain file names are followed");
	else
		cause("it is named by the protocol '%.*s:'; only plain file names are followed",
		      (int)n, name);
	return cause_code(EXIT_REFUSED);
}

void policy_free(struct policy *p)
{
	strv_free(&p->granted);
	for (size_t i = 0; i < p->nfiles; i++)
		close(p->files[i].fd);
	free(p->files);
	p->files = NULL;
	p->nfiles = 0;
	if (p->has_home)
		close(p->home);
	p->has_home = false;
}
