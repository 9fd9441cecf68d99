# SPDX-License-Identifier: GPL-2.0-or-later
"""Storage that has no room for what it was promised to hold: a file that shares its blocks on a full file
system, a thin volume in a full pool. What waits is done when there is room; nothing is lost."""
import errno
import os
import re
import threading

import pytest

from dmqcow2 import KIB, Attached, Disk
from helpers import MIB, SECTOR, KernelLog, image_check, image_create, qemu_io, run, wait_for

SIZE = 100 * MIB


class Shared:
    """An image of 50 MiB on a full XFS, all blocks of which another file has, too."""

    def __init__(self, filesystem):
        self.dir = filesystem("xfs", 400 * MIB, mkfs=("-m", "reflink=1"))
        self.image = image_create(os.path.join(self.dir, "image"), SIZE)
        self.filler = os.open(os.path.join(self.dir, "filler"), os.O_CREAT | os.O_RDWR)

    def share(self):
        copy = os.path.join(self.dir, "copy")
        run("cp", "--reflink=always", self.image, copy + "-new")
        os.rename(copy + "-new", copy)

    def fill_up(self):
        """Some blocks may have become free again since the last time: the same file takes them, for there
        may be no room for another."""
        for unit in (32 * MIB, MIB, 4 * KIB):
            size = os.fstat(self.filler).st_size
            try:
                while True:
                    os.posix_fallocate(self.filler, size, unit)
                    size += unit
            except OSError as e:
                assert e.errno == errno.ENOSPC, e
        os.fsync(self.filler)

    def make_room(self):
        os.ftruncate(self.filler, 0)

    def remove(self):
        os.close(self.filler)


class Thin:
    """An image on a thin volume whose pool is full and says so."""

    def __init__(self, dm, bdev):
        run("modprobe", "dm-thin-pool")
        self.dm, self.data, self.meta = dm, bdev(256 * MIB), bdev(16 * MIB)
        self.snapshots, self.filler = 0, None
        self.pool = dm.create("pool", self.table(52))
        dm.message("pool", "create_thin 0")
        self.image = image_create(dm.create("thin", f"0 {256 * MIB // SECTOR} thin {self.pool} 0"), SIZE)

    def table(self, mib):
        return f"0 {mib * MIB // SECTOR} thin-pool {self.meta} {self.data} 128 0 1 error_if_no_space"

    def share(self):
        self.snapshots += 1
        self.dm.suspend("thin")
        self.dm.message("pool", f"create_snap {self.snapshots} 0")
        self.dm.resume("thin")

    def fill_up(self):
        if self.filler is None:
            self.dm.message("pool", "create_thin 100")
            self.filler = self.dm.create("filler", f"0 {256 * MIB // SECTOR} thin {self.pool} 100")
        with Disk(self.filler) as disk:
            with pytest.raises(OSError):
                disk.write(0xff, 0, 250 * MIB)

    def make_room(self):
        self.dm.reload("pool", self.table(200))

    def remove(self):
        for name in ("filler", "thin", "pool"):
            self.dm.remove(name)


@pytest.fixture(params=["shared", "thin"])
def full(request, dm, bdev, filesystem):
    """full(disk): an image that is attached as DISK and has 48 MiB of 0x11 finds no room any more."""
    place = Shared(filesystem) if request.param == "shared" else Thin(dm, bdev)

    def fill(disk):
        disk.write(0x11, 0, 48 * MIB)
        disk.flush()
        place.share()
        place.fill_up()
    place.now = fill
    yield place
    place.remove()


class Caller(threading.Thread):
    """Does something on a descriptor of its own; `result` is None until it has ended, then the errno."""

    def __init__(self, disk, what, *args):
        super().__init__(daemon=True)
        self.path, self.what, self.args, self.result = disk.path, what, args, None
        self.start()

    def run(self):
        with Disk(self.path) as own:
            try:
                getattr(own, self.what)(*self.args)
                self.result = 0
            except OSError as e:
                self.result = e.errno

    def end(self, timeout=60):
        self.join(timeout)
        assert self.result is not None, f"{self.what} hangs"
        return self.result


def mode(disk, wanted):
    wait_for(lambda: disk.status()["mode"] == wanted, timeout=60, what=f"mode {wanted}")


def test_writes_in_place_wait(dm, full):
    """A write to a cluster that is there waits as one to a new one does, and so does a flush."""
    with Attached(dm, f"qcow2:{full.image}") as disk:
        full.now(disk)
        # Of one cluster and of many, which the storage splits.
        sizes = [64 * KIB, MIB] * 4
        calls = [Caller(disk, "write", 0x22, n * 4 * MIB, size) for n, size in enumerate(sizes)]
        mode(disk, "out_of_space")
        disk.expect(0x11, 40 * MIB, MIB)
        assert not any(call.result for call in calls)
        full.make_room()
        assert [call.end() for call in calls] == [0] * 8
        mode(disk, "rw")
        for n, size in enumerate(sizes):
            disk.expect(0x22, n * 4 * MIB, size)
            disk.expect(0x11, n * 4 * MIB + size, 64 * KIB)
        disk.flush()
    image_check(full.image)
    qemu_io(full.image, *(f"read -P 0x22 {n * 4}M {size}" for n, size in enumerate(sizes)),
            "read -P 0x11 47M 1M")


@pytest.mark.parametrize("first", [pytest.param(0, marks=pytest.mark.full), 5],
                         ids=["its first cluster", "another"])
def test_discard_overtakes_a_waiting_write(dm, full, first):
    """A guest discards what a write of its own is still waiting to change: the write reaches what is
    mapped there now or fails, and touches nothing else."""
    with Attached(dm, f"qcow2:{full.image}", "no_discard_passdown") as disk:
        full.now(disk)
        call = Caller(disk, "write", 0x22, 8 * MIB, MIB)
        mode(disk, "out_of_space")
        assert Caller(disk, "discard", 8 * MIB + first * 64 * KIB, 64 * KIB).end() == 0
        full.make_room()
        assert call.end() in (0, errno.EIO)
        disk.flush()
        disk.write(0x33, 64 * MIB, 16 * MIB)        # where what was freed is used again
        disk.flush()
        disk.expect(0x11, 0, 8 * MIB)
        disk.expect(0x11, 9 * MIB, 39 * MIB)
        disk.expect(0x33, 64 * MIB, 16 * MIB)
    image_check(full.image)
    qemu_io(full.image, "read -P 0x11 0 8M", "read -P 0x11 9M 39M", "read -P 0x33 64M 16M")

def discard_until_stuck(disk, full):
    """Discard the first 8 MiB, so that tables change that the storage has no room to write. It may find
    some room after all; then they are shared anew."""
    for at in range(0, 8 * MIB, 512 * KIB):
        disk.discard(at, 512 * KIB)
        for _ in range(3):
            if not disk.message("commit", check=False).returncode:
                break
            full.fill_up()
        else:
            break
        full.share()
        full.fill_up()
    else:
        raise AssertionError("the tables always had room")
    disk.discard(at, 8 * MIB - at)
    mode(disk, "out_of_space")


def test_a_commit_waits(dm, full, tmp_path):
    """Tables that cannot be written do not make the image failed. Meanwhile the image on the storage is
    without errors, reads go on, changes gather; then all of it is written."""
    with Attached(dm, f"qcow2:{full.image}") as disk:
        full.now(disk)
        discard_until_stuck(disk, full)
        flush = Caller(disk, "flush")
        assert "uncommitted" in disk.status()["attention"]
        disk.expect(0, 0, 8 * MIB)
        disk.expect(0x11, 8 * MIB, 8 * MIB)
        disk.discard(8 * MIB, 8 * MIB)
        if os.path.isfile(full.image):
            run("cp", "--reflink=never", full.image, tmp_path / "meanwhile")
            image_check(tmp_path / "meanwhile", leaks=True)
            qemu_io(tmp_path / "meanwhile", "read -P 0x11 16M 32M")
        assert flush.result is None
        full.make_room()
        assert flush.end() == 0
        mode(disk, "rw")
        disk.expect(0, 0, 16 * MIB)
        disk.write(0x33, 60 * MIB, 8 * MIB)
        disk.flush()
    image_check(full.image)
    qemu_io(full.image, "read -P 0 0 16M", "read -P 0x11 16M 32M", "read -P 0x33 60M 8M")


@pytest.mark.parametrize("how", ["error_if_no_space", "space_timeout 2"])
def test_waiting_ends(dm, full, how):
    """At once, or after the table's time: ENOSPC, and nothing worse; later all goes well again."""
    with Attached(dm, f"qcow2:{full.image}", how) as disk:
        full.now(disk)
        assert Caller(disk, "write", 0x22, 0, 64 * KIB).end() == errno.ENOSPC
        disk.discard(0, 8 * MIB)
        assert Caller(disk, "flush").end() == errno.ENOSPC
        assert disk.status()["mode"] == "out_of_space"
        # a write in place of what is the image's own again
        assert Caller(disk, "write", 0x22, 20 * MIB, 64 * KIB).end() == errno.ENOSPC
        disk.expect(0x11, 8 * MIB, 8 * MIB)
        full.make_room()
        disk.message("grown")
        assert Caller(disk, "write", 0x22, 20 * MIB, 64 * KIB).end() == 0
        assert Caller(disk, "flush").end() == 0
        mode(disk, "rw")
    image_check(full.image)
    qemu_io(full.image, "read -P 0 0 8M", "read -P 0x11 8M 12M", "read -P 0x22 20M 64k")


def test_no_time_limit(dm, full):
    """0 is no end: the table says so, and it loads again."""
    with Attached(dm, f"qcow2:{full.image}", "space_timeout 0") as disk:
        assert disk.table().endswith("2 space_timeout 0")
        dm.reload("q", disk.table())
        full.now(disk)
        call = Caller(disk, "write", 0x22, 0, 64 * KIB)
        mode(disk, "out_of_space")
        full.make_room()
        assert call.end() == 0
    image_check(full.image)


@pytest.mark.parametrize("noflush", [False, True])
def test_suspend_while_stuck(dm, full, noflush):
    """A suspend does not wait for space: what waits is failed, or kept by device-mapper. After a resume
    it goes on as if nothing had been."""
    with Attached(dm, f"qcow2:{full.image}") as disk:
        full.now(disk)
        discard_until_stuck(disk, full)
        calls = [Caller(disk, "flush"), Caller(disk, "write", 0x22, 20 * MIB, 64 * KIB)]
        wait_for(lambda: not all(call.result for call in calls), what="them to wait")
        run("dmsetup", "suspend", *(["--noflush", "--nolockfs"] if noflush else []), "q", timeout=60)
        if not noflush:
            assert [call.end() for call in calls] == [errno.ENOSPC] * 2
        dm.resume("q")
        full.make_room()
        if noflush:
            assert [call.end() for call in calls] == [0, 0]
        assert Caller(disk, "flush").end() == 0
        mode(disk, "rw")
        disk.expect(0, 0, 8 * MIB)
    image_check(full.image)
    qemu_io(full.image, "read -P 0 0 8M", "read -P 0x11 8M 12M")


def test_not_handed_over_while_stuck(dm, full, bdev):
    """A table in which the image is read only is not resumed: nobody would write what is missing.
    (A suspend gives unused clusters back, which could be the room that is missing.)"""
    top = bdev(64 * MIB)
    run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", full.image, "-F", "qcow2", top, SIZE)
    with Attached(dm, f"qcow2:{full.image}", "no_discard_passdown") as disk:
        full.now(disk)
        discard_until_stuck(disk, full)
        before = disk.table()
        dm.load("q", dm.qcow2_table([f"qcow2:{top}", f"qcow2:{full.image}"], sectors=SIZE // SECTOR))
        log = KernelLog()
        assert run("dmsetup", "resume", "q", check=False, timeout=60).returncode
        assert log.grep("cannot become read-only: its tables could not be written")
        log.close()
        dm.load("q", before)
        dm.resume("q")
        full.make_room()
        assert Caller(disk, "flush").end() == 0
    image_check(full.image)
    qemu_io(full.image, "read -P 0 0 8M", "read -P 0x11 8M 40M")


def test_removal_while_stuck(dm, full):
    """The device goes, and the log says what that costs: what was not flushed. No more than that."""
    log = KernelLog()
    with Attached(dm, f"qcow2:{full.image}", "no_discard_passdown") as disk:
        full.now(disk)
        discard_until_stuck(disk, full)
    assert log.grep("closed with .* uncommitted table slices")
    log.close()
    full.make_room()
    image_check(full.image, leaks=True)
    qemu_io(full.image, "read -P 0x11 8M 40M")
    assert re.search("No errors|leaked", run("qemu-img", "check", "-f", "qcow2", full.image,
                                             check=False).stdout)
