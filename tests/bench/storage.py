# SPDX-License-Identifier: GPL-2.0-or-later
"""The storage that the contestants share, in the guest: RAM disks, null_blk, file systems, images.

Owns the RAM disks (by number, below) and what is mounted under /mnt. Images come in three kinds:
`prealloc` (every cluster allocated), `empty`, and `backed` (an empty overlay on the preallocated
one); and in three places: `bdev`, `xfs` and `ext4`.

What shall be compared is the path to the data and not the copying of it, so on block devices data
lies on a null_blk that forgets it. An image's tables must not be forgotten: a device of linear
pieces has the tables on a RAM disk and everything between them on the null_blk.
"""
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from helpers import (MIB, SECTOR, Dm, Mount, NullBlk, image_create,  # noqa: E402
                     image_map, run, size_of, sync_caches)

RAM_MIB = 1024
XFS, EXT4, SCRATCH, TABLES = (f"/dev/ram{n}" for n in range(4))
PREALLOC = 256 * MIB            # size of the preallocated disk, and of what is backed by it
EMPTY = 4096 * MIB
CLUSTER = 64 << 10
# Where things are on the RAM disk for tables, in bytes: images' tables at its beginning, those of
# "plain" devices so much further, thin-provisioning metadata in its second half.
PLAIN, THIN = 256 * MIB, 512 * MIB
TIB_IMAGE = "/out/bench/1t.qcow2"


def pieces(mapping, end):
    """[(start, length, is data)] of an image file of END bytes, by its `qemu-img map`."""
    found, at = [], 0
    for start, length in sorted((m["offset"], m["length"]) for m in mapping
                                if m.get("offset") is not None):
        if found and found[-1][2] and start == at:
            found[-1] = (found[-1][0], found[-1][1] + length, True)
        else:
            if start > at:
                found.append((at, start - at, False))
            found.append((start, length, True))
        at = start + length
    if end > at:
        found.append((at, end - at, False))
    return found


def in_pieces(name, dm, image, mapping, null, table_start, with_tables):
    """Make a device of linear pieces, laid out like a preallocated image file.

    WITH_TABLES its tables are the image's. Else it is a device that may be written all over.
    """
    lines, at = [], table_start
    source, tables = os.open(image, os.O_RDONLY), os.open(TABLES, os.O_RDWR)
    for start, length, data in pieces(mapping, image_end(image)):
        if data:
            where = f"{null} {start // SECTOR}"
        else:
            where = f"{TABLES} {at // SECTOR}"
            if with_tables:
                copy(source, start, tables, at, length)
            at += length
        lines.append(f"{start // SECTOR} {length // SECTOR} linear {where}")
    os.fsync(tables)
    os.close(tables)
    os.close(source)
    dm.setup("create", name, input="\n".join(lines) + "\n")
    return f"/dev/mapper/{name}"


def copy(source, start, target, at, length):
    """Bytes from file to file; behind the end of the source there are zeroes."""
    for done in range(0, length, MIB):
        size = min(MIB, length - done)
        os.pwrite(target, os.pread(source, size, start + done).ljust(size, b"\0"), at + done)


def image_end(image):
    """The size of an image file in whole clusters."""
    return -(-size_of(image) // CLUSTER) * CLUSTER


def fill(path):
    """Write a RAM disk all over, by itself or by a file on it: it allocates each page at the first
    write to it, and whoever comes first would pay for that."""
    run("dd", "if=/dev/zero", f"of={path}", "bs=1M", "oflag=direct", "status=none", check=False)


class Storage:
    """Everything that is made once; fresh images by image()."""

    def __init__(self):
        self.dm = Dm()
        run("modprobe", "brd", "rd_nr=4", f"rd_size={RAM_MIB << 10}", "max_part=0")
        run("modprobe", "loop")
        run("modprobe", "nbd", "nbds_max=1", "max_part=0")
        self.null = self.null_blk(PREALLOC)
        self.made = {}
        fill(SCRATCH)

    @staticmethod
    def null_blk(size):
        """A null_blk that keeps nothing and answers from a softirq, as by default."""
        return NullBlk(size, memory_backed=0, discard=0, irqmode=1, submit_queues=os.cpu_count())

    def in_pieces(self, suffix, image, mapping, table_start):
        """Two devices: "image" has its tables, "plain" may be overwritten."""
        null = self.null_blk(image_end(image)).path
        for name, start, with_tables in (("image" + suffix, table_start, True),
                                         ("plain" + suffix, table_start + PLAIN, False)):
            self.made[name] = in_pieces(name, self.dm, image, mapping, null, start, with_tables)

    def filesystem(self, fstype):
        """The directory of a mounted file system."""
        if fstype not in self.made:
            dev = {"xfs": XFS, "ext4": EXT4}[fstype]
            self.made[fstype] = Mount(dev, fstype, f"/mnt/{fstype}", "noatime")
            everything = f"{self.made[fstype].path}/everything"
            fill(everything)
            os.unlink(everything)
            sync_caches()
        return self.made[fstype].path

    def prealloc(self, place):
        """The path of the preallocated image; made at the first call, never written to by COW."""
        key = "prealloc", place
        if place == "bdev":
            return self.pieces("image")
        if key in self.made:
            return self.made[key]
        path = f"{self.filesystem(place)}/prealloc.qcow2"
        self.made[key] = image_create(path, PREALLOC, preallocation="full")
        sync_caches()       # what is still in the page cache is in the way of direct writes
        return self.made[key]

    def pieces(self, name):
        """The device "image", with a preallocated image on it, or "plain", laid out like it."""
        if name not in self.made:
            sparse = image_create("/tmp/prealloc.qcow2", PREALLOC, preallocation="metadata")
            self.in_pieces("", sparse, image_map(sparse), 0)
        return self.made[name]

    def tebibyte(self, name):
        """The same for an image of 1 TiB, which was made outside, with its map."""
        if name + "-1t" not in self.made:
            with open(TIB_IMAGE + ".map") as f:
                self.in_pieces("-1t", TIB_IMAGE, json.load(f), 32 * MIB)
        return self.made[name + "-1t"]

    def image(self, kind, place):
        """(path, layers of a dm-qcow2 table) of an image of this kind in its first state."""
        if kind == "prealloc":
            path = self.prealloc(place)
            return path, [f"qcow2:{path}"]
        path = SCRATCH if place == "bdev" else f"{self.filesystem(place)}/{kind}.qcow2"
        if place != "bdev" and os.path.exists(path):
            os.unlink(path)
        if kind == "empty":
            image_create(path, EMPTY)
            return path, [f"qcow2:{path}"]
        base = self.prealloc(place)
        image_create(path, PREALLOC, backing=base)
        return path, [f"qcow2:{path}", f"qcow2:{base}"]

    def data_extent(self, image):
        """(start, length) of the one extent of a file that all of a preallocated disk lies in."""
        data = [(start, length) for start, length, is_data in pieces(image_map(image), 0)
                if is_data]
        if len(data) != 1:
            raise AssertionError(f"{image}: its data lies in {len(data)} pieces")
        return data[0]

    def table_space(self, size):
        """A part of the RAM disk for tables that no image uses, as a device, zeroed."""
        name = "table-space"
        if name not in self.dm.names:
            self.dm.create(name, f"0 {size // SECTOR} linear {TABLES} {THIN // SECTOR}")
        path = f"/dev/mapper/{name}"
        run("dd", "if=/dev/zero", f"of={path}", "bs=1M", "count=1", "oflag=direct", "status=none")
        return path
