# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels built here from Debian's source, to find bugs that packaged ones cannot.

Owns config/*.config, each a list of options on top of allnoconfig. The cache entry keeps what
modules are built against: the object tree without its objects, and the modules installed.

A line of the source may be changed, in a copy of its file that lies over it during the build: only
where the kernel stays the one to be tested, and becomes faster. Where another version has no such
line its file is left as it is, and the kernel is slower.
"""
import os

import rootfs
import source
from common import LAB, LabError, cached, digest, read, run, say, write

CONFIGURE = r'''
set -eu
cd /lab/src
make -s "$@" O=/lab/kernel KCONFIG_ALLCONFIG="$CONFIG" allnoconfig
# What is asked for and cannot be had is a mistake of the list.
missing=$(grep -v -e '^#' -e '=n$' "$CONFIG" | while IFS= read -r line; do
	grep -qxF "$line" /lab/kernel/.config || echo "$line"
done)
[ -z "$missing" ] || { echo "options that did not take:" $missing >&2; exit 1; }
'''
BUILD = r'''
set -eu
cd /lab/src
target=$1; shift
if ! nice make "$@" O=/lab/kernel -j"$(nproc)" $target modules >/lab/kernel/build.log 2>&1; then
	grep -m 20 -B 2 -A 8 -e 'error:' -e 'Error [0-9]' /lab/kernel/build.log >&2
	exit 1
fi
make -s "$@" O=/lab/kernel INSTALL_MOD_PATH=/lab/kernel/installed modules_install \
	>>/lab/kernel/build.log
make -s "$@" O=/lab/kernel kernelrelease >/lab/kernel/release
cd /lab/kernel
find . -name installed -prune -o \
	\( -name '*.o' -o -name '*.a' -o -name '*.ko' -o -name '.*.cmd' \) \
	! -path './scripts/*' ! -path './tools/*' -print0 | xargs -0 rm -f
rm -f .tmp_vmlinux* vmlinux.unstripped
'''


def configuration(lists):
    return "".join(read(os.path.join(LAB, "config", name + ".config")) for name in lists)


def changed(src, changes, where):
    """Copies below WHERE of the files of SRC that CHANGES are about, and where to bind them.

    A file that one of its changes does not fit is left as it is: the others may need that one.
    """
    binds = []
    for number, path in enumerate(dict.fromkeys(path for path, _, _ in changes)):
        source_file = os.path.join(src, path)
        text = read(source_file) if os.path.exists(source_file) else ""
        for old, new in (change[1:] for change in changes if change[0] == path):
            if text.count(old) != 1:
                say(f"{path} has not once what is changed to make the kernel faster: {old.strip()}")
                break
            text = text.replace(old, new)
        else:
            copy = os.path.join(where, f"changed-{number}")
            write(copy, text)
            binds.append((copy, "/lab/src/" + path))
    return binds


def build(name, target, make_args, lists=None, only_kernel=(), of="stable", changes=()):
    """The object tree of kernel NAME; it must be at /lab/kernel when modules are built for it.

    It is built from the source of packaged kernel OF. LISTS are the option lists that make up its
    configuration; ONLY_KERNEL are variables that modules of ours are not built with. CHANGES are
    (file, old text, new text).
    """
    text = configuration(lists or [name])
    args = [*make_args, *only_kernel]
    src = source.path(of)

    def make(tmp):
        tree = os.path.join(tmp, "tree")
        os.mkdir(tree)
        write(os.path.join(tree, "lab.config"), text)
        binds = [(src, "/lab/src"), (tree, "/lab/kernel"), *changed(src, changes, tmp)]
        # The kernel is kept whole, so what it was compiled to need not be kept, too.
        env = ["env", "CONFIG=/lab/kernel/lab.config", "CCACHE_DISABLE=1"]
        run(rootfs.enter(env + ["sh", "-c", CONFIGURE, "configure", *args], binds))
        run(rootfs.enter(env + ["sh", "-c", BUILD, "build", target, *args], binds))
        if not os.path.exists(os.path.join(tree, "release")):
            raise LabError(f"kernel {name} was not built")

    return os.path.join(cached("kernel-" + name, digest(text, os.path.basename(os.path.dirname(src)),
                                                        CONFIGURE, BUILD, *args, *sum(changes, ())),
                               make), "tree")
