# SPDX-License-Identifier: GPL-2.0-or-later
"""An image in a file: its I/O is started in the context of whoever uses the device, with all that
this context may hold. Each test is one of the hazards."""
import ctypes
import mmap
import os
import random
import subprocess
import sys
import threading

import pytest

from dmqcow2 import KIB, PUNCH_HOLE, Attached, Disk
from helpers import (MIB, Mount, image_check, image_create, image_map, qemu_io, run, sync_caches,
                     wait_for)

SIZE = 24 * MIB


def preallocated(directory, size=SIZE):
    image = image_create(os.path.join(directory, "image"), size)
    qemu_io(image, f"write -q -P 0x5a 0 {size}")
    return image


def scatter(path, directory, step=8 * KIB):
    """Copy an image so that its file is in hundreds of extents: nothing else is free."""
    scattered, filler = (os.path.join(directory, name) for name in ("scattered", "filler"))
    left = os.statvfs(directory)
    size = left.f_bavail * left.f_bsize
    while run("fallocate", "-l", size, filler, check=False).returncode:
        os.truncate(filler, 0)
        size -= MIB
    with Disk(filler, direct=False) as f:
        for at in range(0, 3 * os.path.getsize(path), 2 * step):
            f.fallocate(PUNCH_HOLE, at, step)
        f.flush()
    os.sync()
    run("dd", f"if={path}", f"of={scattered}", "bs=1M", "conv=fsync")
    os.remove(path)
    return scattered


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_cold_and_fragmented(dm, filesystem, fstype):
    """The file system must read its own extent blocks to answer: it waits for bios of its own, which
    must not be behind ours."""
    directory = filesystem(fstype, size=320 * MIB, mkfs=["-b", "1024"] if fstype == "ext4" else [])
    image = scatter(preallocated(directory), directory)
    extents = int(run("filefrag", image).stdout.split(":")[-1].split()[0])
    assert extents > 400, f"the file has only {extents} extents"
    with Attached(dm, f"qcow2:{image}") as disk:
        for seed in range(3):
            sync_caches()
            rng = random.Random(seed)

            def reader(own_seed):
                own_rng = random.Random(own_seed)
                with Disk(disk.path) as own:
                    for _ in range(60):
                        length = own_rng.choice((4 * KIB, 64 * KIB, MIB))
                        own.expect(0x5a, own_rng.randrange((SIZE - length) // 4096) * 4096, length)
                    done.append(own_seed)

            done = []
            threads = [threading.Thread(target=reader, args=(rng.random(),), daemon=True)
                       for _ in range(3)]
            for t in threads:
                t.start()
            for t in threads:
                t.join(60)
            assert len(done) == len(threads), "a reader hangs or failed"
        disk.write(0x11, 0, MIB)
        disk.flush()
    image_check(image)


@pytest.mark.parametrize("upper, lower", [
    ("ext4", "ext4"), pytest.param("btrfs", "btrfs", marks=pytest.mark.full)])
def test_same_file_system_above_and_below(dm, filesystem, tmp_path, upper, lower):
    """Both use the same locks' classes and the same per-task state; the upper one submits from
    inside its transactions."""
    run("modprobe", upper, check=False)
    directory = filesystem(lower)
    image = image_create(os.path.join(directory, "image"), 300 * MIB)
    if lower == "btrfs":
        with Attached(dm, f"qcow2:{image}") as disk:
            disk.write(1, 0, MIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        disk.close()
        mounted = Mount(disk.path, upper, tmp_path / "upper", "discard")
        try:
            # many small synced files: a transaction each
            script = f"""
import os
for i in range(150):
    with open({str(mounted.path)!r} + f"/f{{i}}", "wb") as f:
        f.write(os.urandom(3000 + 517 * i))
        os.fsync(f.fileno())
    if i % 3 == 2:
        os.remove({str(mounted.path)!r} + f"/f{{i - 1}}")
"""
            procs = [subprocess.Popen([sys.executable, "-c", script.replace("/f{", f"/{n}f{{")])
                     for n in range(2)]
            for p in procs:
                assert p.wait(120) == 0
            run("fstrim", mounted.path)
        finally:
            mounted.remove()
        run("fsck.ext4" if upper == "ext4" else "btrfsck", *(["-fn"] if upper == "ext4" else []),
            disk.path)
    image_check(image)


def test_file_size_limit(dm, filesystem):
    """A process that may not write large files may still write to a disk."""
    image = preallocated(filesystem("xfs"), 16 * MIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        script = f"""
import mmap, os, resource
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
fd = os.open({disk.path!r}, os.O_RDWR | os.O_DIRECT)
buf = mmap.mmap(-1, 65536)
buf[:] = b"\\x77" * 65536
for at in range(0, 8 << 20, 65536):
    assert os.pwrite(fd, buf, at) == 65536
"""
        done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0, done.stderr
        disk.expect(0x77, 0, 8 * MIB)
        disk.expect(0x5a, 8 * MIB, 8 * MIB)
    image_check(image)


def test_file_size_limit_of_who_commits(dm, filesystem):
    """Nor does the limit of who asks for a commit, or suspends, concern the image."""
    image = image_create(os.path.join(filesystem("xfs"), "image"), 64 * MIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        for at, command in ((0, "message q 0 commit"), (MIB, "suspend q"), (2 * MIB, "resume q")):
            if "resume" not in command:
                disk.write(0x11, at, 64 * KIB)
            run("bash", "-c", f"ulimit -f 1; dmsetup {command}")
            assert disk.status()["mode"] == "rw"
        disk.write(0x11, 2 * MIB, 64 * KIB)
        disk.flush()
    image_check(image)
    qemu_io(image, "read -P 0x11 0 64k", "read -P 0x11 1M 64k", "read -P 0x11 2M 64k")


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_frozen_file_system(dm, filesystem, fstype):
    """Writes wait for the thaw, reads do not, and nobody else is held up."""
    directory = filesystem(fstype)
    image = preallocated(directory, 16 * MIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        run("fsfreeze", "-f", directory)
        written = []
        try:
            def writer():
                with Disk(disk.path) as own:
                    own.write(0x22, MIB, 64 * KIB)
                    written.append(True)
            thread = threading.Thread(target=writer, daemon=True)
            thread.start()
            for at in range(2 * MIB, 16 * MIB, MIB):
                disk.expect(0x5a, at, MIB)
            assert not written, "a write went into a frozen file system"
        finally:
            run("fsfreeze", "-u", directory)
        wait_for(lambda: written, what="the write after the thaw")
        thread.join()
        disk.expect(0x22, MIB, 64 * KIB)
    image_check(image)


def test_end_of_the_file(dm, filesystem):
    """The last cluster of an image may lie partly past the end of its file."""
    directory = filesystem("xfs")
    image = image_create(os.path.join(directory, "image"), 4 * MIB)
    qemu_io(image, "write -q -P 0x31 0 64k")
    with open(image, "r+b") as f:
        f.truncate(os.path.getsize(image) - 32 * KIB)
    with Attached(dm, f"qcow2:{image}") as disk:
        disk.expect(0x31, 0, 32 * KIB)
        disk.expect(0, 32 * KIB, 32 * KIB)
        disk.write(0x44, 48 * KIB, 16 * KIB)
        disk.expect(0, 32 * KIB, 16 * KIB)
        disk.expect(0x44, 48 * KIB, 16 * KIB)
    image_check(image)


def resident(path):
    """How many pages of a file are in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "r+b") as f, mmap.mmap(f.fileno(), 0) as mapped:
        view = (ctypes.c_char * len(mapped)).from_buffer(mapped)
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        failed = libc.mincore(ctypes.byref(view), ctypes.c_size_t(len(mapped)), pages)
        del view
        assert not failed, os.strerror(ctypes.get_errno())
        return sum(page & 1 for page in pages)


def test_page_cache_is_emptied(dm, filesystem):
    """What was written to the file and not synced is read; what is cached is not in our way."""
    image = preallocated(filesystem("ext4"))
    last = image_map(image)[-1]
    at = last["offset"] + last["length"] - 64 * KIB
    with Disk(image, direct=False) as f:
        f.write(0x77, at, 64 * KIB)
    assert resident(image)
    with Attached(dm, f"qcow2:{image}") as disk:
        assert not resident(image)
        disk.expect(0x77, SIZE - 64 * KIB, 64 * KIB)
