# SPDX-License-Identifier: GPL-2.0-or-later
"""An image has one writer: between this module and QEMU, and between two devices."""
import json
import os
import re
import subprocess

import pytest

from dmqcow2 import Place, refused
from helpers import MIB, SECTOR, CommandError, image_check, image_create, qemu_io, run, wait_for

QEMU_SAYS = re.compile(r"lock|Is another process using the image")
WE_SAY = re.compile(r"in use|lock|busy|another", re.I)


@pytest.fixture(params=["bdev", "ext4", "xfs"])
def place(request, bdev, filesystem):
    return Place(request.param, bdev, filesystem, size=128 * MIB if request.param == "bdev"
                 else 256 * MIB)


class Daemon:
    """An image held open by qemu-storage-daemon, writable or not."""

    def __init__(self, spawn, tmp_path, image, read_only=False):
        pid = tmp_path / f"qsd-{os.path.basename(image)}-{read_only}.pid"
        node = {"driver": "qcow2", "node-name": "q", "read-only": read_only,
                "file": {"driver": "host_device" if image.startswith("/dev/") else "file",
                         "filename": image}}
        self.proc = spawn("qemu-storage-daemon", "--blockdev", json.dumps(node), "--pidfile", pid,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wait_for(lambda: pid.exists() or self.proc.poll() is not None, what="the daemon")
        assert self.proc.poll() is None, self.proc.stdout.read()

    def stop(self):
        self.proc.terminate()
        assert self.proc.wait(timeout=30) == 0


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
    device = dm.create_qcow2("q", [f"qcow2:{image}"])
    qemu_is_refused(image)
    run("qemu-img", "info", "-U", "-f", "qcow2", image)
    qemu_io(device, "write -P 0x11 0 64k", fmt="raw")
    qemu_is_refused(image)
    dm.remove("q")
    image_check(image)
    qemu_io(image, "read -P 0x11 0 64k", "write -P 0x22 1M 64k")


def test_locks_survive_suspend_and_reload(dm, place):
    image = image_create(place("image"), 8 * MIB)
    dm.create_qcow2("q", [f"qcow2:{image}"])
    table = dm.table("q")
    for _ in range(3):
        dm.suspend("q")
        qemu_is_refused(image)
        dm.resume("q")
        qemu_is_refused(image)
        dm.load("q", table)
        qemu_is_refused(image)
        dm.suspend("q")
        dm.resume("q")
        qemu_is_refused(image)
    # a table that was loaded but never made live takes nothing with it
    dm.load("q", table)
    run("dmsetup", "clear", "q")
    qemu_is_refused(image)
    dm.remove("q")
    image_check(image)


@pytest.mark.core
def test_second_device(dm, place):
    image = image_create(place("image"), 8 * MIB)
    device = dm.create_qcow2("q", [f"qcow2:{image}"])
    assert WE_SAY.search(refused(dm, [f"qcow2:{image}"], sectors=8 * MIB // SECTOR))
    # read-only would see a disk that changes under it
    assert WE_SAY.search(refused(dm, [f"qcow2:{image}"], ["read_only"], 8 * MIB // SECTOR))
    qemu_io(device, "write -P 0x11 0 64k", "read -P 0x11 0 64k", fmt="raw")
    dm.remove("q")
    image_check(image)


def test_by_another_name(dm, bdev, filesystem):
    """The same image through a hard link, a symlink, or another node of the device."""
    directory = filesystem("xfs")
    image = image_create(os.path.join(directory, "image"), 8 * MIB)
    os.link(image, image + "-hard")
    os.symlink(image, image + "-soft")
    dm.create_qcow2("q", [f"qcow2:{image}"])
    for other in ("-hard", "-soft"):
        assert WE_SAY.search(refused(dm, [f"qcow2:{image}{other}"], sectors=8 * MIB // SECTOR))
    dm.remove("q")
    disk = image_create(bdev(64 * MIB), 8 * MIB)
    node = "/tmp/other-node"
    run("cp", "-a", disk, node)
    try:
        dm.create_qcow2("q", [f"qcow2:{disk}"])
        assert WE_SAY.search(refused(dm, [f"qcow2:{node}"], sectors=8 * MIB // SECTOR))
        dm.remove("q")
    finally:
        os.remove(node)


@pytest.mark.core
def test_open_in_qemu(dm, place, spawn, tmp_path):
    image = image_create(place("image"), 8 * MIB)
    daemon = Daemon(spawn, tmp_path, image)
    assert WE_SAY.search(refused(dm, [f"qcow2:{image}"], sectors=8 * MIB // SECTOR))
    assert WE_SAY.search(refused(dm, [f"qcow2:{image}"], ["read_only"], 8 * MIB // SECTOR))
    daemon.stop()
    dm.create_qcow2("q", [f"qcow2:{image}"])
    dm.remove("q")
    # held open for reading only: we may read, too, but not write
    daemon = Daemon(spawn, tmp_path, image, read_only=True)
    assert WE_SAY.search(refused(dm, [f"qcow2:{image}"], sectors=8 * MIB // SECTOR))
    device = dm.create_qcow2("q", [f"qcow2:{image}"], ["read_only"])
    qemu_io_read_only(image, "read 0 64k")
    run("dd", f"if={device}", "of=/dev/null", "bs=64k", "count=1", "iflag=direct")
    dm.remove("q")
    daemon.stop()


@pytest.mark.core
def test_golden_image_is_shared(dm, place, spawn, tmp_path):
    """Two overlays of ours and one of QEMU's on one backing image; nobody may write it."""
    golden = image_create(place("golden"), 8 * MIB)
    qemu_io(golden, "write -P 0xbb 0 8M")
    overlays = [image_create(place(f"overlay{i}"), backing=golden) for i in range(3)]
    devices = [dm.create_qcow2(f"q{i}", [f"qcow2:{overlays[i]}", f"qcow2:{golden}"])
               for i in range(2)]
    qemu_may_read(golden)
    qemu_io(overlays[2], "read -P 0xbb 0 1M", "write -P 0x33 0 64k")
    done = run("qemu-io", "-f", "qcow2", "-c", "write 0 512", golden, check=False)
    assert done.returncode and QEMU_SAYS.search(done.stderr)
    assert WE_SAY.search(refused(dm, [f"qcow2:{golden}"], sectors=8 * MIB // SECTOR))
    for i, device in enumerate(devices):
        qemu_io(device, f"write -P 0x1{i} 0 64k", "read -P 0xbb 64k 1M", fmt="raw")
    dm.remove("q0")
    assert WE_SAY.search(refused(dm, [f"qcow2:{golden}"], sectors=8 * MIB // SECTOR))
    qemu_io(devices[1], "read -P 0x11 0 64k", "read -P 0xbb 64k 1M", fmt="raw")
    dm.remove("q1")
    for i in range(2):
        image_check(overlays[i])
        qemu_io(overlays[i], f"read -P 0x1{i} 0 64k", "read -P 0xbb 64k 1M")
    # nobody is left: it may be written
    qemu_io(golden, "write -P 0xcc 0 512")
    dm.create_qcow2("q", [f"qcow2:{golden}"])
    dm.remove("q")


def test_backing_open_for_writing(dm, place, spawn, tmp_path):
    """Somebody writes the backing image: no overlay on it."""
    golden = image_create(place("golden"), 8 * MIB)
    top = image_create(place("top"), backing=golden)
    daemon = Daemon(spawn, tmp_path, golden)
    assert WE_SAY.search(refused(dm, [f"qcow2:{top}", f"qcow2:{golden}"],
                                 sectors=8 * MIB // SECTOR))
    daemon.stop()
    dm.create_qcow2("q", [f"qcow2:{golden}"])
    assert WE_SAY.search(refused(dm, [f"qcow2:{top}", f"qcow2:{golden}"],
                                 sectors=8 * MIB // SECTOR))
    dm.remove("q")
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


def test_mounted_device_is_not_taken(dm, bdev, filesystem, cleanup):
    """A block device in use by a file system is not an image to write to."""
    dev = bdev(64 * MIB)
    image_create(dev, 8 * MIB)
    held = dm.create("holder", f"0 {16 * MIB // SECTOR} linear {dev} 0")
    assert os.path.exists(held)
    done = dm.create("q", dm.qcow2_table([f"qcow2:{dev}"]), check=False)
    if not done.returncode:         # DM shares a device among its own: then QEMU's locks decide
        dm.remove("q")
    dm.remove("holder")
    run("mkfs.ext4", "-q", "-F", dev)
    run("mount", dev, "/mnt")
    try:
        with pytest.raises((CommandError, AssertionError)):
            dm.create_qcow2("q", [f"qcow2:{dev}"], sectors=8 * MIB // SECTOR)
    finally:
        run("umount", "/mnt")
