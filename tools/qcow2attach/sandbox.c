// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * sandbox.c - owns the system-call filters and the change of identity of the
 * two processes that face untrusted bytes: the header reader and the server.
 *
 * The filters are written out as classic BPF: they are short, and the tool then
 * needs no library for them.
 */
#include "sandbox.h"

#include <errno.h>
#include <grp.h>
#include <linux/close_range.h>
#include <linux/fs.h>
#include <pwd.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "filter-arch.h"
#include "util.h"
#include "vhost-dev.h"

/* The user and group nobody: they own nothing, on every distribution. */
#define NOBODY 65534

/* What must be true of one argument of a call. */
enum arg_rule {
	ARG_ANY,	/* nothing */
	ARG_IS,		/* it is the value */
	ARG_LACKS,	/* it has no bit of the value */
};

/**
 * struct allowed_call - one system call that a filter lets through.
 * @nr: its number; a call may be listed several times.
 * @rule: what must be true of one argument.
 * @arg: the argument's place, from 0.
 * @value: what the rule compares with; arguments are compared as the 32-bit numbers that the kernel
 *	takes them for.
 */
struct allowed_call {
	int nr;
	enum arg_rule rule;
	unsigned int arg;
	uint32_t value;
};

#define CALL(name) { SYS_##name, ARG_ANY, 0, 0 }
#define CALL_OF_FD(name, fd) { SYS_##name, ARG_IS, 0, (uint32_t)(fd) }
#define CALL_NOT_EXEC(name) { SYS_##name, ARG_LACKS, 2, PROT_EXEC }
#define IOCTL(request) { SYS_ioctl, ARG_IS, 1, (uint32_t)(request) }

/* A call takes at most five instructions; four more open the filter, one ends it. */
#define MAX_CALLS 96
#define MAX_FILTER (5 * MAX_CALLS + 5)

static int install_filter(const struct allowed_call *calls, size_t n, uint32_t otherwise)
{
	struct sock_filter code[MAX_FILTER];
	struct sock_fprog prog = { .filter = code };
	size_t at = 0;

	if (n > MAX_CALLS)
		return cause("too many system calls for a filter: %zu", n);
#define EMIT(...) (code[at++] = (struct sock_filter)__VA_ARGS__)
	EMIT(LOAD(arch));
	EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, FILTER_ARCH, 1, 0));
	EMIT(RETURN(SECCOMP_RET_KILL_PROCESS));
	EMIT(LOAD(nr));
	for (size_t i = 0; i < n; i++) {
		const struct allowed_call *c = &calls[i];

		if (c->rule == ARG_ANY) {
			EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)c->nr, 0, 1));
			EMIT(RETURN(SECCOMP_RET_ALLOW));
			continue;
		}
		EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)c->nr, 0, 4));
		EMIT(LOAD(args[c->arg]));
		code[at - 1].k += ARG_LOW;
		if (c->rule == ARG_IS)
			EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, c->value, 0, 1));
		else
			EMIT(BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, c->value, 1, 0));
		EMIT(RETURN(SECCOMP_RET_ALLOW));
		/* The argument has taken the place of the number, which the next rule looks at. */
		EMIT(LOAD(nr));
	}
	EMIT(RETURN(otherwise));
#undef EMIT
	prog.len = at;
	if (!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog, 0, 0))
		return 0;
	if (errno == EINVAL)
		return cause("this kernel has no system-call filters (CONFIG_SECCOMP_FILTER)");
	return cause_errno("cannot set a system-call filter");
}

int sandbox_find_user(const char *name, struct sandbox_user *user)
{
	const struct passwd *pw;

	memset(user, 0, sizeof(*user));
	if (geteuid()) {
		if (name)
			return cause("only root can run it as another user");
		return 0;
	}
	pw = getpwnam(name ? name : SANDBOX_USER);
	if (!pw && name)
		return cause("there is no user '%s'", name);
	if (pw && (!pw->pw_uid || !pw->pw_gid))
		return cause("the user '%s' has root's privileges", pw->pw_name);
	user->shared = !pw;
	user->uid = pw ? pw->pw_uid : NOBODY;
	user->gid = pw ? pw->pw_gid : NOBODY;
	return 0;
}

static int take_identity(const struct sandbox_user *user)
{
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return cause_errno("PR_SET_NO_NEW_PRIVS");
	if (geteuid())
		return 0;
	if (setgroups(0, NULL) < 0 || setresgid(user->gid, user->gid, user->gid) < 0 ||
	    setresuid(user->uid, user->uid, user->uid) < 0)
		return cause_errno("cannot become user %u", (unsigned int)user->uid);
	return 0;
}

static int limit(int what, rlim_t value)
{
	struct rlimit r = { .rlim_cur = value, .rlim_max = value };

	return setrlimit(what, &r);
}

int sandbox_header_reader(const struct sandbox_user *user, int image_fd, int answer_fd)
{
	int low = image_fd < answer_fd ? image_fd : answer_fd;
	int high = image_fd < answer_fd ? answer_fd : image_fd;
	const struct allowed_call calls[] = {
		CALL(exit_group), CALL_OF_FD(pread64, image_fd), CALL_OF_FD(write, answer_fd),
	};

	close(STDIN_FILENO);
	close(STDOUT_FILENO);
	if ((low > STDERR_FILENO + 1 &&
	     syscall(SYS_close_range, STDERR_FILENO + 1, low - 1, 0) < 0) ||
	    (high > low + 1 && syscall(SYS_close_range, low + 1, high - 1, 0) < 0) ||
	    syscall(SYS_close_range, high + 1, ~0u, 0) < 0)
		return cause_errno("cannot close inherited descriptors");
	if (limit(RLIMIT_CORE, 0) < 0 || limit(RLIMIT_CPU, 10) < 0)
		return cause_errno("cannot set resource limits");
	if (take_identity(user))
		return -1;
	return install_filter(calls, ARRAY_SIZE(calls), SECCOMP_RET_KILL_PROCESS);
}

int sandbox_server(const struct sandbox_user *user)
{
	static const struct allowed_call calls[] = {
		/* the connection */
		CALL(accept4), CALL(recvmsg), CALL(recvfrom), CALL(sendmsg), CALL(sendto),
		CALL(shutdown), CALL(getsockopt), CALL(ppoll),
		/* the guest's memory: data, never code */
		CALL_NOT_EXEC(mmap), CALL(munmap), CALL(fstatfs), CALL(fstat), CALL(newfstatat),
		CALL(close),
		/* the vhost device: all that vhost-dev.c and vu-*.c ask of it from here on */
		IOCTL(VHOST_SET_OWNER), IOCTL(VHOST_SET_FEATURES), IOCTL(VHOST_SET_MEM_TABLE),
		IOCTL(VHOST_SET_LOG_BASE), IOCTL(VHOST_SET_LOG_FD), IOCTL(VHOST_NEW_WORKER),
		IOCTL(VHOST_ATTACH_VRING_WORKER), IOCTL(VHOST_SET_VRING_NUM),
		IOCTL(VHOST_SET_VRING_BASE), IOCTL(VHOST_GET_VRING_BASE),
		IOCTL(VHOST_SET_VRING_ADDR), IOCTL(VHOST_SET_VRING_KICK),
		IOCTL(VHOST_SET_VRING_CALL), IOCTL(VHOST_SET_VRING_ERR),
		IOCTL(VHOST_SET_VRING_BUSYLOOP_TIMEOUT), IOCTL(VHOST_BLK_SET_BACKEND),
		IOCTL(VHOST_BLK_SET_SERIAL), IOCTL(VHOST_BLK_SET_RING),
		IOCTL(VHOST_BLK_SET_WRITEBACK), IOCTL(VHOST_BLK_SET_QUEUES),
		/* the disk's size */
		IOCTL(BLKGETSIZE64),
		/* what the C library does by itself */
		CALL(read), CALL(write), CALL(writev), CALL(brk), CALL(mremap), CALL(madvise),
		CALL_NOT_EXEC(mprotect), CALL(futex), CALL(rt_sigreturn), CALL(rt_sigprocmask),
		CALL(rt_sigaction), CALL(restart_syscall), CALL(clock_gettime), CALL(getrandom),
		CALL(getpid), CALL(getppid), CALL(exit), CALL(exit_group),
#ifdef SYS_poll
		CALL(poll),
#endif
	};

	/* After the change of identity, which would undo it. */
	if (take_identity(user))
		return -1;
	if (prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0) < 0)
		return cause_errno("PR_SET_PDEATHSIG");
	/* A call outside the list is a bug of ours, not a reason to lose a guest's disk. */
	return install_filter(calls, ARRAY_SIZE(calls), SECCOMP_RET_ERRNO | EPERM);
}
