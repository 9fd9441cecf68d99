# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's command line; see docs/lab.md."""
import argparse
import os
import subprocess
import sys

import build
import check
import debug
import fresh
import guest
import host
import kernel
import qemu
import rootfs
from common import FRESH, GUESTS, KERNELS, LabError


def parse(argv):
    p = argparse.ArgumentParser(prog="lab", description="Builds and tests in a Debian 13 guest.")
    sub = p.add_subparsers(dest="verb", required=True)
    s = sub.add_parser("setup", help="make the root file system and boot files of a kernel")
    s.add_argument("kernel", nargs="?", default="stable", choices=GUESTS)
    s = sub.add_parser("build", help="build modules, tool and test programs into build/KERNEL/")
    s.add_argument("kernel", nargs="?", default="stable", choices=KERNELS)
    s.add_argument("--parts", default=",".join(build.PARTS), metavar="PART,...")
    for verb, text in (("run", "boot, load the modules, run a command"),
                       ("shell", "boot, load the modules, give a shell")):
        s = sub.add_parser(verb, help=text)
        s.add_argument("--kernel", default="stable", choices=GUESTS,
                       help="`fresh` is the stable one in a Debian that was only prepared for "
                            "`make install`")
        s.add_argument("--timeout", type=float, default=600 if verb == "run" else None,
                       help="seconds until the guest is killed")
        s.add_argument("--smp", type=int, help="how many CPUs (1 on um, else 2)")
        s.add_argument("--mem", default="4G")
        s.add_argument("--append", default="", help="more for the kernel's command line")
        s.add_argument("--icount", action="store_true",
                       help="one CPU whose time is the number of instructions it has run")
        s.add_argument("--plugin", metavar="FILE[,ARG]",
                       help="a plugin for QEMU; /repo is the project, /lab/out is build/out")
        s.add_argument("--no-modules", action="store_true", help="do not load our modules")
        s.add_argument("--parts", default=",".join(build.PARTS), metavar="PART,...",
                       help="what to build and, of the modules, to load")
        s.add_argument("--no-build", action="store_true", help="run what was built before")
        s.add_argument("--udev", action="store_true", help="run udevd in the guest")
        if verb == "run":
            s.add_argument("cmd", nargs="+", metavar="CMD")
    s = sub.add_parser("chroot", help="run a command in the Debian 13 root, the project at /repo")
    s.add_argument("--fresh", action="store_true", help="in a writable copy of the `fresh` root")
    s.add_argument("cmd", nargs="+", metavar="CMD")
    sub.add_parser("static", help="run the static checks alone")
    s = sub.add_parser("check", help="run all tests and add them up")
    s.add_argument("--full", action="store_true", help="all tests on all kernels")
    s.add_argument("--kernel", action="append", choices=KERNELS, help="only on this kernel")
    s.add_argument("only", nargs="*", metavar="NAME", help="only test files whose path holds NAME")
    return p.parse_args(argv)


def setup(name):
    rootfs.path()
    if name == "um":
        import uml
        uml.kernel()
    elif name in debug.KERNELS:
        debug.setup(name)
    else:
        kernel.packaged(name)


def main(argv):
    args = parse(argv)
    host.require_packages()
    if args.verb == "setup":
        setup(args.kernel)
        return 0
    if args.verb == "build":
        setup(args.kernel)
        return build.build(args.kernel, args.parts.split(","))
    if args.verb == "chroot":
        os.makedirs(guest.OUT, exist_ok=True)
        return subprocess.run(rootfs.enter(
            ["sh", "-c", 'cd /repo && exec "$@"', "sh"] + args.cmd, [(guest.OUT, "/out")],
            tree=fresh.path() if args.fresh else None, scratch=args.fresh)).returncode
    if args.verb == "static":
        import source
        os.makedirs(os.path.join(guest.OUT, "check"), exist_ok=True)
        return subprocess.run(rootfs.enter(
            ["env", "LAB_RESULTS=/out/check/static.results", "python3", "-B",
             "/repo/tests/static/run.py"],
            [(guest.OUT, "/out"), (kernel.packaged("stable"), "/lab/kernel"), *source.binds()]
        )).returncode
    if args.verb == "check":
        return check.check(args.full, args.only, args.kernel)
    setup(args.kernel)
    parts = args.parts.split(",")
    if args.kernel == FRESH:
        args.no_modules = True
    if not args.no_build and not args.no_modules:
        # A program that does not build fails the tests that need it, and only them.
        status = build.build(args.kernel, parts, modules_only=True)
        if status:
            return status
    job = guest.Job(getattr(args, "cmd", None), udev=args.udev,
                    modules=[] if args.no_modules else [p for p in build.MODULES if p in parts],
                    shell=args.verb == "shell")
    machine = {"smp": args.smp, "mem": args.mem, "append": args.append}
    if args.kernel == "um":
        if args.icount or args.plugin:
            raise LabError("User Mode Linux is not emulated: no --icount and no --plugin")
        import uml
        kind = uml.Uml
    elif args.kernel in debug.KERNELS:
        kind = debug.Debug
    else:
        kind = qemu.Qemu
        machine.update(icount=args.icount, plugin=args.plugin)
    return guest.run_job(lambda: kind(args.kernel, job, **machine), job, args.timeout)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LabError as e:
        print(f"lab: {e}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
