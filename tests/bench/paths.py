# SPDX-License-Identifier: GPL-2.0-or-later
"""The contestants: each a path from a load generator to an image, or to a bare device.

Each start() is given Storage, the kind of image and an ExitStack that undoes everything, and
returns the command line of a load generator up to the description of the load (load.h).
"""
import os
import subprocess
import time

from helpers import MIB, SECTOR, run, sysfs, wait_for
from storage import CLUSTER, EMPTY, PREALLOC, SCRATCH

SOCKET = "/tmp/bench.sock"
SIZES = {"prealloc": PREALLOC, "backed": PREALLOC, "empty": EMPTY}
START = 60              # seconds that a server has to start or to end
PLACES = {"bdev": "a block device", "xfs": "XFS", "ext4": "ext4"}


def client(path, engine="uring"):
    return ["blockload", engine, path]


def guest_client():
    return ["blkio_bench", "virtio-blk-vhost-user", SOCKET]


def spawn(stack, *argv):
    """Start a server that is terminated in the end; what it says goes to a file."""
    log = open("/tmp/server.log", "w")
    proc = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    log.close()

    def stop():
        proc.terminate()
        try:
            proc.wait(START)
        except subprocess.TimeoutExpired:
            proc.kill()
            proc.wait()
            raise AssertionError(f"{argv[0]} did not end") from None

    stack.callback(stop)
    return proc


def wait_for_server(proc, condition):
    deadline = time.monotonic() + START
    while not condition():
        if proc.poll() is not None or time.monotonic() > deadline:
            with open("/tmp/server.log") as f:
                raise AssertionError(f"the server did not start (exit code {proc.returncode}): "
                                     f"{f.read().strip()}")
        time.sleep(0.05)


class Path:
    """KINDS are the images that it can be measured on."""

    kinds = ("prealloc", "empty", "backed")
    modes = ("icount", "wall")
    guest = False       # its load comes through a guest's ring

    def __init__(self, name, label):
        self.name, self.label = name, label

    def start(self, storage, kind, stack):
        raise NotImplementedError


class Device(Path):
    """A device as it is: null_blk, or what the preallocated image lies on."""

    kinds = ("prealloc",)

    def __init__(self, name, label, bare, engine="uring"):
        super().__init__(name, label)
        self.bare, self.engine = bare, engine

    def start(self, storage, kind, stack):
        return client(storage.null.path if self.bare else storage.pieces("plain"), self.engine)


class Linear(Path):
    kinds = ("prealloc",)

    def start(self, storage, kind, stack):
        return client(linear(storage, stack, storage.pieces("plain"), PREALLOC))


def linear(storage, stack, below, size):
    path = storage.dm.create("bench", f"0 {size // SECTOR} linear {below} 0")
    stack.callback(storage.dm.remove, "bench")
    return path


def qcow2(storage, stack, layers, size, features=()):
    path = storage.dm.create_qcow2("bench", layers, features, sectors=size // SECTOR)
    stack.callback(storage.dm.remove, "bench")
    return path


class Qcow2(Path):
    def __init__(self, place):
        super().__init__(f"qcow2-{place}", f"dm-qcow2 on {PLACES[place]}")
        self.place = place

    def start(self, storage, kind, stack):
        _, layers = storage.image(kind, self.place)
        return client(qcow2(storage, stack, layers, SIZES[kind]))


class Loop(Path):
    """Direct I/O to just those bytes of the image's file that its disk lies in."""

    kinds = ("prealloc",)

    def __init__(self, place):
        super().__init__(f"loop-{place}", f"loop, direct I/O, on {PLACES[place]}")
        self.place = place

    def start(self, storage, kind, stack):
        image = storage.prealloc(self.place)
        start, length = storage.data_extent(image)
        dev = run("losetup", "--find", "--show", "--direct-io=on", "--offset", start,
                  "--sizelimit", length, image).stdout.strip()

        def detach():
            run("losetup", "--detach", dev)
            wait_for(lambda: dev not in run("losetup", "-a").stdout, what="loop detach")

        stack.callback(detach)
        return client(dev)


class Thin(Path):
    """The preallocated volume has its data on null_blk, the others on the images' RAM disk."""

    def start(self, storage, kind, stack):
        dm, size = storage.dm, SIZES[kind]
        data = storage.null.path if kind == "prealloc" else SCRATCH
        sectors = int(run("blockdev", "--getsz", data).stdout)
        pool = dm.create("pool", f"0 {sectors} thin-pool {storage.table_space(64 * MIB)} {data} "
                         f"{CLUSTER // SECTOR} 0")
        stack.callback(dm.remove, "pool")
        dm.message("pool", "create_thin 0")
        origin = [storage.prealloc("bdev")] if kind == "backed" else []
        path = dm.create("bench", " ".join(["0", str(size // SECTOR), "thin", pool, "0", *origin]))
        stack.callback(dm.remove, "bench")
        if kind == "prealloc":
            run(*client(path), "write", 32, 1, f"x{size // CLUSTER}", CLUSTER)
        # device-mapper does not let io_uring's first attempt through to it, so every request
        # would take the way through a worker: the better of the two engines is AIO.
        return client(path, "aio")


class QemuNbd(Path):
    def __init__(self, aio):
        super().__init__(f"nbd-{aio}", f"qemu-nbd, {aio}, on a block device")
        self.aio = aio

    def start(self, storage, kind, stack):
        image, _ = storage.image(kind, "bdev")
        pid_file = "/tmp/qemu-nbd.pid"
        # It goes to the background by itself once it is connected.
        proc = subprocess.Popen(["qemu-nbd", "-f", "qcow2", "--cache=none", f"--aio={self.aio}",
                                 "--discard=unmap", f"--pid-file={pid_file}", "-c", "/dev/nbd0",
                                 image], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL)
        if proc.wait(START):
            raise AssertionError(f"qemu-nbd exited with {proc.returncode}")
        with open(pid_file) as f:
            pid = f.read().strip()

        def disconnect():
            run("qemu-nbd", "-d", "/dev/nbd0")
            wait_for(lambda: not os.path.exists(f"/proc/{pid}"), START, what="qemu-nbd to end")

        stack.callback(disconnect)
        wait_for(lambda: int(sysfs("/dev/nbd0", "size")), START, what="the size of /dev/nbd0")
        return client("/dev/nbd0")


class Vhost(Path):
    """qcow2attach serve, of null_blk itself when there is no place."""

    guest = True

    def __init__(self, place=None, queues=1, poll_us=0):
        super().__init__(f"vhost-{place or 'null'}" + ("-poll" if poll_us else ""),
                         ("vhost-blk on null_blk" if not place else
                          f"vhost-blk and dm-qcow2 on {PLACES[place]}") +
                         (f", polling for {poll_us} us" if poll_us else ""))
        self.place, self.queues, self.poll_us = place, queues, poll_us
        if poll_us:
            # On one CPU it polls while the client waits for that CPU.
            self.modes = ("wall",)
        if not place or poll_us:
            self.kinds = ("prealloc",)

    def start(self, storage, kind, stack):
        dev = storage.null.path
        if self.place:
            _, layers = storage.image(kind, self.place)
            dev = qcow2(storage, stack, layers, SIZES[kind])
        proc = spawn(stack, "qcow2attach", "serve", dev, "--socket", SOCKET, "--queues",
                     str(self.queues), "--workers", "per-queue", "--poll", str(self.poll_us))
        wait_for_server(proc, lambda: os.path.exists(SOCKET))
        return guest_client()


class StorageDaemon(Path):
    """qemu-storage-daemon's vhost-user-blk, on null_blk itself (raw) when there is no place."""

    guest = True

    def __init__(self, aio, place=None):
        super().__init__(f"qsd-{aio}-{place or 'null'}", f"qemu-storage-daemon, {aio}, "
                         + (f"qcow2 on {PLACES[place]}" if place else "raw on null_blk"))
        self.aio, self.place = aio, place
        if not place:
            self.kinds = ("prealloc",)

    def start(self, storage, kind, stack):
        image = storage.image(kind, self.place)[0] if self.place else storage.null.path
        driver = "host_device" if image.startswith("/dev/") else "file"
        nodes = ["--blockdev", f"driver={driver},node-name=f,filename={image},cache.direct=on,"
                 f"aio={self.aio},discard=unmap"]
        if self.place:
            nodes += ["--blockdev", "driver=qcow2,node-name=q,file=f,discard=unmap"]
        proc = spawn(stack, "qemu-storage-daemon", *nodes, "--export",
                     f"type=vhost-user-blk,id=e,node-name={'q' if self.place else 'f'},"
                     f"addr.type=unix,addr.path={SOCKET},writable=on,num-queues=1")
        stack.callback(lambda: os.path.exists(SOCKET) and os.unlink(SOCKET))
        wait_for_server(proc, lambda: os.path.exists(SOCKET))
        return guest_client()


AIO = ("io_uring", "native")
POLL_US = 1000          # in an emulated machine waking a thread takes about as long
PATHS = [
    Device("null", "null_blk", bare=True),
    Device("null-aio", "null_blk, Linux AIO", bare=True, engine="aio"),
    Device("raw", "the image's device itself", bare=False),
    Linear("linear", "dm-linear on it"),
    *(Qcow2(place) for place in PLACES),
    Loop("xfs"), Loop("ext4"),
    Thin("thin", "dm-thin"),
    *(QemuNbd(aio) for aio in AIO),
    Vhost(), *(Vhost(place) for place in PLACES),
    *(Vhost(place, poll_us=POLL_US) for place in (None, "bdev")),
    *(StorageDaemon(aio) for aio in AIO),
    *(StorageDaemon(aio, place) for place in PLACES for aio in AIO),
]
