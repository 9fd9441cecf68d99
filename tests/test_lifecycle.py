# SPDX-License-Identifier: GPL-2.0-or-later
"""Many lives of one image: attached and detached under I/O, and its users and the tool itself
killed at random moments. Whatever happened, the device can be detached, the image is then clean,
and nothing is left: no memory, lock, process, device or socket.

A seed is printed; LIFECYCLE_SEED in the guest's environment repeats a run, as far as time does.
"""
import contextlib
import os
import random
import re
import signal
import subprocess
import time

import pytest

import bootsector
from helpers import (MIB, child_of, image_check, image_create, qemu_io, run, size_of, sync_caches,
                     wait_for)

BOOT, BLOCK = 512, 4096
SOCKETS = "/run/qcow2attach"

# Writes of random length, discards and flushes to the upper half of a device, until it is killed.
HAMMER = """
import fcntl, mmap, os, random, struct, sys
dev = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
rng, buf = random.Random(sys.argv[2]), mmap.mmap(-1, 65536)
half = os.lseek(dev, 0, os.SEEK_END) // 2
print("begun", flush=True)
while True:
    length = rng.randrange(1, 129) * 512
    at = half + rng.randrange((half - length) // 512) * 512
    what = rng.randrange(16)
    if what == 0:
        os.fsync(dev)
    elif what < 3:
        fcntl.ioctl(dev, 0x1277, struct.pack("QQ", at // 65536 * 65536, 65536))
    else:
        os.pwritev(dev, [memoryview(buf)[:length]], at)
"""


def tool(*argv, code=0, **kw):
    done = run("qcow2attach", *argv, check=False, **kw)
    assert done.returncode == code, (argv, done.returncode, done.stdout, done.stderr)
    return done


def seeded():
    seed = int(os.environ.get("LIFECYCLE_SEED") or random.getrandbits(32))
    print(f"LIFECYCLE_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def image(filesystem, cleanup, tmp_path):
    """An image on a golden one, from which a guest boots that uses its disk until it is killed.
    Should the test fail, its device goes before what it lies on."""
    images = filesystem("ext4", 256 * MIB,
                        mkfs=["-E", "lazy_itable_init=0,lazy_journal_init=0", "-m", "0"])
    cleanup(lambda: run("dmsetup", "remove", "--retry", "--force", "vm", check=False))
    image_create(f"{images}/golden.qcow2", 64 * MIB)
    bootsector.assemble(bootsector.COUNT, tmp_path)
    qemu_io(f"{images}/golden.qcow2", "write -P 0x77 0 16M",
            f"write -s {tmp_path}/boot.bin 0 {BOOT}")
    return image_create(f"{images}/vm.qcow2", backing="golden.qcow2")


@pytest.fixture
def attach(image):
    """attach() -> the device of the image."""
    return lambda: tool("attach", image).stdout.strip()


@pytest.fixture
def detached(image):
    """detached(): see that the image is free and clean, and nobody of ours is there."""
    def look():
        assert "vm" not in run("dmsetup", "ls").stdout
        for file in (image, os.path.join(os.path.dirname(image), "golden.qcow2")):
            with open("/proc/locks") as f:
                held = [line for line in f if f":{os.stat(file).st_ino} " in line]
            assert not held, held
            # It takes QEMU's locks, too.
            image_check(file)
        processes = run("pgrep", "-a", "-x", "qcow2attach", check=False).stdout
        assert not processes, processes
    return look


@pytest.fixture
def hammer(spawn):
    def start(device, rng):
        proc = spawn("python3", "-c", HAMMER, device, rng.getrandbits(32), stdout=subprocess.PIPE,
                     stderr=subprocess.DEVNULL)
        assert proc.stdout.readline() == b"begun\n"
        return proc
    return start


def fill(directory):
    """The storage is memory, too: take all of it now, lest it should grow with what is written."""
    run("dd", "if=/dev/zero", f"of={directory}/all", "bs=1M", check=False)
    sync_caches()
    os.unlink(f"{directory}/all")


def sockets():
    return set(os.listdir(SOCKETS)) if os.path.isdir(SOCKETS) else set()


def stop(proc):
    proc.kill()
    end(proc)


def end(proc):
    proc.wait(timeout=60)
    if proc.stdout:
        proc.stdout.close()         # a pipe is kernel memory, too


def stamp(device, rng):
    """Durably write a block to the lower half; returns the command by which QEMU finds it."""
    at = rng.randrange(1, size_of(device) // 2 // BLOCK) * BLOCK    # the guest's own is the first
    pattern = rng.randrange(1, 256)
    with open(device, "r+b", buffering=0) as f:
        f.seek(at)
        f.write(bytes([pattern]) * BLOCK)
        os.fsync(f.fileno())
    return f"read -P {pattern} {at} {BLOCK}"


# Caches of file systems, which grow with the extents of the files, and of the page cache; and those
# of vmalloc, which keeps areas for long whose pages it has given back.
OF_OTHERS = re.compile("ext4|jbd2|buffer_head|radix_tree_node|inode|dentry|9p|vmap_area")


def count_memory():
    """{name: how many}: objects in use of each slab cache, and pages that nobody accounts for.

    Shrinking a cache gives back what it keeps for each processor, which would count as used. All
    files are open before, since opening one takes objects."""
    with contextlib.ExitStack() as files:
        info = files.enter_context(open("/proc/slabinfo"))
        for f in [files.enter_context(open(f"/sys/kernel/slab/{cache}/shrink", "wb", buffering=0))
                  for cache in os.listdir("/sys/kernel/slab")]:
            f.write(b"1")
        lines = [line.split() for line in info.read().splitlines()]
    found = {words[0]: int(words[1]) for words in lines
             if words[1].isdigit() and not OF_OTHERS.search(words[0])}
    with open("/proc/meminfo") as f:
        kib = {line.split(":")[0]: int(line.split()[1]) for line in f}
    known = ("MemFree", "Buffers", "Cached", "AnonPages", "Slab", "KernelStack", "PageTables",
             "Percpu", "VmallocUsed")
    found["pages"] = (kib["MemTotal"] - sum(kib.get(k, 0) for k in known)) // 4
    found["vmalloc pages"] = kib["VmallocUsed"] // 4
    return found


def kernel_memory():
    """The least of several counts: a page of objects from which a processor is just being served
    counts as used whole."""
    sync_caches()
    time.sleep(0.3)             # for RCU, by which much is freed
    counts = [count_memory() for _ in range(5)]
    return {name: min(c.get(name, 0) for c in counts) for name in counts[0]}


QUARTERS = 4
# Of the storage below: null_blk takes one for each page that is written for the first time, and a
# journal is long.
OTHERS = ("kmalloc-16",)


def grown(counts, cycles):
    """What has grown in each quarter of so many cycles, by something in each cycle of a kind.

    A leak does; what the system itself keeps for long grows once, or now and then. Of pages, which
    many others take and give back, less than a quarter of a MiB is not counted: that is about a page
    in each cycle of the full suite, while in a short one objects must do."""
    found = {}
    for name in set(counts[-1]).difference(OTHERS):
        least = max(cycles // QUARTERS // 3, 64 if "pages" in name else 3)
        by = [b.get(name, 0) - a.get(name, 0) for a, b in zip(counts, counts[1:])]
        if min(by) >= least:
            found[name] = by
    return found


def kernel_threads():
    """Ours, rescuers of workqueues included; not the system's workers, which bear the name of the queue
    that they served last."""
    return {name for name in run("ps", "-e", "-o", "comm=").stdout.splitlines()
            if re.search("qcow2_|vhost", name) and not re.match(r"kworker/(u?\d)", name)}


@pytest.mark.full       # few cycles tell too little of a leak from what the system itself keeps
@pytest.mark.parametrize("cycles", [12, 200])
def test_cycles(image, attach, detached, hammer, spawn, cycles):
    rng = seeded()
    fill(os.path.dirname(image))

    def cycle(number):
        device = attach()
        if number % 3 == 0:             # its user is killed
            client = hammer(device, rng)
            assert "in use by python3" in tool("detach", "vm", code=3).stderr
            time.sleep(rng.uniform(0, 0.3))
            stop(client)
            expected = stamp(device, rng)
            tool("detach", "vm", "--wait")
        elif number % 3 == 1:           # it is detached under its user
            expected = stamp(device, rng)
            client = hammer(device, rng)
            time.sleep(rng.uniform(0, 0.3))
            tool("detach", "vm", "--force")
            end(client)
            wait_for(lambda: "vm" not in run("dmsetup", "ls").stdout, what="the device's end")
            run("dmsetup", "mknodes")
        else:                           # the kernel's other half has it, many requests deep
            client = spawn("ringbench", device, "write", 32, 60, 2, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
            time.sleep(rng.uniform(0.2, 0.6))
            stop(client)
            expected = stamp(device, rng)
            tool("detach", "vm", "--wait")
        detached()
        qemu_io(image, expected)

    for number in range(3):             # once each, for what is made only once
        cycle(number)
    threads = kernel_threads()
    counts = [kernel_memory()]
    for _ in range(QUARTERS):
        for number in range(cycles // QUARTERS):
            cycle(number)
        counts.append(kernel_memory())
    print({name: [c.get(name, 0) for c in counts] for name in counts[-1]
           if counts[-1][name] != counts[0].get(name, 0)})
    more = grown(counts, cycles)
    assert not more, more
    assert kernel_threads() <= threads
    # Caches that are not empty when the module goes are told in the kernel's log, which is watched.
    run("rmmod", "dm_qcow2")
    run("insmod", "/build/dm-qcow2.ko")


class Lives:
    """One image and who is to be killed with it."""

    def __init__(self, image, attach, spawn, rng):
        self.image, self.attach, self.spawn, self.rng = image, attach, spawn, rng
        self.expected = []

    def tool_killed(self, argv):
        """The tool, by itself or with its helper, somewhere in its work."""
        proc = self.spawn("qcow2attach", *argv, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL)
        time.sleep(self.rng.uniform(0, self.usual))
        self.rng.choice([os.kill, os.killpg])(proc.pid, signal.SIGKILL)
        proc.wait(timeout=60)

    def attach_killed(self):
        self.tool_killed(["attach", self.image])

    def detach_killed(self):
        self.expected.append(stamp(self.attach(), self.rng))
        self.tool_killed(["detach", "vm"])

    def serve_killed(self):
        device = self.attach()
        server = self.spawn("qcow2attach", "serve", "vm", "--queues", 2, stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, text=True)
        assert ": ready at " in server.stdout.readline()
        worker = child_of(server.pid)
        client = self.spawn("blkio_bench", "virtio-blk-vhost-user", f"{SOCKETS}/vm.sock",
                            "randwrite", 32, 2, 60, stderr=subprocess.DEVNULL)
        victims = self.rng.sample([server.pid, worker, client.pid], self.rng.randrange(1, 4))
        for pid in victims:
            time.sleep(self.rng.uniform(0, 0.6))
            with contextlib.suppress(ProcessLookupError):   # another's end was its end, too
                os.kill(pid, signal.SIGKILL)
        stop(client)
        if server.poll() is None and worker not in victims and server.pid not in victims:
            server.terminate()
            assert server.wait(timeout=60) == 0
        server.wait(timeout=60)
        wait_for(lambda: not os.path.exists(f"/proc/{worker}"), timeout=60,
                 what="the server's end")
        # Nothing of theirs is in flight any more: a process ends when the kernel has finished it.
        self.expected = [stamp(device, self.rng)]

    def guest_killed(self):
        """A guest at work: QEMU, the tool that started it and the server of its disk."""
        self.expected = [stamp(self.attach(), self.rng)]
        tool("detach", "vm")
        before = sockets()
        parent = self.spawn("qcow2attach", "run", self.image, "--", *bootsector.QEMU,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        said = next((line for line in parent.stdout if "DISK-" in line), "")
        assert "DISK-OK" in said
        family = [int(pid) for pid in
                  run("pgrep", "-x", "qcow2attach|qemu-system-x86").stdout.split()]
        qemu = int(run("pgrep", "-x", "qemu-system-x86").stdout)
        assert parent.pid in family and len(family) > 2
        for pid in self.rng.sample(family, self.rng.randrange(1, len(family) + 1)):
            time.sleep(self.rng.uniform(0, 0.6))
            with contextlib.suppress(ProcessLookupError):   # another's end was its end, too
                os.kill(pid, signal.SIGKILL)
        # A guest survives the loss of its disk, as it does with any vhost-user server.
        with contextlib.suppress(ProcessLookupError):
            os.kill(qemu, signal.SIGTERM)
        end(parent)
        wait_for(lambda: "vm" not in run("dmsetup", "ls").stdout, what="the device's end")
        run("dmsetup", "mknodes")
        for name in sockets() - before:     # as the manual page says, one may remain
            os.unlink(f"{SOCKETS}/{name}")

    def measure(self):
        begin = time.monotonic()
        self.attach()
        self.usual = 1.2 * (time.monotonic() - begin)
        tool("detach", "vm")


@pytest.mark.parametrize("rounds", [10, pytest.param(100, marks=pytest.mark.full)])
def test_killed_at_random(image, attach, detached, spawn, rounds):
    lives = Lives(image, attach, spawn, seeded())
    lives.measure()
    ends = {}
    for number in range(rounds):
        lives.expected = []
        what = [lives.serve_killed, lives.attach_killed, lives.detach_killed,
                lives.guest_killed][number % 4]
        what()
        there = run("dmsetup", "info", "vm", check=False).returncode == 0
        name = f"{what.__name__}: {'a device' if there else 'no device'}"
        ends[name] = ends.get(name, 0) + 1
        if there:
            tool("list")
            tool("detach", "vm", "--wait")
        wait_for(lambda: run("pgrep", "-x", "qcow2attach", check=False).returncode,
                 what="the end of all processes")
        detached()
        if lives.expected:
            qemu_io(image, *lives.expected)
    print(ends)
    # A killed server could not remove its socket; the next one takes that over and removes it.
    run("dmsetup", "mknodes")
    attach()
    server = spawn("qcow2attach", "serve", "vm", stdout=subprocess.PIPE, text=True)
    assert ": ready at " in server.stdout.readline()
    print(run("blkio_verify", "virtio-blk-vhost-user", f"{SOCKETS}/vm.sock", 1, 300,
              random.getrandbits(32)).stdout)
    server.terminate()
    assert server.wait(timeout=60) == 0
    assert not sockets()
    tool("detach", "vm")
    detached()
