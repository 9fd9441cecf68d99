/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * hooks.h - hooks for tests: delays where a race was found, and a record of noted ranges.
 *
 * Compiled in only with DM_QCOW2_TEST_HOOKS=y, as in the lab's kernels with checkers; each hook is
 * a parameter of the module.
 */
#ifndef DM_QCOW2_HOOKS_H
#define DM_QCOW2_HOOKS_H

#ifdef DM_QCOW2_TEST_HOOKS

#include <linux/bitops.h>
#include <linux/delay.h>

extern unsigned int test_writer_delay;	/* milliseconds */
extern unsigned long test_noted;	/* a bit for each 64 KiB at the start of any disk */

/* At the top of the writer's work. */
static inline void hook_writer(void)
{
	if (READ_ONCE(test_writer_delay))
		msleep(READ_ONCE(test_writer_delay));
}

static inline void hook_noted(u64 goff, u64 len)
{
	u64 i;

	for (i = goff >> 16; i < BITS_PER_LONG && i <= (goff + len - 1) >> 16; i++)
		set_bit(i, &test_noted);
}

#else

static inline void hook_writer(void)
{
}

static inline void hook_noted(u64 goff, u64 len)
{
}

#endif

#endif /* DM_QCOW2_HOOKS_H */
