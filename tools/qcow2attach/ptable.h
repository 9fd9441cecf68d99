/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * ptable.h - for which sector size a partition table was made. MBR and GPT count in
 * sectors and do not say how large these are: on a disk whose sectors have another
 * size the partitions are elsewhere.
 */
#ifndef QCOW2ATTACH_PTABLE_H
#define QCOW2ATTACH_PTABLE_H

#include <stddef.h>
#include <stdint.h>

/* How many bytes of a disk's beginning are looked at. */
#define PTABLE_BYTES 8192

/**
 * ptable_sector_size() - for which sector size a disk's partition table was plainly made.
 * @begin: the disk's beginning, which may be any bytes.
 * @len: how much there is of it, at most PTABLE_BYTES.
 * @disk: the disk's size in bytes.
 * @sector: the disk's sector size, 512 or 4096.
 *
 * Return: 512 or 4096; 0 when there is no table, or it does not tell.
 */
unsigned int ptable_sector_size(const uint8_t *begin, size_t len, uint64_t disk,
				unsigned int sector);

#endif
