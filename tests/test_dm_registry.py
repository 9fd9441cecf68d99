# SPDX-License-Identifier: GPL-2.0-or-later
"""Opening and closing images whose storage does not answer: others are not held up, and whoever waits can
be killed."""
import os
import signal
import threading
import time

import pytest

from dmqcow2 import KIB, Attached
from helpers import MIB, SECTOR, image_check, image_create, qemu_io, run, wait_for

SIZE = 32 * MIB


class Stalled:
    """A linear device that can be made to hold all I/O back; an image can be put on it."""

    def __init__(self, dm, bdev, size=64 * MIB):
        self.dm = dm
        self.path = dm.create("stalled", f"0 {size // SECTOR} linear {bdev(size)} 0")

    def stop(self):
        # The page cache has to be clean first: a suspend with lockfs would want to write to it.
        run("blockdev", "--flushbufs", self.path)
        self.dm.suspend("stalled", "--nolockfs")

    def go(self):
        self.dm.resume("stalled")


@pytest.fixture
def stalled(dm, bdev):
    return Stalled(dm, bdev)


def creating(dm, spawn, name, image, features=""):
    """dmsetup create, in a process of its own."""
    dm.names.append(name)
    return spawn("dmsetup", "create", name, "--noudevsync", "--table",
                 f"0 {SIZE // SECTOR} qcow2 1 qcow2:{image} {features}".strip())


def blocked(proc):
    """Does the process wait in the kernel, and not for a moment?"""
    def state():
        with open(f"/proc/{proc.pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0]
    wait_for(lambda: state() in "SD", what="the process to wait")
    time.sleep(0.5)
    return proc.poll() is None and state() in "SD"


def test_others_are_not_held_up(dm, bdev, spawn, stalled):
    """While one image is being opened, on storage that does not answer, others come and go."""
    image, other = image_create(stalled.path, SIZE), image_create(bdev(64 * MIB), SIZE)
    stalled.stop()
    proc = creating(dm, spawn, "hangs", image)
    assert blocked(proc)
    for _ in range(2):
        with Attached(dm, f"qcow2:{other}") as disk:
            disk.write(0x11, 0, MIB)
            dm.reload("q", disk.table())
    stalled.go()
    assert proc.wait(timeout=60) == 0
    dm.remove("hangs")
    for path in (image, other):
        image_check(path)
    dm.remove("stalled")


def test_image_on_a_suspended_device_of_ours(dm, bdev, spawn):
    """An image inside an image: while the lower device is suspended the upper one cannot be opened, and
    the lower one gets its new table all the same, and goes on."""
    lower = image_create(bdev(128 * MIB), 80 * MIB)
    device = dm.create_qcow2("lower", [f"qcow2:{lower}"])
    upper = image_create(device, SIZE)
    run("blockdev", "--flushbufs", device)
    dm.suspend("lower", "--nolockfs")
    proc = creating(dm, spawn, "upper", upper)
    assert blocked(proc)
    run("dmsetup", "load", "lower", "--table", dm.table("lower"), timeout=60)
    run("dmsetup", "resume", "--noudevsync", "lower", timeout=60)
    assert proc.wait(timeout=60) == 0
    run("dmsetup", "mknodes")
    dm.remove("upper")
    dm.remove("lower")
    image_check(lower)


@pytest.mark.parametrize("features", ["", "1 read_only"])
def test_killed_while_opening(dm, spawn, stalled, features):
    """A process that waits for an image to be opened can be killed. What it had begun ends with the
    storage's answer, and the image can be had again."""
    image = image_create(stalled.path, SIZE)
    stalled.stop()
    procs = [creating(dm, spawn, f"hangs{n}", image, features) for n in range(3)]
    assert all(blocked(proc) for proc in procs)
    for proc in procs:
        os.kill(proc.pid, signal.SIGKILL)
    for proc in procs:
        assert proc.wait(timeout=30) == -signal.SIGKILL
    stalled.go()

    def again():
        done = dm.create_qcow2("q", [f"qcow2:{image}"], sectors=SIZE // SECTOR, check=False)
        return not done.returncode
    wait_for(again, what="the image to be free")
    dm.remove("q")
    image_check(image)
    for n in range(3):
        run("dmsetup", "remove", f"hangs{n}", check=False)
    dm.remove("stalled")


def test_many_at_once(dm, bdev, tmp_path):
    """The same images opened and closed from several sides at the same time, some for the first and some
    for the last time, on all kinds of ways in."""
    base = image_create(bdev(64 * MIB), SIZE)
    qemu_io(base, "write -P 0x11 0 4M")
    tops = [image_create(tmp_path / f"top{n}", backing=base) for n in range(4)]
    failures = []

    def life(n):
        name = f"life{n}"
        try:
            for round in range(12):
                layers = f"2 qcow2:{tops[n]} qcow2:{base}" if round % 3 else f"1 qcow2:{base} 1 read_only"
                run("dmsetup", "create", name, "--noudevsync", "--table",
                    f"0 {SIZE // SECTOR} qcow2 {layers}")
                run("dmsetup", "remove", "--noudevsync", "--retry", name)
        except BaseException as e:
            failures.append(e)
    dm.names += [f"life{n}" for n in range(4)]
    threads = [threading.Thread(target=life, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
        assert not thread.is_alive(), "one of them hangs"
    assert not failures, failures
    run("dmsetup", "mknodes")
    for image in [base, *tops]:
        image_check(image)
