// SPDX-License-Identifier: GPL-2.0-or-later
/* libs: pthread */
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
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

static FILE *report;

static void tell(const char *name, long ret)
{
	fprintf(report, "%s %d\n", name, ret < 0 ? errno : 0);
	fflush(report);
}

#define TRY(name, ...) tell(name, syscall(__VA_ARGS__))

static void try_terminal(void)
{
	char c = '\n';
	int fd = open("/dev/tty", O_RDWR);

	tell("tty", fd);
	if (fd >= 0)
		tell("push", ioctl(fd, TIOCSTI, &c));
}

static void *thread(void *arg)
{
	return arg;
}

/* What its own work may need. */
static void try_own_calls(void)
{
	pid_t pid = getpid();
	struct rlimit r;
	pthread_t t;

	errno = pthread_create(&t, NULL, thread, NULL);
	tell("own thread", errno ? -1 : pthread_join(t, NULL));
	TRY("own kill", SYS_kill, pid, 0);
	TRY("own tgkill", SYS_tgkill, pid, gettid(), 0);
	TRY("own prlimit64", SYS_prlimit64, pid, RLIMIT_NOFILE, NULL, &r);
	TRY("own getrlimit", SYS_prlimit64, 0, RLIMIT_NOFILE, NULL, &r);
	TRY("own F_SETFL", SYS_fcntl, 1, F_SETFL, O_NONBLOCK);
}

/* What reaches other processes, makes more of them, or changes what it sees. */
static void try_calls(void)
{
	pid_t other = getppid(), all = -1, group = 0;
	struct rlimit r;
	siginfo_t info = { .si_code = SI_QUEUE };
	int pipe_fd[2];

	TRY("kill", SYS_kill, other, 0);
	TRY("kill all", SYS_kill, all, 0);
	TRY("kill group", SYS_kill, group, 0);
	TRY("tgkill", SYS_tgkill, other, other, 0);
	TRY("tkill", SYS_tkill, other, 0);
	TRY("rt_sigqueueinfo", SYS_rt_sigqueueinfo, other, 0, &info);
	TRY("rt_tgsigqueueinfo", SYS_rt_tgsigqueueinfo, other, other, 0, &info);
	TRY("pidfd_open", SYS_pidfd_open, other, 0);
	TRY("pidfd_send_signal", SYS_pidfd_send_signal, 3, 0, NULL, 0);
	TRY("pidfd_getfd", SYS_pidfd_getfd, 3, 0, 0);
	TRY("prlimit64", SYS_prlimit64, other, RLIMIT_NOFILE, NULL, &r);
	TRY("setpriority", SYS_setpriority, PRIO_USER, 0, 19);
	tell("pipe", pipe(pipe_fd));
	TRY("F_SETOWN", SYS_fcntl, pipe_fd[0], F_SETOWN, other);
	TRY("F_SETOWN_EX", SYS_fcntl, pipe_fd[0], F_SETOWN_EX, &r);
	TRY("F_SETSIG", SYS_fcntl, pipe_fd[0], F_SETSIG, SIGKILL);
	TRY("PR_SET_PDEATHSIG", SYS_prctl, PR_SET_PDEATHSIG, 0, 0, 0, 0);
	TRY("TIOCSTI", SYS_ioctl, 0, TIOCSTI, "x");
#ifdef SYS_fork
	/* A child that there should not be shows by its second line. */
	TRY("fork", SYS_fork);
	TRY("vfork", SYS_vfork);
#endif
	TRY("clone", SYS_clone, SIGCHLD, 0, 0, 0, 0);
	TRY("clone newuser", SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
	TRY("clone thread newuser", SYS_clone, CLONE_VM | CLONE_SIGHAND | CLONE_THREAD |
	    CLONE_NEWUSER, 0, 0, 0, 0);
	TRY("clone3", SYS_clone3, NULL, 0);
	TRY("unshare", SYS_unshare, CLONE_NEWUSER);
	TRY("fsopen", SYS_fsopen, "tmpfs", 0);
	TRY("fsmount", SYS_fsmount, 3, 0, 0);
	TRY("move_mount", SYS_move_mount, 3, "", 3, "", 0);
	TRY("open_tree", SYS_open_tree, AT_FDCWD, "/", 0);
	TRY("mount_setattr", SYS_mount_setattr, AT_FDCWD, "/", 0, NULL, 0);
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
	} else if (!strcmp(what, "calls")) {
		try_own_calls();
		try_calls();
#ifdef __x86_64__
	} else if (!strcmp(what, "x32")) {
		TRY("x32", 0x40000000 + SYS_getpid);
#endif
	} else if (!strcmp(what, "sleep")) {
		pause();
	} else if (!strcmp(what, "silent")) {
		close(STDOUT_FILENO);
		close(STDERR_FILENO);
		pause();
	} else {
		return 1;
	}
	return 0;
}
