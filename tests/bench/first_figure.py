#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A first figure, by the wall clock: what a virtual machine gets from a preallocated qcow2 image.

The same libblkio client reads and writes 4 KiB at random through a vhost-user-blk socket of
qcow2attach (vhost-blk and dm-qcow2 in the kernel) and of qemu-storage-daemon (io_uring and native
AIO, of which the better counts), on the same image, on a block device and in a file on XFS. Runs in
the lab's guest; the rounds of all contestants alternate, and the median of each counts.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SOCKET = "/tmp/figure.sock"
RAM_KIB = 768 << 10
IMAGE_MIB = 512
WORKLOADS = ["randread", "randwrite"]


def run(*argv):
    return subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          text=True).stdout


def wait_for_socket(proc):
    deadline = time.monotonic() + 30
    while not os.path.exists(SOCKET):
        if proc.poll() is not None or time.monotonic() > deadline:
            sys.exit("a server did not start")
        time.sleep(0.05)


class Ours:
    """qcow2attach: attach and serve."""

    def __init__(self, queues):
        self.name = "vhost-blk + dm-qcow2"
        self.options = ["--queues", str(queues), "--workers", "per-queue"]

    def start(self, image):
        run("qcow2attach", "attach", image, "--name", "figure")
        self.proc = subprocess.Popen(["qcow2attach", "serve", "figure", "--socket", SOCKET,
                                      *self.options], stdout=subprocess.DEVNULL)
        wait_for_socket(self.proc)

    def stop(self):
        self.proc.terminate()
        self.proc.wait()
        run("qcow2attach", "detach", "figure")


class Daemon:
    """qemu-storage-daemon."""

    def __init__(self, queues, aio):
        self.name, self.aio, self.queues = f"qemu-storage-daemon, {aio}", aio, queues

    def start(self, image):
        driver = "host_device" if image.startswith("/dev/") else "file"
        self.proc = subprocess.Popen(
            ["qemu-storage-daemon",
             "--blockdev", f"driver={driver},node-name=f,filename={image},cache.direct=on,"
             f"aio={self.aio},discard=unmap",
             "--blockdev", "driver=qcow2,node-name=q,file=f,discard=unmap",
             "--export", f"type=vhost-user-blk,id=e,node-name=q,addr.type=unix,"
             f"addr.path={SOCKET},writable=on,num-queues={self.queues}"])
        wait_for_socket(self.proc)

    def stop(self):
        self.proc.terminate()
        self.proc.wait()
        if os.path.exists(SOCKET):
            os.unlink(SOCKET)


def measure(contestant, image, queues, seconds, depth):
    contestant.start(image)
    try:
        return {op: json.loads(run("blkio_bench", "virtio-blk-vhost-user", SOCKET, op, str(depth),
                                   str(queues), str(seconds))) for op in WORKLOADS}
    finally:
        contestant.stop()


def make_images():
    """{where: path}: the same fully allocated image on a block device and in a file."""
    run("modprobe", "brd", "rd_nr=2", f"rd_size={RAM_KIB}", "max_part=0")
    run("mkfs.xfs", "-q", "-f", "/dev/ram1")
    os.makedirs("/mnt/figure", exist_ok=True)
    run("mount", "-o", "noatime", "/dev/ram1", "/mnt/figure")
    images = {"bdev": "/dev/ram0", "file": "/mnt/figure/image.qcow2"}
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=full", images["file"],
        f"{IMAGE_MIB}M")
    run("dd", f"if={images['file']}", f"of={images['bdev']}", "bs=1M", "oflag=direct",
        "status=none")
    return images


def table(results, queues, depth):
    print(f"\n4 KiB, depth {depth}, {queues} queue{'s' if queues > 1 else ''}: IOPS (median)\n")
    print(f"| image on | {' | '.join(WORKLOADS)} | by |")
    print("|---|" + "---|" * (len(WORKLOADS) + 1))
    for where, rows in results.items():
        medians = {name: {op: statistics.median(r[op]["iops"] for r in rounds)
                          for op in WORKLOADS} for name, rounds in rows.items()}
        for name, m in medians.items():
            print(f"| {where} | " + " | ".join(f"{m[op]:,.0f}" for op in WORKLOADS) +
                  f" | {name} |")
        ours, *others = medians.values()
        ratios = [ours[op] / max(o[op] for o in others) for op in WORKLOADS]
        print(f"| {where} | " + " | ".join(f"**{r:.2f} x**" for r in ratios) +
              " | ours / the better of the others |")


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--seconds", type=float, default=4, help="of each measurement (default 4)")
    p.add_argument("--rounds", type=int, default=3, help="of each contestant (default 3)")
    p.add_argument("--depth", type=int, default=32, help="requests in flight (default 32)")
    p.add_argument("--queues", type=int, default=1)
    p.add_argument("--json", help="also write all measurements to this file")
    o = p.parse_args()
    images = make_images()
    contestants = [Ours(o.queues), Daemon(o.queues, "io_uring"), Daemon(o.queues, "native")]
    results = {where: {c.name: [] for c in contestants} for where in images}
    for number in range(o.rounds):
        for where, image in images.items():
            for c in contestants:
                one = measure(c, image, o.queues, o.seconds, o.depth)
                results[where][c.name].append(one)
                print(f"round {number + 1}, {where}, {c.name}: " +
                      ", ".join(f"{op} {r['iops']:,.0f} (p50 {r['p50_us']:.0f} us, p99 "
                                f"{r['p99_us']:.0f} us)" for op, r in one.items()), flush=True)
    table(results, o.queues, o.depth)
    if o.json:
        with open(o.json, "w") as f:
            json.dump(results, f, indent=1)
    run("umount", "/mnt/figure")


if __name__ == "__main__":
    main()
