# SPDX-License-Identifier: GPL-2.0-or-later
"""Headers are judged as QEMU judges them: what its tools will not open again is not written to."""
import os
import shutil
import struct

import pytest

from dmqcow2 import HEADER, Attached, KIB, refused
from helpers import MIB, SECTOR, KernelLog, image_create, run

SIZE = 4 * MIB
CLUSTER = 64 * KIB
HUGE = (1 << 64) - CLUSTER
# What is refused by us alone, and told so by name.
OURS = "not supported|External data|Compression type|Extended L2|Bitmaps"

MUTATIONS = [
    {"snapshots_offset": 0x1234567890abcdef}, {"snapshots_offset": 512}, {"snapshots_offset": CLUSTER},
    {"snapshots_offset": 1 << 40}, {"snapshots_offset": HUGE},
    {"snapshots_offset": (1 << 63) - CLUSTER},
    {"backing_offset": 1 << 40}, {"backing_offset": CLUSTER}, {"backing_offset": CLUSTER + 1},
    {"backing_offset": 0x200}, {"backing_offset": 0x68}, {"backing_offset": 0x70},
    {"backing_offset": 8}, {"backing_size": 9}, {"backing_size": 5000},
    {"backing_offset": 0x200, "backing_size": 1024},
    {"backing_offset": CLUSTER - 10, "backing_size": 11},
    {"autoclear": 1}, {"autoclear": 2}, {"autoclear": 4}, {"autoclear": 1 << 63},
    {"compatible": 1}, {"compatible": 1 << 63}, {"incompatible": 1 << 5}, {"incompatible": 1 << 63},
    {"incompatible": 2}, {"crypt_method": 3}, {"version": 4}, {"version": 1}, {"magic": 1},
    {"cluster_bits": 8}, {"cluster_bits": 22}, {"cluster_bits": 63},
    {"size": 0}, {"size": 512}, {"size": 8 * MIB}, {"size": 1 << 40}, {"size": (1 << 63) - 1},
    {"size": (1 << 64) - 512},
    {"l1_size": 0}, {"l1_size": 2}, {"l1_size": 8192}, {"l1_size": (1 << 22) + 1},
    {"l1_size": (1 << 32) - 1},
    {"l1_offset": 0}, {"l1_offset": 512}, {"l1_offset": 1 << 40}, {"l1_offset": HUGE},
    {"refcount_offset": 0}, {"refcount_offset": 512}, {"refcount_offset": 1 << 40},
    {"refcount_offset": HUGE}, {"refcount_clusters": 0}, {"refcount_clusters": 129},
    {"refcount_clusters": 1 << 31},
    {"nb_snapshots": 1}, {"nb_snapshots": 65537}, {"nb_snapshots": (1 << 32) - 1},
    {"refcount_order": 7}, {"refcount_order": 1 << 31},
    {"header_length": 72}, {"header_length": 96}, {"header_length": 105}, {"header_length": CLUSTER + 8},
    {"header_length": 1 << 31}, {"compression_type": 1}, {"compression_type": 2},
]


def qemu_opens(path, tmp):
    """For writing, on a copy: opening writes."""
    copy = os.path.join(tmp, "for-qemu")
    shutil.copyfile(path, copy)
    done = run("qemu-io", "-f", "qcow2", "-c", "read 0 512", copy, check=False)
    os.remove(copy)
    return "can't open" not in done.stderr and "Could not open" not in done.stderr, done.stderr


@pytest.mark.parametrize("fields", MUTATIONS, ids=lambda f: ",".join(f"{k}={v:#x}" for k, v in f.items()))
def test_header_field(dm, tmp_path, fields):
    """Refused by QEMU means refused here, with the reason; opened there means opened here, but for what
    is refused by name and what reaches outside the image, which QEMU sees later or never."""
    image = image_create(tmp_path / "image", SIZE)
    with open(image, "r+b") as f:
        for name, value in fields.items():
            at, form = HEADER[name]
            f.seek(at)
            f.write(struct.pack(form, value))
    opens, said = qemu_opens(image, tmp_path)
    size = fields.get("size", SIZE) & ((1 << 63) - 1)
    log = KernelLog()
    done = dm.create("q", dm.qcow2_table([f"qcow2:{image}"], (), max(size // SECTOR, 1)), check=False)
    text = "\n".join(log.read())
    log.close()
    if not done.returncode:
        dm.remove("q")
        assert opens, f"QEMU refuses it for writing: {said}"
        return
    assert "qcow2: " in text, f"refused without a reason: {text}"
    if opens:
        # The specification wants a length that is a multiple of 8; QEMU does not look.
        allowed = OURS + "|reaches outside|overlap|Table length|misaligned|Invalid header length"
        assert any(word in text for word in allowed.split("|")), f"QEMU opens it: {text}"
