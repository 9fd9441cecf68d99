// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * server.c - owns the two processes of a server and the loop of the one that
 * front ends talk to.
 */
#include "server.h"
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "disk.h"
#include "sandbox.h"
#include "util.h"
#include "vu-session.h"

/* Killed after everything else, but not exempt: its own cgroup may have nothing else to kill. */
#define DEFAULT_OOM_SCORE_ADJ (-999)

/* Everything that is opened before the privileges are dropped. */
struct server {
	const struct server_options *options;
	struct sandbox_user user;
	struct disk disk;
	struct vhost_dev vhost;
	struct listener listener;
	int uevents;
	int signals;
};

/* The first thing the unprivileged process says: it is ready, or why not. */
struct hello {
	bool ready;
	int code;
	unsigned int queues;
	char error[1024];
};

enum { POLL_SIGNAL, POLL_LISTEN, POLL_UEVENT, POLL_SESSION, POLL_COUNT };

static int end_session(struct vu_session *s, struct vu_inbox *box, bool *connected)
{
	vu_inbox_clear(box);
	*connected = false;
	return session_end(s);
}

/*
 * Handle at most one message of the front end, since it could send forever, and signals must be
 * handled. A connection that cannot go on is closed.
 */
static int serve_message(struct vu_session *s, struct vu_inbox *box, bool *connected)
{
	int ret = vu_receive(s->sock, box);

	if (ret == 1) {
		ret = session_handle(s, &box->message);
		vu_inbox_clear(box);
	}
	if (!ret)
		return 0;
	if (ret == -1)
		note("connection closed: %s", cause_text());
	return end_session(s, box, connected);
}

static void accept_front_end(struct server *srv, struct vu_session *s, bool *connected)
{
	int sock = accept4(srv->listener.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (sock < 0)
		return;
	if (*connected) {
		note("a second front end was turned away: the disk has one already");
		close(sock);
		return;
	}
	session_begin(s, sock, &srv->vhost, &srv->disk.config, srv->disk.features);
	*connected = true;
}

/* Read all events that have come; was one about our device? */
static bool uevent_about(int fd, dev_t dev)
{
	char maj[32], min[32], text[8192];
	bool about = false;
	ssize_t n;

	snprintf(maj, sizeof(maj), "MAJOR=%u", major(dev));
	snprintf(min, sizeof(min), "MINOR=%u", minor(dev));
	while ((n = recv(fd, text, sizeof(text) - 1, MSG_DONTWAIT)) > 0) {
		bool has_major = false, has_minor = false;

		text[n] = '\0';
		for (char *word = text; word < text + n; word += strlen(word) + 1) {
			has_major = has_major || !strcmp(word, maj);
			has_minor = has_minor || !strcmp(word, min);
		}
		about = about || (has_major && has_minor);
	}
	/* An overrun may have swallowed the one that matters. */
	return about || (n < 0 && errno == ENOBUFS);
}

static int serve(struct server *srv)
{
	static struct vu_session session;
	static struct vu_inbox box;
	bool connected = false;
	int ret = 0;

	while (!ret) {
		struct pollfd p[POLL_COUNT] = {
			[POLL_SIGNAL] = { .fd = srv->signals, .events = POLLIN },
			[POLL_LISTEN] = { .fd = srv->listener.fd, .events = POLLIN },
			[POLL_UEVENT] = { .fd = srv->uevents, .events = POLLIN },
			[POLL_SESSION] = { .fd = connected ? session.sock : -1, .events = POLLIN },
		};

		if (poll(p, POLL_COUNT, -1) < 0) {
			if (errno == EINTR)
				continue;
			return cause_errno("cannot wait for the front end");
		}
		if (p[POLL_SIGNAL].revents)
			break;
		/*
		 * A new connection waits until nothing more is to be read from the old one: a front
		 * end that comes back has closed the old one already, maybe with messages before
		 * its end.
		 */
		if (p[POLL_SESSION].revents)
			ret = serve_message(&session, &box, &connected);
		else if (p[POLL_LISTEN].revents)
			accept_front_end(srv, &session, &connected);
		if (p[POLL_UEVENT].revents && uevent_about(srv->uevents, srv->disk.dev) &&
		    disk_resized(&srv->disk) && connected)
			session_config_changed(&session);
	}
	if (connected && end_session(&session, &box, &connected))
		ret = -1;
	return ret;
}

/*
 * The guest's memory, which the kernel uses through this process, counts as this process's, too. Of
 * all processes that map it this one would be killed first, though its end frees nothing.
 */
static int lower_oom_score(const struct server_options *o)
{
	const char *path = "/proc/self/oom_score_adj";
	int adj = o->has_oom_score_adj ? o->oom_score_adj : DEFAULT_OOM_SCORE_ADJ, fd, ret;
	char text[16];

	/* The command that starts the server may have set a lower score. */
	if (!o->has_oom_score_adj && !read_small_file(path, text, sizeof(text)) &&
	    atoi(text) <= adj)
		return 0;
	snprintf(text, sizeof(text), "%d", adj);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	ret = fd < 0 ? -1 : write_all(fd, text, strlen(text));
	if (ret && o->has_oom_score_adj)
		ret = cause_errno("the OOM score adjustment cannot be %d", adj);
	else if (ret && !geteuid())
		note("the server may be killed when memory is short: %s: %s", path,
		     strerror(errno));
	if (fd >= 0)
		close(fd);
	return o->has_oom_score_adj ? ret : 0;
}

static int prepare(struct server *srv)
{
	const char *name = strrchr(srv->disk.path, '/') + 1;
	const char *serial = srv->options->serial ? srv->options->serial : name;

	if (lower_oom_score(srv->options))
		return -1;
	if (srv->options->queue_size > srv->vhost.max_ring_size)
		return cause("%u entries of a queue are more than the %u that the kernel serves "
			     "(the parameter max_ring_size of the module vhost-blk)",
			     srv->options->queue_size, srv->vhost.max_ring_size);
	if (srv->options->queue_size)
		srv->vhost.ring_size = srv->options->queue_size;
	if (sandbox_server(&srv->user))
		return cause_prefix("the server cannot give up its privileges");
	/* Without privileges: the kernel's workers act as the process that asks for them. */
	if (vhost_dev_own(&srv->vhost, srv->options->queues, srv->options->worker_per_queue,
			  srv->disk.fd, serial))
		return -1;
	return vhost_dev_poll(&srv->vhost, srv->options->poll_us);
}

static int by_number(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

/* Close all descriptors but its own: what the command has inherited is not the server's. */
static int close_others(const struct server *srv, int hello_fd)
{
	int keep[] = {
		srv->disk.fd, srv->vhost.fd, srv->listener.fd, srv->uevents, srv->signals, hello_fd,
	};
	int from = STDERR_FILENO + 1, ret = 0;

	qsort(keep, ARRAY_SIZE(keep), sizeof(keep[0]), by_number);
	for (size_t i = 0; i < ARRAY_SIZE(keep); i++) {
		if (keep[i] < from)
			continue;
		if (keep[i] > from)
			ret |= close_range(from, keep[i] - 1, 0);
		from = keep[i] + 1;
	}
	ret |= close_range(from, ~0u, 0);
	return ret ? cause_errno("cannot close inherited descriptors") : 0;
}

static void __attribute__((noreturn)) unprivileged(struct server *srv, int hello_fd, pid_t parent)
{
	static struct hello hello;
	int ret;

	signal(SIGPIPE, SIG_IGN);
	ret = close_others(srv, hello_fd);
	if (srv->options->background)
		go_silent();
	if (!ret)
		ret = disk_describe(&srv->disk, srv->vhost.features);
	if (!ret)
		ret = prepare(srv);
	if (!ret && getppid() != parent)
		_exit(EXIT_FAILED);
	if (!ret)
		disk_set_queues(&srv->disk, srv->vhost.queues, srv->vhost.features);
	hello.ready = !ret;
	hello.code = cause_exit();
	hello.queues = srv->vhost.queues;
	snprintf(hello.error, sizeof(hello.error), "%s", cause_text());
	write_all(hello_fd, &hello, sizeof(hello));
	close(hello_fd);
	if (ret)
		_exit(EXIT_FAILED);
	ret = serve(srv);
	if (ret)
		report(srv->options->device);
	/* Exiting makes the kernel stop and drain what may still run. */
	_exit(ret ? EXIT_FAILED : EXIT_OK);
}

static int open_uevents(void)
{
	struct sockaddr_nl addr = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
			NETLINK_KOBJECT_UEVENT);

	if (fd >= 0 && bind(fd, (struct sockaddr *)&addr, sizeof(addr))) {
		close(fd);
		fd = -1;
	}
	/* Without these events the disk works; only a change of its size goes unreported. */
	if (fd < 0)
		note("cannot receive the kernel's events: %s", strerror(errno));
	return fd;
}

static int open_all(struct server *srv)
{
	const struct server_options *o = srv->options;
	sigset_t set;
	char *path;
	int ret;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	sigdelset(&set, SIGCHLD);
	srv->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (srv->signals < 0)
		return cause_errno("cannot create a signalfd");
	if (sandbox_find_user(o->user, &srv->user))
		return -1;
	if (srv->user.shared)
		note("there is no user %s (make install makes it): the server runs as nobody, "
		     "whose other processes can stop it", SANDBOX_USER);
	if (disk_open(&srv->disk, o->device, o->read_only, srv->signals) ||
	    vhost_dev_open(&srv->vhost))
		return -1;
	srv->uevents = open_uevents();
	if (o->socket) {
		path = xstrdup(o->socket);
	} else {
		if (mkdir(SOCKET_DIR, 0755) && errno != EEXIST)
			return cause_errno("cannot make %s", SOCKET_DIR);
		path = xasprintf("%s/%s.sock", SOCKET_DIR, strrchr(srv->disk.path, '/') + 1);
	}
	ret = listener_open(&srv->listener, path, &o->owner);
	free(path);
	return ret;
}

/* The privileged process keeps no claim on anything. */
static void close_all(struct server *srv)
{
	close(srv->disk.fd);
	close(srv->vhost.fd);
	close(srv->listener.fd);
	close(srv->signals);
	if (srv->uevents >= 0)
		close(srv->uevents);
}

static int read_hello(int fd, struct hello *hello)
{
	if (read_all(fd, hello, sizeof(*hello)))
		return cause("the server ended before it was ready");
	if (hello->ready)
		return 0;
	hello->error[sizeof(hello->error) - 1] = '\0';
	cause("%s", hello->error);
	return cause_code(hello->code);
}

/* One of the signals in @set, or 0 when none comes until @until, which is 0 for no limit. */
static int next_signal(const sigset_t *set, uint64_t until)
{
	uint64_t now = now_ms(), left = until > now ? until - now : 0;
	struct timespec ts = { .tv_sec = left / 1000, .tv_nsec = left % 1000 * 1000000L };
	int sig = until ? sigtimedwait(set, NULL, &ts) : sigwaitinfo(set, NULL);

	return sig > 0 ? sig : 0;
}

/*
 * Pass on the signals that ask us to end, until the server has ended. The server may not respond: a
 * file that a front end handed over can be on a filesystem that does not answer, and a drain waits
 * for the storage. Then the server is killed, which loses nothing, since the kernel finishes what
 * is in flight. If even its end waits for such a file or for the storage, the server is left to the
 * kernel.
 */
static int wait_for(pid_t pid)
{
	uint64_t until = 0;
	bool killed = false;
	sigset_t set;
	int status;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGCHLD);
	while (waitpid(pid, &status, WNOHANG) != pid) {
		int sig = next_signal(&set, until);

		if (sig && sig != SIGCHLD) {
			kill(pid, SIGTERM);
			until = until ? until : now_ms() + SERVER_GRACE_MS;
		}
		if (!until || now_ms() < until)
			continue;
		if (killed)
			return cause("process %d of the server does not end although it was "
				     "killed: it waits for the storage, or for a file that the "
				     "front end handed over, and keeps the device until then",
				     (int)pid);
		kill(pid, SIGKILL);
		killed = true;
		until = now_ms() + SERVER_KILL_MS;
	}
	if (killed)
		return cause("the server did not end when it was told to, and was killed");
	if (WIFSIGNALED(status))
		return cause("the server was killed by signal %d (%s)", WTERMSIG(status),
			     strsignal(WTERMSIG(status)));
	return WEXITSTATUS(status) ? cause("the server failed") : 0;
}

int server_run(const struct server_options *o,
	       void (*ready)(const struct server_info *info, void *ctx), void *ctx)
{
	struct server srv = { .options = o };
	struct server_info info = { 0 };
	static struct hello hello;
	pid_t parent = getpid();
	struct spawned child;
	int ret;

	if (open_all(&srv))
		return -1;
	/* The sandbox makes the server end with us: a change of the user would undo that here. */
	ret = spawn(&child, "server", 0);
	if (ret)
		goto out;
	if (!child.pid)
		unprivileged(&srv, child.fd, parent);
	close_all(&srv);
	ret = read_hello(child.fd, &hello);
	close(child.fd);
	if (!ret) {
		snprintf(info.socket, sizeof(info.socket), "%s", srv.listener.path);
		info.queues = hello.queues;
		info.read_only = srv.disk.read_only;
		ready(&info, ctx);
		ret = wait_for(child.pid);
	} else {
		waitpid(child.pid, NULL, 0);
	}
out:
	listener_unlink(&srv.listener);
	return ret;
}
