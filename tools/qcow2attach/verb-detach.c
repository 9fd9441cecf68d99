// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * verb-detach.c - `qcow2attach detach`: commit an image and remove its device.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "cli.h"
#include "dm.h"
#include "kmsg.h"
#include "users.h"
#include "util.h"

enum {
	OPT_FORCE = OPT_OWN,
	OPT_WAIT,
};

static void say_users(const struct dm_device *dev)
{
	struct device_user *list;
	int n = users_find(dev->dev, &list);
	char text[1024];

	users_describe(list, n, text, sizeof(text));
	free(list);
	cause("%s", text);
	cause_code(EXIT_BUSY);
}

/* Pass on what the kernel logged about the image while it was closed. */
static void say_warnings(struct kmsg *log, const struct dm_device *dev)
{
	char text[1024];

	kmsg_reasons(log, major(dev->dev), minor(dev->dev), text, sizeof(text));
	if (text[0])
		note("%s: the kernel says: %s", dev->name, text);
}

/*
 * What is not committed when the device goes is lost, so the metadata is written while a failure
 * can still be reported.
 */
static int commit(const struct dm_device *dev, bool force)
{
	if (dev->read_only || dev->suspended || strcmp(dev->target, "qcow2"))
		return 0;
	if (!dmdev_message(dev->name, "commit") || !dmdev_is_there(dev))
		return 0;
	cause_prefix("its metadata cannot be written");
	if (!force)
		return cause_prefix("not detached (--force does it all the same)");
	note("%s: %s", dev->name, cause_text());
	return 0;
}

static int detach(const struct dm_device *dev, bool force, bool wait)
{
	struct kmsg log;
	bool said = false;
	int ret;

	if (commit(dev, force))
		return -1;
	kmsg_begin(&log);
	for (;;) {
		ret = dmdev_remove(dev, false);
		if (!ret || cause_exit() != EXIT_BUSY)
			break;
		say_users(dev);
		if (!wait)
			break;
		if (!said)
			note("%s: waiting: %s", dev->name, cause_text());
		said = true;
		sleep_ms(200);
	}
	if (ret && force && cause_exit() == EXIT_BUSY) {
		note("%s: %s; its I/O fails from now on", dev->name, cause_text());
		ret = dmdev_is_there(dev) ? dmdev_replace_by_error(dev) : 0;
		if (!ret)
			ret = dmdev_remove(dev, true);
		if (ret > 0)
			note("%s: the image is closed; the device goes when its last user does",
			     dev->name);
	}
	if (ret >= 0)
		say_warnings(&log, dev);
	return ret < 0 ? -1 : 0;
}

static int detach_main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "force", no_argument, NULL, OPT_FORCE },
		{ "wait", no_argument, NULL, OPT_WAIT },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	bool force = false, wait = false;
	struct dm_device dev;
	int opt, code = EXIT_OK;

	while ((opt = next_option(&verb_detach, argc, argv, options, &code)) >= 0) {
		force = force || opt == OPT_FORCE;
		wait = wait || opt == OPT_WAIT;
	}
	if (opt == -2)
		return code;
	if (force && wait)
		return usage_error("--force and --wait exclude each other");
	if (argc == optind)
		return usage_error("NAME is missing");
	for (; optind < argc; optind++) {
		if (dmdev_find(argv[optind], &dev)) {
			code = report(argv[optind]);
			continue;
		}
		if (detach(&dev, force, wait))
			code = report(argv[optind]);
		dmdev_release(&dev);
	}
	return code;
}

const struct verb verb_detach = {
	.name = "detach",
	.summary = "write back an image and remove its device",
	.help = "Usage: qcow2attach detach NAME... [--wait | --force]\n\n"
		"Write back what the image's tables still lack, close the image and remove the\n"
		"device NAME (or the device at a path). A device that is in use stays.\n\n"
		"      --wait                 wait until nobody uses the device\n"
		"      --force                close the image even so: the device's users get\n"
		"                             I/O errors from then on\n",
	.run = detach_main,
};
