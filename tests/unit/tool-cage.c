// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * tool-cage.c - how long a program in the cage may do nothing, or go on, with programs that are
 * there on every system in the place of qemu-img.
 */
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cage.h"
#include "tool-test.h"
#include "util.h"

static char *const sleeps[] = { "sleep", "1000", NULL };
static char *const spins[] = { "sh", "-c", "while :; do :; done", NULL };
static char *const ends[] = { "sh", "-c", "exit 3", NULL };

static void begin(struct cage *cage, char *const argv[], unsigned int idle_limit)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	struct stat st;

	memset(cage, 0, sizeof(*cage));
	cage->image = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	cage->idle_limit = idle_limit;
	CHECK(null >= 0 && cage->image >= 0 && !fstat(cage->image, &st));
	CHECK(!cage_start(cage, argv, &st, null, null), "%s", cause_text());
	close(null);
}

/* Returns whether it was killed within some time. */
static bool watch(struct cage *cage, double seconds)
{
	struct pollfd p = { .fd = cage->listener, .events = POLLIN };
	double until = clock_seconds() + seconds;

	while (clock_seconds() < until) {
		if (cage_watch(cage))
			return true;
		if (poll(&p, 1, 50) > 0) {
			if (p.revents & POLLIN)
				cage_answer(cage);
			else
				p.fd = -1;
		}
	}
	return false;
}

static void killed(struct cage *cage, const char *why)
{
	int status = cage_end(cage);

	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "%x", status);
	CHECK(cage->killed && strstr(cage->killed, why), "%s", cage->killed);
	close(cage->image);
}

int main(void)
{
	struct cage cage;
	double since;
	int status;

	setbuf(stdout, NULL);
	begin(&cage, sleeps, 3);
	CHECK(watch(&cage, 60));
	killed(&cage, "was idle");

	begin(&cage, sleeps, 60);
	CHECK(!watch(&cage, 2));
	since = clock_seconds();
	killed(&cage, "did not end");
	CHECK(clock_seconds() - since > 2);

	/* However long it works, but not for ages. */
	begin(&cage, spins, 3);
	CHECK(cage.left >= 86400 && cage.left < 90000);
	CHECK(!watch(&cage, 6));
	cage.left = 1;
	CHECK(watch(&cage, 30));
	killed(&cage, "too long");

	begin(&cage, ends, 3);
	status = cage_end(&cage);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 3, "%x", status);
	CHECK(!cage.killed);
	return 0;
}
