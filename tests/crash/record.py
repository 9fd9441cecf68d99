#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs workloads on dm-qcow2 over dm-log-writes in the guest and brings out what replay needs.

Owns one directory per workload below --out: base (the storage before), log (every write since, in
the order of its becoming durable), journal (what the workload did and what it was promised),
initial and backing (raw content of the disk and of what lies below it, where there is any), and
replay.json (the arguments for crash-replay).
"""
import argparse
import json
import os
import random
import struct
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from dmqcow2 import KIB, Controller, tagged   # noqa: E402
from helpers import (MIB, SECTOR, Dm, NullBlk, image_check, image_create, run,   # noqa: E402
                     sysfs, wait_for)

STORAGE = 160 * MIB
LOG = 768 * MIB
LOG_MARK, LOG_DISCARD = 8, 4
ACTIONS = ("suspend", "noflush", "reload", "commit", "drop_cache")


class Workload:
    """The choices of one seed."""

    def __init__(self, seed, ops):
        rng = random.Random(seed)
        self.seed = seed
        self.cluster = rng.choice((4, 16, 64, 64, 64, 512)) * KIB
        self.size = rng.choice((8, 16, 32, 64)) * MIB + rng.choice((0, 3)) * SECTOR
        self.version = rng.choice((3, 3, 3, 2))
        self.backing = rng.choice((None, None, "raw", "qcow2"))
        self.preallocation = rng.choice(("off", "off", "off", "metadata"))
        if self.backing:
            self.preallocation = "off"
        self.ops = rng.randrange(ops // 3, ops)
        self.threads = rng.choice((1, 2, 4))
        self.max_io = rng.choice((16, 128, 512)) * KIB
        self.actions = rng.choice(((), ("commit",), ACTIONS))
        self.features = rng.choice(((), (), ("l2_cache_kib 64",), ("discard_no_unref",)))

    def describe(self):
        return ", ".join(f"{k} {v}" for k, v in vars(self).items())


def copy_sparse(source, target, size):
    with open(source, "rb") as f, open(target, "wb") as t:
        t.truncate(size)
        for at in range(0, size, MIB):
            block = f.read(min(MIB, size - at))
            if block.count(0) != len(block):
                t.seek(at)
                t.write(block)


def log_length(path):
    """Bytes of the log device that are in use."""
    with open(path, "rb") as f:
        _, _, entries, unit = struct.unpack("<QQQI", f.read(28))
        at = unit
        for _ in range(entries):
            f.seek(at)
            _, sectors, flags, _ = struct.unpack("<QQQQ", f.read(32))
            at += unit
            if not flags & LOG_DISCARD:
                at += sectors * unit
    return at


def base_image(w, storage, tmp):
    """Create the image and what lies below it; (layers, initial raw, backing raw)."""
    options = dict(cluster_size=w.cluster, compat="1.1" if w.version == 3 else "0.10",
                   preallocation=w.preallocation)
    if not w.backing:
        image_create(storage, w.size, **options)
        return [], None
    raw = tagged(os.path.join(tmp, "content"), w.size // SECTOR * SECTOR, w.seed + 5000, 80)
    if w.backing == "qcow2":
        below = os.path.join(tmp, "below")
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, below)
    else:
        below = raw
    image_create(storage, w.size, backing=below, backing_fmt=w.backing, **options)
    return [f"{w.backing}:{below}"], raw


def record(w, dm, storage, log, out, target):
    """One workload; everything that was made for it is gone afterwards."""
    with tempfile.TemporaryDirectory() as tmp:
        run("blkdiscard", storage.path)
        run("blkdiscard", log.path)
        below, raw = base_image(w, storage.path, tmp)
        os.makedirs(out, exist_ok=True)
        copy_sparse(storage.path, os.path.join(out, "base"), STORAGE)
        arguments = ["--seed", w.seed]
        if raw:
            copy_sparse(raw, os.path.join(out, "initial"), w.size)
            arguments += ["--initial", "initial", "--backing", "initial"]
        logged = dm.create("lw", f"0 {STORAGE // SECTOR} log-writes {storage.path} {log.path}")
        device, close = target(dm, logged, below, w)
        journal = os.path.join(tmp, "journal")
        controller = Controller(dm, "q", w.seed, w.actions)
        if w.actions:
            controller.start()
        argv = ["differential", "--seed", w.seed, "--ops", w.ops, "--threads", w.threads,
                "--cluster", w.cluster, "--max-io", w.max_io, "--oplog", journal, "--mark", "lw"]
        if raw:
            argv += ["--model", raw + ".model"]
            run("cp", "--sparse=always", raw, raw + ".model")
        if w.version == 2 and w.backing:
            argv.append("--no-discard-zero")
        try:
            said = run(*argv, device, timeout=300)
        finally:
            if w.actions:
                controller.stop()
            dm.message("lw", "mark", "removing")
            close()
        dm.remove("lw")
        image_check(storage.path)
        run("cp", journal, os.path.join(out, "journal"))
        copy_sparse(log.path, os.path.join(out, "log"), log_length(log.path))
        with open(os.path.join(out, "replay.json"), "w") as f:
            json.dump([str(a) for a in arguments], f)
    print(f"recorded {os.path.basename(out)}: {w.describe()}; controller {controller.done}; "
          f"{said.stdout.splitlines()[-2]}", flush=True)


def qcow2_target(dm, logged, below, w):
    device = dm.create_qcow2("q", [f"qcow2:{logged}", *below], w.features, w.size // SECTOR)
    return device, lambda: dm.remove("q")


def qemu_target(dm, logged, below, w):
    """QEMU's own driver in the place of ours: shows what the harness says about it."""
    run("modprobe", "nbd", "max_part=0")
    os.makedirs("/run/lock", exist_ok=True)
    run("qemu-nbd", "--fork", "-f", "qcow2", "-c", "/dev/nbd0", "--cache=none", "--aio=native",
        "--discard=unmap", logged)
    wait_for(lambda: sysfs("/dev/nbd0", "size") != "0", what="nbd0")
    w.actions = ()

    def close():
        run("qemu-nbd", "-d", "/dev/nbd0")
        wait_for(lambda: not run("fuser", logged, check=False).stdout, what="qemu-nbd to end")
    return "/dev/nbd0", close


TARGETS = {"qcow2": qcow2_target, "qemu": qemu_target}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", required=True)
    p.add_argument("--seeds", required=True, help="FIRST-LAST")
    p.add_argument("--ops", type=int, default=300, help="at most so many operations each")
    p.add_argument("--target", choices=TARGETS, default="qcow2")
    args = p.parse_args()
    first, last = (int(n) for n in args.seeds.split("-"))
    run("modprobe", "dm-log-writes")
    storage, log = NullBlk(STORAGE), NullBlk(LOG)
    dm = Dm()
    try:
        for seed in range(first, last + 1):
            record(Workload(seed, args.ops), dm, storage, log, os.path.join(args.out, str(seed)),
                   TARGETS[args.target])
    finally:
        dm.remove_all()
        storage.remove()
        log.remove()


if __name__ == "__main__":
    main()
