// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * listen.c - owns the socket's file: which users may connect to it, and when it may be replaced or
 * removed.
 *
 * Others may own a directory on the path to it, and change that path at any time. So the path is
 * followed once, and the file is examined and removed in the directory that was opened then.
 */
#include "listen.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/sockios.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include "util.h"

/* From <linux/un.h>, which conflicts with <sys/un.h>. */
#ifndef SIOCUNIXFILE
#define SIOCUNIXFILE SIOCPROTOPRIVATE
#endif

/* How long another server may be busy in the socket's directory. */
#define DIRECTORY_WAIT_MS 5000

int parse_socket_owner(const char *text, struct socket_owner *owner)
{
	char *user = xstrdup(text);
	char *group = strchr(user, ':');
	struct passwd *pw;
	struct group *gr;
	int ret = 0;

	if (group)
		*group++ = '\0';
	owner->given = true;
	owner->gid = (gid_t)-1;
	pw = getpwnam(user);
	if (!pw)
		ret = cause("there is no user '%s'", user);
	else
		owner->uid = pw->pw_uid;
	if (!ret && group) {
		gr = getgrnam(group);
		if (!gr)
			ret = cause("there is no group '%s'", group);
		else
			owner->gid = gr->gr_gid;
	}
	free(user);
	return ret;
}

/* Does a process listen at this file, opened with O_PATH? */
static bool is_listened_at(int node)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	bool refused;

	/* This name leads to that very file. */
	snprintf(addr.sun_path, sizeof(addr.sun_path), "/proc/self/fd/%d", node);
	refused = fd >= 0 && connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) &&
		  errno == ECONNREFUSED;
	if (fd >= 0)
		close(fd);
	return !refused;
}

/* Remove a socket that nobody listens at. */
static int remove_stale(const struct listener *l)
{
	int node = openat(l->dir, l->base, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;
	int ret = 0;

	if (node < 0)
		return errno == ENOENT ? 0 : cause_errno("socket %s", l->path);
	if (fstat(node, &st) || !S_ISSOCK(st.st_mode)) {
		ret = cause("%s exists and is not a socket", l->path);
	} else if (is_listened_at(node)) {
		cause("another server listens at %s", l->path);
		ret = cause_code(EXIT_BUSY);
	} else if (unlinkat(l->dir, l->base, 0) && errno != ENOENT) {
		ret = cause_errno("cannot remove the old socket %s", l->path);
	}
	close(node);
	return ret;
}

/* Is the file in the socket's directory the socket's? */
static bool is_there(const struct listener *l)
{
	struct stat st;

	return !fstatat(l->dir, l->base, &st, AT_SYMLINK_NOFOLLOW) && st.st_dev == l->dev &&
	       st.st_ino == l->ino;
}

/*
 * The file that a socket was bound to: from the socket where the kernel lets us, else by its name.
 * The owner of the directory may have put something else there; a link is never followed.
 */
static int open_node(const struct listener *l, struct stat *st)
{
	int fd = ioctl(l->fd, SIOCUNIXFILE);

	if (fd < 0)
		fd = openat(l->dir, l->base, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return cause_errno("the socket %s is gone", l->path);
	if (fstat(fd, st) || !S_ISSOCK(st->st_mode) || st->st_uid != geteuid()) {
		close(fd);
		return cause("%s is not the socket that was made there", l->path);
	}
	return fd;
}

static int set_access(int node, const struct socket_owner *owner)
{
	char link[64];

	if (!owner->given)
		return 0;
	/* Nobody can connect before the owner is right: the socket was made with mode 0600. */
	if (fchownat(node, "", owner->uid, owner->gid, AT_EMPTY_PATH))
		return cause_errno("cannot set the socket's owner");
	/* fchmod() takes no descriptor of this kind; this name leads to that very file. */
	snprintf(link, sizeof(link), "/proc/self/fd/%d", node);
	if (owner->gid != (gid_t)-1 && chmod(link, 0660))
		return cause_errno("cannot set the socket's mode");
	return 0;
}

/*
 * The file that is locked while a server looks for a socket in the directory @at and makes its own.
 * No other user may be able to open the file, since a lock needs no more than a descriptor: so it
 * is never the directory itself. Root has a place where nobody else can put a file, and uses it for
 * directories of others, too.
 */
static char *lock_name(const char *dir, int at)
{
	struct stat st;

	if (!geteuid() && !fstat(at, &st) && (!mkdir(SOCKET_DIR, 0755) || errno == EEXIST) &&
	    !access(SOCKET_DIR, W_OK))
		return xasprintf("%s/.lock-%x:%x-%llx", SOCKET_DIR, major(st.st_dev),
				 minor(st.st_dev), (unsigned long long)st.st_ino);
	return xasprintf("%s.qcow2attach-%u.lock", dir, (unsigned int)geteuid());
}

/* Has this filesystem no locks? Then servers of one socket must not start at the same time. */
static bool no_locks(int err)
{
	return err == EOPNOTSUPP || err == ENOLCK || err == ENOSYS || err == EINVAL;
}

/* Lock the file @name: a descriptor, -1 with a cause, or -2 when another file is there by now. */
static int lock_file(const char *name, uint64_t until)
{
	int fd = open(name, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600), ret;
	struct stat st;

	if (fd < 0)
		return cause_errno("cannot make the lock %s", name);
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_uid != geteuid() ||
	    (st.st_mode & 077)) {
		close(fd);
		return cause("%s is not a lock that this user made and nobody else can open",
			     name);
	}
	while ((ret = flock(fd, LOCK_EX | LOCK_NB)) && errno == EWOULDBLOCK && now_ms() < until)
		sleep_ms(20);
	if (ret && errno == EWOULDBLOCK) {
		close(fd);
		cause("another server keeps %s locked", name);
		return cause_code(EXIT_BUSY);
	}
	if (ret && !no_locks(errno)) {
		cause_errno("cannot lock %s", name);
		close(fd);
		return -1;
	}
	/* The process that had it locked before has removed it. */
	if (fstat(fd, &st) || !st.st_nlink) {
		close(fd);
		return -2;
	}
	return fd;
}

/**
 * struct socket_lock - keeps other servers of this user from a directory.
 * @fd: the locked file.
 * @name: its name.
 */
struct socket_lock {
	int fd;
	char *name;
};

/* Open the directory that the socket is in. */
static int open_directory(struct listener *l)
{
	char *dir = xasprintf("%.*s", (int)(l->base - l->path), l->path);

	l->dir = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (l->dir < 0)
		cause_errno("the socket's directory %s", dir);
	free(dir);
	return l->dir < 0 ? -1 : 0;
}

/*
 * Keep other servers from looking for a socket in the directory: a socket that does not listen yet
 * would be taken for a stale one.
 */
static int lock_directory(const struct listener *l, struct socket_lock *lock)
{
	uint64_t until = now_ms() + DIRECTORY_WAIT_MS;
	char *dir = xasprintf("%.*s", (int)(l->base - l->path), l->path);

	lock->name = lock_name(dir, l->dir);
	do {
		lock->fd = lock_file(lock->name, until);
	} while (lock->fd == -2);
	if (lock->fd < 0)
		free(lock->name);
	free(dir);
	return lock->fd < 0 ? -1 : 0;
}

static void unlock_directory(struct socket_lock *lock)
{
	/* A command that waits for the lock checks whether the file still exists. */
	unlink(lock->name);
	close(lock->fd);
	free(lock->name);
}

/* Make the socket's file, which must not exist, and listen. */
static int bind_and_listen(struct listener *l, const struct socket_owner *owner)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct stat st;
	mode_t mask;
	int ret, node;

	strcpy(addr.sun_path, l->path);
	mask = umask(0177);
	ret = bind(l->fd, (const struct sockaddr *)&addr, sizeof(addr));
	umask(mask);
	if (ret)
		return cause_errno("cannot make the socket %s", l->path);
	node = open_node(l, &st);
	if (node < 0)
		return -1;
	l->dev = st.st_dev;
	l->ino = st.st_ino;
	/* A socket that was made elsewhere stays, since its name leads wherever others want. */
	if (!is_there(l))
		ret = cause("the socket %s was removed or replaced", l->path);
	else
		ret = set_access(node, owner);
	close(node);
	if (!ret && listen(l->fd, 4))
		ret = cause_errno("cannot listen at %s", l->path);
	if (ret)
		listener_unlink(l);
	return ret;
}

static int open_listener(struct listener *l, const struct socket_owner *owner)
{
	struct socket_lock lock;
	int ret;

	if (open_directory(l) || lock_directory(l, &lock))
		return -1;
	ret = remove_stale(l);
	if (!ret) {
		l->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (l->fd < 0)
			ret = cause_errno("cannot create a socket");
	}
	if (!ret)
		ret = bind_and_listen(l, owner);
	unlock_directory(&lock);
	return ret;
}

/* The kernel tells others the very name that a socket is bound to: it must lead them there. */
static char *absolute_path(const char *path)
{
	char *here, *absolute;

	if (path[0] == '/')
		return xstrdup(path);
	here = getcwd(NULL, 0);
	if (!here) {
		cause_errno("cannot determine the current directory for the socket %s",
			    path);
		return NULL;
	}
	absolute = xasprintf("%s/%s", strcmp(here, "/") ? here : "", path);
	free(here);
	return absolute;
}

int listener_open(struct listener *l, const char *path, const struct socket_owner *owner)
{
	const size_t most = sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1;

	*l = (struct listener) { .fd = -1, .dir = -1 };
	l->path = absolute_path(path);
	if (!l->path)
		return -1;
	l->base = strrchr(l->path, '/') + 1;
	if (strlen(l->path) > most)
		cause("the socket's name is longer than %zu bytes: %s (--socket takes a shorter "
		      "one)", most, l->path);
	else if (!open_listener(l, owner))
		return 0;
	listener_close(l);
	return -1;
}

void listener_unlink(const struct listener *l)
{
	if (is_there(l))
		unlinkat(l->dir, l->base, 0);
}

void listener_close(struct listener *l)
{
	if (l->fd >= 0)
		close(l->fd);
	if (l->dir >= 0)
		close(l->dir);
	free(l->path);
	*l = (struct listener) { .fd = -1, .dir = -1 };
}
