// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * users.c - owns finding out, from /proc and sysfs, which users keep a device busy.
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

#include "socket-name.h"

static struct device_user *add(struct users *users, dev_t dev, enum user_kind kind,
			       const char *name)
{
	struct device_user *u;

	users->list = xrealloc(users->list, (users->n + 1) * sizeof(*users->list));
	u = &users->list[users->n++];
	memset(u, 0, sizeof(*u));
	u->dev = dev;
	u->kind = kind;
	snprintf(u->name, sizeof(u->name), "%s", name);
	return u;
}

/* The block device that a path in /dev leads to, or 0. */
static dev_t device_at(const char *path)
{
	struct stat st;

	/* Anything else may be on a filesystem that does not answer. */
	if (strncmp(path, "/dev/", 5) || stat(path, &st) || !S_ISBLK(st.st_mode))
		return 0;
	return st.st_rdev;
}

/* The block device that a descriptor of a process leads to, or 0. */
static dev_t device_of_fd(int dir, const char *fd)
{
	char target[PATH_MAX];
	struct stat st;
	ssize_t n = readlinkat(dir, fd, target, sizeof(target) - 1);

	if (n < 0)
		return 0;
	target[n] = '\0';
	/* As above. */
	if (strncmp(target, "/dev/", 5) || fstatat(dir, fd, &st, 0) || !S_ISBLK(st.st_mode))
		return 0;
	return st.st_rdev;
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

/* @first: the process's first entry in the list; one is enough for each device. */
static bool is_known(const struct users *users, int first, dev_t dev)
{
	for (int i = first; i < users->n; i++) {
		if (users->list[i].dev == dev)
			return true;
	}
	return false;
}

static void scan_process(struct users *users, const char *pid)
{
	char path[64], name[64] = "?", socket[128] = "";
	int first = users->n;
	struct dirent *e;
	bool serves;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%.20s/fd", pid);
	dir = opendir(path);
	if (!dir)
		return;
	while ((e = readdir(dir))) {
		dev_t dev = isdigit((unsigned char)e->d_name[0]) ?
			    device_of_fd(dirfd(dir), e->d_name) : 0;

		if (dev && !is_known(users, first, dev))
			add(users, dev, USER_PROCESS, "");
	}
	closedir(dir);
	if (users->n == first)
		return;
	snprintf(path, sizeof(path), "/proc/%.20s/comm", pid);
	read_small_file(path, name, sizeof(name));
	serves = is_server(pid);
	if (serves)
		socket_name(pid, socket, sizeof(socket));
	for (int i = first; i < users->n; i++) {
		snprintf(users->list[i].name, sizeof(users->list[i].name), "%s", name);
		users->list[i].pid = atoi(pid);
		users->list[i].serves = serves;
		memcpy(users->list[i].socket, socket, sizeof(socket));
	}
}

static void scan_processes(struct users *users)
{
	DIR *dir = opendir("/proc");
	struct dirent *e;

	while (dir && (e = readdir(dir))) {
		if (isdigit((unsigned char)e->d_name[0]) && atoi(e->d_name) != getpid())
			scan_process(users, e->d_name);
	}
	if (dir)
		closedir(dir);
}

/*
 * A subvolume has a device number of its own, under which there is no disk; its source names the
 * disk then. The source of any other mount is what the mounting user says, which for FUSE is any
 * user.
 */
static bool is_subvolume(const char *type, unsigned int maj)
{
	return !maj && (!strcmp(type, "btrfs") || !strcmp(type, "bcachefs"));
}

static void scan_mounts(struct users *users)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char *line = NULL;
	size_t size = 0;

	while (f && getline(&line, &size, f) > 0) {
		unsigned int maj, min;
		char type[64], source[256], point[256];
		const char *tail = strstr(line, " - ");
		dev_t dev;

		if (!tail || sscanf(line, "%*d %*d %u:%u %*s %255s", &maj, &min, point) != 3 ||
		    sscanf(tail, " - %63s %255s", type, source) != 2)
			continue;
		dev = is_subvolume(type, maj) ? device_at(source) : makedev(maj, min);
		if (dev)
			add(users, dev, USER_MOUNT, point);
	}
	free(line);
	if (f)
		fclose(f);
}

static void scan_swaps(struct users *users)
{
	FILE *f = fopen("/proc/swaps", "re");
	char line[512], path[256];

	while (f && fgets(line, sizeof(line), f)) {
		dev_t dev = sscanf(line, "%255s", path) == 1 ? device_at(path) : 0;

		if (dev)
			add(users, dev, USER_SWAP, path);
	}
	if (f)
		fclose(f);
}

/* A loop device opens its backing file in the kernel, and is not among the holders. */
static void scan_loops(struct users *users)
{
	char path[PATH_MAX], below[PATH_MAX];
	DIR *dir = opendir("/sys/block");
	struct dirent *e;

	while (dir && (e = readdir(dir))) {
		dev_t dev;

		if (strncmp(e->d_name, "loop", 4))
			continue;
		snprintf(path, sizeof(path), "/sys/block/%s/loop/backing_file", e->d_name);
		dev = read_small_file(path, below, sizeof(below)) ? 0 : device_at(below);
		if (dev)
			add(users, dev, USER_DEVICE, e->d_name);
	}
	if (dir)
		closedir(dir);
}

static void scan_holders(struct users *users, dev_t dev)
{
	char path[PATH_MAX], name[128];
	struct dirent *e;
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/holders", major(dev), minor(dev));
	dir = opendir(path);
	while (dir && (e = readdir(dir))) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/sys/class/block/%s/dm/name", e->d_name);
		if (read_small_file(path, name, sizeof(name)))
			snprintf(name, sizeof(name), "%.100s", e->d_name);
		add(users, dev, USER_DEVICE, name);
	}
	if (dir)
		closedir(dir);
}

void users_scan(struct users *users)
{
	memset(users, 0, sizeof(*users));
	scan_mounts(users);
	scan_swaps(users);
	scan_loops(users);
	scan_processes(users);
}

int users_of(const struct users *users, dev_t dev, struct device_user **list)
{
	struct users mine = { 0 };

	scan_holders(&mine, dev);
	for (int i = 0; i < users->n; i++) {
		const struct device_user *u = &users->list[i];

		if (u->dev != dev)
			continue;
		*add(&mine, dev, u->kind, "") = *u;
	}
	*list = mine.list;
	return mine.n;
}

void users_free(struct users *users)
{
	free(users->list);
	users->list = NULL;
	users->n = 0;
}

int users_find(dev_t dev, struct device_user **list)
{
	struct users users;
	int n;

	users_scan(&users);
	n = users_of(&users, dev, list);
	users_free(&users);
	return n;
}

const char *device_name(dev_t dev, char *buf, size_t len)
{
	char path[64], text[1024];
	const char *name;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/dm/name", major(dev), minor(dev));
	if (!read_small_file(path, text, sizeof(text))) {
		snprintf(buf, len, "/dev/mapper/%s", text);
		return buf;
	}
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/uevent", major(dev), minor(dev));
	name = read_small_file(path, text, sizeof(text)) ? NULL : strstr(text, "DEVNAME=");
	if (name)
		snprintf(buf, len, "/dev/%.*s", (int)strcspn(name + 8, "\n"), name + 8);
	else
		snprintf(buf, len, "%u:%u", major(dev), minor(dev));
	return buf;
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
		snprintf(buf, len, "in use by %s (process %d)%s%s",
			 u->serves ? "qcow2attach serve" : u->name, (int)u->pid,
			 u->socket[0] ? " at " : "", u->socket);
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
