# SPDX-License-Identifier: GPL-2.0-or-later
"""`make check`: static checks, unit tests, then the suites in guests; one sum of all at the end.

Owns build/out/check/. A test mostly keeps one CPU busy, so as many guests run at once as there are
CPUs, up to four; each runs a few test files, or with --full one. (A third job of the idlest kind
beside two guests was measured to gain nothing: it made them as much slower.) Each test writes a line
to a results file as it starts and as it ends, so a guest that dies costs the one test that killed it:
the others of its batch go on in a new guest.
"""
import concurrent.futures
import glob
import json
import os
import re
import shutil
import subprocess
import threading
import time

from common import KERNELS, LAB, REPO, read, say

LOGS = os.path.join(REPO, "build", "out", "check")
MAX_BOOTS = 4           # for one batch
DEADLINE, FULL_DEADLINE = 1200, 10800       # seconds for one batch
PER_GUEST = 6           # test files at most, without --full: most are too short for one of their own
CORE = ["-m", "core and not nested"]
# What is as good in User Mode Linux, where it is many times faster and KASAN watches: `make check`
# runs these files whole there, and their core on the packaged kernels.
ON_UM = ("test_alloc_failure.py", "test_dm_cgroup.py", "test_dm_crash.py", "test_dm_damage.py",
         "test_dm_differential.py", "test_dm_entries.py", "test_dm_faults.py", "test_dm_file.py",
         "test_dm_hammer.py", "test_dm_header.py", "test_dm_interop.py", "test_dm_large.py",
         "test_dm_locks.py", "test_dm_nfs.py", "test_dm_pieces.py", "test_dm_registry.py",
         "test_dm_reload.py", "test_dm_space.py", "test_dm_table.py", "test_dm_view.py",
         "test_lab.py", "test_lifecycle.py", "test_serve.py", "test_serve_protocol.py",
         "test_serve_qemu.py", "test_tool.py", "test_tool_backup.py", "test_tool_check.py",
         "test_tool_map.py", "test_tool_places.py", "test_tool_run.py", "test_vhost_cache.py",
         "test_vhost_claim.py", "test_vhost_host.py", "test_vhost_mode.py", "test_vhost_ring.py", "test_vhost_stop.py")
# `um` is of the newest kernel's version. The packaged one differs in its configuration, its processor
# and that guests run in it: of the core, these files run there, too.
ON_BACKPORTS = ("test_dm_differential.py", "test_lab.py", "test_serve.py", "test_tool_run.py",
                "test_vhost_ring.py")
# More for the lab, where a file needs it: leaks matter most where setting up fails half-way, and what
# is about races, or polling, is nothing with one CPU.
MACHINE = {("um", "test_alloc_failure.py"): ["--append", "kmemleak=on"],
           ("um", "test_dm_hammer.py"): ["--smp", "2"],
           ("um", "test_serve_protocol.py"): ["--smp", "2"],
           **{("um", f"test_vhost_{name}.py"): ["--smp", "2"]
              for name in ("cache", "claim", "host", "mode", "stop")}}
# What of the suite runs on a kernel that is chosen for it, or by --full.
SUITES = {"stable": [], "backports": [], "um": ["-m", "not nested"],
          "debug": ["-m", "not nested"],
          "kcsan": ["-m", "races"]}
PYTEST = ["python3", "-m", "pytest", "-q", "--color=no"]


class Sum:
    """What has been counted so far."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.failures = []
        self.slow = []          # (seconds, name)
        self.lock = threading.Lock()

    def add(self, outcome, name, detail=""):
        with self.lock:
            self.count(outcome, name, detail)

    def count(self, outcome, name, detail):
        if outcome == "passed":
            self.passed += 1
        elif outcome == "skipped":
            self.skipped += 1
            print(f"  skipped {name}: {detail}", flush=True)
        else:
            self.failed += 1
            self.failures.append(name)

    def line(self):
        text = f"{self.passed} passed, {self.failed} failed"
        return text + (f", {self.skipped} skipped" if self.skipped else "")


def results(path):
    """(finished, hung): {id: record} of tests that ended, and ids of those that only started."""
    finished, started = {}, []
    if os.path.exists(path):
        with open(path) as f:
            for line in f:
                try:
                    record = json.loads(line)
                except ValueError:      # cut off by the guest's death
                    continue
                if record["outcome"] == "started":
                    started.append(record["id"])
                else:
                    finished[record["id"]] = record
    return finished, [i for i in started if i not in finished]


def lab(*argv, log):
    """Run another lab command, its output into LOG."""
    with open(log, "a") as f:
        return subprocess.run([os.path.join(LAB, "lab"), *argv], stdin=subprocess.DEVNULL,
                              stdout=f, stderr=f).returncode


def show(log, lines=150):
    with open(log, errors="replace") as f:
        text = f.read().splitlines()
    if len(text) > lines:
        print(f"  ... (the whole text is in {os.path.relpath(log, REPO)})")
    print("\n".join("  " + line for line in text[-lines:]), flush=True)


def batch(total, label, files, where, options=()):
    """Test files in one place; WHERE is the lab command that gets pytest's argv."""
    names = [os.path.basename(f) for f in files]
    stem = f"{label}-{names[0][:-3]}" + (f"+{len(files) - 1}" if files[1:] else "")
    log, path = os.path.join(LOGS, stem + ".log"), os.path.join(LOGS, stem + ".results")
    start = time.monotonic()
    counted, failed = set(), 0

    def count(outcome, test, detail=""):
        nonlocal failed
        counted.add(test)
        failed += outcome == "failed"
        total.add(outcome, f"{test} ({label})", detail)

    for boots in range(1, MAX_BOOTS + 1):
        status = lab(*where, "--", "env", f"LAB_RESULTS=/out/check/{stem}.results", *PYTEST,
                     *options, *(os.path.relpath(f, REPO) for f in files), log=log)
        finished, hung = results(path)
        for test, record in finished.items():
            if test not in counted:
                count(record["outcome"], test, record.get("reason", ""))
                total.slow.append((record.get("seconds", 0), f"{test} ({label})"))
        for test in hung:
            if test not in counted:
                count("failed", f"{test}: the guest died or was killed")
                counted.add(test)
        # 5 is pytest's "no test left". A guest that died in a test goes on with those after it.
        if status in (0, 1, 5) or not hung or boots == MAX_BOOTS:
            break
    if status not in (0, 5) and not failed:
        count("failed", f"{' '.join(names)}: exit code {status}")
    if failed:
        show(log)
    if counted:
        print(f"{label} {' '.join(names)}: {len(counted)} tests, {failed} failed, "
              f"{time.monotonic() - start:.0f} s", flush=True)


def script(total, label, stem, *where):
    """Tests that are no pytest files; WHERE is the lab command that runs them."""
    log, record = (os.path.join(LOGS, stem + end) for end in (".log", ".results"))
    start, failed = time.monotonic(), 0
    status = lab(*where, log=log)
    finished, hung = results(record)
    outcomes = [(r["outcome"], name, r.get("reason", "")) for name, r in finished.items()]
    outcomes += [("failed", f"{name}: the guest died or was killed", "") for name in hung]
    if status and all(outcome != "failed" for outcome, _, _ in outcomes):
        outcomes.append(("failed", f"exit code {status}", ""))
    for outcome, name, reason in outcomes:
        failed += outcome == "failed"
        total.add(outcome, f"{label}: {name}", reason)
    if failed:
        show(log)
    print(f"{label}: {len(finished)}, {failed} failed, {time.monotonic() - start:.0f} s", flush=True)


def installation(kind):
    """The arguments of script() for one of tests/install/: a Debian of its own, from README's words."""
    where = ["chroot", "--fresh"] if kind == "upgrade" else \
        ["run", "--kernel", "fresh", "--udev", "--timeout", str(FULL_DEADLINE)]
    argv = ["tests/install/upgrade"] if kind == "upgrade" else ["tests/install/story", kind]
    return ("install", f"install-{kind}", *where, "--", "env",
            f"LAB_RESULTS=/out/check/install-{kind}.results", *argv)


def build(total, kernel):
    log = os.path.join(LOGS, f"build-{kernel}.log")
    start = time.monotonic()
    status = lab("setup", kernel, log=log) or lab("build", kernel, log=log)
    if status:
        total.add("failed", f"build for {kernel}")
        show(log)
    print(f"build for {kernel}: {'failed' if status else 'done'}, "
          f"{time.monotonic() - start:.0f} s", flush=True)
    return status == 0


def selected(patterns, found):
    """The files of FOUND that one of PATTERNS names; all of them when there is none."""
    return [f for f in found if not patterns or any(p in f for p in patterns)]


def may_hold(text, options):
    """Whether a test file may have tests of the markers asked for; it saves starting a guest."""
    wanted = re.match(r"\w+", options[options.index("-m") + 1]) if "-m" in options else None
    return not wanted or wanted.group() == "not" or f"mark.{wanted.group()}" in text


def batches(kernel, chosen, per_guest):
    """(files, options, more for the lab): files that need the same, at most PER_GUEST together."""
    alike = {}
    for f, options in chosen:
        machine = MACHINE.get((kernel, os.path.basename(f)), [])
        alike.setdefault((tuple(options), tuple(machine)), []).append(f)
    for (options, machine), found in alike.items():
        number = -(-len(found) // per_guest)
        for n in range(number):
            yield found[n::number], options, machine


def plan(full, kernels):
    """What runs where: (kernel, options for a test file's name, or None to leave it out)."""
    if full or kernels:
        return [(k, lambda name, k=k: (["--full"] if full else []) + SUITES[k])
                for k in kernels or KERNELS]
    return [("um", lambda name: [] if name in ON_UM else None),
            ("stable", lambda name: CORE if name in ON_UM else []),
            ("backports", lambda name: CORE if name in ON_BACKPORTS else None)]


def check(full=False, only=(), kernels=None):
    total = Sum()
    shutil.rmtree(LOGS, ignore_errors=True)
    os.makedirs(LOGS)
    start = time.monotonic()
    files = selected(only, sorted(glob.glob(os.path.join(REPO, "tests", "test_*.py"))))
    units = selected(only, sorted(glob.glob(os.path.join(REPO, "tests", "unit", "test_*.py"))))
    with concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count())) as pool:
        jobs = []
        if not only:
            jobs.append(pool.submit(script, total, "static", "static", "static"))
        jobs += [pool.submit(batch, total, "unit", [f], ["chroot"]) for f in units]
        if full and not kernels and selected(only, ["tests/install"]):
            jobs += [pool.submit(script, total, *installation(kind))
                     for kind in ("upgrade", "plain", "dkms")]
        for kernel, options_for in plan(full, kernels):
            chosen = [(f, options_for(os.path.basename(f))) for f in files]
            chosen = [(f, o) for f, o in chosen if o is not None and may_hold(read(f), o)]
            if chosen and build(total, kernel):
                where = ["run", "--no-build", "--kernel", kernel, "--timeout",
                         str(FULL_DEADLINE if full else DEADLINE)]
                jobs += [pool.submit(batch, total, kernel, b, [*where, *machine], options)
                         for b, options, machine in batches(kernel, chosen,
                                                            1 if full else PER_GUEST)]
        for job in jobs:
            job.result()
    if not only:
        for seconds, test in sorted(total.slow, reverse=True)[:5]:
            print(f"slowest: {seconds:.0f} s, {test}")
    say(f"all of it took {time.monotonic() - start:.0f} s")
    for name in total.failures:
        print(f"FAILED {name}")
    if not total.passed and not total.failed:
        print("nothing ran")
    print(total.line(), flush=True)
    return 1 if total.failed or not total.passed else 0
