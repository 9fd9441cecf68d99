// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * verb-check.c - `qcow2attach check`: is an image sound, and what of it is leaked? Owns
 * the run of qemu-img, which knows the format independently of us and does the
 * work.
 *
 * qemu-img is told the format and to open nothing but the image, which is opened for
 * it (cage.c): it would follow the names in the header otherwise.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <linux/magic.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../dm-qcow2/qcow2-format.h"
#include "attach.h"
#include "cage.h"
#include "cli.h"
#include "probe.h"
#include "state.h"
#include "util.h"

enum {
	OPT_JSON = OPT_OWN,
	OPT_REPAIR,
};

/* A terminal shows the progress after this time. */
#define PROGRESS_AFTER_MS 2000

/* How long qemu-img may do nothing at all, in seconds; waiting for a disk does not count. */
#define IDLE_LIMIT 600

/* What one of the pipes from qemu-img brought. */
struct capture {
	int fd;
	size_t n;
	char text[16384];
};

/**
 * struct verdict - what qemu-img found.
 * @corruptions: errors that are still there.
 * @leaks: leaked clusters that remain.
 * @leaks_fixed: leaked clusters that were given back.
 * @dirty: the last writer, with lazy refcounts, did not close it; these must be counted anew.
 * @uncounted: it has no refcounts at all; these must be counted, too.
 * @rebuilt: that has been done.
 * @allocated: clusters of the disk that the image holds itself.
 * @total: clusters of the disk.
 */
struct verdict {
	int64_t corruptions, leaks, leaks_fixed, allocated, total;
	bool dirty, uncounted, rebuilt;
};

/* The image as qemu-img gets it: with its format, and with no backing file. */
static char *image_name(bool node)
{
	struct json_object *file = json_object_new_object();
	struct json_object *top = json_object_new_object();
	char *name;

	json_object_object_add(file, "driver",
			       json_object_new_string(node ? "host_device" : "file"));
	json_object_object_add(file, "filename", json_object_new_string(CAGE_IMAGE));
	json_object_object_add(top, "driver", json_object_new_string("qcow2"));
	json_object_object_add(top, "file", file);
	json_object_object_add(top, "backing", NULL);
	name = xasprintf("json:%s",
			 json_object_to_json_string_ext(top, JSON_C_TO_STRING_PLAIN |
							     JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(top);
	return name;
}

static int start(struct cage *cage, char *const argv[], const struct stat *st, struct capture *out,
		 struct capture *err)
{
	int out_pipe[2], err_pipe[2], ret, why;

	if (pipe2(out_pipe, O_CLOEXEC))
		return cause_errno("cannot create a pipe to qemu-img");
	if (pipe2(err_pipe, O_CLOEXEC)) {
		cause_errno("cannot create a pipe to qemu-img");
		close(out_pipe[0]);
		close(out_pipe[1]);
		return -1;
	}
	ret = cage_start(cage, argv, st, out_pipe[1], err_pipe[1]);
	why = errno;
	close(out_pipe[1]);
	close(err_pipe[1]);
	out->fd = out_pipe[0];
	err->fd = err_pipe[0];
	if (!ret)
		return 0;
	close(out->fd);
	close(err->fd);
	if (why == ENOENT)
		return cause("qemu-img not found: install qemu-utils");
	return cause_prefix("qemu-img");
}

/* Returns whether there may be more. What does not fit is dropped. */
static bool take(struct capture *c)
{
	char drop[4096];
	size_t room = sizeof(c->text) - 1 - c->n;
	ssize_t n = read(c->fd, room ? c->text + c->n : drop, room ? room : sizeof(drop));

	if (n > 0 && room)
		c->n += n;
	return n > 0 || (n < 0 && errno == EINTR);
}

static void show_progress(const char *image, uint64_t since)
{
	char *name;

	if (!isatty(STDERR_FILENO))
		return;
	name = printable(image);
	fprintf(stderr, "\r%s: checking, %u s ", name, (unsigned int)((now_ms() - since) / 1000));
	free(name);
}

static void end_progress(bool shown)
{
	if (shown && isatty(STDERR_FILENO))
		fputs("\r\033[K", stderr);
}

static void collect(const char *image, struct cage *cage, struct capture *out,
		    struct capture *err)
{
	struct pollfd p[3] = { { .fd = out->fd, .events = POLLIN },
			       { .fd = err->fd, .events = POLLIN },
			       { .fd = cage->listener, .events = POLLIN } };
	uint64_t since = now_ms();
	bool shown = false;

	while ((p[0].fd >= 0 || p[1].fd >= 0) && !cage_watch(cage)) {
		if (poll(p, ARRAY_SIZE(p), 1000) <= 0) {
			if (now_ms() - since >= PROGRESS_AFTER_MS) {
				show_progress(image, since);
				shown = true;
			}
			continue;
		}
		if (p[0].revents && !take(out))
			p[0].fd = -1;
		if (p[1].revents && !take(err))
			p[1].fd = -1;
		if (p[2].revents & POLLIN)
			cage_answer(cage);
		else if (p[2].revents)
			p[2].fd = -1;
	}
	end_progress(shown);
	out->text[out->n] = '\0';
	err->text[err->n] = '\0';
	close(out->fd);
	close(err->fd);
}

static int64_t number(struct json_object *o, const char *name)
{
	struct json_object *value;

	return json_object_object_get_ex(o, name, &value) ? json_object_get_int64(value) : 0;
}

/* The first line of qemu-img's complaint, without the name it uses for the image. */
static int say_error(char *text, int status, const char *killed)
{
	char *colon;

	text[strcspn(text, "\n")] = '\0';
	colon = strstr(text, "}': ");
	if (colon)
		text = colon + 4;
	if (!strncmp(text, "Failed to get ", 14) && strstr(text, " lock")) {
		cause("another process (QEMU or one of its tools) has the image open");
		return cause_code(EXIT_BUSY);
	}
	if (WIFSIGNALED(status) && killed)
		return cause("qemu-img %s and was killed; the image may be an attack", killed);
	if (WIFSIGNALED(status))
		return cause("qemu-img was stopped by signal %d (%s); it may take no more than "
			     "some memory and time, in case the image is an attack",
			     WTERMSIG(status), strsignal(WTERMSIG(status)));
	return cause("%s", *text ? text : "qemu-img failed without saying why");
}

static int judge(struct capture *out, struct capture *err, int status, const char *killed,
		 struct verdict *v)
{
	struct json_object *o = json_tokener_parse(out->text);
	int64_t unread;

	if (!o || !WIFEXITED(status)) {
		json_object_put(o);
		return say_error(err->text, status, killed);
	}
	unread = number(o, "check-errors");
	if (unread) {
		json_object_put(o);
		return cause("the check is incomplete: %lld read errors",
			     (long long)unread);
	}
	v->corruptions = number(o, "corruptions");
	v->leaks = number(o, "leaks");
	v->leaks_fixed = number(o, "leaks-fixed");
	v->allocated = number(o, "allocated-clusters");
	v->total = number(o, "total-clusters");
	json_object_put(o);
	return 0;
}

/* @repair is NULL, "leaks" or "all". */
static int run_qemu_img(const char *image, int fd, const struct stat *st, const char *repair,
			struct verdict *v)
{
	static struct capture out, err;
	struct cage cage = { .image = fd, .writable = repair, .idle_limit = IDLE_LIMIT };
	struct strv args = { 0 };
	struct statfs fs;
	int status, ret;

	/* A process that waits for a filesystem in another process does not look as if it waits. */
	if (!fstatfs(fd, &fs) && fs.f_type == FUSE_SUPER_MAGIC)
		cage.idle_limit = 0;
	strv_add(&args, xstrdup("qemu-img"));
	strv_add(&args, xstrdup("check"));
	strv_add(&args, xstrdup("--output=json"));
	if (repair)
		strv_add(&args, xasprintf("--repair=%s", repair));
	strv_add(&args, image_name(S_ISBLK(st->st_mode)));
	out.n = 0;
	err.n = 0;
	ret = start(&cage, args.v, st, &out, &err);
	if (!ret) {
		collect(image, &cage, &out, &err);
		status = cage_end(&cage);
		ret = judge(&out, &err, status, cage.killed, v);
	}
	strv_free(&args);
	return ret;
}

/*
 * Are there refcounts at all? Where the whole refcount table is empty (some program made an image
 * for reading only) they follow from the other tables, as those of a dirty image do.
 */
static bool has_refcounts(int fd, const struct qcow2_header *h)
{
	static const char none[65536];
	static char table[sizeof(none)];
	uint64_t at = be64toh(h->refcount_table_offset);
	uint64_t left = (uint64_t)be32toh(h->refcount_table_clusters) << be32toh(h->cluster_bits);

	/* An invalid table is left to others to judge. */
	if (!left || left > QCOW2_MAX_REFTABLE_BYTES || at > INT64_MAX - left)
		return true;
	while (left) {
		ssize_t n = pread(fd, table, left < sizeof(table) ? left : sizeof(table), at);

		if (n < 0 || memcmp(table, none, n))
			return true;
		if (!n)
			break;
		at += n;
		left -= n;
	}
	return false;
}

/* "Header": incompatible_features of an image whose header has been accepted. */
static int check_features(int fd, struct verdict *v)
{
	struct qcow2_header h = { 0 };
	ssize_t n = pread(fd, &h, sizeof(h), 0);
	uint64_t features;

	if (n < 0)
		return cause_errno("its header cannot be read");
	v->uncounted = n >= (ssize_t)QCOW2_V2_HEADER_LENGTH && !has_refcounts(fd, &h);
	if (n < (ssize_t)QCOW2_V3_MIN_HEADER_LENGTH || be32toh(h.version) < 3)
		return 0;	/* version 2 has none */
	features = be64toh(h.incompatible_features);
	/* qemu-img would open the data file by the name in the header. */
	if (features & QCOW2_INCOMPAT_DATA_FILE) {
		cause("external data files are not supported");
		return cause_code(EXIT_REFUSED);
	}
	v->dirty = features & QCOW2_INCOMPAT_DIRTY;
	return 0;
}

static int repair_image(const char *image, int fd, const struct stat *st, struct verdict *v)
{
	bool recount = v->dirty || v->uncounted;

	/* Its refcounts are wrong because it is dirty: they follow from the other tables. */
	if (recount && !run_qemu_img(image, fd, st, "all", v)) {
		v->rebuilt = !v->corruptions;
		return 0;
	}
	if (recount)
		return -1;
	/* Where tables are damaged, clusters that seem leaked may hold data. */
	return v->leaks && !v->corruptions ? run_qemu_img(image, fd, st, "leaks", v) : 0;
}

/*
 * Open the image for reading. Its name is followed once, so that all look at the same image, and
 * the file is opened with O_PATH first: opening a device can start it.
 */
static int open_image(const char *image, struct stat *st)
{
	int path_fd = open(image, O_PATH | O_CLOEXEC);
	int fd = -1;

	if (path_fd < 0)
		return cause_errno("it cannot be opened");
	if (fstat(path_fd, st)) {
		cause_errno("its attributes cannot be read");
	} else if (!S_ISREG(st->st_mode) && !S_ISBLK(st->st_mode)) {
		cause("it is neither a file nor a block device");
		cause_code(EXIT_REFUSED);
	} else {
		fd = reopen(path_fd, O_RDONLY);
		if (fd < 0)
			cause_errno("it cannot be opened");
	}
	close(path_fd);
	return fd;
}

static int look(const char *image, bool repair, struct verdict *v, struct image_header *header)
{
	struct stat st;
	int fd, ret;

	fd = open_image(image, &st);
	if (fd < 0)
		return -1;
	ret = probe_header(fd, header);
	if (!ret)
		ret = check_features(fd, v);
	if (!ret)
		ret = image_is_attached(&st);
	if (!ret)
		ret = run_qemu_img(image, fd, &st, NULL, v);
	if (!ret && repair)
		ret = repair_image(image, fd, &st, v);
	close(fd);
	return ret;
}

static struct json_object *verdict_json(const char *image, const struct verdict *v,
					const struct image_header *header)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "image", json_object_new_string(image));
	json_object_object_add(o, "dirty", json_object_new_boolean(v->dirty && !v->rebuilt));
	json_object_object_add(o, "uncounted",
			       json_object_new_boolean(v->uncounted && !v->rebuilt));
	json_object_object_add(o, "rebuilt", json_object_new_boolean(v->rebuilt));
	json_object_object_add(o, "corruptions", json_object_new_int64(v->corruptions));
	json_object_object_add(o, "leaks", json_object_new_int64(v->leaks));
	json_object_object_add(o, "leaked_bytes",
			       json_object_new_int64(v->leaks << header->cluster_bits));
	json_object_object_add(o, "leaks_fixed", json_object_new_int64(v->leaks_fixed));
	json_object_object_add(o, "allocated_clusters", json_object_new_int64(v->allocated));
	json_object_object_add(o, "total_clusters", json_object_new_int64(v->total));
	return o;
}

static void print_verdict(const char *image, const struct verdict *v,
			  const struct image_header *header)
{
	char size[32];

	const char *why = v->dirty ? "image is marked dirty" :
				     "image has no refcounts, so it cannot be written to";

	if (v->rebuilt) {
		printf("%s: %s; rebuilt its refcounts\n", image, why);
	} else if (v->dirty || v->uncounted) {
		printf("%s: %s; --repair rebuilds its refcounts\n", image, why);
		return;
	}
	if (v->leaks_fixed)
		printf("%s: gave back %lld leaked clusters (%s)\n", image,
		       (long long)v->leaks_fixed,
		       format_size(v->leaks_fixed << header->cluster_bits, size, sizeof(size)));
	if (v->corruptions)
		printf("%s: corrupt: %lld errors; copy it before you try: qemu-img check -r all\n",
		       image, (long long)v->corruptions);
	if (v->leaks)
		printf("%s: %lld leaked clusters (%s)%s\n", image,
		       (long long)v->leaks,
		       format_size(v->leaks << header->cluster_bits, size, sizeof(size)),
		       v->corruptions ? "" : "; --repair gives them back");
	if (!v->corruptions && !v->leaks)
		printf("%s: no errors; holds %lld of the disk's %lld clusters\n", image,
		       (long long)v->allocated, (long long)v->total);
}

static int check_image(const char *image, bool repair, bool json, struct json_object *array)
{
	struct image_header header = { 0 };
	struct verdict v = { 0 };

	if (look(image, repair, &v, &header))
		return report(image);
	if (json) {
		json_object_array_add(array, verdict_json(image, &v, &header));
	} else {
		char *name = printable(image);

		print_verdict(name, &v, &header);
		free(name);
	}
	if (v.corruptions || ((v.dirty || v.uncounted) && !v.rebuilt))
		return EXIT_REFUSED;
	return v.leaks ? EXIT_LEAKS : EXIT_OK;
}

static int check_main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "repair", no_argument, NULL, OPT_REPAIR },
		{ "json", no_argument, NULL, OPT_JSON },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	bool repair = false, json = false;
	struct json_object *array;
	int opt, code = EXIT_OK;

	while ((opt = next_option(&verb_check, argc, argv, options, &code)) >= 0) {
		repair = repair || opt == OPT_REPAIR;
		json = json || opt == OPT_JSON;
	}
	if (opt == -2)
		return code;
	if (argc == optind)
		return usage_error("IMAGE is missing");
	array = json_object_new_array();
	for (; optind < argc; optind++) {
		int ret = check_image(argv[optind], repair, json, array);

		/* Report the worst: a failure, then corruption, then leaks. */
		if (code == EXIT_OK || code == EXIT_LEAKS || ret == EXIT_FAILED)
			code = ret == EXIT_OK ? code : ret;
	}
	if (json)
		print_json(array);
	else
		json_object_put(array);
	return code;
}

const struct verb verb_check = {
	.name = "check",
	.summary = "check an image, and give back clusters that a crash leaked",
	.help = "Usage: qcow2attach check IMAGE... [--repair] [--json]\n\n"
		"Have qemu-img look at all tables of the qcow2 image IMAGE, which must not be in\n"
		"use. A crash or power cut leaves no errors, but up to 8 MiB of leaked clusters.\n"
		"The exit code is 5 for that, and 4 for errors.\n\n"
		"      --repair               give them back, and repair an image marked dirty\n"
		"      --json                 print an array of objects instead\n",
	.run = check_main,
};
