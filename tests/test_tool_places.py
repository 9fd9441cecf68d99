# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the files may lie that an image stands on: links, and the layouts of what else makes images."""
import os
import shutil

import pytest

from helpers import MIB, image_create, qemu_io, run
from toolcli import attach, images, refused, tool  # noqa: F401  (fixtures among them)


@pytest.fixture
def group(cleanup, bdev):
    """group(NAME, VOLUME...): block devices, with links in /dev/NAME as a volume group has them."""
    def make(name, *volumes):
        os.mkdir(f"/dev/{name}")
        cleanup(shutil.rmtree, f"/dev/{name}")
        for volume in volumes:
            node = os.path.basename(bdev(64 * MIB))
            os.symlink(f"../{node}", f"/dev/{name}/{volume}")
    return make


@pytest.fixture
def tree(cleanup, images):
    """tree(PATH): a directory of the test's filesystem, by the name that other programs have for it."""
    def make(path):
        made = path
        while not os.path.lexists(os.path.dirname(made)):
            made = os.path.dirname(made)
        if not os.path.lexists(path):
            cleanup(shutil.rmtree, made)
            os.makedirs(path)
        os.makedirs(images + path)
        run("mount", "--bind", images + path, path)
        cleanup(run, "umount", path)
        return path
    return make


def test_a_file_system_without_direct_io(images, filesystem):
    """ext4 that journals data takes the flag and goes through the page cache all the same."""
    image = golden(filesystem("ext4", options="data=journal") + "/image", 1)
    assert "Filesystem does not support direct I/O" in refused("attach", image, code=4)


def starts_with(device, pattern):
    with open(device, "rb") as f:
        return f.read(4096) == bytes([pattern]) * 4096


def golden(path, pattern):
    """A qcow2 image on a block device, or a new one in a file, that begins with PATTERN."""
    run("qemu-img", "create", "-q", "-f", "qcow2", path, "16M")
    qemu_io(path, f"write -P {pattern} 0 64k")
    return path


def overlay(path, backing, fmt="qcow2"):
    run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", fmt, path, "16M")
    return path


def test_a_link_to_a_link(images, attach, group):
    """A link that leads to a link in /dev/VG: --allow-dir /dev/VG allows it."""
    group("vg0", "base", "other")
    golden("/dev/vg0/base", 9)
    os.symlink("/dev/vg0/base", f"{images}/link")
    os.symlink("link", f"{images}/link-to-link")
    os.mkdir(f"{images}/sub")
    os.symlink("/dev/vg0", f"{images}/sub/group")
    real = os.path.realpath("/dev/vg0/base")
    for n, name in enumerate(["link", "link-to-link", "sub/group/base", "sub/../link",
                              f"{images}/./link", "/dev/vg0/base"]):
        image = overlay(f"{images}/vm{n}.qcow2", name)
        text = refused("attach", image, code=4)
        assert f"{real} is not in a directory" in text and "--allow-dir /dev/vg0 allows" in text
        assert "is not in a directory" in refused("attach", image, "--allow-dir", images, code=4)
        for allowed in (["--allow-dir", "/dev/vg0"], ["--backing", "/dev/vg0/base"],
                        ["--backing", real]):
            assert starts_with(attach(image, *allowed), 9), name
            tool("detach", f"vm{n}")
    # Going through an allowed directory is not lying there.
    past = f"/dev/vg0/../{os.path.basename(real)}"
    os.symlink(past, f"{images}/stranger")
    for n, name in enumerate([past, "stranger"]):
        image = overlay(f"{images}/no{n}.qcow2", name)
        assert "is not in a directory" in refused("attach", image, "--allow-dir", "/dev/vg0", code=4)


def test_links_that_lead_nowhere(images):
    os.symlink("ring-b", f"{images}/ring-a")
    os.symlink("ring-a", f"{images}/ring-b")
    os.symlink("nothing", f"{images}/dangling")
    last = golden(f"{images}/end.qcow2", 1)
    for n in range(41):
        os.symlink(os.path.basename(last), f"{images}/l{n}")
        last = f"l{n}"
    image = f"{images}/vm.qcow2"
    for name, words in [("ring-a", "Too many levels"), ("dangling", "No such file"),
                        ("l40", "Too many levels"), ("end.qcow2/x", "Not a directory"),
                        ("end.qcow2/", "Not a directory"), ("x" * 256, "File name too long")]:
        assert words in refused("attach", overlay(image, name), code=1), name
    tool("attach", overlay(image, "l39"))
    tool("detach", "vm")
    # Where anybody can lay a link for us, one of a stranger's is not followed.
    os.mkdir(f"{images}/tmp")
    os.chmod(f"{images}/tmp", 0o1777)
    os.symlink("../end.qcow2", f"{images}/tmp/link")
    os.chown(f"{images}/tmp/link", 1234, 1234, follow_symlinks=False)
    assert "Permission denied" in refused("attach", overlay(image, "tmp/link"), code=1)
    os.chown(f"{images}/tmp/link", 0, 0, follow_symlinks=False)
    tool("attach", image)
    tool("detach", "vm")


def test_ovirt(tree, group, attach):
    """Volumes are in a group that has the storage domain's name; each disk has a directory of links."""
    domain, disk, template = "5d5c-domain", "a1-disk", "b2-template"
    group(domain, "top", "snap", "tbase")
    tree("/rhev/data-center")
    disks = f"/rhev/data-center/mnt/blockSD/{domain}/images"
    os.makedirs(f"{disks}/{disk}")
    os.makedirs(f"{disks}/{template}")
    for where, volume in [(disk, "top"), (disk, "snap"), (template, "tbase"), (disk, "tbase")]:
        os.symlink(f"/dev/{domain}/{volume}", f"{disks}/{where}/{volume}")
    os.mkdir("/rhev/data-center/pool")
    os.symlink(f"/rhev/data-center/mnt/blockSD/{domain}", f"/rhev/data-center/pool/{domain}")
    golden(f"/dev/{domain}/tbase", 5)
    overlay(f"/dev/{domain}/snap", f"../{template}/tbase")
    overlay(f"/dev/{domain}/top", "snap")
    image = f"/rhev/data-center/pool/{domain}/images/{disk}/top"
    assert f"--allow-dir /dev/{domain} allows" in refused("attach", image, code=4)
    assert starts_with(attach(image, "--allow-dir", f"/dev/{domain}"), 5)
    tool("detach", "top")


def test_proxmox(tree, group, attach):
    group("pve", "vm-100-disk-0", "snap_vm-100-disk-0_s1")
    golden("/dev/pve/snap_vm-100-disk-0_s1", 3)
    overlay("/dev/pve/vm-100-disk-0", "snap_vm-100-disk-0_s1")
    image = "/dev/pve/vm-100-disk-0"
    assert "--allow-dir /dev/pve allows" in refused("attach", image, code=4)
    assert starts_with(attach(image, "--allow-dir", "/dev/pve"), 3)
    tool("detach", "vm-100-disk-0")
    disks = tree("/var/lib/vz/images")
    os.mkdir(f"{disks}/9000")
    os.mkdir(f"{disks}/100")
    golden(f"{disks}/9000/base-9000-disk-0.qcow2", 4)
    image = overlay(f"{disks}/100/vm-100-disk-0.qcow2", "../9000/base-9000-disk-0.qcow2")
    assert f"{disks}/9000/base-9000-disk-0.qcow2 is not in a directory" in \
        refused("attach", image, code=4)
    for allowed in (["--allow-dir", f"{disks}/9000"],
                    ["--backing", f"{disks}/9000/base-9000-disk-0.qcow2"]):
        assert starts_with(attach(image, *allowed), 4)
        tool("detach", "vm-100-disk-0")


def test_nova(tree, attach):
    """Every instance stands on a raw file of the directory _base."""
    instances = tree("/var/lib/nova/instances")
    base = f"{instances}/_base/0a3f"
    uuid = "b7c1"
    os.mkdir(f"{instances}/_base")
    os.mkdir(f"{instances}/{uuid}")
    with open(base, "wb") as f:
        f.write(bytes([6]) * MIB)
    image = overlay(f"{instances}/{uuid}/disk", base, "raw")
    assert f"{base} is not in a directory" in refused("attach", image, code=4)
    for allowed in (["--allow-dir", f"{instances}/_base"], ["--backing", base]):
        assert starts_with(attach(image, *allowed), 6)
        tool("detach", "disk")


def test_below_an_automount():
    """A directory that is mounted when it is used is on the way, and nobody has used it yet."""
    if not os.path.exists("/sys/kernel/debug/tracing"):
        run("mount", "-t", "debugfs", "none", "/sys/kernel/debug", check=False)
    if not os.path.lexists("/sys/kernel/debug/tracing"):
        pytest.skip("this kernel's debugfs mounts nothing")
    run("umount", "/sys/kernel/debug/tracing", check=False)
    name = "/sys/kernel/debug/tracing/available_tracers"
    assert "not a qcow2 image" in refused("attach", "--read-only", name, code=4)


def test_what_a_process_has_open(images):
    """Links to what is open are not followed, and the message is about that."""
    image = golden(f"{images}/image", 1)
    with open(image, "rb") as f:
        for name in (f"/proc/self/fd/{f.fileno()}", f"/dev/fd/{f.fileno()}"):
            if os.path.lexists(name):
                assert "links below /proc" in refused("attach", name, code=1)


def test_a_directory_where_anybody_makes_links(images, group, cleanup):
    """It is not offered, and a link that lies in it allows nothing."""
    group("anybodys", "base")
    golden("/dev/anybodys/base", 9)
    os.chmod("/dev/anybodys", 0o1777)
    os.makedirs("/dev/shm/mine")
    cleanup(shutil.rmtree, "/dev/shm/mine")
    os.symlink(os.path.realpath("/dev/anybodys/base"), "/dev/shm/mine/base")
    os.chown("/dev/shm/mine", 65534, 65534)
    mine = overlay(f"{images}/mine.qcow2", "/dev/shm/mine/base")
    for allowed in ("/dev/shm", "/dev/shm/mine", images):
        text = refused("attach", mine, "--allow-dir", allowed, code=4)
        assert "is not in a directory" in text and "--allow-dir /dev/shm" not in text
    image = overlay(f"{images}/vm.qcow2", "/dev/anybodys/base")
    assert "--allow-dir DIR allows" in refused("attach", image, code=4)
    assert "is not in a directory" in refused("attach", image, "--allow-dir", "/dev/anybodys",
                                              code=4)
