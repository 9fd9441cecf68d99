// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * vu-memory.c - owns the mappings of guest memory and their bounds: what the
 * kernel is told about lies inside a mapping of this process, whatever the front
 * end claims.
 */
#include "vu-memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "util.h"

#define HUGETLBFS_MAGIC 0x958458f6

/*
 * The filesystems that guest memory may be on. The kernel touches the memory with a ring's lock
 * held, so a page that never comes would block the ring, and any process that wants to stop it,
 * forever. That rules out filesystems that another process or host serves (FUSE, NFS and the like),
 * and overlays, which may lead to those. A front end could make such a file. Local filesystems are
 * allowed, for monitors that keep memory in a directory of theirs, and for persistent memory.
 */
static const uint32_t accepted_filesystems[] = {
	0x01021994,	/* tmpfs: memfd, POSIX shared memory */
	HUGETLBFS_MAGIC,
	0xef53,		/* ext2, ext3, ext4 */
	0x58465342,	/* XFS */
	0x9123683e,	/* btrfs */
	0xf2f52010,	/* F2FS */
	0xca451a4e,	/* bcachefs */
	0x2fc12fc1,	/* ZFS */
};

int memory_check_file(int fd, const char *what, uint64_t *page)
{
	struct statfs fs;
	struct stat st;

	if (fstat(fd, &st) || fstatfs(fd, &fs))
		return cause_errno("the file of %s cannot be looked at", what);
	if (!S_ISREG(st.st_mode))
		return cause("%s is not in a regular file", what);
	for (size_t i = 0; i < ARRAY_SIZE(accepted_filesystems); i++) {
		if ((uint32_t)fs.f_type != accepted_filesystems[i])
			continue;
		/* Huge pages can only be mapped, and unmapped, whole. */
		*page = (uint32_t)fs.f_type == HUGETLBFS_MAGIC ? (uint64_t)fs.f_bsize
							       : (uint64_t)sysconf(_SC_PAGESIZE);
		return 0;
	}
	return cause("%s is in a file on a filesystem (type 0x%x) that may keep the kernel "
		     "waiting: use a memfd, tmpfs, hugetlbfs or a local filesystem", what,
		     (uint32_t)fs.f_type);
}

static bool overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
	return a < b + b_len && b < a + a_len;
}

int memory_add(struct guest_memory *mem, const struct vu_region *wire, int fd, unsigned int max)
{
	struct guest_region *r = &mem->region[mem->n];
	uint64_t page, skip, end;

	if (mem->n >= max || mem->n >= MEMORY_MAX_REGIONS)
		return cause("the guest has more than %u regions of memory", max);
	if (!wire->size)
		return cause("a memory region has no size");
	if (__builtin_add_overflow(wire->guest_addr, wire->size, &end) ||
	    __builtin_add_overflow(wire->front_addr, wire->size, &end) ||
	    __builtin_add_overflow(wire->mmap_offset, wire->size, &end) || end > INT64_MAX)
		return cause("a memory region of %llu bytes wraps around",
			     (unsigned long long)wire->size);
	for (unsigned int i = 0; i < mem->n; i++) {
		const struct guest_region *o = &mem->region[i];

		if (overlap(wire->guest_addr, wire->size, o->guest_addr, o->size) ||
		    overlap(wire->front_addr, wire->size, o->front_addr, o->size))
			return cause("two memory regions overlap at guest address 0x%llx",
				     (unsigned long long)wire->guest_addr);
	}
	if (memory_check_file(fd, "guest memory", &page))
		return -1;
	skip = wire->mmap_offset % page;
	end = (skip + wire->size + page - 1) / page * page;
	r->map = mmap(NULL, end, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd,
		      wire->mmap_offset - skip);
	if (r->map == MAP_FAILED)
		return cause_errno("cannot map %llu bytes of guest memory",
				   (unsigned long long)wire->size);
	/* A core dump of ours must not hold a guest's memory. */
	madvise(r->map, end, MADV_DONTDUMP);
	r->map_len = end;
	r->host = r->map + skip;
	r->guest_addr = wire->guest_addr;
	r->front_addr = wire->front_addr;
	r->size = wire->size;
	r->offset = wire->mmap_offset;
	mem->n++;
	return 0;
}

int memory_find(const struct guest_memory *mem, const struct vu_region *wire)
{
	for (unsigned int i = 0; i < mem->n; i++) {
		const struct guest_region *r = &mem->region[i];

		if (r->guest_addr == wire->guest_addr && r->size == wire->size &&
		    r->front_addr == wire->front_addr)
			return i;
	}
	return cause("the front end removes memory at guest address 0x%llx that it never added",
		     (unsigned long long)wire->guest_addr);
}

void memory_drop(struct guest_memory *mem, unsigned int at, struct guest_region *out)
{
	*out = mem->region[at];
	mem->n--;
	memmove(&mem->region[at], &mem->region[at + 1], (mem->n - at) * sizeof(mem->region[0]));
}

void memory_put_back(struct guest_memory *mem, const struct guest_region *region)
{
	mem->region[mem->n++] = *region;
}

void region_unmap(struct guest_region *region)
{
	munmap(region->map, region->map_len);
}

void memory_clear(struct guest_memory *mem)
{
	for (unsigned int i = 0; i < mem->n; i++)
		region_unmap(&mem->region[i]);
	mem->n = 0;
}

uint64_t memory_translate(const struct guest_memory *mem, uint64_t front_addr, uint64_t len)
{
	for (unsigned int i = 0; i < mem->n; i++) {
		const struct guest_region *r = &mem->region[i];

		if (front_addr >= r->front_addr && front_addr - r->front_addr < r->size &&
		    len <= r->size - (front_addr - r->front_addr))
			return (uintptr_t)r->host + (front_addr - r->front_addr);
	}
	return 0;
}

uint64_t memory_end(const struct guest_memory *mem)
{
	uint64_t end = 0;

	for (unsigned int i = 0; i < mem->n; i++) {
		uint64_t e = mem->region[i].guest_addr + mem->region[i].size;

		if (e > end)
			end = e;
	}
	return end;
}

struct vhost_memory *memory_to_vhost(const struct guest_memory *mem)
{
	size_t bytes = sizeof(struct vhost_memory) + mem->n * sizeof(struct vhost_memory_region);
	struct vhost_memory *table = xrealloc(NULL, bytes);

	memset(table, 0, bytes);
	table->nregions = mem->n;
	for (unsigned int i = 0; i < mem->n; i++) {
		table->regions[i].guest_phys_addr = mem->region[i].guest_addr;
		table->regions[i].memory_size = mem->region[i].size;
		table->regions[i].userspace_addr = (uintptr_t)mem->region[i].host;
	}
	return table;
}
