// SPDX-License-Identifier: GPL-2.0-or-later
/* libs: pthread */
/*
 * Threads that hammer the same few clusters of a block device with writes,
 * discards, zeroing, reads and flushes, without any lock between them, and check
 * what is true all the same: a sector holds, whole, what an operation on that very
 * sector left there, and never what had been overwritten before the read began.
 *
 * Every operation notes the tick of a common clock before it starts and after it
 * has ended.  Operations whose times overlap may take effect in either order.  A
 * value is dead for a read when an operation that began after the value's own had
 * ended was itself over before the read began.
 *
 * It goes in rounds.  At a round's end nothing is in flight, the whole device is
 * read and checked, and what it holds is what the next round starts from, so
 * records are kept for one round only.
 *
 * Owns the clock and the records.  A record is written by its own thread alone;
 * others use it once 'begun' is set.  No locks; the threads meet at a barrier.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "blockop.h"
#include "sector.h"

#define MAX_THREADS	64
#define MAX_REPORTS	3
#define MAX_SIZE	(64U << 20)	/* bytes of the device: it is kept in memory */
#define OP_BITS		24		/* of an id: which operation of the thread in the round */
#define ROUND_BITS	24

static const unsigned int op_weight[OP_TYPES] = {
	[OP_READ] = 26, [OP_WRITE] = 30, [OP_WRITE_FUA] = 4, [OP_DISCARD] = 18,
	[OP_ZEROOUT] = 8, [OP_PUNCH] = 6, [OP_ZERO_RANGE] = 4, [OP_FLUSH] = 4
};

struct op {
	uint64_t id;
	enum op_type type;
	uint64_t first, end;			/* sectors asked for */
	uint64_t effect_first, effect_end;	/* sectors that change */
	atomic_uint_fast64_t begun, done;	/* ticks; 0: not yet */
};

struct worker {
	pthread_t thread;
	unsigned int index;
	uint64_t rng;
	struct op *ops;				/* of this round; options.ops records */
	char *buf;				/* options.max_io sectors */
	uint64_t *dead;				/* see find_dead() */
	uint64_t counts[OP_TYPES];
};

static struct {
	uint64_t seed, threads, ops, seconds, max_io, cluster, sectors;
	const char *model, *device;
} options = { .seed = 1, .threads = 8, .ops = 50, .seconds = 5, .cluster = 65536 };

static struct {
	int fd;
	unsigned int round;
	char *known;				/* what the device held at the round's start */
	atomic_uint_fast64_t clock;
	atomic_uint failed;
	bool over;				/* written between rounds */
	struct worker workers[MAX_THREADS];
	pthread_barrier_t barrier;
	pthread_mutex_t report;
} world = { .report = PTHREAD_MUTEX_INITIALIZER };

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	fprintf(stderr, "hammer: ");
	vfprintf(stderr, fmt, args);
	fprintf(stderr, " (seed %llu)\n", (unsigned long long)options.seed);
	va_end(args);
	exit(2);
}

static uint64_t random_below(struct worker *w, uint64_t bound)
{
	w->rng += SECTOR_STEP;
	return sector_mix(w->rng) % bound;
}

static uint64_t tick(void)
{
	return atomic_fetch_add(&world.clock, 1) + 1;
}

static bool zeroes(const struct op *op)
{
	return op->type != OP_READ && op->type != OP_WRITE && op->type != OP_WRITE_FUA &&
	       op->type != OP_FLUSH;
}

static bool changes(const struct op *op, uint64_t sector)
{
	return op->effect_first <= sector && sector < op->effect_end;
}

static uint64_t id_of(const struct worker *w, unsigned int nr)
{
	return (uint64_t)(w->index + 1) << (OP_BITS + ROUND_BITS) |
	       (uint64_t)world.round << OP_BITS | nr;
}

/* The operation of this round that has that id. */
static const struct op *op_by_id(uint64_t id)
{
	uint64_t thread = (id >> (OP_BITS + ROUND_BITS)) - 1, nr = id & ((1U << OP_BITS) - 1);

	if (thread >= options.threads || nr >= options.ops ||
	    id != id_of(&world.workers[thread], nr))
		return NULL;
	return &world.workers[thread].ops[nr];
}

/*
 * For each sector from @first on, the last tick before which a value must still have been in the
 * making to be seen by a read that began at @from: the latest beginning of those operations that
 * were over by then.
 */
static void find_dead(uint64_t *dead, uint64_t first, uint64_t end, uint64_t from)
{
	unsigned int t, i;
	uint64_t s;

	memset(dead, 0, (end - first) * sizeof(*dead));
	for (t = 0; t < options.threads; t++)
		for (i = 0; i < options.ops; i++) {
			const struct op *op = &world.workers[t].ops[i];
			uint64_t begun = atomic_load(&op->begun), done = atomic_load(&op->done);

			if (!begun)
				break;
			if (!done || done > from)
				continue;
			s = op->effect_first > first ? op->effect_first : first;
			for (; s < op->effect_end && s < end; s++)
				if (begun > dead[s - first])
					dead[s - first] = begun;
		}
}

/* Can what @op left in @sector still be seen? */
static bool alive(const struct op *op, uint64_t sector, uint64_t dead)
{
	uint64_t done = atomic_load(&op->done);

	return atomic_load(&op->begun) && changes(op, sector) && (!done || done > dead);
}

static bool zero_is_alive(uint64_t sector, uint64_t dead)
{
	unsigned int t, i;

	for (t = 0; t < options.threads; t++)
		for (i = 0; i < options.ops; i++) {
			const struct op *op = &world.workers[t].ops[i];

			if (!atomic_load(&op->begun))
				break;
			if (zeroes(op) && alive(op, sector, dead))
				return true;
		}
	return false;
}

static bool sector_good(const char *buf, uint64_t sector, uint64_t dead)
{
	uint64_t at, id, salt;
	const struct op *op;

	if (!dead && !memcmp(buf, world.known + sector * SECTOR_SIZE, SECTOR_SIZE))
		return true;
	switch (sector_parse(buf, &at, &id, &salt)) {
	case SECTOR_ZERO:
		return zero_is_alive(sector, dead);
	case SECTOR_TAGGED:
		op = salt == options.seed && at == sector ? op_by_id(id) : NULL;
		return op && !zeroes(op) && alive(op, sector, dead);
	default:
		return false;
	}
}

static void print_op(const struct op *op)
{
	fprintf(stderr, "  %6llu..%-6llu t%u #%-4u %-10s sectors %llu+%llu\n",
		(unsigned long long)op->begun, (unsigned long long)op->done,
		(unsigned int)(op->id >> (OP_BITS + ROUND_BITS)) - 1,
		(unsigned int)(op->id & ((1U << OP_BITS) - 1)), op_name[op->type],
		(unsigned long long)op->first, (unsigned long long)(op->end - op->first));
}

static void print_content(const char *buf)
{
	uint64_t at, id, salt;
	enum sector_kind kind = sector_parse(buf, &at, &id, &salt);
	const struct op *op;
	int i;

	if (kind == SECTOR_ZERO) {
		fprintf(stderr, "zeroes\n");
		return;
	}
	if (kind == SECTOR_OTHER) {
		for (i = 0; i < 32; i++)
			fprintf(stderr, "%02x", (unsigned char)buf[i]);
		fprintf(stderr, " (unknown)\n");
		return;
	}
	fprintf(stderr, "%sdata of sector %llu, ", kind == SECTOR_TORN ? "torn " : "",
		(unsigned long long)at);
	op = salt == options.seed ? op_by_id(id) : NULL;
	if (op) {
		fprintf(stderr, "written by\n");
		print_op(op);
	} else if (salt == options.seed) {
		fprintf(stderr, "of round %u\n",
			(unsigned int)(id >> OP_BITS & ((1U << ROUND_BITS) - 1)));
	} else {
		fprintf(stderr, "from before\n");
	}
}

static int op_order(const void *a, const void *b)
{
	uint64_t x = (*(const struct op **)a)->begun, y = (*(const struct op **)b)->begun;

	return x < y ? -1 : x > y;
}

/* What else this round did to the sector's cluster, in the order in which it began. */
static void print_history(uint64_t sector)
{
	uint64_t first = sector - sector % options.cluster, end = first + options.cluster;
	const struct op **list = calloc(options.threads * options.ops, sizeof(*list));
	unsigned int t, i, nr = 0;

	if (!list)
		return;
	for (t = 0; t < options.threads; t++)
		for (i = 0; i < options.ops; i++) {
			const struct op *op = &world.workers[t].ops[i];

			if (atomic_load(&op->begun) && op->type != OP_READ && op->first < end &&
			    op->end > first)
				list[nr++] = op;
		}
	qsort(list, nr, sizeof(*list), op_order);
	fprintf(stderr, " changes of its cluster (sectors %llu+%llu), '*' changes the sector:\n",
		(unsigned long long)first, (unsigned long long)options.cluster);
	for (i = 0; i < nr; i++) {
		fputc(changes(list[i], sector) ? '*' : ' ', stderr);
		print_op(list[i]);
	}
	free(list);
}

/* Check what was read between the ticks @from and now; @op is the read, or NULL at a round's end. */
static void check(const struct op *op, const char *buf, uint64_t *dead, uint64_t first,
		  uint64_t end, uint64_t from)
{
	uint64_t s;

	find_dead(dead, first, end, from);
	for (s = first; s < end; s++, buf += SECTOR_SIZE) {
		if (sector_good(buf, s, dead[s - first]))
			continue;
		pthread_mutex_lock(&world.report);
		if (atomic_fetch_add(&world.failed, 1) < MAX_REPORTS) {
			fprintf(stderr, "hammer: IMPOSSIBLE content of sector %llu in round %u (seed %llu)",
				(unsigned long long)s, world.round, (unsigned long long)options.seed);
			if (op) {
				fprintf(stderr, ", read by\n ");
				print_op(op);
			} else {
				fprintf(stderr, ", at the round's end\n");
			}
			fprintf(stderr, " read: ");
			print_content(buf);
			fprintf(stderr, " at the round's start: ");
			print_content(world.known + s * SECTOR_SIZE);
			print_history(s);
		}
		pthread_mutex_unlock(&world.report);
		return;
	}
}

static enum op_type choose_type(struct worker *w)
{
	unsigned int roll = random_below(w, 100), type = 0;

	while (roll >= op_weight[type])
		roll -= op_weight[type++];
	return type;
}

/* Mostly parts of a cluster, so that operations of all kinds meet in it; sometimes several whole. */
static void choose_range(struct worker *w, struct op *op)
{
	bool whole = op->type == OP_DISCARD ? random_below(w, 4) : !random_below(w, 4);
	uint64_t size = 1 + random_below(w, random_below(w, 2) ? options.cluster : 8);

	op->first = random_below(w, options.sectors);
	if (whole) {
		op->first -= op->first % options.cluster;
		size = options.cluster * (1 + random_below(w, options.max_io / options.cluster));
	}
	op->end = op->first + size;
	if (op->end > options.sectors)
		op->end = options.sectors;
}

static void set_effect(struct op *op)
{
	uint64_t c = options.cluster;

	op->effect_first = op->first;
	op->effect_end = op->end;
	if (op->type == OP_DISCARD) {
		/* of a cluster that it covers in part a discard leaves all as it is */
		op->effect_first = (op->first + c - 1) / c * c;
		if (op->end != options.sectors)
			op->effect_end = op->end / c * c;
	}
	if (op->type == OP_READ || op->type == OP_FLUSH || op->effect_first >= op->effect_end)
		op->effect_first = op->effect_end = 0;
}

static int transfer(const struct op *op, char *buf)
{
	off_t at = op->first * SECTOR_SIZE;
	struct iovec iov = { buf, (op->end - op->first) * SECTOR_SIZE };
	ssize_t done;

	while (iov.iov_len) {
		if (op->type == OP_READ)
			done = preadv2(world.fd, &iov, 1, at, 0);
		else
			done = pwritev2(world.fd, &iov, 1, at,
					op->type == OP_WRITE_FUA ? RWF_DSYNC : 0);
		if (done <= 0)
			return -1;
		at += done;
		iov.iov_base = (char *)iov.iov_base + done;
		iov.iov_len -= done;
	}
	return 0;
}

static void perform(const struct op *op, char *buf)
{
	bool moves = op->type == OP_READ || op->type == OP_WRITE || op->type == OP_WRITE_FUA;

	if (moves ? transfer(op, buf) :
	    blockop_submit(world.fd, op->type, op->first * SECTOR_SIZE,
			   (op->end - op->first) * SECTOR_SIZE))
		die("%s of sectors %llu+%llu: %s", op_name[op->type],
		    (unsigned long long)op->first, (unsigned long long)(op->end - op->first),
		    strerror(errno));
}

static void run_one(struct worker *w, unsigned int nr)
{
	struct op *op = &w->ops[nr];
	uint64_t s, from;

	op->id = id_of(w, nr);
	op->type = choose_type(w);
	choose_range(w, op);
	set_effect(op);
	if (op->type == OP_WRITE || op->type == OP_WRITE_FUA)
		for (s = op->first; s < op->end; s++)
			sector_fill(w->buf + (s - op->first) * SECTOR_SIZE, s, op->id, options.seed);
	from = tick();
	atomic_store(&op->begun, from);
	perform(op, w->buf);
	atomic_store(&op->done, tick());
	if (op->type == OP_READ)
		check(op, w->buf, w->dead, op->first, op->end, from);
	w->counts[op->type]++;
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	unsigned int i;

	for (;;) {
		pthread_barrier_wait(&world.barrier);
		if (world.over)
			return NULL;
		for (i = 0; i < options.ops && !atomic_load(&world.failed); i++)
			run_one(w, i);
		pthread_barrier_wait(&world.barrier);
	}
}

static void *aligned(size_t bytes)
{
	void *buf;

	if (posix_memalign(&buf, 4096, bytes))
		die("no memory for %zu bytes", bytes);
	return memset(buf, 0, bytes);
}

static void read_all(char *buf)
{
	uint64_t at = 0, bytes = options.sectors * SECTOR_SIZE;

	while (at < bytes) {
		ssize_t got = pread(world.fd, buf + at, bytes - at, at);

		if (got <= 0)
			die("cannot read all of it: %s", got ? strerror(errno) : "end of device");
		at += got;
	}
}

static void hammer(void)
{
	char *now = aligned(options.sectors * SECTOR_SIZE), *swap;
	uint64_t *dead = aligned(options.sectors * sizeof(*dead));
	time_t deadline = time(NULL) + options.seconds;
	unsigned int i;

	while (!world.failed && time(NULL) < deadline) {
		world.round++;
		for (i = 0; i < options.threads; i++)
			memset(world.workers[i].ops, 0, options.ops * sizeof(struct op));
		pthread_barrier_wait(&world.barrier);
		pthread_barrier_wait(&world.barrier);
		if (world.failed)
			break;
		read_all(now);
		check(NULL, now, dead, 0, options.sectors, tick());
		swap = world.known;
		world.known = now;
		now = swap;
	}
	world.over = true;
	pthread_barrier_wait(&world.barrier);
	free(now);
	free(dead);
}

/* What the device holds at the start must be what the model says, or it would prove nothing. */
static void load_model(void)
{
	char *buf = aligned(options.sectors * SECTOR_SIZE);
	int fd = open(options.model, O_RDONLY);

	if (fd < 0 || pread(fd, world.known, options.sectors * SECTOR_SIZE, 0) < 0 || close(fd))
		die("%s: %s", options.model, strerror(errno));
	read_all(buf);
	if (memcmp(buf, world.known, options.sectors * SECTOR_SIZE))
		die("%s does not hold what %s does", options.device, options.model);
	free(buf);
}

static void save_model(void)
{
	int fd = open(options.model, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	ssize_t bytes = options.sectors * SECTOR_SIZE;

	if (fd < 0 || write(fd, world.known, bytes) != bytes || fsync(fd) || close(fd))
		die("%s: %s", options.model, strerror(errno));
}

static void open_device(void)
{
	uint64_t bytes;

	world.fd = open(options.device, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (world.fd < 0 || ioctl(world.fd, BLKGETSIZE64, &bytes))
		die("%s: %s", options.device, strerror(errno));
	if (!bytes || bytes > MAX_SIZE)
		die("%s has %llu bytes, not 1 to %u", options.device, (unsigned long long)bytes, MAX_SIZE);
	options.sectors = bytes / SECTOR_SIZE;
}

static void parse_options(int argc, char **argv)
{
	const struct {
		const char *name;
		uint64_t *number;
	} numbers[] = {
		{ "seed", &options.seed }, { "threads", &options.threads }, { "ops", &options.ops },
		{ "seconds", &options.seconds }, { "cluster", &options.cluster },
	};
	enum { NR_NUMBERS = sizeof(numbers) / sizeof(numbers[0]) };
	struct option names[NR_NUMBERS + 2] = { };
	char *end;
	int c, i;

	for (i = 0; i < NR_NUMBERS; i++)
		names[i] = (struct option){ numbers[i].name, required_argument, NULL, i };
	names[i] = (struct option){ "model", required_argument, NULL, i };
	while ((c = getopt_long(argc, argv, "", names, NULL)) != -1) {
		if (c == NR_NUMBERS) {
			options.model = optarg;
			continue;
		}
		if (c < 0 || c > NR_NUMBERS)
			exit(2);
		*numbers[c].number = strtoull(optarg, &end, 0);
		if (end == optarg || *end)
			die("--%s: bad number '%s'", numbers[c].name, optarg);
	}
	if (optind + 1 != argc || !options.model)
		die("usage: hammer [--seed N] [--threads N] [--ops N] [--seconds N] "
		    "[--cluster BYTES] --model FILE DEVICE");
	options.device = argv[optind];
	options.cluster /= SECTOR_SIZE;
	if (!options.threads || options.threads > MAX_THREADS || !options.ops ||
	    options.ops > 1U << OP_BITS || !options.cluster)
		die("a number is out of range");
	options.max_io = 3 * options.cluster;
}

int main(int argc, char **argv)
{
	unsigned int t, type;
	uint64_t total;

	parse_options(argc, argv);
	open_device();
	world.known = aligned(options.sectors * SECTOR_SIZE);
	load_model();
	pthread_barrier_init(&world.barrier, NULL, options.threads + 1);
	for (t = 0; t < options.threads; t++) {
		struct worker *w = &world.workers[t];

		w->index = t;
		w->rng = sector_mix(options.seed * MAX_THREADS + t);
		w->ops = aligned(options.ops * sizeof(*w->ops));
		w->buf = aligned(options.max_io * SECTOR_SIZE);
		w->dead = aligned(options.max_io * sizeof(*w->dead));
		errno = pthread_create(&w->thread, NULL, worker_main, w);
		if (errno)
			die("cannot start a thread: %s", strerror(errno));
	}
	hammer();
	for (t = 0; t < options.threads; t++)
		pthread_join(world.workers[t].thread, NULL);
	printf("%u rounds:", world.round);
	for (type = 0; type < OP_TYPES; type++) {
		for (t = 0, total = 0; t < options.threads; t++)
			total += world.workers[t].counts[type];
		printf(" %llu %s", (unsigned long long)total, op_name[type]);
	}
	printf("\n");
	if (world.failed)
		return 1;
	save_model();
	return 0;
}
