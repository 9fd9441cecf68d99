# SPDX-License-Identifier: GPL-2.0-or-later
"""What makes a guest's run a failure: each checker's report is seen, and nothing else is one."""
import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lab"))
import check  # noqa: E402
import custom  # noqa: E402
import klog  # noqa: E402

# The line by which each report is known, as the kernels print it.
REPORTS = {
    "KASAN": "BUG: KASAN: slab-use-after-free in slice_put+0x1b/0x90 [dm_qcow2]",
    "KCSAN": "BUG: KCSAN: data-race in writer_wake [dm_qcow2] / writer_work [dm_qcow2]",
    "KCSAN, one side": "BUG: KCSAN: data-race in vhost_blk_reap+0x1f/0x40 [vhost_blk]",
    "lock order": "WARNING: possible circular locking dependency detected",
    "recursion": "WARNING: possible recursive locking detected",
    "interrupts": "WARNING: inconsistent lock state",
    "interrupts, two locks": "WARNING: SOFTIRQ-safe -> SOFTIRQ-unsafe lock order detected",
    "wait context": "[ BUG: Invalid wait context ]",
    "no key": "INFO: trying to register non-static key.",
    "assertion": "WARNING: CPU: 1 PID: 87 at table-cache.c:417 slice_dirty+0x2b/0xe0 [dm_qcow2]",
    "unlock": "WARNING: bad unlock balance detected!",
    "RCU": "WARNING: suspicious RCU usage",
    "atomic": "BUG: sleeping function called from invalid context at mm/mempool.c:391",
    "leak": "unreferenced object 0xffff888104a0c000 (size 4096):",
    "object": "ODEBUG: free active (active state 0) object: 00000000f6e1a0ce object type: work_struct",
    "shift": "UBSAN: shift-out-of-bounds in alloc.c:40:9",
    "hung": "INFO: task kworker/u8:2:51 blocked for more than 60 seconds.",
    "reference": "refcount_t: underflow; use-after-free.",
}
HARMLESS = [
    "device-mapper: qcow2: /dev/nullb0: now failed: metadata could not be written",
    "kmemleak: Kernel memory leak detector initialized (mem pool available: 61837)",
    "kcsan: enabled early",
    "vhost-blk: ring 1 of process 412 is stopped: a malformed ring or descriptor chain",
    "lab: test tests/test_dm_hammer.py::test_hammer[bdev-none-64-5-0-short]",
]


@pytest.mark.parametrize("name", REPORTS)
def test_report_is_seen(name):
    log = ["one line before", "[   12.345678] " + REPORTS[name], " Call Trace:", "  its_place+0x1/0x2"]
    assert [i for i, _ in klog.faults(log)] == [1]
    assert "its_place" in klog.report(log)


@pytest.mark.parametrize("line", HARMLESS)
def test_harmless_line(line):
    assert not klog.faults(["[   12.345678] " + line])


def test_leak_of_the_kernels_own():
    """It is told by its trace, and hides no other."""
    log = ["unreferenced object 0xffff888110b6b400 (size 512):", "  backtrace (crc d8242ad8):",
           "    blk_throtl_init+0x32/0x190", "unreferenced object 0x62831660 (size 8):",
           '  comm "swapper/0", pid 0, jiffies 4294937302', "    ramfs_init_fs_context+0x49/0xb0",
           "unreferenced object 0xffff888104a0c000 (size 64):", '  comm "dmsetup", pid 90, jiffies 1',
           "  backtrace (crc 1):", "    alloc_init+0x32/0x190 [dm_qcow2]"]
    assert [i for i, _ in klog.faults(log)] == [6]


def test_changes_of_the_source(tmp_path, capsys):
    """A file is changed as a whole or, where one change does not fit, not at all."""
    (tmp_path / "a.c").write_text("one\ntwo\n")
    (tmp_path / "b.c").write_text("one\none\n")
    binds = custom.changed(tmp_path, [("a.c", "one", "1"), ("b.c", "one\none", "2"),
                                      ("b.c", "one\n", "1"), ("a.c", "two", "2"),
                                      ("gone.c", "one", "1")], tmp_path)
    (copy, target), = binds
    assert target == "/lab/src/a.c"
    with open(copy) as f:
        assert f.read() == "1\n2\n"
    said = capsys.readouterr()
    assert all(name in said.out + said.err for name in ("b.c", "gone.c"))


@pytest.mark.parametrize("options, text, may", [
    ([], "", True),
    (["-m", "races"], "pytestmark = pytest.mark.races", True),
    (["-m", "races"], "pytestmark = pytest.mark.core", False),
    (["--full", "-m", "core and not nested"], "@pytest.mark.core", True),
    (["--full", "-m", "core and not nested"], "pytestmark = pytest.mark.nested", False),
    (["-m", "not nested"], "", True),
])
def test_files_that_need_no_guest(options, text, may):
    assert check.may_hold(text, options) == may


def test_files_that_share_a_guest():
    """Each file is in one batch, with files that need the same machine and options, and not too many."""
    chosen = [(f"tests/test_{n}.py", check.CORE if n % 2 else []) for n in range(15)]
    chosen.append(("tests/test_dm_hammer.py", []))
    made = list(check.batches("um", chosen, 3))
    assert sorted(f for files, _, _ in made for f in files) == sorted(f for f, _ in chosen)
    assert max(len(files) for files, _, _ in made) == 3
    for files, options, machine in made:
        assert all(list(options) == dict(chosen)[f] for f in files)
        assert list(machine) == (["--smp", "2"] if files == ["tests/test_dm_hammer.py"] else [])
    assert all(len(files) == 1 for files, _, _ in check.batches("um", chosen, 1))
