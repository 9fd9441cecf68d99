#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""`make bench` in the guest: measures, and writes what it finds to a file, a line of JSON each.

A contestant that fails is told with its reason, and the others go on. The rounds of all contestants
alternate, so that a disturbance hits all of them; the host takes medians.
"""
import argparse
import contextlib
import json
import os
import subprocess
import sys
import time

import storage as bench_storage        # first: it finds helpers
import memory
import paths
import plan
import trim
from helpers import CommandError, run

GROUPS = ("prealloc", "empty", "backed", "1t", "queues", "trim", "memory")
LOAD_TIMEOUT = 120
REPEATS = 3             # of a measurement by instructions


class Bench:
    def __init__(self, options):
        self.o = options
        self.failures = 0
        self.begin = time.monotonic()
        self.out = open(options.out, "a")
        self.say("making the storage")
        self.storage = bench_storage.Storage()

    def write(self, **record):
        self.out.write(json.dumps({**record, "mode": self.o.mode}) + "\n")
        self.out.flush()

    def say(self, text):
        print(f"[{self.o.mode}] {text}", flush=True)

    @contextlib.contextmanager
    def contestant(self, name, what):
        """What fails inside is one contestant's failure."""
        try:
            with contextlib.ExitStack() as stack:
                yield stack
        except (CommandError, AssertionError, OSError, ValueError,
                subprocess.TimeoutExpired) as e:
            self.failures += 1
            self.write(type="failed", path=name, what=what, reason=str(e).strip())
            self.say(f"{name}, {what}: FAILED: {e}")

    def load(self, client, load, seconds):
        done = run(*client, *load.argv(seconds), timeout=LOAD_TIMEOUT)
        return json.loads(done.stdout)

    def measure(self, path, client, load):
        """By instructions it is the median of some, since now and then something is in the midst of it
        that has nothing to do with the load; an image that a load has filled cannot be used again.
        """
        count = REPEATS if self.o.mode == "icount" and not load.allocates else 1
        done = [self.load(client, load, self.o.seconds) for _ in range(count)]
        r = sorted(done, key=lambda r: r["iops"])[count // 2]
        self.write(type="result", path=path, workload=load.name, iops=r["iops"],
                   p50_us=r["p50_us"], p99_us=r["p99_us"])
        self.say(f"{path}, {load.name}: {r['iops']:,.0f} IOPS, p50 {r['p50_us']:,.1f} us, "
                 f"p99 {r['p99_us']:,.1f} us")

    def kind(self, path, kind):
        """All loads of a path on a kind of image. Allocating ones get an image each."""
        together, alone = [], []
        for load in plan.loads(kind, self.o.quick):
            (alone if load.allocates else together).append(load)
        for batch in [together, *([load] for load in alone)]:
            if not batch:
                continue
            what = batch[0].name if len(batch) == 1 else kind
            with self.contestant(path.name, what) as stack:
                client = path.start(self.storage, kind, stack)
                if not batch[0].allocates:
                    self.load(client, plan.Load("randread", 32, kind), self.o.seconds / 2)
                for load in batch:
                    self.measure(path.name, client, load)

    def selected(self, name):
        return not self.o.paths or any(p in name for p in self.o.paths.split(","))

    def kinds(self):
        for kind in ("prealloc", "empty", "backed"):
            if kind in self.o.groups:
                for path in paths.PATHS:
                    if self.selected(path.name) and \
                            plan.wanted(path, kind, self.o.mode, self.o.quick):
                        self.kind(path, kind)

    def tebibyte(self):
        """dm-qcow2 and dm-linear on the same device of 1 TiB, the cache warm and then useless."""
        size = 1 << 40
        for name in ("raw", "linear", "qcow2-bdev"):
            if not self.selected(name):
                continue
            for warm in (True, False):
                with self.contestant(name, "1t-warm" if warm else "1t-miss") as stack:
                    device = self.storage.tebibyte("image" if name == "qcow2-bdev" else "plain")
                    if name == "linear":
                        device = paths.linear(self.storage, stack, device, size)
                    elif name == "qcow2-bdev":
                        device = paths.qcow2(self.storage, stack, [f"qcow2:{device}"], size,
                                             [] if warm else ["l2_cache_kib 128"])
                    for load in plan.tebibyte_loads(warm):
                        if warm:
                            self.load(paths.client(device), load, self.o.seconds)
                        self.measure(name, paths.client(device), load)

    def queues(self):
        """One queue and two of vhost-blk on null_blk, a worker each."""
        for queues in (1, 2):
            path = paths.Vhost(queues=queues)
            if not self.selected(path.name):
                continue
            with self.contestant(path.name, f"{queues} queues") as stack:
                client = path.start(self.storage, "prealloc", stack)
                for op in ("randread", "randwrite"):
                    self.measure(path.name, client, plan.Load(op, 32, "prealloc", queues=queues))

    def trim(self):
        """A reader beside a guest's fstrim."""
        for place in ("ext4", "xfs"):
            for kind in trim.KINDS:
                name = f"qcow2-{place}"
                if not self.selected(name):
                    continue
                with self.contestant(name, f"trim, {kind}"):
                    found = trim.measure(self.storage, place, kind, self.o.seconds)
                    self.write(type="trim", what=f"{name}, {kind}", figures=found)
                    self.say(f"{name}, {kind}: " +
                             ", ".join(f"{k} {v:,}" for k, v in found.items()))

    def memory(self):
        with self.contestant("memory", "1 TiB"):
            for name, number in memory.measure(self.storage):
                self.write(type="memory", what=name, bytes=number)
                self.say(f"{name}: {number:,} bytes")

    def all(self):
        self.write(type="environment", kernel=os.uname().release, cpus=os.cpu_count(),
                   qemu=run("qemu-img", "--version").stdout.splitlines()[0],
                   libblkio=run("dpkg-query", "-W", "-f", "${Version}", "libblkio1").stdout,
                   liburing=run("dpkg-query", "-W", "-f", "${Version}", "liburing2").stdout,
                   seconds=self.o.seconds, rounds=self.o.rounds)
        for number in range(self.o.rounds):
            if self.o.rounds > 1:
                self.say(f"round {number + 1} of {self.o.rounds}")
            self.kinds()
            if "queues" in self.o.groups and os.cpu_count() > 1:
                self.queues()
        if "trim" in self.o.groups:
            self.trim()
        # What needs two CPUs has been above; this is about one, where nothing else moves.
        if self.o.mode == "icount":
            if "1t" in self.o.groups:
                self.tebibyte()
            if "memory" in self.o.groups:
                self.memory()
        self.say(f"{time.monotonic() - self.begin:.0f} s of the guest's time")
        self.write(type="end", failures=self.failures)
        return 1 if self.failures else 0


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--mode", choices=("wall", "icount"), required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--seconds", type=float, required=True)
    p.add_argument("--rounds", type=int, required=True)
    p.add_argument("--groups", type=lambda s: s.split(","), required=True)
    p.add_argument("--paths", default="")
    p.add_argument("--quick", action="store_true")
    return Bench(p.parse_args()).all()


if __name__ == "__main__":
    sys.exit(main())
