# SPDX-License-Identifier: GPL-2.0-or-later
"""`qcow2attach run`: a guest that is one sector long boots from the disk, writes to it and ends,
and nothing is left behind however anybody ends.
"""
import os
import random
import re
import signal
import socket
import subprocess

import pytest

import bootsector
from bootsector import QEMU
from helpers import MIB, image_check, image_create, qemu_io, run, wait_for


@pytest.fixture(scope="module")
def boot_code(tmp_path_factory):
    return bootsector.assemble(bootsector.COPY, tmp_path_factory.mktemp("boot"))


@pytest.fixture
def disk(filesystem, boot_code, tmp_path):
    """disk(WHAT) -> a thin image over a golden one that boots and then does WHAT."""
    images = filesystem("ext4", 256 * MIB)

    def make(what, name="vm"):
        content = boot_code + what.ljust(512, b"\0") + bytes(MIB - 1024)
        (tmp_path / "golden.raw").write_bytes(content)
        if not os.path.exists(f"{images}/golden.qcow2"):
            run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", tmp_path / "golden.raw",
                f"{images}/golden.qcow2")
        return image_create(f"{images}/{name}.qcow2", backing="golden.qcow2")
    return make


def left_behind():
    """Devices, processes and sockets of ours."""
    processes = run("pgrep", "-a", "-x", "qcow2attach|qemu-system-x86", check=False).stdout
    sockets = os.listdir("/run/qcow2attach") if os.path.isdir("/run/qcow2attach") else []
    return [*processes.splitlines(), *sockets,
            *(line for line in run("dmsetup", "ls").stdout.splitlines()
              if "No devices" not in line)]


def nothing_left():
    wait_for(lambda: not left_behind(), what=f"the end of {left_behind()}")
    assert [n for n in os.listdir("/dev/mapper") if n != "control"] == []


@pytest.fixture
def start(spawn, tmp_path):
    """start(image, booted) -> the process, once the guest has booted and used its disk; or, which
    is faster, once QEMU is there with its disk, the guest waiting."""
    monitors = (str(tmp_path / f"qmp{n}") for n in range(100))

    def answers(monitor):
        """QEMU's main loop runs, and with it QEMU's handling of signals."""
        with socket.socket(socket.AF_UNIX) as s:
            try:
                s.connect(monitor)
            except OSError:
                return False
            s.settimeout(30)
            s.sendall(b'{"execute": "qmp_capabilities"} {"execute": "query-status"}')
            said = b""
            while b'"running"' not in said:
                said += s.recv(1000)
            return True

    def begin(image, booted=False):
        monitor = next(monitors)
        proc = spawn("qcow2attach", "run", image, "--", *QEMU,
                     "-qmp", f"unix:{monitor},server=on,wait=off", *([] if booted else ["-S"]),
                     stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1)
        if booted:
            for line in proc.stdout:
                if "DISK-" in line:
                    assert "DISK-OK" in line
                    return proc
            raise AssertionError(proc.stderr.read())
        wait_for(lambda: proc.poll() is not None or answers(monitor), what="QEMU")
        assert proc.poll() is None, proc.stderr.read()
        return proc
    return begin


def run_guest(image, *options, qemu=(), **kw):
    return run("qcow2attach", "run", image, *options, "--", *QEMU, *qemu, check=False, timeout=180,
               **kw)


@pytest.mark.core
def test_the_guest_runs_from_its_disk(disk):
    word = b"E%016x" % random.getrandbits(64)
    image = disk(word)
    done = run_guest(image, "--serial", "boot-me")
    assert done.returncode == 33, (done.returncode, done.stdout, done.stderr)
    assert "DISK-OK" in done.stdout
    nothing_left()
    image_check(image)
    # What the guest wrote is in its own image, and only there.
    sector = qemu_io(image, "read -v 1024 512")
    assert word[:16].hex(" ") in sector, sector
    golden = qemu_io(os.path.dirname(image) + "/golden.qcow2", "read -v 1024 16")
    assert word[:16].hex(" ") not in golden


def test_qemu_ends_as_it_likes(disk, start):
    image = disk(b"halt")
    for what in [signal.SIGTERM, signal.SIGKILL]:
        proc = start(image)
        qemu = int(run("pgrep", "-x", "qemu-system-x86").stdout)
        os.kill(qemu, what)
        code = proc.wait(timeout=60)
        assert code == (0 if what == signal.SIGTERM else 128 + signal.SIGKILL)
        nothing_left()
        image_check(image)


@pytest.mark.parametrize("what", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_we_are_told_to_end(disk, start, what):
    image = disk(b"halt")
    proc = start(image)
    proc.send_signal(what)
    assert proc.wait(timeout=60) == 0
    nothing_left()
    image_check(image)


@pytest.mark.full
def test_we_are_killed(disk, start):
    """Even then the rest ends by itself, and the device with it."""
    image = disk(b"halt")
    proc = start(image, booted=True)
    proc.kill()
    proc.wait()
    wait_for(lambda: not run("pgrep", "-x", "qemu-system-x86", check=False).stdout,
             what="QEMU's end")
    wait_for(lambda: not run("pgrep", "-x", "qcow2attach", check=False).stdout,
             what="the server's end")
    wait_for(lambda: "vm" not in run("dmsetup", "ls").stdout, what="the device's end")
    run("dmsetup", "mknodes")
    nothing_left()
    image_check(image)


def test_all_are_killed(disk, start):
    """Every process of ours at once: the kernel drains, commits and removes the device."""
    image = disk(b"halt")
    proc = start(image, booted=True)
    run("pkill", "-KILL", "-x", "qcow2attach|qemu-system-x86")
    proc.wait(timeout=60)
    wait_for(lambda: "vm" not in run("dmsetup", "ls").stdout, what="the device's end")
    run("dmsetup", "mknodes")
    for name in os.listdir("/run/qcow2attach"):
        os.unlink(f"/run/qcow2attach/{name}")       # as the manual page says, a socket may remain
    nothing_left()
    image_check(image)


def begin_and_die(argv, call, number):
    """Kill the command at its NUMBERth call of CALL; whether it came that far."""
    done = run("strace", "-o", "/dev/null", "-e", f"inject={call}:signal=SIGKILL:when={number}",
               "qcow2attach", *argv, check=False)
    return done.returncode in (137, -signal.SIGKILL)


@pytest.mark.parametrize("verb", ["run", "attach"])
def test_killed_while_it_attaches(disk, verb, request):
    """Whenever that is: no device stays that is half made, or that nobody was told of."""
    image = disk(b"halt")
    argv = ["run", image, "--", "true"] if verb == "run" else ["attach", image]
    coarse = 13 if request.config.getoption("--full") else 41
    for call, step in (("ioctl", 1), ("clone,clone3,fork,vfork", 1), ("read", coarse),
                       ("openat", coarse)):
        died = 0
        while begin_and_die(argv, call, 1 + died * step):
            died += 1
            wait_for(lambda: not run("pgrep", "-x", "qcow2attach", check=False).stdout,
                     what="the end of all processes")
            if verb == "attach" and "vm" in run("dmsetup", "ls").stdout:
                assert " qcow2 " in run("dmsetup", "table", "vm").stdout
                run("qcow2attach", "detach", "vm")
            wait_for(lambda: "vm" not in run("dmsetup", "ls").stdout, what="the device's end")
            run("dmsetup", "mknodes")
            for name in os.listdir("/run/qcow2attach") if verb == "run" else []:
                os.unlink(f"/run/qcow2attach/{name}")       # as the manual page says
            nothing_left()
        print(f"{verb}: killed at {died} calls of {call}")
        assert died, call
        if verb == "attach":
            run("qcow2attach", "detach", "vm")
    image_check(image)


@pytest.mark.full
def test_the_server_is_killed(disk, start):
    image = disk(b"halt")
    proc = start(image, booted=True)
    qemu = int(run("pgrep", "-x", "qemu-system-x86").stdout)
    run("pkill", "-KILL", "-u", "qcow2attach", "-x", "qcow2attach")
    wait_for(lambda: "the server of the disk is gone" in proc.stderr.readline(),
             what="the message about the server")
    assert proc.poll() is None
    os.kill(qemu, signal.SIGTERM)
    assert proc.wait(timeout=60) == 0
    nothing_left()
    image_check(image)


def test_qemu_does_not_start(disk):
    image = disk(b"halt")
    before = open(image, "rb").read()
    for argv, code, words in [
            (["no-such-program"], 127, "no-such-program cannot be started: No such file"),
            (["/etc/passwd"], 126, "/etc/passwd cannot be started: Permission denied"),
            (["qemu-system-x86_64", "-m", "lots"], 125, "invalid size 'lots'"),
            (["qemu-system-x86_64", "-mem-path", "/tmp"], 125, "-mem-path gives memory"),
            (["qemu-system-x86_64", "-snapshot"], 125, "-snapshot would not apply to this disk"),
            (["qemu-system-x86_64", "-M", "microvm"], 125, "'microvm' has no PCI bus"),
            (["qemu-system-x86_64", "-object", "memory-backend-ram,id=d,size=64M", "-m",
              "64M,slots=1,maxmem=128M", "-device", "pc-dimm,memdev=d"], 125,
             "'d' is a memory-backend-ram"),
            (["qemu-system-x86_64", "-no-such-option"], 1, "-no-such-option"),
            (["qemu-system-x86_64", "-nodefaults", "-nographic", "-machine", "no-such-machine"], 1,
             "no-such-machine")]:
        done = run("qcow2attach", "run", image, "--", *argv, check=False)
        assert done.returncode == code, (argv, done.returncode, done.stderr)
        assert words in done.stderr, done.stderr
        nothing_left()
    assert open(image, "rb").read() == before


def test_the_image_is_refused(disk):
    image = disk(b"halt")
    done = run("qcow2attach", "run", image + "x", "--", *QEMU, check=False)
    assert done.returncode == 125
    assert done.stderr == f"qcow2attach: run: {image}x: No such file or directory\n"
    nothing_left()
    run("qcow2attach", "attach", image)
    done = run("qcow2attach", "run", image, "--", *QEMU, check=False)
    assert done.returncode == 125 and "attached already, as /dev/mapper/vm" in done.stderr
    run("qcow2attach", "detach", "vm")


@pytest.mark.full
def test_memory_of_the_users_own(disk):
    image = disk(b"E")
    done = run_guest(image, qemu=["-object", "memory-backend-memfd,id=m0,size=64M,share=on",
                                  "-machine", "pc,memory-backend=m0"])
    assert done.returncode == 33, done.stderr
    done = run_guest(image, qemu=["-object", "memory-backend-ram,id=m0,size=64M",
                                  "-machine", "pc,memory-backend=m0"])
    assert done.returncode == 125 and "make it a memory-backend-memfd" in done.stderr
    nothing_left()


@pytest.fixture
def few_rings(cleanup):
    def put(value):
        with open("/sys/module/vhost_blk/parameters/max_queues", "w") as f:
            f.write(value)
    with open("/sys/module/vhost_blk/parameters/max_queues") as f:
        cleanup(put, f.read().strip())
    put("1")


def test_two_disks_and_few_queues(disk, few_rings):
    """A run in a run: names do not clash. A guest of many processors gets the queues that there are,
    and memory that is shared by its nature, or of an odd size, is as good as any."""
    first, second = disk(b"E", "vm1"), disk(b"E", "vm1.copy")
    done = run("qcow2attach", "run", first, "--", "qcow2attach", "run", second, "--", *QEMU,
               "-smp", "2", "-m", "64.5M", check=False, timeout=180)
    assert done.returncode == 33 and "DISK-OK" in done.stdout, (done.stdout, done.stderr)
    nothing_left()
    done = run_guest(first, qemu=["-object", "memory-backend-memfd,id=m0,size=64M",
                                  "-machine", "pc,memory-backend=m0"])
    assert done.returncode == 33, done.stderr
    nothing_left()
    image_check(first)
    image_check(second)


def test_two_at_once(disk, start):
    """Two guests on one golden image."""
    first = start(disk(b"halt", "vm1"))
    second = start(disk(b"halt", "vm2"))
    assert re.findall(r"^(vm\d) ", run("qcow2attach", "list").stdout, re.M) == ["vm1", "vm2"]
    for proc in (first, second):
        proc.terminate()
        assert proc.wait(timeout=60) == 0
    nothing_left()


def test_terminal_signals_reach_qemu_once(disk, start):
    """^C from a terminal goes to the whole foreground group; the disk's server is not in it."""
    image = disk(b"halt")
    proc = start(image)
    server = [int(pid) for pid in run("pgrep", "-x", "qcow2attach").stdout.split()
              if int(pid) != proc.pid]
    assert all(os.getpgid(pid) != proc.pid for pid in server)
    os.killpg(proc.pid, signal.SIGINT)
    assert proc.wait(timeout=60) == 0
    nothing_left()
