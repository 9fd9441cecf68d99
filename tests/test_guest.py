# SPDX-License-Identifier: GPL-2.0-or-later
"""A real guest on a disk of ours: the driver's view, file systems, discard, a second boot.

Runs with `qcow2attach run` on dm-qcow2 and vhost-blk, and on the same image with QEMU's own
vhost-user-blk server, so that a difference is a fault of ours and not of the guest.
"""
import re

import pytest

from helpers import MIB, Loop, image_check, image_create, image_info, run, wait_for
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


@pytest.fixture(params=["qcow2attach", pytest.param("qemu", marks=pytest.mark.full)])
def server(request, spawn, tmp_path):
    return OwnServer() if request.param == "qcow2attach" else QemuServer(spawn, tmp_path)


def boot(server, image, script):
    guest = server.guest(image, script)
    code = guest.run(timeout=280)
    assert code == 0, f"exit code {code}\n{guest.output}\n{guest.log}"
    return guest.output


def check_closed(image):
    """The image is whole, once its server has let go of it."""
    wait_for(lambda: run("qemu-img", "info", "-f", "qcow2", image, check=False).returncode == 0 or
             None, what="the end of the server")
    return image_check(image, leaks=True)


def files_in(image, tmp_path, cleanup):
    """The sums of the files as QEMU and this kernel read them, without any of our code."""
    raw, at = tmp_path / "raw", tmp_path / "mnt"
    at.mkdir(exist_ok=True)
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw)
    loop = Loop(raw)
    cleanup(loop.remove)
    run("mount", "-o", "ro", loop.path, at)
    cleanup(run, "umount", at)
    return sums(run("sh", "-c", f"cd {at} && sha256sum keep*").stdout)


def test_guest(server, filesystem, tmp_path, cleanup):
    """Two boots of a guest with two queues: what it wrote is there, what it dropped is not."""
    image = image_create(filesystem("ext4") + "/disk.qcow2", SIZE)
    first = boot(server, image, FIRST_BOOT)
    assert int(value(first, "capacity")) * 512 == SIZE
    assert value(first, "queues") == "2"
    if isinstance(server, OwnServer):
        assert value(first, "serial")
        assert int(value(first, "granularity")) == 65536
    assert int(value(first, "discard-max")) >= 65536
    assert int(value(first, "zeroes-max")) >= 65536
    assert f"{SIZE // 512} 512-byte logical blocks" in first
    interrupts = re.findall(r"^ *\d+:((?: +\d+)+) .*-req\.\d", first, re.M)
    assert len(interrupts) == 2 and all(sum(map(int, i.split())) for i in interrupts), first
    assert len(sums(first)) == 4
    check_closed(image)
    # 5 MiB of files and the file system's own; what was dropped is given back, in image and host.
    assert image_check(image, leaks=True)["allocated-clusters"] * 65536 < 24 * MIB
    assert image_info(image)["actual-size"] < 24 * MIB
    second = boot(server, image, SECOND_BOOT)
    assert sums(second) == sums(first)
    check_closed(image)
    last = files_in(image, tmp_path, cleanup)
    expected = sums(first)
    assert last.pop("keep1") != expected.pop("keep1")        # overwritten by the second boot
    assert last == expected
    if isinstance(server, OwnServer):
        image_check(image)                                   # a clean end leaves no leak, either
