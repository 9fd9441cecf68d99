// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * verb-run.c - `qcow2attach run`: attach an image, serve it, run QEMU with it, and
 * leave nothing behind. Owns the order in which these begin and end.
 *
 * The device is marked to go with its last user, which is first this process and
 * then the server, so it goes even when every process here is killed.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli.h"
#include "dm.h"
#include "options.h"
#include "qemu-args.h"
#include "spawn.h"
#include "util.h"

enum { OPT_BOOTINDEX = OPT_OWN, OPT_DEVICE_PROPERTIES };

/* How long QEMU may take to end after it was asked to. */
#define QEMU_GRACE_MS 30000

/* How long the server may take to end once it was asked to: its own bound, and some seconds. */
#define SERVER_END_MS (SERVER_GRACE_MS + SERVER_KILL_MS + 5000)

/* How long the last requests may take to end after QEMU has. */
#define DETACH_WAIT_MS 30000

/* More queues than this do not help, whatever the guest has. */
#define DEFAULT_MAX_QUEUES 16

/**
 * struct run - what is running.
 * @image: the image.
 * @attach: how it is attached.
 * @server: how it is served.
 * @disk: the disk as QEMU gets it.
 * @device: the device's name, or NULL while there is none.
 * @found: the device.
 * @hold: the device, open, until the server holds it; or -1. It goes with its last user.
 * @server_pid: the server, 0 while there is none.
 * @bound: the server has made its socket.
 * @qemu_pid: QEMU, 0 while there is none.
 * @signals: the signals that are waited for.
 * @old_signals: what was blocked before, for QEMU.
 */
struct run {
	const char *image;
	struct attach_options attach;
	struct server_options server;
	struct qemu_disk disk;
	char *device;
	struct dm_device found;
	int hold;
	pid_t server_pid;
	bool bound;
	pid_t qemu_pid;
	sigset_t signals;
	sigset_t old_signals;
};

static void tell_ready(const struct server_info *info, void *ctx)
{
	int *fd = ctx;

	write_all(*fd, info, sizeof(*info));
	close(*fd);
}

/* The process of the server: out of the terminal's reach, and never outliving us. */
static void __attribute__((noreturn)) server_process(struct run *r, int ready_fd)
{
	setpgid(0, 0);
	close(r->hold);
	exit(server_run(&r->server, tell_ready, &ready_fd) ? report(r->device) : EXIT_OK);
}

/* Wait until the server has said something, or has ended, or we are told to end. */
static int wait_ready(struct run *r, int fd)
{
	struct pollfd p[2] = { { .fd = fd, .events = POLLIN }, { .events = POLLIN } };
	sigset_t set = r->signals;
	int ret;

	sigdelset(&set, SIGCHLD);
	p[1].fd = signalfd(-1, &set, SFD_CLOEXEC);
	if (p[1].fd < 0)
		return cause_errno("cannot create a signalfd");
	do {
		ret = poll(p, ARRAY_SIZE(p), -1);
	} while (ret < 0 && errno == EINTR);
	close(p[1].fd);
	return p[1].revents ? cause("told to end before the disk could be served") : 0;
}

static int start_server(struct run *r)
{
	struct server_info info;
	struct spawned child;
	int ret;

	r->server.device = r->device;
	if (spawn(&child, "server", SIGTERM))
		return -1;
	if (!child.pid)
		server_process(r, child.fd);
	r->server_pid = child.pid;
	ret = wait_ready(r, child.fd);
	if (!ret && read_all(child.fd, &info, sizeof(info)))
		ret = cause("the disk cannot be served");
	close(child.fd);
	r->bound = !ret;
	/* The server may have got fewer queues than were asked for. */
	if (!ret)
		r->disk.queues = info.queues;
	return ret;
}

static void __attribute__((noreturn)) qemu_process(struct run *r, char **argv, int error_fd)
{
	int err;

	sigprocmask(SIG_SETMASK, &r->old_signals, NULL);
	execvp(argv[0], argv);
	err = errno;
	write_all(error_fd, &err, sizeof(err));
	_exit(EXIT_RUN_NOEXEC);
}

static int start_qemu(struct run *r, char **argv)
{
	struct spawned child;
	int err, ret;

	if (spawn(&child, "process for QEMU", SIGTERM))
		return -1;
	if (!child.pid)
		qemu_process(r, argv, child.fd);
	r->qemu_pid = child.pid;
	/* Nothing to read: the program was started, which closed the pipe. */
	ret = read_all(child.fd, &err, sizeof(err));
	close(child.fd);
	if (ret)
		return 0;
	waitpid(r->qemu_pid, NULL, 0);
	r->qemu_pid = 0;
	cause("%s cannot be started: %s", argv[0], strerror(err));
	return cause_code(err == ENOENT ? EXIT_RUN_NOTFOUND : EXIT_RUN_NOEXEC);
}

static int exit_code_of(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void server_ended(struct run *r)
{
	if (!r->server_pid || waitpid(r->server_pid, NULL, WNOHANG) != r->server_pid)
		return;
	r->server_pid = 0;
	note("%s: the server of the disk is gone; the guest's requests will not be answered",
	     r->device);
}

/* Wait for QEMU, passing on its signals. */
static int wait_for_qemu(struct run *r)
{
	struct timespec grace = { .tv_sec = QEMU_GRACE_MS / 1000 };
	bool ending = false;
	siginfo_t info;
	int status;

	for (;;) {
		int sig;

		if (waitpid(r->qemu_pid, &status, WNOHANG) == r->qemu_pid)
			break;
		server_ended(r);
		sig = ending ? sigtimedwait(&r->signals, &info, &grace)
			     : sigwaitinfo(&r->signals, &info);
		if (sig < 0 && errno == EAGAIN) {
			note("QEMU does not end; it is killed");
			kill(r->qemu_pid, SIGKILL);
			continue;
		}
		if (sig <= 0 || sig == SIGCHLD)
			continue;
		/* The terminal sends its signals to QEMU, too. */
		if (info.si_code != SI_KERNEL)
			kill(r->qemu_pid, sig);
		ending = ending || sig == SIGTERM;
	}
	r->qemu_pid = 0;
	return exit_code_of(status);
}

/* Wait for the server's end, but no longer than @ms. */
static bool server_ends(struct run *r, unsigned int ms)
{
	uint64_t until = now_ms() + ms;

	while (!waitpid(r->server_pid, NULL, WNOHANG)) {
		if (now_ms() >= until)
			return false;
		sleep_ms(20);
	}
	return true;
}

static void stop_server(struct run *r)
{
	if (!r->server_pid)
		return;
	kill(r->server_pid, SIGTERM);
	/* Whatever delays the server: the user must not have to kill us, too. */
	if (!server_ends(r, SERVER_END_MS)) {
		kill(r->server_pid, SIGKILL);
		server_ends(r, SERVER_KILL_MS);
	}
	r->server_pid = 0;
}

static void let_go(struct run *r)
{
	if (r->hold >= 0)
		close(r->hold);
	r->hold = -1;
}

/*
 * The device goes by itself when its last user does; wait for that. Its name, or its image, may be
 * another device's by then.
 */
static int detach_device(struct run *r)
{
	uint64_t until = now_ms() + DETACH_WAIT_MS;

	if (!r->device)
		return 0;
	while (dmdev_is_there(&r->found) && now_ms() < until)
		sleep_ms(50);
	return dmdev_remove(&r->found, false) ? report(r->device) : 0;
}

static int attach(struct run *r)
{
	r->device = attach_image(r->image, &r->attach, &r->hold);
	if (!r->device)
		return -1;
	if (!dmdev_find(r->device, &r->found))
		return 0;
	/* Another process has removed it already. */
	free(r->device);
	r->device = NULL;
	return -1;
}

/* A socket of our own, which no other run shares. */
static char *choose_socket(void)
{
	if (mkdir("/run/qcow2attach", 0755) && errno != EEXIST) {
		cause_errno("cannot make /run/qcow2attach");
		return NULL;
	}
	return xasprintf("/run/qcow2attach/run-%d.sock", (int)getpid());
}

static int begin(struct run *r, char **argv)
{
	struct strv args = { 0 };
	int ret;

	/* A command that cannot be run is refused before anything is attached. */
	ret = qemu_args_build(argv, &r->disk, &args);
	strv_free(&args);
	if (!ret)
		ret = attach(r);
	if (!ret)
		ret = start_server(r);
	if (!ret && !dmdev_is_there(&r->found))
		ret = cause("the device was removed by somebody else");
	let_go(r);
	/* QEMU inherits the caller's descriptors, and none of ours. */
	dmdev_let_go();
	r->disk.name = r->device;
	if (!ret)
		ret = qemu_args_build(argv, &r->disk, &args);
	if (!ret)
		ret = start_qemu(r, args.v);
	strv_free(&args);
	return ret;
}

/* How many queues suit the guest, and are available. */
static unsigned int choose_queues(char **argv)
{
	unsigned int most = DEFAULT_MAX_QUEUES, kernel;
	char text[32];

	if (!read_small_file("/sys/module/vhost_blk/parameters/max_queues", text, sizeof(text)) &&
	    !parse_uint(text, "max_queues", 1, most, &kernel))
		most = kernel;
	return qemu_args_queues(argv, most);
}

static int run(struct run *r, char **argv)
{
	bool own_socket = !r->server.socket;
	char *socket = own_socket ? choose_socket() : xstrdup(r->server.socket);
	int code;

	if (!socket) {
		report(r->image);
		return EXIT_RUN_FAILED;
	}
	r->server.socket = socket;
	r->server.read_only = r->attach.read_only;
	if (!r->server.queues)
		r->server.queues = choose_queues(argv);
	r->disk.socket = socket;
	r->disk.queues = r->server.queues;
	sigemptyset(&r->signals);
	sigaddset(&r->signals, SIGTERM);
	sigaddset(&r->signals, SIGINT);
	sigaddset(&r->signals, SIGHUP);
	sigaddset(&r->signals, SIGQUIT);
	sigaddset(&r->signals, SIGCHLD);
	sigprocmask(SIG_BLOCK, &r->signals, &r->old_signals);
	if (begin(r, argv)) {
		code = cause_exit() >= EXIT_RUN_NOEXEC ? cause_exit() : EXIT_RUN_FAILED;
		report(r->image);
	} else {
		code = wait_for_qemu(r);
	}
	stop_server(r);
	/* A killed server has left its socket, and nobody replaces a name that is ours alone. */
	if (own_socket && r->bound)
		unlink(socket);
	if (detach_device(r) && !code)
		code = EXIT_RUN_FAILED;
	dmdev_release(&r->found);
	free(r->device);
	free(socket);
	return code;
}

/* The arguments of QEMU: those after `--`, which are taken off the others. */
static char **split_command(int *argc, char **argv)
{
	for (int i = 1; i < *argc; i++) {
		if (!strcmp(argv[i], "--")) {
			*argc = i;
			argv[i] = NULL;
			return argv + i + 1;
		}
	}
	return NULL;
}

static int run_main(int argc, char **argv)
{
	static const struct option options[] = {
		ATTACH_LONG_OPTIONS,
		SERVE_LONG_OPTIONS,
		{ "bootindex", required_argument, NULL, OPT_BOOTINDEX },
		{ "device-properties", required_argument, NULL, OPT_DEVICE_PROPERTIES },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct run r = { .disk.bootindex = -1, .hold = -1 };
	char **command = split_command(&argc, argv);
	int opt, ret, code = EXIT_OK;
	unsigned int bootindex;

	while ((opt = next_option(&verb_run, argc, argv, options, &code)) >= 0) {
		ret = 0;
		if (opt == OPT_BOOTINDEX) {
			ret = parse_uint(optarg, "the boot index", 0, INT32_MAX, &bootindex);
			r.disk.bootindex = bootindex;
		} else if (opt == OPT_DEVICE_PROPERTIES) {
			r.disk.properties = optarg;
		} else if (opt < SERVE_OPTIONS) {
			ret = attach_option(&r.attach, opt, optarg);
		} else {
			ret = serve_option(&r.server, opt, optarg);
		}
		if (ret)
			return usage_error("%s", cause_text());
	}
	if (opt == -2)
		return code;
	if (argc - optind != 1)
		return usage_error("%s", argc == optind ? "IMAGE is missing" :
				   "one image, and the QEMU command after --");
	if (!command || !command[0])
		return usage_error("the QEMU command is missing: qcow2attach run IMAGE -- "
				   "qemu-system-x86_64 ...");
	r.image = argv[optind];
	code = run(&r, command);
	attach_options_free(&r.attach);
	return code;
}

const struct verb verb_run = {
	.name = "run",
	.summary = "run QEMU with an image as its disk, and clean up afterwards",
	.help = "Usage: qcow2attach run IMAGE [OPTION]... -- QEMU [QEMU-ARGUMENT]...\n\n"
		"Attach IMAGE, serve it, and run the QEMU command with it as a virtio disk. The\n"
		"memory that this takes is set up unless the command does. When QEMU ends, or\n"
		"this command is told to end, the disk is written back and detached. The exit\n"
		"code is QEMU's.\n\n"
		"      --bootindex N          place of the disk in the boot order (default: the\n"
		"                             first, unless the command says what to boot from)\n"
		"      --device-properties P  more properties of the device, e.g. bus=pci.1\n"
		ATTACH_HELP SERVE_HELP,
	.run = run_main,
};
