// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * verb-map.c - `qcow2attach map`: where the bytes of an attached disk are, as qemu-img map tells.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "dm.h"
#include "extents.h"
#include "state.h"
#include "util.h"

enum { OPT_JSON = OPT_OWN };

struct output {
	bool json;
	bool begun;
	const struct device_state *state;
};

static void print_extent_json(const struct disk_extent *e, struct output *out)
{
	static const int flags = JSON_C_TO_STRING_SPACED | JSON_C_TO_STRING_NOSLASHESCAPE;
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "start", json_object_new_uint64(e->start));
	json_object_object_add(o, "length", json_object_new_uint64(e->length));
	json_object_object_add(o, "depth", json_object_new_int(e->depth));
	json_object_object_add(o, "present", json_object_new_boolean(e->kind != UNALLOCATED));
	json_object_object_add(o, "zero", json_object_new_boolean(e->kind == ZERO ||
								  e->kind == UNALLOCATED));
	json_object_object_add(o, "data", json_object_new_boolean(e->kind == DATA ||
								  e->kind == COMPRESSED));
	json_object_object_add(o, "compressed", json_object_new_boolean(e->kind == COMPRESSED));
	if (e->has_offset)
		json_object_object_add(o, "offset", json_object_new_uint64(e->offset));
	printf("%s%s", out->begun ? ",\n" : "[", json_object_to_json_string_ext(o, flags));
	json_object_put(o);
}

static void print_extent(const struct disk_extent *e, struct output *out)
{
	char *file;

	if (out->json) {
		print_extent_json(e, out);
		out->begun = true;
		return;
	}
	if (!out->begun)
		printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
	out->begun = true;
	if (e->kind != DATA && e->kind != COMPRESSED)
		return;
	file = printable(e->depth < out->state->layers.n ?
			 state_layer_path(out->state->layers.v[e->depth]) : "-");
	printf("%#-16" PRIx64 "%#-16" PRIx64, e->start, e->length);
	if (e->has_offset)
		printf("%#-16" PRIx64 "%s\n", e->offset, file);
	else
		printf("%-16s%s\n", "compressed", file);
	free(file);
}

static int tell(const struct disk_extent *e, void *arg)
{
	print_extent(e, arg);
	return ferror(stdout) ? 1 : 0;
}

static int map_device(const struct dm_device *dev, bool json)
{
	struct device_state state;
	struct output out = { .json = json, .state = &state };
	int ret;

	state_parse(dev, &state);
	ret = extents_each(dev, tell, &out);
	if (json)
		printf("%s]\n", out.begun ? "" : "[");
	state_free(&state);
	return ret;
}

static int map_main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, OPT_JSON },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct dm_device dev;
	int opt, code = EXIT_OK;
	bool json = false;

	while ((opt = next_option(&verb_map, argc, argv, options, &code)) >= 0)
		json = json || opt == OPT_JSON;
	if (opt == -2)
		return code;
	if (argc != optind + 1)
		return usage_error("map takes the name of one attached image");
	if (dmdev_find(argv[optind], &dev))
		return report(argv[optind]);
	if (strcmp(dev.target, "qcow2")) {
		cause("the device has no image: its table is %s",
		      dev.target[0] ? dev.target : "empty");
		code = report(argv[optind]);
	} else if (map_device(&dev, json)) {
		code = report(argv[optind]);
	}
	dmdev_release(&dev);
	return code;
}

const struct verb verb_map = {
	.name = "map",
	.summary = "tell where the bytes of an attached image are",
	.help = "Usage: qcow2attach map NAME [--json]\n\n"
		"Print which ranges of an attached disk have data, and where: the offset on the\n"
		"disk, the length, the offset in the file, and the file, which may be a backing\n"
		"file. All the rest reads as zeroes. It is what 'qemu-img map' prints of an image\n"
		"that is not attached, but holes of the files are not looked for: a raw file, or\n"
		"a cluster that was allocated ahead, counts as data.\n\n"
		"What is written meanwhile is told as it was before or after.\n\n"
		"      --json                 print an array of objects instead, for all ranges:\n"
		"                             start, length, depth, present, zero, data,\n"
		"                             compressed and offset, as qemu-img's\n",
	.run = map_main,
};
