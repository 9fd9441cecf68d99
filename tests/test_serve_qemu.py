# SPDX-License-Identifier: GPL-2.0-or-later
"""`qcow2attach serve` and QEMU's own vhost-user-blk front end: a guest that is using its disk does
not notice that the server was killed and came back.
"""
import json
import os
import random
import signal
import socket
import subprocess
import time

import pytest

import bootsector
from helpers import MIB, run, wait_for


@pytest.fixture
def server(spawn, tmp_path):
    """server(device) -> (process, path of the socket)"""
    def start(device, name="disk"):
        path = str(tmp_path / f"{name}.sock")
        proc = spawn("qcow2attach", "serve", device, "--socket", path, stdout=subprocess.PIPE,
                     stderr=subprocess.STDOUT, text=True)
        # It may have to wait for what the one that was killed left in flight.
        line = proc.stdout.readline()
        while "waiting for the requests of an earlier server" in line:
            line = proc.stdout.readline()
        assert ": ready at " in line, line + proc.stdout.read()
        return proc, path
    return start


class Guest:
    """A guest that writes to its disk and reads it back all the time."""

    def __init__(self, spawn, path, *more):
        self.proc = spawn(*bootsector.QEMU, *more,
                          "-object", "memory-backend-memfd,id=m,size=64M,share=on",
                          "-machine", "pc,memory-backend=m",
                          "-chardev", f"socket,id=c,path={path},reconnect-ms=200",
                          "-device", "vhost-user-blk-pci,chardev=c,num-queues=1",
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        os.set_blocking(self.proc.stdout.fileno(), False)
        self.text = ""

    def count(self):
        """How often it has said that its disk is right."""
        try:
            self.text += os.read(self.proc.stdout.fileno(), 1 << 20).decode()
        except BlockingIOError:
            pass
        assert "DISK-BAD" not in self.text, self.text
        assert self.proc.poll() is None, self.text
        return self.text.count("DISK-OK")

    def goes_on(self, more=20):
        goal = self.count() + more
        wait_for(lambda: self.count() >= goal, timeout=120, what="the guest to use its disk")


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGTERM,
                                                              marks=pytest.mark.full)])
def test_the_server_comes_back(server, bdev, spawn, tmp_path, how):
    device = bdev(64 * MIB)
    with open(device, "wb") as f:
        f.write(bootsector.assemble(bootsector.COUNT, tmp_path))
    proc, path = server(device)
    guest = Guest(spawn, path)
    guest.goes_on()
    for _ in range(3):
        time.sleep(random.uniform(0, 0.5))
        if how == signal.SIGKILL:
            run("pkill", "-KILL", "-x", "qcow2attach")
        else:
            proc.terminate()
        proc.wait(timeout=60)
        proc, path = server(device)
        guest.goes_on()
    # QEMU ends, and the next one finds its disk.
    guest.proc.terminate()
    guest.proc.wait(timeout=60)
    guest = Guest(spawn, path)
    guest.goes_on()
    guest.proc.kill()
    guest.proc.wait()
    proc.terminate()
    assert proc.wait(timeout=60) == 0


class Monitor:
    """QEMU's QMP."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        wait_for(lambda: not self.sock.connect_ex(str(path)), what="the monitor")
        self.file = self.sock.makefile("rw")
        json.loads(self.file.readline())
        self("qmp_capabilities")

    def __call__(self, command, **arguments):
        self.file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.file.flush()
        while "event" in (answer := json.loads(self.file.readline())):
            pass
        assert "return" in answer, answer
        return answer["return"]

    def close(self):
        self.file.close()
        self.sock.close()


def test_migration(server, bdev, dm, spawn, tmp_path):
    """A guest that uses its disk all the time moves to another QEMU and another server: QEMU takes all
    answers about the log. That the log holds what the kernel writes is for test_serve_protocol.py:
    this guest's processor writes to the same pages."""
    base = bdev(64 * MIB)
    with open(base, "wb") as f:
        f.write(bootsector.assemble(bootsector.COUNT, tmp_path))
    # Each host has a claim of its own on the storage that they share.
    here, there = (dm.create(name, f"0 {64 * MIB // 512} linear {base} 0")
                   for name in ("here", "there"))
    source, path = server(here, "here")
    target, other = server(there, "there")
    qmp = tmp_path / "qmp"
    guest = Guest(spawn, path, "-qmp", f"unix:{qmp},server=on,wait=off")
    guest.goes_on()
    moved = Guest(spawn, other, "-incoming", f"unix:{tmp_path}/stream")
    monitor = Monitor(qmp)
    wait_for(lambda: os.path.exists(tmp_path / "stream"), what="the other QEMU")
    monitor("migrate", uri=f"unix:{tmp_path}/stream")
    wait_for(lambda: monitor("query-migrate").get("status") in ("completed", "failed"), timeout=240,
             what="the migration")
    state = monitor("query-migrate")
    assert state["status"] == "completed", state
    moved.goes_on()
    monitor.close()
    for who in (guest, moved):
        who.proc.kill()
        who.proc.wait()
    for proc in (source, target):
        proc.terminate()
        assert proc.wait(timeout=60) == 0, proc.stdout.read()
