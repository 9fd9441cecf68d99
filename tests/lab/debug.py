# SPDX-License-Identifier: GPL-2.0-or-later
"""x86 kernels built here, with the checkers that need several CPUs; QEMU starts them as it does the
packaged ones.

Owns which kernel has what instrumented. Emulation would have to run a check for every access to memory,
so the kernel proper is built without them and only our modules are built with.
"""
import os

import custom
import kernel
import qemu
import rootfs
import source
from common import cached, digest, read

# Given to make for the kernel, and not for our modules.
KERNELS = {"debug": ["KASAN_SANITIZE=n"], "kcsan": ["KCSAN_SANITIZE=n"]}
MODULES_DIR = "installed/lib/modules"


def tree(name):
    return custom.build(name, "bzImage", [], ["x86", name], KERNELS[name])


def initrd():
    """The cache directory with `initrd`, which holds no modules: what mounts the root is built in."""
    def make(tmp):
        kernel.make_initrd(rootfs.path(), "", os.path.join(tmp, "initrd"), kernel.INIT, [])

    return cached("initrd", digest(rootfs.path(), kernel.INITRD_SCRIPT,
                                   read(kernel.here(kernel.INIT))), make)


def setup(name):
    tree(name)
    initrd()


def build_for(name):
    """What build.py needs to build modules for kernel NAME."""
    at = tree(name)
    return read(os.path.join(at, "release")).strip(), at, ["-C", "/lab/kernel"], source.binds()


class Debug(qemu.Qemu):
    boot_timeout = 900

    def boot(self):
        at = tree(self.name)
        return (initrd(), os.path.join(at, "arch/x86/boot/bzImage"),
                [(os.path.join(at, MODULES_DIR), "/lab/root/lib/modules")])
