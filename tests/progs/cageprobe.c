// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cageprobe.c - stands in for qemu-img, taken over by the image that `qcow2attach check` has it
 * look at, and writes down how far it comes.
 *
 * CAGEPROBE names the attempt and CAGEPROBE_REPORT a file for what comes of it: lines of a name and
 * an error number, 0 for a success. Arguments are ignored.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static FILE *report;

static void tell(const char *name, long ret)
{
	fprintf(report, "%s %d\n", name, ret < 0 ? errno : 0);
	fflush(report);
}

static void try_terminal(void)
{
	char c = '\n';
	int fd = open("/dev/tty", O_RDWR);

	tell("tty", fd);
	if (fd >= 0)
		tell("push", ioctl(fd, TIOCSTI, &c));
}

int main(void)
{
	const char *what = getenv("CAGEPROBE");

	report = fopen(getenv("CAGEPROBE_REPORT"), "w");
	if (!report || !what)
		return 1;
	puts("{\"corruptions\": 0}");
	fflush(stdout);
	fprintf(report, "pid %d\n", (int)getpid());
	fflush(report);
	if (!strcmp(what, "terminal")) {
		try_terminal();
	} else if (!strcmp(what, "sleep")) {
		pause();
	} else {
		return 1;
	}
	return 0;
}
