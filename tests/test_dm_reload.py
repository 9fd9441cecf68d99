# SPDX-License-Identifier: GPL-2.0-or-later
"""What a live device has promised when a table replaces another, and what is left when a device goes."""
import os
import time

import pytest

from dmqcow2 import KIB, Attached, Place
from helpers import MIB, SECTOR, KernelLog, image_check, image_create, qemu_io, run

SIZE = 16 * MIB


def set_hook(name, value):
    """Delay the module at a place; skips where it was built without that."""
    path = f"/sys/module/dm_qcow2/parameters/{name}"
    if not os.path.exists(path):
        pytest.skip("the module was built without test hooks")
    with open(path, "w") as f:
        f.write(str(value))


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
