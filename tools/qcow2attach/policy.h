/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * policy.h - which files an image may stand on.
 *
 * The name of a backing file is written in the image, so whoever could write the
 * image (a guest's owner, a tenant) chose it. Only directories that the person
 * at the command line, or the administrator, allowed are followed.
 */
#ifndef QCOW2ATTACH_POLICY_H
#define QCOW2ATTACH_POLICY_H

#include <stdbool.h>
#include <sys/stat.h>

#include "util.h"

#define POLICY_CONFIG "/etc/qcow2attach.conf"

/**
 * struct policy - the directories from which backing files are taken.
 * @granted: directories named by an option or the configuration.
 * @has_home: there is a @home.
 * @home: the directory in which the top image was named, unless that is in /dev.
 */
struct policy {
	struct strv granted;
	bool has_home;
	int home;
};

/**
 * policy_allow() - allow a directory and all below it.
 * @p: the policy.
 * @dir: the directory.
 *
 * Return: 0, or -1 with a cause.
 */
int policy_allow(struct policy *p, const char *dir);

/**
 * policy_read_config() - allow what the administrator's configuration allows.
 * @p: the policy.
 * @path: the configuration; one that is not there allows nothing.
 *
 * Lines are `allow-dir DIRECTORY`, empty, or begin with #.
 *
 * Return: 0, or -1 with a cause.
 */
int policy_read_config(struct policy *p, const char *path);

/**
 * policy_set_home() - allow the directory in which the top image was named.
 * @p: the policy.
 * @dir: the directory, open; not closed.
 *
 * Return: 0, or -1 with a cause.
 */
int policy_set_home(struct policy *p, int dir);

/**
 * policy_check() - may this opened file be a backing file?
 * @p: the policy.
 * @fd: the file, opened for nothing (O_PATH) as yet.
 * @dir: the directory in which it was named, open.
 * @st: its attributes.
 * @overlay: the attributes of the image that names it.
 *
 * Return: 0, or -1 with a cause.
 */
int policy_check(const struct policy *p, int fd, int dir, const struct stat *st,
		 const struct stat *overlay);

/**
 * policy_check_name() - is this a plain file name?
 * @name: the name as the header has it.
 *
 * Return: 0, or -1 with a cause.
 */
int policy_check_name(const char *name);

/** policy_free() - free what the policy holds. */
void policy_free(struct policy *p);

#endif
