# SPDX-License-Identifier: GPL-2.0-or-later
"""Chains of images to put under a dm-qcow2 device, and what is done to such a device.

Stands on helpers.py; knows the table line, the differential program and the kernel's answers. The
devices belong to the `dm` fixture, the storage to `bdev` and `filesystem`.
"""
import hashlib
import os
import random
import subprocess
import threading
import time

from helpers import (MIB, SECTOR, KernelLog, image_check, image_compare, image_create, qemu_io,
                     run)

KIB = 1 << 10
STORAGE_SIZE = 640 * MIB


def checksum(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(MIB):
            h.update(block)
    return h.hexdigest()


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
