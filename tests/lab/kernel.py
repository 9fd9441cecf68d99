# SPDX-License-Identifier: GPL-2.0-or-later
"""The packaged kernels, made bootable: an uncompressed vmlinux and small initrds for each.

Owns the choice of modules in the initrds: just what mounting the root over 9p takes, and what a guest
inside the guest needs to use a virtio disk.
"""
import glob
import os
import re
import struct

import fresh
import host
import rootfs
from common import LAB, LabError, cached, digest, read, run, write

INITRD_MODULES = ["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"]
INIT = "/repo/tests/lab/initrd-init"
# A guest inside the guest: its initrd is all of its user space.
NESTED_MODULES = ["virtio_pci", "virtio_blk", "virtio_console", "ext4"]
NESTED_PROGRAMS = ["mkfs.ext4", "fstrim"]
NESTED_INIT = "/repo/tests/lab/nested-init"


def here(path):
    """Where a file of the lab's that guests know as /repo/... is on this side."""
    return os.path.join(LAB, os.path.basename(path))


def version(name):
    """The release (uname -r) of packaged kernel NAME in the root file system."""
    if name == "fresh":
        return fresh.release()
    found = [os.path.basename(p)[len("vmlinuz-"):]
             for p in glob.glob(os.path.join(rootfs.path(), "boot", "vmlinuz-*"))]
    found.sort(key=lambda v: [int(n) for n in re.findall(r"\d+", v)])
    if len(found) != 2:
        raise LabError(f"expected two packaged kernels, found {found}")
    return {"stable": found[0], "backports": found[1]}[name]


def payload(image):
    """The compressed vmlinux inside a bzImage, by the x86 boot protocol's header."""
    setup_sectors = image[0x1f1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    return image[start:start + length]


def unpack_vmlinux(data, to):
    magics = {b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b": "gzip"}
    tool = next((t for m, t in magics.items() if data.startswith(m)), None)
    if not tool:
        raise LabError(f"unknown compression of the kernel image: {data[:6].hex()}")
    # The last four bytes are the size that the kernel's build appends, which the tools may dislike.
    out = run_pipe([tool, "-dcq"], data)
    if out[:4] != b"\x7fELF":
        raise LabError("the kernel image holds no ELF file")
    write(to, out)


def run_pipe(argv, data):
    import subprocess
    return subprocess.run(rootfs.enter(argv), input=data, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL).stdout


INITRD_SCRIPT = r'''
set -eu
kv=$1 init=$2 modules=$3 programs=$4
d=$(mktemp -d); cd "$d"
mkdir bin dev proc sys new ro rw m tmp etc
cp /usr/bin/busybox bin/
for a in $(busybox --list); do
	[ "$a" = busybox ] || ln -s busybox "bin/$a"
done
for p in $programs; do
	cp --remove-destination "$(command -v "$p")" bin/
	ldd "$(command -v "$p")" | grep -o '/[^ ]*' | while read -r lib; do
		mkdir -p ".${lib%/*}"
		cp -L "$lib" ".$lib"
	done
done
touch m/order
for m in $modules; do
	modprobe -S "$kv" --show-depends "$m"
done | while read -r what path args; do
	[ "$what" = insmod ] || continue
	name=$(basename "$path" .xz)
	[ ! -e "m/$name" ] || continue
	case $path in *.xz) xz -dc "$path" >"m/$name" ;; *) cp "$path" m/ ;; esac
	echo "$name" >>m/order
done
cp "$init" init
chmod 755 init
find . | cpio -o -H newc --quiet
'''


def make_initrd(tree, release, to, init, modules, programs=()):
    """busybox, modules with what they depend on, programs with their libraries, and an init."""
    with open(to, "wb") as f:
        run(rootfs.enter(["sh", "-c", INITRD_SCRIPT, "mkinitrd", release, init,
                          " ".join(modules), " ".join(programs)], tree=tree), stdout=f)


def packaged(name):
    """The cache directory with `vmlinux`, `initrd` and `release` of packaged kernel NAME."""
    release = version(name)
    tree = fresh.path() if name == "fresh" else rootfs.path()

    def make(tmp):
        unpack_vmlinux(payload(read(os.path.join(tree, "boot", "vmlinuz-" + release), "rb")),
                       os.path.join(tmp, "vmlinux"))
        make_initrd(tree, release, os.path.join(tmp, "initrd"), INIT, INITRD_MODULES)
        if name != "fresh":
            make_initrd(tree, release, os.path.join(tmp, "nested-initrd"), NESTED_INIT,
                        NESTED_MODULES, NESTED_PROGRAMS)
        write(os.path.join(tmp, "release"), release)

    return cached("kernel-" + name, digest(
        release, tree, *INITRD_MODULES, *NESTED_MODULES, *NESTED_PROGRAMS, INITRD_SCRIPT,
        *(read(here(f)) for f in (INIT, NESTED_INIT))), make)
