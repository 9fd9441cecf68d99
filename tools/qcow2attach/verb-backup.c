// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * verb-backup.c - `qcow2attach backup`: a copy of an attached disk as it is at one moment.
 *
 * qemu-img reads the moment through its wrapper (wrapper.c) and writes the copy. It gets both as
 * descriptors. The copy has no name, or another one, until it is complete and on the disk.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <libgen.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli.h"
#include "dm.h"
#include "moment.h"
#include "util.h"
#include "wrapper.h"

enum {
	OPT_BACKUP_FORMAT = OPT_OWN,
	OPT_COMPRESS,
	OPT_RATE_LIMIT,
	OPT_VERIFY,
	OPT_JSON,
};

#define PROGRESS_MS 1000	/* between two events; a terminal shows five times as many */

/**
 * struct backup - one backup.
 * @name: the disk.
 * @out: the file to be made.
 * @partial: its name until it is complete, where a file must have one.
 * @fd: the file.
 * @named: it has that name.
 * @format: qcow2 or raw.
 * @compress: zlib, zstd or NULL.
 * @rate: bytes per second at most, or 0.
 * @verify: compare the copy with the moment.
 * @json: tell events as JSON, one in a line.
 * @source: the descriptor of the wrapper, as qemu-img gets it.
 * @target: that of the file.
 * @data: bytes of data in the moment.
 * @started: when the copy was begun, now_ms().
 * @shown: when progress was shown last.
 * @bar: a line on the terminal is to be cleared.
 */
struct backup {
	const char *name, *out, *format, *compress;
	char *partial, *source, *target;
	int fd;
	bool named;
	uint64_t rate, data, started, shown;
	bool verify, json, bar;
};

static void tell_event(struct json_object *event)
{
	printf("%s\n", json_object_to_json_string_ext(event, JSON_C_TO_STRING_SPACED |
							     JSON_C_TO_STRING_NOSLASHESCAPE));
	fflush(stdout);
	json_object_put(event);
}

static struct json_object *new_event(const struct backup *b, const char *what)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "event", json_object_new_string(what));
	json_object_object_add(o, "name", json_object_new_string(b->name));
	return o;
}

static uint64_t per_second(uint64_t bytes, uint64_t ms)
{
	return ms ? bytes * 1000 / ms : 0;
}

/* @step is what is being done, @percent how far it is. */
static void show_progress(struct backup *b, const char *step, double percent)
{
	uint64_t now = now_ms(), bytes = b->data * percent / 100, rate, left;
	bool terminal = isatty(STDERR_FILENO) && !b->json;
	char done[32], all[32], speed[32];
	struct json_object *o;

	if ((!terminal && !b->json) || now - b->shown < PROGRESS_MS / (terminal ? 5 : 1))
		return;
	b->shown = now;
	rate = per_second(bytes, now - b->started);
	left = rate ? (b->data - bytes) / rate : 0;
	if (b->json) {
		o = new_event(b, step);
		json_object_object_add(o, "percent", json_object_new_double(percent));
		json_object_object_add(o, "bytes", json_object_new_uint64(bytes));
		json_object_object_add(o, "rate", json_object_new_uint64(rate));
		tell_event(o);
		return;
	}
	b->bar = true;
	fprintf(stderr, "\r%s: %s %3.0f %%, %s of %s, %s/s, %" PRIu64 ":%02u left\033[K",
		b->name, step, percent, format_size(bytes, done, sizeof(done)),
		format_size(b->data, all, sizeof(all)), format_size(rate, speed, sizeof(speed)),
		left / 60, (unsigned int)(left % 60));
}

static void end_progress(struct backup *b)
{
	if (b->bar)
		fputs("\r\033[K", stderr);
	b->bar = false;
}

/* Start qemu-img, which ends with us. Returns its PID with the other ends of its outputs, or -1. */
static pid_t start_qemu_img(const char *const argv[], int *out, int *err)
{
	int out_pipe[2], err_pipe[2];
	pid_t parent = getpid(), pid;

	if (pipe2(out_pipe, O_CLOEXEC))
		return cause_errno("cannot create a pipe to qemu-img");
	if (pipe2(err_pipe, O_CLOEXEC)) {
		close(out_pipe[0]);
		close(out_pipe[1]);
		return cause_errno("cannot create a pipe to qemu-img");
	}
	fflush(NULL);
	dmdev_let_go();
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
		if (getppid() != parent)
			_exit(EXIT_RUN_NOTFOUND);
		signal(SIGPIPE, SIG_DFL);
		dup2(out_pipe[1], STDOUT_FILENO);
		dup2(err_pipe[1], STDERR_FILENO);
		execvp(argv[0], (char *const *)argv);
		if (errno == ENOENT)
			dprintf(STDERR_FILENO, "not found: install qemu-utils");
		else
			dprintf(STDERR_FILENO, "cannot be started: %s", strerror(errno));
		_exit(EXIT_RUN_NOTFOUND);
	}
	close(out_pipe[1]);
	close(err_pipe[1]);
	*out = out_pipe[0];
	*err = err_pipe[0];
	if (pid < 0) {
		close(*out);
		close(*err);
		return cause_errno("cannot start qemu-img");
	}
	return pid;
}

/* The last of "(12.34/100%)" in what came. */
static void take_progress(struct backup *b, const char *step, char *text)
{
	char *at = strrchr(text, '(');
	double percent;

	if (at && sscanf(at, "(%lf/100%%)", &percent) == 1 && percent <= 100)
		show_progress(b, step, percent);
}

/*
 * Run qemu-img to its end. Returns its exit code, or -1 with a cause when there is none; @said has
 * what it wrote to its standard error.
 */
static int run_qemu_img(struct backup *b, const char *step, const char *const argv[], char *said,
			size_t room)
{
	int out = -1, err = -1, status;
	pid_t pid = start_qemu_img(argv, &out, &err);
	char text[4096];
	size_t n = 0;

	said[0] = '\0';
	if (pid < 0)
		return -1;
	b->started = now_ms();
	b->shown = b->json ? 0 : b->started - PROGRESS_MS;
	while (out >= 0 || err >= 0) {
		struct pollfd p[2] = { { .fd = out, .events = POLLIN },
				       { .fd = err, .events = POLLIN } };
		ssize_t got;

		if (poll(p, 2, -1) < 0)
			continue;
		if (p[0].revents) {
			got = read(out, text, sizeof(text) - 1);
			if (got > 0) {
				text[got] = '\0';
				take_progress(b, step, text);
			} else if (!got || errno != EINTR) {
				close(out);
				out = -1;
			}
		}
		if (p[1].revents) {
			got = read(err, text, sizeof(text));
			if (got > 0) {
				if ((size_t)got > room - 1 - n)
					got = room - 1 - n;
				memcpy(said + n, text, got);
				n += got;
				said[n] = '\0';
			} else if (!got || errno != EINTR) {
				close(err);
				err = -1;
			}
		}
	}
	end_progress(b);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (!WIFEXITED(status))
		return cause("qemu-img was ended by signal %d", WTERMSIG(status));
	return WEXITSTATUS(status);
}

/* The last line of what qemu-img said, without its name. */
static int qemu_img_failed(char *said)
{
	char *end = said + strlen(said), *line;

	while (end > said && end[-1] == '\n')
		*--end = '\0';
	line = strrchr(said, '\n');
	line = line ? line + 1 : said;
	if (!strncmp(line, "qemu-img: ", 10))
		line += 10;
	return cause("qemu-img: %s", line[0] ? line : "failed without a word");
}

/*
 * The words that name the moment to qemu-img; with a rate they limit how fast it is read (its own
 * -r would limit what is written).
 */
static int name_source(const struct backup *b, const char *argv[], int n, char *group, size_t room,
		       char **options)
{
	if (!b->rate) {
		argv[n++] = "-f";
		argv[n++] = "qcow2";
		return n;
	}
	snprintf(group, room, "throttle-group,id=limit,x-bps-read=%" PRIu64, b->rate);
	*options = xasprintf("driver=throttle,throttle-group=limit,file.driver=qcow2,"
			     "file.file.driver=file,file.file.filename=%s", b->source);
	argv[n++] = "--object";
	argv[n++] = group;
	argv[n++] = "--image-opts";
	return n;
}

static int copy_moment(struct backup *b)
{
	const char *argv[20] = { "qemu-img", "convert", "-p", "-t", "writeback", "-O", b->format };
	char group[80], type[40], said[4096], *options = NULL;
	int n = name_source(b, argv, 7, group, sizeof(group), &options), ret;

	if (b->compress) {
		snprintf(type, sizeof(type), "compression_type=%s", b->compress);
		argv[n++] = "-c";
		argv[n++] = "-o";
		argv[n++] = type;
	}
	argv[n++] = options ?: b->source;
	argv[n++] = b->target;
	ret = run_qemu_img(b, "copying", argv, said, sizeof(said));
	free(options);
	if (ret)
		return ret > 0 ? qemu_img_failed(said) : ret;
	return fsync(b->fd) ? cause_errno("cannot sync the copy") : 0;
}

static int verify(struct backup *b)
{
	const char *const argv[] = { "qemu-img", "compare", "-p", "-f", "qcow2", "-F", b->format,
				     b->source, b->target, NULL };
	char said[4096];
	int ret;

	/* Of what the storage has, not of what is left in memory. */
	posix_fadvise(b->fd, 0, 0, POSIX_FADV_DONTNEED);
	ret = run_qemu_img(b, "verifying", argv, said, sizeof(said));
	if (ret == 1)
		return cause("the copy differs from the disk: the backup is not kept");
	return ret > 0 ? qemu_img_failed(said) : ret;
}

static int sync_directory(const char *path)
{
	char *copy_of = xstrdup(path), *directory = dirname(copy_of);
	int fd = open(directory, O_RDONLY | O_CLOEXEC | O_DIRECTORY);
	int ret = fd < 0 || fsync(fd) ? cause_errno("cannot sync %s", directory) : 0;

	if (fd >= 0)
		close(fd);
	free(copy_of);
	return ret ? cause_prefix("%s is complete, but", path) : 0;
}

/*
 * Make the file: without a name where that is possible, and else with one that nobody has made
 * before us. Only the owner may read a guest's data.
 */
static int make_file(struct backup *b, struct moment *m)
{
	char *copy_of = xstrdup(b->out);

	b->fd = open(dirname(copy_of), O_TMPFILE | O_RDWR, 0600);
	free(copy_of);
	if (b->fd >= 0)
		return 0;
	b->fd = open(b->partial, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
	if (b->fd < 0)
		return cause_errno("cannot create %s", b->partial);
	b->named = true;
	moment_made(m);
	return 0;
}

/* The copy is complete: give it its name, which nothing may have. Another goes with the moment. */
static int give_name(struct backup *b)
{
	char *from = xasprintf("/proc/self/fd/%d", b->fd);
	int ret = linkat(AT_FDCWD, b->named ? b->partial : from, AT_FDCWD, b->out,
			 b->named ? 0 : AT_SYMLINK_FOLLOW);
	struct stat st;

	free(from);
	/* Some filesystems have no links. */
	if (!ret || !b->named || errno == EEXIST || !lstat(b->out, &st))
		return ret;
	return rename(b->partial, b->out);
}

static int publish(struct backup *b)
{
	if (give_name(b))
		return cause_errno("cannot give the copy the name %s", b->out);
	return sync_directory(b->out);
}

static int make_backup(struct backup *b, struct moment *m)
{
	int fd, ret;

	if (make_file(b, m))
		return -1;
	fd = wrapper_make(&m->dev, &b->data);
	if (fd < 0) {
		close(b->fd);
		return -1;
	}
	b->source = xasprintf("/dev/fd/%d", fd);
	b->target = xasprintf("/dev/fd/%d", b->fd);
	ret = copy_moment(b);
	if (!ret && b->verify)
		ret = verify(b);
	if (!ret)
		ret = publish(b);
	free(b->source);
	free(b->target);
	close(fd);
	close(b->fd);
	return ret;
}

static int say_done(const struct backup *b, uint64_t ms)
{
	char data[32], size[32], speed[32];
	struct json_object *o;
	struct stat st;
	char *name;

	if (stat(b->out, &st))
		return cause_errno("%s is complete, but cannot be looked at", b->out);
	if (b->json) {
		o = new_event(b, "done");
		json_object_object_add(o, "file", json_object_new_string(b->out));
		json_object_object_add(o, "format", json_object_new_string(b->format));
		json_object_object_add(o, "data", json_object_new_uint64(b->data));
		json_object_object_add(o, "size", json_object_new_uint64(st.st_blocks * 512ull));
		json_object_object_add(o, "milliseconds", json_object_new_uint64(ms));
		tell_event(o);
		return 0;
	}
	name = printable(b->out);
	printf("%s: %s of data, %s on the host, %u s, %s/s\n", name,
	       format_size(b->data, data, sizeof(data)),
	       format_size(st.st_blocks * 512ull, size, sizeof(size)),
	       (unsigned int)((ms + 999) / 1000),
	       format_size(per_second(b->data, ms), speed, sizeof(speed)));
	free(name);
	return 0;
}

/* Before the view is taken: can there be a file of that name? */
static int check_directory(const char *path)
{
	char *copy_of = xstrdup(path), *directory = dirname(copy_of);
	int ret = access(directory, W_OK | X_OK) ? cause_errno("cannot write to %s", directory) : 0;

	free(copy_of);
	return ret;
}

static int check_disk(const struct dm_device *dev)
{
	if (strcmp(dev->target, "qcow2"))
		return cause("the device has no image: its table is %s",
			     dev->target[0] ? dev->target : "empty");
	if (dev->read_only)
		return cause("the device is read-only, so nothing writes to it: copy it with "
			     "qemu-img");
	return 0;
}

static int backup(struct backup *b, const struct dm_device *dev)
{
	uint64_t start = now_ms();
	struct moment m;
	struct stat st;
	int ret;

	if (!lstat(b->out, &st))
		return cause("%s exists already", b->out);
	if (check_directory(b->out) || check_disk(dev))
		return -1;
	b->partial = xasprintf("%s.partial-%d", b->out, (int)getpid());
	ret = moment_take(&m, dev, b->partial);
	if (!ret) {
		if (b->json)
			tell_event(new_event(b, "moment"));
		ret = make_backup(b, &m);
		moment_end(&m);
	}
	free(b->partial);
	return ret ?: say_done(b, now_ms() - start);
}

static int take_option(struct backup *b, int opt, const char *value)
{
	switch (opt) {
	case OPT_BACKUP_FORMAT:
		if (strcmp(value, "qcow2") && strcmp(value, "raw"))
			return cause("invalid format '%s': use qcow2 or raw", value);
		b->format = value;
		return 0;
	case OPT_COMPRESS:
		if (strcmp(value, "zlib") && strcmp(value, "zstd"))
			return cause("invalid compression '%s': use zlib or zstd", value);
		b->compress = value;
		return 0;
	case OPT_RATE_LIMIT:
		if (parse_size(value, 1, &b->rate))
			return -1;
		return b->rate && b->rate <= INT64_MAX ? 0 : cause("invalid rate '%s'", value);
	case OPT_VERIFY:
		b->verify = true;
		return 0;
	default:
		b->json = true;
		return 0;
	}
}

static int backup_main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "format", required_argument, NULL, OPT_BACKUP_FORMAT },
		{ "compress", required_argument, NULL, OPT_COMPRESS },
		{ "rate-limit", required_argument, NULL, OPT_RATE_LIMIT },
		{ "verify", no_argument, NULL, OPT_VERIFY },
		{ "json", no_argument, NULL, OPT_JSON },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct backup b = { .format = "qcow2" };
	struct dm_device dev;
	int opt, code = EXIT_OK;

	while ((opt = next_option(&verb_backup, argc, argv, options, &code)) >= 0) {
		if (take_option(&b, opt, optarg))
			return usage_error("%s", cause_text());
	}
	if (opt == -2)
		return code;
	if (argc != optind + 2)
		return usage_error("backup takes the name of an attached image, and a file");
	if (b.compress && strcmp(b.format, "qcow2"))
		return usage_error("--compress needs --format qcow2");
	b.out = argv[optind + 1];
	if (!*b.out || b.out[strlen(b.out) - 1] == '/')
		return usage_error("'%s' is not the name of a file", b.out);
	if (!strcmp(b.out, "-"))
		return usage_error("a backup to standard output is not supported: name a file");
	if (dmdev_find(argv[optind], &dev))
		return report(argv[optind]);
	b.name = dev.name;
	/* A reader of the events that goes away does not end the backup. */
	signal(SIGPIPE, SIG_IGN);
	if (backup(&b, &dev))
		code = report(argv[optind]);
	dmdev_release(&dev);
	return code;
}

const struct verb verb_backup = {
	.name = "backup",
	.summary = "copy an attached image as it is at one moment",
	.help = "Usage: qcow2attach backup NAME FILE [OPTION]...\n\n"
		"Copy the disk NAME, as it is when the command starts, to FILE, while it is in\n"
		"use. The copy has no backing file, and takes what the disk's data takes. FILE\n"
		"must not exist, and does not before it is complete and written to the disk.\n\n"
		"What a guest has not written yet is not in the copy: freeze its filesystems, or\n"
		"shut it down, to have more than what a power cut would leave.\n\n"
		"      --format qcow2|raw     format of FILE (default: qcow2)\n"
		"      --compress zlib|zstd   compress the clusters of FILE\n"
		"      --rate-limit SIZE      most bytes read per second by the copy, e.g. 20M\n"
		"      --verify               compare the copy with the disk afterwards\n"
		"      --json                 print events, as one object in each line; the first\n"
		"                             one is 'moment': what is written later is not in\n"
		"                             the copy\n",
	.run = backup_main,
};
