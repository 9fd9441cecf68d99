/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * hooks.h - delays where a race was found, so that a test can win it.
 *
 * Compiled in with DM_QCOW2_TEST_HOOKS=y alone, as the lab's kernels with checkers have it; each is
 * a parameter of the module, in milliseconds.
 */
#ifndef DM_QCOW2_HOOKS_H
#define DM_QCOW2_HOOKS_H

#ifdef DM_QCOW2_TEST_HOOKS

#include <linux/delay.h>

extern unsigned int test_writer_delay;

/* At the top of the writer's work. */
static inline void hook_writer(void)
{
	if (READ_ONCE(test_writer_delay))
		msleep(READ_ONCE(test_writer_delay));
}

#else

static inline void hook_writer(void)
{
}

#endif

#endif /* DM_QCOW2_HOOKS_H */
