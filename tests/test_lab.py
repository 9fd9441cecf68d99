# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab itself: the fixtures that all other tests stand on give what they promise."""
import os

import pytest

from helpers import (MIB, CommandError, image_check, image_compare, image_create, image_info,
                     qemu_io, run, size_of, sysfs)


@pytest.mark.parametrize("kind", ["null", "brd", "loop"])
def test_bdev(bdev, kind):
    dev = bdev(64 * MIB, kind)
    assert size_of(dev) == 64 * MIB
    with open(dev, "r+b") as f:
        assert f.read(4096) == bytes(4096)
        f.seek(0)
        f.write(b"x" * 4096)
    again = bdev(32 * MIB, kind)
    assert again != dev and size_of(again) == 32 * MIB
    if kind != "brd":
        assert int(sysfs(dev, "queue/discard_max_bytes")) > 0
        run("blkdiscard", dev)
        with open(dev, "rb") as f:
            assert f.read(4096) == bytes(4096)


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_filesystem(filesystem, fstype):
    path = filesystem(fstype)
    assert run("findmnt", "-n", "-o", "FSTYPE", path).stdout.strip() == fstype
    with open(os.path.join(path, "f"), "wb") as f:
        f.write(os.urandom(MIB))


def test_dm(dm, bdev):
    dev = bdev(16 * MIB)
    top = dm.create("lab-linear", f"0 2048 linear {dev} 0")
    assert size_of(top) == MIB
    dm.reload("lab-linear", f"0 4096 linear {dev} 8")
    assert size_of(top) == 2 * MIB and dm.table("lab-linear").endswith(" 8")
    assert dm.status("lab-linear")[2] == "linear"
    with pytest.raises(CommandError, match="no-such-target"):
        dm.create("lab-bad", "0 8 no-such-target")
    dm.remove("lab-linear")
    assert not os.path.exists(top)


def test_images(tmp_path):
    base = image_create(tmp_path / "base", "8M")
    qemu_io(base, "write -P 0x11 1M 64k")
    top = image_create(tmp_path / "top", backing=base, cluster_size="4k")
    assert image_info(top)["virtual-size"] == 8 * MIB
    qemu_io(top, "read -P 0x11 1M 64k")
    with pytest.raises(AssertionError):
        qemu_io(top, "read -P 0x12 1M 64k")
    image_check(top)
    image_compare(top, base, fmt_b="qcow2")
    qemu_io(top, "write -P 0x13 1M 4k")
    with pytest.raises(CommandError):
        image_compare(top, base, fmt_b="qcow2")
    with open(top, "r+b") as f:                # the L1 entry of the first table
        f.seek(int.from_bytes(f.read(48)[40:48], "big"))
        f.write(b"\xff" * 8)
    with pytest.raises(AssertionError):
        image_check(top)


@pytest.mark.core
def test_kernel_log(kernel_log):
    kernel_log.mark("lab: a line")
    assert kernel_log.grep("lab: a line")
    assert not kernel_log.faults()
