/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reading whole files and giving up with a message, for the programs that judge a power cut. */
#ifndef CRASH_FILES_H
#define CRASH_FILES_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static inline void __attribute__((noreturn)) bad(const char *path, const char *what)
{
	fprintf(stderr, "%s: %s\n", path, what);
	exit(2);
}

/* Map a whole file to read it. */
static inline const uint8_t *map_file(const char *path, uint64_t *bytes)
{
	int fd = open(path, O_RDONLY);
	struct stat st;
	void *map;

	if (fd < 0 || fstat(fd, &st))
		bad(path, strerror(errno));
	*bytes = st.st_size;
	map = mmap(NULL, st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		bad(path, strerror(errno));
	close(fd);
	return map;
}

#endif
