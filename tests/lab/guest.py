# SPDX-License-Identifier: GPL-2.0-or-later
"""Boots a packaged kernel under QEMU, runs one job in it and brings back output and exit code.

Owns the QEMU process, its sockets and the deadline. The guest's console carries nothing but the
kernel log; the job's standard output, error and result come over three virtio ports.
"""
import ctypes
import json
import os
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
import tty

import kernel
import klog
import rootfs
from common import BUILD, LabError, read, say, write

OUT = os.path.join(BUILD, "out")
APPEND = ("console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable "
          "random.trust_cpu=on cryptomgr.notests kfence.sample_interval=0 audit=0 apparmor=0 "
          "rcupdate.rcu_cpu_stall_timeout=120 log_buf_len=4M")
PORTS = {"LAB_STDOUT": 1, "LAB_STDERR": 2, "LAB_RESULT": 3}
GRACE = 20          # seconds for the guest to power off once the job has ended


class Job:
    """What to run in the guest and how."""

    def __init__(self, argv, *, udev=False, modules=(), shell=False, env=None):
        self.argv, self.udev, self.modules, self.shell = argv, udev, modules, shell
        self.env = env or {}

    def files(self, kernel_name, devices):
        """The job directory's contents, as {name: text}; DEVICES names the job's channels."""
        settings = {"LAB_KERNEL": kernel_name, "LAB_UDEV": "1" if self.udev else "",
                    "LAB_MODULES": " ".join(self.modules), "LAB_SHELL": "", **devices}
        if self.shell:
            size = shutil.get_terminal_size()
            settings.update(LAB_SHELL=devices["LAB_TTY"], LAB_TERM=os.environ.get("TERM", "linux"),
                            LAB_ROWS=str(size.lines), LAB_COLS=str(size.columns))
        exported = {"LAB_KERNEL": kernel_name, "LAB_GUEST": "1", **self.env}
        cmd = "".join(f"export {k}={shlex.quote(v)}\n" for k, v in exported.items())
        cmd += ("exec " + shlex.join(self.argv) + "\n") if self.argv else ""
        env = "".join(f"{k}={shlex.quote(v)}\n" for k, v in settings.items())
        return {"cmd": cmd, "env": env}


def newc(files):
    """An uncompressed cpio archive, which the kernel unpacks after the first initrd."""
    out = bytearray()
    for ino, (name, data, mode) in enumerate(files + [("TRAILER!!!", b"", 0)], 1):
        head = [ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        out += b"070701" + b"".join(b"%08x" % n for n in head) + name.encode() + b"\0"
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def die_with_parent():
    """In the child: killed by the kernel when the lab dies, so that no guest outlives it."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Guest:
    """One boot."""

    def __init__(self, name, job, smp=2, mem="4G", append="", qemu_args=()):
        self.name, self.job = name, job
        self.log = bytearray()
        self.result = None
        self.tmp = tempfile.mkdtemp(prefix="lab-")
        self.parent = {}        # our ends of the sockets
        self.child = {}         # QEMU's
        boot = kernel.packaged(name)
        write(os.path.join(self.tmp, "initrd"), read(os.path.join(boot, "initrd"), "rb") +
              self.job_archive())
        for channel in ["console", "qmp"] + ([] if job.shell else list(PORTS)):
            self.parent[channel], self.child[channel] = socket.socketpair()
        self.argv = self.command(boot, smp, mem, append) + list(qemu_args)

    def job_archive(self):
        devices = {k: f"/dev/vport0p{n}" for k, n in PORTS.items()}
        devices["LAB_TTY"] = "/dev/hvc0"
        if self.job.shell:
            devices = {"LAB_TTY": "/dev/hvc0", "LAB_RESULT": "/dev/null"}
        files = self.job.files(self.name, devices)
        return newc([("job", b"", 0o40755)] +
                    [("job/" + n, t.encode(), 0o100644) for n, t in files.items()])

    def command(self, boot, smp, mem, append):
        def sock(name):
            return f"socket,id={name},fd={self.child[name].fileno()}"

        argv = ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi,tb-size=1024",
                "-cpu", "max", "-smp", str(smp), "-m", mem, "-nodefaults", "-no-user-config",
                "-display", "none", "-no-reboot",
                "-kernel", "/lab/kernel/vmlinux", "-initrd", "/lab/run/initrd",
                "-append", f"{APPEND} {append}",
                "-chardev", sock("console"), "-serial", "chardev:console",
                "-chardev", sock("qmp"), "-mon", "chardev=qmp,mode=control",
                "-device", "virtio-serial-pci"]
        if self.job.shell:
            argv += ["-chardev", "stdio,id=tty,signal=off", "-device", "virtconsole,chardev=tty"]
        else:
            for name, number in PORTS.items():
                argv += ["-chardev", sock(name),
                         "-device", f"virtserialport,chardev={name},nr={number},name={name}"]
        for tag, path, options in (("root", "/lab/root", ",readonly=on"),
                                   ("repo", "/repo", ",readonly=on"), ("out", "/lab/out", "")):
            argv += ["-fsdev", f"local,id={tag},path={path},security_model=none,"
                     f"multidevs=remap{options}",
                     "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
        os.makedirs(OUT, exist_ok=True)
        return rootfs.enter(argv, [(boot, "/lab/kernel"), (self.tmp, "/lab/run"),
                                   (OUT, "/lab/out")])

    def run(self, timeout):
        """The job's exit code; None if the guest never told one."""
        deadline = time.monotonic() + timeout if timeout else None
        saved = termios.tcgetattr(0) if self.job.shell else None
        proc = subprocess.Popen(self.argv, preexec_fn=die_with_parent,
                                stdin=None if self.job.shell else subprocess.DEVNULL,
                                pass_fds=[s.fileno() for s in self.child.values()])
        for s in self.child.values():
            s.close()
        try:
            if saved:
                tty.setraw(0)
            self.pump(proc, deadline)
        finally:
            proc.kill()
            proc.wait()
            if saved:
                termios.tcsetattr(0, termios.TCSADRAIN, saved)
            for s in self.parent.values():
                s.close()
            shutil.rmtree(self.tmp)
        return self.result

    def pump(self, proc, deadline):
        """Moves bytes until QEMU has gone or the deadline has come."""
        poll = selectors.DefaultSelector()
        for name, s in self.parent.items():
            poll.register(s, selectors.EVENT_READ, name)
        result = bytearray()
        ending = False
        while poll.get_map():
            wait = None if deadline is None else deadline - time.monotonic()
            if wait is not None and wait <= 0:
                self.expire(proc, ending)
                return
            for key, _ in poll.select(wait):
                data = key.fileobj.recv(65536)
                if not data:
                    poll.unregister(key.fileobj)
                elif key.data == "console":
                    self.log += data
                elif key.data == "LAB_STDOUT":
                    put(sys.stdout, data)
                elif key.data == "LAB_STDERR":
                    put(sys.stderr, data)
                elif key.data == "LAB_RESULT":
                    result += data
                    if b"\n" in result:
                        self.result = parse_result(result)
                        ending, deadline = True, time.monotonic() + GRACE
        proc.wait()

    def expire(self, proc, ending):
        """Have the kernel say what it is doing before QEMU is killed."""
        say("the job ended but the guest does not power off" if ending else
            "the deadline has passed; what the guest's kernel is doing:")
        start = len(self.log)
        try:
            self.sysrq("wlt")
        except OSError as e:
            say(f"cannot reach QEMU's monitor: {e}")
        proc.kill()
        text = self.log[start:].decode(errors="replace").replace("\r", "")
        say("\n" + "\n".join(text.splitlines()[:400]))
        self.result = None

    def sysrq(self, keys):
        """Sends magic keys over the serial line and reads what the kernel answers."""
        qmp, console = self.parent["qmp"], self.parent["console"]
        qmp.setblocking(True)
        send = [{"execute": "qmp_capabilities"}]
        for command in send:
            qmp.sendall(json.dumps(command).encode())
        for key in keys:
            qmp.sendall(json.dumps({"execute": "chardev-send-break",
                                    "arguments": {"id": "console"}}).encode())
            time.sleep(0.3)
            console.sendall(key.encode())
            console.settimeout(2)
            try:
                while data := console.recv(65536):
                    self.log += data
            except TimeoutError:
                pass

    def lines(self):
        return self.log.decode(errors="replace").replace("\r", "").splitlines()


def put(stream, data):
    stream.buffer.write(data)
    stream.buffer.flush()


def parse_result(data):
    word, _, code = data.decode(errors="replace").strip().partition(" ")
    if word == "init":
        say("the guest could not be set up (modules not loaded?); its kernel log follows")
        return None
    return int(code)


def judge(name, result, log, timeout):
    """Prints what the kernel log holds against the run and returns our exit code."""
    write(os.path.join(OUT, f"kernel-{name}.log"), "\n".join(log) + "\n")
    if result is None:
        say("the end of the kernel log:\n" + "\n".join(log[-60:]))
        say(f"no result: the guest died or was killed (deadline {timeout} s)")
    bad = klog.report(log)
    if bad:
        say("the kernel log holds reports of faults:\n" + bad)
        return result or 99
    return 98 if result is None else result


def run_job(name, job, timeout=None, **kw):
    if job.shell and not sys.stdin.isatty():
        raise LabError("a shell needs a terminal")
    guest = Guest(name, job, **kw)
    result = guest.run(timeout)
    if job.shell and result is None and guest.log.rstrip().endswith(b"Power down"):
        result = 0
    return judge(name, result, guest.lines(), timeout)
