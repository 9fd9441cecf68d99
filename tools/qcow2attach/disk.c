// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * disk.c - owns the exclusive claim on a served device, and the translation of
 * its limits into the configuration of a virtio disk.
 */
#include "disk.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/vhost.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "../../vhost-blk/uapi/vhost_blk.h"
#include "users.h"
#include "util.h"

#ifndef VIRTIO_RING_F_INDIRECT_DESC
#define VIRTIO_RING_F_INDIRECT_DESC 28
#endif
#ifndef VIRTIO_RING_F_EVENT_IDX
#define VIRTIO_RING_F_EVENT_IDX 29
#endif

/* How long the last requests of a killed server may take. */
#define DRAIN_WAIT_MS 60000

/*
 * A request's data segments: with header and status they fill a ring of 128
 * entries, the size that QEMU gives a disk of this kind.
 */
#define SEGMENTS 126

/* The longest zeroing asked for at once: 1 GiB, so that it can be interrupted. */
#define ZERO_SECTORS (1u << 21)

/* `run` has the device open, but not claimed, until its server, which we are then, has it. */
static int leave_out_run(struct device_user *list, int n)
{
	int kept = 0;

	for (int i = 0; i < n; i++) {
		if (list[i].kind != USER_PROCESS || !list[i].serves || list[i].pid != getppid())
			list[kept++] = list[i];
	}
	return kept;
}

/*
 * Is the device in use, so that it cannot be claimed? A process that does not serve it may just be
 * looking at it, and counts only with @any.
 */
static bool is_held(dev_t dev, bool any)
{
	struct device_user *list;
	int n = users_find(dev, &list);
	char text[1024];
	bool held;

	n = leave_out_run(list, n);
	held = any && n > 0;

	for (int i = 0; i < n; i++)
		held = held || list[i].kind != USER_PROCESS || list[i].serves;
	if (held) {
		users_describe(list, n, text, sizeof(text));
		cause("the device is %s", text);
		cause_code(EXIT_BUSY);
	}
	free(list);
	return held;
}

/* The kernel's sequence number of the disk behind a descriptor: never the same for two. */
static uint64_t sequence_of(int fd)
{
	uint64_t sequence;

	return ioctl(fd, BLKGETDISKSEQ, &sequence) ? 0 : sequence;
}

/* The name may lead to another device by now, and the number may be another device's. */
static int check_same(const struct disk *disk)
{
	struct stat st;

	if (fstat(disk->fd, &st))
		return cause_errno("its attributes cannot be read");
	if (!S_ISBLK(st.st_mode) || st.st_rdev != disk->dev ||
	    sequence_of(disk->fd) != disk->sequence)
		return cause("the device was replaced meanwhile");
	return 0;
}

static int claim(struct disk *disk, int stop)
{
	uint64_t until = now_ms() + DRAIN_WAIT_MS;
	struct pollfd p = { .fd = stop, .events = POLLIN };
	bool said = false;

	for (;;) {
		disk->fd = open(disk->path, O_RDWR | O_EXCL | O_CLOEXEC);
		if (disk->fd >= 0)
			return check_same(disk);
		if (errno != EBUSY)
			return cause_errno("it cannot be opened for writing");
		if (is_held(disk->dev, now_ms() > until))
			return -1;
		if (now_ms() > until) {
			cause("the device is held by another user in the kernel");
			return cause_code(EXIT_BUSY);
		}
		if (!said)
			note("%s: waiting for the requests of an earlier server", disk->path);
		said = true;
		if (poll(&p, 1, 50) > 0) {
			cause("told to end while the device was held by another user");
			return cause_code(EXIT_BUSY);
		}
	}
}

int disk_open(struct disk *disk, const char *which, bool read_only, int stop)
{
	struct stat st;
	int ro;

	memset(disk, 0, sizeof(*disk));
	disk->path = strchr(which, '/') ? xstrdup(which) : xasprintf("/dev/mapper/%s", which);
	disk->fd = open(disk->path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (disk->fd < 0)
		return errno == ENOENT ? cause("there is no such device")
				       : cause_errno("it cannot be opened");
	if (fstat(disk->fd, &st))
		return cause_errno("its attributes cannot be read");
	if (!S_ISBLK(st.st_mode))
		return cause("it is not a block device: attach an image first with "
			     "'qcow2attach attach'");
	disk->dev = st.st_rdev;
	disk->sequence = sequence_of(disk->fd);
	if (ioctl(disk->fd, BLKROGET, &ro))
		return cause_errno("it cannot be asked whether it is read-only");
	disk->read_only = read_only || ro;
	if (disk->read_only)
		return 0;
	close(disk->fd);
	return claim(disk, stop);
}

/* A limit of the device's queue, 0 when it has none of that name. */
static uint64_t queue_limit(const struct disk *disk, const char *name)
{
	char path[PATH_MAX], text[64];

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/queue/%s", major(disk->dev),
		 minor(disk->dev), name);
	if (read_small_file(path, text, sizeof(text))) {
		/* A partition has the limits of its disk. */
		snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/../queue/%s",
			 major(disk->dev), minor(disk->dev), name);
		if (read_small_file(path, text, sizeof(text)))
			return 0;
	}
	return strtoull(text, NULL, 10);
}

static uint32_t at_most(uint64_t value, uint32_t most)
{
	return value < most ? value : most;
}

static void describe_discard(struct disk *disk)
{
	uint64_t granularity = queue_limit(disk, "discard_granularity");
	uint64_t most = queue_limit(disk, "discard_max_bytes") / 512;
	uint32_t align = granularity > 512 ? at_most(granularity / 512, 1u << 31) : 1;

	if (!most)
		return;
	most = at_most(most, UINT32_MAX);
	if (most > align)
		most -= most % align;
	disk->features |= 1ull << VIRTIO_BLK_F_DISCARD;
	disk->config.max_discard_sectors = htole32(most);
	disk->config.max_discard_seg = htole32(VHOST_BLK_MAX_RANGES);
	disk->config.discard_sector_alignment = htole32(align);
}

static void describe_topology(struct disk *disk, unsigned int logical)
{
	unsigned int physical = logical, io_min = 0, io_opt = 0;
	int offset = 0;

	ioctl(disk->fd, BLKPBSZGET, &physical);
	ioctl(disk->fd, BLKIOMIN, &io_min);
	ioctl(disk->fd, BLKIOOPT, &io_opt);
	ioctl(disk->fd, BLKALIGNOFF, &offset);
	disk->features |= (1ull << VIRTIO_BLK_F_BLK_SIZE) | (1ull << VIRTIO_BLK_F_TOPOLOGY);
	disk->config.blk_size = htole32(logical);
	if (physical > logical)
		disk->config.physical_block_exp = __builtin_ctz(physical / logical);
	if (offset > 0)
		disk->config.alignment_offset = at_most(offset / logical, UINT8_MAX);
	disk->config.min_io_size = htole16(at_most(io_min / logical, UINT16_MAX));
	disk->config.opt_io_size = htole32(io_opt / logical);
}

int disk_describe(struct disk *disk, uint64_t kernel)
{
	const uint64_t transport = (1ull << VIRTIO_F_VERSION_1) |
				   (1ull << VIRTIO_RING_F_INDIRECT_DESC) |
				   (1ull << VIRTIO_RING_F_EVENT_IDX) | (1ull << VHOST_F_LOG_ALL);
	struct virtio_blk_config *c = &disk->config;
	uint64_t bytes;
	int logical;

	if (ioctl(disk->fd, BLKGETSIZE64, &bytes) || ioctl(disk->fd, BLKSSZGET, &logical))
		return cause_errno("its size cannot be read");
	memset(c, 0, sizeof(*c));
	disk->features = transport | (1ull << VIRTIO_BLK_F_SEG_MAX) | (1ull << VIRTIO_BLK_F_FLUSH) |
			 (1ull << VIRTIO_BLK_F_CONFIG_WCE);
	c->capacity = htole64(bytes / 512);
	c->seg_max = htole32(SEGMENTS);
	c->wce = 1;
	describe_topology(disk, logical);
	if (disk->read_only) {
		disk->features |= 1ull << VIRTIO_BLK_F_RO;
	} else {
		describe_discard(disk);
		/* Where the device cannot do this by itself, the kernel writes zeroes. */
		disk->features |= 1ull << VIRTIO_BLK_F_WRITE_ZEROES;
		c->max_write_zeroes_sectors = htole32(ZERO_SECTORS);
		c->max_write_zeroes_seg = htole32(VHOST_BLK_MAX_RANGES);
		c->write_zeroes_may_unmap = 1;
	}
	disk->features &= kernel;
	return 0;
}

void disk_set_queues(struct disk *disk, unsigned int queues, uint64_t kernel)
{
	disk->config.num_queues = htole16(queues);
	if (queues > 1)
		disk->features |= kernel & (1ull << VIRTIO_BLK_F_MQ);
}

bool disk_resized(struct disk *disk)
{
	uint64_t bytes;

	if (ioctl(disk->fd, BLKGETSIZE64, &bytes) ||
	    le64toh(disk->config.capacity) == bytes / 512)
		return false;
	disk->config.capacity = htole64(bytes / 512);
	return true;
}
