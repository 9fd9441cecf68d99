// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * chain.c - owns the walk from an image to the files it stands on. A file is
 * first opened for nothing, judged, and only then opened for reading; its header
 * is read from that same descriptor, and the kernel is given that same descriptor.
 */
#include "chain.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "probe.h"
#include "util.h"

static int open_path(const char *path)
{
	struct open_how how = {
		.flags = O_PATH | O_CLOEXEC,
		.resolve = RESOLVE_NO_MAGICLINKS,
	};

	return syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof(how));
}

/* Open what an O_PATH descriptor stands for: the same file, whatever its name leads to now. */
static int reopen(int path_fd, bool read_only)
{
	char link[64];

	snprintf(link, sizeof(link), "/proc/self/fd/%d", path_fd);
	return open(link, (read_only ? O_RDONLY : O_RDWR) | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
}

static const char *kind_of(mode_t mode)
{
	if (S_ISDIR(mode))
		return "a directory";
	if (S_ISFIFO(mode))
		return "a FIFO";
	if (S_ISSOCK(mode))
		return "a socket";
	if (S_ISCHR(mode))
		return "a character device";
	return "a special file";
}

static bool same_file(const struct stat *a, const struct stat *b)
{
	if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
		return a->st_rdev == b->st_rdev;
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Open the next layer; @overlay is the image that names it, or NULL for the top. */
static int open_layer(struct chain *chain, const char *path, enum image_format format,
		      bool read_only, const struct policy *policy, const struct layer *overlay)
{
	struct layer *l = &chain->layer[chain->n];
	int path_fd = open_path(path);
	int err;

	if (path_fd < 0)
		return cause("%s", strerror(errno));
	if (fstat(path_fd, &l->st)) {
		cause_errno("its attributes cannot be read");
		goto fail;
	}
	if (!S_ISREG(l->st.st_mode) && !S_ISBLK(l->st.st_mode)) {
		cause("it is %s, not a file or block device", kind_of(l->st.st_mode));
		cause_code(EXIT_REFUSED);
		goto fail;
	}
	if (overlay && policy_check(policy, path_fd, path, &l->st, &overlay->st))
		goto fail;
	for (unsigned int i = 0; i < chain->n; i++) {
		if (same_file(&l->st, &chain->layer[i].st)) {
			cause("the chain of backing files is a loop: this is '%s' again",
			      chain->layer[i].path);
			cause_code(EXIT_REFUSED);
			goto fail;
		}
	}
	l->fd = reopen(path_fd, read_only);
	err = errno;
	close(path_fd);
	if (l->fd < 0) {
		errno = err;
		if (!read_only && (err == EROFS || err == EACCES || err == EPERM))
			return cause("it cannot be opened for writing: %s (--read-only attaches "
				     "it without)", strerror(err));
		return cause("it cannot be opened: %s", strerror(err));
	}
	l->path = xstrdup(path);
	l->format = format;
	chain->n++;
	return format == FORMAT_QCOW2 ? probe_header(l->fd, &l->header) : 0;
fail:
	close(path_fd);
	return -1;
}

/* A relative name is relative to the directory in which the overlay was named. */
static char *resolve(const char *name, const char *overlay)
{
	const char *slash = strrchr(overlay, '/');

	if (name[0] == '/' || !slash)
		return xstrdup(name);
	return xasprintf("%.*s%s", (int)(slash - overlay + 1), overlay, name);
}

static int backing_format(const struct layer *overlay, enum image_format *format)
{
	const char *text = overlay->header.backing_format;

	if (!strcmp(text, "qcow2")) {
		*format = FORMAT_QCOW2;
		return 0;
	}
	if (!strcmp(text, "raw")) {
		*format = FORMAT_RAW;
		return 0;
	}
	if (!*text)
		cause("the image does not say which format its backing file has, and formats are "
		      "never guessed; write it down with: qemu-img rebase -u -b '%s' -F FORMAT "
		      "'%s'", overlay->header.backing_name, overlay->path);
	else
		cause("its format '%s' is not supported, only qcow2 and raw", text);
	return cause_code(EXIT_REFUSED);
}

static int open_backing(struct chain *chain, const struct policy *policy)
{
	const struct layer *overlay = &chain->layer[chain->n - 1];
	enum image_format format = FORMAT_RAW;
	char *path;
	int ret;

	if (chain->n == CHAIN_MAX_LAYERS) {
		cause("the chain is longer than %d images", CHAIN_MAX_LAYERS);
		return cause_code(EXIT_REFUSED);
	}
	if (policy_check_name(overlay->header.backing_name) || backing_format(overlay, &format))
		return -1;
	path = resolve(overlay->header.backing_name, overlay->path);
	ret = open_layer(chain, path, format, true, policy, overlay);
	free(path);
	return ret;
}

int chain_open(struct chain *chain, const char *image, bool read_only, const struct policy *policy)
{
	chain->n = 0;
	if (open_layer(chain, image, FORMAT_QCOW2, read_only, policy, NULL))
		return -1;
	while (chain->layer[chain->n - 1].format == FORMAT_QCOW2 &&
	       chain->layer[chain->n - 1].header.has_backing) {
		const char *name = chain->layer[chain->n - 1].header.backing_name;

		if (open_backing(chain, policy))
			return cause_prefix("backing file '%s'", name);
	}
	chain->size = chain->layer[0].header.size & ~511ull;
	if (!chain->size) {
		cause("the disk is smaller than one sector of 512 bytes");
		return cause_code(EXIT_REFUSED);
	}
	return 0;
}

char *chain_table(const struct chain *chain)
{
	char *line = xasprintf("%u", chain->n);

	for (unsigned int i = 0; i < chain->n; i++) {
		const struct layer *l = &chain->layer[i];
		char *longer = xasprintf("%s %s:fd:%d", line,
					 l->format == FORMAT_QCOW2 ? "qcow2" : "raw", l->fd);

		free(line);
		line = longer;
	}
	return line;
}

void chain_close(struct chain *chain)
{
	for (unsigned int i = 0; i < chain->n; i++) {
		close(chain->layer[i].fd);
		free(chain->layer[i].path);
	}
	chain->n = 0;
}
