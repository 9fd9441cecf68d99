// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Cuts the power everywhere: replays the log of the storage below a QCOW2 image,
 * and at every flush looks at many of the disks that a power cut could have left,
 * i.e. all that was flushed plus some of what was not, torn at 512 bytes.
 *
 * Owns the replayed storage, an undo list for the subsets, and what it knows of
 * the last whole state, so that for a subset only what differs is compared.
 * One thread, no locks.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../progs/sector.h"
#include "journal.h"
#include "logwrites.h"
#include "qcow2.h"

#define MAX_FAILURES	5

static struct {
	uint64_t seed;
	unsigned int subsets;
	unsigned int qemu_every;	/* states between two runs of qemu-img; 0: never */
	bool every_write, discard_zeroes;
	const char *base, *log, *journal, *initial, *backing, *qemu_img, *keep;
} options = { .seed = 1, .subsets = 20 };

struct undo {
	uint64_t sector;
	uint8_t was[SECTOR_SIZE];
};

static struct {
	uint8_t *data;			/* the storage */
	uint64_t size;
	struct qcow2 image;
	unsigned int cluster_bits;	/* as the base image has it, and all must */
	const uint8_t *backing;
	uint64_t backing_sectors;
	struct journal journal;
	struct log log;
	uint64_t *known;		/* per guest cluster: mapping of the whole state */
	uint8_t *touched;		/* per host cluster: changed by the subset applied now */
	struct undo *undo;
	size_t nr_undo, room_undo;
	uint64_t *pending;		/* log entries written but not flushed */
	unsigned int nr_pending;
	uint64_t rng;
	unsigned int states, failures, qemu_runs;
	unsigned int most_leaks;
} world;

static void __attribute__((noreturn)) bad(const char *path, const char *what)
{
	fprintf(stderr, "replay: %s: %s\n", path, what);
	exit(2);
}

static uint64_t random_below(uint64_t bound)
{
	world.rng += SECTOR_STEP;
	return sector_mix(world.rng) % bound;
}

static const uint8_t *map_file(const char *path, uint64_t *bytes, int flags)
{
	int fd = open(path, O_RDONLY);
	struct stat st;
	void *map;

	if (fd < 0 || fstat(fd, &st))
		bad(path, strerror(errno));
	*bytes = st.st_size;
	map = mmap(NULL, st.st_size, PROT_READ | (flags == MAP_PRIVATE ? PROT_WRITE : 0), flags, fd,
		   0);
	if (map == MAP_FAILED)
		bad(path, strerror(errno));
	close(fd);
	return map;
}

/* The mapping of a guest cluster in one word: its host offset, or what it is instead. */
static uint64_t mapping(uint64_t cluster)
{
	uint64_t host = 0;
	enum qcow2_mapping kind = qcow2_map(&world.image, cluster, &host);

	return kind == QCOW2_DATA ? host : kind;
}

static const uint8_t *guest_sector(uint64_t cluster, uint64_t map, uint64_t sector)
{
	static const uint8_t zeroes[SECTOR_SIZE];
	uint64_t within = sector * SECTOR_SIZE - cluster * world.image.cluster_size;

	if (map == QCOW2_ZEROES)
		return zeroes;
	if (map == QCOW2_BACKING)
		return sector < world.backing_sectors ? world.backing + sector * SECTOR_SIZE : zeroes;
	return map + within < world.size ? world.data + map + within : zeroes;
}

static bool cluster_good(uint64_t cluster, uint64_t map)
{
	uint64_t per = world.image.cluster_size / SECTOR_SIZE;
	uint64_t s = cluster * per, end = s + per;

	if (map == QCOW2_BROKEN) {
		printf("guest cluster %" PRIu64 " has a broken entry\n", cluster);
		return false;
	}
	if (end > world.journal.sectors)
		end = world.journal.sectors;
	for (; s < end; s++)
		if (!journal_allows(&world.journal, s, guest_sector(cluster, map, s), stdout))
			return false;
	return true;
}

/* Write the state to a file; holes stay holes. */
static void save_state(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
	static const uint8_t zeroes[4096];
	uint64_t at;

	if (fd < 0 || ftruncate(fd, world.size))
		bad(path, strerror(errno));
	for (at = 0; at < world.size; at += sizeof(zeroes)) {
		size_t bytes = world.size - at < sizeof(zeroes) ? world.size - at : sizeof(zeroes);

		if (memcmp(world.data + at, zeroes, bytes) &&
		    pwrite(fd, world.data + at, bytes, at) != (ssize_t)bytes)
			bad(path, strerror(errno));
	}
	if (close(fd))
		bad(path, strerror(errno));
}

/* Ask qemu-img; its judgement must be ours. */
static bool qemu_agrees(const struct qcow2_verdict *verdict)
{
	char command[4096], path[1024], said[1100];
	int status;

	world.qemu_runs++;
	snprintf(path, sizeof(path), "%s.state", options.keep);
	save_state(path);
	snprintf(said, sizeof(said), "%s.said", options.keep);
	/* the image alone: what lies below it need not be there */
	snprintf(command, sizeof(command), "%s check -U 'json:{\"driver\":\"qcow2\",\"backing\":null,"
		 "\"file\":{\"driver\":\"file\",\"filename\":\"%s\"}}' >'%s' 2>&1",
		 options.qemu_img, path, said);
	status = system(command);
	status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
	if (status == (verdict->corruptions ? 2 : verdict->leaks ? 3 : 0)) {
		unlink(path);
		unlink(said);
		return true;
	}
	printf("qemu-img check exits %d (see %s); here: %u corruptions, %u leaks\n", status, said,
	       verdict->corruptions, verdict->leaks);
	return false;
}

/*
 * Judge the state in world.data.  @whole: everything is compared and becomes what
 * later subsets are compared with; else only clusters that differ from that.
 */
static void judge(bool whole, const char *what, uint64_t entry)
{
	struct qcow2_verdict verdict = { };
	const char *error = qcow2_open(&world.image, world.data, world.size);
	bool good;
	uint64_t c, map;

	if (!error && (world.image.cluster_bits != world.cluster_bits ||
		       world.image.disk_size != world.journal.sectors * SECTOR_SIZE))
		error = "geometry changed";
	good = !error;
	world.states++;
	if (error) {
		printf("header: %s\n", error);
	} else {
		qcow2_check(&world.image, &verdict);
		if (verdict.leaks > world.most_leaks)
			world.most_leaks = verdict.leaks;
		if (verdict.corruptions) {
			printf("%u corruptions: %s\n", verdict.corruptions, verdict.text);
			good = false;
		}
		if (options.qemu_every && world.states % options.qemu_every == 0 &&
		    !qemu_agrees(&verdict))
			good = false;
	}
	for (c = 0; !error && c < world.image.guest_clusters; c++) {
		map = mapping(c);
		if (!whole && map == world.known[c] &&
		    (map <= QCOW2_BROKEN || !world.touched[map >> world.image.cluster_bits]))
			continue;
		if (!cluster_good(c, map)) {
			good = false;
			break;
		}
		if (whole)
			world.known[c] = map;
	}
	if (good)
		return;
	printf("FAILED: %s at log entry %" PRIu64 " (state %u, seed %" PRIu64 ", %u writes not flushed)\n",
	       what, entry, world.states, options.seed, world.nr_pending);
	if (options.keep) {
		char path[1024];

		snprintf(path, sizeof(path), "%s.failed-%u", options.keep, world.failures);
		save_state(path);
		printf("the image is in %s\n", path);
	}
	if (++world.failures == MAX_FAILURES)
		exit(1);
}

static void put_sector(const struct log_entry *e, uint64_t i, bool undoable)
{
	uint8_t *to = world.data + (e->first + i) * SECTOR_SIZE;

	if ((e->first + i + 1) * SECTOR_SIZE > world.size)
		bad(options.log, "a write past the end of the storage");
	if (undoable) {
		if (world.nr_undo == world.room_undo) {
			world.room_undo = world.room_undo ? world.room_undo * 2 : 4096;
			world.undo = realloc(world.undo, world.room_undo * sizeof(*world.undo));
			if (!world.undo)
				bad(options.log, "no memory");
		}
		world.undo[world.nr_undo].sector = e->first + i;
		memcpy(world.undo[world.nr_undo++].was, to, SECTOR_SIZE);
		world.touched[(e->first + i) * SECTOR_SIZE >> world.cluster_bits] = 1;
	}
	if (e->data)
		memcpy(to, e->data + i * SECTOR_SIZE, SECTOR_SIZE);
	else
		memset(to, options.discard_zeroes ? 0 : JOURNAL_DISCARDED, SECTOR_SIZE);
}

static void put_entry(const struct log_entry *e, bool undoable)
{
	uint64_t i;

	for (i = 0; i < e->sectors; i++)
		put_sector(e, i, undoable);
}

/* A power cut in the middle of one write: any of its sectors, or the first or last few. */
static void put_torn(const struct log_entry *e)
{
	uint64_t cut = random_below(e->sectors + 1), i;
	unsigned int how = random_below(3);

	for (i = 0; i < e->sectors; i++)
		if (how == 0 ? i < cut : how == 1 ? i >= cut : random_below(2))
			put_sector(e, i, true);
}

static void undo_all(void)
{
	while (world.nr_undo) {
		const struct undo *u = &world.undo[--world.nr_undo];

		memcpy(world.data + u->sector * SECTOR_SIZE, u->was, SECTOR_SIZE);
		world.touched[u->sector * SECTOR_SIZE >> world.cluster_bits] = 0;
	}
}

/*
 * Some of the unflushed writes.  The sparse choices find a write that something
 * else needed, the dense ones a write that needed something else; the rest mixes.
 */
static void put_subset(unsigned int round)
{
	unsigned int special = random_below(world.nr_pending), i;
	unsigned int keep = 5 + random_below(91);

	for (i = 0; i < world.nr_pending; i++) {
		const struct log_entry *e = &world.log.entries[world.pending[i]];
		bool put;

		switch (round % 4) {
		case 0:
			put = i != special;
			break;
		case 1:
			put = i == special;
			break;
		default:
			put = random_below(100) < keep;
		}
		if (round % 4 == 3 && put)
			put_torn(e);
		else if (put)
			put_entry(e, true);
	}
}

/* Every kind of end that the pending writes can come to. */
static void cut_here(uint64_t entry)
{
	unsigned int round, i;

	if (!world.nr_pending)
		return;
	if (options.every_write)
		for (i = 0; i + 1 < world.nr_pending; i++) {
			put_entry(&world.log.entries[world.pending[i]], true);
			judge(false, "a prefix of the unflushed writes", entry);
		}
	undo_all();
	for (round = 0; round < options.subsets; round++) {
		put_subset(round);
		judge(false, "a subset of the unflushed writes", entry);
		undo_all();
	}
	for (i = 0; i < world.nr_pending; i++)
		put_entry(&world.log.entries[world.pending[i]], false);
	world.nr_pending = 0;
	judge(true, "all writes up to a flush", entry);
}

/* A write that is durable by itself once it is complete. */
static void durable_write(const struct log_entry *e, uint64_t entry)
{
	unsigned int round;

	for (round = 0; round < 3; round++) {
		put_torn(e);
		judge(false, "a torn FUA write", entry);
		undo_all();
	}
	put_entry(e, false);
	judge(true, "a FUA write", entry);
}

static void replay(void)
{
	uint64_t i;

	judge(true, "the image before the workload", 0);
	for (i = 0; i < world.log.nr; i++) {
		const struct log_entry *e = &world.log.entries[i];

		if (e->flags & LOG_MARK) {
			journal_mark(&world.journal, e->mark);
			judge(true, e->mark, i);
			continue;
		}
		if (e->flags & LOG_FLUSH)
			cut_here(i);
		if (!e->sectors)
			continue;
		if (e->flags & LOG_FUA)
			durable_write(e, i);
		else
			world.pending[world.nr_pending++] = i;
	}
	cut_here(world.log.nr);
}

static void parse_options(int argc, char **argv)
{
	static const struct option names[] = {
		{ "base", 1, NULL, 'b' }, { "log", 1, NULL, 'l' }, { "journal", 1, NULL, 'j' },
		{ "initial", 1, NULL, 'i' }, { "backing", 1, NULL, 'B' },
		{ "seed", 1, NULL, 's' }, { "subsets", 1, NULL, 'n' },
		{ "qemu-img", 1, NULL, 'q' }, { "qemu-every", 1, NULL, 'Q' },
		{ "keep", 1, NULL, 'k' }, { "every-write", 0, NULL, 'e' },
		{ "discard-zeroes", 0, NULL, 'z' },
		{ }
	};
	int c;

	while ((c = getopt_long(argc, argv, "", names, NULL)) >= 0) {
		switch (c) {
		case 'b':
			options.base = optarg;
			break;
		case 'l':
			options.log = optarg;
			break;
		case 'j':
			options.journal = optarg;
			break;
		case 'i':
			options.initial = optarg;
			break;
		case 'B':
			options.backing = optarg;
			break;
		case 's':
			options.seed = strtoull(optarg, NULL, 0);
			break;
		case 'n':
			options.subsets = strtoul(optarg, NULL, 0);
			break;
		case 'q':
			options.qemu_img = optarg;
			break;
		case 'Q':
			options.qemu_every = strtoul(optarg, NULL, 0);
			break;
		case 'k':
			options.keep = optarg;
			break;
		case 'e':
			options.every_write = true;
			break;
		case 'z':
			options.discard_zeroes = true;
			break;
		default:
			exit(2);
		}
	}
	if (!options.base || !options.log || !options.journal || optind != argc)
		bad("usage", "replay --base IMAGE --log LOG --journal OPLOG [--initial RAW] "
		    "[--backing RAW] [--seed N] [--subsets N] [--every-write] [--discard-zeroes] "
		    "[--qemu-img COMMAND --qemu-every N --keep PATH-PREFIX]");
	if (options.qemu_every && (!options.qemu_img || !options.keep))
		bad("--qemu-every", "needs --qemu-img and --keep");
}

int main(int argc, char **argv)
{
	const char *error;
	uint64_t bytes;

	parse_options(argc, argv);
	world.rng = sector_mix(options.seed);
	world.data = (uint8_t *)map_file(options.base, &world.size, MAP_PRIVATE);
	error = qcow2_open(&world.image, world.data, world.size);
	if (error)
		bad(options.base, error);
	world.cluster_bits = world.image.cluster_bits;
	journal_load(&world.journal, options.journal, world.image.disk_size / SECTOR_SIZE);
	if (options.initial) {
		world.journal.initial = map_file(options.initial, &bytes, MAP_SHARED);
		world.journal.initial_sectors = bytes / SECTOR_SIZE;
	}
	if (options.backing) {
		world.backing = map_file(options.backing, &bytes, MAP_SHARED);
		world.backing_sectors = bytes / SECTOR_SIZE;
	} else if (world.image.backing) {
		bad(options.base, "has a backing file; give its content with --backing");
	}
	log_load(&world.log, options.log);
	world.known = calloc(world.image.guest_clusters, sizeof(*world.known));
	world.touched = calloc((world.size >> world.cluster_bits) + 1, 1);
	world.pending = calloc(world.log.nr + 1, sizeof(*world.pending));
	if (!world.known || !world.touched || !world.pending)
		bad(options.base, "no memory");
	replay();
	printf("replay: %" PRIu64 " log entries, %u states, %u of them by qemu-img, at most %u leaks, "
	       "%u failures\n", world.log.nr, world.states, world.qemu_runs, world.most_leaks,
	       world.failures);
	return world.failures ? 1 : 0;
}
