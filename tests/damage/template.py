# SPDX-License-Identifier: GPL-2.0-or-later
"""A small QCOW2 image whose every byte has a known place, to be damaged one field at a time.

Owns the layout: where the header's fields, the L1 and L2 entries and the refcounts are. The image has
64 KiB clusters and 32 guest clusters: data in the even ones, nothing in the odd ones.
"""
import os
import shutil
import struct

from dmqcow2 import HEADER

CLUSTER = 65536
GUEST_CLUSTERS = 32
SIZE = GUEST_CLUSTERS * CLUSTER
COPIED = 1 << 63
OFFSET = 0x00fffffffffffe00


class Image:
    """A copy of the template that can be patched and looked at."""

    def __init__(self, path):
        self.path = str(path)

    def read(self, at, form=">Q"):
        with open(self.path, "rb") as f:
            f.seek(at)
            return struct.unpack(form, f.read(struct.calcsize(form)))[0]

    def write(self, at, value, form=">Q"):
        with open(self.path, "r+b") as f:
            f.seek(at)
            f.write(struct.pack(form, value))

    def field(self, name):
        return self.read(*HEADER[name])

    def set_field(self, name, value):
        self.write(*HEADER[name][:1], value, HEADER[name][1])

    # where things are

    def l1_at(self, index=0):
        return self.field("l1_offset") + 8 * index

    def l2_at(self, guest_cluster):
        return (self.read(self.l1_at()) & OFFSET) + 8 * guest_cluster

    def refblock(self):
        return self.read(self.field("refcount_offset"))

    def refcount_at(self, host_cluster):
        return self.refblock() + 2 * host_cluster

    def metadata(self):
        """Name -> host offset of every metadata cluster."""
        return {"header": 0, "L1 table": self.field("l1_offset"),
                "refcount table": self.field("refcount_offset"), "refcount block": self.refblock(),
                "L2 table": self.read(self.l1_at()) & OFFSET}

    def end(self):
        return os.path.getsize(self.path)


class Template:
    """The undamaged image, made once."""

    def __init__(self, path, create, write):
        """create(path, size) and write(path, guest offset, length, byte) are QEMU's."""
        self.path = str(path)
        create(self.path, SIZE)
        for cluster in range(0, GUEST_CLUSTERS, 2):
            write(self.path, cluster * CLUSTER, CLUSTER, self.byte(cluster))

    @staticmethod
    def byte(cluster):
        """What every byte of a guest cluster is."""
        return 0 if cluster % 2 else 0x40 + cluster

    def copy(self, path):
        shutil.copyfile(self.path, path)
        return Image(path)
