// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * chain.c - owns the way from an image to its backing files. A name is followed once (walk.c) and
 * the file opened with O_PATH. The place where the file was found is judged, and only then is the
 * file opened for reading. Its header is read from that descriptor, and the kernel gets the same
 * descriptor. No name is ever followed twice, since it may lead elsewhere the second time.
 */
#include "chain.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "probe.h"
#include "util.h"
#include "walk.h"

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

static void keep_dir(struct chain *chain, int dir)
{
	if (chain->n > 1)
		close(chain->dir);
	chain->dir = dir;
}

static int open_image(struct layer *l, int path_fd, bool read_only)
{
	int err;

	l->fd = reopen(path_fd, read_only ? O_RDONLY : O_RDWR);
	err = errno;
	if (l->fd >= 0)
		return 0;
	if (!read_only && (err == EROFS || err == EACCES || err == EPERM))
		return cause("it cannot be opened for writing: %s (--read-only attaches it "
			     "without)", strerror(err));
	return cause("it cannot be opened: %s", strerror(err));
}

/* May the next layer be this file, found in this way? */
static int judge(const struct chain *chain, const struct walk *way, enum image_format format,
		 const struct policy *policy)
{
	const struct layer *l = &chain->layer[chain->n];

	if (!S_ISREG(l->st.st_mode) && !S_ISBLK(l->st.st_mode)) {
		cause("it is %s, not a file or block device", kind_of(l->st.st_mode));
		return cause_code(EXIT_REFUSED);
	}
	if (chain->n && policy_check(policy, way->fd, &way->places, &l->st, format == FORMAT_RAW,
				     &chain->layer[chain->n - 1].st))
		return -1;
	for (unsigned int i = 0; i < chain->n; i++) {
		if (same_file(&l->st, &chain->layer[i].st)) {
			cause("the chain of backing files is a loop: this is '%s' again",
			      chain->layer[i].path);
			return cause_code(EXIT_REFUSED);
		}
	}
	return 0;
}

/*
 * Open the next layer: @name, relative to the directory in which the last one was named, if any.
 * @path is its name in messages.
 */
static int open_layer(struct chain *chain, const char *name, const char *path,
		      enum image_format format, bool read_only, struct policy *policy)
{
	struct layer *l = &chain->layer[chain->n];
	struct walk way;
	int ret = walk_open(&way, chain->n ? chain->dir : AT_FDCWD, name);

	if (!ret && fstat(way.fd, &l->st))
		ret = cause_errno("its attributes cannot be read");
	if (!ret && !chain->n)
		ret = policy_set_home(policy, way.dir);
	if (!ret)
		ret = judge(chain, &way, format, policy);
	if (!ret)
		ret = open_image(l, way.fd, read_only);
	if (ret) {
		walk_close(&way);
		return -1;
	}
	l->path = xstrdup(path);
	l->format = format;
	chain->n++;
	keep_dir(chain, way.dir);
	way.dir = -1;
	walk_close(&way);
	return format == FORMAT_QCOW2 ? probe_header(l->fd, &l->header) : 0;
}

/* The name in messages of the file that an overlay names. */
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
	if (!*text) {
		char *backing = shell_word(overlay->header.backing_name);
		char *image = shell_word(overlay->path);

		cause("the image does not say which format its backing file has, and formats are "
		      "never guessed; record it with: qemu-img rebase -u -b %s -F FORMAT %s",
		      backing, image);
		free(image);
		free(backing);
	} else {
		cause("its format '%s' is not supported, only qcow2 and raw", text);
	}
	return cause_code(EXIT_REFUSED);
}

static int open_backing(struct chain *chain, struct policy *policy)
{
	const struct layer *overlay = &chain->layer[chain->n - 1];
	enum image_format format = FORMAT_RAW;
	char *path;
	int ret;

	if (chain->n == CHAIN_MAX_LAYERS) {
		cause("the chain is longer than %d images", CHAIN_MAX_LAYERS);
		return cause_code(EXIT_REFUSED);
	}
	if (policy_check_name(policy, overlay->header.backing_name) ||
	    backing_format(overlay, &format))
		return -1;
	path = resolve(overlay->header.backing_name, overlay->path);
	ret = open_layer(chain, overlay->header.backing_name, path, format, true, policy);
	free(path);
	return ret;
}

int chain_open(struct chain *chain, const char *image, bool read_only, struct policy *policy)
{
	chain->n = 0;
	if (open_layer(chain, image, image, FORMAT_QCOW2, read_only, policy))
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
	if (chain->n)
		close(chain->dir);
	for (unsigned int i = 0; i < chain->n; i++) {
		close(chain->layer[i].fd);
		free(chain->layer[i].path);
	}
	chain->n = 0;
}
