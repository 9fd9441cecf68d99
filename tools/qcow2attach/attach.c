// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * attach.c - from an image to a device under /dev/mapper.
 * Owns the default names and the UUIDs of devices.
 *
 * A writable device has a UUID that follows from the identity of its image, so
 * that device-mapper itself refuses the second one, however many attach at once.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "attach.h"
#include "chain.h"
#include "dm.h"
#include "policy.h"
#include "probe.h"
#include "util.h"

/* Bits of the UUID that tell apart the read-only devices of one image. */
#define INSTANCE_MASK 0xffffffu

/*
 * A version 8 UUID (RFC 9562): the device number, the inode number, and an
 * instance, 0 for the one writable device.
 */
static void make_uuid(const struct stat *st, unsigned int instance, char *buf, size_t len)
{
	bool node = S_ISBLK(st->st_mode);
	dev_t dev = node ? st->st_rdev : st->st_dev;
	uint64_t ino = node ? 0 : st->st_ino;

	snprintf(buf, len, "%s%03x%05x-%04x-8%03x-8%03x-%06x%06x", DM_UUID_OURS,
		 major(dev) & 0xfff, minor(dev) & 0xfffff, (unsigned int)(ino >> 48) & 0xffff,
		 (unsigned int)(ino >> 36) & 0xfff, (unsigned int)(ino >> 24) & 0xfff,
		 (unsigned int)ino & 0xffffff, instance & INSTANCE_MASK);
}

static unsigned int random_instance(void)
{
	unsigned int value = 0;

	while (!(value & INSTANCE_MASK)) {
		if (getrandom(&value, sizeof(value), 0) != sizeof(value))
			value = 0;
	}
	return value;
}

static bool name_char(char c)
{
	return isalnum((unsigned char)c) || strchr("#+-.:=@_", c);
}

static char *default_name(const char *image)
{
	const char *base = strrchr(image, '/');
	char *name = xstrdup(base ? base + 1 : image);
	size_t n = strlen(name);

	if (n > 6 && !strcmp(name + n - 6, ".qcow2"))
		name[n - 6] = '\0';
	for (char *c = name; *c; c++) {
		if (!name_char(*c))
			*c = '_';
	}
	name[strnlen(name, DM_NAME_MAX)] = '\0';
	return name;
}

int attach_check_name(const char *name)
{
	if (!*name || strlen(name) > DM_NAME_MAX || !strcmp(name, ".") || !strcmp(name, "..") ||
	    !strcmp(name, "control"))
		return cause("invalid device name '%s'", name);
	for (const char *c = name; *c; c++) {
		if (!name_char(*c))
			return cause("invalid device name: it contains '%c'; use letters, digits "
				     "and #+-.:=@_", *c);
	}
	return 0;
}

int image_is_attached(const struct stat *st)
{
	char uuid[DM_UUID_MAX + 1];
	const struct dm_device *holder = NULL;
	struct dm_device *list;
	size_t identity;
	int n = dmdev_list(&list);
	int ret = 0;

	make_uuid(st, 0, uuid, sizeof(uuid));
	identity = strlen(uuid) - 6;
	for (int i = 0; i < n; i++) {
		if (!strncmp(list[i].uuid, uuid, identity) && (!holder || !list[i].read_only))
			holder = &list[i];
	}
	if (holder) {
		cause("it is attached already, as /dev/mapper/%s (%s)", holder->name,
		      holder->read_only ? "read-only" : "read-write");
		ret = cause_code(EXIT_BUSY);
	}
	if (n >= 0)
		dmdev_list_free(list, n);
	return ret;
}

/* Name the device that is in the way, when it is one of ours. */
static int explain_busy(const char *name, const struct stat *st)
{
	char *kernel_says = xstrdup(cause_text());

	if (!image_is_attached(st)) {
		if (dmdev_exists(name))
			cause("there is a device named '%s' already: choose another with --name",
			      name);
		else
			cause("%s", kernel_says);
	}
	free(kernel_says);
	return cause_code(EXIT_BUSY);
}

static char *make_params(const struct chain *chain, const struct attach_options *o)
{
	char *layers = chain_table(chain);
	char cache[64] = "", timeout[64] = "";
	unsigned int words;
	char *params;

	if (o->cache_kib)
		snprintf(cache, sizeof(cache), " l2_cache_kib %u", o->cache_kib);
	if (o->has_space_timeout)
		snprintf(timeout, sizeof(timeout), " space_timeout %u", o->space_timeout);
	words = o->read_only + 2 * !!o->cache_kib + o->discard_no_unref +
		o->no_discard_passdown + o->error_if_no_space + 2 * o->has_space_timeout;
	params = xasprintf("%s %u%s%s%s%s%s%s", layers, words, o->read_only ? " read_only" : "",
			   cache, o->discard_no_unref ? " discard_no_unref" : "",
			   o->no_discard_passdown ? " no_discard_passdown" : "",
			   o->error_if_no_space ? " error_if_no_space" : "", timeout);
	free(layers);
	return params;
}

/*
 * An image that was moved to storage with other sectors has its partitions elsewhere, or none. The
 * disk works nevertheless, so this is only a note.
 */
static void warn_of_sector_size(const char *name)
{
	char *path = xasprintf("/dev/mapper/%s", name);
	int fd = open(path, O_RDONLY | O_DIRECT | O_NONBLOCK | O_CLOEXEC);
	unsigned int made_for = 0;
	uint64_t bytes;
	int sector = 0;

	if (fd >= 0 && !ioctl(fd, BLKSSZGET, &sector) && !ioctl(fd, BLKGETSIZE64, &bytes) &&
	    (sector == 512 || sector == 4096))
		made_for = probe_sector_size(fd, bytes, sector);
	if (made_for && made_for != (unsigned int)sector)
		note("%s: its partition table was made for sectors of %u bytes, but those of this "
		     "disk have %d, as its storage's: its partitions are not where the table says",
		     name, made_for, sector);
	if (fd >= 0)
		close(fd);
	free(path);
}

static int attach_chain(const struct chain *chain, const char *name,
			const struct attach_options *o, int *hold)
{
	char uuid[DM_UUID_MAX + 1];
	char *params;
	int ret;

	make_uuid(&chain->layer[0].st, o->read_only ? random_instance() : 0, uuid, sizeof(uuid));
	params = make_params(chain, o);
	ret = dmdev_create(name, uuid, o->read_only, chain->size / 512, params, hold);
	free(params);
	if (ret && cause_exit() == EXIT_BUSY)
		explain_busy(name, &chain->layer[0].st);
	return ret;
}

char *attach_image(const char *image, const struct attach_options *o, int *hold)
{
	static struct chain chain;
	struct policy policy = { .none = o->no_backing };
	char *name = o->name ? xstrdup(o->name) : default_name(image);
	int ret = attach_check_name(name);

	for (size_t i = 0; !ret && i < o->allow_dirs.n; i++)
		ret = policy_allow(&policy, o->allow_dirs.v[i]);
	for (size_t i = 0; !ret && i < o->backing.n; i++)
		ret = policy_allow_file(&policy, o->backing.v[i]);
	if (!ret)
		ret = policy_read_config(&policy, POLICY_CONFIG);
	if (!ret)
		ret = chain_open(&chain, image, o->read_only, &policy);
	if (!ret)
		ret = attach_chain(&chain, name, o, hold);
	if (!ret)
		warn_of_sector_size(name);
	chain_close(&chain);
	policy_free(&policy);
	if (!ret)
		return name;
	free(name);
	return NULL;
}

void attach_options_free(struct attach_options *o)
{
	strv_free(&o->allow_dirs);
	strv_free(&o->backing);
}
