# SPDX-License-Identifier: GPL-2.0-or-later
"""An image has one writer: between this module and QEMU, and between two devices."""
import os
import re

import pytest

from dmqcow2 import KIB, Attached, Place, refused
from helpers import MIB, SECTOR, QemuDaemon, image_check, image_create, qemu_io, run, wait_for

QEMU_SAYS = re.compile(r"lock|Is another process using the image")
WE_SAY = re.compile(r"in use|lock|busy|another|attached", re.I)


@pytest.fixture(params=["bdev", pytest.param("ext4", marks=pytest.mark.full), "xfs"])
def place(request, bdev, filesystem):
    return Place(request.param, bdev, filesystem, size=256 * MIB)


def qemu_is_refused(image):
    for argv in (["qemu-img", "check", "-f", "qcow2", image],
                 ["qemu-img", "info", "-f", "qcow2", image],
                 ["qemu-io", "-f", "qcow2", "-c", "write 0 512", image],
                 ["qemu-img", "commit", "-f", "qcow2", image],
                 ["qemu-img", "resize", "-f", "qcow2", image, "+1M"]):
        done = run(*argv, check=False)
        assert done.returncode and QEMU_SAYS.search(done.stderr), (argv, done.stdout, done.stderr)


def qemu_may_read(image):
    qemu_io_read_only(image, "read 0 64k")
    run("qemu-img", "info", "-f", "qcow2", image)


def qemu_io_read_only(image, command):
    run("qemu-io", "-r", "-f", "qcow2", "-c", command, image)


@pytest.mark.core
def test_qemu_is_kept_out(dm, place):
    image = image_create(place("image"), 8 * MIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        qemu_is_refused(image)
        run("qemu-img", "info", "-U", "-f", "qcow2", image)
        disk.write(0x11, 0, 64 * KIB)
        qemu_is_refused(image)
    image_check(image)
    qemu_io(image, "read -P 0x11 0 64k", "write -P 0x22 1M 64k")


def test_locks_survive_suspend_and_reload(dm, bdev, filesystem):
    for kind in ("bdev", "xfs"):
        image = image_create(Place(kind, bdev, filesystem)("image"), 8 * MIB)
        with Attached(dm, f"qcow2:{image}") as disk:
            table = disk.table()
            for step in (lambda: dm.suspend("q"), lambda: dm.resume("q"),
                         lambda: dm.load("q", table), lambda: dm.suspend("q"),
                         lambda: dm.resume("q"), lambda: dm.load("q", table),
                         # a table that was loaded but never made live takes nothing with it
                         lambda: run("dmsetup", "clear", "q"), lambda: dm.reload("q", table)):
                step()
                done = run("qemu-io", "-f", "qcow2", "-c", "write 0 512", image, check=False)
                assert done.returncode and QEMU_SAYS.search(done.stderr)
        image_check(image)


def test_second_device(dm, place):
    image = image_create(place("image"), 8 * MIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        assert WE_SAY.search(refused(dm, [f"qcow2:{image}"], sectors=8 * MIB // SECTOR))
        # read-only would see a disk that changes under it
        assert WE_SAY.search(refused(dm, [f"qcow2:{image}"], ["read_only"], 8 * MIB // SECTOR))
        disk.write(0x11, 0, 64 * KIB)
        disk.expect(0x11, 0, 64 * KIB)
    image_check(image)


def test_by_another_name(dm, bdev, filesystem):
    """The same image through a hard link, a symlink, or another node of the device."""
    image = image_create(os.path.join(filesystem("xfs"), "image"), 8 * MIB)
    os.link(image, image + "-hard")
    os.symlink(image, image + "-soft")
    with Attached(dm, f"qcow2:{image}"):
        for other in ("-hard", "-soft"):
            assert WE_SAY.search(refused(dm, [f"qcow2:{image}{other}"], sectors=8 * MIB // SECTOR))
    disk = image_create(bdev(64 * MIB), 8 * MIB)
    node = "/dev/other-node"
    run("cp", "-a", disk, node)
    try:
        with Attached(dm, f"qcow2:{disk}"):
            assert WE_SAY.search(refused(dm, [f"qcow2:{node}"], sectors=8 * MIB // SECTOR))
    finally:
        os.remove(node)


def test_open_in_qemu(dm, place, spawn, tmp_path):
    image = image_create(place("image"), 8 * MIB)
    daemon = QemuDaemon(spawn, tmp_path, image)
    assert WE_SAY.search(refused(dm, [f"qcow2:{image}"], sectors=8 * MIB // SECTOR))
    assert WE_SAY.search(refused(dm, [f"qcow2:{image}"], ["read_only"], 8 * MIB // SECTOR))
    daemon.stop()
    with Attached(dm, f"qcow2:{image}"):
        pass
    # held open for reading only: we may read, too, but not write
    daemon = QemuDaemon(spawn, tmp_path, image, read_only=True)
    assert WE_SAY.search(refused(dm, [f"qcow2:{image}"], sectors=8 * MIB // SECTOR))
    with Attached(dm, f"qcow2:{image}", "read_only") as disk:
        qemu_io_read_only(image, "read 0 64k")
        disk.expect(0, 0, 64 * KIB)
    daemon.stop()


def test_golden_image_is_shared(dm, place):
    """Two overlays of ours and one of QEMU's on one backing image; nobody may write it."""
    golden = image_create(place("golden"), 8 * MIB)
    qemu_io(golden, "write -P 0xbb 0 8M")
    overlays = [image_create(place(f"overlay{i}"), backing=golden) for i in range(3)]

    def nobody_writes():
        done = run("qemu-io", "-f", "qcow2", "-c", "write 0 512", golden, check=False)
        assert done.returncode and QEMU_SAYS.search(done.stderr)
        assert WE_SAY.search(refused(dm, [f"qcow2:{golden}"], sectors=8 * MIB // SECTOR))

    with Attached(dm, [f"qcow2:{overlays[1]}", f"qcow2:{golden}"], name="q1") as second:
        with Attached(dm, [f"qcow2:{overlays[0]}", f"qcow2:{golden}"], name="q0") as first:
            qemu_may_read(golden)
            qemu_io(overlays[2], "read -P 0xbb 0 1M", "write -P 0x33 0 64k")
            nobody_writes()
            for byte, disk in ((0x10, first), (0x11, second)):
                disk.write(byte, 0, 64 * KIB)
                disk.expect(0xbb, 64 * KIB, MIB)
        nobody_writes()
        second.expect(0x11, 0, 64 * KIB)
        second.expect(0xbb, 64 * KIB, MIB)
    for i in range(2):
        image_check(overlays[i])
        qemu_io(overlays[i], f"read -P 0x1{i} 0 64k", "read -P 0xbb 64k 1M")
    # nobody is left: it may be written
    qemu_io(golden, "write -P 0xcc 0 512")
    with Attached(dm, f"qcow2:{golden}") as disk:
        disk.expect(0xcc, 0, 512)


def test_backing_open_for_writing(dm, place, spawn, tmp_path):
    """Somebody writes the backing image: no overlay on it."""
    golden = image_create(place("golden"), 8 * MIB)
    top = image_create(place("top"), backing=golden)
    chain = [f"qcow2:{top}", f"qcow2:{golden}"]
    daemon = QemuDaemon(spawn, tmp_path, golden)
    assert WE_SAY.search(refused(dm, chain, sectors=8 * MIB // SECTOR))
    daemon.stop()
    with Attached(dm, f"qcow2:{golden}"):
        assert WE_SAY.search(refused(dm, chain, sectors=8 * MIB // SECTOR))
    # and after all those refusals nothing is locked
    qemu_io(golden, "write 0 512")
    qemu_io(top, "write 0 512")


def test_refused_load_leaves_no_lock(dm, place):
    """A table refused for another reason has locked nothing, nor pinned the device or file."""
    image = image_create(place("image"), 8 * MIB)
    for features in (["no_such_feature"], ["l2_cache_kib x"]):
        refused(dm, [f"qcow2:{image}"], features, 8 * MIB // SECTOR)
        qemu_io(image, "write 0 512")
    refused(dm, [f"qcow2:{image}", "qcow2:/nowhere"], sectors=8 * MIB // SECTOR)
    qemu_io(image, "write 0 512")


def test_mounted_device_is_not_taken(dm, bdev, cleanup, tmp_path):
    """A block device in use by a file system is not an image to write to."""
    dev = bdev(64 * MIB)
    run("mkfs.ext4", "-q", "-F", dev)
    # the header of an image in the place that the file system leaves to boot loaders
    with open(dev, "r+b") as f:
        f.write(b"QFI\xfb\0\0\0\3")
    run("mount", dev, tmp_path)
    cleanup(run, "umount", tmp_path)
    assert WE_SAY.search(refused(dm, [f"qcow2:{dev}"], sectors=8 * MIB // SECTOR))
