# SPDX-License-Identifier: GPL-2.0-or-later
"""`qcow2attach check`, and the cage in which it runs qemu-img."""
import errno
import json
import os
import pty
import signal
import socket
import subprocess
import time
import types

import pytest

from helpers import MIB, QemuDaemon, image_check, image_create, image_info, qemu_io, run, wait_for
from toolcli import attach, images, refused, tool  # noqa: F401  (fixtures among them)


def test_check(images, attach, tmp_path):
    """What a crash leaks is found and given back; an image in use is left alone."""
    image = image_create(f"{images}/disk.qcow2", 64 * MIB)
    assert tool("check", image)[0].endswith("no errors; holds 0 of the disk's 1024 clusters\n")
    device = attach(image)
    run("dd", "if=/dev/urandom", f"of={device}", "bs=64k", "count=3", "oflag=direct", "conv=fsync")
    assert "attached already, as /dev/mapper/disk (read-write)" in refused("check", image, code=3)
    assert "attached already" in refused("check", "--repair", image, code=3)
    # The image as a power cut would leave it now.
    crashed = str(tmp_path / "crashed.qcow2")
    run("cp", image, crashed)
    data = run("qemu-img", "map", "--output=json", crashed).stdout
    found = json.loads(tool("check", "--json", crashed, code=5)[0])
    assert [(o["image"], o["corruptions"], o["allocated_clusters"]) for o in found] == \
        [(crashed, 0, 3)]
    assert 0 < found[0]["leaked_bytes"] <= 8 * MIB
    assert found[0]["leaks"] * 65536 == found[0]["leaked_bytes"]
    assert f"{found[0]['leaks']} leaked clusters (" in tool("check", crashed, code=5)[0]
    assert f"gave back {found[0]['leaks']} leaked" in tool("check", "--repair", crashed)[0]
    image_check(crashed)
    assert run("qemu-img", "map", "--output=json", crashed).stdout == data
    tool("detach", "disk")
    tool("check", image)
    # A name that no text can hold.
    odd = os.fsdecode(f"{images}/".encode() + b"odd\xff\xe2\x82.qcow2")
    run("cp", image, odd)
    found = json.loads(tool("check", "--json", odd)[0])
    assert found[0]["image"] == f"{images}/odd\ufffd\ufffd\ufffd.qcow2"


def test_check_refuses(images, spawn, tmp_path):
    image = image_create(f"{images}/open.qcow2", MIB)
    QemuDaemon(spawn, tmp_path, image)
    assert "has the image open" in refused("check", image, code=3)
    # What qemu-img says is not in its name for the image.
    bad = image_create(f"{images}/lock.qcow2", MIB)
    with open(bad, "r+b") as f:
        f.seek(40)
        f.write((512).to_bytes(8, "big"))
    assert "L1 table offset" in refused("check", bad, code=1)
    # It must not be led elsewhere by what the header says.
    outside = image_create(f"{images}/data.qcow2", MIB, data_file=f"{images}/elsewhere")
    assert "external data files are not supported" in refused("check", outside, code=4)
    backed = image_create(f"{images}/backed.qcow2", MIB, backing="/etc/shadow", backing_fmt="raw")
    trace = run("strace", "-f", "-e", "trace=openat", "qcow2attach", "check", backed, check=False)
    assert trace.returncode == 0 and "/etc/shadow" not in trace.stderr
    for junk, words in ((b"", "too short"), (b"x" * 4096, "not a qcow2 image")):
        with open(f"{images}/junk", "wb") as f:
            f.write(junk)
        assert words in refused("check", f"{images}/junk", code=4)
    # An error of the tables is told, and nothing is mended: what seems leaked may be data.
    bad = image_create(f"{images}/bad.qcow2", MIB)
    qemu_io(bad, "write -q 0 64k")
    with open(bad, "r+b") as f:
        f.seek(40)
        f.seek(int.from_bytes(f.read(8), "big"))
        f.write((1 << 63 | 1 << 16).to_bytes(8, "big"))
    with open(bad, "rb") as f:
        before = f.read()
    assert "corrupt" in tool("check", "--repair", bad, code=4)[0]
    with open(bad, "rb") as f:
        assert f.read() == before


def test_check_opens_no_device_to_see_what_it_is(images):
    """To open some, such as a watchdog, is to start them."""
    os.symlink("/dev/zero", f"{images}/link.qcow2")
    os.mkfifo(f"{images}/fifo.qcow2")
    for name in ("link", "fifo"):
        done = run("strace", "-f", "-e", "trace=open,openat", "qcow2attach", "check",
                   f"{images}/{name}.qcow2", check=False)
        assert done.returncode == 4 and "neither a file nor a block device" in done.stderr
        opened = [line for line in done.stderr.splitlines() if f'{name}.qcow2", ' in line]
        assert len(opened) == 1 and "O_PATH" in opened[0], opened
        assert "/proc/self/fd" not in done.stderr, done.stderr


def test_check_dirty(images):
    """An image that QEMU has left dirty is not written to until its clusters are counted anew."""
    image = image_create(f"{images}/lazy.qcow2", 8 * MIB, lazy_refcounts="on")
    # aborting leaves refcounts of 0 for clusters in use
    run("qemu-io", "-c", "write -q -P 0x11 0 1M", "-c", "abort", image, check=False)
    assert image_info(image)["format-specific"]["data"]["lazy-refcounts"]
    assert image_info(image)["dirty-flag"]
    assert "marked dirty" in refused("attach", image, code=4)
    assert "--repair rebuilds its refcounts" in tool("check", image, code=4)[0]
    assert json.loads(tool("check", "--json", image, code=4)[0])[0]["dirty"]
    assert "rebuilt its refcounts" in tool("check", "--repair", image)[0]
    image_check(image)
    qemu_io(image, "read -P 0x11 0 1M")
    tool("attach", image)
    tool("detach", "lazy")
    image_check(image)


def test_check_without_refcounts(images):
    """An image that some program has made without counting gets its refcounts from its tables."""
    image = image_create(f"{images}/bare.qcow2", 8 * MIB)
    qemu_io(image, "write -q -P 0x11 0 1M", "write -q -P 0x22 5M 64k")
    with open(image, "r+b") as f:
        f.seek(48)
        f.seek(int.from_bytes(f.read(8), "big"))
        f.write(bytes(65536))
    assert "has no refcounts, so it cannot be written to; --repair rebuilds" in \
        tool("check", image, code=4)[0]
    assert json.loads(tool("check", "--json", image, code=4)[0])[0]["uncounted"]
    assert "rebuilt its refcounts" in tool("check", "--repair", image)[0]
    image_check(image)
    qemu_io(image, "read -P 0x11 0 1M", "read -P 0x22 5M 64k")
    tool("attach", image)
    tool("detach", "bare")
    image_check(image)


def test_check_trusts_qemu_img_with_nothing(images, tmp_path):
    """It works on what an enemy may have written: as a user without rights, within limits, with the
    image alone, which it can write only to repair it."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    os.mkdir(f"{images}/private", 0o700)
    image = image_create(f"{images}/private/vm.qcow2", 8 * MIB, lazy_refcounts="on")
    os.chmod(image, 0o600)
    tool("check", image)
    run("qemu-io", "-c", "write -q 0 1M", "-c", "abort", image, check=False)
    assert "rebuilt its refcounts" in tool("check", "--repair", image)[0]
    image_check(image)
    # What else could it do? Another program in its place tries.
    os.chmod(tmp_path, 0o755)
    for parent in tmp_path.parents:
        os.chmod(parent, os.stat(parent).st_mode | 0o555)
    report = tmp_path / "report"
    report.touch()
    report.chmod(0o666)
    fake = tmp_path / "bin" / "qemu-img"
    fake.parent.mkdir()
    fake.write_text(f"""#!/usr/bin/python3
import json, os, resource, socket

def attempt(f):
    try:
        return repr(f())
    except OSError as e:
        return e.strerror

def head(path, flags=os.O_RDONLY):
    with open(os.open(path, flags), "rb") as f:
        return f.read(4)

print(json.dumps({{"corruptions": 0}}))
report = {{
    "uids": os.getresuid(), "gids": os.getresgid(), "groups": os.getgroups(),
    "image": attempt(lambda: head("/proc/self/fd/3")),
    "write": attempt(lambda: head("/proc/self/fd/3", os.O_RDWR)),
    "secret": attempt(lambda: head({str(secret)!r})),
    "socket": attempt(lambda: socket.socket(socket.AF_UNIX)),
    "kill": attempt(lambda: os.kill(os.getppid(), 0)),
    "limits": [resource.getrlimit(what)[1] for what in (resource.RLIMIT_CORE, resource.RLIMIT_CPU,
                                                     resource.RLIMIT_AS, resource.RLIMIT_FSIZE)],
    "fds": sorted(os.listdir("/proc/self/fd")),
}}
with open({str(report)!r}, "w") as f:
    json.dump(report, f)
""")
    fake.chmod(0o755)
    env = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"}
    with open(image, "rb") as keep:
        os.set_inheritable(keep.fileno(), True)
        run("qcow2attach", "check", image, env=env, close_fds=False)
    seen = json.loads(report.read_text())
    assert len(set(seen["uids"])) == 1 and seen["uids"][0] != 0 and 0 not in seen["gids"]
    assert seen["groups"] == []
    assert seen["image"] == repr(b"QFI\xfb")
    assert [seen[what] for what in ("write", "secret", "socket", "kill")] == \
        ["Permission denied", "Permission denied", "Operation not permitted",
         "Operation not permitted"]
    core, cpu, memory, size = seen["limits"]
    assert core == 0 and 0 < cpu < 86400 and 0 < memory < 1 << 46
    assert os.path.getsize(image) < size < os.path.getsize(image) * 2 + (1 << 30)
    # Its own, the image, and that of the directory that it lists.
    assert seen["fds"] == ["0", "1", "2", "3", "4"]
    fake.unlink()
    done = run("qcow2attach", "check", image, check=False, env={**os.environ, "PATH": "/nowhere"},
               executable="/build/qcow2attach")
    assert done.returncode == 1 and "install qemu-utils" in done.stderr


@pytest.fixture
def probe(images, tmp_path):
    """probe(attempt) -> environment in which qemu-img is cageprobe; report() -> what it has written
    down; image: a sound one."""
    os.chmod(tmp_path, 0o755)
    for parent in tmp_path.parents:
        os.chmod(parent, os.stat(parent).st_mode | 0o555)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "qemu-img").symlink_to("/build/cageprobe")
    path = tmp_path / "report"

    def env(attempt):
        path.write_text("")
        path.chmod(0o666)
        return {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "CAGEPROBE": attempt,
                "CAGEPROBE_REPORT": str(path)}

    def report():
        return [(name, int(value)) for name, value in
                (line.rsplit(" ", 1) for line in path.read_text().splitlines())]
    return types.SimpleNamespace(env=env, report=report,
                                 image=image_create(f"{images}/probe.qcow2", MIB))


def test_caged_without_terminal(probe):
    """Who has root's terminal can type into root's shell."""
    ours, theirs = pty.openpty()
    try:
        run("setsid", "--ctty", "--wait", "qcow2attach", "check", probe.image, stdin=theirs,
            env=probe.env("terminal"))
    finally:
        os.close(ours)
        os.close(theirs)
    assert probe.report()[1:] == [("tty", errno.ENXIO)]


def test_caged_ends_with_the_tool(probe, spawn):
    """However the tool is ended, qemu-img does not go on without it."""
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
        proc = spawn("qcow2attach", "check", probe.image, env=probe.env("sleep"),
                     stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        (_, pid), = wait_for(probe.report, what="the program in the cage")
        proc.send_signal(sig)
        assert proc.wait(timeout=20) == -sig
        assert proc.stderr.read() == b""
        wait_for(lambda: not os.path.exists(f"/proc/{pid}"), what="its end")


def test_caged_calls(probe, images):
    """What a taken-over qemu-img asks of the kernel to reach others, and what it may do itself."""
    run("qcow2attach", "check", probe.image, env=probe.env("calls"))
    seen = probe.report()[1:]
    own = {name: error for name, error in seen if name.startswith("own ")}
    others = [(name, error) for name, error in seen if name not in own and name != "pipe"]
    assert len(own) == 6 and set(own.values()) == {0}, own
    names = [name for name, _ in others]
    # No line is there twice: no child has come into being.
    assert len(names) > 25 and len(set(names)) == len(names), names
    assert names[-1] == "mount_setattr"
    wrong = [(name, errno.errorcode.get(error, error)) for name, error in others
             if error != (errno.ENOSYS if name == "clone3" else errno.EPERM)]
    assert not wrong, wrong
    # The same calls under the numbers of another calling convention.
    done = run("qcow2attach", "check", probe.image, env=probe.env("x32"), check=False)
    assert done.returncode == 1 and "stopped by signal 31" in done.stderr, done.stderr
    assert len(probe.report()) == 1
    # QEMU's own is as it was, with threads, and whatever it says of the image.
    assert "no errors" in tool("check", probe.image)[0]


def test_caged_that_does_not_end(probe):
    """It has said all that there is to be heard, and stays."""
    begin = time.monotonic()
    done = run("qcow2attach", "check", probe.image, env=probe.env("silent"), check=False)
    assert done.returncode == 1 and time.monotonic() - begin < 60
    assert "qemu-img did not end when it had closed its output and was killed" in done.stderr
    (_, pid), = probe.report()
    assert not os.path.exists(f"/proc/{pid}")
