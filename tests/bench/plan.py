# SPDX-License-Identifier: GPL-2.0-or-later
"""What is measured: loads by name, which path gets which of them, and how long each takes."""
import itertools

KIB, GIB = 1 << 10, 1 << 30
OPS = ("randread", "randwrite", "read", "write")
DEPTHS = (1, 32)
# On these kinds of image a write allocates, so a load is a number of writes to a fresh image.
ALLOCATING = ("empty", "backed")
# Enough to measure, and few enough that most of them meet a cluster that is not allocated yet.
ALLOCATIONS = {("randwrite", "empty"): 2048, ("randwrite", "backed"): 1024,
               ("write", "empty"): 1024, ("write", "backed"): 512}


class Load:
    """One line of a load generator's arguments."""

    def __init__(self, op, depth, kind, *, queues=1, flush_every=0, span=0, regions=1):
        self.op, self.depth, self.kind, self.queues = op, depth, kind, queues
        self.block = 4 * KIB if op.startswith("rand") else 128 * KIB
        self.flush_every, self.span, self.regions = flush_every, span, regions

    @property
    def name(self):
        return " ".join([self.op, f"{self.block // KIB}k", f"d{self.depth}",
                         *([f"{self.queues} queues"] if self.queues > 1 else []),
                         *([f"fsync {self.flush_every}"] if self.flush_every else []), self.kind])

    @property
    def allocates(self):
        return self.kind in ALLOCATING and self.op.endswith("write")

    def argv(self, seconds):
        long = f"x{ALLOCATIONS[self.op, self.kind]}" if self.allocates else seconds
        return [self.op, self.depth, self.queues, long, self.block, self.span, self.regions,
                self.flush_every]


def loads(kind, quick):
    """The loads for one kind of image; QUICK leaves those that the targets need."""
    if quick:
        found = [Load(op, depth, kind) for op in ("randread", "randwrite") for depth in DEPTHS]
    else:
        found = [Load(op, depth, kind) for op, depth in itertools.product(OPS, DEPTHS)]
    if kind == "empty":
        found.append(Load("randwrite", 32, kind, flush_every=64))
    return found


# 4 GiB in 128 pieces, each just what a 4 KiB slice of a table of 64 KiB clusters covers.
SPREAD = {"span": 4 * GIB, "regions": 128}


def tebibyte_loads(warm):
    return [Load(op, 32, "1t-warm", **SPREAD) if warm else Load(op, 32, "1t-miss")
            for op in ("randread", "randwrite")]


QUICK = {"prealloc": None, "empty": ("qcow2-bdev", "nbd", "thin"), "backed": ()}


def wanted(path, kind, mode, quick):
    """Is PATH measured on KIND? What a path exists for it says itself."""
    return kind in path.kinds and mode in path.modes and (
        not quick or QUICK[kind] is None or path.name.startswith(QUICK[kind]))
