// SPDX-License-Identifier: GPL-2.0-only
/*
 * locks.c - the byte-range locks by which QEMU and its tools see that an image is in use, and by
 * which we see them.
 *
 * A user of permission n locks byte 100 + n; a user that does not let others use permission n
 * locks byte 200 + n.  All are shared locks; a conflict is found by asking for an exclusive lock
 * that is never taken.  Lock first, ask second: of two that come at once at least one sees the
 * other.
 *
 * The locks belong to image.st.file (open file description locks).  May sleep, as on NFS.
 */
#include <linux/filelock.h>

#include "locks.h"

#define PERM		100
#define UNSHARED	200
#define CONSISTENT_READ	0
#define WRITE		1
#define RESIZE		3

static const u8 read_takes[] = { PERM + CONSISTENT_READ, UNSHARED + WRITE, UNSHARED + RESIZE };
static const u8 read_asks[] = { UNSHARED + CONSISTENT_READ, PERM + WRITE, PERM + RESIZE };
static const u8 write_takes[] = { PERM + WRITE, PERM + RESIZE };
static const u8 write_asks[] = { UNSHARED + WRITE, UNSHARED + RESIZE };

static void init(struct file_lock *fl, struct file *file, int type, loff_t first, loff_t last)
{
	locks_init_lock(fl);
	fl->c.flc_flags = FL_POSIX | FL_OFDLCK;
	fl->c.flc_owner = file;
	fl->c.flc_file = file;
	fl->c.flc_type = type;
	fl->fl_start = first;
	fl->fl_end = last;
}

/*
 * FL_OFDLCK makes a lock one of the open file description.  F_OFD_SETLK is the command of a
 * process: a filesystem with locks of its own, such as NFS, knows only F_SETLK.
 */
static int set(struct file *file, int type, loff_t first, loff_t last)
{
	struct file_lock fl;
	int r;

	init(&fl, file, type, first, last);
	r = vfs_lock_file(file, F_SETLK, &fl, NULL);
	/* A filesystem may have tied the lock's owner to it, as NFS does. */
	locks_release_private(&fl);
	return r;
}

static int take(struct file *file, const u8 *bytes, unsigned int nr)
{
	int r = 0;

	while (nr-- && !r)
		r = set(file, F_RDLCK, bytes[nr], bytes[nr]);
	return r;
}

static int ask(struct file *file, const u8 *bytes, unsigned int nr)
{
	struct file_lock fl;
	int r;

	while (nr--) {
		init(&fl, file, F_WRLCK, bytes[nr], bytes[nr]);
		r = vfs_test_lock(file, &fl);
		if (r)
			return r;
		if (fl.c.flc_type != F_UNLCK)
			return -EAGAIN;
	}
	return 0;
}

int qcow2_image_lock(struct file *file, bool write)
{
	int r;

	r = take(file, read_takes, ARRAY_SIZE(read_takes));
	if (!r && write)
		r = take(file, write_takes, ARRAY_SIZE(write_takes));
	if (!r)
		r = ask(file, read_asks, ARRAY_SIZE(read_asks));
	if (!r && write)
		r = ask(file, write_asks, ARRAY_SIZE(write_asks));
	if (r)
		qcow2_image_unlock(file);
	return r;
}

void qcow2_image_lock_downgrade(struct file *file)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(write_takes); i++)
		set(file, F_UNLCK, write_takes[i], write_takes[i]);
}

void qcow2_image_unlock(struct file *file)
{
	set(file, F_UNLCK, PERM, UNSHARED + RESIZE);
}
