# SPDX-License-Identifier: GPL-2.0-or-later
"""Images go to QEMU and back, and what this module does not carry is refused by name."""
import os
import re
import struct

import pytest

from dmqcow2 import (GIB, HEADER, KIB, Attached, Chain, Disk, Place, exercise, refused, sparse,
                     tagged, verify_device)
from helpers import (MIB, SECTOR, image_check, image_compare, image_create, image_map, qemu_io, run,
                     size_of, sync_caches)


def expect(path, image):
    """What QEMU reads from an image, as a raw file."""
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, path)
    return str(path)


QEMU_IMAGES = {
    "v3": dict(compat="1.1"),
    "v2": dict(compat="0.10"),
    "4k": dict(cluster_size="4k"),
    "2M": dict(cluster_size="2M"),
    "metadata": dict(preallocation="metadata"),
    "falloc": dict(preallocation="falloc"),
    "full": dict(preallocation="full"),
    "lazy": dict(lazy_refcounts="on"),
    "refcount64": dict(refcount_bits=64),
    "refcount1": dict(refcount_bits=1),
    "refcount8": dict(refcount_bits=8),
    "lazy-v2-metadata": dict(compat="0.10", preallocation="metadata"),
}
WIDTHS_THAT_MAY_BE_REFUSED = ("refcount64", "refcount1", "refcount8")


def qemu_writes(image, version3=True):
    """A bit of everything that QEMU can leave in an L2 table."""
    commands = ["write -P 0x11 0 200k", "write -P 0x22 1M 4k", "write -P 0x33 5000k 1500k",
                "write -P 0x44 12M 2M", "write -z 12500k 300k", "discard 5100k 512k",
                "write -P 0x55 20480k 512", "write -P 0x66 20481k 3584"]
    if version3:
        # zero clusters that keep their host cluster, and ones that do not
        commands += ["write -P 0x77 30M 2M", "write -z 30M 1M", "write -z -u 31M 512k",
                     "write -z 40M 3M"]
    qemu_io(image, *commands)


@pytest.mark.parametrize("storage, name", [
    pytest.param(storage, name, marks=[] if i % 2 == j else pytest.mark.full)
    for i, name in enumerate(QEMU_IMAGES) for j, storage in enumerate(("bdev", "xfs"))])
def test_written_by_qemu(dm, bdev, filesystem, tmp_path, storage, name):
    """QEMU writes, we read; then we write and QEMU reads."""
    options = QEMU_IMAGES[name]
    if storage == "bdev" and options.get("preallocation") in ("falloc", "full"):
        options = {**options, "preallocation": "metadata"}
    place = Place(storage, bdev, filesystem)
    image = image_create(place("image"), 64 * MIB, **options)
    qemu_writes(image, options.get("compat") != "0.10")
    image_check(image)
    model = expect(tmp_path / "model", image)
    if name in WIDTHS_THAT_MAY_BE_REFUSED:
        done = dm.create("q", dm.qcow2_table([f"qcow2:{image}"]), check=False)
        if done.returncode:
            assert "refcount" in refused(dm, [f"qcow2:{image}"], sectors=64 * MIB // SECTOR)
            pytest.skip("this refcount width is refused, with the reason told")
        dm.remove("q")
    with Attached(dm, f"qcow2:{image}") as disk:
        assert size_of(disk.path) == 64 * MIB
        verify_device(disk.path, model)
        run("differential", "--seed", 7, "--ops", 300, "--cluster", image_cluster(options), "--model",
            model, disk.path)
    image_check(image)
    image_compare(image, model)
    # and once more by QEMU on what we left
    qemu_writes(image, options.get("compat") != "0.10")
    image_check(image)


def image_cluster(options):
    return {"4k": 4 * KIB, "2M": 2 * MIB}.get(options.get("cluster_size"), 64 * KIB)


def test_zero_cluster_never_shows_what_it_keeps(dm, bdev):
    """A zero cluster with a host cluster: neither its old data nor the backing is seen."""
    base = image_create(bdev(64 * MIB), 16 * MIB)
    qemu_io(base, "write -P 0xbb 0 16M")
    top = image_create(bdev(64 * MIB), backing=base)
    qemu_io(top, "write -P 0x11 0 2M", "write -z 0 1M")
    kept = [e for e in image_map(top) if e["zero"] and "offset" in e]
    assert kept, "QEMU left no preallocated zero clusters: the test tests nothing"
    with Attached(dm, [f"qcow2:{top}", f"qcow2:{base}"]) as disk:
        disk.expect(0, 0, MIB)
        disk.expect(0x11, MIB, MIB)
        disk.expect(0xbb, 2 * MIB, 14 * MIB)
        # a short write into one: the rest of the cluster stays zero
        disk.write(0x22, 64 * KIB, 512)
        disk.expect(0x22, 64 * KIB, 512)
        disk.expect(0, 64 * KIB + 512, 64 * KIB - 512)
    image_check(top)
    qemu_io(top, "read -P 0 0 64k", "read -P 0x22 64k 512", "read -P 0 66048 65024",
            "read -P 0x11 1M 1M")


@pytest.mark.core
def test_qemu_reads_what_we_wrote(dm, bdev):
    image = image_create(bdev(128 * MIB), 64 * MIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        disk.write(0x11, 0, 200 * KIB)
        disk.write(0x22, 5 * MIB, 4 * KIB)
        disk.write(0x33, 10 * MIB, 3 * MIB)
        disk.zeroout(11 * MIB, 512 * KIB)
        disk.discard(12 * MIB, 512 * KIB)
        disk.flush()
    image_check(image)
    qemu_io(image, "read -P 0x11 0 200k", "read -P 0 200k 824k", "read -P 0x22 5M 4k",
            "read -P 0x33 10M 1M", "read -P 0 11M 512k", "read -P 0x33 11776k 512k",
            "read -P 0 12M 512k", "read -P 0x33 12800k 512k", "read -P 0 13M 51M")


@pytest.mark.parametrize("size", [512, 65536 - 512, 65536 + 512, MIB + 1536, 3 * MIB + 7 * 512])
def test_odd_sizes(dm, bdev, size, tmp_path):
    image = image_create(bdev(64 * MIB), size)
    model = sparse(tmp_path / "model", size)
    with Attached(dm, f"qcow2:{image}") as disk:
        assert size_of(disk.path) == size
        run("differential", "--ops", 200, "--threads", 2, "--max-io", 65536, "--model", model,
            disk.path)
    image_check(image)
    image_compare(image, model)


def test_empty_image_costs_nothing(dm, filesystem):
    """Attached, read and removed: not a byte of it changes."""
    image = image_create(os.path.join(filesystem("xfs"), "image"), GIB)
    with open(image, "rb") as f:
        before = f.read()
    with Attached(dm, f"qcow2:{image}") as disk:
        disk.expect(0, 0, 8 * MIB)
        disk.expect(0, 1020 * MIB, 4 * MIB)
        disk.flush()
        assert disk.status()["total"] == GIB // (64 * KIB)
    sync_caches()
    with open(image, "rb") as f:
        assert f.read() == before


@pytest.mark.parametrize("storage", [pytest.param("bdev", marks=pytest.mark.core), "ext4"])
def test_one_tebibyte(dm, bdev, filesystem, storage):
    """A sparse giant: writes at its ends and in between are where they belong."""
    image = image_create(Place(storage, bdev, filesystem)("image"), 1024 * GIB)
    places = [0, 511 * GIB + 13 * MIB, 512 * GIB, 1024 * GIB - 64 * KIB]
    with Attached(dm, f"qcow2:{image}") as disk:
        assert size_of(disk.path) == 1024 * GIB
        for i, at in enumerate(places):
            disk.write(i + 1, at, 64 * KIB)
        for i, at in enumerate(places):
            disk.expect(i + 1, at, 64 * KIB)
        disk.expect(0, 64 * KIB, 4 * MIB)
        disk.expect(0, 700 * GIB, 4 * MIB)
        # the tables of a whole disk of that size are in it
        assert disk.status()["host_bytes"] < 32 * MIB
    image_check(image)
    qemu_io(image, *(f"read -P {i + 1} {at} 64k" for i, at in enumerate(places)))


def test_backing_of_another_size(dm, bdev):
    """Past the end of a shorter backing image there are zeroes, also after a short write there."""
    end = 5 * MIB + 3 * SECTOR
    base = image_create(bdev(64 * MIB), end)
    qemu_io(base, f"write -P 0xbb 0 {end}")
    top = image_create(bdev(64 * MIB), 16 * MIB, backing=base)
    with Attached(dm, [f"qcow2:{top}", f"qcow2:{base}"]) as disk:
        disk.expect(0xbb, 0, end)
        disk.expect(0, end, 16 * MIB - end)
        disk.write(0x11, end + 4 * SECTOR, 512)
    image_check(top)
    qemu_io(top, f"read -P 0xbb 0 {end}", f"read -P 0 {end} 2048",
            f"read -P 0x11 {end + 4 * SECTOR} 512", f"read -P 0 {end + 5 * SECTOR} 8M")


# ---- what is refused ----

def patch(path, field, value):
    at, form = HEADER[field]
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(struct.pack(form, value))


def reason(text):
    """What the target said, without the log's other lines, in lower case."""
    return "\n".join(line for line in text.splitlines() if "qcow2" in line).lower()


@pytest.mark.parametrize("options, word", [
    (dict(extended_l2="on", cluster_size="128k"), "extended"),
    (dict(cluster_size=512), "cluster"),
    (dict(cluster_size=1024), "cluster"),
    (dict(cluster_size=2048), "cluster"),
])
def test_refused_formats(dm, tmp_path, options, word):
    image = image_create(tmp_path / "image", MIB, **options)
    assert word in reason(refused(dm, [f"qcow2:{image}"]))


def test_refused_data_file(dm, tmp_path):
    image = image_create(tmp_path / "image", MIB, data_file=tmp_path / "data")
    assert "data file" in reason(refused(dm, [f"qcow2:{image}"]))


def test_refused_encryption(dm, tmp_path):
    """By its mark in the header: to make a real one takes QEMU very long where time is emulated."""
    for method in (1, 2):
        image = image_create(tmp_path / f"image{method}", MIB)
        patch(image, "crypt_method", method)
        assert "encrypt" in reason(refused(dm, [f"qcow2:{image}"]))


def test_refused_internal_snapshots(dm, tmp_path):
    """On a writable image. As a backing layer or read-only it may be used, or is refused too."""
    image = image_create(tmp_path / "image", MIB)
    qemu_io(image, "write -P 0x11 0 64k")
    run("qemu-img", "snapshot", "-c", "one", image)
    assert "snapshot" in reason(refused(dm, [f"qcow2:{image}"]))
    image_check(image)


def test_unknown_feature_is_named(dm, tmp_path):
    """Bit 5 of the incompatible features gets its name from the image's own table."""
    image = image_create(tmp_path / "image", MIB)
    patch(image, "incompatible", 1 << 5)
    text = reason(refused(dm, [f"qcow2:{image}"]))
    assert re.search(r"incompatible|feature", text) and re.search(r"\b5\b|0x20", text), text
    # give the bit a name: overwrite an entry of the table (type, bit, 46 bytes of name)
    with open(image, "r+b") as f:
        data = f.read(4096)
        at = data.index(struct.pack(">I", 0x6803f857)) + 8
        f.seek(at)
        f.write(struct.pack("BB46s", 0, 5, b"time travel"))
    assert "time travel" in reason(refused(dm, [f"qcow2:{image}"]))


def test_corrupt_bit(dm, tmp_path):
    """Not to be written any more; reading is allowed."""
    image = image_create(tmp_path / "image", MIB)
    qemu_io(image, "write -P 0x11 0 64k")
    patch(image, "incompatible", 1 << 1)
    assert "corrupt" in reason(refused(dm, [f"qcow2:{image}"]))
    done = dm.create("q", dm.qcow2_table([f"qcow2:{image}"], ["read_only"], MIB // SECTOR),
                     check=False)
    if not done.returncode:
        with Disk("/dev/mapper/q", writable=False) as disk:
            disk.expect(0x11, 0, 64 * KIB)
        dm.remove("q")


def test_zstd(dm, tmp_path):
    image = image_create(tmp_path / "image", MIB, compression_type="zstd")
    assert re.search("zstd|compress", reason(refused(dm, [f"qcow2:{image}"])))


@pytest.mark.parametrize("cluster", ["4k", "64k", "2M"])
def test_compressed_clusters(dm, bdev, tmp_path, cluster):
    """Read, and written over: a cluster shared by several compressed ones is freed with the last."""
    raw = tagged(tmp_path / "raw", 16 * MIB, 3)
    image = bdev(64 * MIB)
    run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", f"cluster_size={cluster}", raw,
        image)
    assert any(e.get("compressed") for e in image_map(image)), "QEMU compressed nothing"
    with Attached(dm, f"qcow2:{image}") as disk:
        verify_device(disk.path, raw)
        run("differential", "--seed", 4, "--ops", 200, "--threads", 3, "--max-io", 256 * KIB,
            "--cluster", {"4k": 4 * KIB, "64k": 64 * KIB, "2M": 2 * MIB}[cluster], "--model", raw,
            disk.path)
    image_check(image)
    image_compare(image, raw)


@pytest.mark.parametrize("damage, word", [
    ("magic", "magic|not a qcow2"), ("version", "version"), ("empty", "."),
    ("truncated", "trunc|short|size|outside|end"), ("missing", "no such|open|-2|enoent"),
    ("directory", "."),
])
def test_not_an_image(dm, tmp_path, damage, word):
    image = image_create(tmp_path / "image", MIB)
    if damage == "magic":
        patch(image, "magic", 0x514649fa)
    elif damage == "version":
        patch(image, "version", 4)
    elif damage == "empty":
        open(image, "w").close()
    elif damage == "truncated":
        os.truncate(image, 65536)
    elif damage == "missing":
        os.remove(image)
    elif damage == "directory":
        image = tmp_path
    assert re.search(word, reason(refused(dm, [f"qcow2:{image}"])))


def test_chain_must_agree_with_the_headers(dm, bdev):
    base = image_create(bdev(16 * MIB), MIB)
    other = image_create(bdev(16 * MIB), MIB)
    top = image_create(bdev(16 * MIB), backing=base)
    for layers in ([f"qcow2:{top}"],                                    # a layer is missing
                   [f"qcow2:{base}", f"qcow2:{other}"],                 # one too many
                   [f"qcow2:{top}", f"qcow2:{base}", f"raw:{other}"],   # one too many below
                   [f"qcow2:{top}", f"raw:{base}"],                     # another format than named
                   [f"raw:{top}"],                                      # nothing to do for us
                   [f"qcow2:{top}", f"raw:{base}", f"qcow2:{base}"],    # below a raw layer
                   [f"qcow2:{top}", f"qcow2:{top}"]):                   # its own backing
        assert re.search("backing|layer|chain|raw|format|same|twice",
                         reason(refused(dm, layers))), layers
    with Attached(dm, [f"qcow2:{top}", f"qcow2:{base}"]) as disk:
        disk.write(0x11, 0, 64 * KIB)
    image_check(top)


def test_the_name_in_the_header_is_not_opened(dm, bdev, tmp_path):
    """An image may name anything as its backing file: only what the table names is read."""
    base = image_create(bdev(16 * MIB), MIB)
    qemu_io(base, "write -P 0xbb 0 1M")
    secret = tmp_path / "secret"
    secret.write_bytes(b"\x5e" * MIB)
    top = image_create(bdev(16 * MIB), MIB, backing=base)
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", secret, "-F", "qcow2", top)
    with Attached(dm, [f"qcow2:{top}", f"qcow2:{base}"]) as disk:
        disk.expect(0xbb, 0, MIB)


def test_dirty_image(dm, tmp_path):
    """The dirty bit: repaired or refused for writing, and never simply kept."""
    image = image_create(tmp_path / "image", 8 * MIB, lazy_refcounts="on")
    qemu_io(image, "write -P 0x11 0 1M")
    patch(image, "incompatible", 1)
    table = dm.qcow2_table([f"qcow2:{image}"], (), 8 * MIB // SECTOR)
    done = dm.create("q", table, check=False)
    if done.returncode:
        assert "dirty" in reason(refused(dm, table))
        return
    with Disk("/dev/mapper/q") as disk:
        disk.expect(0x11, 0, MIB)
        disk.write(0x22, 4 * MIB, MIB)
    dm.remove("q")
    image_check(image)
    assert not header_field(image, "incompatible") & 1
    qemu_io(image, "read -P 0x11 0 1M", "read -P 0x22 4M 1M")


@pytest.mark.parametrize("storage", ["bdev", "ext4"])
def test_autoclear_bits(dm, bdev, filesystem, storage):
    """Bits of features unknown to us are cleared by the first write, and kept by a mere look."""
    image = image_create(Place(storage, bdev, filesystem)("image"), 8 * MIB)
    patch(image, "autoclear", 1 << 40)
    sync_caches()
    with Attached(dm, f"qcow2:{image}", "read_only") as disk:
        disk.expect(0, 0, MIB)
    assert header_field(image, "autoclear") == 1 << 40
    with Attached(dm, f"qcow2:{image}") as disk:
        disk.write(0x11, 0, 64 * KIB)
    assert header_field(image, "autoclear") == 0
    image_check(image)


def header_field(path, field):
    sync_caches()
    at, form = HEADER[field]
    with open(path, "rb") as f:
        f.seek(at)
        return struct.unpack(form, f.read(struct.calcsize(form)))[0]


@pytest.mark.parametrize("storage", ["bdev", pytest.param("ext4", marks=pytest.mark.full), "xfs"])
def test_back_and_forth(dm, bdev, filesystem, tmp_path, storage):
    """Several rounds of we write, QEMU writes, on one image with a backing file."""
    chain = Chain(Place(storage, bdev, filesystem), tmp_path, "qcow2", 32 * MIB, cluster=64 * KIB)
    for seed in range(3):
        with Attached(dm, chain.layers):
            exercise(dm, "q", chain, seed + 1, 200, threads=2, actions=())
        chain.verify()
        qemu_io(chain.top, f"write -P 0x4{seed} {seed}M 300k", f"write -z {seed + 9}M 100k",
                f"discard {20 + seed}M 256k")
        expect(chain.model, chain.top)
