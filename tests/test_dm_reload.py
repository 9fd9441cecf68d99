# SPDX-License-Identifier: GPL-2.0-or-later
"""What a live device has promised when a table replaces another, and what is left when a device goes."""
import os
import time

import pytest

from dmqcow2 import KIB, Attached, Place
from helpers import MIB, SECTOR, KernelLog, image_check, image_create, qemu_io, run
from hooks import set_hook

SIZE = 16 * MIB

# ---- limits ----

def overlay(path, base, **options):
    run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", "qcow2",
        *(["-o", ",".join(f"{k}={v}" for k, v in options.items())] if options else []), path, SIZE)
    return path


@pytest.mark.parametrize("upper", ["file", "bdev"])
@pytest.mark.parametrize("lower", ["file", "bdev"])
def test_larger_blocks_are_refused(dm, bdev, filesystem, lower, upper):
    """A device that has 512-byte blocks keeps them: what needs larger ones is refused by name, and the
    device goes on."""
    def place(kind, blocksize):
        if kind == "bdev":
            return bdev(64 * MIB, blocksize=blocksize)
        return os.path.join(filesystem("ext4", 128 * MIB, blocksize=blocksize), "image")

    base = image_create(place(lower, 512), SIZE)
    top = place(upper, 4096)
    with Attached(dm, f"qcow2:{base}") as disk:
        disk.write(0x11, 0, MIB)
        overlay(top, base)
        log = KernelLog()
        table = dm.qcow2_table([f"qcow2:{top}", f"qcow2:{base}"], sectors=SIZE // SECTOR)
        done = run("dmsetup", "load", "q", "--table", table, check=False)
        assert done.returncode
        assert log.grep("table needs blocks of 4096 bytes, but the live device has 512")
        log.close()
        assert disk.limit("logical_block_size") == "512"
        disk.write(0x22, 512, 512)
        disk.expect(0x11, 0, 512)
    image_check(base)


@pytest.mark.parametrize("kind", ["file", "bdev"])
def test_smaller_blocks_keep_the_promise(dm, bdev, filesystem, kind):
    """A device that has 4 KiB blocks keeps them on storage that could do with less."""
    large, small = (bdev(64 * MIB, blocksize=n) if kind == "bdev" else
                    os.path.join(filesystem("ext4", 128 * MIB, blocksize=n), "image")
                    for n in (4096, 512))
    first, second = image_create(large, SIZE), image_create(small, SIZE)
    with Attached(dm, f"qcow2:{first}") as disk:
        assert disk.limit("logical_block_size") == "4096"
        dm.reload("q", dm.qcow2_table([f"qcow2:{second}"], sectors=SIZE // SECTOR))
        assert disk.limit("logical_block_size") == "4096"
        disk.write(0x11, 0, MIB)
    for image in (first, second):
        image_check(image)
    qemu_io(second, "read -P 0x11 0 1M")


@pytest.mark.parametrize("kind", ["bdev", "ext4"])
def test_discard_limits_follow_the_table(dm, bdev, filesystem, kind):
    """A new table's discards are those of its own top image, on whatever storage."""
    place = Place(kind, bdev, filesystem, size=64 * MIB)
    base = image_create(place("base"), SIZE)
    top = place("top")
    with Attached(dm, f"qcow2:{base}", "read_only") as disk:
        assert disk.limit("discard_max_bytes") == "0"
        assert disk.limit("write_zeroes_max_bytes") == "0"
    with Attached(dm, f"qcow2:{base}") as disk:
        assert disk.limit("discard_granularity") == str(64 * KIB)
        overlay(top, base, cluster_size="512k")
        table = dm.qcow2_table([f"qcow2:{top}", f"qcow2:{base}"], sectors=SIZE // SECTOR)
        dm.reload("q", table)
        assert disk.limit("discard_granularity") == str(512 * KIB)
        assert int(disk.limit("optimal_io_size")) == 512 * KIB
        dm.reload("q", table + " 1 read_only")
        assert disk.limit("discard_max_bytes") == "0"
        assert disk.limit("write_zeroes_max_bytes") == "0"
    with Attached(dm, f"qcow2:{image_create(place('third'), SIZE)}", "read_only") as disk:
        dm.reload("q", table)
        assert int(disk.limit("discard_max_bytes")) > SIZE
        assert int(disk.limit("write_zeroes_max_bytes")) > SIZE
        assert disk.limit("discard_granularity") == str(512 * KIB)


def test_limits_of_an_administrator_stay(dm, filesystem):
    """What was set by hand survives a reload, as it does on devices."""
    image = image_create(os.path.join(filesystem("ext4"), "image"), SIZE)
    with Attached(dm, f"qcow2:{image}") as disk:
        number = os.stat(disk.path).st_rdev
        queue = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/queue"
        for name, value in (("max_sectors_kb", 64), ("discard_max_bytes", MIB)):
            with open(f"{queue}/{name}", "w") as f:
                f.write(str(value))
        dm.reload("q", disk.table())
        assert disk.limit("max_sectors_kb") == "64" and disk.limit("discard_max_bytes") == str(MIB)


# ---- the page cache of a block device ----

def cached_write(fd, data):
    assert os.pwrite(fd, data, 0) == len(data)


def test_dirty_pages_of_the_device(dm, bdev, tmp_path):
    """A process has written an image through the page cache and still has the device open: what it wrote
    is what is attached, and does not come down later on what was committed meanwhile."""
    source = image_create(tmp_path / "source", SIZE)
    qemu_io(source, "write -P 0x5a 0 1M")
    dev = image_create(bdev(64 * MIB), SIZE)
    with open(source, "rb") as f:
        content = f.read()
    fd = os.open(dev, os.O_RDWR)
    try:
        cached_write(fd, content)
        with Attached(dm, f"qcow2:{dev}") as disk:
            disk.expect(0x5a, 0, MIB)
            disk.write(0x33, 2 * MIB, 4 * MIB)
            disk.discard(0, 512 * KIB)
            disk.commit()
            os.fsync(fd)
        os.fsync(fd)
        # The tools read through the page cache, which that descriptor has kept.
        image_check(dev)
        qemu_io(dev, "read -P 0 0 512k", "read -P 0x5a 512k 512k", "read -P 0x33 2M 4M")
    finally:
        os.close(fd)
    image_check(dev)
    qemu_io(dev, "read -P 0 0 512k", "read -P 0x5a 512k 512k", "read -P 0x33 2M 4M")


@pytest.mark.parametrize("read_only", [False, True])
def test_pages_read_while_attached(dm, bdev, read_only):
    """What a buffered reader of the device has left in the page cache is not read after a detach, nor
    below a suspended device."""
    dev = image_create(bdev(64 * MIB), SIZE)
    fd = os.open(dev, os.O_RDONLY)
    try:
        with Attached(dm, f"qcow2:{dev}") as disk:
            os.pread(fd, 16 * MIB, 0)
            disk.write(0x33, 2 * MIB, 4 * MIB)
            if read_only:
                dm.suspend("q")
                run("qemu-io", "-U", "-r", "-f", "qcow2", "-c", "read -P 0x33 2M 4M", dev)
                dm.resume("q")
        image_check(dev)
        qemu_io(dev, "read -P 0x33 2M 4M")
    finally:
        os.close(fd)


# ---- taking it apart ----

@pytest.mark.parametrize("kind", ["bdev", "ext4"])
def test_writer_woken_by_the_last_commit(dm, bdev, filesystem, cleanup, kind):
    """The last commit wakes the writer; the image is freed only when the writer has had its turn."""
    image = image_create(Place(kind, bdev, filesystem)("image"), SIZE)
    set_hook("test_writer_delay", 300)
    cleanup(set_hook, "test_writer_delay", 0)
    for n in range(3):
        with Attached(dm, f"qcow2:{image}") as disk:
            disk.write(0x11 + n, n * MIB, 64 * KIB)
        time.sleep(0.5)         # a writer that is late would be so now
    set_hook("test_writer_delay", 0)
    image_check(image)
    qemu_io(image, "read -P 0x11 0 64k", "read -P 0x12 1M 64k", "read -P 0x13 2M 64k")
