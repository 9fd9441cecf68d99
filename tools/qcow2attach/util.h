/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * util.h - errors with a cause, sizes, and small string helpers.
 *
 * Every function of the tool that can fail for a reason a person should read
 * returns -1 after telling the reason to cause() or cause_errno(); the verb
 * prints it once with report(), with the name of what it was working on.
 */
#ifndef QCOW2ATTACH_UTIL_H
#define QCOW2ATTACH_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))

/* Exit codes, as the manual page documents them. */
enum {
	EXIT_OK = 0,
	EXIT_FAILED = 1,	/* the operation failed */
	EXIT_USAGE = 2,		/* the command line was wrong */
	EXIT_BUSY = 3,		/* the image or the device is in use */
	EXIT_REFUSED = 4,	/* the image or its chain is not acceptable */
	EXIT_LEAKS = 5,		/* check: clusters are leaked */
	EXIT_RUN_FAILED = 125,	/* run: failed before QEMU was started */
	EXIT_RUN_NOEXEC = 126,	/* run: QEMU cannot be executed */
	EXIT_RUN_NOTFOUND = 127,	/* run: no such program */
};

/**
 * set_verb() - name the verb that messages carry.
 * @verb: the verb, a string constant, or NULL for none.
 */
void set_verb(const char *verb);

/**
 * cause() - remember why something failed.
 * @fmt: printf format.
 *
 * The text replaces what was remembered before. The exit code becomes
 * EXIT_FAILED; cause_code() changes it.
 *
 * Return: -1, so that a caller can return it.
 */
int cause(const char *fmt, ...) PRINTF_LIKE(1, 2);

/**
 * cause_errno() - as cause(), with the meaning of errno appended.
 * @fmt: printf format.
 */
int cause_errno(const char *fmt, ...) PRINTF_LIKE(1, 2);

/**
 * cause_prefix() - put words before the remembered cause.
 * @fmt: printf format.
 */
int cause_prefix(const char *fmt, ...) PRINTF_LIKE(1, 2);

/**
 * cause_code() - set the exit code that goes with the remembered cause.
 * @code: one of EXIT_*.
 *
 * Return: -1.
 */
int cause_code(int code);

/** cause_text() - the remembered cause. */
const char *cause_text(void);

/** cause_exit() - the exit code of the remembered cause. */
int cause_exit(void);

/**
 * report() - print the remembered cause as `qcow2attach: verb: subject: cause`.
 *
 * This and the other functions that print a line make all of it printable().
 * @subject: what the verb was working on, or NULL.
 *
 * Return: the exit code of the cause.
 */
int report(const char *subject);

/**
 * usage_error() - print why the command line is wrong and where help is.
 * @fmt: printf format.
 *
 * Return: EXIT_USAGE.
 */
int usage_error(const char *fmt, ...) PRINTF_LIKE(1, 2);

/**
 * note() - print one line on standard error, with the tool's and the verb's name.
 * @fmt: printf format.
 */
void note(const char *fmt, ...) PRINTF_LIKE(1, 2);

/**
 * go_silent() - let go of the terminal or pipe that started this process.
 *
 * Standard input, output and error become /dev/null; report() and note() write
 * to the system log from now on.
 */
void go_silent(void);

/**
 * parse_size() - read a size such as 512K, 16M or 1G.
 * @text: the size; without a suffix it is counted in @unit bytes.
 * @unit: bytes per unsuffixed unit.
 * @bytes: the result.
 *
 * Return: 0, or -1 with a cause.
 */
int parse_size(const char *text, uint64_t unit, uint64_t *bytes);

/**
 * parse_uint() - read a whole number within bounds.
 * @text: the number.
 * @what: its name in the error text.
 * @min: least accepted value.
 * @max: greatest accepted value.
 * @value: the result.
 *
 * Return: 0, or -1 with a cause.
 */
int parse_uint(const char *text, const char *what, unsigned int min, unsigned int max,
	       unsigned int *value);

/**
 * format_size() - write a size as people read it (16 KiB, 1.5 GiB).
 * @bytes: the size.
 * @buf: where to write.
 * @len: bytes in @buf.
 *
 * Return: @buf.
 */
const char *format_size(uint64_t bytes, char *buf, size_t len);

/**
 * printable() - a name that is safe to show.
 * @text: any bytes but NUL: names of files are such.
 *
 * A control character, which could move the cursor, begin a line that looks like one of ours, or
 * reconfigure the terminal, becomes a backslash and three octal digits, as in the kernel's table
 * lines; so does each byte that is not UTF-8.
 *
 * Return: an allocated string.
 */
char *printable(const char *text);

/**
 * shell_word() - a text quoted as one word of a shell, for a command to copy.
 * @text: the text.
 *
 * Return: an allocated string.
 */
char *shell_word(const char *text);

/**
 * utf8_length() - how many bytes are one character of UTF-8 (RFC 3629).
 * @s: the bytes.
 *
 * Return: 1 to 4, or 0 when they are no character.
 */
int utf8_length(const char *s);

/** xstrdup() - strdup() that ends the program when there is no memory. */
char *xstrdup(const char *s);

/** xasprintf() - asprintf() that ends the program when there is no memory. */
char *xasprintf(const char *fmt, ...) PRINTF_LIKE(1, 2);

/** xrealloc() - realloc() that ends the program when there is no memory. */
void *xrealloc(void *p, size_t n);

/**
 * struct strv - a growing, NULL-terminated list of strings that it owns.
 * @v: the strings, or NULL when nothing was ever added.
 * @n: how many.
 */
struct strv {
	char **v;
	size_t n;
};

/** strv_add() - append @s, which the list owns from now on. */
void strv_add(struct strv *list, char *s);

/** strv_free() - free the list and its strings. */
void strv_free(struct strv *list);

/**
 * reopen() - open what a descriptor stands for: the same file, whatever its name leads to now.
 * @fd: the descriptor, which may be opened with O_PATH.
 * @flags: as of open(); O_NONBLOCK, O_CLOEXEC and O_NOCTTY are added.
 *
 * Return: the new descriptor, or -1 with errno set and no cause.
 */
int reopen(int fd, int flags);

/**
 * read_small_file() - read a short text file, such as one of sysfs.
 * @path: its name.
 * @buf: where to put it, NUL-terminated, without the last newline.
 * @len: bytes in @buf.
 *
 * Return: 0, or -1 with errno set and no cause.
 */
int read_small_file(const char *path, char *buf, size_t len);

/**
 * read_all() - read exactly @len bytes.
 * @fd: where from.
 * @buf: where to.
 * @len: how many.
 *
 * Return: 0, or -1 without a cause when there were fewer.
 */
int read_all(int fd, void *buf, size_t len);

/**
 * write_all() - write everything, however little write() takes at once.
 *
 * Return: 0, or -1 with errno set.
 */
int write_all(int fd, const void *buf, size_t len);

/** sleep_ms() - sleep for some milliseconds. */
void sleep_ms(unsigned int ms);

/** now_ms() - a clock that only goes forward, in milliseconds. */
uint64_t now_ms(void);

#endif
