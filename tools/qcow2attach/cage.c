// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cage.c - owns the limits and rights of a program that works on an untrusted image.
 *
 * The program becomes a user that may open no other user's files. A system-call filter makes each
 * open() of the program a question to us: for the image we open the very file that was judged, and
 * put the descriptor into the program; for anything else (libraries) the program goes on with its
 * own rights. The name that it asks for is read once and only ever leads to that one file, so the
 * program may change the name meanwhile.
 */
#include "cage.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/close_range.h>
#include <linux/fs.h>
#include <linux/sockios.h>
#include <poll.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "filter-arch.h"
#include "util.h"

/* The user that the program becomes, or nobody where that user is missing. */
#define CAGE_USER "qcow2attach"
#define NOBODY 65534

/* Its descriptors besides the standard ones: the image, and a socket to report its start. */
#define IMAGE_FD 3
#define BIRTH_FD 4

/* Memory: its own, and the refcounts that it counts, which grow with the image. */
#define MEMORY_BASE (2ull << 30)

/* Processor time: the largest images that are sound take minutes. */
#define CPU_SECONDS 7200

/* A repair writes new refcounts after the rest, about a thousandth of the image. */
#define GROWTH_BASE (64ull << 20)

/* How often the program is checked, and how long it may run after it has closed its output. */
#define LOOK_MS 1000
#define END_MS 5000

/*
 * A day, and a second for so many bytes: a hundred times what slow storage takes for the tables of
 * such an image, so this ends only a program that pretends to work.
 */
#define DAY 86400
#define BYTES_PER_SECOND (16ull << 20)

/* The argument of clone() that holds its flags. */
#ifdef __s390x__
#define CLONE_FLAGS_ARG 1
#else
#define CLONE_FLAGS_ARG 0
#endif

#define CLONE_NEW_ANY (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | \
		       CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET)

/* x86: this bit marks a system call of x32; the number is the same otherwise. */
#define X32_BIT 0x40000000

/* When a rule holds. */
enum when {
	ALWAYS,
	ARG_IS,		/* the argument is the value */
	ARG_HAS,	/* it has some bit of the value */
	ARG_LACKS,	/* it has no bit of the value */
};

/**
 * struct rule - what becomes of a system call.
 * @nr: its number; of several rules with the same number the first that holds decides.
 * @answer: seccomp's return value.
 * @when: what must be true of one argument.
 * @arg: the argument's place, from 0.
 * @value: what @when is about; only the low 32 bits of an argument are compared, as the kernel does
 *         with all of these.
 */
struct rule {
	int nr;
	uint32_t answer;
	enum when when;
	unsigned int arg;
	uint32_t value;
};

#define REFUSE (SECCOMP_RET_ERRNO | EPERM)
#define REFUSED(name) { SYS_##name, REFUSE, ALWAYS, 0, 0 }
#define REFUSED_IF(name, when, arg, value) { SYS_##name, REFUSE, when, arg, value }
#define ALLOWED_IF(name, when, arg, value) { SYS_##name, SECCOMP_RET_ALLOW, when, arg, value }

/* A rule takes at most five instructions; six more open the filter, one ends it. */
#define MAX_FILTER(rules) (5 * ARRAY_SIZE(rules) + 7)

static int limit(int what, uint64_t value)
{
	struct rlimit r;

	if (getrlimit(what, &r))
		return -1;
	if (r.rlim_max != RLIM_INFINITY && r.rlim_max < value)
		value = r.rlim_max;
	r.rlim_cur = value;
	r.rlim_max = value;
	return setrlimit(what, &r);
}

static int set_limits(const struct stat *st)
{
	uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE) / 2;
	uint64_t size = st->st_size + st->st_size / 4 + GROWTH_BASE;

	/* A write that would grow the file too far fails; the program need not die of it. */
	signal(SIGXFSZ, SIG_IGN);
	if (limit(RLIMIT_CORE, 0) || limit(RLIMIT_CPU, CPU_SECONDS) ||
	    limit(RLIMIT_AS, MEMORY_BASE + memory) ||
	    (S_ISREG(st->st_mode) && limit(RLIMIT_FSIZE, size)))
		return cause_errno("cannot set resource limits");
	return 0;
}

static int lose_rights(void)
{
	const struct passwd *pw = getpwnam(CAGE_USER);
	uid_t uid = pw && pw->pw_uid ? pw->pw_uid : NOBODY;
	gid_t gid = pw && pw->pw_uid ? pw->pw_gid : NOBODY;

	if (setgroups(0, NULL) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid) ||
	    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return cause_errno("cannot become user %u", uid);
	return 0;
}

static size_t compile(struct sock_filter *code, const struct rule *rules, size_t n)
{
	size_t at = 0;

#define EMIT(...) (code[at++] = (struct sock_filter)__VA_ARGS__)
	EMIT(LOAD(arch));
	EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, FILTER_ARCH, 1, 0));
	EMIT(RETURN(SECCOMP_RET_KILL_PROCESS));
	EMIT(LOAD(nr));
#ifdef __x86_64__
	EMIT(BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, X32_BIT, 0, 1));
	EMIT(RETURN(SECCOMP_RET_KILL_PROCESS));
#endif
	for (const struct rule *r = rules; r < rules + n; r++) {
		EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, r->nr, 0, r->when == ALWAYS ? 1 : 4));
		if (r->when == ALWAYS) {
			EMIT(RETURN(r->answer));
			continue;
		}
		EMIT(LOAD(args[r->arg]));
		code[at - 1].k += ARG_LOW;
		if (r->when == ARG_IS)
			EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, r->value, 0, 1));
		else if (r->when == ARG_HAS)
			EMIT(BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, r->value, 0, 1));
		else
			EMIT(BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, r->value, 1, 0));
		EMIT(RETURN(r->answer));
		/* The argument has taken the place of the number, which the next rule looks at. */
		EMIT(LOAD(nr));
	}
	EMIT(RETURN(SECCOMP_RET_ALLOW));
#undef EMIT
	return at;
}

/*
 * Refuse the system calls that no check of an image needs, to this program and to any that it
 * executes. Returns the listener for the questions, or -1 with a cause.
 */
static int install_filter(void)
{
	const uint32_t self = getpid();
	const struct rule rules[] = {
		{ SYS_openat, SECCOMP_RET_USER_NOTIF, ALWAYS, 0, 0 },
		REFUSED(socket), REFUSED(socketpair), REFUSED(connect),
#ifdef SYS_socketcall
		REFUSED(socketcall),
#endif
		/* Other processes, above all those of the same user: servers are. */
		ALLOWED_IF(kill, ARG_IS, 0, self), REFUSED(kill),
		ALLOWED_IF(tgkill, ARG_IS, 0, self), REFUSED(tgkill),
		ALLOWED_IF(prlimit64, ARG_IS, 0, 0), ALLOWED_IF(prlimit64, ARG_IS, 0, self),
		REFUSED(prlimit64),
		REFUSED(tkill), REFUSED(rt_sigqueueinfo), REFUSED(rt_tgsigqueueinfo),
		REFUSED(pidfd_open), REFUSED(pidfd_getfd), REFUSED(pidfd_send_signal),
		REFUSED(ptrace), REFUSED(process_vm_readv), REFUSED(process_vm_writev),
		REFUSED(setpriority), REFUSED(ioprio_set), REFUSED(sched_setaffinity),
		REFUSED(sched_setattr), REFUSED(sched_setparam), REFUSED(sched_setscheduler),
		REFUSED(migrate_pages), REFUSED(move_pages),
		/* With these, a file that becomes ready sends any signal to any process. */
		REFUSED_IF(fcntl, ARG_IS, 1, F_SETOWN), REFUSED_IF(fcntl, ARG_IS, 1, F_SETOWN_EX),
		REFUSED_IF(fcntl, ARG_IS, 1, F_SETSIG),
		REFUSED_IF(ioctl, ARG_IS, 1, FIOSETOWN), REFUSED_IF(ioctl, ARG_IS, 1, SIOCSPGRP),
		/* Input put into a terminal is somebody's next command. */
		REFUSED_IF(ioctl, ARG_IS, 1, TIOCSTI), REFUSED_IF(ioctl, ARG_IS, 1, TIOCLINUX),
		/* The program must end when we do. */
		REFUSED_IF(prctl, ARG_IS, 0, PR_SET_PDEATHSIG),
		/* Memory of no process: no limit counts it, and no process's end frees it. */
		REFUSED(memfd_create), REFUSED(shmget), REFUSED(msgget), REFUSED(semget),
		REFUSED(mq_open),
#ifdef SYS_ipc
		REFUSED(ipc),
#endif
		/* Each process has its own limits, so more take more. Threads are allowed. */
#ifdef SYS_fork
		REFUSED(fork), REFUSED(vfork),
#endif
		REFUSED_IF(clone, ARG_HAS, CLONE_FLAGS_ARG, CLONE_NEW_ANY),
		REFUSED_IF(clone, ARG_LACKS, CLONE_FLAGS_ARG, CLONE_THREAD),
		/* Its flags are in memory. Without clone3() the C library calls clone(). */
		{ SYS_clone3, SECCOMP_RET_ERRNO | ENOSYS, ALWAYS, 0, 0 },
		REFUSED(unshare), REFUSED(setns), REFUSED(mount), REFUSED(umount2),
		REFUSED(pivot_root), REFUSED(fsopen), REFUSED(fsconfig), REFUSED(fsmount),
		REFUSED(fspick), REFUSED(move_mount), REFUSED(open_tree), REFUSED(mount_setattr),
#ifdef SYS_open_tree_attr
		REFUSED(open_tree_attr),
#endif
		REFUSED(io_uring_setup), REFUSED(bpf), REFUSED(perf_event_open), REFUSED(keyctl),
		REFUSED(add_key), REFUSED(request_key), REFUSED(userfaultfd),
	};
	struct sock_filter code[MAX_FILTER(rules)];
	struct sock_fprog prog = { .filter = code };
	int fd;

	prog.len = compile(code, rules, ARRAY_SIZE(rules));
	fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &prog);
	return fd < 0 ? cause_errno("cannot set a system-call filter with a listener") : fd;
}

/* Send a descriptor, or without one a text, to the process that has started us. */
static int tell(int sock, int fd, const char *text)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)text, .iov_len = strlen(text) + 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fd >= 0) {
		struct cmsghdr *c;

		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	}
	return sendmsg(sock, &msg, MSG_NOSIGNAL) < 0 ? -1 : 0;
}

/* Place descriptors where the program expects them, wherever they were. */
static int arrange_fds(int image, int out, int err, int birth)
{
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	int from[] = { null, out, err, image, birth };

	/* Out of each other's way first. */
	for (size_t i = 0; i < ARRAY_SIZE(from); i++) {
		from[i] = fcntl(from[i], F_DUPFD_CLOEXEC, BIRTH_FD + 1);
		if (from[i] < 0)
			return -1;
	}
	for (size_t i = 0; i < ARRAY_SIZE(from); i++) {
		if (dup2(from[i], i) < 0)
			return -1;
	}
	return syscall(SYS_close_range, BIRTH_FD + 1, ~0u, 0) ||
	       fcntl(BIRTH_FD, F_SETFD, FD_CLOEXEC) ? -1 : 0;
}

/*
 * Leave the terminal: it is root's, and input put into it is root's next command. The terminal's ^C
 * then ends the tool alone, so the program must not outlive the tool.
 */
static int leave_terminal(pid_t parent)
{
	if (setsid() < 0)
		return cause_errno("cannot leave the terminal");
	/* After the change of identity, which would undo it. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))
		return cause_errno("PR_SET_PDEATHSIG");
	/* The parent may have ended before that. */
	if (getppid() != parent)
		return cause("its parent has ended");
	return 0;
}

static void __attribute__((noreturn)) program(const struct cage *cage, char *const argv[],
					      const struct stat *st, pid_t parent, int out, int err,
					      int birth)
{
	bool root = !geteuid();
	char text[600];
	int asks = -1, ret, failed;

	if (arrange_fds(cage->image, out, err, birth))
		_exit(EXIT_FAILED);
	/* Threads must not take memory in advance: it is limited. */
	setenv("MALLOC_ARENA_MAX", "1", 1);
	ret = chdir("/") ? cause_errno("cannot enter /") : 0;
	if (!ret && root)
		ret = lose_rights();
	if (!ret)
		ret = leave_terminal(parent);
	/* Last: looking up a user may take more memory than the limit allows. */
	if (!ret)
		ret = set_limits(st);
	if (!ret && root) {
		asks = install_filter();
		ret = asks < 0 ? -1 : 0;
	}
	if (!ret && !tell(BIRTH_FD, asks, "")) {
		if (asks >= 0)
			close(asks);
		execvp(argv[0], argv);
		failed = errno;
		cause("%s", strerror(failed));
	} else {
		failed = errno;
	}
	snprintf(text, sizeof(text), "%d %s", failed, cause_text());
	tell(BIRTH_FD, -1, text);
	_exit(EXIT_FAILED);
}

/*
 * Receive what the program's process says. Returns the length, 0 at the end, or -1; *@fd is -1 or a
 * descriptor.
 */
static ssize_t hear(int sock, char *text, size_t len, int *fd)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = { .iov_base = text, .iov_len = len - 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	struct cmsghdr *c;
	ssize_t n;

	*fd = -1;
	do {
		n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	text[n > 0 ? n : 0] = '\0';
	c = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL;
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
		memcpy(fd, CMSG_DATA(c), sizeof(*fd));
	return n;
}

static void cage_close(struct cage *cage)
{
	if (cage->listener >= 0)
		close(cage->listener);
	cage->listener = -1;
}

/* Wait until the program runs. Returns 0, or -1 with a cause. */
static int wait_begun(struct cage *cage, int sock)
{
	char text[600], *why;
	int fd, err;
	ssize_t n;

	n = hear(sock, text, sizeof(text), &cage->listener);
	if (n == 1)
		n = hear(sock, text, sizeof(text), &fd);
	if (!n && (cage->listener >= 0 || geteuid()))
		return 0;	/* the program has been started, which closes the socket */
	err = n > 0 ? strtol(text, &why, 10) : ECHILD;
	cause("it cannot be started: %s", n > 0 ? why + 1 : "its process has ended");
	cage_close(cage);
	waitpid(cage->pid, NULL, 0);
	errno = err;
	return -1;
}

static uint64_t image_bytes(int fd, const struct stat *st)
{
	uint64_t bytes = st->st_size;

	if (S_ISBLK(st->st_mode) && ioctl(fd, BLKGETSIZE64, &bytes))
		bytes = 0;
	return bytes;
}

int cage_start(struct cage *cage, char *const argv[], const struct stat *st, int out, int err)
{
	pid_t parent = getpid();
	int birth[2], ret;

	cage->listener = -1;
	cage->killed = NULL;
	cage->looked = now_ms();
	cage->work = 0;
	cage->idle = 0;
	cage->left = DAY + image_bytes(cage->image, st) / BYTES_PER_SECOND;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, birth))
		return cause_errno("cannot create a socket");
	fflush(NULL);
	cage->pid = fork();
	if (!cage->pid)
		program(cage, argv, st, parent, out, err, birth[1]);
	close(birth[1]);
	if (cage->pid < 0)
		ret = cause_errno("cannot start a process");
	else
		ret = wait_begun(cage, birth[0]);
	err = errno;
	close(birth[0]);
	errno = err;
	return ret;
}

/* Does the program want to open the image? */
static bool is_image(const struct seccomp_notif *request)
{
	char memory[64], path[sizeof(CAGE_IMAGE)] = "";
	bool same;
	int fd;

	snprintf(memory, sizeof(memory), "/proc/%u/mem", request->pid);
	fd = open(memory, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	/* A shorter name may end where the memory does. */
	same = pread(fd, path, sizeof(path), request->data.args[1]) == sizeof(path) &&
	       !memcmp(path, CAGE_IMAGE, sizeof(path));
	close(fd);
	return same;
}

/* Open the image as the program wants it, as far as it may. Returns -1 with errno. */
static int open_image(const struct cage *cage, int flags)
{
	if (((flags & O_ACCMODE) != O_RDONLY && !cage->writable) || (flags & (O_CREAT | O_TRUNC))) {
		errno = EACCES;
		return -1;
	}
	return reopen(cage->image, flags & (O_ACCMODE | O_DIRECT | O_DSYNC | O_NOATIME));
}

void cage_answer(const struct cage *cage)
{
	struct seccomp_notif request = { 0 };
	struct seccomp_notif_resp answer = { 0 };
	struct seccomp_notif_addfd add = { .flags = SECCOMP_ADDFD_FLAG_SEND };
	int fd;

	/* Ignore errors here: the program may have been killed meanwhile, and then nobody waits. */
	if (ioctl(cage->listener, SECCOMP_IOCTL_NOTIF_RECV, &request))
		return;
	answer.id = request.id;
	if (!is_image(&request)) {
		answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
		ioctl(cage->listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
		return;
	}
	fd = open_image(cage, request.data.args[2]);
	if (fd >= 0) {
		add.id = request.id;
		add.srcfd = fd;
		add.newfd_flags = O_CLOEXEC;
		if (ioctl(cage->listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add) >= 0) {
			close(fd);
			return;
		}
	}
	answer.error = -errno;
	if (fd >= 0)
		close(fd);
	ioctl(cage->listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
}

/* The sum of its processor time and of what it has read and written; 0 when unknown. */
static uint64_t work_of(pid_t pid)
{
	unsigned long user, sys;
	char path[64], text[1024];
	uint64_t work;
	char *at;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	if (read_small_file(path, text, sizeof(text)))
		return 0;
	/* The name, which the program chooses, ends at the last parenthesis. */
	at = strrchr(text, ')');
	if (!at || sscanf(at, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu",
			  &user, &sys) != 2)
		return 0;
	work = 1 + user + sys;
	/* Not every kernel counts these. */
	snprintf(path, sizeof(path), "/proc/%d/io", (int)pid);
	if (read_small_file(path, text, sizeof(text)))
		return work;
	for (at = strchr(text, ':'); at; at = strchr(at + 1, ':'))
		work += strtoull(at + 1, NULL, 10);
	return work;
}

/* Does a thread of it sleep uninterruptibly? Then it waits for storage, however long that takes. */
static bool waits_for_storage(pid_t pid)
{
	char path[64 + NAME_MAX], text[1024];
	const struct dirent *d;
	bool waits = false;
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	tasks = opendir(path);
	while (tasks && !waits && (d = readdir(tasks))) {
		const char *at;

		snprintf(path, sizeof(path), "/proc/%d/task/%s/stat", (int)pid, d->d_name);
		if (*d->d_name == '.' || read_small_file(path, text, sizeof(text)))
			continue;
		at = strrchr(text, ')');
		waits = at && !strncmp(at, ") D", 3);
	}
	if (tasks)
		closedir(tasks);
	return waits;
}

static void kill_program(struct cage *cage, const char *why)
{
	cage->killed = why;
	kill(cage->pid, SIGKILL);
}

bool cage_watch(struct cage *cage)
{
	uint64_t now = now_ms(), work;

	if (cage->killed || now - cage->looked < LOOK_MS)
		return cage->killed;
	/* Count checks, not seconds: while we were stopped nobody has answered the program. */
	cage->looked = now;
	work = work_of(cage->pid);
	if (!work || work != cage->work || waits_for_storage(cage->pid))
		cage->idle = 0;
	else
		cage->idle++;
	cage->work = work;
	if (cage->idle_limit && cage->idle >= cage->idle_limit)
		kill_program(cage, "was idle for too long");
	else if (!cage->left--)
		kill_program(cage, "took too long for an image of this size");
	return cage->killed;
}

int cage_end(struct cage *cage)
{
	/* Without a pidfd we check often. */
	int process = syscall(SYS_pidfd_open, cage->pid, 0);
	struct pollfd p[2] = { { .fd = process, .events = POLLIN },
			       { .fd = cage->listener, .events = POLLIN } };
	uint64_t until = now_ms() + END_MS;
	int status = 0;

	while (!waitpid(cage->pid, &status, WNOHANG)) {
		if (!cage->killed && now_ms() >= until)
			kill_program(cage, "did not end when it had closed its output");
		if (poll(p, ARRAY_SIZE(p), process < 0 ? LOOK_MS / 20 : LOOK_MS) <= 0)
			continue;
		if (p[1].revents & POLLIN)
			cage_answer(cage);
		else if (p[1].revents)
			p[1].fd = -1;
	}
	if (process >= 0)
		close(process);
	cage_close(cage);
	return status;
}
