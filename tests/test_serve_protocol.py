# SPDX-License-Identifier: GPL-2.0-or-later
"""`qcow2attach serve` against front ends made by hand: what a polite one is told about the disk,
and how one that breaks the rules loses its connection and nothing else.
"""
import array
import mmap
import os
import random
import re
import signal
import socket
import struct
import subprocess
import time

import pytest

from helpers import MIB, run, sysfs, wait_for

GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE = 1, 2, 3, 4, 5
SET_LOG_BASE, SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 6, 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
SET_BACKEND_REQ_FD, GET_CONFIG, SET_CONFIG, GET_MAX_MEM_SLOTS = 21, 24, 25, 36
ADD_MEM_REG, SET_STATUS = 37, 39
BACKEND_CONFIG_CHANGE = 2
NEED_REPLY = 8
BLK_RO, BLK_FLUSH, BLK_CONFIG_WCE, BLK_MQ, BLK_DISCARD, BLK_WRITE_ZEROES = 5, 9, 11, 12, 13, 14
LOG_ALL, PROTOCOL_FEATURES_BIT, VERSION_1 = 26, 30, 32
CONFIG = struct.Struct("<QIIHBBIBBHIBBHIIIIIB3x")
CONFIG_FIELDS = ("capacity size_max seg_max cylinders heads sectors blk_size physical_block_exp "
                 "alignment_offset min_io_size opt_io_size writeback unused num_queues "
                 "max_discard_sectors max_discard_seg discard_sector_alignment "
                 "max_write_zeroes_sectors max_write_zeroes_seg write_zeroes_may_unmap").split()


class FrontEnd:
    """A vhost-user front end that sends what it is told to."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(path)

    def send(self, request, payload=b"", fds=(), flags=0, size=None):
        header = struct.pack("=III", request, 1 | flags, len(payload) if size is None else size)
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([header + payload], control)

    def reply(self, request):
        got, flags, size = struct.unpack("=III", self.read(12))
        assert got == request and flags == 5, (got, flags)
        return self.read(size)

    def read(self, n):
        data = b""
        while len(data) < n:
            part = self.sock.recv(n - len(data))
            if not part:
                raise ConnectionError("the server closed the connection")
            data += part
        return data

    def ask(self, request, payload=b"", fds=()):
        self.send(request, payload, fds)
        return self.reply(request)

    def get(self, request):
        return struct.unpack("=Q", self.ask(request))[0]

    def set(self, request, value):
        self.send(request, struct.pack("=Q", value))

    def negotiate(self):
        features = self.get(GET_FEATURES)
        assert features >> PROTOCOL_FEATURES_BIT & 1
        self.set(SET_PROTOCOL_FEATURES, self.get(GET_PROTOCOL_FEATURES))
        self.send(SET_OWNER)
        return features

    def config(self):
        data = self.ask(GET_CONFIG, struct.pack("=III", 0, CONFIG.size, 0) + bytes(CONFIG.size))
        return dict(zip(CONFIG_FIELDS, CONFIG.unpack(data[12:])))

    def closed(self):
        """The server has closed this connection."""
        try:
            while self.sock.recv(4096):
                pass
        except ConnectionError:
            pass
        return True

    def close(self):
        self.sock.close()


@pytest.fixture
def server(spawn, tmp_path):
    """server(device, *options) -> (process, path of the socket)"""
    def start(device, *options):
        path = str(tmp_path / "disk.sock")
        log = open(tmp_path / "server.log", "w+")
        proc = spawn("qcow2attach", "serve", device, "--socket", path, *options,
                     stdout=log, stderr=subprocess.STDOUT)
        wait_for(lambda: os.path.exists(path) and "ready" in (tmp_path / "server.log").read_text(),
                 what="the server")
        return proc, path
    return start


def test_the_disk_is_described(server, bdev):
    device = bdev(64 * MIB, blocksize=4096)
    proc, path = server(device, "--queues", 2)
    front = FrontEnd(path)
    features = front.negotiate()
    assert features >> VERSION_1 & 1 and features >> BLK_MQ & 1
    assert features >> BLK_DISCARD & 1 and features >> BLK_WRITE_ZEROES & 1
    assert not features >> BLK_RO & 1
    assert front.get(GET_QUEUE_NUM) == 2
    assert front.get(GET_MAX_MEM_SLOTS) >= 8
    config = front.config()
    assert config["capacity"] == 64 * MIB // 512
    assert config["blk_size"] == 4096
    assert config["num_queues"] == 2
    assert config["writeback"] == 1
    assert config["seg_max"] == 126
    granularity = int(sysfs(device, "queue/discard_granularity"))
    assert config["discard_sector_alignment"] == granularity // 512
    assert config["max_discard_sectors"] > 0 and config["max_discard_seg"] > 0
    assert config["max_write_zeroes_sectors"] > 0
    front.close()
    proc.send_signal(signal.SIGTERM)
    assert proc.wait(timeout=20) == 0


def test_read_only(server, bdev):
    proc, path = server(bdev(64 * MIB), "--read-only", "--queues", 1)
    front = FrontEnd(path)
    features = front.negotiate()
    assert features >> BLK_RO & 1
    assert not features & (1 << BLK_DISCARD | 1 << BLK_WRITE_ZEROES | 1 << BLK_MQ)
    front.close()
    # The device itself may not be written either.
    assert run("blkio_bench", "virtio-blk-vhost-user", path, "randwrite", 1, 1, 1,
               check=False).returncode
    proc.send_signal(signal.SIGTERM)
    assert proc.wait(timeout=20) == 0


def test_read_only_device(server, bdev):
    device = bdev(64 * MIB)
    run("blockdev", "--setro", device)
    proc, path = server(device)
    front = FrontEnd(path)
    assert front.negotiate() >> BLK_RO & 1
    front.close()
    proc.send_signal(signal.SIGTERM)
    assert proc.wait(timeout=20) == 0


def test_a_new_size_is_told(server, bdev, dm):
    """Growing the device reaches the front end by itself."""
    base = bdev(64 * MIB)
    device = dm.create("growing", f"0 {32 * MIB // 512} linear {base} 0")
    proc, path = server(device)
    front = FrontEnd(path)
    front.negotiate()
    ours, theirs = socket.socketpair()
    front.send(SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
    theirs.close()
    assert front.config()["capacity"] == 32 * MIB // 512
    dm.reload("growing", f"0 {64 * MIB // 512} linear {base} 0")
    ours.settimeout(20)
    assert struct.unpack("=III", ours.recv(12)) == (BACKEND_CONFIG_CHANGE, 1, 0)
    assert front.config()["capacity"] == 64 * MIB // 512
    ours.close()
    front.close()
    proc.send_signal(signal.SIGTERM)
    assert proc.wait(timeout=20) == 0


def memory(size=MIB, name="guest"):
    fd = os.memfd_create(name)
    os.ftruncate(fd, size)
    return fd


def remote_memory():
    """A file that can be mapped, but may be served by another process or machine: the guest's root
    is an overlay on 9p."""
    path = "/var/lib/guest-memory"
    assert run("stat", "-f", "-c", "%T", os.path.dirname(path)).stdout.strip() == "overlayfs"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.unlink(path)
    os.ftruncate(fd, MIB)
    return fd


def table(*regions):
    """A SET_MEM_TABLE payload of (guest address, size, front-end address, offset)."""
    return struct.pack("=II", len(regions), 0) + b"".join(struct.pack("=QQQQ", *r)
                                                          for r in regions)


def vring_addr(index, desc, used, avail, flags=0, log=0):
    return struct.pack("=IIQQQQ", index, flags, desc, used, avail, log)


FRONT = 0x7f0000000000


def set_up_ring(front, used=FRONT + 0x2000):
    """Everything that starts ring 0."""
    fd = memory()
    front.send(SET_MEM_TABLE, table((0, MIB, FRONT, 0)), [fd])
    front.set(SET_FEATURES, 1 << VERSION_1 | 1 << PROTOCOL_FEATURES_BIT)
    front.send(SET_VRING_NUM, struct.pack("=II", 0, 128))
    front.send(SET_VRING_BASE, struct.pack("=II", 0, 0))
    kick = os.eventfd(0)
    front.send(SET_VRING_KICK, struct.pack("=Q", 0), [kick])
    front.send(SET_VRING_ENABLE, struct.pack("=II", 0, 1))
    front.send(SET_VRING_ADDR, vring_addr(0, FRONT, used, FRONT + 0x1000))
    os.close(fd)
    os.close(kick)


BREACHES = {
    "unknown message": lambda f: f.send(77),
    "version": lambda f: f.send(GET_FEATURES, flags=2),
    "a huge payload": lambda f: f.send(SET_FEATURES, b"x" * 64, size=1 << 31),
    "a short payload": lambda f: f.send(SET_FEATURES, b"x" * 4),
    "features not offered": lambda f: f.set(SET_FEATURES, (1 << 64) - 1),
    "a table without descriptors": lambda f: f.send(SET_MEM_TABLE, table((0, MIB, FRONT, 0))),
    "too many descriptors": lambda f: f.send(SET_MEM_TABLE, table((0, MIB, FRONT, 0)),
                                             [memory() for _ in range(20)]),
    "nine regions": lambda f: f.send(SET_MEM_TABLE, struct.pack("=II", 9, 0) + bytes(256),
                                     [memory()] * 8),
    "overlapping regions": lambda f: f.send(SET_MEM_TABLE, table((0, MIB, FRONT, 0),
                                                                 (4096, MIB, 2 * FRONT, 0)),
                                            [memory()] * 2),
    "a region that wraps": lambda f: f.send(SET_MEM_TABLE,
                                            table(((1 << 64) - 4096, MIB, FRONT, 0)), [memory()]),
    "memory that cannot be mapped": lambda f: f.send(SET_MEM_TABLE, table((0, MIB, FRONT, 0)),
                                                     [os.pipe()[0]]),
    "memory on another host": lambda f: f.send(SET_MEM_TABLE, table((0, MIB, FRONT, 0)),
                                               [remote_memory()]),
    "memory that is a device": lambda f: f.send(SET_MEM_TABLE, table((0, MIB, FRONT, 0)),
                                                [os.open("/dev/zero", os.O_RDWR)]),
    "no such ring": lambda f: f.send(SET_VRING_NUM, struct.pack("=II", 200, 128)),
    "a ring of 100": lambda f: f.send(SET_VRING_NUM, struct.pack("=II", 0, 100)),
    "a kick that is no eventfd": lambda f: (set_up_ring(f), f.send(
        SET_VRING_KICK, struct.pack("=Q", 0), [memory()])),
    "a ring outside memory": lambda f: set_up_ring(f, used=FRONT + MIB - 8),
    "a ring at no address": lambda f: set_up_ring(f, used=0),
    "a log that was not set": lambda f: (set_up_ring(f), f.set(
        SET_FEATURES, 1 << VERSION_1 | 1 << PROTOCOL_FEATURES_BIT | 1 << LOG_ALL)),
    "writing the capacity": lambda f: f.send(SET_CONFIG, struct.pack("=IIIQ", 0, 8, 0, 1)),
}


def test_breaches_cost_the_connection_only(server, bdev, tmp_path):
    proc, path = server(bdev(64 * MIB))
    for name, breach in BREACHES.items():
        front = FrontEnd(path)
        front.negotiate()
        breach(front)
        assert front.closed(), name
        front.close()
        assert proc.poll() is None, name
    log = (tmp_path / "server.log").read_text()
    assert log.count("connection closed: ") == len(BREACHES), log
    print(log)
    assert re.search(r"SET_MEM_TABLE: guest memory is in a file on a filesystem \(type 0x794c7630\)",
                     log)
    assert "SET_MEM_TABLE: guest memory is not in a regular file" in log
    done = run("blkio_verify", "virtio-blk-vhost-user", path, 1, 500, random.getrandbits(32))
    print(done.stdout)
    proc.send_signal(signal.SIGTERM)
    assert proc.wait(timeout=20) == 0


def test_no_front_end_waits_for_ever(server, bdev):
    """A front end that reads as many bytes as it expects, not as many as are announced, gets them or
    sees the connection end."""
    proc, path = server(bdev(8 * MIB), "--queues", 1)
    front = FrontEnd(path)
    front.negotiate()
    log = memory(4096)
    front.send(SET_LOG_BASE, struct.pack("=QQ", 4096, 0), [log], NEED_REPLY)
    assert struct.unpack("=IIIQ", front.read(20)) == (SET_LOG_BASE, 5, 8, 0)
    # A log of no bytes is refused by the same number of bytes.
    front.send(SET_LOG_BASE, struct.pack("=QQ", 0, 0), [log], NEED_REPLY)
    assert struct.unpack("=IIIQ", front.read(20)) == (SET_LOG_BASE, 5, 8, 1)
    os.close(log)
    for request, payload, expected in [
            (GET_CONFIG, struct.pack("=III", 200, 100, 0) + bytes(100), 12 + 112),
            (GET_VRING_BASE, struct.pack("=II", 7, 0), 12 + 8)]:
        front.send(request, payload, flags=NEED_REPLY)
        with pytest.raises(ConnectionError):
            front.read(expected)
        front.close()
        front = FrontEnd(path)
        front.negotiate()
    front.close()
    proc.send_signal(signal.SIGTERM)
    assert proc.wait(timeout=20) == 0


MAX_RING_SIZE = "/sys/module/vhost_blk/parameters/max_ring_size"


def set_max_ring_size(entries):
    with open(MAX_RING_SIZE, "w") as f:
        f.write(str(entries))


def test_size_of_rings(server, bdev, tmp_path, cleanup):
    """A ring takes no more of the kernel's memory than it was allowed."""
    proc, path = server(bdev(8 * MIB), "--queues", 1)
    front = FrontEnd(path)
    front.negotiate()
    front.send(SET_VRING_NUM, struct.pack("=II", 0, 1024), flags=NEED_REPLY)
    assert struct.unpack("=Q", front.reply(SET_VRING_NUM)) == (0,)
    front.send(SET_VRING_NUM, struct.pack("=II", 0, 2048), flags=NEED_REPLY)
    assert struct.unpack("=Q", front.reply(SET_VRING_NUM)) == (1,)
    front.close()
    proc.send_signal(signal.SIGTERM)
    assert proc.wait(timeout=20) == 0
    assert "no ring may have more than 1024 (--queue-size)" in (tmp_path / "server.log").read_text()
    # More than the kernel serves is refused before a guest can ask for that ...
    device = bdev(8 * MIB)
    result = run("qcow2attach", "serve", device, "--socket", str(tmp_path / "refused.sock"),
                 "--queue-size", 32768, check=False)
    assert result.returncode and "32768 entries" in result.stderr, result.stderr
    assert "max_ring_size" in result.stderr
    # ... and served once the administrator has allowed that.
    cleanup(set_max_ring_size, 1024)
    set_max_ring_size(32768)
    proc, path = server(device, "--queues", 1, "--queue-size", 32768)
    front = FrontEnd(path)
    front.negotiate()
    front.send(SET_VRING_NUM, struct.pack("=II", 0, 32768), flags=NEED_REPLY)
    assert struct.unpack("=Q", front.reply(SET_VRING_NUM)) == (0,)
    front.close()
    proc.send_signal(signal.SIGTERM)
    assert proc.wait(timeout=20) == 0


def test_partial_and_slow_messages(server, bdev):
    proc, path = server(bdev(64 * MIB))
    # One that stops in the middle does not keep the next from coming once it is gone ...
    front = FrontEnd(path)
    front.sock.send(b"\1\0\0")
    front.close()
    # ... and one byte at a time is as good as any.
    front = FrontEnd(path)
    for byte in struct.pack("=III", GET_FEATURES, 1, 0):
        front.sock.send(bytes([byte]))
    assert front.reply(GET_FEATURES)
    front.close()
    # SIGTERM is heard while a message is half received.
    front = FrontEnd(path)
    front.sock.send(b"\1\0\0")
    proc.send_signal(signal.SIGTERM)
    assert proc.wait(timeout=20) == 0
    front.close()


@pytest.mark.core
def test_rings_are_drained_and_restarted(server, bdev):
    """The kernel's counters of a ring that runs, stops and moves with its memory."""
    proc, path = server(bdev(64 * MIB))
    front = FrontEnd(path)
    front.negotiate()
    set_up_ring(front)
    base = front.ask(GET_VRING_BASE, struct.pack("=II", 0, 0))
    assert struct.unpack("=II", base) == (0, 0)
    # It starts again with a new kick, in other memory.
    set_up_ring(front)
    fd = memory()
    front.send(SET_MEM_TABLE, table((MIB, MIB, FRONT, 0)), [fd], NEED_REPLY)
    assert struct.unpack("=Q", front.reply(SET_MEM_TABLE)) == (0,)
    os.close(fd)
    front.send(RESET_OWNER)
    assert front.get(GET_QUEUE_NUM)
    front.close()
    proc.send_signal(signal.SIGTERM)
    assert proc.wait(timeout=20) == 0


class Writer:
    """A guest with one ring that it writes single sectors by."""

    def __init__(self, path, features=0):
        """With more FEATURES nothing is started yet."""
        self.front = FrontEnd(path)
        self.front.negotiate()
        self.fd = memory()
        self.mem = mmap.mmap(self.fd, MIB)
        self.kick = os.eventfd(0)
        self.count = 0
        self.memory_at(0)
        self.front.set(SET_FEATURES, 1 << VERSION_1 | 1 << PROTOCOL_FEATURES_BIT |
                       1 << BLK_FLUSH | 1 << BLK_CONFIG_WCE | features)
        if not features:
            self.start()

    def memory_at(self, address):
        """Tell where the guest's memory is."""
        self.front.send(SET_MEM_TABLE, table((address, MIB, FRONT, 0)), [self.fd])

    def start(self):
        self.front.send(SET_VRING_NUM, struct.pack("=II", 0, 128))
        self.front.send(SET_VRING_ADDR, vring_addr(0, FRONT, FRONT + 0x2000, FRONT + 0x1000))
        self.front.send(SET_VRING_KICK, struct.pack("=Q", 0), [self.kick])
        self.front.send(SET_VRING_ENABLE, struct.pack("=II", 0, 1))

    def post(self, sector):
        """Put a write into the ring, and tell nobody."""
        chain = [(0x3000, 16, 1, 1), (0x4000, 512, 1, 2), (0x5000, 1, 2, 0)]
        self.mem[0:48] = b"".join(struct.pack("<QIHH", *d) for d in chain)
        self.mem[0x3000:0x3010] = struct.pack("<IIQ", 1, 0, sector)
        self.mem[0x5000] = 0xff
        at = 0x1004 + self.count % 128 * 2
        self.mem[at:at + 2] = bytes(2)
        self.count += 1
        self.mem[0x1002:0x1004] = struct.pack("<H", self.count)

    def answered(self):
        return struct.unpack("<H", self.mem[0x2002:0x2004])[0] == self.count

    def notify(self):
        os.eventfd_write(self.kick, 1)
        wait_for(self.answered, what="the answer")
        assert self.mem[0x5000] == 0

    def write(self, sector):
        self.post(sector)
        self.notify()

    def write_through(self, on):
        self.front.send(SET_CONFIG, struct.pack("=IIIB", 32, 1, 0, not on), flags=NEED_REPLY)
        assert struct.unpack("=Q", self.front.reply(SET_CONFIG)) == (0,)

    def close(self):
        self.front.close()
        self.mem.close()
        os.close(self.kick)
        os.close(self.fd)


def test_cache_mode(server, bdev, writes_log):
    """A guest that gives up flushing has each write on stable storage when it is answered, until it
    says otherwise itself: whatever QEMU does in between, it would not say it again."""
    log = writes_log(bdev(8 * MIB))
    proc, path = server(log.path, "--queues", 1)
    guest = Writer(path)
    guest.write(0)
    guest.write_through(True)
    guest.write(8)
    # QEMU stops and continues the machine, or resets it.
    guest.front.set(SET_STATUS, 0)
    guest.start()
    guest.write(16)
    guest.close()
    # It has lost its connection and comes back.
    guest = Writer(path)
    guest.write(24)
    assert guest.front.config()["writeback"] == 0
    guest.write_through(False)
    guest.write(32)
    guest.close()
    proc.send_signal(signal.SIGTERM)
    assert proc.wait(timeout=20) == 0
    # What has not been flushed would not be in the log.
    fd = os.open(log.path, os.O_RDWR)
    os.fsync(fd)
    os.close(fd)
    assert log.writes() == {0: False, 8: True, 16: True, 24: True, 32: False}


def test_a_log_that_is_long_enough_later(server, bdev):
    """A log too short for the guest's memory covers it once there is less memory: then all that the
    kernel writes to it is marked."""
    proc, path = server(bdev(8 * MIB), "--queues", 1)
    guest = Writer(path, 1 << LOG_ALL)
    guest.memory_at(64 * MIB)
    log = memory(4096)
    guest.front.send(SET_LOG_BASE, struct.pack("=QQ", MIB // 4096 // 8, 0), [log])
    assert struct.unpack("=Q", guest.front.reply(SET_LOG_BASE)) == (0,)
    guest.memory_at(0)
    guest.start()
    guest.write(0)
    assert os.pread(log, 1, 0)[0] & 1 << 0x5000 // 4096, "the status byte is not in the log"
    guest.close()
    os.close(log)
    proc.send_signal(signal.SIGTERM)
    assert proc.wait(timeout=20) == 0


def test_who_comes_back_at_once_is_let_in(server, bdev):
    """The end of a connection is seen before the next one, whatever the first has left to be read."""
    proc, path = server(bdev(8 * MIB))
    front = FrontEnd(path)
    front.negotiate()
    os.killpg(proc.pid, signal.SIGSTOP)
    for _ in range(3):
        front.send(SET_OWNER)
    front.close()
    again = FrontEnd(path)
    os.killpg(proc.pid, signal.SIGCONT)
    again.negotiate()
    assert FrontEnd(path).closed()      # while it is there


@pytest.mark.core
@pytest.mark.skipif(os.cpu_count() == 1, reason="who polls gives way to who wants its processor")
@pytest.mark.parametrize("poll", [0, 1000000])
def test_polling(server, bdev, poll):
    """What comes soon after a request is seen without a notification, if that is wanted."""
    proc, path = server(bdev(64 * MIB), "--queues", 1, "--poll", poll)
    guest = Writer(path)
    unasked = 0
    for number in range(50):
        guest.write(number)
        time.sleep(0.01)        # for who does not poll to go to sleep
        guest.post(number)
        time.sleep(0.01)
        unasked += guest.answered()
        guest.notify()
    assert bool(unasked) == bool(poll), unasked
    guest.close()
    proc.send_signal(signal.SIGTERM)
    assert proc.wait(timeout=20) == 0


def test_memory_that_shrinks(server, bdev):
    """A front end that cuts its memory short gets an error for the ring; the server lives on."""
    proc, path = server(bdev(64 * MIB))
    front = FrontEnd(path)
    front.negotiate()
    fd = memory()
    front.send(SET_MEM_TABLE, table((0, MIB, FRONT, 0)), [fd])
    os.ftruncate(fd, 0)
    front.set(SET_FEATURES, 1 << VERSION_1 | 1 << PROTOCOL_FEATURES_BIT)
    front.send(SET_VRING_NUM, struct.pack("=II", 0, 128))
    kick = os.eventfd(0)
    front.send(SET_VRING_ADDR, vring_addr(0, FRONT, FRONT + 0x2000, FRONT + 0x1000))
    front.send(SET_VRING_KICK, struct.pack("=Q", 0), [kick])
    front.send(SET_VRING_ENABLE, struct.pack("=II", 0, 1))
    os.eventfd_write(kick, 1)
    front.close()
    os.close(fd)
    os.close(kick)
    print(run("blkio_verify", "virtio-blk-vhost-user", path, 1, 500,
              random.getrandbits(32)).stdout)
    proc.send_signal(signal.SIGTERM)
    assert proc.wait(timeout=20) == 0
