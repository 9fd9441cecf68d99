# SPDX-License-Identifier: GPL-2.0-or-later
"""Storage that fails or fills up below the image, file systems on top of it, and what is left when
all is gone."""
import errno
import hashlib
import json
import os
import random
import re
import threading
import time

import pytest

from dmqcow2 import GIB, KIB, Attached, Disk, Place, answer
from helpers import MIB, SECTOR, Mount, image_check, image_create, qemu_io, run, wait_for


# ---- on top ----

def fill(directory, seed):
    """Write files of all sizes, some synced, some removed again; {name: checksum} of the rest."""
    rng = random.Random(seed)
    sums = {}
    for i in range(60):
        data = rng.randbytes(rng.choice((10, 5000, 70000, 900000)))
        path = os.path.join(directory, f"file{i}")
        with open(path, "wb") as f:
            f.write(data)
            if i % 7 == 0:
                os.fsync(f.fileno())
        sums[path] = hashlib.sha256(data).hexdigest()
        if i % 5 == 4:
            victim = rng.choice(sorted(sums))
            os.remove(victim)
            del sums[victim]
    return sums


def intact(sums):
    for path, wanted in sums.items():
        with open(path, "rb") as f:
            assert hashlib.sha256(f.read()).hexdigest() == wanted, path


@pytest.mark.parametrize("upper, lower", [
    pytest.param("ext4", "ext4", marks=pytest.mark.core), ("xfs", "bdev"), ("btrfs", "xfs")])
def test_file_system_on_top(dm, bdev, filesystem, tmp_path, upper, lower):
    """A file system on the device, with discards, on an image on another file system."""
    run("modprobe", upper, check=False)
    image = image_create(Place(lower, bdev, filesystem)("image"), 400 * MIB)
    at = tmp_path / "upper"
    with Attached(dm, f"qcow2:{image}") as disk:
        disk.close()
        mounted = Mount(disk.path, upper, at, "discard")
        try:
            sums = fill(mounted.path, 1)
            run("fstrim", at)
            os.sync()
            intact(sums)
        finally:
            mounted.remove()
    image_check(image)
    with Attached(dm, f"qcow2:{image}") as disk:
        disk.close()
        run("mount", disk.path, at)
        try:
            intact(sums)
        finally:
            run("umount", at)
    image_check(image)


# ---- full ----

def linear(device, size):
    return f"0 {size // SECTOR} linear {device} 0"


def write_until_full(disk, size, step=64 * KIB):
    """Fill cluster after cluster; how many bytes went in before ENOSPC."""
    for at in range(0, size, step):
        try:
            disk.write(0x11, at, step)
        except OSError as e:
            assert e.errno == errno.ENOSPC, e
            return at
    return size


@pytest.mark.parametrize("storage", ["bdev", "ext4"])
def test_error_if_no_space(dm, bdev, filesystem, storage):
    """A thin image that outgrows its storage: ENOSPC, what was written stays, the image is clean."""
    if storage == "bdev":
        image = image_create(bdev(24 * MIB), 96 * MIB)
    else:
        image = image_create(os.path.join(filesystem(storage, size=48 * MIB), "image"), 96 * MIB)
    with Attached(dm, f"qcow2:{image}", "error_if_no_space") as disk:
        written = write_until_full(disk, 96 * MIB)
        assert 8 * MIB < written < 64 * MIB
        assert disk.status()["mode"] == "out_of_space"
        disk.expect(0x11, 0, written)
        disk.write(0x22, 0, MIB)            # in place: needs no space
        disk.flush()
        # room again, from within
        disk.discard(0, 4 * MIB)
        disk.flush()
        wait_for(lambda: disk.status()["mode"] == "rw", what="mode rw")
        disk.write(0x33, 80 * MIB, MIB)
        disk.expect(0x33, 80 * MIB, MIB)
        disk.flush()
    image_check(image)
    qemu_io(image, "read -P 0 0 4M", f"read -P 0x11 4M {written - 4 * MIB}", "read -P 0x33 80M 1M")


def fill_up(directory):
    """Leave no block free."""
    path, size = os.path.join(directory, "filler"), 0
    for step in (4 * MIB, 64 * KIB, 4 * KIB):
        while run("fallocate", "-o", size, "-l", step, path, check=False).returncode == 0:
            size += step
        os.sync()


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_free_clusters_that_the_host_refuses(dm, filesystem, kind):
    """Free clusters without a place on a full host are passed over for those that have kept theirs."""
    directory = filesystem(kind, size=320 * MIB, mkfs=["-m", "0"] if kind == "ext4" else [])
    image = image_create(os.path.join(directory, "image"), 96 * MIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        disk.write(0x11, 0, 48 * MIB)
        disk.discard(0, 24 * MIB)
    with Attached(dm, f"qcow2:{image}", "no_discard_passdown", "error_if_no_space") as disk:
        disk.discard(24 * MIB, 8 * MIB)
        disk.commit()
        wait_for(lambda: disk.status()["allocated"] < 300, what="the clusters to be free")
        fill_up(directory)
        disk.write(0x22, 64 * MIB, 6 * MIB)
        assert disk.status()["mode"] == "rw"
        assert answer(disk.write, 0x33, 72 * MIB, 24 * MIB) == errno.ENOSPC
        assert disk.status()["mode"] == "out_of_space"
        os.remove(os.path.join(directory, "filler"))
        os.sync()
        disk.message("grown")
        wait_for(lambda: answer(disk.write, 0x33, 72 * MIB, 8 * MIB) == 0, what="room")
        disk.expect(0x22, 64 * MIB, 6 * MIB)
    image_check(image)


def test_queue_until_there_is_space(dm, bdev):
    """Without that feature writes wait, and go on when the storage has grown."""
    dev = bdev(128 * MIB)
    storage = dm.create("storage", linear(dev, 16 * MIB))
    image = image_create(storage, 96 * MIB)
    written = []
    with Attached(dm, f"qcow2:{image}") as disk:
        def writer():
            with Disk(disk.path) as own:
                for at in range(0, 32 * MIB, MIB):
                    own.write(0x11, at, MIB)
                    written.append(at)
                own.flush()
        thread = threading.Thread(target=writer, daemon=True)
        thread.start()
        wait_for(lambda: disk.status()["mode"] == "out_of_space", what="the storage to be full")
        time.sleep(0.5)
        assert thread.is_alive() and len(written) < 32
        dm.reload("storage", linear(dev, 100 * MIB))
        thread.join(30)
        assert not thread.is_alive(), "the writes did not go on"
        assert disk.status()["mode"] == "rw" and len(written) == 32
        disk.expect(0x11, 0, 32 * MIB)
    image_check(image)
    dm.remove("storage")


def test_removal_while_writes_wait(dm, bdev):
    """Suspending without --noflush fails the waiting writes instead of waiting for space."""
    image = image_create(bdev(16 * MIB), 96 * MIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        result = []

        def writer():
            with Disk(disk.path) as own:
                result.append(write_until_full(own, 96 * MIB, MIB))
        thread = threading.Thread(target=writer, daemon=True)
        thread.start()
        wait_for(lambda: disk.status()["mode"] == "out_of_space", what="the storage to be full")
        run("dmsetup", "suspend", "q", timeout=60)
        thread.join(30)
        assert not thread.is_alive() and result and result[0] < 16 * MIB
        dm.resume("q")
        disk.expect(0x11, 0, result[0])
    image_check(image)


def test_no_space_for_a_table(dm, bdev):
    """A host that says only when it is written to that it is full: an error, not an endless attempt
    with the cluster that was just given back."""
    run("modprobe", "dm-thin-pool")
    data, meta = bdev(13 * MIB), bdev(8 * MIB)
    pool = dm.create("pool", f"0 {13 * MIB // SECTOR} thin-pool {meta} {data} 128 0 1 "
                     "error_if_no_space")
    dm.message("pool", "create_thin 0")
    image = image_create(dm.create("thin", f"0 {256 * MIB // SECTOR} thin {pool} 0"), 128 * MIB,
                         cluster_size="4k")
    with Attached(dm, f"qcow2:{image}", "error_if_no_space") as disk:
        at = 0
        while not answer(disk.write, 0x11, at, 64 * KIB):
            at += 64 * KIB
        assert 8 * MIB < at < 13 * MIB
        # Tables of 4 KiB: each maps 2 MiB.
        for number in range(20, 60):
            assert answer(disk.write, 0x22, 2 * number * MIB, 4 * KIB) in (errno.EIO, errno.ENOSPC)
        disk.expect(0x11, 0, at)
    for name in ("thin", "pool"):
        dm.remove(name)


# ---- failing ----

class Fragile:
    """A linear device that can be told to fail reads, writes or both, and to be well again."""

    def __init__(self, dm, device, size, name="fragile"):
        self.dm, self.name, self.sectors, self.device = dm, name, size // SECTOR, device
        run("modprobe", "dm-flakey")
        self.path = dm.create(name, self.well())

    def well(self):
        return f"0 {self.sectors} linear {self.device} 0"

    def switch(self, table):
        # --noflush and no lockfs: what is in flight meets the new table
        self.dm.reload(self.name, table, "--nolockfs", "--noflush")

    def fail_writes(self):
        self.switch(f"0 {self.sectors} flakey {self.device} 0 0 3600 1 error_writes")

    def fail_all(self):
        self.switch(f"0 {self.sectors} error")

    def heal(self):
        self.switch(self.well())


@pytest.fixture
def fragile(dm, bdev):
    return Fragile(dm, bdev(64 * MIB), 64 * MIB)


def try_all(disk, calls):
    """Run calls that may fail, with EIO only; how many did."""
    failed = 0
    for call, *args in calls:
        try:
            call(*args)
        except OSError as e:
            assert e.errno in (errno.EIO, errno.ENOSPC), e
            failed += 1
    return failed


@pytest.mark.core
def test_failing_writes(dm, fragile):
    """Data and metadata writes fail: EIO, no more than that; what was flushed before is there."""
    image = image_create(fragile.path, 32 * MIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        disk.write(0x11, 0, 4 * MIB)
        disk.flush()
        fragile.fail_writes()
        failed = try_all(disk, [(disk.write, 0x22, 8 * MIB, 64 * KIB), (disk.write, 0x22, 0, 4096),
                                (disk.flush,), (disk.discard, 2 * MIB, MIB), (disk.flush,)])
        assert failed >= 2, "nobody noticed"
        disk.expect(0x11, 64 * KIB, MIB)
        fragile.heal()
        try_all(disk, [(disk.write, 0x33, 16 * MIB, MIB), (disk.flush,)])
        status = disk.status()
        assert status["mode"] in ("rw", "ro", "failed"), status
    image_check(image, leaks=True)
    # whatever happened to it, a new device works
    with Attached(dm, f"qcow2:{image}") as disk:
        disk.expect(0x11, 64 * KIB, MIB)
        disk.write(0x44, 24 * MIB, MIB)
    image_check(image, leaks=True)
    dm.remove(fragile.name)


def physical(path, offset):
    """Where on its block device a byte of a file is."""
    table = run("filefrag", "-b512", "-v", path).stdout
    for first, last, start in re.findall(r"^ *\d+: *(\d+)\.\. *(\d+): *(\d+)\.\.", table, re.M):
        if int(first) <= offset // SECTOR <= int(last):
            return int(start) * SECTOR + offset - int(first) * SECTOR
    raise AssertionError(f"{path} has nothing at {offset}: {table}")


def writes_begun(dev):
    number = os.stat(dev).st_rdev
    with open(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat") as f:
        return int(f.read().split()[4])


def write_together(dm, disk, below, clusters):
    """Writes of 64 KiB each, of CLUSTERS' numbers, released at once; returns their errnos in that
    order, and how many writes came to the device BELOW."""
    results = {}

    def write(n):
        with Disk(disk.path) as mine:
            results[n] = answer(mine.write, n, n * 64 * KIB, 64 * KIB)

    dm.suspend(disk.name, "--noflush", "--nolockfs")
    threads = []
    for n in clusters:
        threads.append(threading.Thread(target=write, args=(n,)))
        threads[-1].start()
        time.sleep(0.05)
    before = writes_begun(below)
    dm.resume(disk.name)
    for thread in threads:
        thread.join()
    return [results[n] for n in clusters], writes_begun(below) - before


def test_failing_write_among_gathered_ones(dm, cleanup, bdev, tmp_path):
    """Writes to new clusters that come together become one write to the file; a sector that fails
    there fails the write that it belongs to, and no other."""
    size, many, bad = 256 * MIB, 15, 7
    fragile = Fragile(dm, bdev(size), size)
    mounted = Mount(fragile.path, "ext4", tmp_path / "fragile")
    cleanup(mounted.remove)
    image = image_create(f"{mounted.path}/image", 32 * MIB)
    # A suspend gives the rest of a run back; ext4 then finds it again in the same place.
    with Attached(dm, f"qcow2:{image}", "no_discard_passdown") as disk:
        disk.write(0, 0, 64 * KIB)
        disk.flush()
        first = json.loads(run("qemu-img", "map", "-U", "--output=json", image).stdout)[0]
        at = physical(image, first["offset"] + bad * 64 * KIB + 5 * KIB) // SECTOR
        rest = fragile.sectors - at - 1
        fragile.switch(f"0 {at} linear {fragile.device} 0\n{at} 1 error\n"
                       f"{at + 1} {rest} linear {fragile.device} {at + 1}")
        results, _ = write_together(dm, disk, fragile.path, range(1, 1 + many))
        # Which of them gets the cluster with that sector is as their threads have come.
        assert sorted(results) == [0] * (many - 1) + [errno.EIO]
        failed = 1 + results.index(errno.EIO)
        fragile.heal()
        # The writer may begin before the last of them has come.
        fewest = many
        for start in (20, 40, 60):
            results, writes = write_together(dm, disk, fragile.path, range(start, start + many))
            assert not any(results)
            fewest = min(fewest, writes)
        assert fewest < many // 2, "they were not gathered"
        for n in (n for start in (1, 20, 40, 60) for n in range(start, start + many)):
            disk.expect(0 if n == failed else n, n * 64 * KIB, 64 * KIB)
    image_check(image, leaks=True)


def test_failed_commit_is_sticky(dm, fragile):
    """A flush that failed for metadata is not forgotten by the next one."""
    image = image_create(fragile.path, 32 * MIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        disk.write(0x11, 0, MIB)
        fragile.fail_writes()
        assert try_all(disk, [(disk.flush,)]) == 1
        fragile.heal()
        assert try_all(disk, [(disk.flush,)]) == 1, "the second flush pretends that all is durable"
        status = disk.status()
        assert status["mode"] in ("failed", "ro"), status
        assert try_all(disk, [(disk.write, 0x22, 8 * MIB, MIB)]) == 1
    image_check(image, leaks=True)
    dm.remove(fragile.name)


def test_failed_commit_ends_waiting_for_space(dm, fragile):
    """Clusters that a discard frees are not free before a commit: where it fails, the write that
    waits for them does."""
    image = image_create(fragile.path, 96 * MIB)
    with Attached(dm, f"qcow2:{image}", "error_if_no_space") as disk:
        full = write_until_full(disk, 96 * MIB)
        disk.flush()
        fragile.fail_writes()
        disk.discard(0, 16 * MIB)
        assert answer(disk.write, 0x22, 80 * MIB, 64 * KIB) == errno.EIO
        fragile.heal()
        assert disk.status()["mode"] == "failed"
    image_check(image, leaks=True)
    qemu_io(image, f"read -P 0x11 16M {full - 16 * MIB}")
    dm.remove(fragile.name)


def test_storage_disappears(dm, fragile):
    """All I/O fails, for good: errors, no hang, and the device can be removed."""
    image = image_create(fragile.path, 32 * MIB)
    with Attached(dm, f"qcow2:{image}", "l2_cache_kib 128") as disk:
        disk.write(0x11, 0, 4 * MIB)
        disk.flush()
        disk.message("drop_cache")
        fragile.fail_all()
        # (a flush without anything to commit: DM's error target drops it)
        assert try_all(disk, [(disk.expect, 0x11, 0, MIB), (disk.write, 0x22, 8 * MIB, MIB)]) == 2
    fragile.heal()
    image_check(image, leaks=True)
    qemu_io(image, "read -P 0x11 0 4M")
    dm.remove(fragile.name)


def test_failing_table_reads(dm, fragile):
    """A table that cannot be read is an error now, and read again when the storage is well."""
    image = image_create(fragile.path, 4 * GIB, cluster_size="4k")
    qemu_io(image, "write -P 0x11 0 1M", "write -P 0x22 2G 1M")
    with Attached(dm, f"qcow2:{image}") as disk:
        disk.expect(0x11, 0, MIB)
        fragile.fail_all()
        assert disk.eio(2 * GIB)
        fragile.heal()
        disk.expect(0x22, 2 * GIB, MIB)
        disk.expect(0x11, 0, MIB)
        assert disk.status()["mode"] == "rw"
        disk.write(0x33, 3 * GIB, MIB)
    image_check(image)
    dm.remove(fragile.name)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.full)
                                      for n in range(1, 10))])
def test_errors_now_and_then(dm, fragile, seed):
    """Storage that fails some of the time while four writers work: the image is never corrupt."""
    image = image_create(fragile.path, 48 * MIB)
    rng = random.Random(seed)
    stop = threading.Event()
    with Attached(dm, f"qcow2:{image}") as disk:
        def worker(number):
            own_rng = random.Random(seed * 100 + number)
            with Disk(disk.path) as own:
                while not stop.is_set():
                    at = own_rng.randrange(48 * MIB // SECTOR - 512) * SECTOR
                    length = own_rng.randrange(1, 512) * SECTOR
                    try_all(own, [own_rng.choice(((own.write, 0x11, at, length), (own.flush,),
                                                  (own.discard, at, length),
                                                  (own.zeroout, at, length),
                                                  (own.read, at, length)))])
        threads = [threading.Thread(target=worker, args=(n,), daemon=True) for n in range(4)]
        for t in threads:
            t.start()
        for _ in range(4):
            time.sleep(0.3 + rng.random() * 0.3)
            rng.choice((fragile.fail_writes, fragile.fail_all))()
            time.sleep(0.1)
            fragile.heal()
        stop.set()
        for t in threads:
            t.join(60)
            assert not t.is_alive(), "a writer hangs"
    image_check(image, leaks=True)
    assert not re.search("corrupt", run("qemu-img", "info", "-f", "qcow2", image).stdout
                         .replace("corrupt: false", ""))
    dm.remove(fragile.name)


# ---- life ----

def module_users():
    with open("/sys/module/dm_qcow2/refcnt") as f:
        return int(f.read())


@pytest.mark.full
def test_unloading_finds_nothing_left(dm, bdev, filesystem):
    """Devices come and go under I/O, some tables are refused; then the module can go, and the
    kernel complains about no object left in its caches."""
    places = [bdev(64 * MIB), os.path.join(filesystem("xfs"), "image")]
    for path in places:
        image_create(path, 32 * MIB)
        for round in range(5):
            with Attached(dm, f"qcow2:{path}") as disk:
                stop = threading.Event()

                def worker():
                    rng = random.Random(round)
                    with Disk(disk.path) as own:
                        while not stop.is_set():
                            at = rng.randrange(31 * MIB // SECTOR) * SECTOR
                            length = rng.randrange(1, 200) * SECTOR
                            if rng.randrange(3):
                                own.write(0x11, at, length)
                            else:
                                own.discard(at, length)
                thread = threading.Thread(target=worker, daemon=True)
                thread.start()
                dm.suspend("q")
                dm.resume("q")
                dm.reload("q", disk.table())
                stop.set()
                thread.join(30)
                assert not thread.is_alive()
            run("dmsetup", "create", "q", "--table", f"0 8 qcow2 1 qcow2:{path}", check=False)
        image_check(path)
    assert module_users() == 0
    run("rmmod", "dm_qcow2")
    run("insmod", "/build/dm-qcow2.ko")
