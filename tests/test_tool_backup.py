# SPDX-License-Identifier: GPL-2.0-or-later
"""`qcow2attach backup`: the copy is the disk of one moment, whatever is written meanwhile, and nothing is
left of a backup that was not finished."""
import json
import os
import random
import signal
import subprocess
import time

import pytest

from dmqcow2 import KIB, Counter, Disk
from helpers import MIB, image_check, image_compare, image_create, image_info, qemu_io, run, wait_for
from test_dm_nfs import mount, server  # noqa: F401  (fixtures)
from toolcli import attach, images, refused, tool  # noqa: F401  (fixtures among them)

CLUSTER = 64 * KIB


def nothing_left(dm, name, where, *files):
    """No view, no device of one, no partial file."""
    wait_for(lambda: not dm.message(name, "view", "list"), 30)
    assert [w for w in tool("list")[0].split() if w.startswith(name + "-")] == []
    assert sorted(os.listdir(where)) == sorted(files)


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "backups"
    path.mkdir()
    return path


def scattered(path, base, size):
    """An overlay: data, zeroes, holes; of the base and of its own."""
    run("qemu-img", "create", "-q", "-f", "qcow2", base, size)
    rng = random.Random(1)
    for image, seed in (base, 1), (path, 2):
        if image == path:
            image_create(path, size, backing=base)
        qemu_io(image, *(f"write {rng.choice((f'-P {n + seed}', f'-P {n + seed}', '-z'))} "
                         f"{rng.randrange(size // CLUSTER - 9) * CLUSTER} {rng.choice((4, 64, 300))}k"
                         for n in range(40)))


@pytest.mark.parametrize("options", [[], ["--compress", "zstd", "--verify"], ["--format", "raw"]])
def test_copy(dm, images, attach, target, options):  # noqa: F811
    top, base = f"{images}/top.qcow2", f"{images}/base.qcow2"
    scattered(top, base, 48 * MIB)
    expected = f"{target}/../expected"
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", top, expected)
    path = attach(top)
    said, err = tool("backup", "top", f"{target}/copy", *options)
    assert not err and f"{target}/copy: " in said and " of data, " in said
    fmt = "raw" if "raw" in options else "qcow2"
    image_compare(f"{target}/copy", expected, fmt)
    if fmt == "qcow2":
        image_check(f"{target}/copy")
        assert "backing-filename" not in image_info(f"{target}/copy")
    assert os.stat(f"{target}/copy").st_blocks * 512 < 40 * MIB
    assert os.stat(f"{target}/copy").st_mode & 0o777 == 0o600
    nothing_left(dm, "top", target, "copy")
    with Disk(path) as disk:
        disk.write(1, 0, MIB)
    tool("detach", "top")
    image_check(top)


def test_under_writes(dm, images, attach, target):  # noqa: F811
    """A writer that never pauses: each backup has its writes up to one of them."""
    image = image_create(f"{images}/busy.qcow2", 64 * MIB)
    path = attach(image)
    rng = random.Random(3)
    writer = Counter(path, [p * 4096 for p in rng.sample(range(64 * MIB // 4096), 200)], 4)
    writer.start()
    try:
        for n in range(4):
            before = writer.done
            tool("backup", "busy", f"{target}/{n}", "--format", "raw", *(["--verify"] if n % 2 else []))
            assert before <= writer.moment(f"{target}/{n}")
    finally:
        writer.stop()
    nothing_left(dm, "busy", target, *"0123")
    tool("detach", "busy")
    image_check(image)


@pytest.mark.parametrize("victim", ["command", "command and cleaner", "qemu-img"])
def test_killed(dm, images, attach, target, victim):  # noqa: F811
    image = image_create(f"{images}/vm.qcow2", 64 * MIB)
    qemu_io(image, "write -P 5 0 48M")
    attach(image)
    rng = random.Random(1)
    for n in range(4):
        child = subprocess.Popen(["qcow2attach", "backup", "vm", f"{target}/copy", "--rate-limit", "2M"],
                                 stderr=subprocess.PIPE, text=True)
        time.sleep(rng.random() * 1.5 + (0.5 if victim == "qemu-img" else 0))
        mine = [int(p) for p in run("pgrep", "-P", child.pid, check=False).stdout.split()]
        named = {p: run("cat", f"/proc/{p}/comm", check=False).stdout.strip() for p in mine}
        if victim == "qemu-img":
            for p, comm in named.items():
                if comm == "qemu-img":
                    os.kill(p, signal.SIGKILL)
            assert child.wait(60) == 1
            assert "qemu-img was ended by signal 9" in child.stderr.read()
        else:
            child.kill()
            for p, comm in named.items():
                if victim == "command and cleaner" and comm == "qcow2attach":
                    os.kill(p, signal.SIGKILL)
            child.wait(60)
        child.stderr.close()
        if victim != "command and cleaner":
            nothing_left(dm, "vm", target)
    for name in os.listdir(target):         # of the two that were killed together
        os.unlink(f"{target}/{name}")
    tool("backup", "vm", f"{target}/copy", "--verify")
    nothing_left(dm, "vm", target, "copy")
    tool("detach", "vm")
    image_compare(image, f"{target}/copy", fmt_b="qcow2")
    image_check(image)


def test_names(images, attach, target):  # noqa: F811
    """A name is a name: qemu-img takes it neither for a protocol nor for options."""
    image = image_create(f"{images}/vm.qcow2", 16 * MIB)
    qemu_io(image, "write -P 5 0 8M")
    attach(image)
    for name in "vm-2026-01-01T10:00", "-x", "nbd:a", "two words":
        run("qcow2attach", "backup", "vm", "--", name, cwd=target)
        image_check(f"{target}/{name}")


def test_on_nfs(dm, images, attach, mount):  # noqa: F811
    """Where a file must have a name it has another one until it is complete."""
    image = image_create(f"{images}/vm.qcow2", 16 * MIB)
    qemu_io(image, "write -P 5 0 8M")
    attach(image)
    at = mount()
    before = os.listdir(at)
    tool("backup", "vm", f"{at}/copy", "--verify")
    nothing_left(dm, "vm", at, "copy", *before)
    image_check(f"{at}/copy")
    child = subprocess.Popen(["qcow2attach", "backup", "vm", f"{at}/slow", "--rate-limit", "1M"])
    wait_for(lambda: os.path.exists(f"{at}/slow.partial-{child.pid}"), 30)
    child.kill()
    child.wait(60)
    wait_for(lambda: sorted(os.listdir(at)) == sorted(["copy", *before]), 30)
    nothing_left(dm, "vm", at, "copy", *before)
    assert "exists already" in refused("backup", "vm", f"{at}/copy", code=1)


def test_events(images, attach, target):  # noqa: F811
    image = image_create(f"{images}/vm.qcow2", 16 * MIB)
    qemu_io(image, "write -P 5 0 8M")
    attach(image)
    out, err = tool("backup", "vm", f"{target}/copy", "--json", "--rate-limit", "4M")
    events = [json.loads(line) for line in out.splitlines()]
    assert not err and {e["name"] for e in events} == {"vm"}
    assert events[0]["event"] == "moment"
    assert events[1]["event"] == "copying" and 0 <= events[1]["percent"] <= 100
    assert events[-1]["event"] == "done" and events[-1]["data"] == 8 * MIB
    assert events[-1]["file"] == f"{target}/copy" and events[-1]["format"] == "qcow2"


def test_refused(dm, images, attach, target, filesystem):  # noqa: F811
    image = image_create(f"{images}/vm.qcow2", 64 * MIB)
    qemu_io(image, "write -P 5 0 48M")
    assert "there is no such device" in refused("backup", "vm", f"{target}/copy", code=1)
    attach("--read-only", image)
    assert "read-only" in refused("backup", "vm", f"{target}/copy", code=1)
    tool("detach", "vm")
    attach(image)
    (target / "there").write_text("precious")
    assert "exists already" in refused("backup", "vm", f"{target}/there", code=1)
    assert (target / "there").read_text() == "precious"
    assert f"cannot write to {target}/no: No such file" in refused("backup", "vm", f"{target}/no/where",
                                                                   code=1)
    full = filesystem("ext4", 32 * MIB)
    assert "No space left" in refused("backup", "vm", f"{full}/copy", code=1)
    nothing_left(dm, "vm", full, "lost+found")
    for argv in (["vm", ""], ["vm", f"{target}/"], ["vm"], ["vm", "a", "b"], ["vm", "-"], ["vm", "a", "--format", "vmdk"],
                 ["vm", "a", "--compress", "lzo"], ["vm", "a", "--rate-limit", "0"],
                 ["vm", "a", "--format", "raw", "--compress", "zstd"]):
        refused("backup", *argv, code=2)
    nothing_left(dm, "vm", target, "there")
