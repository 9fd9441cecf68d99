#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs workloads on dm-qcow2 over dm-log-writes in the guest and brings out what replay needs.

Owns one directory per workload below --out: base (the storage before), log (every write since, in
the order of its becoming durable), journal (what the workload did and what it was promised),
initial (raw content of the disk before, and of what lies below it, where there is any), and
replay.json (the arguments for crash_replay).

With --storage ext4 or xfs the image is a file on a file system on the logged device. Its states can
only be read by mounting them, so the replay follows at once, in the guest, on a sample of them.
"""
import argparse
import json
import os
import random
import shlex
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from dmqcow2 import KIB, Controller, tagged   # noqa: E402
from helpers import (MIB, SECTOR, Dm, Mount, NullBlk, image_check,   # noqa: E402
                     image_create, log_entries, run, sysfs, wait_for)

STORAGE = 160 * MIB
FILESYSTEM = 320 * MIB      # mkfs.xfs makes no smaller ones
LOG = 768 * MIB
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
    return max(end for *_, end in log_entries(path))


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


def workload(w, dm, below, image, raw, tmp, target):
    """Run the differential program on the target; the journal's path and what was said."""
    device, close = target(dm, image, below, w)
    journal = os.path.join(tmp, "journal")
    argv = ["differential", "--seed", w.seed, "--ops", w.ops, "--threads", w.threads,
            "--cluster", w.cluster, "--max-io", w.max_io, "--oplog", journal, "--mark", "lw"]
    if raw:
        argv += ["--model", raw + ".model"]
        run("cp", "--sparse=always", raw, raw + ".model")
    if w.version == 2 and w.backing:
        argv.append("--no-discard-zero")
    controller = Controller(dm, "q", w.seed, w.actions)
    if w.actions:
        controller.start()
    try:
        said = run(*argv, device, timeout=300)
    finally:
        if w.actions:
            controller.stop()
        dm.message("lw", "mark", "removing")
        close()
    return journal, f"controller {controller.done}; {said.stdout.splitlines()[-2]}"


def record(w, dm, storage, log, out, target):
    """One workload on an image on the logged device; its record goes to the directory OUT."""
    with tempfile.TemporaryDirectory() as tmp:
        below, raw = base_image(w, storage.path, tmp)
        os.makedirs(out, exist_ok=True)
        copy_sparse(storage.path, os.path.join(out, "base"), STORAGE)
        arguments = ["--seed", w.seed]
        if raw:
            copy_sparse(raw, os.path.join(out, "initial"), w.size)
            arguments += ["--initial", "initial", "--backing", "initial"]
        logged = dm.create("lw", f"0 {STORAGE // SECTOR} log-writes {storage.path} {log.path}")
        journal, said = workload(w, dm, below, logged, raw, tmp, target)
        dm.remove("lw")
        image_check(storage.path)
        run("cp", journal, os.path.join(out, "journal"))
        copy_sparse(log.path, os.path.join(out, "log"), log_length(log.path))
        with open(os.path.join(out, "replay.json"), "w") as f:
            json.dump([str(a) for a in arguments], f)
    print(f"recorded {w.seed}: {w.describe()}; {said}", flush=True)


def record_file(w, dm, storage, log, fstype, target, subsets, percent):
    """One workload on an image in a file, and its replay; how many states were wrong."""
    with tempfile.TemporaryDirectory() as tmp:
        mnt, base, image = (os.path.join(tmp, n) for n in ("mnt", "base", "mnt/image"))
        run(*Mount.mkfs[fstype], storage.path)
        copy_sparse(storage.path, base, FILESYSTEM)
        logged = dm.create("lw", f"0 {FILESYSTEM // SECTOR} log-writes {storage.path} {log.path}")
        os.makedirs(mnt)
        run("mount", "-t", fstype, logged, mnt)
        try:
            below, raw = base_image(w, image, tmp)
            run("sync")
            dm.message("lw", "mark", "start")
            journal, said = workload(w, dm, below, image, raw, tmp, target)
            image_check(image)
        finally:
            run("umount", mnt)
        dm.remove("lw")
        print(f"recorded {w.seed} on {fstype}: {w.describe()}; {said}", flush=True)
        judge = [os.path.join(os.path.dirname(os.path.abspath(__file__)), "judge-file"), mnt, journal,
                 raw or ""]
        done = run("crash_replay", "--base", base, "--log", log.path, "--keep",
                   os.path.join(tmp, "state"), "--seed", w.seed, "--subsets", subsets,
                   "--percent", percent,
                   "--command", shlex.join(judge), check=False, timeout=1800)
        print(f"workload {w.seed} on {fstype}: {done.stdout}{done.stderr}".strip(), flush=True)
        return done.returncode


def qcow2_target(dm, image, below, w):
    device = dm.create_qcow2("q", [f"qcow2:{image}", *below], w.features, w.size // SECTOR)
    return device, lambda: dm.remove("q")


def qemu_target(dm, image, below, w):
    """QEMU's own driver in the place of ours: shows what the harness says about it."""
    run("modprobe", "nbd", "max_part=0")
    os.makedirs("/run/lock", exist_ok=True)
    run("qemu-nbd", "--fork", "-f", "qcow2", "-c", "/dev/nbd0", "--cache=none", "--aio=native",
        "--discard=unmap", image)
    wait_for(lambda: sysfs("/dev/nbd0", "size") != "0", what="nbd0")
    w.actions = ()

    def close():
        run("qemu-nbd", "-d", "/dev/nbd0")
        wait_for(lambda: not run("fuser", image, check=False).stdout, what="qemu-nbd to end")
    return "/dev/nbd0", close


TARGETS = {"qcow2": qcow2_target, "qemu": qemu_target}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", required=True)
    p.add_argument("--seeds", required=True, help="FIRST-LAST")
    p.add_argument("--ops", type=int, default=300, help="at most so many operations each")
    p.add_argument("--storage", choices=("bdev", "ext4", "xfs"), default="bdev")
    p.add_argument("--subsets", type=int, default=20, help="states per flush of file systems")
    p.add_argument("--percent", type=int, default=10, help="of the states of file systems")
    p.add_argument("--target", choices=TARGETS, default="qcow2")
    args = p.parse_args()
    first, last = (int(n) for n in args.seeds.split("-"))
    run("modprobe", "-a", "dm-log-writes", "loop")
    storage = NullBlk(STORAGE if args.storage == "bdev" else FILESYSTEM)
    log, dm, failed = NullBlk(LOG), Dm(), 0
    try:
        for seed in range(first, last + 1):
            run("blkdiscard", storage.path)
            run("blkdiscard", log.path)
            w = Workload(seed, args.ops)
            if args.storage == "bdev":
                record(w, dm, storage, log, os.path.join(args.out, str(seed)), TARGETS[args.target])
            else:
                failed += bool(record_file(w, dm, storage, log, args.storage, TARGETS[args.target],
                                           args.subsets, args.percent))
    finally:
        dm.remove_all()
        storage.remove()
        log.remove()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
