# SPDX-License-Identifier: GPL-2.0-or-later
"""A real guest on a disk of ours: the driver's view, file systems, discard, a second boot.

Runs with `qcow2attach run` on dm-qcow2 and vhost-blk, and on the same image with QEMU's own
vhost-user-blk server, so that a difference is a fault of ours and not of the guest.
"""
import re

import pytest

from helpers import MIB, image_check, image_create, image_info, run, wait_for
from nested import NestedGuest

pytestmark = pytest.mark.nested

SIZE = 192 * MIB
FIRST_BOOT = """
set -e
cd /sys/block/vda
echo "capacity $(cat size)"
echo "queues $(ls mq | wc -l)"
echo "serial $(cat serial)"
echo "granularity $(cat queue/discard_granularity)"
echo "discard-max $(cat queue/discard_max_bytes)"
echo "zeroes-max $(cat queue/write_zeroes_max_bytes)"
dmesg | grep -o 'virtio_blk.*logical blocks.*'
cd /
mkfs.ext4 -q -F /dev/vda
mkdir -p /mnt
mount -t ext4 /dev/vda /mnt
for i in 1 2 3 4; do
	# Two writers at a time, so that both queues have work.
	taskset 1 dd if=/dev/urandom of=/mnt/keep$i bs=64k count=$((i * 8)) 2>/dev/null &
	taskset 2 dd if=/bin/busybox of=/mnt/drop$i bs=1M conv=fsync 2>/dev/null
	wait
done
dd if=/dev/zero of=/mnt/drop bs=1M count=24 conv=fsync 2>/dev/null
sync
(cd /mnt && sha256sum keep*)
rm /mnt/drop*
sync
fstrim -v /mnt
umount /mnt
grep 'virtio.*req' /proc/interrupts
"""
SECOND_BOOT = """
set -e
mkdir -p /mnt
mount -t ext4 /dev/vda /mnt
(cd /mnt && sha256sum keep*)
dd if=/dev/zero of=/mnt/keep1 bs=64k count=4 conv=notrunc,fsync 2>/dev/null
umount /mnt
"""


def value(output, word):
    return re.search(rf"^{word} (.*)$", output, re.M).group(1)


def sums(output):
    return dict(reversed(line.split()) for line in output.splitlines()
                if re.match(r"[0-9a-f]{64}  keep", line))


class OwnServer:
    """qcow2attach run."""

    def guest(self, image, script):
        return NestedGuest(script, launcher=["qcow2attach", "run", "--queues", "2", image, "--"])


class QemuServer:
    """qemu-storage-daemon's vhost-user-blk."""

    def __init__(self, spawn, tmp_path):
        self.spawn, self.socket = spawn, tmp_path / "socket"

    def guest(self, image, script):
        if self.socket.exists():
            self.socket.unlink()
        self.spawn("qemu-storage-daemon",
                   "--blockdev", f"driver=file,filename={image},node-name=file,discard=unmap",
                   "--blockdev", "driver=qcow2,file=file,node-name=disk,discard=unmap",
                   "--export", "type=vhost-user-blk,id=e,node-name=disk,writable=on,num-queues=2,"
                   f"addr.type=unix,addr.path={self.socket}")
        wait_for(self.socket.exists, what="the storage daemon")
        return NestedGuest(script, [
            "-object", "memory-backend-memfd,id=mem,size=256M,share=on", "-numa",
            "node,memdev=mem", "-chardev", f"socket,id=disk,path={self.socket}",
            "-device", "vhost-user-blk-pci,chardev=disk,num-queues=2"])


@pytest.fixture(params=["qcow2attach", "qemu"])
def server(request, spawn, tmp_path):
    return OwnServer() if request.param == "qcow2attach" else QemuServer(spawn, tmp_path)
