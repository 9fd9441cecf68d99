# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian 13 root file system that builds the project and that guests run from.

Owns its package list. It holds both packaged kernels, their headers, and every tool the build, the
tests and the demo use; nothing else is installed on the host. It is read-only once made. What was
compiled in it once is kept in the cache's ccache/, whichever copy of the project it was for.
"""
import os
import subprocess

import host
from common import CACHE, LAB, REPO, LabError, cached, digest, read, say

SUITE = "trixie"
BACKPORTS = SUITE + "-backports"
KERNEL_PACKAGES = ["linux-image-amd64", "linux-headers-amd64"]
PACKAGES = KERNEL_PACKAGES + """
	gcc clang ccache make sparse dwarves bpftool libc6-dev flex bison bc libelf-dev libssl-dev perl
	cppcheck shellcheck mandoc spin git rsync
	libdevmapper-dev libjson-c-dev liburing-dev libblkio-dev libseccomp-dev libcap-dev
	libcap-ng-dev libaio-dev zlib1g-dev libzstd-dev
	qemu-system-x86 qemu-system-common qemu-utils seabios
	dmsetup lvm2 thin-provisioning-tools fio nbd-client nfs-kernel-server nfs-common
	kmod udev busybox-static xfsprogs e2fsprogs btrfs-progs util-linux mount fdisk
	strace procps iproute2 iputils-ping cpio zstd xz-utils jq uidmap file psmisc
	bsdextrautils python3 python3-pytest linux-perf
""".split()

# Guests mount these; they exist in the tree because it is read-only later.
MOUNT_POINTS = "repo out build lab"

RECIPE = [
    "--variant=minbase",
    "--skip=check/empty",
    '--aptopt=Apt::Install-Recommends "false"',
    '--aptopt=Acquire::Languages "none"',
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=force-unsafe-io",
    "--dpkgopt=force-confold",
    # The lab makes its own initrd; Debian's would take a minute per kernel.
    '--essential-hook=mkdir -p "$1/etc/initramfs-tools"; '
    'echo update_initramfs=no > "$1/etc/initramfs-tools/update-initramfs.conf"',
    '--customize-hook=chroot "$1" apt-get -y -o Apt::Install-Recommends=false '
    f"-t {BACKPORTS} install " + " ".join(KERNEL_PACKAGES),
    f'--customize-hook=for d in {MOUNT_POINTS}; do mkdir -p "$1/$d"; done; '
    'rm -rf "$1"/boot/initrd*; chmod -R a+rX "$1/boot"',
    "--include=" + ",".join(PACKAGES),
]


def sources():
    uri = host.mirror()
    if uri:
        return uri, [f"deb {uri} {suite} main" for suite in (SUITE, BACKPORTS)]
    return None, []


def make(tmp, recipe=tuple(RECIPE)):
    uri, lines = sources()
    argv = ["mmdebstrap", *recipe]
    argv += ["--aptopt=" + option for option in host.apt_options()]
    if not lines:
        # mmdebstrap's default mirror, and backports from the same place.
        argv += ["--setup-hook=sed -n 's/ " + SUITE + " / " + BACKPORTS + " /p' "
                 '"$1/etc/apt/sources.list" >> "$1/etc/apt/sources.list"']
    say(f"fetching Debian {SUITE} packages from " + (uri or "the default mirror"))
    tree = os.path.join(tmp, "root")
    log = os.path.join(tmp, "mmdebstrap.log")
    env = {**os.environ, "LC_ALL": "C"}
    with open(log, "w") as err:
        if host.is_root():
            os.mkdir(tree)
            failed = subprocess.run(
                host.as_root(argv + ["--mode=root", "--format=directory", SUITE, tree] + lines),
                stdin=subprocess.DEVNULL, stdout=err, stderr=err, env=env).returncode
        else:
            failed = make_unprivileged(argv, lines, tree, err, env)
    if failed:
        raise LabError(f"mmdebstrap failed; the end of {log}:\n" +
                       "".join(read(log).splitlines(True)[-30:]))


def make_unprivileged(argv, lines, tree, err, env):
    """mmdebstrap maps ids its own way, so its tree goes through tar into our mapping."""
    os.mkdir(tree)
    pack = subprocess.Popen(argv + ["--mode=unshare", "--format=tar", SUITE, "-"] + lines,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err, env=env)
    unpack = subprocess.run(host.as_root(["tar", "-x", "-C", tree, "--numeric-owner",
                                          "--exclude=./dev/*"]), stdin=pack.stdout, stderr=err)
    pack.stdout.close()
    return pack.wait() or unpack.returncode


def path():
    """The root directory, made first when it is not cached."""
    key = digest(SUITE, *RECIPE)
    return os.path.join(cached("rootfs", key, make, host.remove_tree), "root")


def enter(argv, binds=(), tree=None, scratch=False):
    """ARGV to be run in the root file system TREE, which is read-only; /repo is the project.

    BINDS are (source, target) pairs besides; targets are below /lab or made beforehand. SCRATCH: what
    ARGV writes is kept in memory until it ends.
    """
    compiled = os.path.join(CACHE, "ccache")
    os.makedirs(compiled, exist_ok=True)
    args = ["/bin/sh", os.path.join(LAB, "enter"), *(["-w"] if scratch else []), tree or path(),
            os.path.join(CACHE, "mnt"), REPO, compiled + ":/lab/ccache"]
    for source, target in binds:
        args += [f"{source}:{target}"]
    return host.as_root(args + ["--"] + argv)
