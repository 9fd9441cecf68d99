# SPDX-License-Identifier: GPL-2.0-or-later
"""Discards and zeroes of many clusters at once, whose data lies side by side; and that whatever changes
what a disk reads as is noted."""
import os
import random

import pytest

from dmqcow2 import KIB, PUNCH_HOLE, ZERO_RANGE, Attached, answer, sparse
from helpers import (MIB, SECTOR, image_check, image_compare, image_create, image_map, qemu_io,
                     run)
from hooks import set_hook

CLUSTER = 4 * KIB               # so that a slice maps only 2 MiB
SIZE = 24 * MIB + 3 * SECTOR    # the last cluster is cut short


class Model:
    """What the disk should read as; a bytearray that can be compared by qemu-img."""

    def __init__(self, path, size=SIZE):
        self.path, self.data = sparse(path, size), bytearray(size)

    def fill(self, byte, at, length):
        self.data[at:at + length] = bytes([byte]) * length

    def write(self):
        with open(self.path, "wb") as f:
            f.write(self.data)
        return self.path


def scattered(disk, model, rng):
    """Data in runs of a few to many clusters: which are side by side, and where, is up to chance."""
    at = 0
    while at < SIZE:
        length = min(rng.choice((1, 3, 40, 700)) * CLUSTER, SIZE - at)
        if rng.random() < 0.8:
            byte = rng.randrange(1, 256)
            disk.write(byte, at, length)
            model.fill(byte, at, length)
        at += length


def unmap(disk, at, length):
    disk.fallocate(PUNCH_HOLE, at, length)


def zero(disk, at, length):
    disk.fallocate(ZERO_RANGE, at, length)


@pytest.mark.parametrize("kind", [
    "alone-no_unref", "backing",
    *(pytest.param(kind, marks=pytest.mark.full) for kind in ("alone", "alone-v2", "backing-v2"))])
def test_random_ranges(dm, bdev, tmp_path, request, kind):
    """Any range, at any place, discarded or zeroed in any way: the model's data, not a reference too
    many or too few, and neither neighbour touched."""
    v2, backing = kind.endswith("v2"), kind.startswith("backing")
    model, layers = Model(tmp_path / "model"), []
    options = {"cluster_size": CLUSTER, "compat": "0.10" if v2 else "1.1"}
    if backing:
        base = image_create(bdev(64 * MIB), SIZE)
        qemu_io(base, "write -P 0xbb 0 24M")
        model.fill(0xbb, 0, 24 * MIB)
        layers = [f"qcow2:{base}"]
        options["backing"] = base
    top = image_create(bdev(96 * MIB), SIZE, **options)
    features = ["discard_no_unref"] if kind.endswith("no_unref") else []
    for seed in range(8 if request.config.getoption("--full") else 2):
        rng = random.Random(seed)
        with Attached(dm, [f"qcow2:{top}", *layers], *features) as disk:
            scattered(disk, model, rng)
            for _ in range(12):
                at = rng.randrange(0, SIZE // SECTOR) * SECTOR
                length = min(rng.choice((SECTOR, CLUSTER, 64 * KIB, MIB, 5 * MIB, SIZE)), SIZE - at)
                how = rng.choice((unmap, zero, Attached.discard))
                if rng.random() < 0.5 and at + length < SIZE:
                    at, length = at // CLUSTER * CLUSTER, -(-length // CLUSTER) * CLUSTER
                length = min(length, SIZE - at)
                how(disk, at, length)
                if how is not Attached.discard:
                    model.fill(0, at, length)
                elif not (v2 and backing):
                    first = -(-at // CLUSTER) * CLUSTER
                    end = SIZE if at + length == SIZE else (at + length) // CLUSTER * CLUSTER
                    if end > first:
                        model.fill(0, first, end - first)
            if seed % 2:
                run("cmp", "-n", SIZE, model.write(), disk.path)
        image_check(top)
        image_compare(top, model.write())


@pytest.mark.parametrize("how", [Attached.discard, zero, unmap])
def test_storage_ends_in_a_cluster(dm, bdev, tmp_path, how):
    """The storage ends inside the last data cluster, as a file's does that QEMU made, put on a device of
    just its size: that cluster, and what follows it on the disk, are discarded and zeroed all the same."""
    made = image_create(tmp_path / "made", 16 * MIB, cluster_size=64 * KIB)
    qemu_io(made, "write -P 0x11 0 8M", "write -P 0x11 12M 4M")
    # Guest cluster 191 gets the last host cluster.
    qemu_io(made, f"write -P 0x22 {12 * MIB - 64 * KIB} 4k")
    end = max(e["offset"] + e["length"] for e in image_map(made) if e["data"])
    loop = bdev(64 * MIB, "loop")
    run("dd", f"if={made}", f"of={loop}", "bs=1M", "conv=fsync")
    short = dm.create("short", f"0 {(end - 60 * KIB) // SECTOR} linear {loop} 0")
    with Attached(dm, f"qcow2:{short}") as disk:
        disk.expect(0x22, 12 * MIB - 64 * KIB, 4096)
        disk.expect(0, 12 * MIB - 60 * KIB, 60 * KIB)
        how(disk, 12 * MIB - 64 * KIB, 4 * MIB)
        disk.expect(0x11, 0, 8 * MIB)
        disk.expect(0, 8 * MIB, 8 * MIB - 64 * KIB)
        disk.expect(0x11, 16 * MIB - 64 * KIB, 64 * KIB)
    dm.remove("short")


def test_large_run_is_freed_at_once(dm, bdev):
    """What is discarded in one piece is one piece to reclaim, and all of it can be used again."""
    top = image_create(bdev(40 * MIB), 64 * MIB, cluster_size=CLUSTER)
    with Attached(dm, f"qcow2:{top}", "error_if_no_space") as disk:
        for n in range(4):
            disk.write(0x11 + n, n * 16 * MIB, 16 * MIB)
            disk.flush()
            disk.expect(0x11 + n, n * 16 * MIB, 16 * MIB)
            disk.discard(n * 16 * MIB, 16 * MIB)
            disk.message("commit")
        disk.expect(0, 0, 64 * MIB)
    image_check(top)
    assert not any(e["data"] for e in image_map(top))


@pytest.mark.parametrize("kind", ["bdev", "ext4"])
def test_zeroes_in_place_on_v2(dm, bdev, filesystem, kind):
    """Version 2 over a backing file has no zero clusters: zeroes are written, 2 MiB at a time, and
    the guest's other writes to these clusters go where they belong."""
    place = bdev(96 * MIB) if kind == "bdev" else os.path.join(filesystem("ext4"), "top")
    base = image_create(bdev(64 * MIB), 32 * MIB)
    qemu_io(base, "write -P 0xbb 0 32M")
    top = image_create(place, 32 * MIB, backing=base, compat="0.10")
    with Attached(dm, [f"qcow2:{top}", f"qcow2:{base}"]) as disk:
        disk.write(0x11, MIB, 24 * MIB)
        allocated = disk.status()["allocated"]
        zero(disk, 2 * MIB + SECTOR, 16 * MIB)
        assert disk.status()["allocated"] == allocated
        disk.write(0x22, 5 * MIB, 64 * KIB)
        assert answer(zero, disk, 30 * MIB, 2 * MIB) == 0
    image_check(top)
    qemu_io(top, "read -P 0xbb 0 1M", f"read -P 0x11 1M {MIB + SECTOR}",
            f"read -P 0 {2 * MIB + SECTOR} {3 * MIB - SECTOR}", "read -P 0x22 5M 64k",
            f"read -P 0 {5 * MIB + 64 * KIB} {13 * MIB - 64 * KIB + SECTOR}",
            f"read -P 0x11 {18 * MIB + SECTOR} {7 * MIB - SECTOR}", "read -P 0xbb 25M 5M",
            "read -P 0 30M 2M")


def noted():
    with open("/sys/module/dm_qcow2/parameters/test_noted") as f:
        bits = int(f.read())
    set_hook("test_noted", 0)
    return [n for n in range(64) if bits >> n & 1]


@pytest.mark.parametrize("version", [2, 3])
def test_every_change_is_noted(dm, bdev, cleanup, version):
    """Allocating writes, writes in place, discards, zeroes in all their ways; and what changes nothing
    is not: a bit is 64 KiB."""
    set_hook("test_noted", 0)
    base = image_create(bdev(64 * MIB), 4 * MIB)
    qemu_io(base, "write -P 0xbb 0 4M")
    top = image_create(bdev(64 * MIB), 4 * MIB, backing=base,
                       compat="0.10" if version == 2 else "1.1")
    with Attached(dm, [f"qcow2:{top}", f"qcow2:{base}"]) as disk:
        noted()
        disk.expect(0xbb, 0, 4 * MIB)
        assert noted() == []
        disk.write(0x11, 3 * 64 * KIB, 4096)                    # allocating
        assert noted() == [3]
        disk.write(0x22, 3 * 64 * KIB + 4096, 4096)             # in place
        assert noted() == [3]
        disk.write(0x33, 8 * 64 * KIB, 16 * 64 * KIB)
        assert noted() == list(range(8, 24))
        zero(disk, 9 * 64 * KIB, 2 * 64 * KIB)
        assert noted() == [9, 10]
        zero(disk, 9 * 64 * KIB + 4096, 4096)                   # zeroes already, but on v2 data
        assert noted() == ([9] if version == 2 else [])
        unmap(disk, 12 * 64 * KIB, 64 * KIB + 4096)
        assert noted() == [12, 13]
        disk.discard(16 * 64 * KIB, 4 * 64 * KIB)
        assert noted() == ([16, 17, 18, 19] if version == 3 else [])
        disk.discard(20 * 64 * KIB + 4096, 4096)                # part of a cluster: nothing happens
        assert noted() == []
        zero(disk, 40 * 64 * KIB, 3 * 64 * KIB)                 # of the base
        assert noted() == [40, 41, 42]
        disk.write(0x44, 63 * 64 * KIB, 64 * KIB)
        assert noted() == [63]
    image_check(top)
