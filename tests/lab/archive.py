# SPDX-License-Identifier: GPL-2.0-or-later
"""The archive format of an initrd, so that a job can be handed to a guest without tools."""


def newc(files):
    """An uncompressed cpio archive of (name, bytes, mode) entries.

    The kernel unpacks one after the other when archives are put together in one file.
    """
    out = bytearray()
    for ino, (name, data, mode) in enumerate([*files, ("TRAILER!!!", b"", 0)], 1):
        head = [ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        out += b"070701" + b"".join(b"%08x" % n for n in head) + name.encode() + b"\0"
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)
