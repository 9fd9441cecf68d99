# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds everything that a guest runs, in the root file system, for one kernel.

Owns build/: build/obj/ (tool and test programs, the same for every kernel), build/KERNEL/obj/
(modules) and the finished files in build/KERNEL/. A part is rebuilt only when what it is made from
has changed. Finished files are replaced by rename, since a running guest may have the old one open.
"""
import os
import re
import shutil
import subprocess
import sys

import debug
import kernel
import rootfs
from common import BUILD, REPO, LabError, digest, locked, read, say, write

MODULES = ("dm-qcow2", "vhost-blk")
TOOL = "qcow2attach"
PARTS = (*MODULES, "tool", "progs", "nested")
PROGS = os.path.join("tests", "progs")
CFLAGS = ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra",
          "-fno-strict-aliasing", "-Wno-missing-field-initializers", "-Werror"]
# What a module's build says without anything being wrong.
NOISE = re.compile(r"^make\b.*(Entering|Leaving) directory|"
                   r"^\s+(CC|LD|MODPOST|BTF|GEN|HOSTCC|AR) |warning: the compiler differs|"
                   r"The kernel was built by|You are using:")


def sources(top):
    """All files below TOP of the project, relative to it, without what editors leave."""
    found = []
    for at, dirs, files in os.walk(os.path.join(REPO, top)):
        dirs[:] = [d for d in dirs if not d.startswith(".")]
        found += [os.path.relpath(os.path.join(at, f), os.path.join(REPO, top))
                  for f in files if not f.startswith(".") and not f.endswith("~")]
    return sorted(found)


def fingerprint(tops, *more):
    """Changes whenever a file below one of TOPS does."""
    parts = list(more)
    for top in tops:
        for name in sources(top):
            st = os.stat(os.path.join(REPO, top, name))
            parts.append((top, name, st.st_size, st.st_mtime_ns))
    return digest(*parts)


def fresh(stamp, mark):
    return os.path.exists(stamp) and read(stamp) == mark


def inside(path):
    """A path of the project as it is called in the root file system."""
    return os.path.join("/repo", os.path.relpath(path, REPO))


def call(argv, binds=(), strip=""):
    """Run a build step in the root; print what it says unless it is only progress."""
    done = subprocess.run(rootfs.enter(argv, binds), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace")
    lines = [line.replace(strip, "") if strip else line for line in done.stdout.splitlines()]
    text = "\n".join(line for line in lines if not NOISE.search(line)).strip()
    if text:
        print(text, file=sys.stderr, flush=True)
    return done.returncode


def install(source, target):
    tmp = target + ".tmp"
    shutil.copy2(source, tmp)
    os.rename(tmp, target)


def remove(*paths):
    """What cannot be built must not be tested in an older form."""
    for path in paths:
        if os.path.exists(path):
            os.remove(path)


def mirror_sources(top, into):
    """A directory of links to the sources, so that each kernel has objects of its own."""
    wanted = sources(top)
    os.makedirs(into, exist_ok=True)
    for name in wanted:
        link = os.path.join(into, name)
        target = os.path.join("/repo", top, name)
        os.makedirs(os.path.dirname(link), exist_ok=True)
        if not os.path.islink(link) or os.readlink(link) != target:
            if os.path.lexists(link):
                os.remove(link)
            os.symlink(target, link)
    for at, _, files in os.walk(into):
        for f in files:
            path = os.path.join(at, f)
            if os.path.islink(path) and os.path.relpath(path, into) not in wanted:
                os.remove(path)


def kernel_of(name):
    """(release, directory with vmlinux, make arguments) for building modules for kernel NAME."""
    if name == "um":
        import uml
        return uml.build_for()
    if name in debug.KERNELS:
        return debug.build_for(name)
    boot = kernel.packaged(name)
    release = read(os.path.join(boot, "release"))
    return release, boot, ["-C", f"/lib/modules/{release}/build"], []


def build_module(name, top):
    if not any(os.path.exists(os.path.join(REPO, top, f)) for f in ("Kbuild", "Makefile")):
        say(f"{top}: no Kbuild or Makefile, skipped")
        return 0
    release, boot, make, binds = kernel_of(name)
    obj = os.path.join(BUILD, name, "obj", top)
    stamp = os.path.join(obj, ".lab-stamp")
    final = os.path.join(BUILD, name, top + ".ko")
    # VMLINUX: the kernel's ELF file with BTF, for what must know its exact structures. No BTF is
    # made for our module: one that the kernel finds ambiguous is refused.
    argv = ["make", *make, f"M={inside(obj)}", f"-j{os.cpu_count()}", "W=1",
            "VMLINUX=/lab/kernel/vmlinux", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]
    if name == "um" or name in debug.KERNELS:
        argv.append("DM_QCOW2_TEST_HOOKS=y")
    how = digest(release, boot, *argv)
    mark = fingerprint([top], how)
    if fresh(stamp, mark) and os.path.exists(final):
        return 0
    say(f"building {top} for {release}")
    # Kbuild sees changed sources and flags, but not another kernel or other variables.
    if not fresh(stamp + "-how", how):
        shutil.rmtree(obj, ignore_errors=True)
    mirror_sources(top, obj)
    write(stamp + "-how", how)
    status = call(argv, [(boot, "/lab/kernel"), *binds],
                  strip=inside(os.path.dirname(obj)) + "/")
    if status:
        say(f"{top}: the build for {release} failed")
        remove(final)
        return status
    install(os.path.join(obj, top + ".ko"), final)
    write(stamp, mark)
    return 0


def build_tool(name):
    top = os.path.join("tools", TOOL)
    if not os.path.exists(os.path.join(REPO, top, "Makefile")):
        say(f"{top}: no Makefile, skipped")
        return 0
    obj = os.path.join(BUILD, "obj", TOOL)
    binary, stamp = os.path.join(obj, TOOL), os.path.join(obj, ".lab-stamp")
    mark = fingerprint([top, "vhost-blk/uapi", "dm-qcow2"], rootfs.path())
    if not fresh(stamp, mark) or not os.path.exists(binary):
        say(f"building {TOOL}")
        os.makedirs(obj, exist_ok=True)
        status = call(["make", "--no-print-directory", "-s", "-C", f"/repo/{top}",
                       f"O={inside(obj)}", f"-j{os.cpu_count()}"])
        if status:
            say(f"{top}: the build failed")
            remove(binary, os.path.join(BUILD, name, TOOL))
            return status
        write(stamp, mark)
    refresh(binary, os.path.join(BUILD, name, TOOL))
    return 0


def refresh(source, target):
    if not os.path.exists(target) or \
       os.stat(source).st_mtime_ns != os.stat(target).st_mtime_ns:
        install(source, target)


def libraries(path):
    """The libraries named on line 2 of a test program: /* libs: NAME... */"""
    with open(path) as f:
        head = [f.readline() for _ in range(2)]
    m = re.match(r"/\* libs:(.*)\*/", head[1])
    return ["-l" + lib for lib in m.group(1).split()] if m else []


def build_progs(name):
    status = 0
    obj = os.path.join(BUILD, "obj", "progs")
    os.makedirs(obj, exist_ok=True)
    headers = fingerprint(["vhost-blk/uapi", "tests/crash"], rootfs.path(), *CFLAGS,
                          *(read(os.path.join(REPO, PROGS, n)) for n in sources(PROGS)
                            if n.endswith(".h")))
    for source in (n for n in sources(PROGS) if n.endswith(".c")):
        prog = source[:-2].replace("/", "-")
        path, binary = os.path.join(REPO, PROGS, source), os.path.join(obj, prog)
        mark, stamp = digest(read(path), headers), binary + ".lab-stamp"
        if not fresh(stamp, mark) or not os.path.exists(binary):
            say(f"building test program {prog}")
            failed = call(["gcc", *CFLAGS, "-I/repo/vhost-blk/uapi", "-I/repo/dm-qcow2",
                           "-o", inside(binary), f"/repo/{PROGS}/{source}", *libraries(path)],
                          strip="/repo/")
            if failed:
                say(f"{PROGS}/{source}: the build failed")
                remove(binary, os.path.join(BUILD, name, prog))
                status = failed
                continue
            write(stamp, mark)
        refresh(binary, os.path.join(BUILD, name, prog))
    return status


def build_nested(name):
    """Kernel and initrd for a guest inside the guest, where that guest can see them."""
    if name == "um" or name in debug.KERNELS:
        return 0                # one cannot run guests, the others are too slow for it
    boot = kernel.packaged(name)
    into = os.path.join(BUILD, name, "nested")
    os.makedirs(into, exist_ok=True)
    for source, target in (("vmlinux", "vmlinux"), ("nested-initrd", "initrd")):
        refresh(os.path.join(boot, source), os.path.join(into, target))
    return 0


def build(name, parts=PARTS, modules_only=False):
    """Build PARTS for kernel NAME; 0 or the exit code of what failed. All parts are tried.

    modules_only: a failure of another part is told but does not count.
    """
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise LabError(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    status = 0
    with locked(os.path.join(BUILD, ".lock")):
        os.makedirs(os.path.join(BUILD, name), exist_ok=True)
        for part in parts:
            if part == "tool":
                failed = build_tool(name)
            elif part == "progs":
                failed = build_progs(name)
            elif part == "nested":
                failed = build_nested(name)
            else:
                failed = build_module(name, part)
            if part in MODULES or not modules_only:
                status = status or failed
    return status
