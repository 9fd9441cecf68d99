// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * verb-list.c - `qcow2attach list`: every attached image, one line each.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "dm.h"
#include "state.h"
#include "users.h"
#include "util.h"

enum { OPT_JSON = OPT_OWN, OPT_SERVED };

static void print_line(const struct dm_device *dev, int width)
{
	struct device_state state;
	char *name = printable(dev->name), *image;
	char size[32];

	state_parse(dev, &state);
	image = printable(state.layers.n ? state_layer_path(state.layers.v[0]) : "-");
	printf("%-*s  %10s  %-12s  %s\n", width, name,
	       format_size(dev->sectors * 512, size, sizeof(size)), state.mode, image);
	state_free(&state);
	free(image);
	free(name);
}

static void print_lines(const struct dm_device *list, int n)
{
	int width = strlen("NAME");

	for (int i = 0; i < n; i++) {
		int len = strlen(list[i].name);

		width = len > width ? len : width;
	}
	if (n)
		printf("%-*s  %10s  %-12s  %s\n", width, "NAME", "SIZE", "MODE", "IMAGE");
	for (int i = 0; i < n; i++)
		print_line(&list[i], width);
}

static struct json_object *served_json(const struct device_user *u, const char *device)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "device", json_object_new_string(device));
	json_object_object_add(o, "socket", json_object_new_string(u->socket));
	json_object_object_add(o, "pid", json_object_new_int(u->pid));
	return o;
}

/* Every device that is served, also those that were not attached. */
static int list_served(bool json)
{
	struct json_object *array = json ? json_object_new_array() : NULL;
	struct users users;
	bool begun = false;

	users_scan(&users);
	for (int i = 0; i < users.n; i++) {
		const struct device_user *u = &users.list[i];
		char name[256], *device, *socket;

		if (!u->serves || !u->socket[0])
			continue;
		device_name(u->dev, name, sizeof(name));
		if (json) {
			json_object_array_add(array, served_json(u, name));
			continue;
		}
		if (!begun)
			printf("%7s  %-24s  %s\n", "PROCESS", "DEVICE", "SOCKET");
		begun = true;
		device = printable(name);
		socket = printable(u->socket);
		printf("%7d  %-24s  %s\n", (int)u->pid, device, socket);
		free(socket);
		free(device);
	}
	if (json)
		print_json(array);
	users_free(&users);
	return EXIT_OK;
}

static int list_main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, OPT_JSON },
		{ "served", no_argument, NULL, OPT_SERVED },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct dm_device *list;
	int opt, n, code = EXIT_OK;
	bool json = false, served = false;

	while ((opt = next_option(&verb_list, argc, argv, options, &code)) >= 0) {
		json = json || opt == OPT_JSON;
		served = served || opt == OPT_SERVED;
	}
	if (opt == -2)
		return code;
	if (argc != optind)
		return usage_error("list takes no names; 'status NAME' tells about one device");
	if (served)
		return list_served(json);
	n = dmdev_list(&list);
	if (n < 0)
		return report(NULL);
	if (json) {
		struct json_object *array = json_object_new_array();

		for (int i = 0; i < n; i++)
			json_object_array_add(array, state_json(&list[i], NULL));
		print_json(array);
	} else {
		print_lines(list, n);
	}
	dmdev_list_free(list, n);
	return EXIT_OK;
}

const struct verb verb_list = {
	.name = "list",
	.summary = "list the attached images",
	.help = "Usage: qcow2attach list [--served] [--json]\n\n"
		"List every attached image: the device's name, its size, its mode (rw, ro,\n"
		"out_of_space or failed) and the image.\n\n"
		"      --served               list what is served instead, attached or not: the\n"
		"                             process, the device and its socket\n"
		"      --json                 print an array of objects instead\n",
	.run = list_main,
};
