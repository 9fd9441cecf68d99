/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * chain.h - an image and its backing files, each opened once: the kernel gets the file that was
 * checked.
 */
#ifndef QCOW2ATTACH_CHAIN_H
#define QCOW2ATTACH_CHAIN_H

#include <sys/stat.h>

#include "header.h"
#include "policy.h"

/* Deeper chains than this are taken for a mistake. */
#define CHAIN_MAX_LAYERS 64

enum image_format {
	FORMAT_QCOW2,
	FORMAT_RAW,
};

/**
 * struct layer - one file of the chain.
 * @format: its format, always given, never guessed.
 * @path: the name by which it was opened.
 * @fd: the open file.
 * @st: its attributes.
 * @header: its header, when it is qcow2.
 */
struct layer {
	enum image_format format;
	char *path;
	int fd;
	struct stat st;
	struct image_header header;
};

/**
 * struct chain - all layers, the top one first.
 * @layer: the layers.
 * @n: how many.
 * @dir: the directory in which the last one was named, open, when there is one.
 * @size: the disk's size in bytes, a multiple of 512.
 */
struct chain {
	struct layer layer[CHAIN_MAX_LAYERS];
	unsigned int n;
	int dir;
	uint64_t size;
};

/**
 * chain_open() - open an image and its backing files.
 * @chain: filled; chain_close() it, also after a failure.
 * @image: the top image's name; it is qcow2.
 * @read_only: open the top image for reading only.
 * @policy: which backing files are followed; the directory of the image is added.
 *
 * Return: 0, or -1 with a cause.
 */
int chain_open(struct chain *chain, const char *image, bool read_only, struct policy *policy);

/**
 * chain_table() - the layers as the kernel's table line takes them.
 *
 * Return: an allocated string.
 */
char *chain_table(const struct chain *chain);

/** chain_close() - close all files. */
void chain_close(struct chain *chain);

#endif
