// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * tool-listen.c - who may connect to a socket, also where somebody else can write to the directory
 * that it is in, and puts a link to another file into its place the moment it is there.
 */
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "listen.h"
#include "tool-test.h"
#include "util.h"

static mode_t mode_of(const char *path)
{
	struct stat st;

	CHECK(!lstat(path, &st), "%s", path);
	return st.st_mode;
}

static void test_access(const struct socket_owner *me)
{
	struct socket_owner nobody_else = { 0 };
	struct listener l, second;

	CHECK(!listener_open(&l, "sock", &nobody_else), "%s", cause_text());
	CHECK(mode_of("sock") == (S_IFSOCK | 0600), "%o", mode_of("sock"));
	CHECK(listener_open(&second, "sock", me) == -1 && cause_exit() == EXIT_BUSY);
	close(l.fd);
	l.fd = -1;
	/* Nobody listens there any more: it is replaced. */
	CHECK(!listener_open(&second, "sock", me), "%s", cause_text());
	CHECK(mode_of("sock") == (S_IFSOCK | 0660), "%o", mode_of("sock"));
	/* Only one's own name is removed. */
	CHECK(!rename("sock", "moved"));
	CHECK(!symlink("moved", "sock"));
	listener_unlink(&second);
	CHECK(S_ISLNK(mode_of("sock")) && S_ISSOCK(mode_of("moved")));
	CHECK(!unlink("sock") && !unlink("moved"));
	listener_close(&l);
	listener_close(&second);
}

/* The path may lead elsewhere by the end: what is removed is in the directory that it led to. */
static void test_moved_directory(void)
{
	struct socket_owner nobody_else = { 0 };
	struct listener l;

	CHECK(!mkdir("dir", 0700) && !mkdir("victim-dir", 0700));
	CHECK(!listener_open(&l, "dir/sock", &nobody_else), "%s", cause_text());
	CHECK(!link("dir/sock", "victim-dir/sock"));
	CHECK(!rename("dir", "moved-dir") && !symlink("victim-dir", "dir"));
	listener_unlink(&l);
	CHECK(S_ISSOCK(mode_of("victim-dir/sock")) && access("moved-dir/sock", F_OK));
	listener_close(&l);
	CHECK(!unlink("victim-dir/sock") && !unlink("dir"));
	CHECK(!rmdir("moved-dir") && !rmdir("victim-dir"));
}

static void __attribute__((noreturn)) replace_it_for_ever(void)
{
	struct stat st;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		if (!lstat("sock", &st) && S_ISSOCK(st.st_mode) && !rename("sock", "aside"))
			(void)!symlink("victim", "sock");
	}
}

static void test_links(const struct socket_owner *me)
{
	double until = clock_seconds() + random_seconds();
	unsigned int replaced = 0, n = 0;
	pid_t child;
	FILE *f = fopen("victim", "w");

	CHECK(f && !fclose(f) && !chmod("victim", 0400));
	child = fork();
	CHECK(child >= 0);
	if (!child)
		replace_it_for_ever();
	while (clock_seconds() < until) {
		struct listener l;
		struct stat st;

		if (!listener_open(&l, "sock", me))
			listener_close(&l);
		replaced += !lstat("sock", &st) && S_ISLNK(st.st_mode);
		CHECK(mode_of("victim") == (S_IFREG | 0400), "its mode is %o after %u sockets",
		      mode_of("victim"), n);
		unlink("sock");
		n++;
	}
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	printf("  %u sockets, %u of them replaced at once\n", n, replaced);
	CHECK(replaced, "the other process never came in between");
}

static int try_to_listen(void)
{
	struct socket_owner nobody_else = { 0 };
	struct listener l;
	int ret = listener_open(&l, "sock", &nobody_else);

	if (ret)
		return ret;
	listener_unlink(&l);
	listener_close(&l);
	return 0;
}

/*
 * A user who is not root locks a file of his own in the directory, which others may be able to
 * write to: only the right kind of file will do, and it does not stay.
 */
static void test_own_lock(void)
{
	char name[64];
	int fd;

	CHECK(geteuid());
	snprintf(name, sizeof(name), ".qcow2attach-%u.lock", (unsigned int)geteuid());
	CHECK(!try_to_listen() && access(name, F_OK), "%s", cause_text());
	/* Left by a server that was killed. */
	fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	CHECK(fd >= 0 && !try_to_listen() && access(name, F_OK), "%s", cause_text());
	close(fd);
	/* Others could lock it, or it leads elsewhere. */
	fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	CHECK(fd >= 0 && !fchmod(fd, 0644));
	CHECK(try_to_listen() == -1 && strstr(cause_text(), "nobody else can open"), "%s",
	      cause_text());
	close(fd);
	CHECK(!unlink(name) && !symlink("elsewhere", name));
	CHECK(try_to_listen() == -1 && access("elsewhere", F_OK), "%s", cause_text());
	CHECK(!unlink(name) && !mkfifo(name, 0600));
	CHECK(try_to_listen() == -1 && strstr(cause_text(), "nobody else can open"), "%s",
	      cause_text());
	CHECK(!unlink(name));
}

static void test_locks(const char *dir)
{
	int fd = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), status;
	pid_t child;

	/* What others can open they can lock: that keeps nobody out. */
	CHECK(fd >= 0 && !flock(fd, LOCK_EX));
	CHECK(!try_to_listen(), "%s", cause_text());
	CHECK(!chmod(dir, 0777));
	child = fork();
	CHECK(child >= 0);
	if (!child) {
		CHECK(geteuid() || !setuid(65534));
		test_own_lock();
		exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && !status, "%x", status);
	CHECK(!chmod(dir, 0700));
	close(fd);
}

int main(void)
{
	char dir[] = "/tmp/tool-listen.XXXXXX", command[64];
	struct socket_owner me = { .given = true, .uid = geteuid(), .gid = getegid() };

	CHECK(mkdtemp(dir) && !chdir(dir));
	test_access(&me);
	test_moved_directory();
	test_locks(dir);
	test_links(&me);
	snprintf(command, sizeof(command), "rm -r %s", dir);
	CHECK(!system(command));
	return 0;
}
