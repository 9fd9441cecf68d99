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
#include <linux/audit.h>
#include <linux/close_range.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pwd.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util.h"

#if defined(__x86_64__)
#define FILTER_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define FILTER_ARCH AUDIT_ARCH_AARCH64
#elif defined(__riscv) && __riscv_xlen == 64
#define FILTER_ARCH AUDIT_ARCH_RISCV64
#elif defined(__s390x__)
#define FILTER_ARCH AUDIT_ARCH_S390X
#elif defined(__powerpc64__) && defined(__LITTLE_ENDIAN__)
#define FILTER_ARCH AUDIT_ARCH_PPC64LE
#else
#error "tell sandbox.c the seccomp name of this architecture"
#endif

/* The user and group nobody: they own nothing, on every distribution. */
#define NOBODY 65534

/**
 * struct allowed_call - one system call that a filter lets through.
 * @nr: its number.
 * @first: the value its first argument must have, or -1 for any.
 */
struct allowed_call {
	int nr;
	int first;
};

/* A call takes at most five instructions; four more open the filter, one ends it. */
#define MAX_CALLS 64
#define MAX_FILTER (5 * MAX_CALLS + 5)

/* The low half of an argument, wherever this byte order keeps it. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define ARG_LOW 0
#else
#define ARG_LOW 4
#endif

static int install_filter(const struct allowed_call *calls, size_t n, uint32_t otherwise)
{
	struct sock_filter code[MAX_FILTER];
	struct sock_fprog prog = { .filter = code };
	size_t at = 0;

	if (n > MAX_CALLS)
		return cause("%zu system calls are more than a filter takes", n);
#define EMIT(...) (code[at++] = (struct sock_filter)__VA_ARGS__)
	EMIT(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)));
	EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, FILTER_ARCH, 1, 0));
	EMIT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
	EMIT(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)));
	for (size_t i = 0; i < n; i++) {
		if (calls[i].first < 0) {
			EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)calls[i].nr, 0, 1));
			EMIT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
			continue;
		}
		/* Loading the argument loses the call's number, so a mismatch ends the filter. */
		EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)calls[i].nr, 0, 4));
		EMIT(BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
			      offsetof(struct seccomp_data, args[0]) + ARG_LOW));
		EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)calls[i].first, 0, 1));
		EMIT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
		EMIT(BPF_STMT(BPF_RET | BPF_K, otherwise));
	}
	EMIT(BPF_STMT(BPF_RET | BPF_K, otherwise));
#undef EMIT
	prog.len = at;
	if (!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog, 0, 0))
		return 0;
	if (errno == EINVAL)
		return cause("this kernel has no system-call filters (CONFIG_SECCOMP_FILTER)");
	return cause_errno("no system-call filter");
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
		return cause("the user '%s' has privileges of root's", pw->pw_name);
	user->shared = !pw;
	user->uid = pw ? pw->pw_uid : NOBODY;
	user->gid = pw ? pw->pw_gid : NOBODY;
	return 0;
}

static int become(const struct sandbox_user *user)
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
		{ SYS_exit_group, -1 },
		{ SYS_pread64, image_fd },
		{ SYS_write, answer_fd },
	};

	close(STDIN_FILENO);
	close(STDOUT_FILENO);
	if ((low > STDERR_FILENO + 1 &&
	     syscall(SYS_close_range, STDERR_FILENO + 1, low - 1, 0) < 0) ||
	    (high > low + 1 && syscall(SYS_close_range, low + 1, high - 1, 0) < 0) ||
	    syscall(SYS_close_range, high + 1, ~0u, 0) < 0)
		return cause_errno("cannot close what it must not have");
	if (limit(RLIMIT_CORE, 0) < 0 || limit(RLIMIT_CPU, 10) < 0)
		return cause_errno("cannot limit itself");
	if (become(user))
		return -1;
	return install_filter(calls, ARRAY_SIZE(calls), SECCOMP_RET_KILL_PROCESS);
}

int sandbox_server(const struct sandbox_user *user)
{
	static const struct allowed_call calls[] = {
		/* the connection */
		{ SYS_accept4, -1 }, { SYS_recvmsg, -1 }, { SYS_recvfrom, -1 },
		{ SYS_sendmsg, -1 }, { SYS_sendto, -1 }, { SYS_shutdown, -1 },
		{ SYS_getsockopt, -1 }, { SYS_ppoll, -1 },
		/* the guest's memory and the vhost device */
		{ SYS_ioctl, -1 }, { SYS_mmap, -1 }, { SYS_munmap, -1 }, { SYS_fstatfs, -1 },
		{ SYS_fstat, -1 }, { SYS_newfstatat, -1 }, { SYS_fcntl, -1 }, { SYS_close, -1 },
		/* what the C library does by itself */
		{ SYS_read, -1 }, { SYS_write, -1 }, { SYS_writev, -1 }, { SYS_brk, -1 },
		{ SYS_mremap, -1 }, { SYS_madvise, -1 }, { SYS_mprotect, -1 }, { SYS_futex, -1 },
		{ SYS_rt_sigreturn, -1 }, { SYS_rt_sigprocmask, -1 }, { SYS_rt_sigaction, -1 },
		{ SYS_restart_syscall, -1 }, { SYS_clock_gettime, -1 }, { SYS_getrandom, -1 },
		{ SYS_getpid, -1 }, { SYS_getppid, -1 }, { SYS_exit, -1 }, { SYS_exit_group, -1 },
#ifdef SYS_poll
		{ SYS_poll, -1 },
#endif
	};

	/* After the change of identity, which would undo it. */
	if (become(user))
		return -1;
	if (prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0) < 0)
		return cause_errno("PR_SET_PDEATHSIG");
	/* A call outside the list is a fault of ours, not a reason to lose a guest's disk. */
	return install_filter(calls, ARRAY_SIZE(calls), SECCOMP_RET_ERRNO | EPERM);
}
