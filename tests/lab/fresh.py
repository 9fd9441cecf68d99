# SPDX-License-Identifier: GPL-2.0-or-later
"""A Debian 13 as a user has it who did what the README says before `make install`, and no more.

Owns its root file system: a plain Debian with the packages that the README's own words install, so
that a package which is missing there is missing here. What a test installs later lies as packages in
apt's cache, since a guest has no network: DKMS, and a second kernel, whose structures differ from the
first's in size.
"""
import glob
import os
import re

import host
import rootfs
from common import REPO, LabError, cached, digest, read

USER = "admin"
# What any Debian has, and what the lab needs to boot it; qemu-utils makes the images to try.
BASE = """
	linux-image-amd64 systemd udev kmod sudo passwd apt man-db bash-completion iproute2 mount
	e2fsprogs busybox-static cpio psmisc qemu-utils
""".split()
LATER = ["dkms openssl", "linux-image-rt-amd64 linux-headers-rt-amd64"]


def packages():
    """What the README has its reader install."""
    m = re.search(r"^    sudo apt-get install (.*)$", read(os.path.join(REPO, "README.md")), re.M)
    if not m:
        raise LabError("README.md does not say which packages `make install` takes")
    # Of the kernel that is installed, which is that of the meta-package.
    return m.group(1).replace("linux-headers-$(uname -r)", "linux-headers-amd64").split()


def recipe():
    kept = [f for f in rootfs.RECIPE
            if not f.startswith(("--include", "--customize-hook=chroot"))]
    download = "apt-get -y --download-only -o Apt::Install-Recommends=false install "
    return [*kept, "--skip=cleanup/apt",
            "--include=" + ",".join(BASE + packages()),
            *(f'--customize-hook=chroot "$1" {download}{names}' for names in LATER),
            f'--customize-hook=chroot "$1" useradd -m -s /bin/bash {USER}; '
            f'echo "{USER} ALL=(ALL) NOPASSWD: ALL" >"$1/etc/sudoers.d/{USER}"; '
            'echo "127.0.0.1 localhost lab" >"$1/etc/hosts"']


def path():
    lines = recipe()
    return os.path.join(cached("rootfs-fresh", digest(rootfs.SUITE, *lines),
                               lambda tmp: rootfs.make(tmp, lines), host.remove_tree), "root")


def release():
    found = glob.glob(os.path.join(path(), "boot", "vmlinuz-*"))
    if len(found) != 1:
        raise LabError(f"expected one packaged kernel, found {found}")
    return os.path.basename(found[0])[len("vmlinuz-"):]
