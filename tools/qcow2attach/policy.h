/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * policy.h - which backing files an image may have.
 *
 * The name of a backing file is written in the image, so anybody that could write the image (a
 * guest's owner, a tenant) chose it. Only directories that the person at the command line, or the
 * administrator, allowed are followed. A raw file has nothing in it that makes it a disk: it may be
 * a key, or another tenant's disk, so being near the image does not make it a backing file.
 */
#ifndef QCOW2ATTACH_POLICY_H
#define QCOW2ATTACH_POLICY_H

#include <stdbool.h>
#include <sys/stat.h>

#include "util.h"

#define POLICY_CONFIG "/etc/qcow2attach.conf"

/**
 * struct policy_file - a file that was named itself.
 * @fd: the file, opened with O_PATH, so that no other file can get its identity.
 * @st: its attributes.
 */
struct policy_file {
	int fd;
	struct stat st;
};

/**
 * struct policy - which backing files are taken.
 * @none: no image may have a backing file.
 * @granted: directories named by an option or the configuration.
 * @files: files named by an option.
 * @nfiles: how many.
 * @has_home: there is a @home.
 * @home: the directory in which the top image was named, unless that is in /dev, or the root.
 */
struct policy {
	bool none;
	struct strv granted;
	struct policy_file *files;
	size_t nfiles;
	bool has_home;
	int home;
};

/** same_file() - are these the attributes of one file or block device? */
bool same_file(const struct stat *a, const struct stat *b);

/**
 * policy_allow() - allow a directory and all below it.
 * @p: the policy.
 * @dir: the directory.
 *
 * Return: 0, or -1 with a cause.
 */
int policy_allow(struct policy *p, const char *dir);

/**
 * policy_allow_file() - allow one file, whatever its place and owner.
 * @p: the policy.
 * @path: its name, by which it is found once, now.
 *
 * Return: 0, or -1 with a cause.
 */
int policy_allow_file(struct policy *p, const char *path);

/**
 * policy_read_config() - allow what the administrator's configuration allows.
 * @p: the policy.
 * @path: the configuration; a missing file allows nothing.
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
 * @fd: the file, so far opened with O_PATH only.
 * @places: the directories in which its name, and each link that this led to, says that it is.
 * @st: its attributes.
 * @raw: it is taken for a raw disk.
 * @overlay: the attributes of the image that names it.
 *
 * Return: 0, or -1 with a cause.
 */
int policy_check(const struct policy *p, int fd, const struct strv *places, const struct stat *st,
		 bool raw, const struct stat *overlay);

/**
 * policy_check_name() - may an image have a backing file, and of this name?
 * @p: the policy.
 * @name: the name as the header has it.
 *
 * Return: 0, or -1 with a cause.
 */
int policy_check_name(const struct policy *p, const char *name);

/** policy_free() - free what the policy holds. */
void policy_free(struct policy *p);

#endif
