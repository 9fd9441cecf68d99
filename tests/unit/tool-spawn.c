// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * tool-spawn.c - processes that tell the one that started them something: what arrives, what ends
 * with whom, and that nothing stays when there is no pipe.
 */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "spawn.h"
#include "tool-test.h"
#include "util.h"

static int open_descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static void test_what_it_tells(void)
{
	static const char words[] = "told";
	char got[sizeof(words)], more;
	struct spawned child;

	CHECK(!spawn(&child, "child", 0), "%s", cause_text());
	if (!child.pid) {
		/* In two pieces, which are read as one. */
		write_all(child.fd, words, 2);
		sleep_ms(50);
		write_all(child.fd, words + 2, sizeof(words) - 2);
		_exit(0);
	}
	CHECK(!read_all(child.fd, got, sizeof(got)) && !strcmp(got, words));
	CHECK(read_all(child.fd, &more, 1) == -1);
	close(child.fd);
	waitpid(child.pid, NULL, 0);
}

/* A process in between starts one and ends: the last one ends, too, if it was told to. */
static void test_it_ends_with_us(void)
{
	struct spawned between, child;
	int status;
	pid_t last;
	char c;

	/* A process whose parent has ended becomes our child, and says how it ends. */
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	CHECK(!spawn(&between, "process", 0), "%s", cause_text());
	if (!between.pid) {
		if (spawn(&child, "child", SIGTERM))
			_exit(1);
		if (!child.pid) {
			pid_t me = getpid();

			/* Should nobody end it, the test is to fail, and not to leave it. */
			alarm(30);
			write_all(between.fd, &me, sizeof(me));
			for (;;)
				pause();
		}
		/* Until the child has written. */
		sleep_ms(200);
		_exit(0);
	}
	CHECK(!read_all(between.fd, &last, sizeof(last)));
	CHECK(last > 0);
	/* Both have the pipe: its end is the end of both. */
	CHECK(read_all(between.fd, &c, 1) == -1);
	close(between.fd);
	waitpid(between.pid, NULL, 0);
	CHECK(waitpid(last, &status, 0) == last, "%s", strerror(errno));
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM, "%#x", status);
}

static void test_no_pipe(void)
{
	int before = open_descriptors();
	struct rlimit old, none;
	struct spawned child;

	getrlimit(RLIMIT_NOFILE, &old);
	none = (struct rlimit){ 3, old.rlim_max };
	setrlimit(RLIMIT_NOFILE, &none);
	CHECK(spawn(&child, "child", 0) == -1);
	setrlimit(RLIMIT_NOFILE, &old);
	CHECK(strstr(cause_text(), "cannot create a pipe to the child: Too many open files"), "%s",
	      cause_text());
	CHECK(open_descriptors() == before);
}

int main(void)
{
	alarm(60);
	test_what_it_tells();
	test_it_ends_with_us();
	test_no_pipe();
	return 0;
}
