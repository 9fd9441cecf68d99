#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""`make bench BENCH=--profile` in the guest: each case under load, with a stretch of it counted.

The counting itself is done by a plugin of QEMU (icount-plugin.c), which writes a file for each
stretch; this writes the kernel's symbols and, in the same order, the cases with their rates.
Arguments choose paths by parts of their names.
"""
import contextlib
import json
import shutil
import subprocess
import sys
import time

import storage as bench_storage         # first: it finds helpers
import paths
from helpers import run

OUT = "/out/bench"
PREALLOC, EMPTY = "prealloc", "empty"
# (title, path, kind of image, operation); each at depth 32
CASES = [("null_blk read", "null", PREALLOC, "randread"),
         ("dm-linear read", "linear", PREALLOC, "randread"),
         ("dm-qcow2 read", "qcow2-bdev", PREALLOC, "randread"),
         ("dm-qcow2 own write", "qcow2-bdev", PREALLOC, "randwrite"),
         ("dm-qcow2 allocating write", "qcow2-bdev", EMPTY, "randwrite"),
         ("vhost-blk read", "vhost-null", PREALLOC, "randread"),
         ("vhost-blk and dm-qcow2 read", "vhost-bdev", PREALLOC, "randread"),
         ("dm-qcow2 read, XFS", "qcow2-xfs", PREALLOC, "randread"),
         ("dm-qcow2 own write, ext4", "qcow2-ext4", PREALLOC, "randwrite")]
WARM, COUNTED, TAIL = 0.1, 0.05, 0.1    # seconds of the guest's time


def measure(storage, path, kind, op):
    """The rate of a load in whose middle a stretch is counted."""
    with contextlib.ExitStack() as stack:
        client = path.start(storage, kind, stack)
        if kind == PREALLOC:
            run(*client, "randread", 32, 1, WARM)
        load = subprocess.Popen([*client, op, "32", "1", str(WARM + COUNTED + TAIL)],
                                stdout=subprocess.PIPE, text=True)
        time.sleep(WARM)
        run("icount_mark", int(COUNTED * 1000))
        out, _ = load.communicate(timeout=60)
        return json.loads(out)["iops"]


def main():
    storage = bench_storage.Storage()
    by_name = {path.name: path for path in paths.PATHS}
    cases = []
    for title, name, kind, op in CASES:
        if sys.argv[1:] and not any(part in name for part in sys.argv[1:]):
            continue
        iops = measure(storage, by_name[name], kind, op)
        cases.append({"case": title, "iops": iops})
        print(f"[profile] {title}: {1e9 / iops:,.0f} instructions for a request", flush=True)
    with open(f"{OUT}/profile.json", "w") as f:
        json.dump(cases, f)
    shutil.copyfile("/proc/kallsyms", f"{OUT}/kallsyms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
