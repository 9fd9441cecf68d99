// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * main.c - finds the verb and runs it. Owns the command's own help and version.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "util.h"

static const struct verb *const verbs[] = {
	&verb_run, &verb_attach, &verb_serve, &verb_list, &verb_status, &verb_map, &verb_detach,
	&verb_check, &verb_backup,
};

static void print_usage(FILE *to)
{
	fputs("Usage: qcow2attach VERB [ARGUMENT]...\n\n"
	      "Give virtual machines, or this host, the disk that is in a qcow2 image, with the\n"
	      "whole path of its data in the kernel.\n\n", to);
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		fprintf(to, "  %-8s  %s\n", verbs[i]->name, verbs[i]->summary);
	fputs("\n'qcow2attach VERB --help' tells how. The first thing to try:\n\n"
	      "  qcow2attach run disk.qcow2 -- qemu-system-x86_64 -m 2G\n\n"
	      "      --help     this text\n"
	      "      --version  the version\n", to);
}

/*
 * Undo what a careless caller may have left us. With standard error closed the image could become
 * descriptor 2, and a message would be written into it; with SIGCHLD ignored the end of a child
 * goes unreported.
 */
static void begin_sanely(void)
{
	int fd;

	do {
		fd = open("/dev/null", O_RDWR);
	} while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd < 0)
		_exit(EXIT_FAILED);
	close(fd);
	signal(SIGCHLD, SIG_DFL);
}

/* A full disk, say, must not pass for success. */
static int finish_output(int code)
{
	if (!fflush(stdout) && !ferror(stdout))
		return code;
	cause_errno("cannot write the output");
	report(NULL);
	return code == EXIT_OK ? EXIT_FAILED : code;
}

int main(int argc, char **argv)
{
	begin_sanely();
	if (argc < 2) {
		print_usage(stderr);
		return EXIT_USAGE;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
		print_usage(stdout);
		return EXIT_OK;
	}
	if (!strcmp(argv[1], "--version")) {
		printf("qcow2attach %s\n", QCOW2ATTACH_VERSION);
		return EXIT_OK;
	}
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
		if (!strcmp(argv[1], verbs[i]->name)) {
			set_verb(verbs[i]->name);
			return finish_output(verbs[i]->run(argc - 1, argv + 1));
		}
	}
	return usage_error("there is no verb '%s'", argv[1]);
}
