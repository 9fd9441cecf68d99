# SPDX-License-Identifier: GPL-2.0-or-later
"""One boot of a guest: runs one job in it and brings back output, exit code and kernel log.

Owns the guest's process, the sockets to it and the deadline; qemu.py and uml.py say how a kernel is
started. The guest's console carries nothing but the kernel log; the job's standard output, error
and result come over channels of their own.
"""
import ctypes
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

import klog
from common import BUILD, LabError, say, write

OUT = os.path.join(BUILD, "out")
CHANNELS = ("LAB_STDOUT", "LAB_STDERR", "LAB_RESULT")
GRACE = 20          # seconds for the guest to power off once the job has ended
BOOTS = 3           # tries to reach the second stage, with nothing of ours loaded yet
NO_RESULT, FAULTS = 98, 99      # our exit codes when the command's does not count


class Job:
    """What to run in the guest and how."""

    def __init__(self, argv, *, udev=False, modules=(), shell=False):
        self.argv, self.udev, self.modules, self.shell = argv, udev, modules, shell

    def files(self, kernel_name, devices):
        """The job directory's contents, as {name: text}; DEVICES names the job's channels."""
        settings = {"LAB_KERNEL": kernel_name, "LAB_UDEV": "1" if self.udev else "",
                    "LAB_MODULES": " ".join(self.modules), "LAB_SHELL": "", **devices}
        if self.shell:
            size = shutil.get_terminal_size()
            settings.update(LAB_SHELL=devices["LAB_TTY"], LAB_TERM=os.environ.get("TERM", "linux"),
                            LAB_ROWS=str(size.lines), LAB_COLS=str(size.columns))
        cmd = f"export LAB_GUEST=1 LAB_KERNEL={shlex.quote(kernel_name)}\n"
        cmd += ("exec " + shlex.join(self.argv) + "\n") if self.argv else ""
        env = "".join(f"{k}={shlex.quote(v)}\n" for k, v in settings.items())
        return {"cmd": cmd, "env": env}


class Guest:
    """A subclass gives command(), the argv to start it, and expire_report()."""

    extra_channels = ()
    boot_timeout = 180      # seconds until the second stage has begun

    def __init__(self, name, job):
        self.name, self.job = name, job
        self.log = bytearray()
        self.result = None
        self.begun = job.shell          # the second stage runs; a shell has no channel to say so
        self.stuck = False              # it did not begin in time
        self.tmp = tempfile.mkdtemp(prefix="lab-")
        self.parent, self.child = {}, {}        # the two ends of each socket
        os.makedirs(OUT, exist_ok=True)
        for channel in ("console", *self.extra_channels, *(() if job.shell else CHANNELS)):
            self.parent[channel], self.child[channel] = socket.socketpair()

    def command(self):
        raise NotImplementedError

    def expire_report(self):
        """Have the kernel say on its console what it is doing."""
        raise NotImplementedError

    def in_child(self):
        """Before the guest's program: the kernel kills it when the lab dies, so that it does not
        outlive us."""
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)

    def run(self, timeout):
        """The job's exit code; None if the guest never told one."""
        saved = termios.tcgetattr(0) if self.job.shell else None
        try:
            proc = subprocess.Popen(self.command(), preexec_fn=self.in_child,
                                    stdin=None if self.job.shell else subprocess.DEVNULL,
                                    pass_fds=[s.fileno() for s in self.child.values()])
            for s in self.child.values():
                s.close()
            try:
                if saved:
                    tty.setraw(0)
                self.pump(proc, timeout)
            finally:
                proc.kill()
                proc.wait()
        finally:
            if saved:
                termios.tcsetattr(0, termios.TCSADRAIN, saved)
            for s in self.parent.values():
                s.close()
            shutil.rmtree(self.tmp)
        return self.result

    def pump(self, proc, timeout):
        """Moves bytes until the guest has gone or a deadline has come."""
        start = time.monotonic()
        deadline = start + self.boot_timeout
        if self.begun:
            deadline = start + timeout if timeout else None
        poll = selectors.DefaultSelector()
        for name, s in self.parent.items():
            poll.register(s, selectors.EVENT_READ, name)
        result = bytearray()
        ending = False
        while poll.get_map():
            wait = None if deadline is None else deadline - time.monotonic()
            if wait is not None and wait <= 0:
                self.expire(ending)
                return
            for key, _ in poll.select(wait):
                try:
                    data = key.fileobj.recv(65536)
                except ConnectionResetError:
                    data = b""
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
                    while b"\n" in result and not ending:
                        line, _, result = result.partition(b"\n")
                        if line.strip() == b"begun":
                            self.begun = True
                            deadline = time.monotonic() + timeout if timeout else None
                        else:
                            self.result = parse_result(line)
                            ending, deadline = True, time.monotonic() + GRACE
        proc.wait()

    def expire(self, ending):
        say("the job ended but the guest does not power off; its kernel:" if ending else
            "the deadline has passed; what the guest's kernel is doing:" if self.begun else
            f"the guest has not come up in {self.boot_timeout} s; its kernel:")
        self.stuck = not self.begun
        start = len(self.log)
        try:
            self.expire_report()
        except OSError as e:
            say(f"cannot ask the guest: {e}")
        text = self.log[start:].decode(errors="replace").replace("\r", "")
        say("\n" + "\n".join(text.splitlines()[:400]))
        self.result = None

    def drain_console(self, seconds):
        """Read the console until it has been quiet for so long."""
        console = self.parent["console"]
        console.settimeout(seconds)
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
        say("the guest could not be set up (did a module not load?)")
        return None
    return int(code)


def judge(name, result, log, timeout):
    """Prints what the kernel log holds against the run and returns our exit code."""
    path = os.path.join(OUT, f"kernel-{name}.log")
    write(path, "\n".join(log) + "\n")
    bad = klog.report(log)
    if bad:
        say("the kernel log holds reports of faults:\n" + bad)
    elif result is None:
        say("the end of the kernel log:\n" + "\n".join(log[-60:]))
    if result is None:
        say(f"no result: the guest died or was killed (deadline {timeout} s); "
            f"the whole log is in {os.path.relpath(path)}")
    if bad:
        return result or FAULTS
    return NO_RESULT if result is None else result


def run_job(make, job, timeout=None):
    """MAKE gives a new Guest with JOB. One that does not come up is no fault of what is tested, which
    is not in it yet (software emulation loses a timer of the second CPU now and then): it is started
    again.
    """
    if job.shell and not sys.stdin.isatty():
        raise LabError("a shell needs a terminal")
    for _ in range(BOOTS):
        guest = make()
        result = guest.run(timeout)
        if not guest.stuck:
            break
    if guest.job.shell and result is None and b"reboot: Power down" in guest.log:
        result = 0
    return judge(guest.name, result, guest.lines(), timeout)
