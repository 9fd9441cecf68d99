# SPDX-License-Identifier: GPL-2.0-or-later
"""What a reader feels of a guest's fstrim beside it, in the guest.

A guest discards ten thousand ranges of a cluster each, while a load reads another part of the disk.
Each freed cluster has to be given back to the file system that the image lies in, and direct I/O on
the file waits meanwhile. The ranges are `apart` (every other cluster: ten thousand holes) or
`shuffled` (all clusters of a region, in no order: one hole, if it is found).
"""
import json
import os
import random
import threading

from dmqcow2 import KIB, Disk
from helpers import MIB, image_create, run, sync_caches, wait_for
from storage import PREALLOC, SECTOR

CLUSTER = 8 * KIB
EXTENTS = 10000
READ = 64 * MIB         # the reader's part; what is discarded lies behind it
DEPTH = 4
LIMIT = 300             # seconds of a trim
KINDS = ("apart", "shuffled")


def ranges(kind):
    step = 2 * CLUSTER if kind == "apart" else CLUSTER
    found = [READ + n * step for n in range(EXTENTS)]
    if kind == "shuffled":
        random.Random(1).shuffle(found)
    return found


class Trim(threading.Thread):
    """Discards, and waits until all of it has been given back."""

    def __init__(self, dm, path, kind):
        super().__init__(daemon=True)
        self.dm, self.path, self.kind, self.error = dm, path, kind, None

    def run(self):
        try:
            goal = self.dm.qcow2_status("bench")["allocated"] - EXTENTS
            with Disk(self.path) as disk:
                for at in ranges(self.kind):
                    disk.discard(at, CLUSTER)
            self.dm.message("bench", "commit")
            wait_for(lambda: self.dm.qcow2_status("bench")["allocated"] <= goal, LIMIT,
                     what="discarded clusters to be free")
        except Exception as e:  # pylint: disable=broad-except
            self.error = e


def read(path, seconds):
    done = run("blockload", "uring", path, "randread", DEPTH, 1, seconds, 4 * KIB, READ)
    return json.loads(done.stdout)


def middle(found, figure):
    return sorted(r[figure] for r in found)[len(found) // 2]


def measure(storage, place, kind, seconds):
    """{what: number} of one image, fresh, on a file system."""
    image = f"{storage.filesystem(place)}/trim.qcow2"
    image_create(image, PREALLOC, preallocation="full", cluster_size=CLUSTER)
    sync_caches()
    path = storage.dm.create_qcow2("bench", [f"qcow2:{image}"], sectors=PREALLOC // SECTOR)
    try:
        read(path, seconds)
        alone = [read(path, seconds) for _ in range(5)]
        trim = Trim(storage.dm, path, kind)
        trim.start()
        beside = []
        while trim.is_alive():
            beside.append(read(path, seconds))
        if trim.error:
            raise AssertionError(f"the trim failed: {trim.error}")
    finally:
        storage.dm.remove("bench")
        os.unlink(image)
    return {"alone_iops": middle(alone, "iops"), "alone_p99_us": middle(alone, "p99_us"),
            "iops": middle(beside, "iops"), "p99_us": middle(beside, "p99_us"),
            "worst_p99_us": max(r["p99_us"] for r in beside),
            "trim_s": round(len(beside) * seconds, 2)}
