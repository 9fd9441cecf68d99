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
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "moment.h"
#include "util.h"

#define PREFIX "qcow2attach-"

/* How long a device may stay busy after its last user: udev, or a program that is ending. */
#define REMOVE_MS 30000

/* When a process was started, in ticks since the host was: field 22 of its stat. 0: there is none. */
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

	free(answer);
	free(text);
	return ret;
}

static int remove_device(const char *name)
{
	uint64_t until = now_ms() + REMOVE_MS;
	struct dm_device dev;
	int ret;

	if (dmdev_find(name, &dev))
		return -1;
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
static int remove_all(const struct dm_device *live, const char *view)
{
	char *name = device_name(live, view);
	int ret = dmdev_exists(name) ? remove_device(name) : 0;

	free(name);
	if (ret)
		return -1;
	if (!dmdev_is_there(live) || !delete_view(live, view))
		return 0;
	return dmdev_is_there(live) && !strstr(cause_text(), "there is no view") ? -1 : 0;
}

/* Remove what commands have left that cannot do that themselves any more. */
static int remove_stale(const struct dm_device *live)
{
	char *answer, *line, *save = NULL;
	unsigned long long start;
	int pid;

	if (dmdev_ask(live, "view list", &answer))
		return cause_prefix("no view can be taken");
	for (line = strtok_r(answer, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		line[strcspn(line, " ")] = '\0';
		if (sscanf(line, PREFIX "%d-%llu", &pid, &start) != 2 || start_of(pid) == start)
			continue;
		note("%s: removing a view that a killed command has left", live->name);
		if (remove_all(live, line))
			note("%s: %s", live->name, cause_text());
	}
	free(answer);
	return 0;
}

static void __attribute__((noreturn)) cleaner_process(struct moment *m, int in)
{
	char c;
	ssize_t n;

	/* The terminal's signals are for the command; so is a message that the library wrote. */
	setsid();
	signal(SIGPIPE, SIG_IGN);
	do {
		n = read(in, &c, 1);
	} while (n < 0 && errno == EINTR);
	if (n != 1) {
		if (m->partial)
			unlink(m->partial);
		if (remove_all(m->live, m->view))
			note("%s: view %s is left: %s", m->live->name, m->view, cause_text());
	}
	_exit(0);
}

/* Not spawn(): its pipe goes the other way. */
static int start_cleaner(struct moment *m)
{
	int to[2];

	if (pipe2(to, O_CLOEXEC))
		return cause_errno("cannot create a pipe");
	fflush(NULL);
	dmdev_let_go();
	m->cleaner = fork();
	if (m->cleaner < 0) {
		close(to[0]);
		close(to[1]);
		return cause_errno("cannot start the process that cleans up");
	}
	if (!m->cleaner) {
		close(to[1]);
		cleaner_process(m, to[0]);
	}
	close(to[0]);
	m->alive = to[1];
	return 0;
}

static void end_cleaner(struct moment *m)
{
	/* It may have been killed. */
	sighandler_t before = signal(SIGPIPE, SIG_IGN);

	write_all(m->alive, "", 1);
	signal(SIGPIPE, before);
	close(m->alive);
	while (waitpid(m->cleaner, NULL, 0) < 0 && errno == EINTR)
		;
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
	char uuid[DM_UUID_MAX + 1];
	uint64_t random[2];
	int ret;

	if (getrandom(random, sizeof(random), 0) != sizeof(random))
		ret = cause_errno("no random numbers");
	else {
		snprintf(uuid, sizeof(uuid), DM_UUID_OURS "VIEW-%016" PRIx64 "%016" PRIx64,
			 random[0], random[1]);
		ret = dmdev_create(name, uuid, true, m->live->sectors, params, NULL);
	}
	if (!ret)
		ret = dmdev_find(name, &m->dev);
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
		moment_end(m, false);
	return ret;
}

void moment_end(struct moment *m, bool keep)
{
	char *why = xstrdup(cause_text());
	int code = cause_exit();

	if (m->partial && !keep)
		unlink(m->partial);
	if (remove_all(m->live, m->view))
		note("%s: view %s is left: %s", m->live->name, m->view, cause_text());
	end_cleaner(m);
	dmdev_release(&m->dev);
	free(m->partial);
	m->partial = NULL;
	cause("%s", why);
	cause_code(code);
	free(why);
}
