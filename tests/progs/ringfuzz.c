// SPDX-License-Identifier: GPL-2.0-or-later
/* libs: pthread */
/*
 * Random rings against /dev/vhost-blk: ringfuzz DEVICE SECONDS [SEED]. The device's content is
 * lost. Descriptors, indirect tables, headers and indices are random with a bias to what is nearly
 * right, while a second thread changes them under the kernel's eyes. What must hold: no hang, no
 * used entry too many, none for a head that does not exist, none longer than the chain could be,
 * no write to memory that was never offered for writing, and a ring that works again after it.
 * The seed of every round is printed before it begins.
 */
#define _GNU_SOURCE
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>

#include "ring.h"

/* Segments begin below DATA_REACH, are at most 2 MiB long, and do not reach the fence. */
#define DATA_REACH	(20ul << 20)
#define FENCE_OFFSET	(24ul << 20)
#define FENCE_SIZE	(4ul << 20)

static const char *device;
static volatile bool scribbling;
static struct guest g;
static uint64_t scribble_seed, total;

/*
 * An address that is mostly fine. While another thread changes descriptors, the kernel may see the
 * address of one with the flags and the length of another: so none comes near the fence.
 */
static uint64_t random_address(uint64_t *seed)
{
	switch (rnd(seed) % 24) {
	case 0:
		return rnd(seed);
	case 1:
		return HOLE_GPA + rnd(seed) % HOLE_SIZE;
	case 2:
		return HIGH_GPA + rnd(seed) % HIGH_SIZE;
	case 3:
		return 0;
	default:
		return data_gpa(rnd(seed) % DATA_REACH & (rnd(seed) % 3 ? ~511ull : ~0ull));
	}
}

static uint32_t random_length(uint64_t *seed)
{
	switch (rnd(seed) % 16) {
	case 0:
		return rnd(seed) % 8192;
	case 1:
		return 1 << rnd(seed) % 22;
	case 2:
		return 0;
	case 3:
		/* Too long for any memory, so that it cannot reach the fence. */
		return 0xff000000u | rnd(seed);
	case 4: case 5: case 6:
		return 1;
	case 7: case 8: case 9: case 10:
		return 16;
	default:
		return (1 + rnd(seed) % 16) * 512;
	}
}

static void random_desc(uint64_t *seed, struct queue *q, struct vring_desc *d, unsigned int num,
			unsigned int self, bool may_indirect)
{
	bool write = rnd(seed) % 2;

	memset(d, 0, sizeof(*d));
	d->len = random_length(seed);
	d->addr = d->len == 16 && rnd(seed) % 4 ? q->headers_gpa + rnd(seed) % 64 * 32 :
						  random_address(seed);
	if (d->len == 16 && rnd(seed) % 8)
		write = false;
	if (d->len == 1 && rnd(seed) % 4)
		write = true;
	d->flags = write ? VRING_DESC_F_WRITE : 0;
	if (rnd(seed) % 3)
		d->flags |= VRING_DESC_F_NEXT;
	d->next = rnd(seed) % 32 ? self + 1 : rnd(seed);
	if (may_indirect && rnd(seed) % 6 == 0) {
		unsigned int slot = rnd(seed) % 8;

		d->flags = VRING_DESC_F_INDIRECT | (rnd(seed) % 8 ? 0 : VRING_DESC_F_NEXT);
		d->addr = q->indirect_gpa + slot * INDIRECT_AREA / 8;
		d->len = (1 + rnd(seed) % 20) * 16;
		if (rnd(seed) % 32 == 0)
			d->len = rnd(seed) % 4096;
	} else if (rnd(seed) % 64 == 0) {
		d->flags = rnd(seed);
	}
	if (num && rnd(seed) % 32)
		d->next &= num - 1;
}

static void random_header(uint64_t *seed, struct queue *q, unsigned int slot)
{
	static const uint32_t types[] = { 0, 0, 0, 1, 1, 1, 4, 8, 11, 13, 13 };
	struct virtio_blk_outhdr *h = (void *)(q->headers + slot * 32);

	h->type = rnd(seed) % 16 ? types[rnd(seed) % 11] : rnd(seed);
	h->sector = rnd(seed) % 16 ? rnd(seed) % 32768 : rnd(seed);
}

/* Everything that the kernel may read, filled anew. */
static void random_contents(uint64_t *seed, struct queue *q)
{
	struct vring_desc *table = (void *)q->indirect;
	unsigned int i;

	for (i = 0; i < q->num; i++)
		random_desc(seed, q, &q->ring.desc[i], q->num, i, true);
	/* Among them chains that are in order, each by itself. */
	for (i = 0; i + 4 <= q->num; i += 4) {
		struct seg seg[3] = {
			{ q->headers_gpa + rnd(seed) % 64 * 32, 16, false },
			{ random_address(seed), random_length(seed), rnd(seed) % 2 },
			{ q->headers_gpa + rnd(seed) % 64 * 32 + 16, 1, true },
		};

		if (rnd(seed) % 2)
			fill_chain(q->ring.desc, q->num - 1, i, seg, 3);
	}
	for (i = 0; i < 8 * 24; i++)
		random_desc(seed, q, &table[i / 24 * (INDIRECT_AREA / 8 / 16) + i % 24], 0, i % 24,
			    rnd(seed) % 64 == 0);
	for (i = 0; i < 64; i++)
		random_header(seed, q, i);
	/* Range lists for DISCARD and WRITE_ZEROES, where segments of 16 bytes often lie. */
	for (i = 0; i < 64; i++) {
		uint64_t r[2] = { rnd(seed) % 32768, rnd(seed) % 64 | (rnd(seed) % 2) << 32 };

		memcpy(memory_at(&g, data_gpa(i * 512)), r, 16);
	}
}

/* The guest's other processor: changes one thing after the other while the kernel reads it. */
static void *scribble(void *arg)
{
	struct queue *q = arg;

	while (scribbling) {
		unsigned int i = rnd(&scribble_seed) % q->num;
		struct vring_desc d;

		if (rnd(&scribble_seed) % 2) {
			random_desc(&scribble_seed, q, &d, q->num, i, true);
			q->ring.desc[i] = d;
		} else {
			random_header(&scribble_seed, q, rnd(&scribble_seed) % 64);
		}
		if (rnd(&scribble_seed) % 64 == 0)
			usleep(1);
	}
	return NULL;
}

static void check_fence(void)
{
	const uint8_t *p = memory_at(&g, data_gpa(FENCE_OFFSET));

	if (p[0] != 0xfe || memcmp(p, p + 1, FENCE_SIZE - 1))
		fail("memory was written that was not offered for it");
}

static void one_round(uint64_t seed, bool scribbles)
{
	struct queue *q = &g.q[0];
	unsigned int burst, offered = 0, answered, errors = 0, num = 1u << rnd(&seed) % 9;
	uint64_t features = DEFAULT_FEATURES;
	pthread_t thread;

	if (rnd(&seed) % 2)
		features |= 1ull << VIRTIO_RING_F_EVENT_IDX;
	if (rnd(&seed) % 4 == 0)
		features &= ~(1ull << VIRTIO_BLK_F_FLUSH);
	guest_connect(&g, features);
	queue_init(&g, 0, num);
	queue_attach(&g, 0);
	random_contents(&seed, q);
	set_backend(&g, device, O_RDWR);

	scribble_seed = rnd(&seed);
	scribbling = scribbles;
	if (scribbles)
		check(!pthread_create(&thread, NULL, scribble, q));
	for (burst = 0; burst < 8; burst++) {
		unsigned int i, n = rnd(&seed) % (num + 1);

		if (!scribbles)
			random_contents(&seed, q);
		/* Not more than what is answered already allows, usually. */
		if (rnd(&seed) % 8)
			while (n && (uint16_t)(q->avail_idx - used_idx(q)) + n > num)
				n--;
		for (i = 0; i < n; i++) {
			offer(q, rnd(&seed) % 64 ? q->next_desc : rnd(&seed));
			q->next_desc = (q->next_desc + (rnd(&seed) % 8 ? 4 : 1)) & (num - 1);
			offered++;
		}
		if (rnd(&seed) % 64 == 0) {
			q->avail_idx += rnd(&seed) % 512;
			__atomic_store_n(&q->ring.avail->idx, q->avail_idx, __ATOMIC_RELEASE);
		}
		kick(q);
		if (event_wait(q->err, rnd(&seed) % 3)) {
			errors++;
			must(set_ring(&g, 0, 0));
			q->avail_idx = used_idx(q);
			__atomic_store_n(&q->ring.avail->idx, q->avail_idx, __ATOMIC_RELEASE);
			must(set_ring(&g, 0, 1));
		}
	}
	must(set_ring(&g, 0, 0));
	scribbling = false;
	if (scribbles)
		pthread_join(thread, NULL);

	answered = used_idx(q);
	total += answered;
	/* Whoever jumps ahead may have old entries of the ring taken for new. */
	if (answered > offered + 8 * 512)
		fail("%u entries used, %u offered", answered, offered);
	if (offered == 0 && answered && q->avail_idx < 512)
		fail("%u entries used, none offered", answered);
	while (answered--) {
		struct vring_used_elem *e = &q->ring.used->ring[answered % num];

		if (e->id >= num)
			fail("head %u used, the ring has %u", e->id, num);
		if (e->len > 64u << 20)
			fail("%u bytes written, says the used ring", e->len);
	}
	check_fence();

	/* The same open still serves a guest that behaves. */
	close(q->kick);
	close(q->call);
	close(q->err);
	queue_init(&g, 0, 64);
	queue_attach(&g, 0);
	must(set_ring(&g, 0, 1));
	check_eq(request(q, T_OUT, 0, data_gpa(0), 4096, NULL), S_OK);
	check_eq(request(q, T_IN, 0, data_gpa(0), 4096, NULL), S_OK);
	close(q->kick);
	close(q->call);
	close(q->err);
	must(close(g.fd));
	if (errors)
		printf(" %u broken", errors);
}

int main(int argc, char **argv)
{
	uint64_t seed;
	unsigned int rounds = 0;
	double end;

	if (argc < 3) {
		fprintf(stderr, "usage: ringfuzz DEVICE SECONDS [SEED]\n");
		return 2;
	}
	device = argv[1];
	end = now() + atof(argv[2]);
	test_name = "ringfuzz";
	seed = argc > 3 ? strtoull(argv[3], NULL, 0) : (uint64_t)(now() * 1e9);
	setvbuf(stdout, NULL, _IOLBF, 0);
	guest_memory(&g);
	memset(memory_at(&g, data_gpa(FENCE_OFFSET)), 0xfe, FENCE_SIZE);
	do {
		printf("\nseed %#llx%s:", (unsigned long long)seed,
		       rounds & 1 ? " scribbling" : "");
		alarm(60);
		one_round(seed, rounds & 1);
		seed += 0x1234567;
		rounds++;
	} while (now() < end);
	printf("\n%u rounds, %llu requests: ok\n", rounds, (unsigned long long)total);
	return 0;
}
