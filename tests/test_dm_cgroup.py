# SPDX-License-Identifier: GPL-2.0-or-later
"""Whoever writes pays: the storage sees the cgroup and the I/O priority of a guest's first writes, too,
which the image's writer makes."""
import os
import re
import signal

import pytest

from dmqcow2 import KIB, Attached, Place
from helpers import MIB, image_check, image_create, qemu_io, run, wait_for

ROOT = "/sys/fs/cgroup"
TRACING = "/sys/kernel/tracing"


def put(path, text):
    with open(path, "w") as f:
        f.write(text)


@pytest.fixture
def cgroup(cleanup):
    """A control group whose I/O is counted and can be limited."""
    path = f"{ROOT}/tenant"
    if not os.path.exists(f"{ROOT}/cgroup.controllers"):
        pytest.skip("this kernel has no control groups")
    put(f"{ROOT}/cgroup.subtree_control", "+io")
    os.mkdir(path)
    cleanup(os.rmdir, path)
    return path


def number(dev):
    st = os.stat(dev).st_rdev
    return f"{os.major(st)}:{os.minor(st)}"


def storage_of(place, path):
    """The block device that an image is on."""
    if place.directory is None:
        return path
    return run("findmnt", "-n", "-o", "SOURCE", "-T", path).stdout.strip()


def counted(cgroup, dev, what):
    with open(f"{cgroup}/io.stat") as f:
        for line in f:
            if line.startswith(number(dev) + " "):
                found = re.search(rf"{what}=(\d+)", line)
                return int(found[1]) if found else 0
    return 0


def inside(cgroup, *argv):
    """A command line that runs in a control group."""
    return ["sh", "-c", f'echo $$ >{cgroup}/cgroup.procs && exec "$@"', "sh", *argv]


def writing(disk, mib, at=0, bs="64k"):
    return ["dd", "if=/dev/urandom", f"of={disk.path}", f"bs={bs}", "oflag=direct", "status=none",
            f"count={mib * MIB // (int(bs[:-1]) * KIB)}", f"seek={at * MIB // (int(bs[:-1]) * KIB)}"]


@pytest.mark.parametrize("backing", ["none", "qcow2"])
@pytest.mark.parametrize("kind", ["bdev", "ext4", "xfs"])
def test_first_writes_are_charged(dm, bdev, filesystem, cgroup, kind, backing):
    """New clusters, written whole or filled up from a base: the storage counts all of it for the group
    that wrote; what was there before is counted as ever."""
    place = Place(kind, bdev, filesystem)
    below = []
    if backing == "qcow2":
        below = [image_create(place("base"), 32 * MIB)]
        qemu_io(below[0], "write -P 0x11 0 32M")
    image = image_create(place("image"), *([] if below else [32 * MIB]),
                         backing=below[0] if below else None)
    dev = storage_of(place, image)
    with Attached(dm, [f"qcow2:{image}"] + [f"qcow2:{b}" for b in below]) as disk:
        for bs in ("64k", "4k"):
            before = counted(cgroup, dev, "wbytes")
            run(*inside(cgroup, *writing(disk, 4, at=8 if bs == "4k" else 0, bs=bs)))
            assert counted(cgroup, dev, "wbytes") >= before + 4 * MIB, bs
        if below:
            assert counted(cgroup, storage_of(place, below[0]), "rbytes") >= 4 * MIB // 2
        before = counted(cgroup, dev, "wbytes")
        run(*inside(cgroup, *writing(disk, 4)))
        assert counted(cgroup, dev, "wbytes") >= before + 4 * MIB
    image_check(image)


def test_first_writes_are_limited(dm, bdev, spawn, cgroup):
    """io.max on the storage holds a tenant's first writes back, and nobody else's."""
    image = image_create(bdev(128 * MIB), 64 * MIB)
    try:
        put(f"{cgroup}/io.max", f"{number(image)} wiops=2")
    except OSError:
        pytest.skip("this kernel cannot limit I/O")
    with Attached(dm, f"qcow2:{image}") as disk:
        tenant = spawn(*inside(cgroup, *writing(disk, 4)))      # 64 writes: half a minute
        wait_for(lambda: counted(cgroup, image, "wios"), what="the tenant's first write")
        run(*writing(disk, 16, at=32))                          # 256 of somebody else's
        assert tenant.poll() is None, "the tenant was not held back"
        put(f"{cgroup}/io.max", f"{number(image)} wiops=max")
        assert tenant.wait(timeout=60) == 0
    image_check(image)


@pytest.mark.parametrize("kind", ["bdev", "ext4"])
def test_first_writes_have_their_priority(dm, bdev, filesystem, cleanup, kind):
    """The storage sees the priority of whoever wrote."""
    event = f"{TRACING}/events/block/block_rq_issue"
    if not os.path.exists(event):
        pytest.skip("this kernel cannot trace requests")
    with open(f"{event}/format") as f:
        if "ioprio" not in f.read():
            pytest.skip("this kernel does not trace the priority")
    place = Place(kind, bdev, filesystem)
    image = image_create(place("image"), 32 * MIB)
    dev = storage_of(place, image)
    with Attached(dm, f"qcow2:{image}") as disk:
        cleanup(put, f"{event}/enable", "0")
        put(f"{event}/filter", "nr_sector >= 128")
        cleanup(put, f"{event}/filter", "0")
        put(f"{TRACING}/trace", "")
        put(f"{event}/enable", "1")
        run("ionice", "-c", "1", "-n", "3", *writing(disk, 2))
        put(f"{event}/enable", "0")
        with open(f"{TRACING}/trace") as f:
            lines = [line for line in f
                     if re.search(rf" {number(dev).replace(':', ',')} W[^M ]* .* \+ 128 ", line)]
    assert len(lines) >= 8 and all(" rt,0,3 " in line for line in lines), lines
    image_check(image)
