// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * tool-sandbox.c - what the filter of the server lets through and what it does not, tried in
 * processes that have it.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/kvm.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "sandbox.h"
#include "tool-test.h"
#include "util.h"
#include "vhost-dev.h"

#define PAGE 4096

/* The error of a call, 0 when there is none. */
#define ERROR_OF(call) ((call) == -1 ? errno : 0)

/* The kernel is asked itself: a sanitizer has a hand in the functions of these names. */
static int map(int prot)
{
	return ERROR_OF(syscall(SYS_mmap, NULL, PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

static int protect(void *at, int prot)
{
	return ERROR_OF(syscall(SYS_mprotect, at, PAGE, prot));
}

static int ask(int fd, unsigned long request)
{
	char buf[256] = { 0 };

	return ERROR_OF(syscall(SYS_ioctl, fd, request, buf));
}

static void test_memory(void)
{
	void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(page != MAP_FAILED);
	CHECK(!map(PROT_READ | PROT_WRITE) && !map(PROT_NONE));
	CHECK(map(PROT_EXEC) == EPERM && map(PROT_READ | PROT_EXEC) == EPERM);
	CHECK(map(PROT_READ | PROT_WRITE | PROT_EXEC) == EPERM);
	CHECK(!protect(page, PROT_READ) && !protect(page, PROT_READ | PROT_WRITE));
	CHECK(protect(page, PROT_EXEC) == EPERM && protect(page, PROT_READ | PROT_EXEC) == EPERM);
}

static void test_ioctls(int null)
{
	static const unsigned long allowed[] = {
		VHOST_SET_OWNER, VHOST_SET_FEATURES, VHOST_SET_MEM_TABLE, VHOST_BLK_SET_RING,
		VHOST_BLK_SET_WRITEBACK, BLKGETSIZE64, VHOST_ATTACH_VRING_WORKER,
	};
	static const unsigned long refused[] = {
		TIOCSTI, TCGETS, FIONREAD, FIOCLEX, BLKDISCARD, BLKRRPART, VHOST_RESET_OWNER,
		KVM_CREATE_VM, 0,
	};

	/* The file knows none of them: whoever is told so came through. */
	for (size_t i = 0; i < ARRAY_SIZE(allowed); i++)
		CHECK(ask(null, allowed[i]) == ENOTTY, "%lx: %s", allowed[i], strerror(errno));
	for (size_t i = 0; i < ARRAY_SIZE(refused); i++)
		CHECK(ask(null, refused[i]) == EPERM, "%lx: %s", refused[i], strerror(errno));
	/* The kernel looks at 32 bits of the number, and so does the filter. */
	CHECK(ask(null, BLKGETSIZE64 | 1ul << 40) == ENOTTY);
	CHECK(ask(null, TCGETS | 1ul << 40) == EPERM);
}

static void test_calls(void)
{
	/* What comes after the rules about arguments in the list is found, too. */
	CHECK(getppid() > 0);
	/* With these a file's readiness becomes any signal to any process of the same user. */
	CHECK(ERROR_OF(syscall(SYS_fcntl, 0, F_SETOWN, getppid())) == EPERM);
	CHECK(ERROR_OF(syscall(SYS_fcntl, 0, F_SETSIG, SIGKILL)) == EPERM);
	CHECK(ERROR_OF(syscall(SYS_fcntl, 0, F_SETFL, O_ASYNC)) == EPERM);
	CHECK(ERROR_OF(syscall(SYS_openat, AT_FDCWD, "/", O_RDONLY)) == EPERM);
	CHECK(ERROR_OF(syscall(SYS_socket, 1, 1, 0)) == EPERM);
	CHECK(ERROR_OF(syscall(SYS_kill, getpid(), 0)) == EPERM);
	CHECK(ERROR_OF(syscall(SYS_setpriority, 0, 0, 0)) == EPERM);
	CHECK(ERROR_OF(syscall(SYS_execve, "/bin/true", NULL, NULL)) == EPERM);
	CHECK(ERROR_OF(syscall(SYS_clone, 0, 0, 0, 0, 0)) == EPERM);
}

static void in_the_sandbox(const struct sandbox_user *user)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	CHECK(null >= 0);
	CHECK(!sandbox_server(user), "%s", cause_text());
	test_memory();
	test_ioctls(null);
	test_calls();
	/* Not by _exit(), before which the sanitizer has calls of its own. */
	syscall(SYS_exit_group, 0);
}

static void test_users(void)
{
	struct sandbox_user user;

	if (geteuid()) {
		CHECK(!sandbox_find_user(NULL, &user) && !user.shared);
		CHECK(sandbox_find_user("nobody", &user) == -1 && strstr(cause_text(), "only root"));
		return;
	}
	CHECK(!sandbox_find_user(NULL, &user) && user.uid && user.gid);
	CHECK(!sandbox_find_user("nobody", &user) && user.uid == 65534 && !user.shared);
	CHECK(sandbox_find_user("no-such-user", &user) == -1 &&
	      strstr(cause_text(), "there is no user 'no-such-user'"), "%s", cause_text());
	CHECK(sandbox_find_user("root", &user) == -1 &&
	      strstr(cause_text(), "root's privileges"), "%s", cause_text());
}

int main(void)
{
	struct sandbox_user user;
	int status;
	pid_t pid;

	setbuf(stdout, NULL);
	test_users();
	CHECK(!sandbox_find_user(NULL, &user), "%s", cause_text());
	pid = fork();
	CHECK(pid >= 0);
	if (!pid)
		in_the_sandbox(&user);
	CHECK(waitpid(pid, &status, 0) == pid && !status, "%x", status);
	return 0;
}
