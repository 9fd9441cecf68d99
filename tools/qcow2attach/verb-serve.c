// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * verb-serve.c - `qcow2attach serve`: a vhost-user socket for a virtual machine.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli.h"
#include "options.h"
#include "spawn.h"
#include "util.h"

enum { OPT_DAEMONIZE = OPT_OWN, OPT_FOREGROUND };

/* Notify the service manager; a failure is not a reason to stop. */
static void notify_manager(void)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	size_t len = path ? strlen(path) : 0;
	int fd;

	if (!len || len >= sizeof(addr.sun_path) || (path[0] != '/' && path[0] != '@'))
		return;
	memcpy(addr.sun_path, path, len);
	if (path[0] == '@')
		addr.sun_path[0] = '\0';
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || sendto(fd, "READY=1", 7, MSG_NOSIGNAL, (struct sockaddr *)&addr,
			     offsetof(struct sockaddr_un, sun_path) + len) < 0)
		note("cannot notify the service manager: %s", strerror(errno));
	if (fd >= 0)
		close(fd);
}

static void print_ready(const struct server_info *info, void *ctx)
{
	const struct server_options *o = ctx;

	printf("%s: ready at %s (%u queue%s%s)\n", o->device, info->socket, info->queues,
	       info->queues == 1 ? "" : "s", info->read_only ? ", read-only" : "");
	fflush(stdout);
	notify_manager();
}

struct daemon_ready {
	const struct server_options *options;
	int fd;
};

static void daemon_is_ready(const struct server_info *info, void *ctx)
{
	const struct daemon_ready *d = ctx;

	print_ready(info, (void *)d->options);
	go_silent();
	prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0);
	write_all(d->fd, "", 1);
	close(d->fd);
}

/* Return in the first process when the second one is ready, or has failed. */
static int daemonize(const struct server_options *o)
{
	struct daemon_ready d = { .options = o };
	struct spawned child;
	int status;
	char c;

	/* A daemon keeps no descriptor of its caller's: a lock would stay with it. */
	closefrom(STDERR_FILENO + 1);
	/* A user that stops the first process before the server is ready wants no server. */
	if (spawn(&child, "server", SIGTERM))
		return report(o->device);
	if (!child.pid) {
		setsid();
		/* A report that comes too late must not leave the socket behind. */
		signal(SIGPIPE, SIG_IGN);
		d.fd = child.fd;
		exit(server_run(o, daemon_is_ready, &d) ? report(o->device) : EXIT_OK);
	}
	if (!read_all(child.fd, &c, 1))
		return EXIT_OK;
	waitpid(child.pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILED;
}

static int serve_main(int argc, char **argv)
{
	static const struct option options[] = {
		SERVE_LONG_OPTIONS,
		{ "read-only", no_argument, NULL, OPT_READ_ONLY },
		{ "daemonize", no_argument, NULL, OPT_DAEMONIZE },
		{ "foreground", no_argument, NULL, OPT_FOREGROUND },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct server_options o = { 0 };
	int opt, code = EXIT_OK;

	while ((opt = next_option(&verb_serve, argc, argv, options, &code)) >= 0) {
		if (opt == OPT_DAEMONIZE || opt == OPT_FOREGROUND)
			o.background = opt == OPT_DAEMONIZE;
		else if (opt == OPT_READ_ONLY)
			o.read_only = true;
		else if (serve_option(&o, opt, optarg))
			return usage_error("%s", cause_text());
	}
	if (opt == -2)
		return code;
	if (argc - optind != 1)
		return usage_error("%s", argc == optind ? "NAME is missing" :
				   "one device at a time");
	o.device = argv[optind];
	if (o.background)
		return daemonize(&o);
	return server_run(&o, print_ready, &o) ? report(o.device) : EXIT_OK;
}

const struct verb verb_serve = {
	.name = "serve",
	.summary = "serve a device to a virtual machine by vhost-user",
	.help = "Usage: qcow2attach serve NAME [OPTION]...\n\n"
		"Serve the attached image NAME, or the block device at a path, to a virtual\n"
		"machine: a vhost-user-blk socket for its set-up, the kernel for its data. Ends\n"
		"on SIGTERM. One virtual machine at a time; it may leave and come back.\n\n"
		SERVE_HELP
		"      --read-only            the virtual machine cannot write\n"
		"      --daemonize            go to the background once a client can connect\n"
		"      --foreground           do not (the default)\n",
	.run = serve_main,
};
