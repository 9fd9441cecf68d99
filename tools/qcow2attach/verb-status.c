// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * verb-status.c - `qcow2attach status`: all that the kernel says about a device.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "cli.h"
#include "dm.h"
#include "state.h"
#include "users.h"
#include "util.h"

enum { OPT_JSON = OPT_OWN };

static const char *mode_meaning(const char *mode)
{
	static const struct {
		const char *mode;
		const char *meaning;
	} meanings[] = {
		{ "rw", "read-write" },
		{ "ro", "read-only" },
		{ "out_of_space", "out of space: writes wait until the storage has grown" },
		{ "failed", "failed: a metadata write failed; see the kernel log" },
		{ "removed", "closed by force; it goes when its last user does" },
		{ "empty", "it has no live table" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(meanings); i++) {
		if (!strcmp(mode, meanings[i].mode))
			return meanings[i].meaning;
	}
	return mode;
}

/* A line whose words another user may have chosen. */
static void print_field(const char *field, const char *text)
{
	char *clean = printable(text);

	printf("  %-10s  %s\n", field, clean);
	free(clean);
}

/* Returns how many there are. */
static int print_users(dev_t dev, const struct users *users)
{
	struct device_user *list;
	int n = users_of(users, dev, &list);
	char text[512];

	for (int i = 0; i < n; i++)
		print_field(i ? "" : "users", user_describe(&list[i], text, sizeof(text)));
	free(list);
	return n;
}

static void print_allocated(const struct device_state *s)
{
	char host[32];

	format_size(s->host_bytes, host, sizeof(host));
	if (s->allocated < 0)
		printf("  allocated   %s on the host\n", host);
	else
		printf("  allocated   %lld clusters for a disk of %llu, %s on the host\n",
		       (long long)s->allocated, (unsigned long long)s->total, host);
}

static void print_layer(const struct device_state *s, size_t i)
{
	const char *moved = state_layer_moved(s, i);
	char *text = xasprintf("%s%s%s%s", s->layers.v[i], moved ? " (" : "", moved ? moved : "",
			       moved ? ")" : "");

	print_field(i ? "on" : "image", text);
	free(text);
}

static void print_status(const struct dm_device *dev, const struct users *users)
{
	struct device_state s;
	char *name = printable(dev->name);
	char a[32], b[32];

	state_parse(dev, &s);
	printf("%s\n", name);
	printf("  device      /dev/mapper/%s (%u:%u)\n", name, major(dev->dev), minor(dev->dev));
	free(name);
	printf("  size        %s (%llu bytes)\n",
	       format_size(dev->sectors * 512, a, sizeof(a)),
	       (unsigned long long)dev->sectors * 512);
	printf("  mode        %s%s\n", mode_meaning(s.mode), dev->suspended ? ", suspended" : "");
	for (size_t i = 0; i < s.attention.n; i++)
		printf("  attention   %s\n", s.attention.v[i]);
	for (size_t i = 0; i < s.layers.n; i++)
		print_layer(&s, i);
	if (s.total) {
		print_allocated(&s);
		printf("  cache       %s of at most %s\n",
		       format_size(s.cache_kib * 1024, a, sizeof(a)),
		       format_size(s.cache_max_kib * 1024, b, sizeof(b)));
	}
	if (!print_users(dev->dev, users))
		print_field("users", dev->open_count ? "some that /proc does not show" : "none");
	print_field("uuid", dev->uuid);
	state_free(&s);
}

/* Any block device can be served. Returns its number when this one is, else 0. */
static dev_t served_device(const char *which, const struct users *users)
{
	char *path = strchr(which, '/') ? xstrdup(which) : xasprintf("/dev/mapper/%s", which);
	struct stat st;
	bool served = false;

	if (stat(path, &st) || !S_ISBLK(st.st_mode))
		st.st_rdev = 0;
	for (int i = 0; i < users->n; i++)
		served = served || (users->list[i].serves && users->list[i].dev == st.st_rdev);
	free(path);
	return served ? st.st_rdev : 0;
}

static void print_foreign(dev_t dev, bool json, const struct users *users)
{
	char name[256], text[320];
	struct json_object *o;

	device_name(dev, name, sizeof(name));
	if (!json) {
		char *title = printable(name);

		printf("%s\n", title);
		free(title);
		snprintf(text, sizeof(text), "%s (%u:%u), not attached by qcow2attach", name,
			 major(dev), minor(dev));
		print_field("device", text);
		print_users(dev, users);
		return;
	}
	o = json_object_new_object();
	json_object_object_add(o, "device", json_object_new_string(name));
	snprintf(text, sizeof(text), "%u:%u", major(dev), minor(dev));
	json_object_object_add(o, "number", json_object_new_string(text));
	json_object_object_add(o, "users", users_json(users, dev));
	print_json(o);
}

static int status_of(const char *which, bool json)
{
	struct dm_device dev;
	struct users users;
	dev_t served;

	users_scan(&users);
	if (dmdev_find(which, &dev)) {
		served = served_device(which, &users);
		if (served)
			print_foreign(served, json, &users);
		users_free(&users);
		return served ? EXIT_OK : report(which);
	}
	if (json)
		print_json(state_json(&dev, &users));
	else
		print_status(&dev, &users);
	users_free(&users);
	dmdev_release(&dev);
	return EXIT_OK;
}

static int status_of_all(bool json)
{
	struct json_object *array = NULL;
	struct dm_device *list;
	struct users users;
	int n = dmdev_list(&list);

	if (n < 0)
		return report(NULL);
	/* Once for all: there may be many processes, and many devices. */
	users_scan(&users);
	if (json)
		array = json_object_new_array();
	for (int i = 0; i < n; i++) {
		if (json)
			json_object_array_add(array, state_json(&list[i], &users));
		else
			print_status(&list[i], &users);
	}
	if (json)
		print_json(array);
	users_free(&users);
	dmdev_list_free(list, n);
	return EXIT_OK;
}

static int status_main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, OPT_JSON },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	int opt, code = EXIT_OK;
	bool json = false;

	while ((opt = next_option(&verb_status, argc, argv, options, &code)) >= 0)
		json = true;
	if (opt == -2)
		return code;
	if (argc - optind > 1)
		return usage_error("one device at a time, or none for all");
	return argc == optind ? status_of_all(json) : status_of(argv[optind], json);
}

const struct verb verb_status = {
	.name = "status",
	.summary = "show the state of one attached image, or of all",
	.help = "Usage: qcow2attach status [NAME] [--json]\n\n"
		"Tell what the kernel says about the device NAME (or the device at a path), or\n"
		"about all: mode, files, clusters in use, cache, users. For a device that is\n"
		"served but not attached, tell which process serves it.\n\n"
		"      --json                 print an object, or an array of them, instead\n",
	.run = status_main,
};
