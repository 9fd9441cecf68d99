# SPDX-License-Identifier: GPL-2.0-or-later
"""Images on NFS: a server in this guest, and mounts of it that are hosts of their own to it."""
import os
import socket
import time

import pytest

from dmqcow2 import KIB, Attached, Disk, refused
from helpers import MIB, SECTOR, image_check, image_create, qemu_io, run, wait_for

SIZE = 64 * MIB
NFSD = "/proc/fs/nfsd"


class Server:
    """The kernel's NFS server, version 4 only, exporting one directory."""

    def __init__(self, directory, spawn):
        self.directory = directory
        run("modprobe", "-q", "nfsd", check=False)
        if run("mount", "-t", "nfsd", "nfsd", NFSD, check=False).returncode:
            pytest.skip("this kernel has no NFS server")
        os.makedirs("/var/lib/nfs/v4recovery", exist_ok=True)
        os.makedirs("/run/rpc_pipefs", exist_ok=True)
        for name in ("etab", "rmtab"):
            open(f"/var/lib/nfs/{name}", "a").close()
        run("mount", "-t", "rpc_pipefs", "rpc_pipefs", "/run/rpc_pipefs")
        # Who says which client may reclaim its locks after a restart, and who may mount what.
        self.helpers = [spawn("nfsdcld", "-F", "-p", "/run/rpc_pipefs", "-s",
                              "/var/lib/nfs/nfsdcld"),
                        spawn("rpc.mountd", "-F", "-N", "2", "-N", "3")]
        run("exportfs", "-o", "rw,no_root_squash,fsid=0,no_subtree_check", f"127.0.0.0/8:{directory}")
        self.start()

    def start(self):
        run("rpc.nfsd", "-N", "3", "-G", "10", "-L", "10", "4", timeout=60)

    def stop(self):
        run("rpc.nfsd", "0", timeout=60)

    def remove(self):
        self.stop()
        run("exportfs", "-u", f"127.0.0.0/8:{self.directory}")
        for helper in self.helpers:
            helper.terminate()
            helper.wait(timeout=30)
        run("umount", "/run/rpc_pipefs")
        run("umount", NFSD)


@pytest.fixture
def server(filesystem, spawn, cleanup):
    made = Server(filesystem("ext4", 512 * MIB), spawn)
    cleanup(made.remove)
    return made


@pytest.fixture
def mount(server, tmp_path, cleanup):
    """mount(): another host's view of the server's directory."""
    count = iter(range(100))

    hostname = socket.gethostname()
    cleanup(socket.sethostname, hostname)

    def make():
        number = next(count)
        at = tmp_path / f"nfs{number}"
        at.mkdir()
        # Another name, and the server by another address: to the server that is another client.
        # For the moment only: a server that is started under another name is another server, from
        # which no client reclaims a lock.
        socket.sethostname(f"host{number}")
        run("mount", "-t", "nfs", "-o", "vers=4,nosharecache,hard,timeo=50",
            f"127.0.0.{1 + number}:/", at, timeout=100)
        socket.sethostname(hostname)
        cleanup(run, "umount", at)
        return str(at)
    return make


@pytest.mark.core
def test_image_on_nfs(dm, mount):
    """Attached, written, verified by QEMU; a second host, and QEMU on either, are refused meanwhile."""
    here, there = mount(), mount()
    image = image_create(os.path.join(here, "image"), SIZE)
    with Attached(dm, f"qcow2:{image}") as disk:
        disk.write(0x11, 0, 8 * MIB)
        disk.write(0x22, 40 * MIB, 512)
        disk.flush()
        disk.discard(0, MIB)
        for directory in (here, there):
            done = run("qemu-io", "-f", "qcow2", "-c", "write 0 512", f"{directory}/image", check=False)
            assert done.returncode and "lock" in done.stderr, done.stderr
        assert "in use by another process" in refused(dm, [f"qcow2:{there}/image"],
                                                      sectors=SIZE // SECTOR)
    image_check(image)
    qemu_io(f"{there}/image", "read -P 0 0 1M", "read -P 0x11 1M 7M", "read -P 0x22 40M 512")


def test_load_on_nfs(dm, mount, tmp_path):
    """A verified load on an image on NFS."""
    image = image_create(os.path.join(mount(), "image"), SIZE)
    job = ["fio", "--name=j", "--filename=/dev/mapper/q", "--direct=1", "--ioengine=libaio", "--iodepth=16",
           "--rw=randwrite", "--bssplit=4k/60:64k/40", "--size=32m", "--io_size=16m", "--verify=crc32c",
           "--verify_fatal=1", "--fsync=64", "--randseed=3", f"--aux-path={tmp_path}"]
    with Attached(dm, f"qcow2:{image}"):
        run(*job, "--do_verify=1", timeout=240)
    image_check(image)


def test_golden_base_on_nfs(dm, mount, bdev):
    """A local overlay on a base that several hosts share."""
    here, there = mount(), mount()
    base = image_create(os.path.join(here, "base"), SIZE)
    qemu_io(base, "write -P 0x11 0 32M")
    layers = [([f"qcow2:{image_create(bdev(128 * MIB), backing=path)}", f"qcow2:{path}"])
              for path in (base, os.path.join(there, "base"))]
    with Attached(dm, layers[0], name="q") as one, Attached(dm, layers[1], name="r") as two:
        one.write(0x22, MIB, MIB)
        two.write(0x33, MIB, 64 * KIB)
        one.expect(0x11, 0, MIB)
        two.expect(0x11, 2 * MIB, MIB)
        done = run("qemu-io", "-f", "qcow2", "-c", "write 0 512", f"{there}/base", check=False)
        assert done.returncode and "lock" in done.stderr, done.stderr
    for top, _ in layers:
        image_check(top.split(":", 1)[1])
    qemu_io(base, "read -P 0x11 0 32M")


def test_server_restarts_under_load(dm, server, mount, spawn, tmp_path):
    """The server goes and comes back: what waited is done, the locks are there again, all data is right."""
    here, there = mount(), mount()
    image = image_create(os.path.join(here, "image"), SIZE)
    job = ["fio", "--name=j", "--filename=/dev/mapper/q", "--direct=1", "--ioengine=libaio", "--iodepth=8",
           "--rw=randwrite", "--bs=16k", "--size=32m", "--io_size=48m", "--verify=crc32c",
           "--verify_fatal=1", "--fsync=32", "--randseed=4", f"--aux-path={tmp_path}"]
    with Attached(dm, f"qcow2:{image}") as disk:
        def written():
            return int(disk.limit("../stat").split()[4])

        writer = spawn(*job, "--do_verify=0", "--rate_iops=300")
        for _ in range(2):
            # A client that has not reclaimed its locks yet loses them when the server stops again.
            before = written()
            wait_for(lambda: written() > before + 100, timeout=100, step=0.1, what="writes")
            server.stop()
            time.sleep(1)
            assert writer.poll() is None, "there was no I/O to restart under"
            server.start()
        assert writer.wait(timeout=240) == 0
        assert disk.status()["mode"] == "rw"
        done = run("qemu-io", "-f", "qcow2", "-c", "write 0 512", f"{there}/image", check=False, timeout=100)
        assert done.returncode, "another host may write"
        run(*job, "--verify_only=1", timeout=240)
    wait_for(lambda: not run("qemu-img", "check", "-f", "qcow2", image, check=False).returncode,
             timeout=60, step=1, what="the grace period to end and the image to be clean")
    image_check(image)
