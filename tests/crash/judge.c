// SPDX-License-Identifier: GPL-2.0-or-later
/* Judges an image that a power cut may have left; see judge.h. */
#include "judge.h"

#include <inttypes.h>

#include "../progs/sector.h"
#include "files.h"

void judge_init(struct judge *judge, const void *data, uint64_t size, const char *journal,
		const char *initial, const char *backing)
{
	const char *error = qcow2_open(&judge->image, data, size);
	uint64_t bytes;

	if (error)
		bad("the first image", error);
	judge->cluster_bits = judge->image.cluster_bits;
	journal_load(&judge->journal, journal, judge->image.disk_size / SECTOR_SIZE);
	if (initial) {
		judge->journal.initial = map_file(initial, &bytes);
		judge->journal.initial_sectors = bytes / SECTOR_SIZE;
	}
	if (backing) {
		judge->backing = map_file(backing, &bytes);
		judge->backing_sectors = bytes / SECTOR_SIZE;
	} else if (judge->image.backing) {
		bad("the first image", "has a backing file; give its content with --backing");
	}
	judge->known = calloc(judge->image.guest_clusters, sizeof(*judge->known));
	judge->touched = calloc((size >> judge->cluster_bits) + 1, 1);
	if (!judge->known || !judge->touched)
		bad("the first image", "no memory");
}

/* The mapping of a guest cluster in one word: its host offset, or what it is instead. */
static uint64_t mapping(const struct judge *judge, uint64_t cluster)
{
	uint64_t host = 0;
	enum qcow2_mapping kind = qcow2_map(&judge->image, cluster, &host);

	return kind == QCOW2_DATA ? host : kind;
}

static const uint8_t *guest_sector(const struct judge *judge, uint64_t cluster, uint64_t map,
				   uint64_t sector)
{
	static const uint8_t zeroes[SECTOR_SIZE];
	uint64_t at = map + sector * SECTOR_SIZE - cluster * judge->image.cluster_size;

	if (map == QCOW2_ZEROES)
		return zeroes;
	if (map == QCOW2_BACKING)
		return sector < judge->backing_sectors ? judge->backing + sector * SECTOR_SIZE :
							 zeroes;
	return at + SECTOR_SIZE <= judge->image.size ? judge->image.data + at : zeroes;
}

static bool cluster_good(const struct judge *judge, uint64_t cluster, uint64_t map)
{
	uint64_t per = judge->image.cluster_size / SECTOR_SIZE;
	uint64_t s = cluster * per, end = s + per;

	if (map == QCOW2_BROKEN) {
		printf("guest cluster %" PRIu64 " has a broken entry\n", cluster);
		return false;
	}
	if (end > judge->journal.sectors)
		end = judge->journal.sectors;
	for (; s < end; s++)
		if (!journal_allows(&judge->journal, s, guest_sector(judge, cluster, map, s),
				    stdout))
			return false;
	return true;
}

bool judge_image(struct judge *judge, const void *data, uint64_t size, bool whole)
{
	const char *error = qcow2_open(&judge->image, data, size);
	bool good = true;
	uint64_t c, map;

	memset(&judge->verdict, 0, sizeof(judge->verdict));
	if (!error && (judge->image.cluster_bits != judge->cluster_bits ||
		       judge->image.disk_size / SECTOR_SIZE != judge->journal.sectors))
		error = "geometry changed";
	if (error) {
		printf("header: %s\n", error);
		return false;
	}
	qcow2_check(&judge->image, &judge->verdict);
	if (judge->verdict.corruptions) {
		printf("%u corruptions: %s\n", judge->verdict.corruptions, judge->verdict.text);
		good = false;
	}
	for (c = 0; c < judge->image.guest_clusters; c++) {
		map = mapping(judge, c);
		if (!whole && map == judge->known[c] &&
		    (map <= QCOW2_BROKEN || !judge->touched[map >> judge->cluster_bits]))
			continue;
		if (!cluster_good(judge, c, map))
			return false;
		if (whole)
			judge->known[c] = map;
	}
	return good;
}
