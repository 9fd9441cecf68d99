// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * dm.c - owns every use of libdevmapper: creating, finding, querying and removing devices, the
 * process that undoes a creation when the tool is killed, and the flags that keep udev's rules away
 * from a guest's data.
 */
#include "dm.h"

#include <errno.h>
#include <fcntl.h>
#include <libdevmapper.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kmsg.h"
#include "spawn.h"
#include "util.h"

/*
 * A guest's disk holds partitions, volume groups and filesystems that are not
 * the host's: no LVM scan, no blkid and its links, nothing for systemd to mount.
 */
#define UDEV_FLAGS (DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG | DM_UDEV_DISABLE_DISK_RULES_FLAG | \
		    DM_UDEV_DISABLE_OTHER_RULES_FLAG)

/* How long a stuck udevd may keep us from returning. */
#define UDEV_WAIT_MS 30000

/* The last error that libdevmapper printed while a task ran. */
static char library_error[512];

static void PRINTF_LIKE(5, 6) keep_error(int level, const char *file, int line,
					 int dm_errno_or_class, const char *fmt, ...)
{
	va_list ap;

	(void)file;
	(void)line;
	(void)dm_errno_or_class;
	if ((level & 7) > 3)
		return;
	va_start(ap, fmt);
	vsnprintf(library_error, sizeof(library_error), fmt, ap);
	va_end(ap);
}

/* A request could not even be sent: say what that means. Returns -1. */
static int unusable(void)
{
	if (geteuid())
		return cause("device-mapper cannot be used: this needs root");
	if (access("/dev/mapper/control", R_OK | W_OK))
		return cause("this kernel's device-mapper cannot be reached: load the module "
			     "dm-mod (modprobe dm-mod)");
	return cause("device-mapper: %s", library_error[0] ? library_error : "no request possible");
}

static struct dm_task *new_task(int type, const char *name)
{
	struct dm_task *task;

	library_error[0] = '\0';
	dm_log_with_errno_init(keep_error);
	task = dm_task_create(type);
	if (!task) {
		unusable();
		return NULL;
	}
	if (name && !dm_task_set_name(task, name)) {
		dm_task_destroy(task);
		cause("'%s' is not a device name: %s", name, library_error);
		return NULL;
	}
	return task;
}

/* A task for the device with this UUID: a name can be given to another device at any time. */
static struct dm_task *new_uuid_task(int type, const char *uuid)
{
	struct dm_task *task = new_task(type, NULL);

	if (task && !dm_task_set_uuid(task, uuid)) {
		dm_task_destroy(task);
		cause("device-mapper: %s", library_error);
		return NULL;
	}
	return task;
}

/* Run a task; the cause is the kernel's errno, or the library's own failure. */
static int run_task(struct dm_task *task)
{
	int err;

	library_error[0] = '\0';
	if (dm_task_run(task))
		return 0;
	err = dm_task_get_errno(task);
	if (err)
		cause("device-mapper: %s", strerror(err));
	else
		unusable();
	errno = err;
	return -1;
}

static int wait_for_udev(uint32_t cookie)
{
	uint64_t until = now_ms() + UDEV_WAIT_MS;
	int ready = 0;

	if (!cookie)
		return 0;
	while (dm_udev_wait_immediate(cookie, &ready) && !ready) {
		if (now_ms() > until) {
			note("udev did not answer within %d seconds; going on without it",
			     UDEV_WAIT_MS / 1000);
			dm_udev_complete(cookie);
			dm_udev_wait(cookie);
			return 0;
		}
		sleep_ms(5);
	}
	return 0;
}

/* Run a task that makes the kernel send a uevent, and wait until udev has handled it. */
static int run_task_with_udev(struct dm_task *task)
{
	uint32_t cookie = 0;
	int ret, err;

	if (!dm_task_set_cookie(task, &cookie, UDEV_FLAGS))
		return cause("device-mapper: cannot get a udev cookie: %s", library_error);
	ret = run_task(task);
	err = errno;
	wait_for_udev(cookie);
	/* Where no udev runs, the library makes the nodes, and defers that. */
	dm_task_update_nodes();
	errno = err;
	return ret;
}

static int resume(const char *uuid)
{
	struct dm_task *task = new_uuid_task(DM_DEVICE_RESUME, uuid);
	int ret;

	if (!task)
		return -1;
	ret = run_task_with_udev(task);
	dm_task_destroy(task);
	return ret;
}

static bool have_target(const char *name)
{
	struct dm_task *task = new_task(DM_DEVICE_LIST_VERSIONS, NULL);
	struct dm_versions *at, *last;
	bool found = false;

	if (!task)
		return false;
	if (!run_task(task)) {
		at = dm_task_get_versions(task);
		do {
			last = at;
			found = found || !strcmp(at->name, name);
			at = (void *)((char *)at + at->next);
		} while (last->next);
	}
	dm_task_destroy(task);
	return found;
}

static int create_empty(const char *name, const char *uuid, dev_t *dev)
{
	struct dm_task *task = new_task(DM_DEVICE_CREATE, name);
	struct dm_info info;
	int ret = -1;

	if (!task)
		return -1;
	dm_task_set_add_node(task, DM_ADD_NODE_ON_RESUME);
	if (!dm_task_set_uuid(task, uuid))
		cause("device-mapper: %s", library_error);
	else if (!run_task(task) && dm_task_get_info(task, &info))
		ret = 0;
	else if (errno == EBUSY)
		cause_code(EXIT_BUSY);
	if (!ret)
		*dev = makedev(info.major, info.minor);
	dm_task_destroy(task);
	return ret;
}

static int load_table(const char *uuid, dev_t dev, bool read_only, uint64_t sectors,
		      const char *target, const char *params)
{
	struct dm_task *task = new_uuid_task(DM_DEVICE_RELOAD, uuid);
	char reason[1024];
	struct kmsg log;
	int ret, err;

	if (!task)
		return -1;
	if (!dm_task_add_target(task, 0, sectors, target, params) ||
	    (read_only && !dm_task_set_ro(task))) {
		dm_task_destroy(task);
		return cause("device-mapper: %s", library_error);
	}
	kmsg_begin(&log);
	ret = run_task(task);
	err = errno;
	dm_task_destroy(task);
	kmsg_reasons(&log, major(dev), minor(dev), reason, sizeof(reason));
	if (!ret)
		return 0;
	if (!have_target(target))
		return cause("this kernel has no '%s' device-mapper target: load the module "
			     "dm-%s (modprobe dm-%s)", target, target, target);
	if (reason[0])
		cause("the kernel refused it: %s", reason);
	else
		cause("the kernel refused it: %s (the kernel log may say why)", strerror(err));
	return cause_code(err == EBUSY || err == EAGAIN || err == ETXTBSY ? EXIT_BUSY
									   : EXIT_REFUSED);
}

/*
 * Make sure that the node leads to @dev, or that there is none when @dev is 0, even if no udev
 * runs, or udev has lost our event.
 */
static void settle_node(const char *name, dev_t dev)
{
	char *path = xasprintf("%s/%s", dm_dir(), name);
	struct stat st;

	if ((stat(path, &st) ? 0 : st.st_rdev) != dev) {
		/* This checks by itself whether there is a device of that name. */
		dm_mknodes(name);
		dm_task_update_nodes();
	}
	free(path);
}

static int remove_uuid(const char *uuid, bool deferred)
{
	struct dm_task *task = new_uuid_task(DM_DEVICE_REMOVE, uuid);
	int ret, err;

	if (!task)
		return -1;
	/* udev may have the node open for a moment after any event. */
	dm_task_retry_remove(task);
	if (deferred)
		dm_task_deferred_remove(task);
	ret = run_task_with_udev(task);
	err = errno;
	dm_task_destroy(task);
	if (ret && err == EBUSY)
		return cause_code(EXIT_BUSY);
	return ret && err != ENXIO ? -1 : 0;
}

/* The signals that would end the process while a device is half made. */
static void ending_signals(sigset_t *set)
{
	static const int signals[] = { SIGHUP, SIGINT, SIGTERM };
	struct sigaction action;

	sigemptyset(set);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
		/* An ignored signal (nohup) would be pending all the same while it is blocked. */
		if (!sigaction(signals[i], NULL, &action) && action.sa_handler != SIG_IGN)
			sigaddset(set, signals[i]);
	}
}

/* Has one of them come meanwhile? Then -1 with a cause. */
static int check_signals(void)
{
	sigset_t pending, ending;

	sigpending(&pending);
	ending_signals(&ending);
	sigandset(&pending, &pending, &ending);
	return sigisemptyset(&pending) ? 0 : cause("told to end before it was attached");
}

/**
 * struct guard - the process that makes a device, and removes it if the tool is killed.
 * @pid: the process.
 * @fd: a pipe to the guard, which ends when it reads a byte, and cleans up when it reads the end.
 */
struct guard {
	pid_t pid;
	int fd;
};

/* What the guard reports when it has made the device, or has failed to. */
struct birth {
	bool born;
	int code;
	dev_t dev;
	char error[512];
};

/* The state of a device; all zeroes when there is none, or it cannot be queried. */
static struct dm_info info_of(const char *uuid)
{
	struct dm_task *task = new_uuid_task(DM_DEVICE_INFO, uuid);
	struct dm_info info = { 0 };

	if (task && (run_task(task) || !dm_task_get_info(task, &info) || !info.exists))
		memset(&info, 0, sizeof(info));
	if (task)
		dm_task_destroy(task);
	return info;
}

/*
 * Remove an unfinished device. If a process has it open all the same, it goes with its last user.
 */
static void undo_device(const char *name, const char *uuid)
{
	if (remove_uuid(uuid, false) && cause_exit() == EXIT_BUSY)
		remove_uuid(uuid, true);
	if (info_of(uuid).exists)
		note("the device %s is in use already, and goes with its last user", name);
	else
		settle_node(name, 0);
}

/*
 * Nobody uses a device without a table. A device that works may be in use already, unless it was to
 * go with its last user (@whole).
 */
static void __attribute__((noreturn)) guard_process(const char *name, const char *uuid, bool whole,
						    int in, int out)
{
	struct birth birth = { 0 };
	ssize_t n;
	char c;

	/* The terminal's signals are for the parent, which may be gone when the guard writes. */
	setsid();
	signal(SIGPIPE, SIG_IGN);
	birth.born = !create_empty(name, uuid, &birth.dev);
	birth.code = cause_exit();
	snprintf(birth.error, sizeof(birth.error), "%s", cause_text());
	write_all(out, &birth, sizeof(birth));
	close(out);
	do {
		n = read(in, &c, 1);
	} while (n < 0 && errno == EINTR);
	if (birth.born && n != 1 && (whole || !info_of(uuid).live_table))
		undo_device(name, uuid);
	_exit(0);
}

static void end_guard(const struct guard *guard)
{
	/* The guard may have been killed. */
	sighandler_t before = signal(SIGPIPE, SIG_IGN);

	write_all(guard->fd, "", 1);
	signal(SIGPIPE, before);
	close(guard->fd);
	while (waitpid(guard->pid, NULL, 0) < 0 && errno == EINTR)
		;
}

/* Have the guard make an empty device. Returns 0 with *@guard running, or -1 with a cause. */
static int create_guarded(const char *name, const char *uuid, bool whole, struct guard *guard,
			  dev_t *dev)
{
	struct spawned child;
	struct birth birth;
	int to[2], ret;

	if (pipe2(to, O_CLOEXEC))
		return cause_errno("cannot create a pipe");
	if (spawn(&child, "process that makes the device", 0)) {
		close(to[0]);
		close(to[1]);
		return -1;
	}
	if (!child.pid) {
		close(to[1]);
		guard_process(name, uuid, whole, to[0], child.fd);
	}
	close(to[0]);
	guard->fd = to[1];
	guard->pid = child.pid;
	ret = read_all(child.fd, &birth, sizeof(birth));
	close(child.fd);
	if (!ret && birth.born) {
		*dev = birth.dev;
		return 0;
	}
	end_guard(guard);
	if (ret) {
		/* The guard may have made the device before. */
		if (info_of(uuid).exists && !info_of(uuid).live_table)
			undo_device(name, uuid);
		return cause("the process that makes the device was killed");
	}
	cause("%s", birth.error);
	return cause_code(birth.code);
}

static int start(const char *uuid, dev_t dev)
{
	char reason[1024];
	struct kmsg log;
	int ret, err;

	kmsg_begin(&log);
	ret = resume(uuid);
	err = errno;
	kmsg_reasons(&log, major(dev), minor(dev), reason, sizeof(reason));
	if (!ret)
		return 0;
	if (reason[0])
		cause("the kernel could not resume it: %s", reason);
	else
		cause("the kernel could not resume it: %s", strerror(err));
	return cause_code(err == EBUSY || err == EAGAIN ? EXIT_BUSY : EXIT_FAILED);
}

/* Become the device's first user, and let it go with its last. */
static int hold_device(const char *name, const char *uuid, dev_t dev, int *hold)
{
	char *path = xasprintf("%s/%s", dm_dir(), name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	int ret = 0;

	if (fd < 0 || fstat(fd, &st))
		ret = cause_errno("cannot open %s", path);
	else if (!S_ISBLK(st.st_mode) || st.st_rdev != dev)
		ret = cause("%s is another device", path);
	else if (remove_uuid(uuid, true))
		ret = cause_prefix("the device cannot be marked for removal");
	free(path);
	if (!ret)
		*hold = fd;
	else if (fd >= 0)
		close(fd);
	return ret;
}

static int create(const char *name, const char *uuid, bool read_only, uint64_t sectors,
		  const char *params, int *hold)
{
	char reason[1024];
	struct guard guard;
	dev_t dev = 0;
	int code;

	if (create_guarded(name, uuid, hold, &guard, &dev))
		return -1;
	if (load_table(uuid, dev, read_only, sectors, "qcow2", params) || check_signals() ||
	    start(uuid, dev))
		goto undo;
	settle_node(name, dev);
	if (check_signals() || (hold && hold_device(name, uuid, dev, hold)))
		goto undo;
	end_guard(&guard);
	return 0;
undo:
	/* The removal must not hide why the device could not be made. */
	code = cause_exit();
	snprintf(reason, sizeof(reason), "%s", cause_text());
	undo_device(name, uuid);
	end_guard(&guard);
	cause("%s", reason);
	return cause_code(code);
}

int dmdev_create(const char *name, const char *uuid, bool read_only, uint64_t sectors,
		 const char *params, int *hold)
{
	sigset_t ending, before;
	int ret;

	ending_signals(&ending);
	sigprocmask(SIG_BLOCK, &ending, &before);
	ret = create(name, uuid, read_only, sectors, params, hold);
	sigprocmask(SIG_SETMASK, &before, NULL);
	return ret;
}

int dmdev_replace_by_error(const struct dm_device *dev)
{
	struct dm_task *task;
	int ret;

	if (load_table(dev->uuid, dev->dev, false, dev->sectors, "error", ""))
		return -1;
	/* noflush: do not wait for I/O that is queued for storage that is gone. */
	task = new_uuid_task(DM_DEVICE_SUSPEND, dev->uuid);
	if (!task)
		return -1;
	dm_task_no_flush(task);
	dm_task_skip_lockfs(task);
	ret = run_task(task);
	dm_task_destroy(task);
	if (ret)
		return -1;
	return resume(dev->uuid);
}

int dmdev_message(const char *name, const char *text)
{
	struct dm_task *task = new_task(DM_DEVICE_TARGET_MSG, name);
	int ret = -1;

	if (!task)
		return -1;
	if (dm_task_set_sector(task, 0) && dm_task_set_message(task, text))
		ret = run_task(task);
	dm_task_destroy(task);
	return ret;
}

int dmdev_ask(const struct dm_device *dev, const char *text, char **answer)
{
	struct dm_task *task = new_uuid_task(DM_DEVICE_TARGET_MSG, dev->uuid);
	const char *response;
	char reason[1024];
	struct kmsg log;
	int ret = -1, err;

	if (!task)
		return -1;
	kmsg_begin(&log);
	errno = 0;
	if (dm_task_set_sector(task, 0) && dm_task_set_message(task, text))
		ret = run_task(task);
	err = errno;
	kmsg_reasons(&log, major(dev->dev), minor(dev->dev), reason, sizeof(reason));
	if (!ret) {
		response = dm_task_get_message_response(task);
		*answer = xstrdup(response ? response : "");
	} else if (reason[0]) {
		cause("%s", reason);
	}
	dm_task_destroy(task);
	errno = err;
	return ret;
}

static char *target_line(int type, const char *name, struct dm_device *dev)
{
	struct dm_task *task = new_task(type, name);
	char *target = NULL, *params = NULL;
	uint64_t start, length;
	char *line = NULL;

	if (!task)
		return NULL;
	if (!run_task(task)) {
		dm_get_next_target(task, NULL, &start, &length, &target, &params);
		if (target) {
			dev->sectors = length;
			snprintf(dev->target, sizeof(dev->target), "%s", target);
			line = xstrdup(params ? params : "");
		}
	}
	dm_task_destroy(task);
	return line;
}

/* 0 where the kernel has no diskseq, or the device has gone. */
static uint64_t sequence_of(dev_t dev)
{
	char path[64], text[32];

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/diskseq", major(dev), minor(dev));
	return read_small_file(path, text, sizeof(text)) ? 0 : strtoull(text, NULL, 10);
}

/*
 * Fill @dev from a name, or from a device number when @name is NULL. Returns 0, or with a cause 1
 * when there is no such device and -1 when it cannot be queried.
 */
static int query(const char *name, dev_t number, struct dm_device *dev)
{
	struct dm_task *task;
	struct dm_info info;
	const char *text;
	int ret = -1;

	memset(dev, 0, sizeof(*dev));
	library_error[0] = '\0';
	task = new_task(DM_DEVICE_INFO, name);
	if (!task)
		return -1;
	if (!name && (!dm_task_set_major(task, major(number)) ||
		      !dm_task_set_minor(task, minor(number)))) {
		cause("device-mapper: %s", library_error);
	} else if (!run_task(task) && dm_task_get_info(task, &info)) {
		if (info.exists) {
			text = dm_task_get_name(task);
			snprintf(dev->name, sizeof(dev->name), "%s", text ? text : "");
			text = dm_task_get_uuid(task);
			snprintf(dev->uuid, sizeof(dev->uuid), "%s", text ? text : "");
			dev->dev = makedev(info.major, info.minor);
			dev->sequence = sequence_of(dev->dev);
			dev->open_count = info.open_count;
			dev->suspended = info.suspended;
			dev->read_only = info.read_only;
			dev->deferred_remove = info.deferred_remove;
			ret = 0;
		} else {
			cause("there is no such device");
			ret = 1;
		}
	}
	dm_task_destroy(task);
	return ret;
}

static bool is_ours(const struct dm_device *dev)
{
	return !strncmp(dev->uuid, DM_UUID_OURS, strlen(DM_UUID_OURS));
}

static void fill_lines(struct dm_device *dev)
{
	dev->table = target_line(DM_DEVICE_TABLE, dev->name, dev);
	dev->status = target_line(DM_DEVICE_STATUS, dev->name, dev);
}

int dmdev_find(const char *which, struct dm_device *dev)
{
	struct stat st;
	int ret;

	if (strchr(which, '/')) {
		if (stat(which, &st))
			return cause_errno("there is no such device");
		if (!S_ISBLK(st.st_mode))
			return cause("this is not a block device; "
				     "name a device as 'list' shows it");
		ret = query(NULL, st.st_rdev, dev);
		if (ret > 0)
			return cause("this device was not attached by qcow2attach");
	} else {
		ret = query(which, 0, dev);
	}
	if (ret)
		return -1;
	if (!is_ours(dev))
		return cause("this device was not attached by qcow2attach");
	fill_lines(dev);
	return 0;
}

/* 0 when this very device is there, 1 when it has gone, -1 with a cause when that is unknown. */
static int is_gone(const struct dm_device *dev)
{
	struct dm_device now;
	int ret = query(NULL, dev->dev, &now);

	if (ret)
		return ret;
	return strcmp(now.uuid, dev->uuid) || now.sequence != dev->sequence;
}

bool dmdev_is_there(const struct dm_device *dev)
{
	return !is_gone(dev);
}

int dmdev_remove(const struct dm_device *dev, bool deferred)
{
	int gone = is_gone(dev);

	if (gone < 0 || (!gone && remove_uuid(dev->uuid, deferred)))
		return -1;
	if (deferred && dmdev_is_there(dev))
		return 1;
	settle_node(dev->name, 0);
	return 0;
}

bool dmdev_exists(const char *name)
{
	struct dm_device dev;

	return !query(name, 0, &dev);
}

void dmdev_release(struct dm_device *dev)
{
	free(dev->table);
	free(dev->status);
	dev->table = NULL;
	dev->status = NULL;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct dm_device *)a)->name, ((const struct dm_device *)b)->name);
}

int dmdev_list(struct dm_device **list)
{
	struct dm_task *task = new_task(DM_DEVICE_LIST, NULL);
	struct dm_names *at;
	unsigned int next;
	int n = 0;

	*list = NULL;
	if (!task)
		return -1;
	if (run_task(task)) {
		dm_task_destroy(task);
		return -1;
	}
	at = dm_task_get_names(task);
	if (at && at->dev) {
		do {
			struct dm_device dev;

			/* A device may have gone since the list was made. */
			if (!query(at->name, 0, &dev) && is_ours(&dev)) {
				fill_lines(&dev);
				*list = xrealloc(*list, (n + 1) * sizeof(**list));
				(*list)[n++] = dev;
			}
			next = at->next;
			at = (void *)((char *)at + next);
		} while (next);
	}
	dm_task_destroy(task);
	if (n)
		qsort(*list, n, sizeof(**list), by_name);
	return n;
}

void dmdev_list_free(struct dm_device *list, int n)
{
	for (int i = 0; i < n; i++)
		dmdev_release(&list[i]);
	free(list);
}

void dmdev_let_go(void)
{
	dm_lib_release();
}
