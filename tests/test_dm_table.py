# SPDX-License-Identifier: GPL-2.0-or-later
"""The interface of the target: table, status, messages, life cycle, limits, and what discard gives
back to the storage."""
import os
import re
import time

import pytest

from dmqcow2 import KIB, Chain, Place, exercise, refused, verify_device
from helpers import (MIB, SECTOR, CommandError, image_check, image_create, image_map, qemu_io, run,
                     size_of, sync_caches, sysfs)

SECTORS = 8 * MIB // SECTOR


# ---- table ----

FEATURES = ([], ["read_only"], ["l2_cache_kib 512"], ["discard_no_unref"], ["no_discard_passdown"],
            ["error_if_no_space"], ["l2_cache_kib 256", "discard_no_unref", "no_discard_passdown"])


@pytest.mark.core
@pytest.mark.parametrize("features", FEATURES, ids=lambda f: "+".join(f).replace(" ", "=") or "none")
def test_table_loads_again(dm, bdev, features):
    base = image_create(bdev(16 * MIB), 8 * MIB)
    top = image_create(bdev(16 * MIB), backing=base)
    dm.create_qcow2("q", [f"qcow2:{top}", f"qcow2:{base}"], features)
    table = dm.table("q")
    words = table.split()
    assert words[:4] == ["0", str(SECTORS), "qcow2", "2"]
    for feature in features:
        assert feature in table
    dm.reload("q", table)
    assert dm.table("q") == table
    dm.remove("q")
    dm.create("q", table)
    assert dm.table("q") == table
    dm.remove("q")
    image_check(top)


@pytest.mark.parametrize("name", ["plain", "with space", "back\\slash", "tab\there", "ünïcode",
                                  "percent%41", "colon:fd:3"])
def test_names_of_all_kinds(dm, filesystem, name):
    """DM splits at spaces unless they are escaped; what is printed must load."""
    image = image_create(os.path.join(filesystem("ext4"), name), 8 * MIB)
    escaped = image.replace("\\", "\\\\").replace(" ", "\\ ").replace("\t", "\\\t")
    device = dm.create_qcow2("q", [f"qcow2:{escaped}"], sectors=SECTORS)
    qemu_io(device, "write -P 0x11 0 64k", fmt="raw")
    table = dm.table("q")
    dm.reload("q", table)
    assert dm.table("q") == table
    qemu_io(device, "read -P 0x11 0 64k", fmt="raw")
    dm.remove("q")
    image_check(image)


@pytest.mark.parametrize("line", [
    "0 {s} qcow2",
    "0 {s} qcow2 0",
    "0 {s} qcow2 x qcow2:{i}",
    "0 {s} qcow2 -1 qcow2:{i}",
    "0 {s} qcow2 1",
    "0 {s} qcow2 2 qcow2:{i}",
    "0 {s} qcow2 1 {i}",
    "0 {s} qcow2 1 vmdk:{i}",
    "0 {s} qcow2 1 qcow2:",
    "0 {s} qcow2 1 qcow2:fd:",
    "0 {s} qcow2 1 qcow2:fd:x",
    "0 {s} qcow2 1 qcow2:fd:-1",
    "0 {s} qcow2 1 qcow2:fd:99999",
    "0 {s} qcow2 1 qcow2:{i} 1",
    "0 {s} qcow2 1 qcow2:{i} 1 nonsense",
    "0 {s} qcow2 1 qcow2:{i} 2 read_only",
    "0 {s} qcow2 1 qcow2:{i} 1 l2_cache_kib",
    "0 {s} qcow2 1 qcow2:{i} 2 l2_cache_kib x",
    "0 {s} qcow2 1 qcow2:{i} 2 l2_cache_kib -5",
    "0 {s} qcow2 1 qcow2:{i} 2 l2_cache_kib 99999999999999999999",
    "0 {s} qcow2 1 qcow2:{i} 1 read_only extra",
    "0 {s} qcow2 99999999 qcow2:{i}",
    "0 {s} qcow2 1 qcow2:{i} 2 snapshot 1",
    "0 {s} qcow2 1 qcow2:{i} 2 view v",
    "0 {s} qcow2 1 qcow2:{i} 2 data raw:{i}",
    "0 {more} qcow2 1 qcow2:{i}",
])
@pytest.mark.core
def test_bad_table(dm, tmp_path, line):
    image = image_create(tmp_path / "image", 8 * MIB)
    text = refused(dm, line.format(s=SECTORS, more=SECTORS + 1, i=image))
    assert re.search(r"device-mapper: table: \d+:\d+: qcow2: .", text), text
    assert "Unknown error" not in text
    image_check(image)


def test_not_at_the_start(dm, tmp_path, bdev):
    """The target is the whole device."""
    image = image_create(tmp_path / "image", 8 * MIB)
    dev = bdev(16 * MIB)
    done = dm.create("q", f"0 8 linear {dev} 0\n8 {SECTORS} qcow2 1 qcow2:{image}", check=False)
    assert done.returncode
    qemu_io(image, "write 0 512")


# ---- status and messages ----

@pytest.mark.core
@pytest.mark.parametrize("storage", ["bdev", "xfs"])
def test_status(dm, bdev, filesystem, storage):
    image = image_create(Place(storage, bdev, filesystem)("image"), 64 * MIB)
    device = dm.create_qcow2("q", [f"qcow2:{image}"], ["l2_cache_kib 512"])
    first = dm.qcow2_status("q")
    assert first["mode"] == "rw" and first["attention"] == []
    assert first["total"] == 64 * MIB // (64 * KIB) and first["cache_max_kib"] == 512
    qemu_io(device, "write 0 8M", fmt="raw")
    dm.message("q", "commit")
    second = dm.qcow2_status("q")
    assert second["allocated"] >= first["allocated"] + 128
    assert second["host_bytes"] >= 8 * MIB
    assert second["cache_kib"] <= 512 and second["attention"] == []
    run("blkdiscard", device)
    dm.message("q", "commit")
    third = dm.qcow2_status("q")
    assert third["allocated"] < second["allocated"] - 64
    dm.remove("q")
    dm.create_qcow2("q", [f"qcow2:{image}"], ["read_only"])
    assert dm.qcow2_status("q")["mode"] == "ro"
    dm.remove("q")
    image_check(image)


@pytest.mark.core
def test_commit_makes_it_durable(dm, filesystem, tmp_path):
    """After `commit` a copy of the file holds everything, as QEMU reads it."""
    image = image_create(os.path.join(filesystem("ext4"), "image"), 64 * MIB)
    device = dm.create_qcow2("q", [f"qcow2:{image}"])
    qemu_io(device, "write -P 0x11 1M 3M", "write -P 0x22 40M 512", fmt="raw")
    dm.message("q", "commit")
    run("cp", image, tmp_path / "copy")
    qemu_io(tmp_path / "copy", "read -P 0x11 1M 3M", "read -P 0x22 40M 512")
    image_check(tmp_path / "copy", leaks=True)
    dm.remove("q")
    image_check(image)


def test_drop_cache(dm, bdev):
    image = image_create(bdev(256 * MIB), 128 * MIB, cluster_size="4k")
    qemu_io(image, "write -P 0x11 0 128M")
    device = dm.create_qcow2("q", [f"qcow2:{image}"])
    qemu_io(device, "read -P 0x11 0 128M", fmt="raw")
    full = dm.qcow2_status("q")["cache_kib"]
    assert full >= 256
    dm.message("q", "drop_cache")
    assert dm.qcow2_status("q")["cache_kib"] < full // 4
    qemu_io(device, "read -P 0x11 0 128M", fmt="raw")
    dm.remove("q")


@pytest.mark.parametrize("words", [["nonsense"], ["commit", "now"], ["drop_cache", "all"], ["COMMIT"]])
def test_bad_message(dm, tmp_path, words):
    image = image_create(tmp_path / "image", 8 * MIB)
    dm.create_qcow2("q", [f"qcow2:{image}"])
    if words[0] == "COMMIT":        # DM's other targets differ in this; either is fine
        dm.message("q", *words, check=False)
    else:
        assert dm.message("q", *words, check=False).returncode
    assert dm.qcow2_status("q")["mode"] == "rw"
    dm.remove("q")
    image_check(image)


def test_messages_while_suspended(dm, tmp_path):
    image = image_create(tmp_path / "image", 8 * MIB)
    device = dm.create_qcow2("q", [f"qcow2:{image}"])
    qemu_io(device, "write -P 0x11 0 64k", fmt="raw")
    dm.suspend("q")
    for word in ("commit", "drop_cache"):
        dm.message("q", word, check=False)      # done or refused, but it must return
    dm.resume("q")
    qemu_io(device, "read -P 0x11 0 64k", fmt="raw")
    dm.remove("q")
    image_check(image)


# ---- life cycle ----

@pytest.mark.core
def test_many_cycles(dm, bdev):
    image = image_create(bdev(64 * MIB), 32 * MIB)
    for i in range(30):
        device = dm.create_qcow2("q", [f"qcow2:{image}"])
        qemu_io(device, f"write -P {i + 1} {i * 64 + 13}k 70k", fmt="raw")
        dm.remove("q")
    image_check(image)
    qemu_io(image, "read -P 30 1869k 70k")


@pytest.mark.parametrize("storage", ["bdev", "xfs"])
def test_suspended_image_is_whole(dm, bdev, filesystem, tmp_path, storage):
    """While suspended the image on the storage is complete and clean (leaks aside)."""
    place = Place(storage, bdev, filesystem)
    image = image_create(place("image"), 64 * MIB)
    device = dm.create_qcow2("q", [f"qcow2:{image}"])
    qemu_io(device, "write -P 0x11 5M 5M", "write -P 0x22 33M 1k", fmt="raw")
    dm.suspend("q")
    sync_caches()
    done = run("qemu-img", "check", "-U", "-f", "qcow2", image, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run("qemu-io", "-r", "-U", "-f", "qcow2", "-c", "read -P 0x11 5M 5M", "-c", "read -P 0x22 33M 1k",
        image)
    dm.resume("q")
    dm.remove("q")
    image_check(image)


def test_read_only(dm, bdev):
    image = image_create(bdev(64 * MIB), 8 * MIB)
    qemu_io(image, "write -P 0x11 0 8M")
    device = dm.create_qcow2("q", [f"qcow2:{image}"], ["read_only"])
    run("qemu-io", "-r", "-f", "raw", "-c", "read -P 0x11 0 8M", device)
    for argv in (["dd", "if=/dev/zero", f"of={device}", "bs=4k", "count=1", "oflag=direct"],
                 ["blkdiscard", device], ["blkdiscard", "-z", device]):
        with pytest.raises(CommandError):
            run(*argv)
    run("qemu-io", "-r", "-f", "raw", "-c", "read -P 0x11 0 8M", device)
    dm.remove("q")
    image_check(image)


def test_read_only_storage(dm, bdev):
    """A read-only block device is refused for writing and works with read_only."""
    image = image_create(bdev(64 * MIB), 8 * MIB)
    run("blockdev", "--setro", image)
    try:
        done = dm.create("q", dm.qcow2_table([f"qcow2:{image}"]), check=False)
        if not done.returncode:
            dm.remove("q")
            pytest.fail("a read-only device was taken for writing")
        dm.create_qcow2("q", [f"qcow2:{image}"], ["read_only"])
        dm.remove("q")
    finally:
        run("blockdev", "--setrw", image)


def test_in_use_is_not_removed(dm, tmp_path):
    image = image_create(tmp_path / "image", 8 * MIB)
    device = dm.create_qcow2("q", [f"qcow2:{image}"])
    fd = os.open(device, os.O_RDONLY)
    assert run("dmsetup", "remove", "q", check=False).returncode
    os.close(fd)
    dm.remove("q")


def test_deferred_remove_and_close(dm, tmp_path):
    """The last close removes the device and leaves a clean image."""
    image = image_create(tmp_path / "image", 8 * MIB)
    device = dm.create_qcow2("q", [f"qcow2:{image}"])
    fd = os.open(device, os.O_RDWR | os.O_DIRECT)
    dm.setup("remove", "--deferred", "q")
    qemu_io(device, "write -P 0x11 0 64k", fmt="raw")
    os.close(fd)
    for _ in range(100):
        if run("dmsetup", "info", "q", check=False).returncode:
            break
        time.sleep(0.05)
    else:
        pytest.fail("not removed after the last close")
    run("dmsetup", "mknodes")
    image_check(image)
    qemu_io(image, "read -P 0x11 0 64k")


@pytest.mark.core
@pytest.mark.parametrize("storage", ["bdev", "ext4", "xfs"])
def test_fio_verify(dm, bdev, filesystem, storage):
    """Concurrent verified jobs, and the checksums once more from a new device."""
    image = image_create(Place(storage, bdev, filesystem)("image"), 96 * MIB)
    device = dm.create_qcow2("q", [f"qcow2:{image}"])
    jobs = []
    for n, (rw, bs) in enumerate((("randwrite", "4k"), ("randwrite", "512-96k"), ("write", "128k"))):
        jobs += [f"--name=j{n}", f"--rw={rw}", f"--bsrange={bs}" if "-" in bs else f"--bs={bs}",
                 f"--offset={n * 32}m", "--size=32m"]
    common = [f"--filename={device}", "--direct=1", "--ioengine=libaio", "--iodepth=16",
              "--io_size=12m", "--verify=crc32c", "--verify_fatal=1", "--randseed=5",
              "--bs_unaligned=0", "--blockalign=512", "--fsync=64", "--allow_mounted_write=1"]
    run("fio", *common, "--do_verify=1", *jobs, timeout=240)
    dm.remove("q")
    image_check(image)
    dm.create_qcow2("q", [f"qcow2:{image}"])
    run("fio", *common, "--verify_only=1", *jobs, timeout=240)
    dm.remove("q")


# ---- limits, discard ----

@pytest.mark.core
@pytest.mark.parametrize("cluster", ["4k", "64k", "2M"])
def test_limits(dm, bdev, cluster):
    image = image_create(bdev(64 * MIB), 32 * MIB, cluster_size=cluster)
    device = dm.create_qcow2("q", [f"qcow2:{image}"])
    size = {"4k": 4 * KIB, "64k": 64 * KIB, "2M": 2 * MIB}[cluster]
    assert int(sysfs(device, "queue/discard_granularity")) == size
    assert int(sysfs(device, "queue/discard_max_bytes")) >= size
    assert int(sysfs(device, "queue/write_zeroes_max_bytes")) >= size
    assert int(sysfs(device, "queue/logical_block_size")) == 512
    # flushes must come through whatever the storage has for a cache
    assert sysfs(device, "queue/write_cache") == "write back"
    assert size_of(device) == 32 * MIB
    dm.remove("q")


def host_blocks(path):
    sync_caches()
    return os.stat(path).st_blocks * SECTOR


@pytest.mark.core
@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_discard_frees_file_space(dm, filesystem, fstype):
    """du shrinks, QEMU sees the clusters free, and they are used again."""
    image = image_create(os.path.join(filesystem(fstype), "image"), 64 * MIB)
    device = dm.create_qcow2("q", [f"qcow2:{image}"])
    qemu_io(device, "write -P 0x11 0 48M", fmt="raw")
    full = host_blocks(image)
    assert full >= 48 * MIB
    run("blkdiscard", "-o", str(8 * MIB), "-l", str(32 * MIB), device)
    dm.message("q", "commit")
    deadline = time.monotonic() + 15
    while host_blocks(image) > full - 30 * MIB and time.monotonic() < deadline:
        time.sleep(0.2)
    assert host_blocks(image) <= full - 30 * MIB
    qemu_io(device, "read -P 0x11 0 8M", "read -P 0 8M 32M", "read -P 0x11 40M 8M", fmt="raw")
    length = os.path.getsize(image)
    qemu_io(device, "write -P 0x22 8M 24M", fmt="raw")
    dm.message("q", "commit")
    assert os.path.getsize(image) <= length + 16 * MIB, "freed clusters are not used again"
    dm.remove("q")
    image_check(image)
    here = [e for e in image_map(image) if e["start"] <= 36 * MIB < e["start"] + e["length"]]
    assert not here[0]["data"] and here[0]["zero"]
    qemu_io(image, "read -P 0x11 0 8M", "read -P 0x22 8M 24M", "read -P 0 32M 8M",
            "read -P 0x11 40M 8M")


@pytest.mark.parametrize("passdown", [True, False])
def test_discard_reaches_the_device(dm, bdev, tmp_path, passdown):
    """On a thin block device: its own storage shrinks, unless no_discard_passdown says otherwise."""
    sparse = tmp_path / "storage"
    with open(sparse, "wb") as f:
        f.truncate(128 * MIB)
    loop = run("losetup", "--find", "--show", sparse).stdout.strip()
    try:
        image_create(loop, 64 * MIB)
        device = dm.create_qcow2("q", [f"qcow2:{loop}"], [] if passdown else ["no_discard_passdown"])
        qemu_io(device, "write -P 0x11 0 32M", fmt="raw")
        full = os.stat(sparse).st_blocks * SECTOR
        assert full >= 32 * MIB
        run("blkdiscard", "-o", "0", "-l", str(24 * MIB), device)
        dm.message("q", "commit")
        deadline = time.monotonic() + (15 if passdown else 2)
        while os.stat(sparse).st_blocks * SECTOR > full - 20 * MIB and time.monotonic() < deadline:
            time.sleep(0.2)
        freed = full - os.stat(sparse).st_blocks * SECTOR
        assert freed >= 20 * MIB if passdown else freed < MIB
        qemu_io(device, "read -P 0 0 24M", "read -P 0x11 24M 8M", fmt="raw")
        dm.remove("q")
        image_check(loop)
    finally:
        run("losetup", "-d", loop)


def test_discard_no_unref(dm, filesystem):
    """Clusters stay reserved: no fragmentation, and the data is gone all the same."""
    image = image_create(os.path.join(filesystem("xfs"), "image"), 32 * MIB)
    device = dm.create_qcow2("q", [f"qcow2:{image}"], ["discard_no_unref"])
    qemu_io(device, "write -P 0x11 0 16M", fmt="raw")
    dm.message("q", "commit")
    before = dm.qcow2_status("q")["allocated"]
    run("blkdiscard", "-o", "0", "-l", str(8 * MIB), device)
    dm.message("q", "commit")
    assert dm.qcow2_status("q")["allocated"] >= before
    qemu_io(device, "read -P 0 0 8M", "read -P 0x11 8M 8M", fmt="raw")
    dm.remove("q")
    image_check(image)
    qemu_io(image, "read -P 0 0 8M", "read -P 0x11 8M 8M")


def test_discard_on_v2_with_backing(dm, bdev):
    """There is no way to say 'zero' in such an image: nothing is discarded."""
    base = image_create(bdev(64 * MIB), 8 * MIB)
    qemu_io(base, "write -P 0xbb 0 8M")
    top = image_create(bdev(64 * MIB), backing=base, compat="0.10")
    device = dm.create_qcow2("q", [f"qcow2:{top}", f"qcow2:{base}"])
    qemu_io(device, "write -P 0x11 0 1M", fmt="raw")
    run("blkdiscard", device)
    qemu_io(device, "read -P 0x11 0 1M", "read -P 0xbb 1M 7M", fmt="raw")
    # but write-zeroes must zero
    run("blkdiscard", "-z", "-o", "0", "-l", str(3 * MIB), device)
    qemu_io(device, "read -P 0 0 3M", "read -P 0xbb 3M 5M", fmt="raw")
    dm.remove("q")
    image_check(top)
    qemu_io(top, "read -P 0 0 3M", "read -P 0xbb 3M 5M")


def test_chain_with_small_cache(dm, bdev, filesystem, tmp_path):
    """A cache of the smallest size: every table is evicted over and over."""
    chain = Chain(Place("bdev", bdev, filesystem), tmp_path, "qcow2", 96 * MIB, cluster=4 * KIB)
    device = dm.create_qcow2("q", chain.layers, ["l2_cache_kib 16"])
    exercise(dm, "q", chain, 5, 600)
    status = dm.qcow2_status("q")
    assert status["cache_kib"] <= status["cache_max_kib"]
    verify_device(device, chain.model)
    dm.remove("q")
    chain.verify()
