// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The program crash_replay, see tests/crash/replay.c.  A test program is one file to
 * the lab, so this is all of them.
 */
#include "../crash/judge.c"
#include "../crash/journal.c"
#include "../crash/logwrites.c"
#include "../crash/qcow2.c"
#include "../crash/replay.c"
