// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * extents.c - asking the kernel for the extents of an attached disk.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "extents.h"
#include "util.h"

static const char *const kinds[] = {
	[DATA] = "data",
	[ZERO] = "zero",
	[COMPRESSED] = "compressed",
	[UNALLOCATED] = "unallocated",
};

/* The caller of the walk, and the last extent, which may go on in the next line or page. */
struct walk_extents {
	int (*each)(const struct disk_extent *e, void *arg);
	void *arg;
	struct disk_extent last;
};

static bool goes_on(const struct disk_extent *e, const struct disk_extent *next)
{
	return e->length && e->kind == next->kind && e->depth == next->depth &&
	       e->has_offset == next->has_offset &&
	       (!e->has_offset || e->offset + e->length == next->offset);
}

/* One line of the kernel's: START LENGTH KIND DEPTH [HOST]. */
static int parse_line(const char *line, struct disk_extent *e)
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
		*e = (struct disk_extent){ .start = start * 512, .length = length * 512,
					   .kind = i, .depth = depth, .has_offset = n == 5,
					   .offset = n == 5 ? offset : 0 };
		return 0;
	}
	return -1;
}

static int tell(struct walk_extents *w)
{
	return w->last.length ? w->each(&w->last, w->arg) : 0;
}

static int one_page(const struct dm_device *dev, uint64_t *at, struct walk_extents *w)
{
	uint64_t from = *at;
	char text[40], *answer, *line, *save = NULL;
	struct disk_extent e;
	int ret = 0;

	snprintf(text, sizeof(text), "map %" PRIu64, from / 512);
	if (dmdev_ask(dev, text, &answer))
		return -1;
	for (line = strtok_r(answer, "\n", &save); line && !ret;
	     line = strtok_r(NULL, "\n", &save)) {
		if (parse_line(line, &e) || e.start != *at) {
			ret = cause("the kernel's answer is not understood: '%s'", line);
			break;
		}
		*at += e.length;
		if (goes_on(&w->last, &e)) {
			w->last.length += e.length;
			continue;
		}
		ret = tell(w);
		w->last = e;
	}
	free(answer);
	return ret || *at > from ? ret : cause("the kernel's answer is empty");
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

int extents_each(const struct dm_device *dev, int (*each)(const struct disk_extent *e, void *arg),
		 void *arg)
{
	struct walk_extents w = { .each = each, .arg = arg };
	uint64_t at = 0;
	int ret = 0;

	while (!ret && at < dev->sectors * 512)
		ret = one_page(dev, &at, &w);
	/* Also after an error: what is known up to there. */
	if (ret <= 0 && tell(&w) < 0)
		ret = -1;
	return ret < 0 ? -1 : same_table(dev);
}
