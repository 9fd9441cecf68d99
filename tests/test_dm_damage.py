# SPDX-License-Identifier: GPL-2.0-or-later
"""Damaged images: a clear error at load, or EIO where the damage is, and nothing worse.

One field at a time. Whatever is damaged: the kernel's log stays clean (the fixture `watched`), what
can be read is right, no guest write lands in metadata, and the device goes away when told to.
"""
import contextlib
import errno
import os
import random
import re
import struct
import sys
import time

import pytest

from dmqcow2 import Attached, Disk, refused
from helpers import (MIB, SECTOR, KernelLog, image_check, image_create, qemu_io, run,
                     wait_for)

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "damage"))
from template import CLUSTER, COPIED, GUEST_CLUSTERS, OFFSET, SIZE, Image, Template  # noqa: E402

HUGE = 1 << 62
FILL = 0xee
EVEN, ODD = 4, 5        # a guest cluster with data and one without


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return Template(
        tmp_path_factory.mktemp("damage") / "template",
        lambda path, size: image_create(path, size, cluster_size=CLUSTER),
        lambda path, at, length, byte: qemu_io(path, f"write -P {byte} {at} {length}"))


@pytest.fixture
def image(template, tmp_path):
    return template.copy(tmp_path / "image")


class Clusters(Disk):
    """Cluster-wise I/O that tells EIO from data."""

    def get(self, cluster):
        """The cluster's byte if all are the same, None on EIO."""
        if self.eio(cluster * CLUSTER, CLUSTER):
            return None
        data = self.read(cluster * CLUSTER, CLUSTER)
        assert data.count(data[0]) == CLUSTER, f"guest cluster {cluster} is a mixture"
        return data[0]

    def put(self, cluster, length=CLUSTER):
        """False on an error, which can be EIO or, with refcounts gone, ENOSPC only."""
        try:
            self.write(FILL, cluster * CLUSTER, length)
            return True
        except OSError as e:
            assert e.errno in (errno.EIO, errno.ENOSPC), e
            return False

    def sync(self):
        with contextlib.suppress(OSError):
            self.flush()


def attach(dm, image, sectors=SIZE // SECTOR, features=()):
    """The device's path, or None if the image is refused; a refusal must give its reason."""
    log = KernelLog()
    done = dm.create("q", dm.qcow2_table([f"qcow2:{image.path}"], features, sectors), check=False)
    said = "\n".join(log.read())
    log.close()
    if not done.returncode:
        return "/dev/mapper/q"
    assert re.search(r"qcow2: .", said), f"refused without a reason: {said}"
    assert run("dmsetup", "info", "q", check=False).returncode
    return None


def survey(device):
    """Read every guest cluster: a list of bytes, None where there is EIO."""
    with Clusters(device) as disk:
        return [disk.get(c) for c in range(GUEST_CLUSTERS)]


def survey_scribbled(device):
    """Where clusters may be mixtures, after scribble() say, of which any write may have failed: old,
    new or zero, nothing else."""
    with Clusters(device) as disk:
        for c in range(GUEST_CLUSTERS):
            if not disk.eio(c * CLUSTER, CLUSTER):
                found = set(disk.read(c * CLUSTER, CLUSTER))
                assert found <= {FILL, 0, Template.byte(c)}, f"guest cluster {c} holds {found}"


def expect_right(found, allowed_errors=()):
    for cluster, byte in enumerate(found):
        if byte is None:
            assert cluster in allowed_errors, f"guest cluster {cluster} gives EIO"
        elif cluster not in allowed_errors:
            assert byte == Template.byte(cluster), f"guest cluster {cluster} holds {byte:#x}"


def scribble(device):
    """Write all over the disk, in two sizes, errors or not; then flush."""
    with Clusters(device) as disk:
        for length in (4096, CLUSTER):
            for cluster in range(GUEST_CLUSTERS):
                disk.put(cluster, length)
        disk.sync()


def no_guest_data_in(image, places):
    """None of the metadata clusters holds what the guest wrote."""
    with open(image.path, "rb") as f:
        for name, at in places.items():
            f.seek(at)
            assert bytes([FILL]) * 512 not in f.read(CLUSTER), f"a guest write reached the {name}"


def survive(dm, image, metadata, allowed_errors=range(GUEST_CLUSTERS)):
    """Load it if it loads, read it, write it, remove it."""
    device = attach(dm, image)
    if not device:
        return False
    expect_right(survey(device), allowed_errors)
    scribble(device)
    survey_scribbled(device)
    dm.message("q", "commit", check=False)
    dm.remove("q")
    no_guest_data_in(image, metadata)
    return True


def test_template(dm, image, template):
    """The undamaged image loads, reads as told and stays clean: else nothing below says anything."""
    metadata = image.metadata()
    assert len(set(metadata.values())) == 5
    device = attach(dm, image)
    expect_right(survey(device))
    scribble(device)
    assert survey(device) == [FILL] * GUEST_CLUSTERS
    dm.remove("q")
    no_guest_data_in(image, metadata)
    image_check(image.path)
    with pytest.raises(AssertionError):
        no_guest_data_in(image, {"data": image.read(image.l2_at(EVEN)) & OFFSET})


MUST_REFUSE = {
    "magic": [0, 0x514649fa, 0xffffffff],
    "version": [0, 1, 4, 0xffffffff],
    "cluster_bits": [0, 1, 8, 22, 31, 32, 63, 64, 255, 0xffffffff],
    "crypt_method": [1, 2, 3, 0xffffffff],
    "l1_size": [0, 0xffffffff, (32 << 20) // 8 + 1],
    "l1_offset": [0, 512, 3 * CLUSTER + 8, 1 << 30, HUGE, (1 << 64) - CLUSTER],
    "refcount_offset": [0, 512, 1 << 30, HUGE, (1 << 64) - CLUSTER],
    "refcount_clusters": [0, 129, 0xffffffff],
    "nb_snapshots": [1, 65537, 0xffffffff],
    "refcount_order": [7, 8, 31, 32, 64, 0xffffffff],
    "header_length": [0, 72, 103, 105, CLUSTER + 8, 0xfffffff8, 0xffffffff],
    "incompatible": [1 << b for b in (1, 2, 3, 4, 5, 31, 32, 63)],
    "backing_offset": [8, CLUSTER, HUGE, (1 << 64) - 1],
}


@pytest.mark.parametrize("field", MUST_REFUSE)
def test_header_field(dm, image, template, field):
    good = image.field(field)
    for value in MUST_REFUSE[field]:
        image.set_field(field, value)
        if field == "backing_offset":
            image.set_field("backing_size", 16)
        assert attach(dm, image) is None, f"{field} = {value:#x} was accepted"
    image.set_field(field, good)
    image.set_field("backing_size", 0)
    assert attach(dm, image)
    dm.remove("q")
    image_check(image.path)


@pytest.mark.parametrize("sectors", [1, SIZE // SECTOR - 1, SIZE // SECTOR, (1 << 46) // SECTOR,
                                     (1 << 63) // SECTOR - 1])
def test_disk_size(dm, image, sectors):
    """More than the L1 table covers, or other than the table line says."""
    metadata = image.metadata()
    for size in (0, 1, SECTOR - 1, SIZE - 1, SIZE + 1, (1 << 46), (1 << 56), (1 << 63), (1 << 64) - 512):
        image.set_field("size", size)
        if attach(dm, image, sectors):
            assert sectors * SECTOR <= size
            dm.remove("q")
    no_guest_data_in(image, metadata)


def test_backing_name(dm, image):
    """Lengths and places of the name that do not fit."""
    for at, length in ((512, 1024), (512, 0xffffffff), (CLUSTER - 4, 8), (CLUSTER - 4, 1023),
                       (104, 1 << 31)):
        image.set_field("backing_offset", at)
        image.set_field("backing_size", length)
        assert attach(dm, image) is None, (at, length)


def test_header_extensions(dm, image):
    """Lengths that run out of the cluster; a table of feature names that is no table."""
    start = image.field("header_length")
    kept = open(image.path, "rb").read(CLUSTER)
    for kind in (0x12345678, 0x6803f857, 0xe2792aca, 0x23852875, 0x44415441, 0x0537be77):
        for length in (0xffffffff, 0xfffffff9, 0x7fffffff, CLUSTER, CLUSTER - start - 7, 47, 1):
            image.write(start, kind, ">I")
            image.write(start + 4, length, ">I")
            if attach(dm, image):
                dm.remove("q")
    with open(image.path, "r+b") as f:
        f.write(kept)
    assert attach(dm, image)
    dm.remove("q")
    image_check(image.path)


def test_extension_without_end(dm, image):
    """Extensions up to the last byte of the cluster, with no end marker."""
    start = image.field("header_length")
    for at in range(start, CLUSTER, 8):
        image.write(at, 0x1234567800000000)
    if attach(dm, image):
        dm.remove("q")


def entries_to_try(image):
    """Values that no table entry may have, by name."""
    end = image.end()
    past = (end + CLUSTER) // CLUSTER * CLUSTER
    found = {"misaligned": COPIED | (5 * CLUSTER + 512), "past the end": COPIED | past,
             "far past the end": COPIED | 0x00ffffffffff0000, "reserved bit 56": None,
             "reserved bit 61": None, "all ones": (1 << 64) - 1}
    found.update({name: COPIED | at for name, at in image.metadata().items()})
    return found


@pytest.mark.parametrize("name", ["misaligned", "past the end", "far past the end",
                                  "reserved bit 56", "reserved bit 61", "all ones", "header",
                                  "L1 table", "refcount table", "refcount block", "L2 table"])
@pytest.mark.parametrize("table", ["L1", "L2"])
def test_table_entry(dm, image, table, name):
    """A bad entry: EIO where it is used, everything else is right, and no write goes through it.
    What only leads nowhere reads as zeroes."""
    metadata = image.metadata()
    value = entries_to_try(image)[name]
    at = image.l1_at() if table == "L1" else image.l2_at(EVEN)
    if value is None:
        value = image.read(at) | 1 << int(name.split()[-1])
    if table == "L1" and name == "L2 table":
        pytest.skip("that is what an L1 entry must point at")
    if name == "header":
        value = COPIED          # offset 0: with COPIED it is neither unallocated nor a cluster
    image.write(at, value)
    device = attach(dm, image)
    if not device:
        return
    found = survey(device)
    bad = range(GUEST_CLUSTERS) if table == "L1" else [EVEN]
    nowhere = table == "L2" and name in ("header", "past the end", "far past the end")
    expect_right(found, bad)
    assert all(found[c] == (0 if nowhere else None) for c in bad), \
        f"read through a bad {table} entry: {found}"
    if table == "L2" and not nowhere:
        with Clusters(device) as disk:
            wrote = disk.put(EVEN, 4096)
        assert not wrote, "a write through a bad entry was accepted"
    scribble(device)
    survey_scribbled(device)
    dm.remove("q")
    no_guest_data_in(image, metadata)
    assert image.field("size") == SIZE and image.field("backing_offset") == 0


def test_two_guest_clusters_on_one(dm, image):
    """Both entries COPIED, refcount 1: cannot be told from one good entry, but must not go wrong."""
    image.write(image.l2_at(ODD), image.read(image.l2_at(EVEN)))
    metadata = image.metadata()
    assert survive(dm, image, metadata) in (True, False)


def test_l2_table_used_twice(dm, template, tmp_path):
    """Two L1 entries with one L2 table: a write through one would change the other."""
    path = tmp_path / "image"
    image_create(path, SIZE * 512, cluster_size=CLUSTER)
    qemu_io(path, "write -P 0x11 0 64k")
    image = Image(path)
    image.write(image.l1_at(1), image.read(image.l1_at(0)))
    device = attach(dm, image, SIZE * 512 // SECTOR)
    if device:
        with Clusters(device) as disk:
            for cluster in (0, 8192):
                disk.get(cluster)
                disk.put(cluster + 1)
                disk.get(cluster + 1)
            disk.sync()
        dm.remove("q")


def test_copied_bits(dm, template, tmp_path):
    """COPIED where it does not belong, and missing where it does: data stays right."""
    image = template.copy(tmp_path / "a")
    metadata = image.metadata()
    image.write(image.l2_at(EVEN), image.read(image.l2_at(EVEN)) & ~COPIED)
    image.write(image.l1_at(), image.read(image.l1_at()) & ~COPIED)
    assert survive(dm, image, metadata, ()), "a missing COPIED bit is no reason to refuse"


@pytest.mark.parametrize("value", [0, 2, *(pytest.param(v, marks=pytest.mark.full)
                                           for v in (3, 0xffff))])
@pytest.mark.parametrize("what", ["data", "header", "L1 table", "refcount table", "refcount block",
                                  "L2 table", "all"])
def test_refcounts(dm, image, what, value):
    """Wrong refcounts: no metadata is given to a guest to write to, whatever they say."""
    metadata = image.metadata()
    if what == "all":
        for host in range(image.end() // CLUSTER):
            image.write(image.refcount_at(host), value, ">H")
    else:
        at = image.read(image.l2_at(EVEN)) & OFFSET if what == "data" else metadata[what]
        image.write(image.refcount_at(at // CLUSTER), value, ">H")
    survive(dm, image, metadata)


@pytest.mark.parametrize("value", [0, 512, 1 << 40, HUGE, (1 << 64) - 1, "header", "L1 table",
                                   "refcount table", "L2 table"])
def test_refcount_table_entry(dm, image, value):
    """The only refcount block is lost or elsewhere."""
    metadata = image.metadata()
    image.write(image.field("refcount_offset"),
                metadata[value] if isinstance(value, str) else value)
    survive(dm, image, metadata, ())


def big_clusters(path):
    """An image of 2 MiB clusters, and where its refcount table and the end of its file are."""
    image = Image(image_create(path, SIZE, cluster_size=2 * MIB))
    return image, image.field("refcount_offset"), -(-os.path.getsize(path) // (2 * MIB)) * 2 * MIB


def test_refcounts_beyond_any_disk(dm, tmp_path):
    """A block counts clusters where there can be none: the memory to count them along is not spent."""
    image, table, end = big_clusters(tmp_path / "image")
    image.write(table + 65536 * 8, end)
    image.write(end, 1, ">H")
    os.truncate(image.path, end + 2 * MIB)
    said = refused(dm, [f"qcow2:{image.path}"], sectors=SIZE // SECTOR)
    assert "Refcount blocks for more clusters than supported" in said


@pytest.mark.full
def test_refcounts_without_end(dm, spawn, kernel_log, tmp_path):
    """A sparse file names more refcount blocks than anybody would wait for: who loads it can be killed."""
    image, table, end = big_clusters(tmp_path / "image")
    blocks = 200_000
    with open(image.path, "r+b") as f:
        f.seek(table + 8)
        for n in range(blocks):
            f.write(struct.pack(">Q", end + n * 2 * MIB))
        f.truncate(end + blocks * 2 * MIB)
    loading = spawn("dmsetup", "create", "q", "--table",
                    dm.qcow2_table([f"qcow2:{image.path}"], (), SIZE // SECTOR))
    time.sleep(2)
    assert loading.poll() is None
    loading.kill()
    loading.wait(timeout=100)
    wait_for(lambda: kernel_log.grep("Killed while the image was opened"), what="the refusal",
             timeout=100)
    run("dmsetup", "remove", "q")


def test_no_refcounts_where_the_tables_are(dm, tmp_path):
    """Version 2, which cannot be marked corrupt: all that QEMU can mend it from is left alone."""
    image = Image(tmp_path / "image")
    image_create(image.path, SIZE, compat="0.10", cluster_size=CLUSTER)
    qemu_io(image.path, f"write -P 0x55 0 {CLUSTER}")
    places = image.metadata().values()
    image.write(image.field("refcount_offset"), 0)
    tables = [image.read(at, f"{CLUSTER}s") for at in places]
    assert "Refcounts are missing" in refused(dm, [f"qcow2:{image.path}"], sectors=SIZE // SECTOR)
    with Attached(dm, f"qcow2:{image.path}", "read_only") as disk:
        disk.expect(0x55, 0, CLUSTER)
    assert [image.read(at, f"{CLUSTER}s") for at in places] == tables
    run("qemu-img", "check", "-f", "qcow2", "-r", "all", image.path)
    image_check(image.path)
    qemu_io(image.path, f"read -P 0x55 0 {CLUSTER}")


@pytest.mark.parametrize("what", ["header", "L1 table", "refcount table", "refcount block",
                                  "L2 table", "all"])
def test_metadata_without_refcount(dm, image, what):
    """Told when the image is attached to be written, and not by the guest's first write."""
    if what == "all":
        image.write(image.field("refcount_offset"), 0)
    else:
        image.write(image.refcount_at(image.metadata()[what] // CLUSTER), 0, ">H")
    said = refused(dm, [f"qcow2:{image.path}"], sectors=SIZE // SECTOR)
    assert re.search("Refcounts are missing: repair the image .qcow2attach check --repair", said)
    assert f"{5 if what == 'all' else 1} of 5 clusters of metadata" in said \
        or what == "all" and "of 4 clusters" in said
    device = attach(dm, image, features=["read_only"])
    expect_right(survey(device))
    dm.remove("q")
    run("qemu-img", "check", "-q", "-f", "qcow2", "-r", "all", image.path, check=False)
    assert survive(dm, image, image.metadata(), ())
    image_check(image.path)


def test_overlapping_tables(dm, template, tmp_path):
    """The L1 table in the place of something else."""
    for name in ("header", "refcount table", "refcount block", "L2 table"):
        image = template.copy(tmp_path / "image")
        metadata = image.metadata()
        image.set_field("l1_offset", metadata[name])
        survive(dm, image, metadata)


def test_truncated(dm, template, tmp_path):
    """The file ends early, at load."""
    for length in (0, 1, 511, 104, 4096, CLUSTER, 3 * CLUSTER, 3 * CLUSTER + 8, 5 * CLUSTER + 512,
                   7 * CLUSTER + 1):
        image = template.copy(tmp_path / "image")
        metadata = {name: at for name, at in image.metadata().items() if at + CLUSTER <= length}
        os.truncate(image.path, length)
        device = attach(dm, image)
        if length < 3 * CLUSTER:
            assert device is None
        if device:
            # what is cut off of a cluster reads as zeroes
            survey_scribbled(device)
            scribble(device)
            dm.remove("q")
            no_guest_data_in(image, metadata)


def test_attention_and_corrupt_bit(dm, image):
    """The first bad entry met sets the corrupt bit, says so in the status, and stops writing."""
    image.write(image.l2_at(EVEN), COPIED)
    image.write(image.l2_at(EVEN + 2), COPIED | image.field("l1_offset"))
    device = attach(dm, image)
    if not device:
        return
    survey(device)
    with Clusters(device) as disk:
        disk.put(EVEN + 2)
    status = dm.qcow2_status("q")
    assert "corrupt" in status["attention"], status
    dm.remove("q")
    assert image.field("incompatible") & 2, "the corrupt bit is not set"
    assert "corrupt" in refused(dm, [f"qcow2:{image.path}"], sectors=SIZE // SECTOR)
    assert run("qemu-img", "check", "-f", "qcow2", image.path, check=False).returncode == 2


@pytest.mark.full
@pytest.mark.parametrize("seed", range(40))
def test_random_damage(dm, image, seed):
    """Any bytes of any metadata cluster, many at once."""
    rng = random.Random(seed)
    metadata = image.metadata()
    places = list(metadata.values())
    for _ in range(rng.randrange(1, 12)):
        at = rng.choice(places) + rng.randrange(0, 300)
        if at < 8:
            continue
        image.write(at, rng.choice((0, 1, 0xff, rng.randrange(256))), "B")
    # the layout may be another one now: only that nothing breaks
    device = attach(dm, image)
    if not device:
        return
    with Clusters(device) as disk:
        for cluster in range(GUEST_CLUSTERS):
            with contextlib.suppress(AssertionError):   # a mixture: another cluster size, say
                disk.get(cluster)
            disk.put(cluster)
        disk.sync()
    dm.remove("q")
