// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * verb-map.c - `qcow2attach map`: where the bytes of an attached disk are, as qemu-img map tells.
 *
 * The kernel answers in pages; extents that go on from one page to the next are put together.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "dm.h"
#include "state.h"
#include "util.h"

enum { OPT_JSON = OPT_OWN };

enum kind { DATA, ZERO, COMPRESSED, UNALLOCATED };

static const char *const kinds[] = {
	[DATA] = "data",
	[ZERO] = "zero",
	[COMPRESSED] = "compressed",
	[UNALLOCATED] = "unallocated",
};

struct extent {
	uint64_t start, length;		/* bytes; a length of 0: none yet */
	enum kind kind;
	unsigned int depth;
	bool has_offset;
	uint64_t offset;
};

struct output {
	bool json;
	bool begun;
	const struct device_state *state;
};

static void print_extent_json(const struct extent *e, struct output *out)
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

static void print_extent(const struct extent *e, struct output *out)
{
	char *file;

	if (!e->length)
		return;
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

static bool goes_on(const struct extent *e, const struct extent *next)
{
	return e->length && e->kind == next->kind && e->depth == next->depth &&
	       e->has_offset == next->has_offset &&
	       (!e->has_offset || e->offset + e->length == next->offset);
}

/* One line of the kernel's: START LENGTH KIND DEPTH [HOST]. */
static int parse_line(const char *line, struct extent *e)
{
	uint64_t start, length, offset;
	unsigned int depth;
	char kind[16];
	int n = sscanf(line, "%" SCNu64 " %" SCNu64 " %15s %u %" SCNu64, &start, &length, kind,
		       &depth, &offset);

	if (n < 4 || !length)
		return -1;
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		if (strcmp(kind, kinds[i]))
			continue;
		*e = (struct extent){ .start = start * 512, .length = length * 512, .kind = i,
				      .depth = depth, .has_offset = n == 5,
				      .offset = n == 5 ? offset : 0 };
		return 0;
	}
	return -1;
}

static int map_page(const struct dm_device *dev, uint64_t *at, struct extent *last,
		    struct output *out)
{
	uint64_t from = *at;
	char text[40], *answer, *line, *save = NULL;
	struct extent e;

	snprintf(text, sizeof(text), "map %" PRIu64, from / 512);
	if (dmdev_ask(dev, text, &answer))
		return -1;
	for (line = strtok_r(answer, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		if (parse_line(line, &e) || e.start != *at) {
			cause("the kernel's answer is not understood: '%s'", line);
			free(answer);
			return -1;
		}
		*at += e.length;
		if (goes_on(last, &e)) {
			last->length += e.length;
			continue;
		}
		print_extent(last, out);
		*last = e;
	}
	free(answer);
	return *at > from ? 0 : cause("the kernel's answer is empty");
}

/* Depths and sizes are those of one table: did it stay? */
static int same_table(const struct dm_device *dev)
{
	struct dm_device now;
	bool same;

	if (dmdev_find(dev->name, &now))
		return -1;
	same = now.dev == dev->dev && now.sequence == dev->sequence &&
	       now.sectors == dev->sectors && !strcmp(now.table ?: "", dev->table ?: "");
	dmdev_release(&now);
	return same ? 0 : cause("the device was reloaded meanwhile: try again");
}

static int map_device(const struct dm_device *dev, bool json)
{
	struct device_state state;
	struct output out = { .json = json, .state = &state };
	struct extent last = { 0 };
	uint64_t at = 0;
	int ret = 0;

	state_parse(dev, &state);
	while (!ret && at < dev->sectors * 512 && !ferror(stdout))
		ret = map_page(dev, &at, &last, &out);
	print_extent(&last, &out);
	if (json)
		printf("%s]\n", out.begun ? "" : "[");
	state_free(&state);
	return ret ?: same_table(dev);
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
