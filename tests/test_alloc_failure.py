# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that cannot be had: the kernel's fault injection refuses what the modules ask for.

Only calls with one of our functions on the stack fail; where I/O must not fail, none of those that the
storage makes, which is its own affair. Setting up may be refused, as out of memory;
I/O of dm-qcow2 waits and never fails for it; a request of vhost-blk may be answered with an error.
What is lost on the way out is found by kmemleak (tests/lab/check.py has it on here, and the end of the
guest's run tells). Each test prints where allocations failed, and knows where they have to.

ALLOC_SEED replays a run as far as the machine's timing allows.
"""
import functools
import os
import random
import re
import threading
import time

import pytest

from dmqcow2 import (KIB, Attached, Chain, Disk, Place, answer, exercise, header_size,
                     verify_device)
from helpers import MIB, SECTOR, image_check, image_create, qemu_io, run

DEBUGFS = "/sys/kernel/debug"
pytestmark = pytest.mark.skipif(not os.path.exists(f"{DEBUGFS}/failslab/require-start"),
                                reason="this kernel has no fault injection by stack trace")
SEED = int(os.environ.get("ALLOC_SEED", "1"))


class Failing:
    """Of a module's allocations one in INTERVAL fails, for the length of a with block.

    EXCEPT_IN is what the storage's own allocations have on their stack; WITHIN, which of the module's
    functions are to blame.
    """

    KINDS = ("failslab", "fail_page_alloc")
    NULL_BLK = ("null_blk", "")
    # The functions by which dm-qcow2 calls a file system; they are neighbours.
    FILES = ("dm_qcow2", "file_|start_kiocb")
    # The kernel prints the stack of each: enough to see where, and not so many that it fills its log.
    SETTINGS = {"times": 150, "space": 0, "verbose": 2, "task-filter": "N", "stacktrace-depth": 32,
                "ignore-gfp-wait": "N", "ignore-gfp-highmem": "N", "min-order": 0}

    def __init__(self, module, interval, kernel_log, except_in=NULL_BLK, within="", times=None):
        self.module, self.log = module, kernel_log
        self.settings = {**self.SETTINGS, "interval": interval}
        if times:
            self.settings.update(times=times, verbose=0)
        self.failed = 0             # in all
        for what, where in (("require", (module, within)), ("reject", except_in)):
            for name, address in zip(("start", "end"), self.text(*where)):
                self.settings[f"{what}-{name}"] = hex(address)

    @staticmethod
    def put(kind, name, value):
        path = f"{DEBUGFS}/{kind}/{name}"
        if os.path.exists(path):
            with open(path, "w") as f:
                f.write(str(value))

    @staticmethod
    def console(level):
        with open("/proc/sys/kernel/printk", "w") as f:
            f.write(str(level))

    @staticmethod
    @functools.cache
    def text(module, names):
        """The addresses of a module's functions, or of those that begin so, [first, last)."""
        with open("/proc/kallsyms") as f:
            lines = [line.split() for line in f if f"[{module}]" in line]
        found = [int(words[0], 16) for words in lines
                 if words[1] in "tT" and re.match(names, words[2]) and ".cold" not in words[2]]
        return min(found), max(found) + 1024

    def __enter__(self):
        self.console(4)     # each character on it costs more than all the rest
        for kind in self.KINDS:
            for name, value in self.settings.items():
                self.put(kind, name, value)
            self.put(kind, "probability", 100)
        return self

    def __exit__(self, *_):
        for kind in self.KINDS:
            self.put(kind, "probability", 0)
            with open(f"{DEBUGFS}/{kind}/times") as f:
                self.failed += self.SETTINGS["times"] - int(f.read())
        self.console(8)
        self.log.read()


def sites(kernel_log, module):
    """{function of a module: how many of its allocations failed}; of those that the kernel tells."""
    found, looking = {}, False
    for line in kernel_log.read():
        if "FAULT_INJECTION: forcing a failure" in line:
            looking = True
        hit = re.search(rf"([\w.]+)\+0x\w+/0x\w+ \[{module}\]", line)
        if looking and hit:
            name = hit.group(1).split(".")[0]
            found[name] = found.get(name, 0) + 1
            looking = False
    print("allocations failed in", found)
    return found


def test_attach(dm, bdev, filesystem, tmp_path, kernel_log):
    """Creating a device is refused as out of memory, or works."""
    rng = random.Random(SEED)
    tried = {True: 0, False: 0}
    chains = [Chain(Place(kind, bdev, filesystem, size=128 * MIB), tmp_path / kind, "qcow2",
                    size=16 * MIB) for kind in ("bdev", "ext4") if not (tmp_path / kind).mkdir()]
    for n in range(60):
        chain = chains[n % 2]
        table = dm.qcow2_table(chain.layers, (), header_size(chain.top) // SECTOR)
        with Failing("dm_qcow2", rng.choice((3, 40, 150, 300, 600)), kernel_log):
            done = dm.create("q", table, check=False)
            if done.returncode == 0:
                dm.message("q", "drop_cache")
                with open("/dev/mapper/q", "rb") as f:
                    f.read(64 * KIB)
        tried[done.returncode == 0] += 1
        if done.returncode:
            assert re.search("Cannot allocate memory|No locks available", done.stderr), done.stderr
        else:
            dm.remove("q")
    print(tried)
    assert tried[True] and tried[False]
    for chain in chains:
        chain.verify()
    assert set(sites(kernel_log, "dm_qcow2")) >= {"qcow2_cache_init", "qcow2_layer_open",
                                                   "qcow2_storage_init_bdev"}


@pytest.mark.parametrize("where, backing", [("bdev", "raw"), ("xfs", "qcow2")])
def test_io(dm, bdev, filesystem, tmp_path, kernel_log, where, backing):
    """Data, metadata and their order are as without; no request fails."""
    # brd has no queue, so that what it allocates is always below our calls of the file system
    place = Place(where, bdev, lambda *args, **kw: filesystem(*args, **kw, kind="brd"))
    chain = Chain(place, tmp_path, backing, cluster=64 * KIB, seed=SEED)
    with Attached(dm, chain.layers, "l2_cache_kib", "16") as disk:
        disk.close()
        for n, interval in enumerate((30, 5, 2)):
            with Failing("dm_qcow2", interval, kernel_log, Failing.NULL_BLK if
                         where == "bdev" else Failing.FILES) as failing:
                exercise(dm, "q", chain, SEED * 100 + n, 300,
                         actions=("commit", "drop_cache", "status"))
            print(failing.failed, "allocations failed")
            assert failing.failed
        verify_device(disk.path, chain.model)
    chain.verify()


def test_gathered(dm, bdev, filesystem, tmp_path, kernel_log):
    """Without memory for one big write, writes to adjacent new clusters go to the file one by one."""
    chain = Chain(Place("xfs", bdev, filesystem), tmp_path, cluster=64 * KIB, seed=SEED)
    with Attached(dm, chain.layers) as disk:
        disk.close()
        with Failing("dm_qcow2", 1, kernel_log, Failing.FILES, "qcow2_storage_gather_|join$") as failing:
            exercise(dm, "q", chain, SEED, 200)
        assert failing.failed
    chain.verify()


def test_more_tables_than_the_reserve(dm, bdev, kernel_log):
    """Writes that need a table each, and no memory for any but the reserve's eight: those that have none
    wait for the others, and the writer for nobody."""
    many = 40
    image = image_create(bdev(128 * MIB), 2 * many * MIB, cluster_size="4k")
    with Attached(dm, f"qcow2:{image}") as disk:
        dm.suspend(disk.name, "--noflush", "--nolockfs")
        answers = []

        def write(n):
            with Disk(disk.path) as mine:
                answers.append(answer(mine.write, 1 + n, 2 * n * MIB, 4 * KIB))
        threads = [threading.Thread(target=write, args=(n,), daemon=True) for n in range(many)]
        for thread in threads:
            thread.start()
        time.sleep(2)       # all of them are to come to the writer at once
        with Failing("dm_qcow2", 1, kernel_log, within="slice_alloc$",
                     times=-1):
            dm.resume(disk.name)
            for thread in threads:
                thread.join(60)
        assert answers == [0] * many
        for n in range(many):
            disk.expect(1 + n, 2 * n * MIB, 4 * KIB)
    image_check(image)


def test_compressed(dm, bdev, filesystem, tmp_path, kernel_log):
    """Buffers to decompress into are waited for."""
    plain = image_create(tmp_path / "plain", 16 * MIB)
    qemu_io(plain, "write -P 7 0 16M")
    image = tmp_path / "image"
    run("qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", plain, image)
    place = Place("ext4", bdev, filesystem)("image")
    run("cp", image, place)
    with Attached(dm, f"qcow2:{place}") as disk:
        with Failing("dm_qcow2", 2, kernel_log, Failing.FILES) as failing:
            for at in range(0, 16 * MIB, MIB):
                disk.expect(7, at, MIB)
    assert failing.failed


def test_vhost(bdev, kernel_log):
    """Opening and setting up may be refused; no request fails, and afterwards all works again."""
    disk = bdev(32 * MIB, "null", irqmode=1)
    failed = 0
    # A refused life is followed by one that is refused at just its interval-th allocation. So each
    # of those that set up has its turn; the long intervals are for those that a request needs.
    for interval, lives in [(n, 2) for n in range(1, 80)] + [(n, 30) for n in (90, 150, 250, 400)]:
        with Failing("vhost_blk", interval, kernel_log) as failing:
            done = run("ringfault", disk, lives, SEED + interval, timeout=300)
        print("every", interval, "fails:", done.stdout)
        failed += failing.failed
    assert run("ringfault", disk, 3, SEED).stdout.endswith(" 0 refused\n")
    found = set(sites(kernel_log, "vhost_blk"))
    assert found >= {"vhost_blk_open", "vhost_blk_ioctl"}
    assert failed
