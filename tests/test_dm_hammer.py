# SPDX-License-Identifier: GPL-2.0-or-later
"""Threads that map, discard, zero and copy the same few clusters at once, without any order among them.

The differential test keeps its operations apart where they touch the same sectors, so that it knows
exactly what each must read. Here nothing is kept apart; tests/progs/hammer.c knows what is
impossible. Under the kernels with checkers (`debug`, `kcsan`) the I/O is the least of it: their
reports are what this is for.

HAMMER_SEED and HAMMER_SECONDS replay or lengthen a run.
"""
import os
import re

import pytest

from dmqcow2 import KIB, Attached, Chain, Controller, Place, verify_device
from helpers import SECTOR, image_check, run

pytestmark = pytest.mark.races

SECONDS = int(os.environ.get("HAMMER_SECONDS", "0"))
SEED = int(os.environ.get("HAMMER_SEED", "1"))
# Few enough to meet in, and an odd number of sectors past the last whole one.
CLUSTERS, LEAST_SIZE = 20, 384 * KIB


class SlowPlace(Place):
    """Block devices that hold reads back for some milliseconds. What was looked up before a cluster
    was given away is then still being read when somebody else has it."""

    def __init__(self, dm, cleanup, read_ms, *args):
        super().__init__(*args)
        self.dm, self.cleanup, self.read_ms = dm, cleanup, read_ms

    def __call__(self, name):
        below = super().__call__(name)
        if not self.read_ms:
            return below
        slow = self.dm.create(f"slow-{name}", f"0 {self.size // SECTOR} delay {below} 0 "
                              f"{self.read_ms} {below} 0 0")
        self.cleanup(self.dm.remove, f"slow-{name}")
        return slow


def hammer(dm, chain, seconds, seed, threads=8):
    """Run the program on a device that a controller disturbs; returns how many of what were done."""
    argv = ["hammer", "--seed", seed, "--seconds", seconds, "--threads", threads,
            "--cluster", chain.cluster, "--model", chain.model, "/dev/mapper/q"]
    controller = Controller(dm, "q", seed)
    controller.start()
    try:
        done = run(*argv, check=False, timeout=10 * seconds + 240)
    finally:
        controller.stop()
    print(done.stdout, controller.done)
    assert done.returncode == 0, f"{argv}; the controller did {controller.done}\n" \
        f"{done.stdout}{done.stderr}"
    return {name: int(n) for n, name in re.findall(r"(\d+) ([a-z-]+)", done.stdout)}


@pytest.mark.parametrize("length", [pytest.param(2, id="short"),
                                    pytest.param(40, id="long", marks=pytest.mark.full)])
@pytest.mark.parametrize("storage, backing, cluster, read_ms, cache_kib", [
    ("bdev", "none", 64, 5, 0), ("bdev", "qcow2", 64, 0, 0), ("ext4", "raw", 4, 0, 128),
    ("bdev", "deep", 64, 0, 128),
], ids=lambda v: str(v))
def test_hammer(dm, bdev, filesystem, cleanup, tmp_path, storage, backing, cluster, read_ms,
                cache_kib, length):
    place = SlowPlace(dm, cleanup, read_ms, storage, bdev, filesystem)
    size = max(CLUSTERS * cluster * KIB, LEAST_SIZE) + 5 * SECTOR
    chain = Chain(place, tmp_path, backing, size, 3, cluster * KIB, SEED)
    features = [f"l2_cache_kib {cache_kib}"] if cache_kib else []
    with Attached(dm, chain.layers, *features) as disk:
        disk.close()
        counts = hammer(dm, chain, SECONDS or length, SEED)
        assert all(counts.values()), counts
        status = disk.status()
        assert status["mode"] == "rw" and "corrupt" not in status["attention"]
    chain.verify()
    with Attached(dm, chain.layers, *features) as disk:
        verify_device(disk.path, chain.model)
    image_check(chain.top)


def test_a_wrong_model_is_noticed(dm, bdev, filesystem, tmp_path):
    """What the device holds at the start is compared, too."""
    chain = Chain(Place("bdev", bdev, filesystem), tmp_path, "raw", LEAST_SIZE)
    with open(chain.model, "r+b") as f:
        f.seek(100 * KIB)
        f.write(b"changed")
    with Attached(dm, chain.layers):
        done = run("hammer", "--model", chain.model, "/dev/mapper/q", check=False)
    assert done.returncode == 2 and "does not hold" in done.stderr
