# SPDX-License-Identifier: GPL-2.0-or-later
"""Chains of images to put under a dm-qcow2 device, and what is done to such a device.

Stands on helpers.py; knows the table line, the differential program and the kernel's answers. The
devices belong to the `dm` fixture, the storage to `bdev` and `filesystem`.
"""
import ctypes
import errno
import fcntl
import hashlib
import itertools
import mmap
import os
import random
import struct
import subprocess
import threading
import time

from helpers import (MIB, SECTOR, KernelLog, image_check, image_compare, image_create, qemu_io,
                     run)

KIB = 1 << 10
GIB = 1 << 30
BLKDISCARD, BLKZEROOUT = 0x1277, 0x127f
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
# The image's header: name -> (offset, struct format)
HEADER = {"magic": (0, ">I"), "version": (4, ">I"), "backing_offset": (8, ">Q"),
          "backing_size": (16, ">I"), "cluster_bits": (20, ">I"), "size": (24, ">Q"),
          "crypt_method": (32, ">I"), "l1_size": (36, ">I"), "l1_offset": (40, ">Q"),
          "refcount_offset": (48, ">Q"), "refcount_clusters": (56, ">I"),
          "nb_snapshots": (60, ">I"), "snapshots_offset": (64, ">Q"), "incompatible": (72, ">Q"),
          "compatible": (80, ">Q"), "autoclear": (88, ">Q"), "refcount_order": (96, ">I"),
          "header_length": (100, ">I"), "compression_type": (104, "B")}
STORAGE_SIZE = 352 * MIB


def checksum(path):
    """Of a file or device; most of it is zeroes, which cost next to nothing."""
    h, zeroes = hashlib.sha256(), bytes(MIB)
    with open(path, "rb") as f:
        for number in itertools.count():
            block = f.read(MIB)
            if not block:
                return h.hexdigest()
            if block != zeroes[:len(block)]:
                h.update(b"%d " % number + block)


def sparse(path, size):
    """An empty file of a size."""
    with open(path, "wb") as f:
        f.truncate(size)
    return str(path)


class Place:
    """Where images live: each on a block device of its own, or files on one file system."""

    def __init__(self, kind, bdev, filesystem, bdev_kind="null", size=STORAGE_SIZE):
        self.kind, self.bdev, self.bdev_kind, self.size = kind, bdev, bdev_kind, size
        self.directory = None if kind == "bdev" else filesystem(kind, size=2 * size)

    def __call__(self, name):
        if self.directory is None:
            return self.bdev(self.size, self.bdev_kind)
        return os.path.join(self.directory, name)


def tagged(path, size, seed, ops=150):
    """A raw file of tagged sectors, about half of it holes."""
    sparse(path, size)
    run("differential", "--seed", seed, "--ops", ops, "--threads", 1, path)
    return str(path)


class Chain:
    """The image under test, what lies below it, and the model of its disk."""

    def __init__(self, place, tmp, backing="none", size=64 * MIB, version=3, cluster=64 * KIB,
                 seed=1, **options):
        self.place, self.tmp, self.seed = place, str(tmp), seed
        self.size, self.version, self.cluster = size, version, cluster
        self.below = []             # (format, path), nearest first
        if backing != "none":
            getattr(self, "build_" + backing)()
        self.top = self.overlay("top", size, compat="0.10" if version == 2 else "1.1",
                                cluster_size=cluster, **options)
        self.model = os.path.join(self.tmp, "model")
        if self.below:
            run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.top, self.model)
        else:
            sparse(self.model, size)
        self.sums = [checksum(path) for _, path in self.below]

    @property
    def layers(self):
        return [f"qcow2:{self.top}"] + [f"{f}:{p}" for f, p in self.below]

    @property
    def discard_zeroes(self):
        return self.version == 3 or not self.below

    def overlay(self, name, size, **options):
        fmt, path = self.below[0] if self.below else (None, None)
        return image_create(self.place(name), size, backing=path, backing_fmt=fmt, **options)

    def build_raw(self):
        content = tagged(os.path.join(self.tmp, "content"), self.size, self.seed * 100 + 1)
        path = self.place("base")
        # a block device is longer than this content, and so is the layer then
        run("qemu-img", "convert", "-n" if self.place.directory is None else "-q", "-f", "raw",
            "-O", "raw", content, path)
        self.below = [("raw", path)]

    def build_qcow2(self, size=None):
        content = tagged(os.path.join(self.tmp, "content"), size or self.size, self.seed * 100 + 2)
        path = self.place("base")
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", content, path)
        self.below = [("qcow2", path)]

    def build_shorter(self):
        self.build_qcow2(self.size // 2 // SECTOR * SECTOR + 3 * SECTOR)

    def build_longer(self):
        self.build_qcow2(self.size + 3 * MIB)

    def build_deep(self):
        """Three images below one another, with clusters of other sizes than their neighbours'."""
        self.build_raw()
        rng = random.Random(self.seed)
        for level, cluster in (("mid1", "32k"), ("mid2", "128k")):
            path = self.overlay(level, self.size, cluster_size=cluster)
            commands = []
            for i in range(12):
                length = rng.randrange(1, 400)
                at = rng.randrange(self.size // SECTOR - length)
                commands.append("write {} {} {}".format(
                    "-z" if i % 3 == 0 else f"-P {i + 1}", at * SECTOR, length * SECTOR))
            qemu_io(path, *commands)
            self.below.insert(0, ("qcow2", path))

    def verify(self):
        """After a clean removal: no error and no leak, the model's data, backing untouched."""
        image_check(self.top)
        image_compare(self.top, self.model)
        assert [checksum(path) for _, path in self.below] == self.sums, "a backing file was written"


class Controller(threading.Thread):
    """Disturbs a device in random ways until told to stop; the first failure is kept."""

    ACTIONS = ("suspend", "noflush", "reload", "commit", "drop_cache", "status")

    def __init__(self, dm, name, seed, actions=ACTIONS):
        super().__init__(daemon=True)
        self.dm, self.name, self.actions = dm, name, actions
        self.rng = random.Random(seed)
        self.stopping = threading.Event()
        self.failure = None
        self.done = {}

    def step(self):
        what = self.rng.choice(self.actions)
        if what in ("suspend", "noflush"):
            self.dm.suspend(self.name, *(["--noflush"] if what == "noflush" else []))
            time.sleep(self.rng.random() * 0.05)
            self.dm.resume(self.name)
        elif what == "reload":
            self.dm.reload(self.name, self.dm.table(self.name))
        elif what == "status":
            assert self.dm.qcow2_status(self.name)["mode"] == "rw"
        else:
            # a commit flushes: not beside another flush (see differential.c)
            with open(f"/dev/mapper/{self.name}", "rb", buffering=0) as device:
                fcntl.flock(device, fcntl.LOCK_EX)
                self.dm.message(self.name, what)
        self.done[what] = self.done.get(what, 0) + 1

    def run(self):
        try:
            while not self.stopping.wait(self.rng.random() * 0.3):
                self.step()
        except BaseException as e:      # whatever it was, the test must hear of it
            self.failure = e

    def stop(self):
        self.stopping.set()
        self.join(150)
        assert not self.is_alive(), f"the device hangs; the controller did {self.done}"
        if self.failure:
            raise self.failure


def exercise(dm, name, chain, seed, ops, *options, threads=4, actions=Controller.ACTIONS):
    """Run the differential program on a device, disturbed by a controller unless actions=()."""
    argv = ["differential", "--seed", seed, "--ops", ops, "--threads", threads,
            "--cluster", chain.cluster, "--model", chain.model, *options]
    if not chain.discard_zeroes:
        argv.append("--no-discard-zero")
    controller = Controller(dm, name, seed, actions)
    if actions:
        controller.start()
    try:
        done = run(*argv, f"/dev/mapper/{name}", check=False, timeout=240)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"differential hangs; seed {seed}, the controller did "
                             f"{controller.done}") from None
    finally:
        if actions:
            controller.stop()
    print(done.stdout, done.stderr, controller.done)
    assert done.returncode == 0, f"{argv}; the controller did {controller.done}\n{done.stdout}" \
        f"{done.stderr}"


def verify_device(path, model):
    """The device reads as the model says."""
    run("differential", "--verify-only", "--model", model, path, timeout=240)


def header_size(path):
    """The size of an image's disk, without a process to ask."""
    with open(path, "rb") as f:
        f.seek(24)
        return struct.unpack(">Q", f.read(8))[0]


class Disk:
    """Direct I/O on a device from within the test: far cheaper than a program per access."""

    CHUNK = MIB

    def __init__(self, path, writable=True, direct=True):
        self.fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) |
                          (os.O_DIRECT if direct else 0))
        self.buf = mmap.mmap(-1, self.CHUNK)

    def close(self):
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def chunks(self, at, length):
        for start in range(at, at + length, self.CHUNK):
            yield start, min(self.CHUNK, at + length - start)

    def write(self, byte, at, length):
        """Fill with a byte; errors are OSError."""
        self.buf[:] = bytes([byte]) * self.CHUNK
        for start, size in self.chunks(at, length):
            with memoryview(self.buf) as view, view[:size] as part:
                assert os.pwritev(self.fd, [part], start) == size

    def read(self, at, length):
        """One chunk, as bytes."""
        with memoryview(self.buf) as view, view[:length] as part:
            assert os.preadv(self.fd, [part], at) == length
        return self.buf[:length]

    def expect(self, byte, at, length):
        """Every byte there is that byte."""
        for start, size in self.chunks(at, length):
            data = self.read(start, size)
            if data.count(byte) != size:
                wrong = next(i for i in range(size) if data[i] != byte)
                raise AssertionError(f"at {start + wrong:#x}: {data[wrong]:#x} instead of {byte:#x}")

    def eio(self, at, length=4096):
        """Reading there gives EIO."""
        try:
            self.read(at, length)
        except OSError as e:
            return e.errno == errno.EIO
        return False

    def discard(self, at, length):
        fcntl.ioctl(self.fd, BLKDISCARD, struct.pack("QQ", at, length))

    def zeroout(self, at, length):
        fcntl.ioctl(self.fd, BLKZEROOUT, struct.pack("QQ", at, length))

    def fallocate(self, mode, at, length):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.fallocate(self.fd, mode | KEEP_SIZE, ctypes.c_long(at), ctypes.c_long(length)):
            raise OSError(ctypes.get_errno(), "fallocate")

    def flush(self):
        os.fsync(self.fd)


def answer(call, *args):
    """The errno with which a call fails, or 0; it must not wait for ever."""
    found = []

    def caller():
        try:
            call(*args)
            found.append(0)
        except OSError as e:
            found.append(e.errno)
    thread = threading.Thread(target=caller, daemon=True)
    thread.start()
    thread.join(30)
    assert found, "it hangs"
    return found[0]


class Counter(threading.Thread):
    """Writes the numbers from 1 on, one after the other, each to a place by chance."""

    def __init__(self, path, places, seed):
        super().__init__(daemon=True)
        self.disk, self.places, self.rng = Disk(path), places, random.Random(seed)
        self.log, self.sent, self.done = [None], 0, 0
        self.stopping, self.failure = False, None

    def run(self):
        try:
            while not self.stopping:
                place = self.rng.choice(self.places)
                self.log.append(place)
                self.sent += 1
                self.disk.buf[:4096] = struct.pack("<Q", self.sent) * 512
                with memoryview(self.disk.buf) as view, view[:4096] as part:
                    assert os.pwritev(self.disk.fd, [part], place) == 4096
                self.done = self.sent
        except BaseException as e:      # whatever it was, the test must hear of it
            self.failure = e

    def stop(self):
        self.stopping = True
        self.join(60)
        self.disk.close()
        assert not self.is_alive(), "a write hangs"
        if self.failure:
            raise self.failure

    def moment(self, path):
        """Up to which number a view has the writes; it must have all of these and no other."""
        found = {}
        with Disk(path, writable=False) as view:
            for place in self.places:
                data = view.read(place, 4096)
                found[place], = struct.unpack("<Q", data[:8])
                assert data == data[:8] * 512, f"torn at {place:#x}"
        number = max(found.values())
        expected = dict.fromkeys(self.places, 0)
        for n, place in enumerate(self.log[1:number + 1], 1):
            expected[place] = n
        assert found == expected, f"not the moment of {number}"
        return number


class Attached(Disk):
    """A qcow2 device for the length of a with block. The block's own failure is the one told."""

    def __init__(self, dm, layers, *features, name="q", size=None):
        self.dm, self.name, self.path = dm, name, f"/dev/mapper/{name}"
        self.layers = [layers] if isinstance(layers, str) else list(layers)
        self.features = features
        self.size = size
        self.fd = None

    def __enter__(self):
        size = self.size or header_size(self.layers[0].split(":", 1)[1])
        self.dm.create_qcow2(self.name, self.layers, self.features, size // SECTOR)
        try:
            super().__init__(self.path, "read_only" not in self.features)
        except BaseException:
            self.dm.remove(self.name)
            raise
        return self

    def __exit__(self, kind, *_):
        self.close()
        try:
            self.dm.remove(self.name)
        except AssertionError:
            if kind is None:
                raise

    def status(self):
        return self.dm.qcow2_status(self.name)

    def table(self):
        return self.dm.table(self.name)

    def limit(self, name):
        """A value of the device's queue."""
        number = os.stat(self.path).st_rdev
        with open(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/queue/{name}") as f:
            return f.read().strip()

    def message(self, *words, **kw):
        return self.dm.message(self.name, *words, **kw)

    def commit(self):
        self.message("commit")


def refused(dm, layers, features=(), sectors=2048, name="refused"):
    """Try to create a device that must be refused; returns what the kernel's log says."""
    log = KernelLog()
    table = layers if isinstance(layers, str) else dm.qcow2_table(layers, features, sectors)
    done = dm.create(name, table, check=False)
    assert done.returncode, f"was not refused: {table}"
    assert run("dmsetup", "info", name, check=False).returncode, f"refused, yet left: {table}"
    text = "\n".join(log.read())
    log.close()
    return text
