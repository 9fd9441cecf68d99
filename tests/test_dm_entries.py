# SPDX-License-Identifier: GPL-2.0-or-later
"""Table entries and ends of storage that no program of ours makes, with QEMU as the judge.

What QEMU reads and its check calls clean is read, and written, here too. What is damaged may give an
error where QEMU is more lenient, but never other data, and only where the damage is.
"""
import errno
import itertools
import os
import re
import struct
import sys

import pytest

from dmqcow2 import KIB, Attached, refused
from helpers import MIB, SECTOR, Loop, image_check, image_create, qemu_io, run

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "damage"))
from template import CLUSTER, COPIED, GUEST_CLUSTERS, OFFSET, SIZE, Image, Template  # noqa: E402

COMPRESSED, ZERO = 1 << 62, 1
FILL = 0xee
VICTIM = 4              # the guest cluster whose entry is tried, one with data
AT, LENGTH = VICTIM * CLUSTER + 8 * KIB, 4 * KIB    # what is written of it


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return Template(
        tmp_path_factory.mktemp("entries") / "template",
        lambda path, size: image_create(path, size, cluster_size=CLUSTER),
        lambda path, at, length, byte: qemu_io(path, f"write -P {byte} {at} {length}"))


@pytest.fixture
def image(template, tmp_path):
    return template.copy(tmp_path / "image")


def offsets(image):
    """name -> where an entry may lead."""
    end = -(-image.end() // CLUSTER) * CLUSTER
    return {"none": 0, "its own": image.read(image.l2_at(VICTIM)) & OFFSET,
            "misaligned": (image.read(image.l2_at(VICTIM)) & OFFSET) + SECTOR,
            "behind the end": end + CLUSTER, "far behind the end": 1 << 54,
            "metadata": image.metadata()["L2 table"]}


def entries(image):
    """(name, value) of all entries to be tried."""
    for (where, at), flags in itertools.product(offsets(image).items(), itertools.product((0, 1),
                                                                                        repeat=3)):
        copied, zero, compressed = flags
        words = [w for w, on in zip(("copied", "zero", "compressed"), flags) if on]
        yield " ".join([*words, where]), at | copied * COPIED | zero * ZERO | compressed * COMPRESSED
    for where, copied, bit in itertools.product(("none", "its own"), (0, 1), (1, 8, 56, 61)):
        yield f"reserved bit {bit}, copied {copied}, {where}", \
            offsets(image)[where] | copied * COPIED | 1 << bit


def qemu(path, *commands, read_only=False):
    """Whether all of qemu-io's commands succeed; patterns included."""
    done = run("qemu-io", *(["-r"] if read_only else []), "-f", "qcow2",
               *itertools.chain(*(("-c", c) for c in commands)), path, check=False)
    return done.returncode == 0 and "fail" not in done.stdout.lower()


def is_clean(path):
    return run("qemu-img", "check", "-q", "-f", "qcow2", path, check=False).returncode in (0, 3)


def cluster_of(disk, cluster):
    """The byte that a guest cluster is full of; None on EIO."""
    try:
        data = disk.read(cluster * CLUSTER, CLUSTER)
    except OSError as e:
        assert e.errno == errno.EIO
        return None
    assert data.count(data[0]) == CLUSTER, f"guest cluster {cluster} is a mixture"
    return data[0]


def try_write(disk):
    try:
        disk.write(FILL, AT, LENGTH)
        disk.flush()
        return True
    except OSError as e:
        assert e.errno in (errno.EIO, errno.ENOSPC)
        return False


def written(byte):
    """qemu-io's commands that find the cluster as try_write() leaves it."""
    behind = AT + LENGTH
    end = (VICTIM + 1) * CLUSTER
    return (f"read -P {byte} {VICTIM * CLUSTER} {AT - VICTIM * CLUSTER}",
            f"read -P {FILL} {AT} {LENGTH}", f"read -P {byte} {behind} {end - behind}")


def test_entries_as_qemu_reads_them(dm, template, tmp_path):
    """Reading a cluster, and writing to it, through any kind of entry."""
    works = set()
    for name, value in entries(Image(template.path)):
        image = template.copy(tmp_path / "image")
        image.write(image.l2_at(VICTIM), value)
        clean = is_clean(image.path)
        theirs = template.copy(tmp_path / "theirs")
        theirs.write(theirs.l2_at(VICTIM), value)
        with Attached(dm, f"qcow2:{image.path}") as disk:
            byte = cluster_of(disk, VICTIM)     # its table is not in memory
            assert cluster_of(disk, VICTIM) == byte
            for cluster in range(GUEST_CLUSTERS):
                if cluster != VICTIM:
                    assert cluster_of(disk, cluster) == Template.byte(cluster), (name, cluster)
            wrote = try_write(disk)
        told = f"{name}: {value:#x}: reads {byte}, write {wrote}, check clean {clean}"
        print(told)
        if byte is None:
            assert not wrote, told
            assert not clean or not qemu(image.path, f"read {VICTIM * CLUSTER} {CLUSTER}",
                                         read_only=True), told
            continue
        works.add(name)
        assert qemu(theirs.path, f"read -P {byte} {VICTIM * CLUSTER} {CLUSTER}",
                    read_only=True), told
        they_wrote = qemu(theirs.path, f"write -P {FILL} {AT} {LENGTH}", *written(byte))
        assert wrote == they_wrote or (they_wrote and not clean), told
        if wrote:
            assert qemu(image.path, *written(byte), read_only=True), told
        assert is_clean(image.path) or not clean, told
    print(works)
    assert works >= {"copied none", "copied zero none", "copied behind the end", "behind the end",
                     "copied zero behind the end", "zero far behind the end", "far behind the end",
                     "copied zero its own"}


def cut(dm, bdev, image, size):
    """The image on a block device that ends after SIZE bytes of it, and how to make it longer."""
    whole = bdev(8 * MIB)
    run("dd", f"if={image.path}", f"of={whole}", "bs=64k", "conv=fsync", "oflag=direct",
        "iflag=fullblock")

    def table(size):
        return f"0 {size // SECTOR} linear {whole} 0"
    return dm.create("cut", table(size)), lambda size: dm.reload("cut", table(size))


@pytest.mark.parametrize("missing", [CLUSTER // 2 + SECTOR, 2 * CLUSTER])
def test_block_device_ends_before_the_data(dm, bdev, image, missing):
    """What a block device does not hold of a cluster reads as zeroes, and is not written."""
    last = GUEST_CLUSTERS - 2
    assert image.read(image.l2_at(last)) & OFFSET == image.end() - CLUSTER
    device, grow = cut(dm, bdev, image, image.end() - missing)
    there = max(CLUSTER - missing, 0)
    found = []
    for state in ("cold", "warm", "read only"):
        with Attached(dm, f"qcow2:{device}", *(["read_only"] if state == "read only" else [])) as disk:
            if state == "warm":
                disk.expect(0x40, 0, CLUSTER)
            found.append(disk.read(last * CLUSTER, CLUSTER))
            assert cluster_of(disk, 0) == 0x40
            if state == "warm":
                with pytest.raises(OSError):
                    disk.write(FILL, last * CLUSTER + there, 4 * KIB)
                if there:
                    disk.write(0x77, last * CLUSTER, SECTOR)
                    disk.write(Template.byte(last), last * CLUSTER, SECTOR)
    for data in found:
        assert data == bytes([Template.byte(last)]) * there + bytes(CLUSTER - there)
    assert qemu(device, *([f"read -P {Template.byte(last)} {last * CLUSTER} {there}"] if there else []),
                f"read -P 0 {last * CLUSTER + there} {CLUSTER - there}", read_only=True)
    grow(8 * MIB)
    with Attached(dm, f"qcow2:{device}") as disk:
        assert cluster_of(disk, last) == Template.byte(last)
    image_check(device)
    dm.remove("cut")


# ---- ends of tables ----

def move_refcount_table(image):
    """To the end of the file, which then ends behind the table's first entry."""
    block, old = image.refblock(), image.field("refcount_offset")
    new = -(-image.end() // CLUSTER) * CLUSTER
    image.set_field("refcount_offset", new)
    with open(image.path, "r+b") as f:
        f.seek(new)
        f.write(struct.pack(">Q", block))
    image.write(image.refcount_at(new // CLUSTER), 1, ">H")
    image.write(image.refcount_at(old // CLUSTER), 0, ">H")


def test_file_ends_inside_the_refcount_table(dm, image):
    """The rest of the table is zeroes, for QEMU and for us."""
    move_refcount_table(image)
    assert image.end() % CLUSTER == 8
    image_check(image.path)
    with Attached(dm, f"qcow2:{image.path}") as disk:
        for cluster in range(GUEST_CLUSTERS):
            assert cluster_of(disk, cluster) == Template.byte(cluster)
        for cluster in range(1, GUEST_CLUSTERS, 2):
            disk.write(FILL, cluster * CLUSTER, CLUSTER)
    image_check(image.path)
    qemu_io(image.path, f"read -P {FILL} {CLUSTER} {CLUSTER}", f"read -P 0x42 {2 * CLUSTER} {CLUSTER}")


def test_block_device_ends_inside_the_refcount_table(dm, bdev, image):
    """What would have to be written behind the end waits for a longer device."""
    move_refcount_table(image)
    device, grow = cut(dm, bdev, image, image.end() // SECTOR * SECTOR + SECTOR)
    with Attached(dm, f"qcow2:{device}", "error_if_no_space") as disk:
        assert cluster_of(disk, VICTIM) == Template.byte(VICTIM)
        disk.write(FILL, VICTIM * CLUSTER, CLUSTER)         # in place
        disk.write(FILL, CLUSTER, CLUSTER)                  # where the old table was
        with pytest.raises(OSError) as e:
            disk.write(FILL, 3 * CLUSTER, 2 * CLUSTER)
        assert e.value.errno == errno.ENOSPC
        grow(8 * MIB)
        disk.message("grown")
        disk.write(FILL, 3 * CLUSTER, CLUSTER)
        assert disk.status()["mode"] == "rw"
    image_check(device)
    qemu_io(device, *(f"read -P {FILL} {c * CLUSTER} {CLUSTER}" for c in (1, 3, VICTIM)))
    dm.remove("cut")


@pytest.mark.parametrize("size", [64 * MIB, 100 << 30])
def test_loop_device_on_a_new_image(dm, cleanup, tmp_path, size):
    """The file ends with the last entry of the L1 table, and the loop device before that."""
    path = image_create(tmp_path / "image", size)
    loop = Loop(path)
    cleanup(loop.remove)
    with Attached(dm, f"qcow2:{loop.path}", "read_only") as disk:
        disk.expect(0, 0, MIB)
        disk.expect(0, size - MIB, MIB)
    with Attached(dm, f"qcow2:{loop.path}", "error_if_no_space") as disk:
        disk.expect(0, 0, MIB)
        with pytest.raises(OSError) as e:
            disk.write(0x11, 0, CLUSTER)
        assert e.value.errno == errno.ENOSPC
        os.truncate(path, 64 * MIB)
        run("losetup", "--set-capacity", loop.path)
        disk.message("grown")
        disk.write(0x11, 0, CLUSTER)
        disk.write(0x22, size - CLUSTER, CLUSTER)
        assert disk.status()["mode"] == "rw"
    image_check(loop.path)
    qemu_io(loop.path, "read -P 0x11 0 64k", f"read -P 0x22 {size - CLUSTER} 64k")


@pytest.mark.parametrize("size", [SIZE - 1, SIZE - 511, SIZE - 513, 511])
def test_size_in_bytes(dm, image, size):
    """A disk that ends inside a sector ends before it, as it does in QEMU."""
    image.set_field("size", size)
    told = run("qemu-io", "-r", "-f", "qcow2", "-c", "length",
               image.path).stdout
    sectors = size // SECTOR
    if not sectors:
        assert "0 bytes" in told
        return
    last = sectors * SECTOR - SECTOR
    assert qemu(image.path, f"read {last} 512", read_only=True)
    assert not qemu(image.path, f"read {last} 1024", read_only=True)
    with Attached(dm, f"qcow2:{image.path}", size=sectors * SECTOR) as disk:
        disk.expect(Template.byte(last // CLUSTER), last, SECTOR)
        disk.write(FILL, last, SECTOR)
    assert image.field("size") == size
    assert qemu(image.path, f"read -P {FILL} {last} 512", read_only=True)
    image_check(image.path)


@pytest.mark.parametrize("bit", [1, 8, *range(56, 64)])
def test_reserved_bits_of_refcount_table(dm, image, bit):
    """No bit of an entry is looked over: it would stand for another place than the one used."""
    at = image.field("refcount_offset")
    image.write(at, image.read(at) | 1 << bit)
    assert not is_clean(image.path)
    for features in ((), ("read_only",)):
        said = refused(dm, [f"qcow2:{image.path}"], features, sectors=SIZE // SECTOR)
        assert re.search("Invalid L1 or refcount table entry", said)
