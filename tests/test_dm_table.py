# SPDX-License-Identifier: GPL-2.0-or-later
"""The interface of the target: table, status, messages, life cycle, limits, and what discard gives
back to the storage."""
import os
import random
import re
import time

import pytest

from dmqcow2 import (KIB, PUNCH_HOLE, ZERO_RANGE, Attached, Chain, Disk, Place, checksum, exercise,
                     refused, verify_device)
from helpers import (MIB, SECTOR, Mount, image_check, image_create, image_map, qemu_io, run, size_of,
                     sync_caches, sysfs, wait_for)

SECTORS = 8 * MIB // SECTOR


# ---- table ----

FEATURES = ([], ["read_only", "l2_cache_kib 512"],
            ["l2_cache_kib 256", "discard_no_unref", "no_discard_passdown", "error_if_no_space"])


def test_table_loads_again(dm, bdev):
    base = image_create(bdev(16 * MIB), 8 * MIB)
    top = image_create(bdev(16 * MIB), backing=base)
    for features in FEATURES:
        with Attached(dm, [f"qcow2:{top}", f"qcow2:{base}"], *features) as disk:
            table = disk.table()
            assert table.split()[:4] == ["0", str(SECTORS), "qcow2", "2"]
            assert all(feature in table for feature in features)
            dm.reload("q", table)
            assert disk.table() == table
        dm.create("q", table)
        assert dm.table("q") == table
        dm.remove("q")
    image_check(top)


def test_names_of_all_kinds(dm, filesystem):
    """What would split or end a word is given as octal; what is printed must load."""
    directory = filesystem("ext4")
    for name in ("with space", "back\\slash", "tab\there", "ünïcode", "percent%41", "colon:fd:3",
                 "at@8:1:5", "line\nbreak", "escape\x1b[2J"):
        plain = image_create(os.path.join(directory, "plain"), 8 * MIB)
        image = os.path.join(directory, name)       # which qemu-img would take for a protocol
        os.rename(plain, image)
        escaped = re.sub(r"[\\\s#\x1b]", lambda m: f"\\{ord(m[0]):03o}", image)
        if "@" in name:         # would be taken for the identity that follows a name: it is given
            st = os.stat(image)
            escaped += f"@{os.major(st.st_dev)}:{os.minor(st.st_dev)}:{st.st_ino}"
        with Attached(dm, f"qcow2:{escaped}", size=8 * MIB) as disk:
            disk.write(0x11, 0, 64 * KIB)
            table = disk.table()
            dm.reload("q", table)
            assert disk.table() == table
            disk.expect(0x11, 0, 64 * KIB)


def test_table_line_longer_than_a_buffer(dm, tmp_path):
    """The most layers, with long names, make a line of more than the 16 KiB that libdevmapper offers
    first: the whole line comes all the same, and loads, also one whose names are mostly escapes."""
    deep = tmp_path / ("a" * 110) / ("b" * 110) / ("c" * 110)
    deep.mkdir(parents=True)
    layers = []
    for n in reversed(range(64)):
        image = str(deep / f"l{n}")
        if layers:
            run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", layers[0], "-F", "qcow2", image,
                MIB)
        else:
            image_create(image, MIB)
        layers.insert(0, image)

    def whole(table, directory):
        found = [word.rsplit("@", 1)[0] for word in table.split() if word.startswith("qcow2:")]
        wanted = ["qcow2:" + f"{directory}/l{n}".replace(" ", "\\040") for n in range(64)]
        # (no diff of lines of 64 KiB)
        assert len(found) == 64 and all(f == w for f, w in zip(found, wanted)), found[-1]
        assert table.endswith(" 1 read_only")

    with Attached(dm, [f"qcow2:{layer}" for layer in layers], "read_only", size=MIB) as disk:
        table = disk.table()
        whole(table, deep)
        disk.expect(0, 0, MIB)
        dm.reload("q", table)
        whole(disk.table(), deep)
        spaces = deep.parent / (" " * 250)
        deep.rename(spaces)
        whole(disk.table(), spaces)


def test_table_line_of_a_renamed_image(dm, filesystem):
    """The line names the file as it is called now, so that it loads."""
    image = image_create(os.path.join(filesystem("ext4"), "image"), 8 * MIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        os.rename(image, image + "-renamed")
        table = disk.table()
        assert f"qcow2:{image}-renamed@" in table
        dm.reload("q", table)
        disk.write(0x11, 0, 64 * KIB)
    dm.create("q", table)
    dm.remove("q")
    qemu_io(image + "-renamed", "read -P 0x11 0 64k")


def test_identity_is_checked(dm, filesystem):
    """The printed line names the file's device and inode: another file of that name is refused."""
    image = image_create(os.path.join(filesystem("xfs"), "image"), 8 * MIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        table = disk.table()
    os.rename(image, image + "-old")
    image_create(image, 8 * MIB)
    assert re.search(r"qcow2: .", refused(dm, table))
    os.rename(image + "-old", image)
    dm.create("q", table)
    dm.remove("q")


BAD_TABLES = (
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
)


def test_bad_tables(dm, tmp_path):
    image = image_create(tmp_path / "image", 8 * MIB)
    for line in BAD_TABLES:
        said = refused(dm, line.format(s=SECTORS, more=SECTORS + 1, i=image))
        assert re.search(r"device-mapper: table: \d+:\d+: qcow2: \w", said), (line, said)
        assert "Unknown error" not in said, line
    image_check(image)


def test_not_at_the_start(dm, tmp_path, bdev):
    """The target is the whole device."""
    image = image_create(tmp_path / "image", 8 * MIB)
    dev = bdev(16 * MIB)
    done = dm.create("q", f"0 8 linear {dev} 0\n8 {SECTORS} qcow2 1 qcow2:{image}", check=False)
    assert done.returncode
    qemu_io(image, "write 0 512")


# ---- status and messages ----

@pytest.mark.parametrize("storage", [pytest.param("bdev", marks=pytest.mark.core), "xfs"])
def test_status(dm, bdev, filesystem, storage):
    image = image_create(Place(storage, bdev, filesystem)("image"), 64 * MIB)
    with Attached(dm, f"qcow2:{image}", "l2_cache_kib 512") as disk:
        first = disk.status()
        assert first["mode"] == "rw" and first["attention"] == []
        assert first["total"] == 64 * MIB // (64 * KIB) and first["cache_max_kib"] == 512
        disk.write(0x11, 0, 8 * MIB)
        disk.commit()
        second = disk.status()
        assert second["allocated"] >= first["allocated"] + 128
        assert second["host_bytes"] >= 8 * MIB
        assert second["cache_kib"] <= 512 and second["attention"] == []
        disk.discard(0, 64 * MIB)
        disk.commit()
        wait_for(lambda: disk.status()["allocated"] < second["allocated"] - 64,
                 what="discarded clusters to be free")
    with Attached(dm, f"qcow2:{image}", "read_only") as disk:
        assert disk.status()["mode"] == "ro"
    image_check(image)


def test_commit_makes_it_durable(dm, filesystem, tmp_path):
    """After `commit` a copy of the file holds everything, as QEMU reads it."""
    image = image_create(os.path.join(filesystem("ext4"), "image"), 64 * MIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        disk.write(0x11, MIB, 3 * MIB)
        disk.write(0x22, 40 * MIB, 512)
        disk.commit()
        run("cp", image, tmp_path / "copy")
    qemu_io(tmp_path / "copy", "read -P 0x11 1M 3M", "read -P 0x22 40M 512")
    image_check(tmp_path / "copy", leaks=True)
    image_check(image)


def test_commits_by_itself(dm, filesystem, tmp_path):
    """Nobody flushes: the mapping is on the disk some seconds later all the same."""
    image = image_create(os.path.join(filesystem("ext4"), "image"), 64 * MIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        disk.write(0x11, MIB, MIB)

        def durable():
            run("cp", image, tmp_path / "copy")
            return not run("qemu-io", "-f", "qcow2", "-c", "read -P 0x11 1M 1M", tmp_path / "copy",
                           check=False).returncode
        wait_for(durable, timeout=30, step=1, what="a commit")


def test_drop_cache(dm, bdev):
    image = image_create(bdev(256 * MIB), 128 * MIB, cluster_size="4k")
    with Attached(dm, f"qcow2:{image}") as disk:
        for at in range(0, 128 * MIB, 2 * MIB):
            disk.write(0x11, at, 4 * KIB)
        disk.commit()
        full = disk.status()["cache_kib"]
        assert full >= 256
        disk.message("drop_cache")
        assert disk.status()["cache_kib"] < full // 2
        for at in range(0, 128 * MIB, 2 * MIB):
            disk.expect(0x11, at, 4 * KIB)
    image_check(image)


def test_messages(dm, tmp_path):
    """Unknown ones and wrong arguments are errors; while suspended they return."""
    image = image_create(tmp_path / "image", 8 * MIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        for words in (["nonsense"], ["commit", "now"], ["drop_cache", "all"]):
            assert disk.message(*words, check=False).returncode, words
        disk.write(0x11, 0, 64 * KIB)
        dm.suspend("q")
        for word in ("commit", "drop_cache"):
            disk.message(word, check=False)
        dm.resume("q")
        disk.expect(0x11, 0, 64 * KIB)
        assert disk.status()["mode"] == "rw"
    image_check(image)


# ---- life cycle ----

def test_many_cycles(dm, bdev):
    image = image_create(bdev(64 * MIB), 32 * MIB)
    for i in range(10):
        with Attached(dm, f"qcow2:{image}") as disk:
            disk.write(i + 1, (i * 64 + 13) * KIB, 70 * KIB)
    image_check(image)
    qemu_io(image, "read -P 10 589k 70k")


@pytest.mark.parametrize("storage", ["bdev", "xfs"])
def test_suspended_image_is_whole(dm, bdev, filesystem, storage):
    """While suspended the image on the storage is complete and clean."""
    image = image_create(Place(storage, bdev, filesystem)("image"), 64 * MIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        disk.write(0x11, 5 * MIB, 5 * MIB)
        disk.write(0x22, 33 * MIB, KIB)
        dm.suspend("q")
        sync_caches()
        done = run("qemu-img", "check", "-U", "-f", "qcow2", image, check=False)
        said = run("qemu-io", "-r", "-U", "-f", "qcow2", "-c", "read -P 0x11 5M 5M", "-c",
                   "read -P 0x22 33M 1k", image, check=False)
        dm.resume("q")
        assert done.returncode == 0, done.stdout + done.stderr
        assert said.returncode == 0 and "failed" not in said.stdout, said.stdout + said.stderr
    image_check(image)


@pytest.mark.parametrize("storage", [pytest.param("bdev", marks=pytest.mark.full), "ext4"])
def test_external_snapshot(dm, bdev, filesystem, spawn, tmp_path, storage):
    """A new overlay on top under I/O: the old top stays as it was, and others may read it."""
    place = Place(storage, bdev, filesystem)
    golden = image_create(place("golden"), 64 * MIB)
    qemu_io(golden, "write -P 0x11 0 64M")
    old = image_create(place("old"), backing=golden)
    new = place("new")
    fio = ["fio", "--name=j", "--filename=/dev/mapper/q", "--direct=1", "--ioengine=libaio",
           "--iodepth=16", "--rw=randwrite", "--bs=4k", "--offset=32m", "--size=16m",
           "--verify=crc32c", "--verify_fatal=1", "--randseed=7", f"--aux-path={tmp_path}"]
    chain = [f"qcow2:{old}", f"qcow2:{golden}"]
    with Attached(dm, chain) as disk:
        disk.write(0x22, 4 * MIB, 8 * MIB)
        writer = spawn(*fio, "--do_verify=0", "--rate_iops=1000")
        time.sleep(1)
        run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", old, "-F", "qcow2", new,
            64 * MIB)
        dm.reload("q", dm.qcow2_table([f"qcow2:{new}", *chain], sectors=64 * MIB // SECTOR))
        assert writer.poll() is None, "there was no I/O to do it under"
        sync_caches()
        before = checksum(old)
        disk.write(0x33, 8 * MIB, 8 * MIB)
        disk.discard(4 * MIB, MIB)
        assert writer.wait(timeout=120) == 0
        # It is locked as any backing file is: to be read by all, and written by nobody.
        image_check(old)
        with Attached(dm, chain, "read_only", name="r") as below:
            below.expect(0x22, 4 * MIB, 8 * MIB)
        done = run("qemu-io", "-f", "qcow2", "-c", "write 0 4k", old, check=False)
        assert done.returncode and "lock" in done.stderr, done.stderr
    sync_caches()
    assert checksum(old) == before
    for image in (golden, old, new):
        image_check(image)
    qemu_io(old, "read -P 0x11 0 4M", "read -P 0x22 4M 8M", "read -P 0x11 12M 20M")
    qemu_io(new, "read -P 0x11 0 4M", "read -P 0 4M 1M", "read -P 0x22 5M 3M",
            "read -P 0x33 8M 8M", "read -P 0x11 16M 16M", "read -P 0x11 48M 16M")
    with Attached(dm, [f"qcow2:{new}", *chain]):
        run(*fio, "--verify_only=1", timeout=240)


def test_read_only(dm, bdev):
    image = image_create(bdev(64 * MIB), 8 * MIB)
    qemu_io(image, "write -P 0x11 0 8M")
    with Attached(dm, f"qcow2:{image}", "read_only") as disk:
        for argv in (["dd", "if=/dev/zero", f"of={disk.path}", "bs=4k", "count=1", "oflag=direct"],
                     ["blkdiscard", disk.path], ["blkdiscard", "-z", disk.path]):
            assert run(*argv, check=False).returncode, argv
        disk.expect(0x11, 0, 8 * MIB)
    image_check(image)


def test_read_only_storage(dm, bdev, cleanup):
    """A read-only block device is refused for writing and works with read_only."""
    image = image_create(bdev(64 * MIB), 8 * MIB)
    run("blockdev", "--setro", image)
    cleanup(run, "blockdev", "--setrw", image)
    assert re.search("read-only|EROFS|EACCES|-30|-13",
                     refused(dm, [f"qcow2:{image}"], sectors=SECTORS))
    with Attached(dm, f"qcow2:{image}", "read_only") as disk:
        disk.expect(0, 0, MIB)


def test_removal_waits_for_the_last_close(dm, tmp_path):
    """In use it is not removed; deferred, the last close does it and leaves a clean image."""
    image = image_create(tmp_path / "image", 8 * MIB)
    device = dm.create_qcow2("q", [f"qcow2:{image}"])
    with Disk(device) as disk:
        assert run("dmsetup", "remove", "q", check=False).returncode
        dm.setup("remove", "--deferred", "q")
        disk.write(0x11, 0, 64 * KIB)
    wait_for(lambda: run("dmsetup", "info", "q", check=False).returncode, what="the removal")
    run("dmsetup", "mknodes")
    dm.names.remove("q")
    image_check(image)
    qemu_io(image, "read -P 0x11 0 64k")


@pytest.mark.parametrize("storage", [pytest.param("bdev", marks=pytest.mark.core), "ext4", "xfs"])
def test_fio_verify(dm, bdev, filesystem, tmp_path, storage):
    """Concurrent verified jobs, and the checksums once more from a new device."""
    image = image_create(Place(storage, bdev, filesystem)("image"), 96 * MIB)
    jobs = []
    for n, job in enumerate((["--rw=randwrite", "--bs=4k"], ["--rw=write", "--bs=128k"],
                             ["--rw=randwrite", "--bssplit=512/30:8k/40:96k/30", "--bs_unaligned=0",
                              "--blockalign=512"])):
        jobs += [f"--name=j{n}", *job, f"--offset={n * 32}m", "--size=32m", "--io_size=8m"]
    common = ["--filename=/dev/mapper/q", "--direct=1", "--ioengine=libaio", "--iodepth=16",
              "--verify=crc32c", "--verify_fatal=1", "--randseed=5", "--fsync=64",
              f"--aux-path={tmp_path}"]
    with Attached(dm, f"qcow2:{image}"):
        run("fio", *common, "--do_verify=1", *jobs, timeout=240)
    image_check(image)
    with Attached(dm, f"qcow2:{image}"):
        run("fio", *common, "--verify_only=1", *jobs, timeout=240)


# ---- limits, discard ----

def test_limits(dm, bdev):
    for size in (4 * KIB, 64 * KIB, 2 * MIB):
        image = image_create(bdev(64 * MIB), 32 * MIB, cluster_size=size)
        with Attached(dm, f"qcow2:{image}") as disk:
            assert int(disk.limit("discard_granularity")) == size
            assert int(disk.limit("discard_max_bytes")) >= size
            assert int(disk.limit("write_zeroes_max_bytes")) >= size
            assert int(disk.limit("logical_block_size")) == 512
            # flushes must come through whatever the storage has for a cache
            assert disk.limit("write_cache") == "write back"
            assert size_of(disk.path) == 32 * MIB


def host_blocks(path):
    sync_caches()
    return os.stat(path).st_blocks * SECTOR


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_discard_frees_file_space(dm, filesystem, fstype):
    """du shrinks, QEMU sees the clusters free, and they are used again."""
    image = image_create(os.path.join(filesystem(fstype), "image"), 64 * MIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        disk.write(0x11, 0, 48 * MIB)
        full = host_blocks(image)
        assert full >= 48 * MIB
        disk.discard(8 * MIB, 32 * MIB)
        disk.commit()
        wait_for(lambda: host_blocks(image) <= full - 30 * MIB, step=0.3, what="du to shrink")
        disk.expect(0x11, 0, 8 * MIB)
        disk.expect(0, 8 * MIB, 32 * MIB)
        disk.expect(0x11, 40 * MIB, 8 * MIB)
        length = os.path.getsize(image)
        disk.write(0x22, 8 * MIB, 24 * MIB)
        disk.commit()
        assert os.path.getsize(image) <= length + 16 * MIB, "freed clusters are not used again"
    image_check(image)
    here = [e for e in image_map(image) if e["start"] <= 36 * MIB < e["start"] + e["length"]]
    assert not here[0]["data"] and here[0]["zero"]
    qemu_io(image, "read -P 0x11 0 8M", "read -P 0x22 8M 24M", "read -P 0 32M 8M",
            "read -P 0x11 40M 8M")


@pytest.mark.parametrize("passdown", [True, False])
def test_discard_reaches_the_device(dm, bdev, tmp_path, passdown):
    """On a thin block device: its own storage shrinks, unless no_discard_passdown says otherwise."""
    loop = bdev(128 * MIB, "loop")
    storage = next(p for p in tmp_path.iterdir() if p.name.startswith("loop"))
    image_create(loop, 64 * MIB)
    with Attached(dm, f"qcow2:{loop}", *([] if passdown else ["no_discard_passdown"])) as disk:
        disk.write(0x11, 0, 32 * MIB)
        disk.flush()
        full = host_blocks(storage)
        assert full >= 32 * MIB
        disk.discard(0, 24 * MIB)
        disk.commit()
        if passdown:
            wait_for(lambda: host_blocks(storage) <= full - 20 * MIB, what="the storage to shrink")
        else:
            time.sleep(2)
            assert host_blocks(storage) > full - MIB
        disk.expect(0, 0, 24 * MIB)
        disk.expect(0x11, 24 * MIB, 8 * MIB)
    image_check(loop)


def discards(device):
    """How many discards a device has completed."""
    return int(sysfs(device, "stat").split()[11])


@pytest.mark.core
def test_freed_clusters_are_put_together(dm, bdev):
    """What the guest has written here and there and discards lies side by side in the storage: the
    storage gets few discards, not one for each cluster."""
    loop = bdev(256 * MIB, "loop")
    image_create(loop, 128 * MIB)
    clusters = list(range(2048))
    random.Random(5).shuffle(clusters)
    with Attached(dm, f"qcow2:{loop}") as disk:
        for at in clusters:
            disk.write(0x11, at * 64 * KIB, 64 * KIB)
        disk.commit()
        full, before = disk.status()["allocated"], discards(loop)
        disk.discard(0, 128 * MIB)
        disk.commit()
        wait_for(lambda: disk.status()["allocated"] < full - 2000,
                 what="discarded clusters to be free")
        assert 1 <= discards(loop) - before <= 16
        disk.expect(0, 0, 128 * MIB)
    image_check(loop)


def test_shared_cluster_does_not_keep_its_neighbours(dm, filesystem, tmp_path):
    """Compressed clusters share host clusters.  Where one of a range stays in use, the others of the
    range are given back all the same."""
    raw = tmp_path / "raw"
    random.seed(6)
    with open(raw, "wb") as f:
        for _ in range(256):
            f.write(random.randbytes(40 * KIB).ljust(64 * KIB, b"\0"))
    image = os.path.join(filesystem("xfs"), "image")
    run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, image)
    with Attached(dm, f"qcow2:{image}") as disk:
        full, before = host_blocks(image), disk.status()["allocated"]
        assert full >= 10 * MIB
        for at in range(0, 16 * MIB, 64 * KIB):
            if at % MIB:        # one in sixteen stays
                disk.discard(at, 64 * KIB)
        disk.commit()
        wait_for(lambda: disk.status()["allocated"] <= before - 256 * 40 // 64 // 2,
                 what="discarded clusters to be free")
        freed = (before - disk.status()["allocated"]) * 64 * KIB
        print(freed, "bytes freed,", full - host_blocks(image), "given back")
        assert freed - 128 * KIB <= full - host_blocks(image)
    image_check(image)
    qemu_io(image, "read -P 0 64k 960k")


def test_discard_no_unref(dm, filesystem):
    """Clusters stay reserved: no fragmentation, and the data is gone all the same."""
    image = image_create(os.path.join(filesystem("xfs"), "image"), 32 * MIB)
    with Attached(dm, f"qcow2:{image}", "discard_no_unref") as disk:
        disk.write(0x11, 0, 16 * MIB)
        disk.commit()
        before = disk.status()["allocated"]
        disk.discard(0, 8 * MIB)
        disk.commit()
        assert disk.status()["allocated"] >= before
        disk.expect(0, 0, 8 * MIB)
        disk.expect(0x11, 8 * MIB, 8 * MIB)
    image_check(image)
    kept = [e for e in image_map(image) if e["zero"] and e["start"] < 8 * MIB and "offset" in e]
    assert kept, "the clusters are not kept"
    qemu_io(image, "read -P 0 0 8M", "read -P 0x11 8M 8M")


def test_discard_on_v2_with_backing(dm, bdev):
    """There is no way to say 'zero' in such an image: nothing is discarded."""
    base = image_create(bdev(64 * MIB), 8 * MIB)
    qemu_io(base, "write -P 0xbb 0 8M")
    top = image_create(bdev(64 * MIB), backing=base, compat="0.10")
    with Attached(dm, [f"qcow2:{top}", f"qcow2:{base}"]) as disk:
        disk.write(0x11, 0, MIB)
        disk.discard(0, 8 * MIB)
        disk.expect(0x11, 0, MIB)
        disk.expect(0xbb, MIB, 7 * MIB)
        # but write-zeroes must zero
        disk.zeroout(0, 3 * MIB)
        disk.expect(0, 0, 3 * MIB)
        disk.expect(0xbb, 3 * MIB, 5 * MIB)
    image_check(top)
    qemu_io(top, "read -P 0 0 3M", "read -P 0xbb 3M 5M")


def test_write_zeroes_takes_no_space(dm, filesystem):
    """On a file: zeroing 32 MiB of a new disk allocates next to nothing, and frees what was there
    unless the caller wants it kept."""
    image = image_create(os.path.join(filesystem("ext4"), "image"), 64 * MIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        disk.zeroout(0, 32 * MIB)
        assert host_blocks(image) < 4 * MIB
        disk.write(0x11, 0, 16 * MIB)
        full = host_blocks(image)
        disk.fallocate(PUNCH_HOLE, 0, 8 * MIB)
        disk.commit()
        wait_for(lambda: host_blocks(image) <= full - 7 * MIB, step=0.3, what="du to shrink")
        kept = disk.status()["allocated"]
        disk.fallocate(ZERO_RANGE, 8 * MIB, 8 * MIB)
        disk.commit()
        assert disk.status()["allocated"] >= kept, "NOUNMAP gave clusters back"
        disk.expect(0, 0, 32 * MIB)
    image_check(image)
    qemu_io(image, "read -P 0 0 64M")


def test_chain_with_the_smallest_cache(dm, bdev, filesystem, tmp_path):
    """Every table is evicted over and over."""
    chain = Chain(Place("bdev", bdev, filesystem), tmp_path, "qcow2", 48 * MIB, cluster=4 * KIB)
    with Attached(dm, chain.layers, "l2_cache_kib 1") as disk:
        disk.close()
        exercise(dm, "q", chain, 5, 400)
        status = disk.status()
        assert status["cache_kib"] <= status["cache_max_kib"]
        verify_device(disk.path, chain.model)
    chain.verify()


def test_zeroes_over_more_than_one_request(dm, bdev):
    """A range is split where no cluster is: one that is split would stay allocated."""
    image = image_create(bdev(64 * MIB), 10 << 30)
    edge = 4 << 30
    with Attached(dm, f"qcow2:{image}") as disk:
        for what in (disk.fallocate, None):
            disk.write(0x11, edge - MIB, 2 * MIB)
            if what:
                disk.fallocate(PUNCH_HOLE, 0, 9 << 30)
            else:
                disk.discard(0, 9 << 30)
            disk.expect(0, edge - MIB, 2 * MIB)
            for name in ("discard_max_hw_bytes", "write_zeroes_max_bytes"):
                assert int(disk.limit(name)) % (64 * KIB) == 0, name
            disk.commit()
            wait_for(lambda: disk.status()["allocated"] < 140, what="the clusters to be freed")
    assert not any(part["data"] for part in image_map(image))
    image_check(image)


def test_stable_pages_of_a_file_system(dm, cleanup, bdev, tmp_path):
    """A file on storage that wants pages not to change while they are written: nor may ours."""
    dev = bdev(64 * MIB)
    with open(f"/sys/block/{os.path.basename(dev)}/queue/stable_writes", "w") as f:
        f.write("1")
    mounted = Mount(dev, "ext4", tmp_path / "stable")
    cleanup(mounted.remove)
    image = image_create(f"{mounted.path}/image", 16 * MIB)
    plain = image_create(tmp_path / "plain", 16 * MIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        assert disk.limit("stable_writes") == "1"
    with Attached(dm, f"qcow2:{plain}") as disk:
        assert disk.limit("stable_writes") == "0"
