# SPDX-License-Identifier: GPL-2.0-or-later
"""What is on stable storage when a served disk has stopped: all that its guest was told is written,
whether the guest has flushed it or not. So a copy of the image that is made then has it.
"""
import os
import signal
import struct
import subprocess

import pytest

import test_serve_protocol as vu
from helpers import DISCARD, FLUSH, MARK, MIB, child_of, image_create, run, size_of, wait_for


def passed(log):
    """What came to a device, in order: x a write, F a flush."""
    return "".join("F" if flags & FLUSH else "x" for _, sectors, flags in log.seen()
                   if not flags & (MARK | DISCARD))


@pytest.mark.core
@pytest.mark.parametrize("case", ["ways", "clean"])
def test_flushed_when_it_stops(bdev, writes_log, case):
    log = writes_log(bdev(8 * MIB))
    expected = run("ringstop", case, log.path, timeout=60).stdout.split("\n")[0]
    print(expected)
    assert passed(log) == expected


def test_a_flush_that_fails(bdev, dm):
    run("modprobe", "dm-flakey")
    base = bdev(8 * MIB, cache_size=1)
    sectors = size_of(base) // 512
    # What is written goes to the first half; a flush goes to both, and fails as a write does there.
    half = sectors // 2
    path = dm.create("flush-fails", f"0 {half} linear {base} 0\n"
                     f"{half} {half} flakey {base} {half} 0 100 1 error_writes")
    run("ringstop", "failing", path, timeout=60)


WAYS = {
    "GET_VRING_BASE": lambda server, guest: guest.front.ask(vu.GET_VRING_BASE,
                                                            struct.pack("=II", 0, 0)),
    "disabled": lambda server, guest: (
        guest.front.send(vu.SET_VRING_ENABLE, struct.pack("=II", 0, 0)),
        guest.front.get(vu.GET_FEATURES)),
    "reset": lambda server, guest: (guest.front.send(vu.RESET_OWNER),
                                    guest.front.get(vu.GET_FEATURES)),
    # The next front end is answered when all of the last one has ended.
    "disconnected": lambda server, guest: (guest.front.close(),
                                           vu.FrontEnd(server.path).get(vu.GET_FEATURES)),
    "SIGTERM": lambda server, guest: (server.terminate(), server.wait(timeout=30)),
    "SIGKILL": lambda server, guest: (os.kill(child_of(server.pid), signal.SIGKILL),
                                      server.wait(timeout=30)),
}


@pytest.mark.core
@pytest.mark.parametrize("way", WAYS)
def test_committed_when_it_stops(filesystem, cleanup, spawn, tmp_path, way):
    """A copy of the image, made at once."""
    directory = filesystem("ext4", 256 * MIB)
    image = image_create(f"{directory}/vm.qcow2", 64 * MIB)
    run("qcow2attach", "attach", image, "--name", "stopped")
    cleanup(lambda: run("qcow2attach", "detach", "stopped", "--wait", check=False))
    server = spawn("qcow2attach", "serve", "stopped", "--socket", tmp_path / "disk.sock",
                   "--queues", 1, stdout=subprocess.PIPE, text=True)
    assert ": ready at " in server.stdout.readline()
    server.path = str(tmp_path / "disk.sock")
    guest = vu.Writer(server.path)
    guest.mem[0x4000:0x4200] = b"\x5a" * 512
    guest.write(0)
    WAYS[way](server, guest)
    run("cp", image, f"{directory}/copy.qcow2")
    done = run("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0x5a 0 512",
               f"{directory}/copy.qcow2", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    guest.close()
    if server.poll() is None:
        server.terminate()
        assert server.wait(timeout=30) == 0
    wait_for(lambda: run("pgrep", "-x", "qcow2attach", check=False).returncode,
             what="the server's end")
    run("qcow2attach", "detach", "stopped")
