// SPDX-License-Identifier: GPL-2.0-or-later
/* libs: pthread */
/*
 * Differential test of a block device: threads send random reads, writes,
 * discards, write-zeroes and flushes to it and compare every sector read with a
 * model.  Owns the model, the range locks that make it exact, and the history
 * that explains a mismatch.
 *
 * The model is one operation number per sector.  What a sector must hold follows
 * from it: the tagged pattern of that write, zeroes, or (number 0) what the model
 * file held at the start.
 *
 * Locks: world.flushing is held for a flush.  Inside it or alone, world.lock guards the held ranges, the model, the clock and the list of
 * recent places.  An operation's record is written by its own thread alone, and
 * read by others once 'begun' is set (under world.lock).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "blockop.h"
#include "dm-mark.h"
#include "sector.h"

#define MAX_THREADS	64
#define MAX_SEGMENTS	12
#define HOT_PLACES	16
#define RECENT_PLACES	16
#define FINAL_CHUNK	(1U << 20)	/* bytes per read of the last comparison */
#define MAX_REPORTS	4

/* Sectors from first up to, not including, end. */
struct range {
	uint64_t first;
	uint64_t end;
};

struct op {
	uint64_t id;			/* thread + 1 in the high half, sequence + 1 below */
	enum op_type type;
	struct range asked;
	struct range effect;		/* what it changes; empty for a read or a flush */
	uint64_t begun, done;		/* clock ticks; 0: not yet */
};

struct held {
	struct range range;
	bool exclusive;
	struct held *next;
};

struct worker {
	pthread_t thread;
	unsigned int index;
	uint64_t rng;
	struct op *log;			/* options.ops_each records */
	unsigned int logged;
	char *buf;			/* max_io bytes and a page of slack for misalignment */
	uint64_t *before;		/* the model's numbers when a racing read began */
};

static struct {
	uint64_t seed;
	unsigned int ops, ops_each, threads;
	uint64_t sectors;
	uint64_t cluster;		/* sectors */
	uint64_t max_io;		/* sectors */
	uint64_t align;			/* sectors */
	const char *model, *oplog, *mark, *device;
	bool no_discard_zero, no_discard, no_zero, race_reads, verify_only, regular;
	unsigned int seconds;
} options;

static struct {
	pthread_mutex_t lock;
	pthread_mutex_t flushing;
	pthread_cond_t released;
	struct held *held;
	uint64_t *model;		/* an operation number per sector */
	uint64_t clock;
	struct range recent[RECENT_PLACES];
	unsigned int nr_recent;
	bool failed;
	const char *initial;		/* the model file as it was, mapped */
	uint64_t initial_sectors;
	uint64_t hot[HOT_PLACES];
	struct worker workers[MAX_THREADS];
	int fd;
	time_t deadline;
	uint64_t counts[OP_TYPES];
} world = { .lock = PTHREAD_MUTEX_INITIALIZER, .flushing = PTHREAD_MUTEX_INITIALIZER,
	    .released = PTHREAD_COND_INITIALIZER };

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	fprintf(stderr, "differential: ");
	vfprintf(stderr, fmt, args);
	fprintf(stderr, " (seed %llu)\n", (unsigned long long)options.seed);
	va_end(args);
	exit(2);
}

static uint64_t random_next(struct worker *w)
{
	w->rng += SECTOR_STEP;
	return sector_mix(w->rng);
}

static uint64_t random_below(struct worker *w, uint64_t bound)
{
	return random_next(w) % bound;
}

/* From 1 to max, each power of two as likely as the next. */
static uint64_t random_size(struct worker *w, uint64_t max)
{
	unsigned int bits = 64 - __builtin_clzll(max);
	uint64_t size = 1 + random_below(w, 1ULL << random_below(w, bits + 1));

	return size > max ? max : size;
}

static struct op *op_by_id(uint64_t id)
{
	uint64_t thread = (id >> 32) - 1, seq = (id & UINT32_MAX) - 1;

	if (!id || thread >= options.threads || seq >= options.ops_each)
		return NULL;
	return &world.workers[thread].log[seq];
}

static const void *initial_sector(uint64_t sector)
{
	static const char zeroes[SECTOR_SIZE];

	if (sector >= world.initial_sectors)
		return zeroes;
	return world.initial + sector * SECTOR_SIZE;
}

static bool op_is_write(const struct op *op)
{
	return op->type == OP_WRITE || op->type == OP_WRITE_FUA;
}

/* Does @buf hold what operation @id leaves in @sector? */
static bool sector_matches(const void *buf, uint64_t sector, uint64_t id)
{
	const struct op *op = op_by_id(id);
	uint64_t at, by, salt;

	if (!op)
		return !memcmp(buf, initial_sector(sector), SECTOR_SIZE);
	if (!op_is_write(op))
		return sector_is_zero(buf);
	return sector_parse(buf, &at, &by, &salt) == SECTOR_TAGGED && at == sector && by == id &&
	       salt == options.seed;
}

static void print_op(const struct op *op)
{
	fprintf(stderr, "  %6llu..%-6llu t%llu #%-5llu %-10s sectors %llu+%llu",
		(unsigned long long)op->begun, (unsigned long long)op->done,
		(unsigned long long)(op->id >> 32) - 1,
		(unsigned long long)(op->id & UINT32_MAX) - 1, op_name[op->type],
		(unsigned long long)op->asked.first,
		(unsigned long long)(op->asked.end - op->asked.first));
	if (op->effect.first < op->effect.end &&
	    (op->effect.first != op->asked.first || op->effect.end != op->asked.end))
		fprintf(stderr, " (changes %llu+%llu)", (unsigned long long)op->effect.first,
			(unsigned long long)(op->effect.end - op->effect.first));
	fputc('\n', stderr);
}

static int op_order(const void *a, const void *b)
{
	const struct op *x = *(const struct op **)a, *y = *(const struct op **)b;

	return x->begun < y->begun ? -1 : x->begun > y->begun;
}

/* Every operation that touched the cluster of @sector, in the order they began. */
static void print_history(uint64_t sector)
{
	uint64_t first = sector - sector % options.cluster, end = first + options.cluster;
	struct op **list;
	unsigned int t, i, nr = 0;

	list = calloc((size_t)options.threads * options.ops_each, sizeof(*list));
	if (!list)
		return;
	for (t = 0; t < options.threads; t++)
		for (i = 0; i < world.workers[t].logged; i++) {
			struct op *op = &world.workers[t].log[i];

			if (op->begun && op->type != OP_FLUSH && op->asked.first < end &&
			    op->asked.end > first)
				list[nr++] = op;
		}
	qsort(list, nr, sizeof(*list), op_order);
	fprintf(stderr, " operations on its cluster (sectors %llu+%llu), '*' covers the sector:\n",
		(unsigned long long)first, (unsigned long long)options.cluster);
	for (i = 0; i < nr; i++) {
		fputc(list[i]->asked.first <= sector && sector < list[i]->asked.end ? '*' : ' ',
		      stderr);
		print_op(list[i]);
	}
	free(list);
}

static void print_content(const void *buf)
{
	const unsigned char *byte = buf;
	uint64_t at, by, salt, i;
	const struct op *op;

	switch (sector_parse(buf, &at, &by, &salt)) {
	case SECTOR_ZERO:
		fprintf(stderr, "zeroes\n");
		return;
	case SECTOR_TAGGED:
	case SECTOR_TORN:
		fprintf(stderr, "%sdata of sector %llu", sector_parse(buf, &at, &by, &salt) ==
			SECTOR_TORN ? "torn " : "", (unsigned long long)at);
		op = salt == options.seed ? op_by_id(by) : NULL;
		if (!op) {
			fprintf(stderr, " from an earlier run (seed %llu)\n",
				(unsigned long long)salt);
			return;
		}
		fprintf(stderr, " written by\n ");
		print_op(op);
		return;
	case SECTOR_OTHER:
		break;
	}
	for (i = 0; i < world.initial_sectors; i++)
		if (!memcmp(buf, initial_sector(i), SECTOR_SIZE)) {
			fprintf(stderr, "the initial data of sector %llu\n", (unsigned long long)i);
			return;
		}
	for (i = 0; i < 32; i++)
		fprintf(stderr, "%02x%s", byte[i], i == 31 ? " (unknown)\n" : "");
}

static void report(const struct op *op, uint64_t sector, const void *buf, uint64_t id)
{
	const struct op *last = op_by_id(id);

	fprintf(stderr, "differential: MISMATCH at sector %llu (seed %llu)", (unsigned long long)sector,
		(unsigned long long)options.seed);
	if (op) {
		fprintf(stderr, " in\n ");
		print_op(op);
	} else {
		fprintf(stderr, " in the final comparison\n");
	}
	fprintf(stderr, " expected: ");
	if (last) {
		fprintf(stderr, "%s\n ", op_is_write(last) ? "what was written by" : "zeroes, by");
		print_op(last);
	} else {
		fprintf(stderr, "the initial content, ");
		print_content(initial_sector(sector));
	}
	fprintf(stderr, " read: ");
	print_content(buf);
	print_history(sector);
}

static bool overlap(const struct range *a, const struct range *b)
{
	return a->first < b->end && b->first < a->end;
}

/* Take @held->range; the caller keeps *held until range_unlock(). */
static void range_lock(struct held *held)
{
	const struct held *other;

again:
	for (other = world.held; other; other = other->next)
		if (overlap(&other->range, &held->range) && (other->exclusive || held->exclusive)) {
			pthread_cond_wait(&world.released, &world.lock);
			goto again;
		}
	held->next = world.held;
	world.held = held;
}

static void range_unlock(struct held *held)
{
	struct held **link;

	for (link = &world.held; *link != held; link = &(*link)->next)
		;
	*link = held->next;
	pthread_cond_broadcast(&world.released);
}

/*
 * May a read that ran from tick @from up to now have returned, for @sector, what
 * @id left there?  Yes unless a later change was complete before the read began.
 * Changes of one sector are serialised, so 'later' is the order of their ticks.
 */
static bool was_alive(uint64_t sector, uint64_t id, uint64_t from)
{
	const struct op *op = op_by_id(id);
	unsigned int t, i;

	if (op && (!op->begun || sector < op->effect.first || sector >= op->effect.end))
		return false;
	for (t = 0; t < options.threads; t++)
		for (i = 0; i < world.workers[t].logged; i++) {
			const struct op *next = &world.workers[t].log[i];

			if (next->done && next->done < from && next->effect.first <= sector &&
			    sector < next->effect.end && (!op || next->begun > op->begun))
				return false;
		}
	return true;
}

/* The slow part of a racing read: any change still visible in its window will do. */
static bool matches_any(const void *buf, uint64_t sector, uint64_t from)
{
	unsigned int t, i;

	if (sector_matches(buf, sector, 0) && was_alive(sector, 0, from))
		return true;
	for (t = 0; t < options.threads; t++)
		for (i = 0; i < world.workers[t].logged; i++) {
			const struct op *op = &world.workers[t].log[i];

			if (op->begun && op->effect.first <= sector && sector < op->effect.end &&
			    sector_matches(buf, sector, op->id) && was_alive(sector, op->id, from))
				return true;
		}
	return false;
}

/* Compare what @op read with the model; world.lock held. */
static bool check_read(struct worker *w, const struct op *op, const char *buf)
{
	unsigned int reports = 0;
	uint64_t s, last_bad = 0;

	for (s = op->asked.first; s < op->asked.end; s++, buf += SECTOR_SIZE) {
		uint64_t id = world.model[s];

		if (sector_matches(buf, s, id))
			continue;
		if (options.race_reads &&
		    (sector_matches(buf, s, w->before[s - op->asked.first]) ||
		     matches_any(buf, s, op->begun)))
			continue;
		if (!reports || s != last_bad + 1) {
			if (reports++ == MAX_REPORTS)
				break;
			report(op, s, buf, id);
		}
		last_bad = s;
	}
	return !reports;
}

/* Sectors whose content a discard of @asked changes: the clusters it covers whole. */
static struct range discard_effect(struct range asked)
{
	struct range effect = { 0, 0 };
	uint64_t c = options.cluster;

	if (options.no_discard_zero)
		return effect;
	effect.first = (asked.first + c - 1) / c * c;
	effect.end = asked.end == options.sectors ? asked.end : asked.end / c * c;
	if (effect.first >= effect.end)
		effect.first = effect.end = 0;
	return effect;
}

static enum op_type choose_type(struct worker *w)
{
	unsigned int roll = random_below(w, 100);

	if (roll < 30)
		return OP_READ;
	if (roll < 66)
		return OP_WRITE;
	if (roll < 70)
		return OP_WRITE_FUA;
	if (roll < 80)
		return options.no_discard ? OP_WRITE : OP_DISCARD;
	if (roll < 96) {
		if (options.no_zero)
			return OP_READ;
		return roll < 86 ? OP_ZEROOUT : roll < 91 ? OP_PUNCH : OP_ZERO_RANGE;
	}
	return OP_FLUSH;
}

static uint64_t choose_size(struct worker *w)
{
	unsigned int roll = random_below(w, 100);
	uint64_t size;

	if (roll < 40)
		size = random_size(w, 16);
	else if (roll < 75)
		size = random_size(w, 4 * options.cluster);
	else
		size = random_size(w, options.max_io);
	return size;
}

/*
 * Some places are hot (a few clusters that everybody works on) and some are near
 * one of the thread's own last places, so that clusters are partly written,
 * straddled and written again; the rest is anywhere.
 */
static struct range choose_range(struct worker *w, struct range *recent, enum op_type type)
{
	uint64_t size = choose_size(w), first, end;
	unsigned int roll = random_below(w, 100);

	if (roll < 35)
		first = world.hot[random_below(w, HOT_PLACES)] + random_below(w, options.cluster);
	else if (roll < 65)
		first = recent[random_below(w, RECENT_PLACES)].end + random_below(w, 16);
	else
		first = random_below(w, options.sectors);
	if (roll % 8 == 0)
		first -= first % options.cluster;
	if (type == OP_DISCARD && roll % 3)
		size = (size + options.cluster - 1) / options.cluster * options.cluster;
	first -= first % options.align;
	if (first >= options.sectors)
		first = options.sectors - options.align;
	if (size > options.max_io)
		size = options.max_io;
	end = first + (size + options.align - 1) / options.align * options.align;
	if (end > options.sectors)
		end = options.sectors;
	return (struct range){ first, end };
}

/* One transfer, in several segments that start at odd multiples of 512 in memory. */
static void transfer(struct worker *w, const struct op *op, char *buf)
{
	uint64_t left = (op->asked.end - op->asked.first) * SECTOR_SIZE;
	off_t at = op->asked.first * SECTOR_SIZE;
	unsigned int nr = random_below(w, 3) ? 1 : 1 + random_below(w, MAX_SEGMENTS);
	int flags = op->type == OP_WRITE_FUA ? RWF_DSYNC : 0;
	struct iovec iov[MAX_SEGMENTS];
	uint64_t unit = options.align * SECTOR_SIZE, given = 0;
	unsigned int i;

	for (i = 0; i < nr && given < left; i++) {
		uint64_t units = (left - given) / unit, take = units;

		if (i + 1 < nr && units > 1)
			take = 1 + random_below(w, units);
		iov[i].iov_base = buf + given;
		iov[i].iov_len = take * unit;
		given += iov[i].iov_len;
	}
	nr = i;
	while (left) {
		ssize_t done = op->type == OP_READ ? preadv2(world.fd, iov, nr, at, 0) :
						     pwritev2(world.fd, iov, nr, at, flags);

		if (done <= 0)
			die("%s of sectors %llu+%llu: %s", op_name[op->type],
			    (unsigned long long)op->asked.first,
			    (unsigned long long)(op->asked.end - op->asked.first),
			    done ? strerror(errno) : "end of device");
		left -= done;
		at += done;
		for (i = 0; i < nr && done >= (ssize_t)iov[i].iov_len; i++)
			done -= iov[i].iov_len;
		memmove(iov, iov + i, (nr - i) * sizeof(*iov));
		nr -= i;
		if (nr) {
			iov[0].iov_base = (char *)iov[0].iov_base + done;
			iov[0].iov_len -= done;
		}
	}
}

/* A regular file stands in for a device: what a discard or zeroing changes becomes a hole. */
static int punch_file(struct range r)
{
	return fallocate(world.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			 r.first * SECTOR_SIZE, (r.end - r.first) * SECTOR_SIZE);
}

/*
 * A flush takes the list of writes that dm-log-writes has not logged, and logs them when it ends.
 * Another flush may begin and end in between: then it is logged, and marked, before writes that it
 * made durable.  So there is only one at a time: of ours by a mutex, and of a process that sends
 * "commit" by a lock on the device.  (A filesystem on the logged device has its own.)
 */
static void begin_flush(void)
{
	if (!options.mark)
		return;
	pthread_mutex_lock(&world.flushing);
	if (flock(world.fd, LOCK_EX))
		die("cannot lock the device: %s", strerror(errno));
}

static void end_flush(void)
{
	if (!options.mark)
		return;
	if (flock(world.fd, LOCK_UN))
		die("cannot unlock the device: %s", strerror(errno));
	pthread_mutex_unlock(&world.flushing);
}

static void perform(struct worker *w, const struct op *op, char *buf)
{
	uint64_t first = op->asked.first, sectors = op->asked.end - first;

	if (options.regular && op->effect.first < op->effect.end && !op_is_write(op)) {
		if (punch_file(op->effect))
			die("cannot punch a hole: %s", strerror(errno));
		return;
	}
	switch (op->type) {
	case OP_WRITE_FUA:
		/*
		 * dm-log-writes logs it now, and older writes of the same sectors at the next
		 * flush: their order would be lost.
		 */
		begin_flush();
		if (options.mark && fsync(world.fd))
			die("fsync: %s", strerror(errno));
		transfer(w, op, buf);
		end_flush();
		break;
	case OP_FLUSH:
		begin_flush();
		if (fsync(world.fd))
			die("fsync: %s", strerror(errno));
		end_flush();
		break;
	case OP_READ:
	case OP_WRITE:
		transfer(w, op, buf);
		break;
	default:
		/* a file has no discard that changes nothing */
		if (options.regular && op->type == OP_DISCARD)
			break;
		if (blockop_submit(world.fd, op->type, first * SECTOR_SIZE, sectors * SECTOR_SIZE))
			die("%s of sectors %llu+%llu: %s", op_name[op->type],
			    (unsigned long long)first, (unsigned long long)sectors,
			    strerror(errno));
	}
}

/* Tell a dm-log-writes device below what it now may not lose. */
static void mark_durable(const struct op *op)
{
	char text[40];

	if (!options.mark)
		return;
	if (op->type == OP_FLUSH)
		snprintf(text, sizeof(text), "flush:%llu", (unsigned long long)op->begun);
	else if (op->type == OP_WRITE_FUA)
		snprintf(text, sizeof(text), "fua:%llu", (unsigned long long)op->id);
	else
		return;
	if (dm_mark(options.mark, text))
		die("mark '%s' on %s: %s", text, options.mark, strerror(errno));
}

static void set_effect(struct op *op)
{
	switch (op->type) {
	case OP_READ:
	case OP_FLUSH:
		break;
	case OP_DISCARD:
		op->effect = discard_effect(op->asked);
		break;
	default:
		op->effect = op->asked;
	}
}

static bool run_one(struct worker *w, struct range *recent)
{
	struct op *op = &w->log[w->logged];
	struct held held = { };
	bool locked, good = true;
	uint64_t s;
	char *buf = w->buf;

	op->type = choose_type(w);
	if (op->type != OP_FLUSH)
		op->asked = choose_range(w, recent, op->type);
	op->id = (uint64_t)(w->index + 1) << 32 | (w->logged + 1);
	set_effect(op);
	recent[w->logged % RECENT_PLACES] = op->asked;
	buf += random_below(w, 2) * random_below(w, 8) * options.align * SECTOR_SIZE;
	if (op_is_write(op))
		for (s = op->asked.first; s < op->asked.end; s++)
			sector_fill(buf + (s - op->asked.first) * SECTOR_SIZE, s, op->id,
				    options.seed);

	held.range = op->asked;
	held.exclusive = op->type != OP_READ;
	locked = op->type != OP_FLUSH && !(op->type == OP_READ && options.race_reads);

	pthread_mutex_lock(&world.lock);
	if (locked)
		range_lock(&held);
	op->begun = ++world.clock;
	w->logged++;
	if (op->type == OP_READ && options.race_reads)
		memcpy(w->before, world.model + op->asked.first,
		       (op->asked.end - op->asked.first) * sizeof(*w->before));
	good = !world.failed;
	pthread_mutex_unlock(&world.lock);

	if (good) {
		perform(w, op, buf);
		mark_durable(op);
	}

	pthread_mutex_lock(&world.lock);
	op->done = ++world.clock;
	world.counts[op->type]++;
	for (s = op->effect.first; good && s < op->effect.end; s++)
		world.model[s] = op->id;
	if (good && op->type == OP_READ && !world.failed && !check_read(w, op, buf)) {
		world.failed = true;
		good = false;
	}
	if (locked)
		range_unlock(&held);
	pthread_mutex_unlock(&world.lock);
	return good;
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct range recent[RECENT_PLACES] = { };
	unsigned int i;

	for (i = 0; i < options.ops_each; i++) {
		if (world.deadline && time(NULL) >= world.deadline)
			break;
		if (!run_one(w, recent))
			break;
	}
	return NULL;
}

static void *aligned_buffer(size_t bytes)
{
	void *buf;

	if (posix_memalign(&buf, 4096, bytes))
		die("no memory for %zu bytes", bytes);
	return buf;
}

/* Read the whole device and compare it with the model. */
static bool compare_all(void)
{
	char *buf = aligned_buffer(FINAL_CHUNK);
	uint64_t s = 0, i, last_bad = 0;
	unsigned int reports = 0;

	while (s < options.sectors && reports <= MAX_REPORTS) {
		uint64_t left = options.sectors - s;
		size_t bytes = left * SECTOR_SIZE < FINAL_CHUNK ? left * SECTOR_SIZE : FINAL_CHUNK;
		ssize_t got = pread(world.fd, buf, bytes, s * SECTOR_SIZE);

		if (got <= 0)
			die("final read of sector %llu: %s", (unsigned long long)s,
			    got ? strerror(errno) : "end of device");
		for (i = 0; i < (size_t)got / SECTOR_SIZE; i++, s++) {
			if (sector_matches(buf + i * SECTOR_SIZE, s, world.model[s]))
				continue;
			if ((!reports || s != last_bad + 1) && reports++ < MAX_REPORTS)
				report(NULL, s, buf + i * SECTOR_SIZE, world.model[s]);
			last_bad = s;
		}
	}
	free(buf);
	return !reports;
}

/* Bring the model file to the final content; sectors still initial are left alone. */
static void write_model(void)
{
	int fd = open(options.model, O_RDWR | O_CREAT, 0644);
	char buf[128 * SECTOR_SIZE];
	uint64_t s = 0, nr;

	if (fd < 0 || ftruncate(fd, options.sectors * SECTOR_SIZE))
		die("%s: %s", options.model, strerror(errno));
	while (s < options.sectors) {
		if (!world.model[s]) {
			s++;
			continue;
		}
		for (nr = 0; nr < 128 && s + nr < options.sectors && world.model[s + nr]; nr++) {
			const struct op *op = op_by_id(world.model[s + nr]);

			if (op_is_write(op))
				sector_fill(buf + nr * SECTOR_SIZE, s + nr, op->id, options.seed);
			else
				memset(buf + nr * SECTOR_SIZE, 0, SECTOR_SIZE);
		}
		if (pwrite(fd, buf, nr * SECTOR_SIZE, s * SECTOR_SIZE) !=
		    (ssize_t)(nr * SECTOR_SIZE))
			die("%s: %s", options.model, strerror(errno));
		s += nr;
	}
	if (fsync(fd) || close(fd))
		die("%s: %s", options.model, strerror(errno));
}

static void write_oplog(void)
{
	FILE *file = fopen(options.oplog, "w");
	unsigned int t, i;

	if (!file)
		die("%s: %s", options.oplog, strerror(errno));
	fprintf(file, "# seed %llu\n", (unsigned long long)options.seed);
	fprintf(file, "# begun done thread seq type first end effect-first effect-end\n");
	for (t = 0; t < options.threads; t++)
		for (i = 0; i < world.workers[t].logged; i++) {
			const struct op *op = &world.workers[t].log[i];

			fprintf(file, "%llu %llu %u %u %s %llu %llu %llu %llu\n",
				(unsigned long long)op->begun, (unsigned long long)op->done, t, i,
				op_name[op->type], (unsigned long long)op->asked.first,
				(unsigned long long)op->asked.end,
				(unsigned long long)op->effect.first,
				(unsigned long long)op->effect.end);
		}
	if (fclose(file))
		die("%s: %s", options.oplog, strerror(errno));
}

static void load_model(void)
{
	struct stat st;
	int fd;

	if (!options.model)
		return;
	fd = open(options.model, O_RDONLY);
	if (fd < 0 && errno == ENOENT)
		return;
	if (fd < 0 || fstat(fd, &st))
		die("%s: %s", options.model, strerror(errno));
	if (st.st_size % SECTOR_SIZE)
		die("%s: its size is not a multiple of %d", options.model, SECTOR_SIZE);
	if (st.st_size) {
		/* write_model() changes only sectors that no longer need their old content */
		world.initial = mmap(NULL, st.st_size, PROT_READ, MAP_SHARED, fd, 0);
		if (world.initial == MAP_FAILED)
			die("%s: %s", options.model, strerror(errno));
		world.initial_sectors = st.st_size / SECTOR_SIZE;
	}
	close(fd);
}

static void open_device(void)
{
	struct stat st;
	uint64_t bytes;

	world.fd = open(options.device, (options.verify_only ? O_RDONLY : O_RDWR) | O_DIRECT);
	if (world.fd < 0 || fstat(world.fd, &st))
		die("%s: %s", options.device, strerror(errno));
	options.regular = S_ISREG(st.st_mode);
	bytes = st.st_size;
	if (!options.regular && ioctl(world.fd, BLKGETSIZE64, &bytes))
		die("%s: BLKGETSIZE64: %s", options.device, strerror(errno));
	if (!options.sectors)
		options.sectors = bytes / SECTOR_SIZE;
	if (options.sectors * SECTOR_SIZE > bytes)
		die("%s has %llu bytes only", options.device, (unsigned long long)bytes);
	options.sectors -= options.sectors % options.align;
	if (!options.sectors)
		die("%s is empty", options.device);
}

static uint64_t parse_bytes(const char *name, const char *text)
{
	char *end;
	unsigned long long value = strtoull(text, &end, 0);

	switch (*end) {
	case 'k':
		value <<= 10;
		end++;
		break;
	case 'M':
		value <<= 20;
		end++;
		break;
	case 'G':
		value <<= 30;
		end++;
		break;
	}
	if (end == text || *end)
		die("--%s: bad number '%s'", name, text);
	return value;
}

static void __attribute__((noreturn)) usage(void)
{
	die("usage: differential [--seed N] [--ops N] [--threads N] [--size BYTES] "
	    "[--cluster BYTES] [--model FILE] [--oplog FILE] [--mark DM-NAME] [--max-io BYTES] [--align BYTES] "
	    "[--seconds N] [--no-discard-zero] [--no-discard] [--no-zero] [--race-reads] "
	    "[--verify-only] DEVICE");
}

static void parse_options(int argc, char **argv)
{
	uint64_t seed = 1, ops = 1000, threads = 4, size = 0, cluster = 65536, max_io = 4U << 20;
	uint64_t align = SECTOR_SIZE, seconds = 0;
	const struct {
		const char *name;
		uint64_t *number;
		const char **text;
		bool *flag;
	} known[] = {
		{ "seed", &seed }, { "ops", &ops }, { "threads", &threads }, { "size", &size },
		{ "cluster", &cluster }, { "max-io", &max_io }, { "align", &align },
		{ "seconds", &seconds },
		{ "model", NULL, &options.model }, { "oplog", NULL, &options.oplog },
		{ "mark", NULL, &options.mark },
		{ "no-discard-zero", NULL, NULL, &options.no_discard_zero },
		{ "no-discard", NULL, NULL, &options.no_discard },
		{ "no-zero", NULL, NULL, &options.no_zero },
		{ "race-reads", NULL, NULL, &options.race_reads },
		{ "verify-only", NULL, NULL, &options.verify_only },
	};
	enum { NR_KNOWN = sizeof(known) / sizeof(known[0]) };
	struct option names[NR_KNOWN + 1] = { };
	int c, i;

	for (i = 0; i < NR_KNOWN; i++) {
		names[i].name = known[i].name;
		names[i].has_arg = known[i].flag ? no_argument : required_argument;
		names[i].val = i;
	}
	while ((c = getopt_long(argc, argv, "", names, NULL)) >= 0) {
		if (c >= NR_KNOWN)
			usage();
		if (known[c].number)
			*known[c].number = parse_bytes(known[c].name, optarg);
		else if (known[c].text)
			*known[c].text = optarg;
		else
			*known[c].flag = true;
	}
	if (optind + 1 != argc)
		usage();
	options.device = argv[optind];
	options.seed = seed;
	options.ops = ops;
	options.threads = threads;
	options.seconds = seconds;
	options.sectors = size / SECTOR_SIZE;
	options.cluster = cluster / SECTOR_SIZE;
	options.max_io = max_io / SECTOR_SIZE;
	options.align = align / SECTOR_SIZE;
	if (!threads || threads > MAX_THREADS)
		die("--threads: from 1 to %d", MAX_THREADS);
	if (!options.cluster || !options.max_io || !options.align)
		die("--cluster, --max-io and --align take at least %d", SECTOR_SIZE);
	options.ops_each = (ops + threads - 1) / threads;
}

static void start_workers(void)
{
	struct worker seeder = { .rng = sector_mix(options.seed) };
	unsigned int t, i;

	for (i = 0; i < HOT_PLACES; i++) {
		world.hot[i] = random_below(&seeder, options.sectors);
		world.hot[i] -= world.hot[i] % options.cluster;
	}
	for (t = 0; t < options.threads; t++) {
		struct worker *w = &world.workers[t];

		w->index = t;
		w->rng = random_next(&seeder);
		w->log = calloc(options.ops_each, sizeof(*w->log));
		w->buf = aligned_buffer((options.max_io + 8 * options.align + options.align) *
					SECTOR_SIZE);
		w->before = calloc(options.max_io + options.align, sizeof(*w->before));
		if (!w->log || !w->before)
			die("no memory for %u operations", options.ops_each);
	}
	for (t = 0; t < options.threads; t++)
		if (pthread_create(&world.workers[t].thread, NULL, worker_main, &world.workers[t]))
			die("cannot start a thread");
}

int main(int argc, char **argv)
{
	unsigned int t;
	bool good;

	parse_options(argc, argv);
	open_device();
	load_model();
	world.model = calloc(options.sectors, sizeof(*world.model));
	if (!world.model)
		die("no memory for %llu sectors", (unsigned long long)options.sectors);
	printf("differential: %s: seed %llu, %u operations, %u threads, %llu bytes, cluster %llu\n",
	       options.device, (unsigned long long)options.seed, options.ops, options.threads,
	       (unsigned long long)options.sectors * SECTOR_SIZE,
	       (unsigned long long)options.cluster * SECTOR_SIZE);
	fflush(stdout);
	if (!options.verify_only) {
		if (options.seconds)
			world.deadline = time(NULL) + options.seconds;
		start_workers();
		for (t = 0; t < options.threads; t++)
			pthread_join(world.workers[t].thread, NULL);
		if (options.oplog)
			write_oplog();
	}
	good = !world.failed && compare_all();
	if (good && !options.verify_only && fsync(world.fd))
		die("last flush: %s", strerror(errno));
	if (good && options.model && !options.verify_only)
		write_model();
	if (!options.verify_only)
		for (t = 0; t < OP_TYPES; t++)
			printf("%s %llu%s", op_name[t], (unsigned long long)world.counts[t],
			       t == OP_TYPES - 1 ? "\n" : ", ");
	puts(good ? "differential: identical" : "differential: FAILED");
	return good ? 0 : 1;
}
