# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests in the guest use to make storage, images and device-mapper devices and
to look at them.

Plain functions and small classes; conftest.py hands them out as fixtures that clean up. Everything
raises CommandError with the command's output when a command fails.
"""
import glob
import itertools
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lab"))
import klog  # noqa: E402  (the rules that the host applies to the whole run)

MIB = 1 << 20
SECTOR = 512


class CommandError(AssertionError):
    """A command failed; `.stdout`, `.stderr` and `.returncode` are the command's."""

    def __init__(self, argv, done):
        self.stdout, self.stderr, self.returncode = done.stdout, done.stderr, done.returncode
        super().__init__(f"{shlex.join(map(str, argv))} exited with {done.returncode}\n"
                         f"{done.stdout}{done.stderr}")


def run(*argv, check=True, timeout=120, **kw):
    """Run a command, its output captured as text. check=False returns the failure instead."""
    argv = [str(a) for a in argv]
    kw.setdefault("stdin", None if "input" in kw else subprocess.DEVNULL)
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          errors="replace", timeout=timeout,
                          **{k: v for k, v in kw.items() if v is not None or k != "stdin"})
    if check and done.returncode:
        raise CommandError(argv, done)
    return done


def wait_for(condition, timeout=20, step=0.02, what="condition"):
    """Poll until condition() is true and return its value."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout} s in vain for {what}")
        time.sleep(step)
    return value


def sysfs(dev, name):
    """A value below /sys/block of DEV (or of what it links to), e.g. "queue/discard_granularity"."""
    node = os.path.basename(os.path.realpath(dev))
    with open(f"/sys/block/{node}/{name}") as f:
        return f.read().strip()


def child_of(pid):
    """The only child of a process."""
    pid, = run("pgrep", "-P", pid).stdout.split()
    return int(pid)


def size_of(dev):
    """Size of a block device or file in bytes."""
    with open(dev, "rb") as f:
        return f.seek(0, os.SEEK_END)


def sync_caches():
    """Write everything back and drop the page cache, so that a reader sees the device itself."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write("3")


class KernelLog:
    """The kernel's messages since this object was made."""

    def __init__(self):
        self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self.fd, 0, os.SEEK_END)
        self.lines = []

    @staticmethod
    def mark(text):
        """Leave a line in the kernel's log, to find one's way in it later."""
        with open("/dev/kmsg", "w") as f:
            f.write(f"<6>{text}\n")

    def read(self):
        """All lines so far."""
        while True:
            try:
                record = os.read(self.fd, 8192).decode(errors="replace")
            except BlockingIOError:
                return self.lines
            except BrokenPipeError:         # overwritten before we read it
                continue
            self.lines.append(record.split(";", 1)[1].split("\n", 1)[0])

    def grep(self, pattern):
        """The lines that match a regular expression."""
        return [line for line in self.read() if re.search(pattern, line)]

    def faults(self):
        """A text with every WARNING, BUG and the like, or ""."""
        return klog.report(self.read())

    def close(self):
        os.close(self.fd)


class Dm:
    """dmsetup, without udev's cooperation unless udevd runs in this guest."""

    def __init__(self):
        self.names = []
        self.sync = [] if os.path.exists("/run/udev/control") else ["--noudevsync"]

    def setup(self, *argv, check=True, **kw):
        """dmsetup with the given arguments; device nodes are right when it returns."""
        done = run("dmsetup", argv[0], *self.sync, *argv[1:], check=check, **kw)
        if self.sync and argv[0] in ("create", "remove", "rename", "remove_all"):
            run("dmsetup", "mknodes")
        return done

    def create(self, name, table, *options, check=True):
        """Create and activate NAME; returns its path. TABLE is one line or several."""
        self.names.append(name)
        done = self.setup("create", name, *options, "--table", table, check=check)
        return done if not check else f"/dev/mapper/{name}"

    def create_qcow2(self, name, layers, features=(), sectors=None, check=True):
        """Create a qcow2 device. LAYERS is a list such as ["qcow2:/a", "raw:/b"], top first."""
        return self.create(name, self.qcow2_table(layers, features, sectors), check=check)

    @staticmethod
    def qcow2_table(layers, features=(), sectors=None):
        """The table line; the size is read from the top image when not given."""
        if isinstance(layers, str):
            layers = [layers]
        if sectors is None:
            sectors = image_info(layers[0].split(":", 1)[1])["virtual-size"] // SECTOR
        words = [str(f) for feature in features for f in str(feature).split()]
        more = [str(len(words)), *words] if words else []
        return " ".join(["0", str(sectors), "qcow2", str(len(layers)), *layers, *more])

    def remove(self, name, *options):
        """Remove NAME. A node that a probe still holds open is waited for."""
        self.setup("remove", "--retry", *options, name)
        if name in self.names:
            self.names.remove(name)

    def remove_all(self):
        """Remove what was created through this object, newest first."""
        for name in reversed(self.names[:]):
            if run("dmsetup", "info", name, check=False).returncode == 0:
                self.setup("remove", "--retry", "--force", name)
            self.names.remove(name)

    def load(self, name, table):
        """Put TABLE into the inactive slot."""
        self.setup("load", name, "--table", table)

    def suspend(self, name, *options):
        self.setup("suspend", *options, name)

    def resume(self, name):
        self.setup("resume", name)

    def reload(self, name, table, *suspend_options):
        """Replace the live table."""
        self.load(name, table)
        self.suspend(name, *suspend_options)
        self.resume(name)

    def message(self, name, *words, check=True):
        """Send a message; returns what the kernel answers."""
        done = run("dmsetup", "message", name, "0", *words, check=check)
        return done if not check else done.stdout.strip()

    def status(self, name):
        """The status line, in words."""
        return run("dmsetup", "status", name).stdout.split()

    def table(self, name):
        """The table line."""
        return run("dmsetup", "table", name).stdout.strip()

    def qcow2_status(self, name):
        """The status of a qcow2 device as a dict."""
        words = self.status(name)
        assert words[2] == "qcow2" and len(words) in (8, 12), words
        allocated, total = words[4].split("/")
        cache, cache_max = words[6].split("/")
        views = words[9:12] or ("0", "0", "0/0")
        map_kib, limit_kib = views[2].split("/")
        return {"mode": words[3], "allocated": int(allocated), "total": int(total),
                "host_bytes": int(words[5]), "cache_kib": int(cache),
                "cache_max_kib": int(cache_max),
                "attention": [] if words[7] == "-" else words[7].split(","),
                "views": int(views[0]), "view_clusters": int(views[1]),
                "view_kib": int(map_kib), "view_limit_kib": int(limit_kib)}


# Images. Each function names its format: nothing here ever probes.

def image_create(path, size=None, fmt="qcow2", backing=None, backing_fmt="qcow2", **options):
    """qemu-img create; options as in cluster_size="64k" or preallocation="metadata"."""
    argv = ["qemu-img", "create", "-q", "-f", fmt]
    if options:
        argv += ["-o", ",".join(f"{k}={v}" for k, v in options.items())]
    if backing:
        argv += ["-b", backing, "-F", backing_fmt]
    run(*argv, path, *([] if size is None else [size]))
    return path


def image_info(path, fmt="qcow2"):
    """qemu-img info of one image (not of its chain) as a dict."""
    return json.loads(run("qemu-img", "info", "-U", "-f", fmt, "--output=json", path).stdout)


def image_check(path, leaks=False):
    """Fails unless qemu-img check finds the image clean; leaks=True lets leaked clusters pass."""
    done = run("qemu-img", "check", "-f", "qcow2", "--output=json", path, check=False)
    if done.returncode not in ((0, 3) if leaks else (0,)):
        text = run("qemu-img", "check", "-f", "qcow2", path, check=False)
        raise AssertionError(f"qemu-img check {path} exited with {done.returncode}\n"
                             f"{text.stdout}{text.stderr}")
    return json.loads(done.stdout)


def image_compare(a, b, fmt_a="qcow2", fmt_b="raw", strict=False):
    """Fails unless both hold the same data. A shorter one counts as zeroes unless strict."""
    run("qemu-img", "compare", "-q", *(["-s"] if strict else []), "-f", fmt_a, "-F", fmt_b, a, b,
        timeout=600)


def image_map(path, fmt="qcow2"):
    """qemu-img map as a list of dicts."""
    return json.loads(run("qemu-img", "map", "-f", fmt, "--output=json", path).stdout)


class QemuDaemon:
    """An image held open by qemu-storage-daemon, writable or not."""

    def __init__(self, spawn, tmp_path, image, read_only=False):
        pid = tmp_path / f"qsd-{os.path.basename(image)}-{read_only}.pid"
        node = {"driver": "qcow2", "node-name": "q", "read-only": read_only,
                "file": {"driver": "host_device" if image.startswith("/dev/") else "file",
                         "filename": image}}
        self.proc = spawn("qemu-storage-daemon", "--blockdev", json.dumps(node), "--pidfile", pid,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wait_for(lambda: pid.exists() or self.proc.poll() is not None, what="the daemon")
        assert self.proc.poll() is None, self.proc.stdout.read()

    def stop(self):
        self.proc.terminate()
        assert self.proc.wait(timeout=30) == 0


def qemu_io(path, *commands, fmt="qcow2"):
    """Run qemu-io commands such as "write -P 0xab 0 64k" on an image; returns the output."""
    done = run("qemu-io", "-f", fmt, *itertools.chain(*(("-c", c) for c in commands)), path)
    # qemu-io exits with 0 when a command inside it fails on a pattern.
    if "failed" in done.stdout.lower():
        raise AssertionError(f"qemu-io {path}:\n{done.stdout}{done.stderr}")
    return done.stdout


# Block devices.

class NullBlk:
    """Memory-backed null_blk devices, each of its own size, made through configfs."""

    base = "/sys/kernel/config/nullb"
    numbers = itertools.count()

    def __init__(self, size, **attributes):
        run("modprobe", "null_blk", "nr_devices=0")
        self.dir = f"{self.base}/lab{next(self.numbers)}"
        os.mkdir(self.dir)
        settings = {"size": (size + MIB - 1) // MIB, "memory_backed": 1, "discard": 1,
                    "blocksize": 512, "irqmode": 0, **attributes}
        for name, value in {**settings, "power": 1}.items():
            with open(f"{self.dir}/{name}", "w") as f:
                f.write(str(value))
        with open(f"{self.dir}/index") as f:
            index = f.read().strip()
        nodes = glob.glob(f"/sys/block/{os.path.basename(self.dir)}") or \
            glob.glob(f"/sys/block/nullb{index}")
        self.path = "/dev/" + os.path.basename(nodes[0])
        wait_for(lambda: os.path.exists(self.path), what=self.path)

    def remove(self):
        with open(f"{self.dir}/power", "w") as f:
            f.write("0")
        os.rmdir(self.dir)


class RamDisk:
    """brd. All have one size, so a device of the size asked for is a dm-linear on one of them."""

    count, mib = 6, 1024
    used = set()

    def __init__(self, size, dm):
        run("modprobe", "brd", f"rd_nr={self.count}", f"rd_size={self.mib << 10}", "max_part=0")
        self.dm = dm
        self.number = next(n for n in range(self.count) if n not in self.used)
        self.used.add(self.number)
        self.name = f"ram{self.number}-lab"
        self.path = dm.create(self.name, f"0 {size // SECTOR} linear /dev/ram{self.number} 0")
        run("blkdiscard", "-f", "-z", self.path)

    def remove(self):
        self.dm.remove(self.name)
        run("blockdev", "--flushbufs", f"/dev/ram{self.number}")
        self.used.discard(self.number)


class Loop:
    """A loop device with direct I/O on FILE (made sparse when it is missing)."""

    def __init__(self, path, size=None, direct=True):
        run("modprobe", "loop")
        if size is not None:
            with open(path, "ab") as f:
                f.truncate(size)
        self.path = run("losetup", "--find", "--show",
                        f"--direct-io={'on' if direct else 'off'}", path).stdout.strip()

    def remove(self):
        run("losetup", "--detach", self.path)
        # Detaching is asynchronous while somebody still has it open.
        wait_for(lambda: self.path not in run("losetup", "-a").stdout, what="loop detach")


class Mount:
    """A file system made on a block device and mounted."""

    mkfs = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"],
            "btrfs": ["mkfs.btrfs", "-q", "-f"]}

    def __init__(self, dev, fstype, at, options=None, mkfs=()):
        os.makedirs(at, exist_ok=True)
        self.path = str(at)
        run(*self.mkfs[fstype], *mkfs, dev)
        run("mount", "-t", fstype, *(["-o", options] if options else []), dev, at)

    def remove(self):
        run("umount", self.path)


FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8     # flags of an entry of dm-log-writes


def log_entries(log):
    """What is in the log of a dm-log-writes device: (sector, sectors, flags, where its data ends)."""
    with open(log, "rb") as f:
        _, _, entries, unit = struct.unpack("<QQQI", f.read(28))
        at = unit
        for _ in range(entries):
            f.seek(at)
            sector, sectors, flags, _ = struct.unpack("<QQQQ", f.read(32))
            at += unit + (0 if flags & DISCARD else sectors * unit)
            yield sector, sectors, flags, at


class WritesLog:
    """A dm-log-writes device NAME above DATA, which it writes about to LOG."""

    def __init__(self, dm, name, data, log):
        run("modprobe", "dm-log-writes")
        self.dm, self.name, self.log, self.marks = dm, name, log, 0
        self.path = dm.create(name, f"0 {size_of(data) // 512} log-writes {data} {log}")

    def seen(self):
        """All that came so far: a list of (sector, sectors, flags)."""
        found = []

        def complete():
            run("blockdev", "--flushbufs", self.log)    # the log is not written through the page cache
            found[:] = [entry[:3] for entry in log_entries(self.log)]
            return sum(bool(flags & MARK) for _, _, flags in found) == self.marks

        self.dm.message(self.name, "mark", "now")
        self.marks += 1
        wait_for(complete, what="the log's thread")
        print(found)
        return found

    def writes(self):
        """{first sector of a write: whether it had FUA}"""
        return {sector: bool(flags & FUA) for sector, sectors, flags in self.seen()
                if sectors and not flags & DISCARD}
