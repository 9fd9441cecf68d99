// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * moment.c - taking a view of a disk, and leaving nothing behind, however the command ends.
 *
 * Owns the names of such views and devices. A view is called qcow2attach-PID-START, after the
 * process that took it and the time at which that process was started: so a view that nobody
 * removes any more is known.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "moment.h"
#include "util.h"

#define PREFIX "qcow2attach-"
#define UUID_PREFIX DM_UUID_OURS "VIEW-"

/* How long a device may stay busy after its last user: udev, or a program that is ending. */
#define REMOVE_MS 30000
/* For the cleaner nobody waits. */
#define CLEAN_MS 3600000

enum { DONE = 'd', MADE = 'm' };	/* what the cleaner is told */

/* When a process was started, in ticks since the host was: field 22 of its stat. 0: no process. */
static unsigned long long start_of(pid_t pid)
{
	unsigned long long start = 0;
	char path[40], text[1024];
	const char *at;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	if (read_small_file(path, text, sizeof(text)))
		return 0;
	at = strrchr(text, ')');
	if (!at || sscanf(at + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d "
				  "%*d %*d %*d %*d %llu", &start) != 1)
		return 0;
	return start;
}

static char *device_name(const struct dm_device *live, const char *view)
{
	char *name = xasprintf("%.*s-%s", DM_NAME_MAX - 64, live->name, view + strlen(PREFIX));

	name[strnlen(name, DM_NAME_MAX)] = '\0';
	return name;
}

static int delete_view(const struct dm_device *live, const char *view)
{
	char *text = xasprintf("view delete %s", view), *answer = NULL;
	int ret = dmdev_ask(live, text, &answer);

	if (ret && errno == ENOENT)
		ret = 0;
	free(answer);
	free(text);
	return ret;
}

static int remove_device(const char *name, uint64_t patience)
{
	uint64_t until = now_ms() + patience;
	struct dm_device dev;
	int ret;

	/* Another process may be removing it, too. */
	if (dmdev_find(name, &dev))
		return dmdev_exists(name) ? -1 : 0;
	if (strncmp(dev.uuid, UUID_PREFIX, strlen(UUID_PREFIX))) {
		dmdev_release(&dev);
		return cause("%s is a device of another kind", name);
	}
	for (;;) {
		ret = dmdev_remove(&dev, false);
		if (!ret || cause_exit() != EXIT_BUSY || now_ms() > until)
			break;
		sleep_ms(50);
	}
	dmdev_release(&dev);
	return ret;
}

/* Remove the device and the view. A live device that has gone took its views along. */
static int remove_all(const struct dm_device *live, const char *view, uint64_t patience)
{
	char *name = device_name(live, view);
	int ret = dmdev_exists(name) ? remove_device(name, patience) : 0;

	free(name);
	if (ret)
		return -1;
	if (!dmdev_is_there(live) || !delete_view(live, view))
		return 0;
	return dmdev_is_there(live) ? -1 : 0;
}

/* Is this the name of a view, or the end of a device's UUID, of a process that is no more? */
static bool is_stale(const char *text)
{
	unsigned long long start;
	int pid;

	return sscanf(text, "%d-%llu", &pid, &start) == 2 && start_of(pid) != start;
}

/* Devices whose view may have been given up already, or whose disk has gone. */
static void remove_stale_devices(void)
{
	struct dm_device *list;
	int n = dmdev_list(&list);

	for (int i = 0; i < n; i++) {
		if (strncmp(list[i].uuid, UUID_PREFIX, strlen(UUID_PREFIX)) ||
		    !is_stale(list[i].uuid + strlen(UUID_PREFIX)))
			continue;
		note("%s: removing a device that a killed command has left", list[i].name);
		if (remove_device(list[i].name, REMOVE_MS))
			note("%s: %s", list[i].name, cause_text());
	}
	if (n >= 0)
		dmdev_list_free(list, n);
}

/* Remove what commands have left that cannot do that themselves any more. */
static int remove_stale(const struct dm_device *live)
{
	char *answer, *line, *save = NULL;

	remove_stale_devices();
	if (dmdev_ask(live, "view list", &answer))
		return cause_prefix("no view can be taken");
	for (line = strtok_r(answer, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		line[strcspn(line, " ")] = '\0';
		if (strncmp(line, PREFIX, strlen(PREFIX)) || !is_stale(line + strlen(PREFIX)))
			continue;
		note("%s: removing a view that a killed command has left", live->name);
		if (remove_all(live, line, REMOVE_MS))
			note("%s: %s", live->name, cause_text());
	}
	free(answer);
	return 0;
}

static void __attribute__((noreturn)) cleaner_process(struct moment *m, int in)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	ssize_t n;
	char c = 0;

	/* A caller may wait for the end of the command's output. */
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	/* A signal to all processes of the command leaves the rest to this one. */
	setsid();
	for (;;) {
		n = read(in, &c, 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n != 1 || c == DONE)
			break;
		m->made = m->made || c == MADE;
	}
	if (n != 1) {
		if (remove_all(m->live, m->view, CLEAN_MS))
			note("%s: view %s is left: %s", m->live->name, m->view, cause_text());
		if (m->made)
			unlink(m->partial);
	}
	_exit(0);
}

/* Not spawn(): its pipe goes the other way. */
static int start_cleaner(struct moment *m)
{
	static const int ending[] = { SIGHUP, SIGINT, SIGTERM, SIGQUIT, SIGPIPE };
	sigset_t set, before;
	int to[2];

	if (pipe2(to, O_CLOEXEC))
		return cause_errno("cannot create a pipe");
	sigemptyset(&set);
	for (size_t i = 0; i < ARRAY_SIZE(ending); i++)
		sigaddset(&set, ending[i]);
	sigprocmask(SIG_BLOCK, &set, &before);
	fflush(NULL);
	dmdev_let_go();
	m->cleaner = fork();
	if (!m->cleaner) {
		for (size_t i = 0; i < ARRAY_SIZE(ending); i++)
			signal(ending[i], SIG_IGN);
		sigprocmask(SIG_SETMASK, &before, NULL);
		close(to[1]);
		cleaner_process(m, to[0]);
	}
	sigprocmask(SIG_SETMASK, &before, NULL);
	close(to[0]);
	m->alive = to[1];
	if (m->cleaner > 0)
		return 0;
	close(to[1]);
	return cause_errno("cannot start the process that cleans up");
}

/* It may have been killed. */
static void tell_cleaner(struct moment *m, char what)
{
	sighandler_t before = signal(SIGPIPE, SIG_IGN);

	write_all(m->alive, &what, 1);
	signal(SIGPIPE, before);
}

static void end_cleaner(struct moment *m)
{
	tell_cleaner(m, DONE);
	close(m->alive);
	while (waitpid(m->cleaner, NULL, 0) < 0 && errno == EINTR)
		;
}

void moment_made(struct moment *m)
{
	m->made = true;
	tell_cleaner(m, MADE);
}

/* The table line of a device that shows the view: the layers are those of the live device. */
static char *view_params(const struct moment *m)
{
	unsigned long n = strtoul(m->live->table, NULL, 10);
	const char *end = m->live->table;

	for (n++; n && *end; n--) {
		end += strspn(end, " ");
		end += strcspn(end, " ");
	}
	return xasprintf("%.*s 2 view %s", (int)(end - m->live->table), m->live->table, m->view);
}

static int show(struct moment *m)
{
	char *name = device_name(m->live, m->view), *params = view_params(m);
	char *uuid = xasprintf(UUID_PREFIX "%s-%u:%u", m->view + strlen(PREFIX),
			       major(m->live->dev), minor(m->live->dev));
	int ret = dmdev_create(name, uuid, true, m->live->sectors, params, NULL);

	if (!ret)
		ret = dmdev_find(name, &m->dev);
	free(uuid);
	free(params);
	free(name);
	return ret ? cause_prefix("the view cannot be shown") : 0;
}

int moment_take(struct moment *m, const struct dm_device *live, const char *partial)
{
	char *text, *answer = NULL;
	int ret;

	memset(m, 0, sizeof(*m));
	m->live = live;
	snprintf(m->view, sizeof(m->view), PREFIX "%d-%llu", (int)getpid(), start_of(getpid()));
	if (remove_stale(live))
		return -1;
	m->partial = partial ? xstrdup(partial) : NULL;
	if (start_cleaner(m)) {
		free(m->partial);
		return -1;
	}
	text = xasprintf("view create %s", m->view);
	ret = dmdev_ask(live, text, &answer);
	free(answer);
	free(text);
	if (!ret)
		ret = show(m);
	if (ret)
		moment_end(m);
	return ret;
}

void moment_end(struct moment *m)
{
	char *why = xstrdup(cause_text());
	int code = cause_exit();

	if (m->made)
		unlink(m->partial);
	if (remove_all(m->live, m->view, REMOVE_MS))
		note("%s: view %s is left: %s", m->live->name, m->view, cause_text());
	end_cleaner(m);
	dmdev_release(&m->dev);
	free(m->partial);
	m->partial = NULL;
	cause("%s", why);
	cause_code(code);
	free(why);
}
