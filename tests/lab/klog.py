# SPDX-License-Identifier: GPL-2.0-or-later
"""What in a kernel log makes a run a failure, whatever the test said."""
import itertools
import re

BAD = re.compile("|".join((
    r"\bWARNING: ", r"\bBUG: ", r"\bBUG:? ", r"kernel BUG at", r"\bOops\b", r"\bKernel panic\b",
    r"general protection fault", r"Unable to handle kernel", r"\bUBSAN: ", r"\bKASAN: ",
    r"\bKCSAN: ", r"refcount_t: ", r"INFO: task .* blocked for more than", r"soft lockup",
    r"hard LOCKUP", r"rcu: INFO: .* detected stalls", r"rcu_.* self-detected stall",
    r"possible recursive locking", r"possible circular locking", r"INFO: possible",
    r"trying to register non-static key", r"inconsistent lock state", r"suspicious RCU usage", r"DEBUG_LOCKS_WARN_ON",
    r"sleeping function called from invalid context", r"scheduling while atomic",
    r"list_(add|del) corruption", r"ODEBUG: ", r"unreferenced object 0x", r"bad unlock balance",
    r"lock held when returning to user space", r"stack-protector: ", r"Bad page state",
    r"kmem_cache.* still has objects", r"Slab corruption", r"Out of memory: Killed",
    r"oom-kill:", r"module verification .* BTF",
)))
# True of the machine that the guests run on, not of the code under test.
HARMLESS = re.compile("|".join((
    r"WARNING: Spectre", r"WARNING: You are running an unsupported",
    r"Warning: unsafe iommu", r"spectre", r"MDS CPU bug present", r"TAA CPU bug present",
)))
# What the kernel itself loses, by who took it: blk_throtl_exit() of 6.12 frees nothing, since it asks whether
# throttling is active after blkg_destroy_all() has ended it. And 7.3, as it boots, what its first root was
# mounted with.
LOST_BY_OTHERS = re.compile(r"\b(blk_throtl_init|ramfs_init_fs_context)\+")


def lost_by_others(log, i):
    """Whether LOG[I] begins kmemleak's report of an object that is known to be lost."""
    trace = itertools.takewhile(lambda line: line.startswith(" "), log[i + 1:])
    return "unreferenced object" in log[i] and any(map(LOST_BY_OTHERS.search, trace))


def faults(log):
    """The (line number, line) pairs of LOG, a list of lines, that are a report of a fault."""
    return [(i, line) for i, line in enumerate(log)
            if BAD.search(line) and not HARMLESS.search(line) and not lost_by_others(log, i)]


def report(log, before=2, after=40):
    """A text with each fault and the lines around it, which hold the trace."""
    text, end = [], -1
    for i, _ in faults(log):
        if i <= end:
            continue
        start, end = max(end + 1, i - before), min(len(log), i + after)
        text += ["..."] + log[start:end]
    return "\n".join(text)
