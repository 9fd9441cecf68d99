# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the tests that run in the lab's guest.

Every test is watched: a fault report in the kernel's log fails the test that caused it, and so does
a device-mapper device, loop device, null_blk device or mount left behind.

    def test_read(dm, bdev, tmp_path): ...

dm         device-mapper (helpers.Dm); what it created is removed afterwards
bdev       bdev(size, kind="null") -> path of an empty block device; kinds: null (memory-backed
           null_blk with discard, more attributes by keyword), brd (no discard), loop (on tmpfs)
filesystem filesystem("ext4"|"xfs"|"btrfs", size=..., kind=...) -> path of a mounted new file system
spawn      spawn(*argv) -> subprocess.Popen, killed afterwards if it still runs
kernel_log helpers.KernelLog of this test
loud       a test that expects a fault report: loud.expect(regex) takes matching lines as said
"""
import json
import os
import re
import signal
import subprocess

import pytest

import helpers


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run tests marked `full`, too")


def pytest_configure(config):
    for line in ("core: the part of the suite that runs on every kernel",
                 "full: takes long; only in `make check-full`",
                 "races: also runs where data races are looked for (kcsan)",
                 "nested: boots a guest inside the guest"):
        config.addinivalue_line("markers", line)


def pytest_collection_modifyitems(config, items):
    seen = seen_before()
    dropped = [item for item in items if item.nodeid in seen or
               (item.get_closest_marker("full") and not config.getoption("--full"))]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


def seen_before():
    """Ids of the tests that ran before, in a guest that died (see tests/lab/check.py)."""
    path = os.environ.get("LAB_RESULTS")
    if not path or not os.path.exists(path):
        return set()
    with open(path) as f:
        return {json.loads(line)["id"] for line in f if line.endswith("}\n")}


def record(nodeid, outcome, reason="", seconds=0):
    path = os.environ.get("LAB_RESULTS")
    if path:
        with open(path, "a") as f:
            f.write(json.dumps({"id": nodeid, "outcome": outcome, "reason": reason,
                                "seconds": round(seconds, 1)}) + "\n")


def pytest_runtest_logstart(nodeid):
    if os.environ.get("LAB_GUEST"):
        helpers.KernelLog.mark(f"test {nodeid}")
    record(nodeid, "started")


verdicts = {}
durations = {}


def pytest_runtest_logreport(report):
    """The worst of set-up, call and tear-down is the test's outcome; written at its end."""
    rank = ("passed", "skipped", "failed")
    durations[report.nodeid] = durations.get(report.nodeid, 0) + report.duration
    if rank.index(report.outcome) >= rank.index(verdicts.get(report.nodeid, ("passed", ""))[0]):
        reason = str(report.longrepr[2]) if report.skipped and \
            isinstance(report.longrepr, tuple) else ""
        verdicts[report.nodeid] = (report.outcome, reason)
    if report.when == "teardown":
        record(report.nodeid, *verdicts.pop(report.nodeid), durations.pop(report.nodeid))


def pytest_collectreport(report):
    if report.failed:
        record(report.nodeid, "failed", "cannot be collected")


def state():
    """What a test must leave as it found it, as a set of lines."""
    found = set()
    if os.path.exists("/dev/mapper/control"):
        lines = helpers.run("dmsetup", "ls", check=False).stdout.splitlines()
        found |= {"dm " + line.split()[0] for line in lines if line != "No devices found"}
    found |= {"loop " + line.split(":")[0]
              for line in helpers.run("losetup", "-a", check=False).stdout.splitlines()}
    if os.path.isdir(helpers.NullBlk.base):
        found |= {"null_blk " + d for d in os.listdir(helpers.NullBlk.base) if d != "features"}
    with open("/proc/self/mounts") as f:
        # The guest mounts nothing by itself once it runs, but for debugfs' automount.
        found |= {"mount " + line.split()[1] for line in f if "/sys/kernel/" not in line}
    return found


@pytest.fixture(autouse=True)
def watched():
    """Set up first and torn down last: see the module's text."""
    if not os.environ.get("LAB_GUEST"):
        yield None
        return
    log = helpers.KernelLog()
    log.expected = []
    before = state()
    yield log
    faults = log.faults()
    if log.expected:
        unexpected = [line for _, line in helpers.klog.faults(log.read())
                      if not any(re.search(p, line) for p in log.expected)]
        faults = "\n".join(unexpected)
    log.close()
    left = state() - before
    problems = []
    if faults:
        problems.append("the kernel's log holds:\n" + faults)
    if left:
        problems.append("left behind: " + ", ".join(sorted(left)))
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.fixture
def kernel_log(watched):
    return watched


@pytest.fixture
def loud(watched):
    """For tests that provoke a report on purpose. The host judges the whole log, so use it only for
    lines that tests/lab/klog.py does not count."""
    class Loud:
        @staticmethod
        def expect(pattern):
            watched.expected.append(pattern)
    return Loud


@pytest.fixture
def cleanup(watched):
    """cleanup(function, *args): to be called after the test, newest first; all are tried."""
    calls = []
    yield lambda function, *args: calls.append((function, args))
    errors = []
    for function, args in reversed(calls):
        try:
            function(*args)
        except Exception as e:      # the others still have to be undone
            errors.append(f"{function.__qualname__}: {e}")
    assert not errors, "\n".join(errors)


@pytest.fixture
def dm(cleanup):
    d = helpers.Dm()
    cleanup(d.remove_all)
    return d


@pytest.fixture
def bdev(cleanup, dm, tmp_path):
    count = iter(range(1000))

    def make(size, kind="null", **attributes):
        if kind == "null":
            made = helpers.NullBlk(size, **attributes)
        elif kind == "brd":
            made = helpers.RamDisk(size, dm)
        elif kind == "loop":
            made = helpers.Loop(tmp_path / f"loop{next(count)}", size, **attributes)
        else:
            raise ValueError(f"no such kind of device: {kind}")
        cleanup(made.remove)
        return made.path
    return make


@pytest.fixture
def filesystem(cleanup, bdev, tmp_path):
    count = iter(range(1000))

    def make(fstype, size=768 * helpers.MIB, kind="null", options=None, mkfs=(), **attributes):
        dev = bdev(size, kind, **attributes)
        made = helpers.Mount(dev, fstype, tmp_path / f"{fstype}{next(count)}", options, mkfs)
        cleanup(made.remove)
        return made.path
    return make


@pytest.fixture
def writes_log(cleanup, bdev, dm):
    """writes_log(data): a device that keeps what order writes to DATA become durable in."""
    def make(data):
        made = helpers.WritesLog(dm, "writes-log", data, bdev(64 * helpers.MIB))
        cleanup(dm.remove, made.name)
        return made
    return make


@pytest.fixture
def spawn(cleanup):
    def stop(proc):
        if proc.poll() is None:
            os.killpg(proc.pid, signal.SIGKILL)
        proc.wait(timeout=60)

    def start(*argv, **kw):
        proc = subprocess.Popen([str(a) for a in argv], start_new_session=True,
                                stdin=kw.pop("stdin", subprocess.DEVNULL), **kw)
        cleanup(stop, proc)
        return proc
    return start
