// SPDX-License-Identifier: GPL-2.0-or-later
/* libs: pthread */
/*
 * How fast /dev/vhost-blk answers a client that costs next to nothing:
 *	ringbench DEVICE read|write DEPTH SECONDS [QUEUES [BUSYLOOP_US [BYTES]]]
 * Random aligned requests, a worker and a thread per queue, EVENT_IDX. Prints requests per second.
 */
#define _GNU_SOURCE
#include <linux/fs.h>
#include <pthread.h>

#include "ring.h"

static struct guest g;
static uint64_t capacity;
static unsigned int depth, bytes = 4096;
static uint32_t type;
static double end;
static uint64_t done[QUEUES_MAX];

static void *client(void *arg)
{
	struct queue *q = arg;
	uint64_t seed = q->index + 1, blocks = capacity / (bytes / SECTOR);
	unsigned int i, slot_of[RING_MAX];

	for (i = 0; i < depth; i++)
		slot_of[add_request(q, i, type, 0,
				    data_gpa((uint64_t)(q->index * depth + i) * bytes), bytes)] = i;
	kick(q);
	while (now() < end) {
		uint16_t old = q->avail_idx, used, event;

		set_used_event(q, q->used_seen);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (used_idx(q) == q->used_seen) {
			struct pollfd p = { q->call, POLLIN, 0 };
			uint64_t n;

			poll(&p, 1, 100);
			if (read(q->call, &n, sizeof(n)) < 0)
				check_eq(errno, EAGAIN);
		}
		for (used = used_idx(q); q->used_seen != used; q->used_seen++) {
			uint16_t head = q->ring.used->ring[q->used_seen % q->num].id;
			struct virtio_blk_outhdr *h = (void *)(q->headers + slot_of[head] * 32);

			if (*status_of(q, slot_of[head]) != S_OK)
				fail("status %u", *status_of(q, slot_of[head]));
			h->sector = rnd(&seed) % blocks * (bytes / SECTOR);
			q->ring.avail->ring[q->avail_idx++ % q->num] = head;
			done[q->index]++;
		}
		__atomic_store_n(&q->ring.avail->idx, q->avail_idx, __ATOMIC_RELEASE);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		event = avail_event(q);
		if (q->avail_idx != old && vring_need_event(event, q->avail_idx, old))
			kick(q);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	unsigned int i, queues = argc > 5 ? atoi(argv[5]) : 1;
	pthread_t thread[QUEUES_MAX];
	uint64_t total = 0, size;
	double begin;
	int fd;

	if (argc < 5) {
		fprintf(stderr, "usage: ringbench DEVICE read|write DEPTH SECONDS "
				"[QUEUES [BUSYLOOP_US [BYTES]]]\n");
		return 2;
	}
	test_name = "ringbench";
	type = !strcmp(argv[2], "write") ? T_OUT : T_IN;
	depth = atoi(argv[3]);
	if (argc > 7)
		bytes = atoi(argv[7]);
	check(depth && depth * 3 <= RING_MAX && queues && queues <= QUEUES_MAX);
	check((uint64_t)queues * depth * bytes <= DATA_SIZE);
	fd = must(open(argv[1], O_RDONLY));
	must(ioctl(fd, BLKGETSIZE64, &size));
	close(fd);
	capacity = size / SECTOR;

	guest_start(&g, argv[1], O_RDWR, queues, RING_MAX,
		    DEFAULT_FEATURES | 1ull << VIRTIO_RING_F_EVENT_IDX);
	for (i = 0; i < queues; i++) {
		struct vhost_worker_state w;
		struct vhost_vring_state busy = { i, argc > 6 ? atoi(argv[6]) : 0 };

		if (i) {
			must(ioctl(g.fd, VHOST_NEW_WORKER, &w));
			must(ioctl(g.fd, VHOST_ATTACH_VRING_WORKER,
				   &(struct vhost_vring_worker){ i, w.worker_id }));
		}
		must(ioctl(g.fd, VHOST_SET_VRING_BUSYLOOP_TIMEOUT, &busy));
	}
	begin = now();
	end = begin + atof(argv[4]);
	for (i = 0; i < queues; i++)
		check(!pthread_create(&thread[i], NULL, client, &g.q[i]));
	for (i = 0; i < queues; i++) {
		pthread_join(thread[i], NULL);
		total += done[i];
	}
	printf("%s bs=%u depth=%u queues=%u: %.0f IOPS\n", argv[2], bytes, depth, queues,
	       total / (now() - begin));
	check(total > 0);
	guest_stop(&g);
	return 0;
}
