/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * vu-memory.h - the guest's memory as the front end shared it: mapped here for
 * the kernel to use, and never read or written by this process.
 */
#ifndef QCOW2ATTACH_VU_MEMORY_H
#define QCOW2ATTACH_VU_MEMORY_H

#include <linux/vhost_types.h>
#include <stddef.h>
#include <stdint.h>

#include "vu-proto.h"

/* The most regions a guest may have, as QEMU's and the kernel's greatest limit. */
#define MEMORY_MAX_REGIONS 509

/**
 * struct guest_region - one mapped range.
 * @guest_addr: where the guest has it.
 * @size: its bytes.
 * @front_addr: where the front end has it.
 * @offset: where it begins in its file.
 * @host: where this process has it.
 * @map: what mmap() returned, at or a little before @host.
 * @map_len: bytes mapped there.
 */
struct guest_region {
	uint64_t guest_addr;
	uint64_t size;
	uint64_t front_addr;
	uint64_t offset;
	char *host;
	char *map;
	size_t map_len;
};

/**
 * struct guest_memory - all of them.
 * @n: how many.
 * @region: in the order in which they came.
 */
struct guest_memory {
	unsigned int n;
	struct guest_region region[MEMORY_MAX_REGIONS];
};

/**
 * memory_check_file() - can the kernel rely on a file that it is to write to?
 * @fd: the file.
 * @what: what is in it, for the cause.
 * @page: the size that mappings of it are multiples of.
 *
 * Return: 0, or -1 with a cause.
 */
int memory_check_file(int fd, const char *what, uint64_t *page);

/**
 * memory_add() - map one more region.
 * @mem: the memory.
 * @wire: the region as the front end describes it.
 * @fd: its file; not closed.
 * @max: how many regions the kernel takes.
 *
 * Return: 0, or -1 with a cause.
 */
int memory_add(struct guest_memory *mem, const struct vu_region *wire, int fd, unsigned int max);

/**
 * memory_find() - the region that a front end wants removed.
 *
 * Return: its place in @mem, or -1 with a cause.
 */
int memory_find(const struct guest_memory *mem, const struct vu_region *wire);

/** memory_drop() - take a region out of the list, leaving it mapped, into @out. */
void memory_drop(struct guest_memory *mem, unsigned int at, struct guest_region *out);

/** memory_put_back() - undo memory_drop(). */
void memory_put_back(struct guest_memory *mem, const struct guest_region *region);

/** region_unmap() - undo the mapping of a region. */
void region_unmap(struct guest_region *region);

/** memory_clear() - unmap everything. */
void memory_clear(struct guest_memory *mem);

/**
 * memory_translate() - find a range of front-end addresses in this process.
 * @mem: the memory.
 * @front_addr: its first byte.
 * @len: its bytes.
 *
 * Return: the address here, or 0 when it is not inside one region.
 */
uint64_t memory_translate(const struct guest_memory *mem, uint64_t front_addr, uint64_t len);

/** memory_end() - the guest address after the highest one. */
uint64_t memory_end(const struct guest_memory *mem);

/**
 * memory_to_vhost() - the memory as the kernel's ioctl takes it.
 *
 * Return: an allocated table, to be freed.
 */
struct vhost_memory *memory_to_vhost(const struct guest_memory *mem);

#endif
