# SPDX-License-Identifier: GPL-2.0-or-later
"""User Mode Linux: the kernel as a process, with KASAN and fault injection.

Root, /repo and /out are the directories of the mount namespace that it runs in, by hostfs.

A guest of one CPU keeps to one of the host's: its kernel and the processes in it take turns at each
system call and page fault, and to wake an idle CPU for each turn takes twenty times as long as the
turn.
"""
import fcntl
import os
import random
import socket
import struct

import custom
import guest
import rootfs
import source
from common import CACHE, read, write

MAKE_ARGS = ["ARCH=um"]
# The newest: starting a process takes a tenth of the time that 6.12 takes, and what a process does is
# caught by seccomp instead of ptrace.
SOURCE = "backports"
APPEND = ("rootfstype=hostfs rootflags=/ ro init=/repo/tests/lab/um-init quiet panic=-1 noreboot "
          "seccomp=on con=null ssl=null log_buf_len=4M uml_dir=/lab/run/ umid=lab "
          "rcupdate.rcu_cpu_stall_timeout=120")
# What half of its time went into. KASAN keeps a stack trace of each allocation and freeing; only what
# the frame pointers lead to gets into a trace, but each word of the stack was looked up among all
# code. And to disable interrupts meant a system call, to block a signal that one CPU never gets.
CHANGES = (
    ("arch/um/kernel/stacktrace.c",
     "void dump_trace(struct task_struct *tsk,\n",
     "static void save_addr(void *data, unsigned long address, int reliable);\n\n"
     "void dump_trace(struct task_struct *tsk,\n"),
    ("arch/um/kernel/stacktrace.c",
     "\t\tif (__kernel_text_address(addr)) {\n",
     "\t\tif (ops->address == save_addr && (unsigned long) sp != bp + sizeof(long)) {\n"
     "\t\t} else if (__kernel_text_address(addr)) {\n"),
    ("arch/um/os-Linux/smp.c",
     "\tsigset_t sigset;\n\n\tsigemptyset(&sigset);\n",
     "\tsigset_t sigset;\n\n\tif (uml_ncpus == 1)\n\t\treturn;\n\tsigemptyset(&sigset);\n"),
)
MCONSOLE_MAGIC, MCONSOLE_VERSION = 0xcafebabe, 2


def kernel():
    return custom.build("um", "linux", MAKE_ARGS, of=SOURCE, changes=CHANGES)


def build_for():
    """What build.py needs to build modules for this kernel."""
    tree = kernel()
    return (read(os.path.join(tree, "release")).strip(), tree,
            ["-C", "/lab/kernel", *MAKE_ARGS], source.binds(SOURCE))


def take_cpu():
    """A CPU that no other guest of this kind keeps to, and the lock that says so, which is held until
    it is closed; or just any."""
    os.makedirs(CACHE, exist_ok=True)
    cpus = sorted(os.sched_getaffinity(0))
    for cpu in cpus:
        lock = open(os.path.join(CACHE, f"cpu-{cpu}.lock"), "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return cpu, lock
    return random.choice(cpus), None


class Uml(guest.Guest):
    def __init__(self, name, job, smp=None, mem="4G", append=""):
        super().__init__(name, job)
        self.smp, self.mem, self.append = smp or 1, mem, append
        self.cpu, self.cpu_lock = take_cpu() if self.smp == 1 else (None, None)

    def in_child(self):
        super().in_child()
        if self.cpu is not None:
            os.sched_setaffinity(0, {self.cpu})

    def command(self):
        tree = kernel()
        devices = {"LAB_TTY": "/dev/tty1", "LAB_RESULT": "/dev/null"}
        channels = ["con1=fd:0,fd:1"]
        if not self.job.shell:
            devices, channels = {}, []
            for n, name in enumerate(guest.CHANNELS, 1):
                fd = self.child[name].fileno()
                devices[name] = f"/dev/ttyS{n}"
                channels.append(f"ssl{n}=fd:{fd},fd:{fd}")
        for name, text in self.job.files(self.name, devices).items():
            write(os.path.join(self.tmp, "job", name), text)
        fd = self.child["console"].fileno()
        argv = ["/lab/kernel/linux", f"mem={self.mem}", f"ncpus={self.smp}",
                *APPEND.split(), *self.append.split(),
                f"con0=fd:{fd},fd:{fd}", *channels]
        return rootfs.enter(argv, [(tree, "/lab/kernel"), (self.tmp, "/lab/run"),
                                   (os.path.join(self.tmp, "job"), "/lab/job"),
                                   (guest.OUT, "/out"),
                                   (os.path.join(tree, "installed/lib/modules"), "/lib/modules")])

    def expire_report(self):
        """The management console shows the stacks of tasks; there are no magic keys here."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.bind(os.path.join(self.tmp, "ask"))
            s.settimeout(1)
            s.connect(os.path.join(self.tmp, "lab", "mconsole"))
            for pid in range(1, 400):
                command = f"stack {pid}".encode()
                s.send(struct.pack("=IiI512s", MCONSOLE_MAGIC, MCONSOLE_VERSION, len(command),
                                   command))
                try:
                    answer = s.recv(8192)
                except TimeoutError:
                    break
                error, _, length = struct.unpack_from("=iii", answer)
                if not error and length > 1:
                    self.log += answer[12:12 + length].replace(b"\0", b"") + b"\n"
        self.drain_console(1)
