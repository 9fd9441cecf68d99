# SPDX-License-Identifier: GPL-2.0-or-later
"""A ring in a guest's memory has one owner at a time, also where nobody has a claim on the disk: what
was begun for one that was killed ends before the next one answers anything.
"""
import os
import signal
import subprocess

import pytest

import test_serve_protocol as vu
from helpers import MIB, child_of, run, size_of, wait_for
from vuguest import READ, Guest

pytestmark = pytest.mark.races


@pytest.fixture
def slow(dm, bdev, cleanup):
    """slow(ms): a device whose every request takes that long."""
    def make(ms):
        run("modprobe", "dm-delay")
        base = bdev(32 * MIB, "brd")
        path = dm.create("claim-slow", f"0 {size_of(base) // 512} delay {base} 0 {ms}")
        cleanup(dm.remove, "claim-slow")
        return path
    return make


@pytest.mark.parametrize("case, said", [
    pytest.param("killed", "to be done with it", marks=pytest.mark.core),
    ("waiting", "to be done with it"),
    ("living", "to be done with it"), ("stop_beside", "to be done with it"),
    ("kept_open", "to be done with it"),
    ("memory", "to be done with it"), ("same", "has another ring's used ring"),
    ("moved", "its used ring was moved")])
def test_one_owner(slow, kernel_log, case, said):
    print(run("ringclaim", case, slow(1000), timeout=60).stdout)
    found = kernel_log.grep(said)
    # Whoever keeps its ring never waits for it.
    assert len(found) == 1 if case in ("memory", "stop_beside") else found


@pytest.mark.full
def test_read_only_server_killed(slow, spawn, tmp_path):
    """The guest connects to a new server of a read-only disk with a read of the old one in flight."""
    path, device = str(tmp_path / "disk.sock"), slow(6000)

    def serve():
        server = spawn("qcow2attach", "serve", device, "--read-only", "--socket", path, "--queues", 1,
                       stdout=subprocess.PIPE, text=True)
        assert ": ready at " in server.stdout.readline()
        return server

    server = serve()
    guest = Guest(path)
    guest.offer(READ)
    guest.kick_only()
    guest.front.get(vu.GET_FEATURES)
    for pid in (child_of(server.pid), server.pid):
        os.kill(pid, signal.SIGKILL)
    server = serve()
    guest.connect(path)
    assert not guest.answered()             # otherwise nothing is tested
    wait_for(guest.answered, what="the answer")
    guest.mem[0x4000:0x4200] = b"\xcc" * 512
    guest.mem[0x5000] = 0xcc
    # A read that was begun again has ended when this one has.
    run("dd", f"if={device}", "of=/dev/null", "bs=4096", "count=1", "iflag=direct")
    assert guest.mem[0x4000:0x4200] == b"\xcc" * 512 and guest.mem[0x5000] == 0xcc
    guest.do(READ, 1)
    assert guest.mem[0x2002:0x2004] == b"\2\0"
    guest.close()
    server.terminate()
    assert server.wait(timeout=30) == 0
