# SPDX-License-Identifier: GPL-2.0-or-later
"""`qcow2attach serve`: what a client reads and writes is right, on block devices and on images, and
the disk survives clients and servers that go away at any moment.
"""
import fcntl
import json
import os
import pwd
import random
import re
import signal
import socket
import stat
import subprocess
import time

import pytest

import fuse
from helpers import (MIB, child_of, image_check, image_compare, image_create, qemu_io, run, sysfs,
                     wait_for)

DRIVER = "virtio-blk-vhost-user"


class Server:
    """A `qcow2attach serve` process and its socket."""

    def __init__(self, proc, path):
        self.proc, self.socket = proc, path

    def worker(self):
        """The process that talks to clients."""
        return child_of(self.proc.pid)

    def stop(self, timeout=30):
        """SIGTERM; the exit code."""
        self.proc.send_signal(signal.SIGTERM)
        return self.proc.wait(timeout=timeout)

    def said(self):
        """What a server that has ended wrote after its ready line."""
        return self.proc.stdout.read()


@pytest.fixture
def serve(spawn, tmp_path):
    def start(device, *options, path=None, prefix=()):
        path = path or str(tmp_path / "disk.sock")
        proc = spawn(*prefix, "qcow2attach", "serve", device, "--socket", path, *options,
                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        # It may have to wait for what one that was killed left in flight.
        line = proc.stdout.readline()
        while "waiting for the requests of an earlier server" in line:
            line = proc.stdout.readline()
        assert ": ready at " in line, line + proc.stdout.read()
        return Server(proc, path)
    return start


def verify(server, queues, operations, seed, *more, check=True, **kw):
    return run("blkio_verify", DRIVER, server.socket, queues, operations, seed, *more,
               check=check, timeout=300, **kw)


def same(device, expected):
    """The device holds what the file does."""
    size = os.path.getsize(expected)
    run("blockdev", "--flushbufs", device)
    run("cmp", "-n", size, device, expected)


@pytest.mark.parametrize("queues, kind", [
    (1, "brd"), (2, "brd"), (1, "null"),
    pytest.param(2, "null", marks=pytest.mark.core)])
def test_verified_io(serve, bdev, tmp_path, kind, queues):
    device = bdev(64 * MIB, kind)
    server = serve(device, "--queues", queues)
    seed = random.getrandbits(32)
    print(verify(server, queues, 3000, seed, tmp_path / "expected").stdout)
    assert server.stop() == 0
    assert not os.path.exists(server.socket)
    same(device, tmp_path / "expected")


@pytest.mark.parametrize("storage, queues", [
    pytest.param("bdev", 2, marks=pytest.mark.core),
    ("ext4", 1),
    ("xfs", 2),
    pytest.param("bdev", 1, marks=pytest.mark.full),
    pytest.param("ext4", 2, marks=pytest.mark.full),
    pytest.param("xfs", 1, marks=pytest.mark.full)])
def test_verified_io_on_images(serve, bdev, filesystem, tmp_path, dm, storage, queues):
    """A client's requests on an overlay, against its own model and QEMU's reading."""
    if storage == "bdev":
        base, image = bdev(128 * MIB), bdev(160 * MIB)
    else:
        directory = filesystem(storage, 512 * MIB)
        base, image = f"{directory}/base.qcow2", f"{directory}/vm.qcow2"
    image_create(base, 64 * MIB)
    qemu_io(base, "write -P 0x77 0 8M")
    image_create(image, backing=base)
    run("qcow2attach", "attach", image, "--name", "verified", "--allow-dir", "/dev")
    dm.names.append("verified")         # to be removed should this fail
    server = serve("verified", "--queues", queues)
    seed = random.getrandbits(32)
    print(verify(server, queues, 2000, seed, tmp_path / "expected").stdout)
    assert server.stop() == 0
    run("qcow2attach", "detach", "verified")
    dm.names.remove("verified")
    image_check(image)
    image_compare(image, tmp_path / "expected")


@pytest.mark.core
def test_worker_per_queue(serve, bdev):
    server = serve(bdev(64 * MIB), "--queues", 2, "--workers", "per-queue")
    tasks = os.listdir(f"/proc/{server.worker()}/task")
    assert len(tasks) == 3, tasks           # itself and two of the kernel's
    print(verify(server, 2, 3000, random.getrandbits(32)).stdout)
    assert server.stop() == 0


def test_second_server_is_refused(serve, bdev, tmp_path):
    device = bdev(64 * MIB)
    server = serve(device)
    second = run("qcow2attach", "serve", device, "--socket", tmp_path / "other.sock", check=False)
    assert second.returncode == 3
    assert second.stderr == (f"qcow2attach: serve: {device}: the device is in use by qcow2attach "
                             f"serve (process {server.worker()}) at {server.socket}\n")
    assert not os.path.exists(tmp_path / "other.sock")
    # Reading takes no claim: it may be served read-only besides.
    reader = serve(device, "--read-only", path=str(tmp_path / "reader.sock"))
    assert reader.stop() == 0
    assert server.stop() == 0


def test_mounted_device_is_refused(filesystem):
    path = filesystem("ext4", 128 * MIB)
    with open("/proc/self/mounts") as f:
        device = next(line.split()[0] for line in f if line.split()[1] == path)
    refused = run("qcow2attach", "serve", device, "--socket", "/tmp/x.sock", check=False)
    assert refused.returncode == 3
    assert f"mounted on {path}" in refused.stderr


def test_second_client_is_turned_away(serve, bdev, spawn):
    server = serve(bdev(64 * MIB))
    first = spawn("blkio_bench", DRIVER, server.socket, "randwrite", 4, 1, 3,
                  stdout=subprocess.PIPE, text=True)
    time.sleep(1)
    assert run("blkio_bench", DRIVER, server.socket, "randread", 1, 1, 1, check=False).returncode
    result = json.loads(first.communicate(timeout=30)[0])
    assert result["errors"] == 0 and result["iops"] > 0
    assert server.stop() == 0
    assert "a second front end was turned away" in server.said()


@pytest.mark.parametrize("queues", [1, 2])
def test_client_killed(serve, bdev, spawn, queues, tmp_path):
    """A client that dies with requests in flight costs the next one nothing."""
    device = bdev(64 * MIB)
    server = serve(device, "--queues", queues)
    for _ in range(3):
        client = spawn("blkio_bench", DRIVER, server.socket, "randwrite", 32, queues, 60)
        time.sleep(random.uniform(0.2, 0.6))
        client.kill()
        client.wait()
    print(verify(server, queues, 2000, random.getrandbits(32), tmp_path / "expected").stdout)
    assert server.stop() == 0
    same(device, tmp_path / "expected")


@pytest.mark.parametrize("victim", ["worker", "parent", "both"])
def test_server_killed(serve, bdev, spawn, victim, tmp_path):
    """A server killed at any moment leaves a device that the next one can have."""
    device = bdev(64 * MIB)
    for _ in range(2):
        server = serve(device, "--queues", 2)
        client = spawn("blkio_bench", DRIVER, server.socket, "randwrite", 32, 2, 60,
                       stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0.2, 0.6))
        worker = server.worker()
        if victim in ("parent", "both"):
            os.kill(server.proc.pid, signal.SIGKILL)
        if victim in ("worker", "both"):
            os.kill(worker, signal.SIGKILL)
        assert server.proc.wait(timeout=30) != 0
        wait_for(lambda: not os.path.exists(f"/proc/{worker}"), what="the worker's end")
        client.kill()
        client.wait()
        if victim == "worker":
            assert "the server was killed by signal 9" in server.said()
            assert not os.path.exists(server.socket)
    # A socket that nobody listens at any more is replaced.
    server = serve(device, "--queues", 2)
    print(verify(server, 2, 2000, random.getrandbits(32), tmp_path / "expected").stdout)
    assert server.stop() == 0
    same(device, tmp_path / "expected")


def lock_of(directory):
    """The file that servers of root lock while they make a socket in a directory."""
    st = os.stat(directory)
    os.makedirs("/run/qcow2attach", exist_ok=True)
    return (f"/run/qcow2attach/.lock-{os.major(st.st_dev):x}:{os.minor(st.st_dev):x}-"
            f"{st.st_ino:x}")


def take_lock(name):
    """Lock a file as a server does."""
    lock = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def test_socket_in_the_making(bdev, spawn, tmp_path):
    """Another server's socket that does not listen yet is not taken for one that was left behind: who
    makes one keeps others from its directory."""
    path = tmp_path / "disk.sock"
    with socket.socket(socket.AF_UNIX) as other:
        lock = take_lock(lock_of(tmp_path))
        other.bind(str(path))
        server = spawn("qcow2attach", "serve", bdev(16 * MIB), "--socket", path,
                       stderr=subprocess.PIPE, text=True)
        time.sleep(1)
        other.listen()
        os.unlink(lock_of(tmp_path))
        os.close(lock)
        assert server.wait(timeout=30) == 3
        assert f"another server listens at {path}" in server.stderr.read()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert not os.path.exists(lock_of(tmp_path))


def test_a_lock_that_stays(bdev, spawn, tmp_path):
    """Another server that hangs while it makes its socket is not waited for for ever."""
    lock = take_lock(lock_of(tmp_path))
    server = spawn("qcow2attach", "serve", bdev(16 * MIB), "--socket", tmp_path / "disk.sock",
                   stderr=subprocess.PIPE, text=True)
    assert server.wait(timeout=60) == 3
    assert f"another server keeps {lock_of(tmp_path)} locked" in server.stderr.read()
    assert not (tmp_path / "disk.sock").exists()
    # What one that was killed has left locks nobody out.
    os.close(lock)
    assert os.path.exists(lock_of(tmp_path))


def test_users_cannot_lock_servers_out(serve, bdev, spawn):
    """Anybody can lock what he can open: that is the directory of a socket, and never our lock."""
    for directory in ("/srv/sockets", "/run/qcow2attach"):
        os.makedirs(directory, exist_ok=True)
        spawn("setpriv", "--reuid=65534", "--clear-groups", "flock", "-x", directory, "sleep", 300)
        wait_for(lambda: run("flock", "-n", directory, "true", check=False).returncode,
                 what="the lock")
    device = bdev(16 * MIB)
    for path in ("/srv/sockets/disk.sock", "/run/qcow2attach/of-a-test.sock"):
        assert serve(device, path=path).stop() == 0
    # The lock itself is there for root alone.
    name = lock_of("/srv/sockets")
    lock = take_lock(name)
    cannot = run("setpriv", "--reuid=65534", "--clear-groups", "flock", "-n", name, "true",
                 check=False)
    assert cannot.returncode and "Permission denied" in cannot.stderr
    os.unlink(name)
    os.close(lock)


@pytest.fixture
def unanswered(serve, bdev, dm, spawn):
    """(device, server, client): requests have reached the device, which is suspended."""
    device = dm.create("slow", f"0 {64 * MIB // 512} linear {bdev(64 * MIB)} 0")
    server = serve(device)
    client = spawn("blkio_bench", DRIVER, server.socket, "randwrite", 32, 1, 60,
                   stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    dm.suspend("slow", "--noflush", "--nolockfs")
    time.sleep(0.5)             # for requests to be caught by that
    return device, server, client


def test_a_server_that_waits(unanswered, serve, bdev, dm, spawn, tmp_path):
    """While the kernel finishes what a killed server left, the next one waits: it hears signals, and
    does not take another device for the one that it was called for."""
    device, server, client = unanswered
    other = bdev(64 * MIB)
    for pid in (server.worker(), server.proc.pid):
        os.kill(pid, signal.SIGKILL)
    client.kill()

    def waiting(path):
        proc = spawn("qcow2attach", "serve", path, "--socket", tmp_path / "second.sock",
                     stderr=subprocess.PIPE, text=True)
        assert "waiting for the requests of an earlier server" in proc.stderr.readline()
        return proc

    for told in [signal.SIGTERM, signal.SIGINT]:
        second = waiting(device)
        second.send_signal(told)
        assert second.wait(timeout=10) == 3
        assert "told to end" in second.stderr.read()
    (tmp_path / "link").symlink_to(device)
    second = waiting(tmp_path / "link")
    (tmp_path / "new").symlink_to(other)
    os.rename(tmp_path / "new", tmp_path / "link")
    assert second.wait(timeout=10) == 1
    assert "the device was replaced meanwhile" in second.stderr.read()
    dm.resume("slow")
    assert serve(device).stop() == 0


def test_client_sees_the_disk_again_after_a_stop(serve, bdev, spawn):
    """SIGTERM with requests in flight: they are answered, then it ends."""
    device = bdev(64 * MIB)
    server = serve(device)
    spawn("blkio_bench", DRIVER, server.socket, "randwrite", 32, 1, 60,
          stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    assert server.stop() == 0
    assert not os.path.exists(server.socket)
    assert sysfs(device, "inflight").split() == ["0", "0"]


def stopped_at_last(server, words):
    """SIGTERM ends a server within its bounds, whatever it waits for; what it says."""
    worker = server.worker()
    assert server.stop(timeout=60) == 1
    # The end of its output would be that of the process that does not end.
    said = os.read(server.proc.stdout.fileno(), 1 << 16).decode()
    assert words in said
    assert not os.path.exists(server.socket)
    return worker


@pytest.fixture
def hanging_file(tmp_path):
    """hanging_file(server): a file that hangs when it is told to, and a front end that has it."""
    made = []

    def make(server, **kw):
        made.append(fuse.HangingFile(tmp_path / "fuse", **kw))
        made.append(fuse.FrontEnd(made[0].path, server.socket))
        return made
    yield make
    # The file system first, for which the other's end waits; and before the directory is removed.
    for process in made:
        process.end()


def test_a_file_of_a_sleeping_filesystem(serve, bdev, hanging_file):
    """A file system whose process takes no request any more: a server that waits for it hears no
    signal but the one that kills it."""
    device = bdev(16 * MIB)
    server = serve(device)
    file, front = hanging_file(server, flush=False)
    file.sleep()
    front.hand_over()
    stopped_at_last(server, "the server did not end when it was told to, and was killed")
    assert serve(device).stop() == 0


@pytest.mark.parametrize("operation", ["GETATTR", "FLUSH"])
def test_a_file_of_a_silent_filesystem(serve, bdev, hanging_file, operation):
    """A file system whose process takes a request, and does nothing: not even a kill ends that, be it
    in fstat() or in close()."""
    device = bdev(16 * MIB)
    server = serve(device)
    file, front = hanging_file(server)
    file.ignore(getattr(fuse, operation))
    front.hand_over()
    file.hangs()
    worker = stopped_at_last(server, "of the server does not end although it was killed")
    assert os.path.exists(f"/proc/{worker}")
    file.end()
    wait_for(lambda: not os.path.exists(f"/proc/{worker}"), what="the server's end")
    assert serve(device).stop() == 0


def test_storage_that_does_not_answer(unanswered, serve, dm):
    """A server that was told to end does, though its last requests are never answered."""
    device, server, client = unanswered
    worker = stopped_at_last(server, "although it was killed: it waits for the storage")
    client.kill()
    dm.resume("slow")
    wait_for(lambda: not os.path.exists(f"/proc/{worker}"), what="the server's end")
    assert serve(device).stop() == 0


def test_run_does_not_wait_for_its_server_for_ever(bdev, spawn, tmp_path):
    """Nobody shall have to kill `run` because something of it hangs, here the process that would have
    killed the server: the exit code is still QEMU's, and the device goes."""
    image = image_create(bdev(64 * MIB), 32 * MIB)
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\nkill -STOP $(pgrep -P $PPID -x qcow2attach) && exit 7\n")
    qemu.chmod(0o755)
    proc = spawn("qcow2attach", "run", image, "--name", "hanging", "--", qemu,
                 stderr=subprocess.PIPE, text=True)
    assert proc.wait(timeout=120) == 7, proc.stderr.read()
    assert "hanging" not in run("dmsetup", "ls").stdout
    assert not os.path.exists(f"/run/qcow2attach/run-{proc.pid}.sock")
    image_check(image)


def test_run_waits_for_who_passes_by(bdev, spawn, tmp_path):
    """Somebody has the device for a moment before the server of `run` claims it: the server waits,
    though `run` itself has the device open, too."""
    image = image_create(bdev(64 * MIB), 32 * MIB)
    proc = spawn("strace", "-f", "-o", "/dev/null", "-e", "inject=setpgid:delay_enter=3000000",
                 "qcow2attach", "run", image, "--name", "passing", "--", "sh", "-c", "exit 7",
                 stderr=subprocess.PIPE, text=True)
    wait_for(lambda: os.path.exists("/dev/mapper/passing"), what="the device")
    claim = os.open("/dev/mapper/passing", os.O_RDWR | os.O_EXCL)
    assert "waiting for the requests of an earlier server" in proc.stderr.readline()
    os.close(claim)
    assert proc.wait(timeout=60) == 7, proc.stderr.read()
    wait_for(lambda: "passing" not in run("dmsetup", "ls").stdout, what="the device's end")
    run("dmsetup", "mknodes")
    image_check(image)


def test_descriptors_of_the_caller(bdev, tmp_path):
    """The process that talks to front ends has none of them, and QEMU has no more than these."""
    image = image_create(bdev(64 * MIB), 32 * MIB)
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\nreadlink /proc/$$/fd/*\n"
                    "for p in $(pgrep -u qcow2attach -x qcow2attach); do\n"
                    "echo server && readlink /proc/$p/fd/*; done\n")
    qemu.chmod(0o755)
    with open(tmp_path / "mine", "w") as mine:
        done = run("qcow2attach", "run", image, "--name", "few", "--", qemu,
                   pass_fds=[mine.fileno()])
    qemus, servers = (part.split("\n") for part in done.stdout.split("server\n"))
    assert str(tmp_path / "mine") in qemus and str(tmp_path / "mine") not in servers
    assert [link for link in qemus if link.startswith("/dev/") and link != "/dev/null"] == []
    links = {link for link in servers if link.startswith("/") and link != "/dev/null"}
    assert links == {"/dev/vhost-blk", "/dev/mapper/few"}, links


def test_relative_socket(bdev, spawn, tmp_path):
    """A socket that is named from where the command was started is listed by all of its name."""
    device = bdev(16 * MIB)
    server = spawn("qcow2attach", "serve", device, "--socket", "r.sock", cwd=tmp_path,
                   stdout=subprocess.PIPE, text=True)
    path = f"{tmp_path}/r.sock"
    assert f": ready at {path} (" in server.stdout.readline()
    listed = json.loads(run("qcow2attach", "list", "--served", "--json").stdout)
    assert [s["socket"] for s in listed] == [path]
    server.terminate()
    assert server.wait(timeout=30) == 0 and not os.path.exists(path)
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    done = run("qcow2attach", "serve", device, "--socket", "r.sock", cwd=deep, check=False)
    assert done.returncode == 1 and f"longer than 107 bytes: {deep}/r.sock (--socket" in done.stderr


def process_status(pid):
    with open(f"/proc/{pid}/status") as f:
        return dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)


def test_privileges_are_gone(serve, bdev):
    server = serve(bdev(64 * MIB))
    status = process_status(server.worker())
    mine = pwd.getpwnam("qcow2attach")
    assert mine.pw_uid not in (0, 65534)
    assert status["Uid"].split() == [str(mine.pw_uid)] * 4
    assert status["Gid"].split() == [str(mine.pw_gid)] * 4
    assert status["Groups"].strip() == ""
    assert int(status["CapPrm"], 16) == 0 and int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    # The process with privileges holds nothing of the disk or the kernel's device.
    links = [os.readlink(f"/proc/{server.proc.pid}/fd/{fd}")
             for fd in os.listdir(f"/proc/{server.proc.pid}/fd")]
    assert not [link for link in links if link.startswith("/dev/") and link != "/dev/null"]
    # Nobody's processes, of which a host may have many, cannot stop it.
    for command in (["kill", "-KILL", server.worker()], ["renice", "-n", "19", server.worker()]):
        assert run("setpriv", "--reuid=65534", "--clear-groups", *command, check=False).returncode
    assert server.stop() == 0


def test_users(serve, bdev, tmp_path, cleanup):
    """The user that the server becomes can be chosen; where its own does not exist it says so."""
    device = bdev(64 * MIB)
    server = serve(device, "--user", "daemon")
    assert process_status(server.worker())["Uid"].split() == [str(pwd.getpwnam("daemon").pw_uid)] * 4
    print(verify(server, 1, 300, random.getrandbits(32)).stdout)
    assert server.stop() == 0
    for user, words in [("root", "the user 'root' has root's privileges"),
                        ("nosuchuser", "there is no user 'nosuchuser'")]:
        refused = run("qcow2attach", "serve", device, "--user", user, check=False)
        assert refused.returncode == 1 and words in refused.stderr, refused.stderr
    with open("/etc/passwd") as f:
        users = f.read()
    (tmp_path / "passwd").write_text("".join(line for line in users.splitlines(True)
                                             if not line.startswith("qcow2attach:")))
    run("mount", "--bind", tmp_path / "passwd", "/etc/passwd")
    cleanup(run, "umount", "/etc/passwd")
    path = str(tmp_path / "nobody.sock")
    run("qcow2attach", "serve", device, "--socket", path, "--user", "daemon", "--daemonize")
    run("pkill", "-TERM", "-x", "qcow2attach")
    wait_for(lambda: not os.path.exists(path), what="the socket's end")
    done = run("qcow2attach", "serve", device, "--socket", path, "--daemonize")
    assert "there is no user qcow2attach" in done.stderr and "runs as nobody" in done.stderr
    worker, = (pid for pid in run("pgrep", "-x", "qcow2attach").stdout.split()
               if process_status(pid)["Seccomp"] == "2")
    assert process_status(worker)["Uid"].split() == ["65534"] * 4
    run("pkill", "-TERM", "-x", "qcow2attach")
    wait_for(lambda: not os.path.exists(path), what="the socket's end")


def test_oom_score(serve, bdev):
    """A guest's memory is no reason to kill the server, whose end frees none of it."""
    def score(pid):
        with open(f"/proc/{pid}/oom_score_adj") as f:
            return int(f.read())

    device = bdev(64 * MIB)
    for options, started_with, expected in [([], 0, -999), ([], 300, -999), ([], -1000, -1000),
                                            (["--oom-score-adj", "0"], -500, 0),
                                            (["--oom-score-adj", "-1000"], 0, -1000)]:
        server = serve(device, *options, prefix=["choom", "-n", started_with, "--"])
        assert score(server.worker()) == expected, (options, started_with)
        # The one that only waits is a process like any other.
        assert score(server.proc.pid) == started_with
        assert server.stop() == 0


def test_socket_file(serve, bdev, tmp_path):
    device = bdev(64 * MIB)
    server = serve(device, "--socket-owner", "nobody:nogroup")
    st = os.stat(server.socket)
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (65534, 65534, 0o660)
    assert server.stop() == 0
    server = serve(device)
    st = os.stat(server.socket)
    assert (st.st_uid, stat.S_IMODE(st.st_mode)) == (0, 0o600)
    assert server.stop() == 0
    (tmp_path / "file").write_text("precious")
    refused = run("qcow2attach", "serve", device, "--socket", tmp_path / "file", check=False)
    assert refused.returncode == 1 and "exists and is not a socket" in refused.stderr
    assert (tmp_path / "file").read_text() == "precious"
    refused = run("qcow2attach", "serve", device, "--socket", "/tmp/" + "x" * 200, check=False)
    assert refused.returncode == 1 and "longer than 107 bytes" in refused.stderr
    refused = run("qcow2attach", "serve", device, "--socket-owner", "nosuchuser", check=False)
    assert refused.returncode == 2 and "no user 'nosuchuser'" in refused.stderr


def test_daemonize_and_notify(bdev, tmp_path):
    device = bdev(64 * MIB)
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(10)
    path = str(tmp_path / "d.sock")
    done = run("qcow2attach", "serve", device, "--socket", path, "--daemonize",
               env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")})
    queues = "1 queue" if os.cpu_count() == 1 else f"{os.cpu_count()} queues"
    assert done.stdout == f"{device}: ready at {path} ({queues})\n"
    assert manager.recv(100) == b"READY=1"
    manager.close()
    pid = int(run("pgrep", "-o", "-f", f"serve {device}").stdout)
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not os.path.exists(path), what="the socket's end")
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), what="the server's end")
    # A failure is told before the first process ends.
    refused = run("qcow2attach", "serve", "/dev/no-such-disk", "--daemonize", check=False)
    assert refused.returncode == 1 and "there is no such device" in refused.stderr


def test_refusals(bdev, tmp_path):
    device = bdev(64 * MIB)
    for argv, code, words in [
            (["no-such-device"], 1, "there is no such device"),
            ([str(tmp_path)], 1, "not a block device"),
            ([device, "--queues", "9999"], 2, "from 1 to 256"),
            ([device, "--queues", "two"], 2, "not a number"),
            ([device, "--queues", "250"], 1, "250 queues are more than the 16 that the kernel "
             "serves (the parameter max_queues of the module vhost-blk"),
            ([device, "--queue-size", "0"], 2, "from 1 to 32768"),
            ([device, "--queue-size", "65536"], 2, "from 1 to 32768"),
            ([device, "--oom-score-adj", "-1001"], 2, "from -1000 to 1000"),
            ([device, "--oom-score-adj", "-"], 2, "from -1000 to 1000"),
            ([device, "--workers", "3"], 2, "use 1 or per-queue"),
            ([device, "--poll", "1000001"], 2, "from 0 to 1000000"),
            ([device, "--serial", "x" * 21], 2, "at most 20"),
            ([], 2, "NAME is missing"),
            ([device, device], 2, "one device at a time")]:
        done = run("qcow2attach", "serve", *argv, check=False)
        assert done.returncode == code and words in done.stderr, (argv, done.stderr)


def test_a_device_with_a_long_name(serve, bdev, dm, tmp_path):
    """The longest name that a device can have makes too long a socket's: the message has the way out."""
    name = "n" * 127
    dm.create(name, f"0 {16 * MIB // 512} linear {bdev(16 * MIB)} 0")
    refused = run("qcow2attach", "serve", name, check=False)
    assert refused.returncode == 1
    assert "longer than 107 bytes" in refused.stderr and "--socket" in refused.stderr
    assert serve(name).stop() == 0
