# SPDX-License-Identifier: GPL-2.0-or-later
"""What is aimed at: ratios, and numbers of bytes, each printed with its aim and whether it is met.

Nothing here fails a run: times are reported, never asserted.
"""

MIB = 1 << 20
AIO = ("io_uring", "native")


class Target:
    """VALUE is compared with AIM; most are ratios that shall be at least as large."""

    def __init__(self, name, mode, value, aim, at_least=True, unit=" x"):
        self.name, self.mode, self.value, self.aim = name, mode, value, aim
        self.at_least, self.unit = at_least, unit

    @property
    def verdict(self):
        if self.value is None:
            return "not measured"
        met = self.value >= self.aim if self.at_least else self.value < self.aim
        return "OK" if met else "MISSED"

    def show(self, number):
        if number is None:
            return "-"
        return f"{number:,.0f} bytes" if self.unit == " bytes" else f"{number:.3g}{self.unit}"

    @property
    def row(self):
        return [self.name, self.mode, self.show(self.value),
                (">= " if self.at_least else "< ") + self.show(self.aim), self.verdict]


def bare(results, path, workload, mode="icount"):
    """IOPS of PATH as they would be without the device of pieces that its image lies on.

    That device is there for the sake of the measurement only. With instruction counting the cost of
    a request is the sum of its parts, so the part of the pieces, which is what a request to them
    takes more than one to null_blk, can be taken off.
    """
    iops = [results.iops(p, workload, mode) for p in (path, "raw", "null")]
    if not all(iops):
        return None
    return 1 / (1 / iops[0] - 1 / iops[1] + 1 / iops[2])


def over(a, b):
    return a / b if a and b else None


def remap(results):
    """The path of an allocated cluster: no more than a little above dm-linear."""
    for op in ("randread", "randwrite"):
        load = f"{op} 4k d32 prealloc"
        yield Target(f"dm-qcow2 / dm-linear, {load}", "icount",
                     over(bare(results, "qcow2-bdev", load), bare(results, "linear", load)), 0.93)
    for op in ("randread", "randwrite"):
        load = f"{op} 4k d32 1t-warm"
        small = results.ratio("qcow2-bdev", ["linear"], f"{op} 4k d32 prealloc", "icount")
        large = results.ratio("qcow2-bdev", ["linear"], load, "icount")
        yield Target(f"the same ratio at 1 TiB / at 256 MiB, {op} 4k d32", "icount",
                     over(large, small), 0.98)


def files(results):
    for place in ("xfs", "ext4"):
        for depth, aim in ((32, 1.1), (1, 6)):
            for op in ("randread", "randwrite"):
                load = f"{op} 4k d{depth} prealloc"
                yield Target(f"dm-qcow2 / loop on {place}, {load}", "wall",
                             results.ratio(f"qcow2-{place}", [f"loop-{place}"], load, "wall"), aim)


def guest_ratio(results, place, load, mode):
    """vhost-blk over the better of the others, as they are without the device of pieces."""
    others = [f"qsd-{a}-{place}" for a in AIO]
    if (place, mode) != ("bdev", "icount"):
        return results.ratio(f"vhost-{place}", others, load, mode)
    iops = [bare(results, path, load) for path in others]
    return over(bare(results, "vhost-bdev", load), max(iops)) if all(iops) else None


def guest(results):
    for mode in ("icount", "wall"):
        for place, aim in (("null", 4), ("bdev", 3.5), ("xfs", 2.5), ("ext4", 2.5)):
            for op in ("randread", "randwrite"):
                load = f"{op} 4k d32 prealloc"
                yield Target(f"vhost-blk / qemu-storage-daemon on {place}, {load}", mode,
                             guest_ratio(results, place, load, mode), aim)
        for op in ("randread", "randwrite"):
            load = f"{op} 4k d32 prealloc"
            yield Target(f"vhost-blk / the host's AIO on null_blk, {load}", mode,
                         results.ratio("vhost-null", ["null-aio"], load, mode), 1)
    yield Target("two queues / one, vhost-blk on null_blk, randread 4k d32", "wall",
                 results.ratio("vhost-null", ["vhost-null"], "randread 4k d32 2 queues prealloc",
                               "wall", "randread 4k d32 prealloc"), 1.6)


def allocation(results):
    load = "randwrite 4k d32 fsync 64 empty"
    for mode in ("icount", "wall"):
        yield Target(f"dm-qcow2 / qemu-nbd, {load}", mode,
                     results.ratio("qcow2-bdev", [f"nbd-{a}" for a in AIO], load, mode), 2)
        yield Target(f"dm-qcow2 / dm-thin, {load}", mode,
                     results.ratio("qcow2-bdev", ["thin"], load, mode), 1)


def memory(results):
    def row(what, aim):
        return Target(what, "icount", results.memory.get(what), aim, False, " bytes")

    yield row("idle preallocated image of 1 TiB", MIB)
    yield row("idle empty image of 1 TiB", MIB)
    for kib in (1024, 4096):
        yield row(f"table cache after reads all over 1 TiB, bound {kib} KiB", (kib << 10) + 1)
    yield row("table cache after the kernel asked for memory", 64 << 10)


def all_targets(results):
    """Every target, measured or not."""
    return [t for group in (remap, files, guest, allocation, memory) for t in group(results)]
