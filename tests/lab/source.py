# SPDX-License-Identifier: GPL-2.0-or-later
"""The source of a packaged kernel, from Debian's linux-source package.

Only kernels built here and checkpatch need it. What no kernel of ours compiles is left out.
"""
import os
import re
from subprocess import PIPE

import kernel
import rootfs
from common import LabError, cached, digest, run

LEFT_OUT_CODE = ["sound", "samples", "tools/testing", "drivers/gpu", "drivers/media",
                 "drivers/net/ethernet", "drivers/net/wireless", "drivers/staging",
                 "drivers/infiniband", "drivers/iio", "drivers/usb", "drivers/scsi",
                 "drivers/pinctrl", "drivers/clk"]
ARCHES = "alpha arc arm arm64 csky hexagon loongarch m68k microblaze mips nios2 openrisc parisc " \
         "powerpc riscv s390 sh sparc xtensa"
FETCH = r'''
set -eu
apt="-o Dir::State=/tmp/apt -o Dir::Cache=/tmp/apt -o APT::Sandbox::User=root"
mkdir -p /tmp/apt/lists/partial /tmp/apt/archives/partial
cd /tmp
apt-get -qq $apt -o Dir::State::status=/var/lib/dpkg/status update
apt-get -qq $apt download "$1=$2" 2>/dev/null || apt-get -qq $apt download "$1"
dpkg-deb --fsys-tarfile $1_*.deb | tar -xO "./usr/src/$1.tar.xz" >/tmp/source.tar.xz
rm -f $1_*.deb
shift 2
xz -T0 -dc /tmp/source.tar.xz | tar -x -C /lab/src --strip-components=1 "$@"
'''


def path(name="stable"):
    """The source tree of packaged kernel NAME, at /lab/src when entered with binds()."""
    release = kernel.version(name)
    series = ".".join(re.match(r"(\d+)\.(\d+)", release).groups())
    exclude = ["--exclude=*/Documentation/*/*"]
    exclude += [f"--exclude=*/{d}/*.[ch]" for d in LEFT_OUT_CODE]
    exclude += [f"--exclude=*/arch/{a}/*.[chS]" for a in ARCHES.split()]

    def make(tmp):
        tree = os.path.join(tmp, "tree")
        os.mkdir(tree)
        version = run(rootfs.enter(["dpkg-query", "--show", "--showformat=${source:Version}",
                                    "linux-image-" + release]), stdout=PIPE, text=True).stdout
        run(rootfs.enter(["sh", "-c", FETCH, "fetch", "linux-source-" + series, version] +
                         exclude, [(tree, "/lab/src")]))
        if not os.path.exists(os.path.join(tree, "scripts", "checkpatch.pl")):
            raise LabError(f"linux-source-{series} did not unpack into a kernel tree")

    return os.path.join(cached("linux-source", digest(release, FETCH, *exclude), make), "tree")


def binds(name="stable"):
    return [(path(name), "/lab/src")]
