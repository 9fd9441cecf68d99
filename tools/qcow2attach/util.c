// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * util.c - owns the remembered cause of a failure, and the small helpers that
 * every part of the tool uses.
 */
#include "util.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

static const char *current_verb;
static char current_cause[2048];
static int current_code = EXIT_FAILED;
static bool use_syslog;

void set_verb(const char *verb)
{
	current_verb = verb;
}

int cause(const char *fmt, ...)
{
	char text[sizeof(current_cause)];
	va_list ap;

	/* The arguments may point into the old cause: print, then copy. */
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	memcpy(current_cause, text, sizeof(text));
	current_code = EXIT_FAILED;
	return -1;
}

int cause_errno(const char *fmt, ...)
{
	int err = errno;
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return cause("%s: %s%s", text, strerror(err),
		     (err == EPERM || err == EACCES) && geteuid() ? " (this needs root)" : "");
}

int cause_prefix(const char *fmt, ...)
{
	int code = current_code;
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	cause("%s: %s", text, current_cause);
	current_code = code;
	return -1;
}

int cause_code(int code)
{
	current_code = code;
	return -1;
}

const char *cause_text(void)
{
	return current_cause;
}

int cause_exit(void)
{
	return current_code;
}

/* The names in it may be another user's choice. */
static void print_line(const char *text)
{
	const char *verb = current_verb ? current_verb : "";
	const char *colon = current_verb ? ": " : "";
	char *line = printable(text);

	if (use_syslog)
		syslog(LOG_NOTICE, "%s%s%s", verb, colon, line);
	else
		fprintf(stderr, "qcow2attach: %s%s%s\n", verb, colon, line);
	free(line);
}

int report(const char *subject)
{
	char text[sizeof(current_cause) + 1024];

	snprintf(text, sizeof(text), "%s%s%s", subject ? subject : "", subject ? ": " : "",
		 current_cause);
	print_line(text);
	return current_code;
}

int usage_error(const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	print_line(text);
	fprintf(stderr, "Try 'qcow2attach %s%s--help'.\n", current_verb ? current_verb : "",
		current_verb ? " " : "");
	return EXIT_USAGE;
}

void note(const char *fmt, ...)
{
	char text[2048];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	print_line(text);
}

void go_silent(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	/* Now, since a process that has given up its privileges could not. */
	tzset();
	openlog("qcow2attach", LOG_PID | LOG_NDELAY, LOG_DAEMON);
	use_syslog = true;
	if (null < 0)
		return;
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	dup2(null, STDERR_FILENO);
	if (null > STDERR_FILENO)
		close(null);
}

int parse_size(const char *text, uint64_t unit, uint64_t *bytes)
{
	static const char suffixes[] = "KMGTPE";
	unsigned long long n;
	const char *at;
	char *end;

	if (!isdigit((unsigned char)text[0]))
		return cause("invalid size '%s'", text);
	errno = 0;
	n = strtoull(text, &end, 10);
	if (errno)
		return cause("size too large: '%s'", text);
	if (*end) {
		at = strchr(suffixes, toupper((unsigned char)*end));
		if (at) {
			unit = 1ull << (10 * (at - suffixes + 1));
			end++;
			if (!strcmp(end, "iB"))
				end += 2;
		} else if (toupper((unsigned char)*end) == 'B') {
			unit = 1;
			end++;
		}
		if (*end)
			return cause("invalid size '%s': use a number and K, M, G or T", text);
	}
	if (__builtin_mul_overflow((uint64_t)n, unit, bytes))
		return cause("size too large: '%s'", text);
	return 0;
}

int parse_uint(const char *text, const char *what, unsigned int min, unsigned int max,
	       unsigned int *value)
{
	unsigned long n;
	char *end;

	errno = 0;
	n = strtoul(text, &end, 10);
	if (!isdigit((unsigned char)text[0]) || *end)
		return cause("%s: '%s' is not a number", what, text);
	if (errno || n < min || n > max)
		return cause("%s is '%s': it must be from %u to %u", what, text, min, max);
	*value = n;
	return 0;
}

const char *format_size(uint64_t bytes, char *buf, size_t len)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	double value = bytes;
	size_t i = 0;

	while (value >= 1024 && i + 1 < ARRAY_SIZE(units)) {
		value /= 1024;
		i++;
	}
	if (value == (uint64_t)value)
		snprintf(buf, len, "%.0f %s", value, units[i]);
	else
		snprintf(buf, len, "%.1f %s", value, units[i]);
	return buf;
}

int utf8_length(const char *s)
{
	const unsigned char *c = (const unsigned char *)s;
	int n = c[0] < 0x80 ? 1 : c[0] >= 0xc2 && c[0] < 0xe0 ? 2 : c[0] >= 0xe0 && c[0] < 0xf0 ? 3
		: c[0] >= 0xf0 && c[0] < 0xf5 ? 4 : 0;

	for (int i = 1; i < n; i++) {
		if ((c[i] & 0xc0) != 0x80)
			return 0;
	}
	/* Overlong forms, surrogates, and code points after the last. */
	if ((c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xed && c[1] > 0x9f) ||
	    (c[0] == 0xf0 && c[1] < 0x90) || (c[0] == 0xf4 && c[1] > 0x8f))
		return 0;
	return n;
}

/* C0 and DEL; C1, which terminals know in UTF-8, too; characters that reverse the text. */
static bool is_control(const unsigned char *c, int n)
{
	return c[0] < 0x20 || c[0] == 0x7f || (n == 2 && c[0] == 0xc2 && c[1] < 0xa0) ||
	       (n == 3 && c[0] == 0xe2 && c[1] == 0x80 && c[2] >= 0xa8 && c[2] <= 0xae) ||
	       (n == 3 && c[0] == 0xe2 && c[1] == 0x81 && c[2] >= 0xa6 && c[2] <= 0xa9);
}

char *printable(const char *text)
{
	char *out = xrealloc(NULL, 4 * strlen(text) + 1), *to = out;

	while (*text) {
		const unsigned char *c = (const unsigned char *)text;
		int n = utf8_length(text), bytes = n ? n : 1;

		if (n && !is_control(c, n)) {
			memcpy(to, text, n);
			to += n;
		} else {
			for (int i = 0; i < bytes; i++)
				to += sprintf(to, "\\%03o", c[i]);
		}
		text += bytes;
	}
	*to = '\0';
	return out;
}

char *shell_word(const char *text)
{
	char *out = xrealloc(NULL, 4 * strlen(text) + 3), *to = out;

	*to++ = '\'';
	for (; *text; text++) {
		if (*text == '\'')
			to = stpcpy(to, "'\\''");
		else
			*to++ = *text;
	}
	strcpy(to, "'");
	return out;
}

static void *or_die(void *p)
{
	if (!p) {
		fputs("qcow2attach: out of memory\n", stderr);
		exit(EXIT_FAILED);
	}
	return p;
}

char *xstrdup(const char *s)
{
	return or_die(strdup(s));
}

char *xasprintf(const char *fmt, ...)
{
	char *s = NULL;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&s, fmt, ap);
	va_end(ap);
	return or_die(n < 0 ? NULL : s);
}

void *xrealloc(void *p, size_t n)
{
	return or_die(realloc(p, n));
}

void strv_add(struct strv *list, char *s)
{
	list->v = xrealloc(list->v, (list->n + 2) * sizeof(*list->v));
	list->v[list->n++] = s;
	list->v[list->n] = NULL;
}

void strv_free(struct strv *list)
{
	for (size_t i = 0; i < list->n; i++)
		free(list->v[i]);
	free(list->v);
	list->v = NULL;
	list->n = 0;
}

int reopen(int fd, int flags)
{
	char link[64];

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	return open(link, flags | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
}

int read_small_file(const char *path, char *buf, size_t len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;
	int err;

	if (fd < 0)
		return -1;
	n = read(fd, buf, len - 1);
	err = errno;
	close(fd);
	if (n < 0) {
		errno = err;
		return -1;
	}
	while (n > 0 && buf[n - 1] == '\n')
		n--;
	buf[n] = '\0';
	return 0;
}

int read_all(int fd, void *buf, size_t len)
{
	char *p = buf;

	while (len) {
		ssize_t n = read(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -1;
		p += n;
		len -= n;
	}
	return 0;
}

int write_all(int fd, const void *buf, size_t len)
{
	const char *p = buf;

	while (len) {
		ssize_t n = write(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		p += n;
		len -= n;
	}
	return 0;
}

void sleep_ms(unsigned int ms)
{
	struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L };

	while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
		;
}

uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ull + ts.tv_nsec / 1000000;
}
