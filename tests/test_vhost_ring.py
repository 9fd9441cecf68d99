# SPDX-License-Identifier: GPL-2.0-or-later
"""/dev/vhost-blk at the level of its rings: tests/progs/ring*.c play the guest.

A case of those programs is one test here; this file gives each a device that suits it. brd answers
within submit_bio(), null_blk in an interrupt, dm-delay after a while, dm-error with an error.
"""
import os
import re

import pytest

from helpers import DISCARD, FLUSH, MIB, run, size_of, wait_for

pytestmark = pytest.mark.races

DEVICES = ["brd", "null"]


def pinned():
    """Pages of user memory that are pinned for I/O, as the kernel counts them."""
    # Each processor counts for itself and adds that up now and then; here, now.
    if os.path.exists("/proc/sys/vm/stat_refresh"):
        with open("/proc/sys/vm/stat_refresh") as f:
            f.read()
    with open("/proc/vmstat") as f:
        counts = dict(line.split() for line in f)
    return int(counts["nr_foll_pin_acquired"]) - int(counts["nr_foll_pin_released"])


def ring(prog, *args, timeout=180, **kw):
    """Run a case; afterwards as many pages are pinned as before."""
    before = pinned()
    done = run(prog, *args, timeout=timeout, **kw)
    print(done.stdout, end="")
    wait_for(lambda: pinned() == before, what=f"{pinned() - before} pages to be unpinned")
    return done.stdout


@pytest.fixture
def disk(bdev):
    """disk("brd"|"null"|...): a device of 32 MiB."""
    def make(kind, size=32 * MIB, **attributes):
        if kind == "null":
            attributes = {"irqmode": 1, "submit_queues": 2, **attributes}
        return bdev(size, kind, **attributes)
    return make


@pytest.mark.parametrize("kind", ["brd", "null"])
@pytest.mark.parametrize("case", ["basic", pytest.param("depth", marks=pytest.mark.core), "layouts",
                                  "regions", "malformed", "readonly", "event_idx"])
def test_requests(disk, kernel_log, kind, case):
    ring("ringtest", case, disk(kind))
    # The block layer would stop what lies outside the device, too; but it must not come so far.
    assert not kernel_log.grep("beyond end of device")


def test_ranges(disk):
    ring("ringtest", "ranges", disk("null"))


def test_ranges_without_discard(disk):
    """Neither discard nor write-zeroes in the device: zeroes are written, discard is refused."""
    ring("ringtest", "ranges", disk("null", discard=0), "nodiscard")


def test_block_size_4096(cleanup, tmp_path):
    """On loop: null_blk with such blocks overruns its pages when segments are smaller."""
    run("modprobe", "loop")
    path = tmp_path / "disk"
    with open(path, "wb") as f:
        f.truncate(32 * MIB)
    dev = run("losetup", "--find", "--show", "--sector-size", "4096", path).stdout.strip()
    cleanup(run, "losetup", "--detach", dev)
    ring("ringtest", "block4k", dev)


def test_errors(dm):
    ring("ringtest", "errors", dm.create("ring-error", "0 65536 error"))


@pytest.fixture
def slow(dm, disk, cleanup):
    """slow(ms): a device whose every request takes that long."""
    def make(ms, name="ring-slow", below="brd"):
        run("modprobe", "dm-delay")
        dev = disk(below)
        path = dm.create(name, f"0 {size_of(dev) // 512} delay {dev} 0 {ms}")
        cleanup(dm.remove, name)
        return path
    return make


@pytest.mark.parametrize("kind", ["brd", pytest.param("null", marks=pytest.mark.core)])
@pytest.mark.parametrize("case", ["broken", "unwritable", "resume", "kill", "workers", "churn",
                                  "rewire"])
def test_life(disk, kind, case):
    ring("ringlife", case, disk(kind))


@pytest.mark.core
@pytest.mark.parametrize("case", ["drain", "twice", "busy", "kill", "churn", "memory", "rewire"])
def test_life_in_flight(slow, disk, case):
    ring("ringlife", case, slow(5 if case in ("kill", "churn", "rewire") else 300), disk("null"))


def test_killed_while_logging(disk, slow):
    """The worker is killed in the middle of marking what it has written."""
    ring("ringlife", "killlog", disk("null"), slow(500))


@pytest.fixture
def counted(dm, slow, cleanup):
    """counted(ms): a slow device that counts what is in flight, which dm-delay itself does not."""
    def make(ms, below="brd"):
        dev = slow(ms, below=below)
        path = dm.create("ring-counted", f"0 {size_of(dev) // 512} linear {dev} 0")
        cleanup(dm.remove, "ring-counted")
        return path
    return make


@pytest.mark.parametrize("case", ["huge", "held"])
def test_bounds(counted, case):
    ring("ringbound", case, counted(200))


def test_bounded_commands(counted):
    """On a device that takes discards in pieces of 64 KiB."""
    path = counted(200, "null")
    number = os.stat(path).st_rdev
    with open(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/queue/discard_max_bytes",
              "w") as f:
        f.write(str(64 << 10))
    ring("ringbound", "commands", path)


def test_logging_ends_with_requests_in_flight(slow):
    ring("ringctl", "unlogged", slow(300))


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("case", ["log", "busyloop", "ioctls"])
def test_ioctls(disk, kind, case):
    ring("ringctl", case, disk(kind))


def test_writethrough(disk, writes_log):
    """Durable writes where the guest cannot or will not flush, by FUA or a flush behind them."""
    log = writes_log(disk("null"))
    ring("ringctl", "writethrough", log.path)
    assert log.writes() == {0: False, 8: True, 16: True, 24: False, 32: True}
    seen = log.seen()
    assert [s for s in seen if s[2] & DISCARD] == [(40, 8, DISCARD)]
    # When the guest gave up flushing, when it went, behind the discard, and the guest's own.
    assert sum(bool(flags & FLUSH) for _, _, flags in seen) == 4


def test_writethrough_of_an_earlier_owner(disk, writes_log):
    """Who served a guest before may have been told to write through; the next owner is not."""
    log = writes_log(disk("null"))
    ring("ringctl", "resumed", log.path)
    assert [n for n, fua in log.writes().items() if fua] == [1, 2, 5, 7, 9]
    assert len(log.writes()) == 11


def test_writes_in_flight_when_flushing_ends(slow, writes_log):
    """They are durable when they are answered: a flush follows each."""
    log = writes_log(slow(300))
    ring("ringctl", "writeback", log.path)
    seen = log.seen()
    writes = [i for i, (_, sectors, _) in enumerate(seen) if sectors]
    flushes = [i for i, (_, _, flags) in enumerate(seen) if flags & FLUSH]
    assert len(writes) == 3 and writes[-1] < flushes[-1]
    # The ioctl's own, and one for each write but none for the read.
    assert len(flushes) == 4


@pytest.fixture
def cgroup(cleanup):
    """A cgroup with an io controller."""
    path = "/sys/fs/cgroup/ring"
    try:
        controllers = open("/sys/fs/cgroup/cgroup.controllers").read().split()
    except FileNotFoundError:
        controllers = []
    if "io" not in controllers:
        pytest.skip("this kernel has no io cgroup controller")
    with open("/sys/fs/cgroup/cgroup.subtree_control", "w") as f:
        f.write("+io")
    os.mkdir(path)
    cleanup(os.rmdir, path)
    return path


@pytest.fixture
def kthreads():
    """The environment that makes workers kernel threads, which no signal reaches."""
    if not os.path.exists("/sys/module/vhost/parameters/fork_from_owner_default"):
        pytest.skip("this kernel has no choice of workers")
    return {**os.environ, "RING_KTHREAD": "1"}


@pytest.mark.parametrize("worker", ["task", "kthread"])
def test_cgroup(disk, cgroup, request, worker):
    """The owner's limits hold for its guest's I/O, whoever submits it."""
    dev = disk("null")
    env = request.getfixturevalue("kthreads") if worker == "kthread" else os.environ
    numbers = open(f"/sys/block/{os.path.basename(dev)}/dev").read().strip()

    def iops():
        done = run("sh", "-c", f'echo $$ >{cgroup}/cgroup.procs && exec "$@"', "sh",
                   "ringbench", dev, "write", "4", "3", env=env)
        print(done.stdout)
        return float(re.search(r"([\d.]+) IOPS", done.stdout).group(1))

    free = iops()
    with open(f"{cgroup}/io.max", "w") as f:
        f.write(f"{numbers} wiops=20")
    limited = iops()
    assert limited < 40 < free


@pytest.mark.core
@pytest.mark.parametrize("case", ["kill", "churn"])
def test_kthread_workers(disk, kthreads, case):
    ring("ringlife", case, disk("null"), env=kthreads)


@pytest.mark.parametrize("kind", DEVICES)
def test_fuzz(disk, kind):
    """Random rings. Give a printed seed as the third argument of ringfuzz to see a round again."""
    seconds = int(os.environ.get("RING_FUZZ_SECONDS", 10))
    ring("ringfuzz", disk(kind), seconds, timeout=seconds + 120)
