# SPDX-License-Identifier: GPL-2.0-or-later
"""`qcow2attach map` and the message under it: what QEMU tells of an image that is not attached is what we
tell while it is, and while a guest writes to it."""
import json
import os
import random
import subprocess
import threading

import pytest

from dmqcow2 import GIB, KIB, Attached
from helpers import (MIB, SECTOR, image_create, image_map, qemu_io, run)
from toolcli import attach, images, refused, tool  # noqa: F401  (fixtures among them)

KEYS = ("start", "length", "depth", "present", "zero", "data", "compressed", "offset")


def ours(name):
    extents = json.loads(tool("map", name, "--json")[0])
    at = 0
    for e in extents:
        assert e["start"] == at, "a gap"
        at += e["length"]
    return extents


def theirs(path):
    return [{k: e[k] for k in KEYS if k in e} for e in image_map(path)]


def scatter(path, seed, size, cluster=64 * KIB):
    """Data, zeroes that keep their cluster, zeroes that do not, and nothing, in no order."""
    rng = random.Random(seed)
    commands = []
    for n in range(60):
        at = rng.randrange(size // cluster) * cluster
        length = min(rng.choice((1, 2, 9)) * cluster, size - at)
        how = rng.choice((f"-P {n + 1}", f"-P {n + 1}", "-z", "-z -u"))
        commands.append(f"write -q {how} {at} {length}")
    qemu_io(path, *commands)


def test_as_qemu(images, attach):  # noqa: F811
    """A chain of three, each shorter than the one above it, with all kinds of clusters in each; and what
    people read of it."""
    base = image_create(f"{images}/base.qcow2", 8 * MIB + 7 * SECTOR)
    scatter(base, 1, 8 * MIB)
    mid = image_create(f"{images}/mid.qcow2", 16 * MIB, backing=base)
    scatter(mid, 2, 16 * MIB)
    top = image_create(f"{images}/top.qcow2", 24 * MIB + 3 * SECTOR, backing=mid, cluster_size="4k")
    scatter(top, 3, 24 * MIB, 4 * KIB)
    expected = theirs(top)
    table = run("qemu-img", "map", "-f", "qcow2", top).stdout
    attach(top)
    assert ours("top") == expected
    assert tool("map", "top")[0] == table
    assert tool("map", "/dev/mapper/top")[0] == table
    assert {(e["depth"], e["data"], e["present"]) for e in expected} >= {
        (0, True, True), (1, True, True), (2, True, True), (0, False, True), (2, False, False),
        (1, False, False), (0, False, False)}, "the images have not all there is"


def test_compressed_and_preallocated(images, attach):  # noqa: F811
    plain = image_create(f"{images}/plain.qcow2", 8 * MIB)
    qemu_io(plain, "write -P 1 1M 2M", "write -P 2 5M 1M")
    packed = f"{images}/packed.qcow2"
    run("qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", plain, packed)
    made = image_create(f"{images}/made.qcow2", 8 * MIB, preallocation="metadata")
    for image in packed, made:
        expected = theirs(image)
        if image == made:       # QEMU also asks the file, which has a hole where nothing is written yet
            assert [e.pop("zero") for e in expected] == [True]
            expected[0]["zero"] = False
            expected = [{k: e[k] for k in KEYS} for e in expected]
        attach("--read-only", image)
        assert ours(os.path.basename(image)[:-len(".qcow2")]) == expected
    lines = tool("map", "packed")[0].splitlines()
    assert lines[1].split() == ["0x100000", "0x200000", "compressed", packed]


def test_large(dm, bdev):
    """A tebibyte with next to nothing in it is told in few pages, with a cache of 16 slices."""
    huge = image_create(bdev(64 * MIB), 1024 * GIB)
    with Attached(dm, f"qcow2:{huge}", "l2_cache_kib 64", name="huge") as disk:
        disk.write(1, 1024 * GIB - 64 * KIB, 64 * KIB)
        disk.write(1, 512 * GIB, 64 * KIB)
        pages, at = 0, 0
        told = []
        while at < 1024 * GIB // SECTOR:
            lines = dm.message("huge", "map", at).splitlines()
            for start, length, kind, *_ in map(str.split, lines):
                assert int(start) == at
                at += int(length)
                if kind == "data":
                    told.append((int(start) * SECTOR, int(length) * SECTOR))
            pages += 1
        assert told == [(512 * GIB, 64 * KIB), (1024 * GIB - 64 * KIB, 64 * KIB)]
        assert pages < 100


def test_many_extents(images, attach):  # noqa: F811
    """More extents than a page holds: they are put together, to the last one."""
    image = image_create(f"{images}/many.qcow2", 64 * MIB, cluster_size="4k")
    attach(image)
    with open("/dev/mapper/many", "r+b", buffering=0) as disk:
        for n in range(0, 8192, 2):
            disk.seek(n * 8 * KIB)
            disk.write(b"x" * 4 * KIB)
        os.fsync(disk.fileno())
    extents = ours("many")
    assert len(extents) == 8192
    tool("detach", "many")
    assert extents == theirs(image)


def test_while_it_is_written(images, attach):  # noqa: F811
    """Under writes, discards and an empty cache the answer has neither gap nor overlap, and what nobody touches
    is told right each time."""
    image = image_create(f"{images}/busy.qcow2", 64 * MIB)
    qemu_io(image, "write -q -P 1 48M 4M")
    attach(image)
    stop = threading.Event()

    def write():
        rng = random.Random(4)
        while not stop.is_set():
            at = rng.randrange(512) * 64
            run("dd", "if=/dev/zero", "of=/dev/mapper/busy", "bs=1k", f"seek={at}", "count=64",
                "oflag=direct", "conv=notrunc", "status=none")
            run("blkdiscard", "-o", at * KIB, "-l", 64 * KIB, "/dev/mapper/busy")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(30):
            extents = ours("busy")
            assert [(e["start"], e["length"]) for e in extents if e["data"] and
                    e["start"] >= 48 * MIB] == [(48 * MIB, 4 * MIB)]
            run("dmsetup", "message", "busy", "0", "drop_cache")
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("message, words", [
    ("map", None), ("map x", "invalid sector 'x'"), ("map 0x", "invalid sector '0x'"),
    ("map 131072", "the disk has 131072 sectors"), ("map 0 0", "unrecognised message map"),
])
def test_message(dm, bdev, kernel_log, message, words):
    """From the beginning where no sector is given; what is wrong with the one given is told."""
    image = image_create(bdev(80 * MIB), 64 * MIB)
    with Attached(dm, f"qcow2:{image}"):
        done = dm.message("q", *message.split(), check=False)
        if words is None:
            assert (done.returncode, done.stdout.strip()) == (0, "0 131072 unallocated 0")
        else:
            assert done.returncode and kernel_log.grep(words), kernel_log.read()


def test_damaged_table(images, attach, kernel_log):  # noqa: F811
    """What can be told before the damage is told, then the range is named."""
    image = image_create(f"{images}/bad.qcow2", 64 * MIB)
    qemu_io(image, "write -q -P 1 0 1M", "write -q -P 1 32M 1M")
    with open(image, "r+b") as f:
        f.seek(40)
        l1 = int.from_bytes(f.read(8), "big")
        f.seek(l1)
        l2 = int.from_bytes(f.read(8), "big") & ~(1 << 63)
        f.seek(l2 + 8 * 512)
        f.write((0x200).to_bytes(8, "big"))         # not aligned to a cluster
    attach("--read-only", image)
    done = run("qcow2attach", "map", "bad", "--json", check=False)
    assert done.returncode == 1 and "bad" in done.stderr and "error" in done.stderr.lower()
    told = json.loads(done.stdout)
    assert [(e["start"], e["length"], e["data"]) for e in told] == [
        (0, MIB, True), (MIB, 31 * MIB, False)]
    assert "bad table at guest offset 33554432" in done.stderr
    assert kernel_log.grep("guest offset 33554432")


def test_refusals(images):  # noqa: F811
    assert "map takes the name of one" in refused("map", code=2)
    assert "map takes the name of one" in refused("map", "a", "b", code=2)
    assert "nothing" in refused("map", "nothing", code=1)


def test_output_that_cannot_be_written(images, attach):  # noqa: F811
    """A full disk does not pass for success, in any verb."""
    attach(image_create(f"{images}/disk.qcow2", 8 * MIB))
    for verb in (["map", "disk", "--json"], ["map", "disk"], ["list"], ["status"], ["attach", "--help"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(["qcow2attach", *verb], stdin=subprocess.DEVNULL, stdout=full,
                                  stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1 and "cannot write the output: No space left" in done.stderr, verb


def test_device_without_an_image(images, attach):  # noqa: F811
    """Closed by force, it has none, and is not told as one that is empty."""
    path = attach(image_create(f"{images}/gone.qcow2", 8 * MIB))
    with open(path, "rb"):
        tool("detach", "--force", "gone")
        done = run("qcow2attach", "map", "gone", "--json", check=False)
        assert done.returncode == 1 and not done.stdout and "gone" in done.stderr
    run("dmsetup", "mknodes")


def test_killed_while_it_asks(images, attach):  # noqa: F811
    """A table is not read by the process that asks, and its death does no harm to a reader that waits for
    the same table. (Only network filesystems would break off a read of the process itself.)"""
    image = image_create(f"{images}/shot.qcow2", 512 * GIB, preallocation="off")
    attach(image, "--cache", "256K")
    with open("/dev/mapper/shot", "r+b", buffering=0) as disk:
        for n in range(0, 256):
            disk.seek(n * GIB)
            disk.write(b"x" * 4 * KIB)
        os.fsync(disk.fileno())
        for n in range(40):
            run("dmsetup", "message", "shot", "0", "drop_cache")
            asking = subprocess.Popen(["qcow2attach", "map", "shot"], stdout=subprocess.DEVNULL)
            disk.seek(n * 5 * GIB)
            assert disk.read(4 * KIB) == b"x" * 4 * KIB
            asking.kill()
            asking.wait()
