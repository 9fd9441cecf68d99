# SPDX-License-Identifier: GPL-2.0-or-later
"""What `make bench` makes of its measurements: ratios, aims, tables, the picture, the profile."""
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "bench"))
import instructions     # noqa: E402
import paths            # noqa: E402
import plan             # noqa: E402
import plot             # noqa: E402
import report           # noqa: E402
import results          # noqa: E402
import storage          # noqa: E402
import targets          # noqa: E402

READ, WRITE = "randread 4k d32 prealloc", "randwrite 4k d32 prealloc"
LABELS = {path.name: path.label for path in paths.PATHS}


def record(path, iops, workload=READ, mode="icount"):
    return {"path": path, "workload": workload, "mode": mode, "iops": iops, "p50_us": 1.5,
            "p99_us": 9}


FOUND = [record("null", 200000), record("raw", 160000), record("linear", 125000),
         record("qcow2-bdev", 100000), record("vhost-bdev", 120000),
         record("qsd-io_uring-bdev", 30000), record("qsd-native-bdev", 40000),
         record("qcow2-xfs", 50000, mode="wall"), record("loop-xfs", 50000, mode="wall"),
         record("qcow2-xfs", 33000, "randread 4k d1 prealloc", "wall"),
         record("loop-xfs", 5000, "randread 4k d1 prealloc", "wall")]


def target(results_, beginning, mode):
    found = [t for t in targets.all_targets(results_)
             if t.name.startswith(beginning) and t.mode == mode]
    assert len(found) == 1, [t.name for t in found]
    return found[0]


def test_medians_of_the_rounds():
    rounds = [{**record("null", iops), "type": "result"} for iops in (5, 100, 7)]
    assert results.medians(rounds) == [record("null", 7)]


def test_a_line_that_was_cut_off(tmp_path):
    log = tmp_path / "log"
    log.write_text(json.dumps({"type": "end"}) + "\n" + '{"type": "resu')
    assert results.records(log) == [{"type": "end"}]


def test_new_results_replace_old_ones():
    merged = results.merge(FOUND, [record("null", 1)])
    assert len(merged) == len(FOUND)
    assert results.Results(merged).iops("null", READ, "icount") == 1
    assert results.Results(merged).iops("raw", READ, "icount") == 160000


def test_run_info_keeps_memory_but_not_failures():
    old = {"environment": {"wall": {"cpus": 2}}, "memory": {"a": 1},
           "failures": [{"mode": "wall", "path": "x", "what": "y", "reason": "z"}]}
    new = [{"type": "memory", "mode": "icount", "what": "b", "bytes": 2},
           {"type": "environment", "mode": "icount", "cpus": 1},
           *({"type": "trim", "mode": "wall", "what": "a, apart", "figures": {"p99_us": p99}}
             for p99 in (5, 90, 7))]
    info = results.run_info(old, new, {"icount": {"commit": "c"}})
    assert info == {"environment": {"wall": {"cpus": 2}, "icount": {"cpus": 1, "commit": "c"}},
                    "memory": {"a": 1, "b": 2}, "trim": {"a, apart, wall": {"p99_us": 7}},
                    "failures": []}


def test_the_better_of_the_others_counts():
    ratio = results.Results(FOUND).ratio("vhost-bdev", ["qsd-io_uring-bdev", "qsd-native-bdev"],
                                         READ, "icount")
    assert ratio == 3
    # One of two that is missing leaves the ratio open: the missing one might be the better.
    assert results.Results(FOUND).ratio("vhost-bdev", ["qsd-native-bdev", "absent"], READ,
                                        "icount") is None


def test_targets():
    known = results.Results(FOUND, {"idle empty image of 1 TiB": 1 << 20})
    t = target(known, "vhost-blk / qemu-storage-daemon on bdev, randread", "icount")
    assert t.value == pytest.approx(23750 / 7083.3, rel=1e-4)     # 1250 less than 25000, 8333
    assert (t.verdict, t.row[2:4]) == ("MISSED", ["3.35 x", ">= 3.5 x"])
    t = target(known, "dm-qcow2 / loop on xfs, randread 4k d1 ", "wall")
    assert t.value == pytest.approx(6.6) and t.verdict == "OK"
    t = target(known, "dm-qcow2 / loop on xfs, randwrite 4k d1 ", "wall")
    assert t.verdict == "not measured"
    # A bound on memory is exclusive: a mebibyte is not less than a mebibyte.
    assert target(known, "idle empty image", "icount").verdict == "MISSED"


def test_the_device_of_pieces_is_taken_off():
    """null 5000 instructions, pieces 6250, dm-linear on them 8000, dm-qcow2 10000."""
    known = results.Results(FOUND)
    assert 1e9 / targets.bare(known, "linear", READ) == pytest.approx(6750)
    assert 1e9 / targets.bare(known, "qcow2-bdev", READ) == pytest.approx(8750)
    t = target(known, "dm-qcow2 / dm-linear, randread", "icount")
    assert t.value == pytest.approx(6750 / 8750) and t.verdict == "MISSED"


def test_report():
    info = {"environment": {"wall": {"kernel": "6.12", "date": "2026-01-01"}},
            "memory": {"idle": 12345},
            "trim": {"a, apart, wall": {"alone_iops": 9000, "alone_p99_us": 1, "iops": 8000.5,
                                        "p99_us": 20, "worst_p99_us": 300, "trim_s": 1.5}},
            "failures": [{"mode": "wall", "path": "thin", "what": READ, "reason": "no pool"}]}
    text = report.whole(results.Results(FOUND), FOUND, info, LABELS)
    assert "| dm-qcow2 on a block device (`qcow2-bdev`) | 100.0 (0.80) | `linear` |" in text
    assert "| vhost-blk and dm-qcow2 on a block device (`vhost-bdev`) | 120.0 (3.00) |" in text
    assert "| a, apart, wall | 9,000 | 1 | 8,000.5 | 20 | 300 | 1.5 |" in text
    assert "wall: kernel 6.12, date 2026-01-01" in text and "| idle | 12,345 |" in text
    assert f"wall: thin, {READ}: no pool" in text
    for line in text.splitlines():
        assert line.count("|") in (0, *range(3, 14))


def test_picture():
    text = plot.svg(FOUND, LABELS, [("reads", READ, "icount"), ("nothing", WRITE, "icount"),
                                    ("files", READ, "wall")])
    root = ElementTree.fromstring(text)
    name = "{http://www.w3.org/2000/svg}"
    bars = [r for r in root.iter(name + "rect") if r.get("fill") in (plot.OURS, plot.OTHERS)]
    assert len(bars) == 9 and sum(b.get("fill") == plot.OURS for b in bars) == 3
    texts = [t.text for t in root.iter(name + "text")]
    assert "reads" in texts and "nothing" not in texts and "125.0k" in texts
    widths = {b.get("width") for b in bars[:4]}
    assert f"{plot.BARS:.1f}" in widths, "the longest bar ends at a round number, 200k"


@pytest.mark.parametrize("largest", [1, 7, 99, 1000, 4321, 65000, 200000, 999999])
def test_ticks(largest):
    scale = plot.ticks(largest)
    assert scale[0] == 0 and scale[-1] >= largest and 2 <= len(scale) <= 7
    assert scale[-2] < largest


def test_pieces_of_an_image():
    mapping = [{"offset": 9, "length": 3}, {"offset": 2, "length": 4}, {"start": 5, "length": 9},
               {"offset": 12, "length": 1}]
    assert storage.pieces(mapping, 15) == [(0, 2, False), (2, 4, True), (6, 3, False),
                                           (9, 4, True), (13, 2, False)]


def test_loads():
    names = [load.name for load in plan.loads("empty", False)]
    assert len(set(names)) == len(names) == 9 and "randwrite 4k d32 fsync 64 empty" in names
    load = plan.Load("randwrite", 32, "empty", flush_every=64)
    assert load.allocates and load.argv(1)[3] == "x2048" and load.argv(1)[-1] == 64
    load = plan.tebibyte_loads(True)[0]
    assert load.argv(0.5) == ["randread", 32, 1, 0.5, 4096, 4 << 30, 128, 0]
    # Each target that is measured at all is about a load that is measured.
    measured = {load.name for kind in ("prealloc", "empty", "backed")
                for quick in (False, True) for load in plan.loads(kind, quick)}
    for t in targets.all_targets(results.Results([])):
        words = t.name.split(", ")[-1]
        if words.endswith(("prealloc", "empty")) and " of " not in words:
            assert words in measured, t.name


KALLSYMS = """\
ffffffff81000000 T _text
ffffffff81000010 t __pfx_submit_bio
ffffffff81000020 T submit_bio
ffffffff81000020 T submit_bio_alias
ffffffff81000100 D some_data
ffffffffc0000000 t qcow2_map\t[dm_qcow2]
"""


def test_profile():
    symbols = instructions.Symbols(KALLSYMS.splitlines())
    assert symbols.at(0xffffffff81000150) == ("submit_bio", "kernel")
    counts = ["ffffffff81000024 30", "ffffffff81000090 20", "ffffffffc0000004 40", "0 10"]
    found = instructions.by_function(counts, symbols, 5000)
    assert found == {("submit_bio", "kernel"): 2500, ("qcow2_map", "dm_qcow2"): 2000,
                     instructions.USER: 500}
    text = instructions.tables([("read", found), ("none", {})])
    assert "| all | 5,000 | - |" in text
    assert "| `qcow2_map` (dm_qcow2) | 2,000 | - |" in text
    assert "| user space | 500 | - |" in text


def test_needs_no_pytest():
    """`make bench` runs on a host, with nothing but Python's own modules."""
    done = subprocess.run([sys.executable, "-B", "-c", "import sys; sys.modules['pytest'] = None; "
                           "sys.path.insert(0, sys.argv[1]); import bench",
                           os.path.join(HERE, "..", "bench")], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
