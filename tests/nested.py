# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest inside the lab's guest: an unmodified QEMU with KVM that boots the same packaged kernel.

The lab's own QEMU emulates a CPU with hardware virtualisation, so the inner guest runs under the
outer kernel's KVM: its kicks and interrupts are real ioeventfds and irqfds. What costs much there is
leaving the inner guest, so devices that it would only probe are left out, memory is in huge pages, and
the script's output goes through a virtio console. Its user space is an initrd (tests/lab/nested-init).
"""
import os
import re
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lab"))
from archive import newc  # noqa: E402

BOOT = "/build/nested"
# Start-up code of the kernel that is slow here and of no use to such a guest.
LEFT_OUT = ("jent_mod_init init_encrypted crypto_kdf108_init load_system_certificate_list "
            "init_ima cmos_init")
APPEND = ("console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable "
          "random.trust_cpu=on cryptomgr.notests kfence.sample_interval=0 audit=0 apparmor=0 "
          "ipv6.disable=1 init_on_alloc=0 8250.nr_uarts=1 "
          "initcall_blacklist=" + ",".join(LEFT_OUT.split()))
MACHINE = "q35,hpet=off,smm=off,i8042=off,sata=off,vmport=off"
HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/"


def prepare():
    """KVM, and huge pages for anonymous and shared memory."""
    subprocess.run(["modprobe", "kvm_amd"], check=True)
    for name in ("enabled", "shmem_enabled"):
        with open(HUGE_PAGES + name, "w") as f:
            f.write("always")


class NestedGuest:
    """A guest that runs SCRIPT (for busybox' shell) and powers off.

    LAUNCHER goes before QEMU's command: e.g. ["qcow2attach", "run", image, "--"]; DEVICES after.
    The memory is 256 MiB unless DEVICES set it up. After run(), `output` is what the script wrote,
    `log` all else that QEMU, the launcher and the kernel wrote, `seconds` how long it took.
    """

    def __init__(self, script, devices=(), launcher=(), smp=2, directory="/tmp"):
        base = os.path.join(directory, f"nested-{os.getpid()}-{time.monotonic_ns()}")
        self.initrd, self.console = base + ".initrd", base + ".out"
        with open(os.path.join(BOOT, "initrd"), "rb") as f:
            initrd = f.read()
        with open(self.initrd, "wb") as f:
            f.write(initrd + newc([("job", script.encode(), 0o100755)]))
        os.mkfifo(self.console)
        self.argv = [*launcher, "qemu-system-x86_64", "-M", MACHINE, "-accel", "kvm",
                     "-cpu", "host", "-smp", str(smp), "-m", "256M", "-nodefaults",
                     "-no-user-config", "-display", "none", "-no-reboot",
                     "-bios", "qboot.rom", "-kernel", os.path.join(BOOT, "vmlinux"),
                     "-initrd", self.initrd, "-append", APPEND, "-serial", "stdio",
                     "-device", "virtio-serial-pci",
                     "-chardev", f"file,id=job,path={self.console}",
                     "-device", "virtconsole,chardev=job", *devices]
        self.output = self.log = ""
        self.seconds = 0.0

    def run(self, timeout=300, show=None):
        """Boot and wait for the end; the script's exit code, None if it never came to it.

        show(line) is called for each line that the script writes.
        """
        prepare()
        start = time.monotonic()
        # Both ways, so that opening waits for nobody and QEMU's end is not the end of file.
        console = os.open(self.console, os.O_RDWR)
        proc = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)
        reader = threading.Thread(target=self.read_console, args=(console, show))
        watchdog = threading.Timer(timeout, proc.terminate)
        reader.start()
        watchdog.start()
        try:
            self.log = proc.stdout.read().decode(errors="replace").replace("\r", "")
            proc.wait()
        finally:
            watchdog.cancel()
            proc.kill()
            proc.wait()
            os.write(console, b"\0")
            reader.join()
            os.close(console)
            os.remove(self.initrd)
            os.remove(self.console)
        self.seconds = time.monotonic() - start
        code = re.search(r"^nested: exit (\d+)", self.output, re.M)
        return int(code.group(1)) if code else None

    def read_console(self, fd, show):
        rest = b""
        while not rest.endswith(b"\0"):
            rest += os.read(fd, 65536).replace(b"\r", b"")
            *lines, rest = rest.split(b"\n")
            for line in lines:
                text = line.decode(errors="replace")
                self.output += text + "\n"
                if show:
                    show(text)
