// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * users.c - owns finding out, from /proc and sysfs, who keeps a device busy.
 */
#include "users.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

struct search {
	dev_t dev;
	struct device_user *list;
	int n;
};

static struct device_user *add(struct search *s, enum user_kind kind, const char *name)
{
	struct device_user *u;

	s->list = xrealloc(s->list, (s->n + 1) * sizeof(*s->list));
	u = &s->list[s->n++];
	memset(u, 0, sizeof(*u));
	u->kind = kind;
	snprintf(u->name, sizeof(u->name), "%s", name);
	return u;
}

/* Does this descriptor of a process lead to the device? */
static bool leads_to(int dir, const char *fd, dev_t dev)
{
	char target[PATH_MAX];
	struct stat st;
	ssize_t n = readlinkat(dir, fd, target, sizeof(target) - 1);

	if (n < 0)
		return false;
	target[n] = '\0';
	/* Anything else may be on a filesystem that does not answer. */
	if (strncmp(target, "/dev/", 5))
		return false;
	return !fstatat(dir, fd, &st, 0) && S_ISBLK(st.st_mode) && st.st_rdev == dev;
}

static bool is_server(const char *pid)
{
	char path[64], line[256] = "";
	const char *program, *verb;

	snprintf(path, sizeof(path), "/proc/%s/cmdline", pid);
	if (read_small_file(path, line, sizeof(line)))
		return false;
	program = strrchr(line, '/') ? strrchr(line, '/') + 1 : line;
	verb = line + strlen(line) + 1;
	return !strcmp(program, "qcow2attach") && verb < line + sizeof(line) &&
	       (!strcmp(verb, "serve") || !strcmp(verb, "run"));
}

static void search_process(struct search *s, const char *pid)
{
	char path[64], name[64] = "?";
	struct device_user *u;
	bool found = false;
	struct dirent *e;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%.20s/fd", pid);
	dir = opendir(path);
	if (!dir)
		return;
	while (!found && (e = readdir(dir)))
		found = isdigit((unsigned char)e->d_name[0]) &&
			leads_to(dirfd(dir), e->d_name, s->dev);
	closedir(dir);
	if (!found)
		return;
	snprintf(path, sizeof(path), "/proc/%.20s/comm", pid);
	read_small_file(path, name, sizeof(name));
	u = add(s, USER_PROCESS, name);
	u->pid = atoi(pid);
	u->serves = is_server(pid);
}

static void search_processes(struct search *s)
{
	DIR *dir = opendir("/proc");
	struct dirent *e;

	while (dir && (e = readdir(dir))) {
		if (isdigit((unsigned char)e->d_name[0]) && atoi(e->d_name) != getpid())
			search_process(s, e->d_name);
	}
	if (dir)
		closedir(dir);
}

static void search_mounts(struct search *s)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char *line = NULL;
	size_t size = 0;

	while (f && getline(&line, &size, f) > 0) {
		unsigned int maj, min;
		char source[256], point[256];
		const char *tail = strstr(line, " - ");
		struct stat st;
		bool mine;

		if (!tail || sscanf(line, "%*d %*d %u:%u %*s %255s", &maj, &min, point) != 3 ||
		    sscanf(tail, " - %*s %255s", source) != 1)
			continue;
		mine = makedev(maj, min) == s->dev;
		/* btrfs has a device number of its own; its source still names the device. */
		if (!mine && !strncmp(source, "/dev/", 5))
			mine = !stat(source, &st) && S_ISBLK(st.st_mode) && st.st_rdev == s->dev;
		if (mine)
			add(s, USER_MOUNT, point);
	}
	free(line);
	if (f)
		fclose(f);
}

static void search_swaps(struct search *s)
{
	FILE *f = fopen("/proc/swaps", "re");
	char line[512], path[256];
	struct stat st;

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%255s", path) == 1 && path[0] == '/' && !stat(path, &st) &&
		    S_ISBLK(st.st_mode) && st.st_rdev == s->dev)
			add(s, USER_SWAP, path);
	}
	if (f)
		fclose(f);
}

static void search_holders(struct search *s)
{
	char path[PATH_MAX], name[128];
	struct dirent *e;
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/holders", major(s->dev),
		 minor(s->dev));
	dir = opendir(path);
	while (dir && (e = readdir(dir))) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/sys/class/block/%s/dm/name", e->d_name);
		if (read_small_file(path, name, sizeof(name)))
			snprintf(name, sizeof(name), "%.100s", e->d_name);
		add(s, USER_DEVICE, name);
	}
	if (dir)
		closedir(dir);
}

int users_find(dev_t dev, struct device_user **list)
{
	struct search s = { .dev = dev };

	search_mounts(&s);
	search_swaps(&s);
	search_holders(&s);
	search_processes(&s);
	*list = s.list;
	return s.n;
}

const char *user_describe(const struct device_user *u, char *buf, size_t len)
{
	switch (u->kind) {
	case USER_MOUNT:
		snprintf(buf, len, "mounted on %s", u->name);
		break;
	case USER_SWAP:
		snprintf(buf, len, "in use as swap space");
		break;
	case USER_DEVICE:
		snprintf(buf, len, "in use by the device %s", u->name);
		break;
	default:
		snprintf(buf, len, "in use by %s (process %d)",
			 u->serves ? "qcow2attach serve" : u->name, (int)u->pid);
		break;
	}
	return buf;
}

void users_describe(const struct device_user *list, int n, char *buf, size_t len)
{
	size_t at = 0;
	char one[512];

	if (!n)
		snprintf(buf, len, "in use by something that /proc does not show");
	for (int i = 0; i < n && at < len; i++)
		at += snprintf(buf + at, len - at, "%s%s", !i ? "" : i == n - 1 ? " and " : ", ",
			       user_describe(&list[i], one, sizeof(one)));
}
