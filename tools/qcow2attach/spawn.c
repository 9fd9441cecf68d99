// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * spawn.c - starting a process of our own; see spawn.h.
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "spawn.h"
#include "util.h"

int spawn(struct spawned *s, const char *what, int with_us)
{
	pid_t parent = getpid();
	int pipe_fd[2];

	if (pipe2(pipe_fd, O_CLOEXEC))
		return cause_errno("cannot create a pipe to the %s", what);
	/* Buffered output would be written twice. */
	fflush(NULL);
	s->pid = fork();
	if (s->pid < 0) {
		close(pipe_fd[0]);
		close(pipe_fd[1]);
		return cause_errno("cannot start the %s", what);
	}
	s->fd = pipe_fd[s->pid ? 0 : 1];
	close(pipe_fd[s->pid ? 1 : 0]);
	if (!s->pid && with_us) {
		prctl(PR_SET_PDEATHSIG, with_us, 0, 0, 0);
		/* The parent may have ended before that. */
		if (getppid() != parent)
			_exit(EXIT_FAILED);
	}
	return 0;
}
