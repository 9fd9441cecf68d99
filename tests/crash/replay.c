// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Cuts the power everywhere: replays the log of the storage below a QCOW2 image,
 * and at every flush looks at many of the disks that a power cut could have left,
 * i.e. all that was flushed plus some of what was not, torn at 512 bytes.
 *
 * With --forget-flushes flushes are taken for none: it must fail then, which shows
 * that it can.
 *
 * With --command the storage is a file system that holds the image: each state is
 * written to a file and the command judges it, given that file and one with the
 * marks so far.  Those states are many and slow, so --percent takes a sample.
 *
 * Owns the replayed storage and an undo list for the subsets.  One thread, no locks.
 */
#include <getopt.h>
#include <inttypes.h>
#include <sys/wait.h>

#include "../progs/sector.h"
#include "files.h"
#include "judge.h"
#include "logwrites.h"

#define MAX_FAILURES	5
#define PAGE		4096

static struct {
	uint64_t seed;
	unsigned int subsets;
	unsigned int qemu_every;	/* states between two runs of qemu-img; 0: never */
	unsigned int percent;		/* of the states are judged */
	bool every_write, discard_zeroes, forget_flushes;
	const char *base, *log, *journal, *initial, *backing, *qemu_img, *keep, *command;
} options = { .seed = 1, .subsets = 20, .percent = 100 };

struct undo {
	uint64_t sector;
	uint8_t was[SECTOR_SIZE];
};

static struct {
	uint8_t *data;			/* the storage */
	uint64_t size;
	uint8_t *used;			/* per page: may hold something other than zeroes */
	struct judge judge;
	struct log log;
	struct undo *undo;
	size_t nr_undo, room_undo;
	uint64_t *pending;		/* log entries written but not flushed */
	unsigned int nr_pending;
	uint64_t rng;
	uint64_t sample;		/* random numbers of their own, so that a sample moves nothing */
	FILE *marks;			/* for the command */
	bool begun;			/* the workload has; before that a file system is being filled */
	bool own_torn;			/* a file system's own block is, in this state */
	bool own_whole;			/* no such block is to be torn */
	unsigned int spared;		/* states judged good only without such blocks torn */
	unsigned int states, failures, qemu_runs;
	unsigned int most_leaks;
} world;

static uint64_t random_below(uint64_t bound)
{
	world.rng += SECTOR_STEP;
	return sector_mix(world.rng) % bound;
}

/* Write the state to a file; what was never written is a hole. */
static void save_state(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
	uint64_t at;

	if (fd < 0 || ftruncate(fd, world.size))
		bad(path, strerror(errno));
	for (at = 0; at < world.size; at += PAGE) {
		size_t bytes = world.size - at < PAGE ? world.size - at : PAGE;

		if (world.used[at / PAGE] && pwrite(fd, world.data + at, bytes, at) != (ssize_t)bytes)
			bad(path, strerror(errno));
	}
	if (close(fd))
		bad(path, strerror(errno));
}

/*
 * Read the storage as it was before the log.  Only what is not zero takes memory: a
 * mapping of the whole file takes more pages than User Mode Linux can have.
 */
static void load_base(void)
{
	static const uint8_t zeroes[PAGE];
	int fd = open(options.base, O_RDONLY);
	off_t size = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
	uint8_t page[PAGE];
	uint64_t at;
	ssize_t got;

	if (size <= 0)
		bad(options.base, "cannot be read");
	world.size = size;
	world.data = mmap(NULL, size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	world.used = calloc(size / PAGE + 1, 1);
	if (world.data == MAP_FAILED || !world.used)
		bad(options.base, "no memory");
	for (at = 0; at < world.size; at += PAGE) {
		got = pread(fd, page, PAGE, at);
		if (got <= 0)
			bad(options.base, "cannot be read");
		if (!memcmp(page, zeroes, got))
			continue;
		memcpy(world.data + at, page, got);
		world.used[at / PAGE] = 1;
	}
	close(fd);
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

/* Have the command judge the state. */
static bool command_agrees(void)
{
	char command[4096], path[1024];
	int status;

	snprintf(path, sizeof(path), "%s.state", options.keep);
	save_state(path);
	fflush(world.marks);
	snprintf(command, sizeof(command), "%s '%s' '%s.marks'", options.command, path, options.keep);
	fflush(stdout);
	status = system(command);
	unlink(path);
	return WIFEXITED(status) && !WEXITSTATUS(status);
}

static bool judge_state(bool whole)
{
	const struct qcow2_verdict *verdict = &world.judge.verdict;
	bool good;

	if (options.command)
		return command_agrees();
	good = judge_image(&world.judge, world.data, world.size, whole);
	if (verdict->leaks > world.most_leaks)
		world.most_leaks = verdict->leaks;
	if (options.qemu_every && world.states % options.qemu_every == 0 && !qemu_agrees(verdict))
		good = false;
	return good;
}

/* Is the state in world.data one to be judged? */
static bool sampled(void)
{
	if (options.command && !world.begun)
		return false;
	world.sample += SECTOR_STEP;
	if (sector_mix(world.sample) % 100 >= options.percent)
		return false;
	world.states++;
	return true;
}

static void report(const char *what, uint64_t entry)
{
	printf("FAILED: %s at log entry %" PRIu64 " (state %u, seed %" PRIu64
	       ", %u writes not flushed)\n", what, entry, world.states, options.seed,
	       world.nr_pending);
	if (options.keep) {
		char path[1024];

		snprintf(path, sizeof(path), "%s.failed-%u", options.keep, world.failures);
		save_state(path);
		printf("the storage is in %s\n", path);
	}
	if (++world.failures == MAX_FAILURES)
		exit(1);
}

/*
 * Judge the state in world.data.  @whole: everything is compared and becomes what
 * later subsets are compared with; else only what differs from that.
 */
static void judge(bool whole, const char *what, uint64_t entry)
{
	if (sampled() && !judge_state(whole))
		report(what, entry);
}

/* Has the host cluster that holds @sector another content than the whole state? */
static void touch(uint64_t sector, bool touched)
{
	if (!options.command)
		world.judge.touched[sector * SECTOR_SIZE >> world.judge.cluster_bits] = touched;
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
		touch(e->first + i, true);
	}
	world.used[(e->first + i) * SECTOR_SIZE / PAGE] = 1;
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

/*
 * A power cut in the middle of one write: any of its sectors, or the first or last few.  Takes one
 * random number whatever is torn, so that the same state can be made with fewer writes torn.
 */
static void put_torn(const struct log_entry *e)
{
	bool own = options.command && (e->flags & LOG_METADATA || e->first * SECTOR_SIZE < PAGE);
	uint64_t mine = random_below(UINT64_MAX), all = world.rng, cut, i;
	unsigned int how;

	world.own_torn |= own;
	world.rng = mine;
	cut = random_below(e->sectors + 1);
	how = random_below(3);
	for (i = 0; i < e->sectors; i++)
		if (own && world.own_whole ? cut > 0 :
		    how == 0 ? i < cut : how == 1 ? i >= cut : random_below(2))
			put_sector(e, i, true);
	world.rng = all;
}

static void undo_all(void)
{
	while (world.nr_undo) {
		const struct undo *u = &world.undo[--world.nr_undo];

		memcpy(world.data + u->sector * SECTOR_SIZE, u->was, SECTOR_SIZE);
		touch(u->sector, false);
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

/* Tear @durable, or if there is none take a subset of the pending writes. */
static void put_cut(const struct log_entry *durable, unsigned int round)
{
	if (durable)
		put_torn(durable);
	else
		put_subset(round);
}

/*
 * Judge one such end and take it back.
 *
 * A file system below the image may not outlive its own blocks being torn.  ext4's superblock has
 * two sectors and a checksum over both; that lies in the first page.  XFS sees by a number in the
 * first sector of a block whether the block is as new as its journal, and does not mount if only
 * that sector is.  What is wrong then is judged once more with those blocks whole or not there, and
 * the image's sectors as they were: wrong again, it is not the file system's doing.
 */
static void judge_cut(const struct log_entry *durable, unsigned int round, const char *what,
		      uint64_t entry)
{
	uint64_t rng = world.rng;

	world.own_torn = false;
	put_cut(durable, round);
	if (sampled() && !judge_state(false)) {
		bool good = false;

		if (world.own_torn) {
			undo_all();
			world.rng = rng;
			world.own_whole = true;
			put_cut(durable, round);
			world.own_whole = false;
			good = judge_state(false);
			world.spared += good;
		}
		if (!good)
			report(what, entry);
	}
	undo_all();
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
	for (round = 0; round < options.subsets; round++)
		judge_cut(NULL, round, "a subset of the unflushed writes", entry);
	for (i = 0; i < world.nr_pending; i++)
		put_entry(&world.log.entries[world.pending[i]], false);
	world.nr_pending = 0;
	judge(true, "all writes up to a flush", entry);
}

/* A write that is durable by itself once it is complete. */
static void durable_write(const struct log_entry *e, uint64_t entry)
{
	unsigned int round;

	for (round = 0; round < 3; round++)
		judge_cut(e, round, "a torn FUA write", entry);
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
			if (!strcmp(e->mark, "start"))
				world.begun = true;
			if (options.command)
				fprintf(world.marks, "%s\n", e->mark);
			else
				journal_mark(&world.judge.journal, e->mark);
			judge(true, e->mark, i);
			continue;
		}
		if (e->flags & LOG_FLUSH && !options.forget_flushes)
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
		{ "discard-zeroes", 0, NULL, 'z' }, { "forget-flushes", 0, NULL, 'f' },
		{ "command", 1, NULL, 'c' }, { "percent", 1, NULL, 'p' },
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
		case 'f':
			options.forget_flushes = true;
			break;
		case 'c':
			options.command = optarg;
			break;
		case 'p':
			options.percent = strtoul(optarg, NULL, 0);
			break;
		case 'z':
			options.discard_zeroes = true;
			break;
		default:
			exit(2);
		}
	}
	if (!options.base || !options.log || !(options.journal || options.command) || optind != argc)
		bad("usage", "crash_replay --base STORAGE --log LOG [--seed N] [--subsets N] "
		    "[--percent N] [--every-write] [--discard-zeroes] [--forget-flushes] [--keep PATH-PREFIX] "
		    "{--journal OPLOG [--initial RAW] [--backing RAW] "
		    "[--qemu-img COMMAND --qemu-every N] | --command COMMAND}");
	if ((options.qemu_every || options.command) && !options.keep)
		bad("--qemu-every, --command", "need --keep");
	if (options.qemu_every && !options.qemu_img)
		bad("--qemu-every", "needs --qemu-img");
	if (options.percent < 100 && !options.command)
		bad("--percent", "is for --command");
}

int main(int argc, char **argv)
{
	parse_options(argc, argv);
	world.rng = sector_mix(options.seed);
	world.sample = sector_mix(world.rng);
	load_base();
	if (options.command) {
		char path[1024];

		snprintf(path, sizeof(path), "%s.marks", options.keep);
		world.marks = fopen(path, "w");
		if (!world.marks)
			bad(path, strerror(errno));
	} else {
		judge_init(&world.judge, world.data, world.size, options.journal, options.initial,
			   options.backing);
	}
	log_load(&world.log, options.log);
	world.pending = calloc(world.log.nr + 1, sizeof(*world.pending));
	if (!world.pending)
		bad(options.base, "no memory");
	replay();
	printf("%" PRIu64 " log entries, %u states, %u of them by qemu-img, at most %u leaks, "
	       "%u good but for a file system's torn block, %u failures\n", world.log.nr,
	       world.states, world.qemu_runs, world.most_leaks, world.spared, world.failures);
	return world.failures || !world.states ? 1 : 0;
}
