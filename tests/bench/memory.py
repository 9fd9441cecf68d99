# SPDX-License-Identifier: GPL-2.0-or-later
"""What an attached image of 1 TiB takes of the kernel's memory, in the guest.

The measure is the free memory of the whole machine, when nothing else runs and all caches that can
be dropped have been: it counts whatever was allocated, in whatever way.
"""
import subprocess

from helpers import run
from storage import SECTOR

SIZE = 1 << 40
EMPTY_IMAGES = 8


def free_bytes():
    """Free memory once caches are dropped; the largest of some looks, since that takes a while."""
    best = 0
    for _ in range(5):
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("3")
        with open("/proc/meminfo") as f:
            best = max(best, *(int(line.split()[1]) << 10 for line in f
                               if line.startswith("MemFree:")))
    return best


def attached(dm, name, layer, *features):
    return dm.create_qcow2(name, [f"qcow2:{layer}"], features, sectors=SIZE // SECTOR)


def cache_bytes(dm, name):
    return dm.qcow2_status(name)["cache_kib"] << 10


def idle(dm, layers):
    """Bytes of each of some attached images; the second attaching counts, all slabs being there."""
    cost = []
    for _ in range(3):
        before = free_bytes()
        for n, layer in enumerate(layers):
            attached(dm, f"bench{n}", layer)
        cost.append((before - free_bytes()) // len(layers))
        for n in range(len(layers)):
            dm.remove(f"bench{n}")
    return sorted(cost)[1]


def linear(dm, device):
    """The same for a dm-linear: what device-mapper itself takes for a device."""
    cost = []
    for _ in range(3):
        before = free_bytes()
        for n in range(EMPTY_IMAGES):
            dm.create(f"bench{n}", f"0 {SIZE // SECTOR} linear {device} 0")
        cost.append((before - free_bytes()) // EMPTY_IMAGES)
        for n in range(EMPTY_IMAGES):
            dm.remove(f"bench{n}")
    return sorted(cost)[1]


def read_everywhere(device, seconds):
    subprocess.run(["blockload", "uring", device, "randread", "32", "1", str(seconds)], check=True,
                   stdout=subprocess.DEVNULL)


def measure(storage):
    """Yields (what, bytes)."""
    dm, device = storage.dm, storage.tebibyte("image")
    images = []
    for n in range(EMPTY_IMAGES):
        images.append(f"{storage.filesystem('xfs')}/idle{n}.qcow2")
        run("qemu-img", "create", "-q", "-f", "qcow2", images[-1], SIZE)
    yield "idle dm-linear of 1 TiB, for comparison", linear(dm, device)
    yield "idle empty image of 1 TiB", idle(dm, images)
    yield "idle preallocated image of 1 TiB", idle(dm, [device])
    for kib in (1024, 4096):
        path = attached(dm, "bench", device, f"l2_cache_kib {kib}")
        read_everywhere(path, 1)
        yield f"table cache after reads all over 1 TiB, bound {kib} KiB", cache_bytes(dm, "bench")
        if kib == 4096:
            with open("/proc/sys/vm/drop_caches", "w") as f:
                f.write("2")
            yield "table cache after the kernel asked for memory", cache_bytes(dm, "bench")
        dm.remove("bench")
