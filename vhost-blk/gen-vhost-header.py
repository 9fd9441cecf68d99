#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Makes vhost-private.h: the structures that vhost.ko shares with its drivers.

The kernel keeps them in drivers/vhost/vhost.h, which no headers package has, and they change from
release to release. So they are taken from what the kernel itself says of its types (BTF: in the
vmlinux of the release and in its vhost.ko), printed as C by pahole; or, with a kernel source tree
at hand, from that file. Out of BTF the sizes and offsets are known, and the header makes the
compiler check each: it must come to the same layout. The functions' parameters are counted, too.
"""
import argparse
import glob
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile

STRUCTS = ["vhost_work", "vhost_log", "vhost_vring_call", "vhost_poll", "vhost_virtqueue",
           "vhost_dev"]

# Functions of vhost-core.h and how many parameters they have.
FUNCTIONS = {
    "vhost_work_init": [2], "vhost_poll_queue": [1], "vhost_dev_init": [8],
    "vhost_dev_set_owner": [1], "vhost_dev_check_owner": [1], "vhost_dev_reset_owner_prepare": [0],
    "vhost_dev_reset_owner": [2], "vhost_dev_stop": [1], "vhost_dev_cleanup": [1],
    "vhost_dev_flush": [1],
    "vhost_dev_ioctl": [3], "vhost_vring_ioctl": [3], "vhost_worker_ioctl": [3],
    "vhost_vq_access_ok": [1], "vhost_log_access_ok": [1], "vhost_vq_init_access": [1],
    "vhost_vq_work_queue": [2], "vhost_vq_has_work": [1], "vhost_get_vq_desc": [7],
    "vhost_add_used_n": [3, 4], "vhost_signal": [2], "vhost_disable_notify": [2],
    "vhost_vq_avail_empty": [2], "vhost_enable_notify": [2], "vhost_log_write": [6],
}

# Type information has no address spaces.
ANNOTATIONS = {("vhost_virtqueue", member): "__user" for member in
               ("desc", "avail", "used", "log_base")}
ANNOTATIONS["vhost_virtqueue", "worker"] = "__rcu"

INCLUDES = """\
#include <linux/atomic.h>
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/irqbypass.h>
#include <linux/llist.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/poll.h>
#include <linux/uio.h>
#include <linux/vhost.h>
#include <linux/vhost_iotlb.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <linux/xarray.h>
"""

GUARD = "_VHOST_BLK_VHOST_PRIVATE_H"


class GenError(Exception):
    """Cannot be done, for the reason given."""


def run(argv, **kw):
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kw)
    if done.returncode:
        raise GenError("%s: %s" % (argv[0], done.stderr.decode(errors="replace").strip()))
    return done.stdout


def unpack(data, what):
    """Data, without the compression that its first bytes tell."""
    for magic, argv in ((b"\xfd7zXZ", ["xz", "-dcq"]), (b"\x28\xb5\x2f\xfd", ["zstd", "-dcq"]),
                        (b"\x1f\x8b", ["gzip", "-dcq"]), (b"\x02\x21\x4c\x18", ["lz4", "-dcq"])):
        if data.startswith(magic):
            # Kernel images have their size appended, which the tools complain of.
            done = subprocess.run(argv, input=data, stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL)
            if not done.stdout:
                raise GenError("%s: %s cannot unpack it" % (what, argv[0]))
            return done.stdout
    return data


def from_bzimage(path):
    """The vmlinux inside an x86 kernel image, where the boot protocol's header says."""
    with open(path, "rb") as f:
        image = f.read()
    if image[0x202:0x206] != b"HdrS":
        raise GenError("%s: not an x86 kernel image; give VMLINUX=" % path)
    setup_sectors = image[0x1f1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    return unpack(image[start:start + length], path)


def find_vmlinux(args):
    """Contents of the kernel's ELF file or raw BTF."""
    if args.vmlinux:
        candidates = [args.vmlinux]
    else:
        candidates = [os.path.join(args.objtree, "vmlinux"),
                      "/usr/lib/debug/boot/vmlinux-" + args.release]
        if os.uname().release == args.release:
            candidates.insert(0, "/sys/kernel/btf/vmlinux")
    for path in candidates:
        if os.path.exists(path):
            with open(path, "rb") as f:
                return path, f.read()
    image = "/boot/vmlinuz-" + args.release
    if not args.vmlinux and os.path.exists(image):
        return image, from_bzimage(image)
    raise GenError("no vmlinux of %s found (looked for %s): is the package linux-headers-%s or "
                   "linux-image-%s installed? If so, give VMLINUX= or VHOST_SRC=" %
                   (args.release, ", ".join(candidates + [image]), args.release, args.release))


def find_module(args):
    """Contents of the release's vhost.ko, or None if vhost is built in."""
    base = "/lib/modules/%s/" % args.release
    paths = [args.vhost_ko] if args.vhost_ko else \
        sorted(glob.glob(base + "kernel/drivers/vhost/vhost.ko*"))
    if not paths:
        builtin = base + "modules.builtin"
        if os.path.exists(builtin) and "/vhost.ko" in open(builtin).read():
            return None, None
        raise GenError("no vhost.ko of %s found: is the package linux-image-%s installed? If so, "
                       "give VHOST_KO= or VHOST_SRC=" % (args.release, args.release))
    with open(paths[0], "rb") as f:
        data = unpack(f.read(), paths[0])
    magic = re.search(rb"\0vermagic=(\S+)", data)
    if not magic or magic.group(1).decode() != args.release:
        raise GenError("%s is of kernel %s, not of %s" %
                       (paths[0], magic.group(1).decode() if magic else "?", args.release))
    return paths[0], data


def btf_section(data, what):
    """The BTF in an ELF file (64-bit, little-endian), or the data if it is BTF itself."""
    if data[:2] == b"\x9f\xeb":
        return data
    if data[:6] != b"\x7fELF\x02\x01":
        raise GenError("%s: neither a 64-bit little-endian ELF file nor BTF" % what)
    shoff, = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3a)
    heads = [struct.unpack_from("<IIQQQQ", data, shoff + i * size) for i in range(count)]
    for name, _, _, _, offset, length in heads:
        at = heads[names][4] + name
        if data[at:at + 5] == b".BTF\0":
            return data[offset:offset + length]
    raise GenError("%s: has no type information (CONFIG_DEBUG_INFO_BTF); give VHOST_SRC=" % what)


class Btf:
    """As much of BTF as it takes to count the parameters of functions."""
    # Bytes that follow the 12 of each kind: fixed, and per member.
    TAIL = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0),
            15: (0, 12), 17: (4, 0), 19: (0, 12)}
    FUNC, FUNC_PROTO = 12, 13

    def __init__(self, data, base=None):
        self.first = base.first + base.count if base else 1
        header, type_off, type_len, str_off, str_len = struct.unpack_from("<IIIII", data, 4)
        self.strings_start = base.strings_start + len(base.strings) if base else 0
        self.strings = data[header + str_off:header + str_off + str_len]
        self.functions = []
        self.parameters = {}
        self.count = 0
        at, end = header + type_off, header + type_off + type_len
        while at < end:
            name, info, ref = struct.unpack_from("<III", data, at)
            kind, members = info >> 24 & 0x1f, info & 0xffff
            if kind == self.FUNC:
                self.functions.append((name, ref))
            elif kind == self.FUNC_PROTO:
                self.parameters[self.first + self.count] = members
            fixed, each = self.TAIL.get(kind, (0, 0))
            at += 12 + fixed + each * members
            self.count += 1

    def parameter_counts(self):
        counts = {}
        for name, proto in self.functions:
            at = name - self.strings_start
            if at >= 0 and proto in self.parameters:
                text = self.strings[at:self.strings.index(b"\0", at)].decode()
                counts[text] = self.parameters[proto]
        return counts


def check_functions(counts, where):
    for name, expected in FUNCTIONS.items():
        if counts.get(name) not in expected:
            raise GenError("%s: %s() has %s parameters, not %s: this kernel is not supported" %
                           (where, name, counts.get(name), " or ".join(map(str, expected))))


def print_structs(pahole, base, module):
    files = ["--btf_base", base, module] if module else [base]
    try:
        text = run([pahole, "-F", "btf", "-C", ",".join(STRUCTS)] + files).decode()
    except FileNotFoundError:
        raise GenError("%s is not installed (package pahole); or give VHOST_SRC=" % pahole)
    found = {}
    for m in re.finditer(r"^struct (\w+) \{\n.*?^\};?[^\n]*\n", text, re.M | re.S):
        found[m.group(1)] = m.group(0)
    missing = [s for s in STRUCTS if s not in found]
    if missing:
        raise GenError("struct %s is not in the type information" % ", ".join(missing))
    return found


def checks(name, text):
    """Compile-time checks of the size and of every member's place, as pahole commented them."""
    size = re.search(r"/\* size: (\d+),", text).group(1)
    out = ["static_assert(sizeof(struct %s) == %s);" % (name, size)]
    for line in text.splitlines():
        m = re.match(r"\t{1,2}[^/\n]*?(?:\(\*(\w+)\)\(.*\)|(\w+)(?:\[\d+\])*);"
                     r"\s*/\*\s*(\d+)\s+\d+ \*/", line)
        if m:
            out.append("static_assert(offsetof(struct %s, %s) == %s);" %
                       (name, m.group(1) or m.group(2), m.group(3)))
    return "\n".join(out) + "\n"


def annotate(name, text):
    def mark(m):
        space = ANNOTATIONS.get((name, m.group(2)))
        return "%s %s *%s;" % (m.group(1), space, m.group(2)) if space else m.group(0)
    return re.sub(r"^(\t[\w ]+?)\s*\*\s*(\w+);", mark, text, flags=re.M)


def from_btf(args):
    base_name, base = find_vmlinux(args)
    module_name, module = find_module(args)
    base_btf = Btf(btf_section(base, base_name))
    source = base_btf
    if module:
        source = Btf(btf_section(module, module_name), base_btf)
    counts = source.parameter_counts()
    check_functions(counts, module_name or base_name)

    with tempfile.TemporaryDirectory() as tmp:
        paths = []
        for name, data in (("vmlinux", base), ("vhost.ko", module)):
            path = os.path.join(tmp, name)
            if data:
                with open(path, "wb") as f:
                    f.write(btf_section(data, name))
            paths.append(path if data else None)
        structs = print_structs(args.pahole, *paths)

    out = ["/* Generated by gen-vhost-header.py from the type information of %s. */" % args.release,
           "#ifndef " + GUARD, "#define " + GUARD, "", INCLUDES]
    if counts["vhost_add_used_n"] == 4:
        out.append("#define VHOST_BLK_HAVE_NHEADS\n")
    out += ["struct vhost_dev;", "struct vhost_virtqueue;", "struct vhost_work;",
            "struct vhost_worker;", "struct vhost_msg_node;",
            "typedef void (*vhost_work_fn_t)(struct vhost_work *work);",
            "enum { VHOST_NUM_ADDRS = 3 };", ""]
    for name in STRUCTS:
        out += [annotate(name, structs[name]), checks(name, structs[name])]
    out += ['#include "vhost-core.h"', "", "#endif", ""]
    return "\n".join(out)


def from_source(header, output):
    """Include a copy of the kernel's own header."""
    copy = os.path.join(os.path.dirname(output), "vhost-kernel.h")
    shutil.copyfile(header, copy)
    text = open(copy).read()
    m = re.search(r"\bvhost_add_used_n\(([^;]*)\);", text)
    if not m:
        raise GenError("%s does not declare vhost_add_used_n()" % header)
    out = ["/* Generated by gen-vhost-header.py for a copy of the kernel's own header. */",
           "#ifndef " + GUARD, "#define " + GUARD, ""]
    if m.group(1).count(",") == 3:
        out.append("#define VHOST_BLK_HAVE_NHEADS\n")
    out += ['#include "vhost-kernel.h"', "", "#endif", ""]
    return "\n".join(out)


def source_header(args):
    """drivers/vhost/vhost.h of the tree that was named or that the build takes place in."""
    for tree in ([args.vhost_src] if args.vhost_src else [args.srctree, args.objtree + "/source"]):
        for path in (tree, os.path.join(tree, "vhost.h"),
                     os.path.join(tree, "drivers/vhost/vhost.h")):
            if os.path.isfile(path):
                return path
    if args.vhost_src:
        raise GenError("%s: no drivers/vhost/vhost.h there" % args.vhost_src)
    return None


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--release", required=True, help="kernel release (uname -r) built for")
    p.add_argument("--srctree", default=".")
    p.add_argument("--objtree", default=".")
    p.add_argument("--vmlinux")
    p.add_argument("--vhost-ko")
    p.add_argument("--vhost-src")
    p.add_argument("--pahole", default="pahole")
    p.add_argument("output")
    args = p.parse_args()
    try:
        header = source_header(args)
        text = from_source(header, args.output) if header else from_btf(args)
    except (GenError, OSError) as e:
        sys.exit("gen-vhost-header: %s" % e)
    with open(args.output, "w") as f:
        f.write(text)


if __name__ == "__main__":
    main()
