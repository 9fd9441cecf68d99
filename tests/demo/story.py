# SPDX-License-Identifier: GPL-2.0-or-later
"""The demonstration, inside the lab's guest: a golden image, a VM on a thin overlay, and the proof.

Every command that matters is printed as it is run; anything that is not as promised ends it with an
error.
"""
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from helpers import MIB, NullBlk  # noqa: E402
from nested import NestedGuest  # noqa: E402

START = time.monotonic()
PLACE = "/srv/images"
GOLDEN, OVERLAY = "golden.qcow2", "vm1.qcow2"
GUEST = """
set -e
mkdir -p /disk
mount -t ext4 /dev/vda /disk
echo "the disk: $(cat /sys/block/vda/size) sectors, $(ls /sys/block/vda/mq | wc -l) queues, \
serial '$(cat /sys/block/vda/serial)'"
cd /disk
sha256sum -c -s golden/SHA256SUMS && echo "the files of the golden image are all as they were made"
mkdir mine
dd if=/dev/urandom of=mine/random bs=64k count=48 conv=fsync 2>/dev/null
cp golden/1 mine/copy
echo "written by the guest" >mine/note
echo "changed by the guest" >golden/2
sha256sum mine/* golden/2 >SUMS
sync
echo "wrote and synced: $(cd mine && echo *), changed golden/2"
dd if=/dev/zero of=big bs=1M count=40 conv=fsync 2>/dev/null
rm big
sync
echo "wrote 40 MiB more and deleted them; now $(fstrim -v /disk | sed 's/^[^:]*: //')"
cd /
umount /disk
"""


def step(text):
    print(f"\n== {text}", flush=True)


def tell(text):
    print(f"   {text}", flush=True)


def sh(command, show=True):
    """Run a command of the story; what it prints is shown and returned."""
    if show:
        print(f"   $ {command}", flush=True)
    done = subprocess.run(["sh", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, cwd=PLACE)
    if show:
        for line in done.stdout.splitlines():
            tell("  " + line)
    if done.returncode:
        if not show:
            tell(f"{command}: {done.stdout}")
        sys.exit(f"demo: this should not have failed (exit code {done.returncode})")
    return done.stdout


def digest(name):
    with open(os.path.join(PLACE, name), "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def allocated(name):
    return os.stat(os.path.join(PLACE, name)).st_blocks * 512


def mib(count):
    return f"{count / MIB:.1f} MiB"


def require(condition, text):
    if not condition:
        sys.exit(f"demo: NOT TRUE: {text}")
    tell(f"true: {text}")


def prepare():
    """A place for images: ext4, in memory, on a disk of this guest."""
    os.makedirs(PLACE, exist_ok=True)
    sh("modprobe loop", show=False)
    disk = NullBlk(1024 * MIB)
    sh(f"mkfs.ext4 -q -F {disk.path} && mount {disk.path} {PLACE}", show=False)


def make_golden():
    step("1. A golden image: 256 MiB disk with a file system and some files on it, made by QEMU's "
         "tools")
    tree = os.path.join(PLACE, "tree", "golden")
    os.makedirs(tree)
    for n in range(1, 5):
        with open(f"{tree}/{n}", "wb") as f:
            f.write(os.urandom(n * MIB))
    sums = "".join(f"{digest(f'tree/golden/{n}')}  golden/{n}\n" for n in range(1, 5))
    with open(f"{tree}/SHA256SUMS", "w") as f:
        f.write(sums)
    sh("mkfs.ext4 -q -d tree golden.raw 256M")
    sh(f"qemu-img convert -f raw -O qcow2 golden.raw {GOLDEN} && rm -r golden.raw tree")
    step("2. A thin overlay on it for one VM: it holds only what differs")
    sh(f"qemu-img create -q -f qcow2 -b {GOLDEN} -F qcow2 {OVERLAY}")
    sh(f"ls -lsh {GOLDEN} {OVERLAY}")


def run_guest():
    step("3. An unmodified QEMU runs a VM from it: `qcow2attach run IMAGE -- qemu-system-x86_64 ...`")
    guest = NestedGuest(GUEST, launcher=["qcow2attach", "run", "--queues", "2",
                                         f"{PLACE}/{OVERLAY}", "--"])
    words = shlex.join(guest.argv).split(" -append ")[0]
    tell(f"$ {words} ...")
    tell("  (dm-qcow2 makes the image a block device, vhost-blk serves it to the VM in the kernel)")
    shown = {"devices": False}

    def show(line):
        if not shown["devices"]:
            shown["devices"] = True
            for text in sh("dmsetup table; dmsetup status; ls -l /dev/vhost-blk",
                           show=False).splitlines():
                tell(f"  host   | {text}")
        if not line.startswith("nested: "):
            tell(f"  guest  | {line}")

    code = guest.run(timeout=300, show=show)
    if code:
        print(guest.log)
        sys.exit("demo: the guest failed" if code else "demo: the guest ended too early")
    if code is None:
        print(guest.log)
        sys.exit("demo: the guest ended too early")
    tell(f"the VM has powered off after {guest.seconds:.0f} s")
    left = sh("dmsetup ls", show=False).strip()
    require(left == "No devices found", "nothing is left behind: no device, no server")


def prove(golden_before):
    step("4. The proof, first by QEMU's own tools, which know nothing of us")
    sh(f"qemu-img check -f qcow2 {OVERLAY}")
    sh(f"qemu-img convert -f qcow2 -O raw {OVERLAY} read-by-qemu.raw")
    sh("mkdir -p mnt && mount -o loop,ro read-by-qemu.raw mnt")
    sh("cd mnt && sha256sum -c SUMS")
    sh("umount mnt")
    require(digest(GOLDEN) == golden_before, "the golden image has not changed by a bit")
    step("5. The same disk read through dm-qcow2, compared sector by sector with QEMU's reading")
    sh(f"qcow2attach attach --read-only --name proof {OVERLAY}")
    sh("qcow2attach status proof")
    sh("dd if=/dev/mapper/proof of=read-by-dm-qcow2.raw bs=1M status=none")
    sh("qcow2attach detach proof")
    sh(f"qemu-img compare -f raw -F qcow2 read-by-dm-qcow2.raw {OVERLAY}")
    step("6. The overlay is thin")
    clusters = json.loads(sh(f"qemu-img check -f qcow2 --output=json {OVERLAY}", show=False))
    used = clusters["allocated-clusters"] * clusters.get("cluster-size", 65536)
    sh(f"ls -lsh {OVERLAY}")
    require(allocated(OVERLAY) < 24 * MIB,
            f"the VM wrote about 48 MiB and deleted 40 of them; the image takes "
            f"{mib(allocated(OVERLAY))} on the host ({mib(used)} of data)")


def main():
    prepare()
    make_golden()
    before = digest(GOLDEN)
    run_guest()
    prove(before)
    print(f"\nAll of it is true. It took {time.monotonic() - START:.0f} s.")


if __name__ == "__main__":
    main()
