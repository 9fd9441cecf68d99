# SPDX-License-Identifier: GPL-2.0-or-later
"""An x86 kernel under QEMU's software emulation; root, /repo and /out come over 9p."""
import json
import os
import time

import fresh
import guest
import kernel
import rootfs
from archive import newc
from common import read, write

APPEND = ("console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable "
          "random.trust_cpu=on cryptomgr.notests kfence.sample_interval=0 audit=0 apparmor=0 "
          "rcupdate.rcu_cpu_stall_timeout=120 log_buf_len=4M "
          # Self-tests and random sources that cost half a second.
          "initcall_blacklist=jent_mod_init,init_encrypted,crypto_kdf108_init,init_ima")
PORTS = {name: number for number, name in enumerate(guest.CHANNELS, 1)}


class Qemu(guest.Guest):
    extra_channels = ("qmp",)

    def __init__(self, name, job, smp=None, mem="4G", append="", icount=False, plugin=None):
        super().__init__(name, job)
        self.smp, self.mem, self.append, self.plugin = smp or 2, mem, append, plugin
        self.accel = ["-accel", "tcg,thread=multi,tb-size=1024"]
        if icount:
            # A nanosecond is an instruction; nothing that another process does here shows.
            self.smp = 1
            self.accel = ["-accel", "tcg,thread=single,tb-size=1024",
                          "-icount", "shift=0,sleep=off,align=off"]

    def job_archive(self):
        devices = {"LAB_TTY": "/dev/hvc0", "LAB_RESULT": "/dev/null"}
        if not self.job.shell:
            devices = {name: f"/dev/vport0p{number}" for name, number in PORTS.items()}
        files = self.job.files(self.name, devices)
        return newc([("job", b"", 0o40755)] +
                    [("job/" + n, t.encode(), 0o100644) for n, t in files.items()])

    def boot(self):
        """(directory with `initrd`, path of the kernel, what to bind besides)."""
        files = kernel.packaged(self.name)
        return files, os.path.join(files, "vmlinux"), []

    def command(self):
        files, image, binds = self.boot()
        write(os.path.join(self.tmp, "initrd"),
              read(os.path.join(files, "initrd"), "rb") + self.job_archive())

        def sock(name):
            return ["-chardev", f"socket,id={name},fd={self.child[name].fileno()}"]

        argv = ["qemu-system-x86_64", "-M", "q35", *self.accel, "-cpu", "max",
                "-smp", str(self.smp), "-m", self.mem, "-nodefaults",
                "-no-user-config", "-display", "none", "-no-reboot",
                "-kernel", f"/lab/kernel/{os.path.basename(image)}", "-initrd", "/lab/run/initrd",
                "-append", f"{APPEND} {self.append}",
                *sock("console"), "-serial", "chardev:console",
                *sock("qmp"), "-mon", "chardev=qmp,mode=control",
                "-device", "virtio-serial-pci"]
        if self.job.shell:
            argv += ["-chardev", "stdio,id=tty,signal=off", "-device", "virtconsole,chardev=tty"]
        else:
            for name, number in PORTS.items():
                argv += [*sock(name), "-device",
                         f"virtserialport,chardev={name},nr={number},name={name}"]
        binds += [(os.path.dirname(image), "/lab/kernel"), (self.tmp, "/lab/run"),
                  (guest.OUT, "/lab/out")]
        root = "/lab/root"
        if self.name == "fresh":
            root = "/lab/fresh"
            binds.append((fresh.path(), root))
        for tag, path, options in (("root", root, ",readonly=on"),
                                   ("repo", "/repo", ",readonly=on"), ("out", "/lab/out", "")):
            argv += ["-fsdev", f"local,id={tag},path={path},security_model=none,"
                     f"multidevs=remap{options}",
                     "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
        if self.plugin:
            argv += ["-plugin", self.plugin]
        return rootfs.enter(argv, binds)

    def expire_report(self):
        """Magic keys over the serial line: blocked tasks, what the CPUs run, all tasks."""
        qmp, console = self.parent["qmp"], self.parent["console"]
        qmp.setblocking(True)
        qmp.sendall(json.dumps({"execute": "qmp_capabilities"}).encode())
        for key in "wlt":
            qmp.sendall(json.dumps({"execute": "chardev-send-break",
                                    "arguments": {"id": "console"}}).encode())
            time.sleep(0.3)
            console.sendall(key.encode())
            self.drain_console(2)
