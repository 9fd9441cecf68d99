# SPDX-License-Identifier: GPL-2.0-or-later
"""Cut the power anywhere: what is left is an image that checks, with all that was flushed.

A few workloads, recorded and replayed here. `tests/crash/run` does any number of them, with the
replay outside the guest.
"""
import json
import os
import sys

import pytest

from helpers import Dm, NullBlk, run

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "crash"))
import record   # noqa: E402


def full(seeds, effort):
    """Workloads of the long runs only."""
    return [pytest.param(seed, effort, marks=pytest.mark.full) for seed in seeds]


@pytest.fixture
def disks(cleanup):
    """Storage for a kind of place, the log device, and a Dm that is undone before they go."""
    def make(kind):
        run("modprobe", "-a", "dm-log-writes", "loop")
        storage = NullBlk(record.STORAGE if kind == "bdev" else record.FILESYSTEM)
        cleanup(storage.remove)
        log = NullBlk(record.LOG)
        cleanup(log.remove)
        dm = Dm()
        cleanup(dm.remove_all)
        return dm, storage, log
    return make


def replay(directory, *options):
    """Cut the power everywhere in a recorded workload; the finished process."""
    with open(directory / "replay.json") as f:
        arguments = json.load(f)
    return run("crash_replay", "--base", "base", "--log", "log", "--journal", "journal", *arguments,
               "--qemu-img", "qemu-img", "--qemu-every", 150, "--keep", "state", *options,
               check=False, timeout=900, cwd=directory)


@pytest.mark.parametrize("seed,ops", [(2, 200), (1, 200), (5, 200), *full(range(100, 138), 4000)])
def test_block_device(disks, tmp_path, seed, ops):
    """Up to so many operations, about half of them writes."""
    dm, storage, log = disks("bdev")
    w = record.Workload(seed, ops)
    record.record(w, dm, storage, log, tmp_path, record.qcow2_target)
    done = replay(tmp_path, *(["--every-write"] if seed % 2 else []))
    assert done.returncode == 0, f"{w.describe()}\n{done.stdout}{done.stderr}"
    print(done.stdout)
    # the replay itself can fail: without any flush having been one, something flushed is missing
    done = replay(tmp_path, "--forget-flushes")
    assert done.returncode == 1 and "FAILED" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
@pytest.mark.parametrize("seed,percent", [(3, 5), *full(range(100, 105), 100)])
def test_file(disks, tmp_path, fstype, seed, percent):
    """Each state is a file system to be mounted, so a sample of them is; in long runs all are."""
    dm, storage, log = disks("file")
    w = record.Workload(seed, 120)
    assert record.record_file(w, dm, storage, log, fstype, record.qcow2_target, 20, percent) == 0
