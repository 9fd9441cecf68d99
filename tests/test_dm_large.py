# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks of a size at which the kernel's own structures have all the levels that they can have, and
where far more tables are asked for at once than are kept in memory.

What these disks hold is little: their tables are far apart, and mostly holes in the image's file.
"""
import os
import struct
import time

import pytest

from dmqcow2 import HEADER, KIB, Attached
from helpers import MIB, image_check, image_create, run, sysfs

GIB = 1024 * MIB
SLICE = 4 * KIB         # what is read of a table at a time


def image_with_tables(path, size, cluster, apart=1, every=1):
    """Create an image whose guest clusters are all unallocated though there are L2 tables: each
    EVERYth of those that there can be, in each APARTth host cluster. Their refcounts are not right,
    so it can only be read.
    """
    image_create(path, size, cluster_size=cluster)
    with open(path, "r+b") as f:
        f.seek(HEADER["l1_offset"][0])
        at, = struct.unpack(">Q", f.read(8))
        entries = -(-size // (cluster * (cluster // 8)))
        first = -(-(at + 8 * entries) // cluster) + 1
        l1 = [0] * entries
        for n, i in enumerate(range(0, entries, every)):
            l1[i] = (first + apart * n) * cluster | 1 << 63
        f.seek(at)
        f.write(struct.pack(f">{entries}Q", *l1))
        if os.path.isfile(path):
            f.truncate((first + apart * entries) * cluster)
    return path


def reads(device):
    return int(sysfs(device, "stat").split()[0])


@pytest.mark.core
@pytest.mark.parametrize("gib", [4, 9, 16, 33, 60])
def test_set_of_tables(dm, tmp_path, gib):
    """Thousands of tables that do not lie side by side are noted as metadata, and forgotten with the
    device."""
    image = image_with_tables(tmp_path / "image", gib * GIB, 4 * KIB, apart=2)
    with Attached(dm, f"qcow2:{image}", "read_only") as disk:
        disk.expect(0, gib * GIB - MIB, MIB)
    time.sleep(0.2)         # for what the kernel frees only after a grace period


def test_discard_of_more_than_is_cached(dm, bdev):
    """One command, hundreds of bios, each with tables of its own: each slice is read once or twice."""
    storage = bdev(64 * MIB)
    tables = 512
    image_with_tables(storage, 2048 * GIB, 64 * KIB, every=8)
    run("qemu-img", "check", "-q", "-f", "qcow2", "-r", "all", storage, check=False)
    with Attached(dm, f"qcow2:{storage}", "l2_cache_kib", "128") as disk:
        before = reads(storage)
        run("blkdiscard", disk.path)
        read = reads(storage) - before
        print(read, "reads")
        assert tables * 64 * KIB // SLICE <= read <= 2.1 * tables * 64 * KIB // SLICE
        assert dm.qcow2_status("q")["cache_kib"] <= 128


@pytest.mark.parametrize("rw, layers", [("randwrite", 1), ("randwrite", 3), ("randread", 1),
                                        ("randread", 2), ("randread", 6)])
def test_io_on_more_than_is_cached(dm, bdev, tmp_path, rw, layers):
    """As much at once as a guest with several queues can ask for, all over the disk: bios do not push
    out each other's slices for ever, neither of one image nor of a chain."""
    chain = [bdev((64 if n else 512) * MIB) for n in range(layers)]
    for n, storage in enumerate(chain):
        image_with_tables(storage, 256 * GIB, 64 * KIB)
        run("qemu-img", "check", "-q", "-f", "qcow2", "-r", "all", storage)
        if n:
            run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", storage, "-F", "qcow2", chain[n - 1])
    with Attached(dm, [f"qcow2:{storage}" for storage in chain], "l2_cache_kib", "128") as disk:
        before = [reads(storage) for storage in chain]
        verify = ["--verify=crc32c", "--do_verify=1", "--verify_fatal=1"]
        run("fio", f"--filename={disk.path}", "--name=j", f"--rw={rw}", "--bs=4k", "--direct=1",
            "--ioengine=libaio", "--iodepth=512", "--iodepth_batch=512", f"--size={256 * GIB}",
            "--number_ios=3000", "--random_generator=lfsr", f"--aux-path={tmp_path}",
            *(verify if rw == "randwrite" else []), timeout=240)
        read = [reads(storage) - n for storage, n in zip(chain, before)]
        print(read, "reads")
        assert max(read) < 10 * 3000
    image_check(chain[0])


@pytest.mark.parametrize("gib, cluster, version, cache_kib, writes", [
    (60, 4, 3, 256, 3000), (8192, 64, 3, 256, 2000), (8192, 64, 2, None, 1000),
    (256 * 1024, 2048, 3, None, 100)])
def test_all_over_the_disk(dm, tmp_path, gib, cluster, version, cache_kib, writes):
    """Writes and discards that make and use tables everywhere."""
    image = image_create(tmp_path / "image", gib * GIB, cluster_size=cluster * KIB,
                         compat="1.1" if version == 3 else "0.10")
    features = ("l2_cache_kib", str(cache_kib)) if cache_kib else ()
    verified = ["fio", "--filename=/dev/mapper/q", "--name=j", "--rw=randwrite", "--bs=4k",
                "--direct=1", "--ioengine=libaio", "--iodepth=16", "--fsync=200",
                f"--size={gib * GIB}", f"--number_ios={writes}", "--random_generator=lfsr",
                "--randseed=5", "--verify=crc32c", "--verify_fatal=1", f"--aux-path={tmp_path}"]
    with Attached(dm, f"qcow2:{image}", *features):
        run(*verified, "--do_verify=1", timeout=240)
    image_check(image)
    allocated = []
    for how in ((), ("-o", gib * GIB // 2, "-l", gib * GIB // 4), ("-o", 0)):
        with Attached(dm, f"qcow2:{image}", *features) as disk:
            if how:
                run("blkdiscard", *how, disk.path)
            else:
                run(*verified, "--verify_only=1", timeout=240)
        image_check(image)
        with Attached(dm, f"qcow2:{image}", *features) as disk:
            allocated.append(dm.qcow2_status("q")["allocated"])
    print(allocated)
    assert allocated[2] < allocated[1] < allocated[0]
