# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's page cache of a served device: whoever on the host reads the device through it sees what
the guest has written, for as long as the device is open.
"""
import os
import subprocess

import pytest

from helpers import MIB, image_create, run, size_of
from vuguest import WRITE, Guest

pytestmark = pytest.mark.races


@pytest.mark.core
@pytest.mark.parametrize("case", ["read", "dirty"])
def test_page_cache(bdev, case):
    print(run("ringcache", case, bdev(16 * MIB, "null"), timeout=60).stdout)


def test_page_cache_without_discard(bdev):
    """Zeroes are written as pages."""
    print(run("ringcache", "read", bdev(16 * MIB, "null", discard=0), "nodiscard", timeout=60).stdout)


def test_read_while_it_is_written(bdev, dm, cleanup):
    run("modprobe", "dm-delay")
    base = bdev(16 * MIB)
    path = dm.create("cache-slow", f"0 {size_of(base) // 512} delay {base} 0 0 {base} 0 500")
    cleanup(dm.remove, "cache-slow")
    print(run("ringcache", "meanwhile", path, timeout=60).stdout)


@pytest.mark.core
def test_convert(dm, bdev, spawn, tmp_path):
    """A backup of the device of a running guest, by qemu-img with its default cache mode."""
    image = image_create(bdev(96 * MIB), 64 * MIB)
    run("qcow2attach", "attach", image, "--name", "convert")
    dm.names.append("convert")
    server = spawn("qcow2attach", "serve", "convert", "--socket", tmp_path / "disk.sock",
                   "--queues", 1, stdout=subprocess.PIPE, text=True)
    assert ": ready at " in server.stdout.readline()
    guest = Guest(str(tmp_path / "disk.sock"))
    copy = tmp_path / "copy.raw"
    for number in range(1, 4):
        guest.mem[0x4000:0x4200] = bytes([number]) * 512
        guest.do(WRITE, 64)
        run("qemu-img", "convert", "-f", "raw", "-O", "raw", "/dev/mapper/convert", copy)
        with open(copy, "rb") as f:
            f.seek(64 * 512)
            assert f.read(512) == bytes([number]) * 512
    os.unlink(copy)
    guest.close()
    server.terminate()
    assert server.wait(timeout=30) == 0
    run("qcow2attach", "detach", "convert")
    dm.names.remove("convert")
