# SPDX-License-Identifier: GPL-2.0-or-later
"""/dev/vhost-blk at the level of its rings: tests/progs/ring*.c play the guest.

A case of those programs is one test here; this file gives each a device that suits it. brd answers
within submit_bio(), null_blk in an interrupt, dm-delay after a while, dm-error with an error.
"""
import os

import pytest

from helpers import MIB, run, size_of

pytestmark = pytest.mark.core

DEVICES = ["brd", "null"]


def ring(prog, case, dev, *args, timeout=180):
    done = run(prog, case, dev, *args, timeout=timeout)
    print(done.stdout, end="")
    return done.stdout


@pytest.fixture
def disk(bdev):
    """disk("brd"|"null"|...): a device of 32 MiB."""
    def make(kind, size=32 * MIB, **attributes):
        if kind == "null":
            attributes = {"irqmode": 1, "submit_queues": 2, **attributes}
        return bdev(size, kind, **attributes)
    return make


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("case", ["basic", "depth", "layouts", "regions", "malformed", "readonly",
                                  "event_idx"])
def test_requests(disk, kind, case):
    ring("ringtest", case, disk(kind))


def test_ranges(disk):
    ring("ringtest", "ranges", disk("null"))


def test_ranges_without_discard(disk):
    """Neither discard nor write-zeroes in the device: zeroes are written, discard is refused."""
    ring("ringtest", "ranges", disk("null", discard=0), "nodiscard")


def test_block_size_4096(cleanup, tmp_path):
    """On loop: null_blk with such blocks overruns its pages when segments are not aligned to them."""
    run("modprobe", "loop")
    path = tmp_path / "disk"
    with open(path, "wb") as f:
        f.truncate(32 * MIB)
    dev = run("losetup", "--find", "--show", "--sector-size", "4096", path).stdout.strip()
    cleanup(run, "losetup", "--detach", dev)
    ring("ringtest", "block4k", dev)


def test_errors(dm):
    ring("ringtest", "errors", dm.create("ring-error", "0 65536 error"))


@pytest.fixture
def slow(dm, disk, cleanup):
    """slow(ms): a device whose every request takes that long."""
    def make(ms, name="ring-slow"):
        run("modprobe", "dm-delay")
        dev = disk("brd")
        path = dm.create(name, f"0 {size_of(dev) // 512} delay {dev} 0 {ms}")
        cleanup(dm.remove, name)
        return path
    return make


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("case", ["broken", "unwritable", "resume", "kill", "workers", "churn"])
def test_life(disk, kind, case):
    ring("ringlife", case, disk(kind))


@pytest.mark.parametrize("case", ["drain", "twice", "busy", "kill", "churn"])
def test_life_in_flight(slow, disk, case):
    ring("ringlife", case, slow(5 if case in ("kill", "churn") else 300), disk("null"))


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("case", ["log", "busyloop", "ioctls"])
def test_ioctls(disk, kind, case):
    ring("ringctl", case, disk(kind))


@pytest.mark.parametrize("kind", DEVICES)
def test_fuzz(disk, kind):
    """Random rings. Give a printed seed as the third argument of ringfuzz to see a round again."""
    seconds = int(os.environ.get("RING_FUZZ_SECONDS", 10))
    print(run("ringfuzz", disk(kind), seconds, timeout=seconds + 120).stdout)
