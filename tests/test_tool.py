# SPDX-License-Identifier: GPL-2.0-or-later
"""`qcow2attach attach`, `detach`, `list` and `status`: what they do, what they say, and what they
refuse.
"""
import json
import os
import pwd
import random
import re
import signal
import socket
import struct
import subprocess
import time

import pytest

from helpers import (MIB, child_of, image_check, image_compare, image_create,
                     image_info, qemu_io, run, wait_for)
from toolcli import attach, images, refused, tool  # noqa: F401  (fixtures among them)

VERBS = ["run", "attach", "serve", "list", "status", "map", "backup", "detach", "check"]


def test_help():
    top = tool("--help")[0]
    for verb in VERBS:
        assert re.search(rf"^  {verb} ", top, re.M)
        text = tool(verb, "--help")[0]
        assert text.startswith(f"Usage: qcow2attach {verb}")
        assert max(map(len, text.splitlines())) <= 80
    # What is not done yet is not there.
    for verb in ["snapshot", "restore", "resize", ""]:
        done = run("qcow2attach", verb, check=False)
        assert done.returncode == 2 and "there is no verb" in done.stderr
    assert re.fullmatch(r"qcow2attach \d+\.\d+\n", tool("--version")[0])
    assert run("qcow2attach", check=False).returncode == 2


def test_without_root(tmp_path):
    for argv in (["list"], ["status", "a"], ["detach", "a"]):
        done = run("setpriv", "--reuid=65534", "--clear-groups", "qcow2attach", *argv, check=False)
        assert done.returncode == 1 and "this needs root" in done.stderr, done.stderr


def test_usage_errors(tmp_path):
    for argv, words in [
            (["attach"], "IMAGE is missing"),
            (["attach", "a", "b"], "one image at a time"),
            (["attach", "a", "--bogus"], "unknown option '--bogus'"),
            (["attach", "a", "--name"], "--name needs a value"),
            (["attach", "a", "--name", "a/b"], "it contains '/'"),
            (["attach", "a", "--name", "control"], "invalid device name 'control'"),
            (["attach", "a", "--format", "vmdk"], "unsupported format 'vmdk'"),
            (["attach", "a", "--format", "raw"], "losetup"),
            (["attach", "a", "--cache", "much"], "invalid size 'much'"),
            (["attach", "a", "--cache", "2G"], "it must be from 1K to 1G"),
            (["attach", "a", "--backing", "b", "--no-backing"], "exclude each other"),
            (["attach", "a", "--no-backing", "--backing", "b"], "exclude each other"),
            (["detach"], "NAME is missing"),
            (["detach", "a", "--wait", "--force"], "exclude each other"),
            (["list", "a"], "takes no names"),
            (["status", "a", "b"], "one device at a time"),
            (["run", "a"], "QEMU command is missing"),
            (["run", "--", "qemu"], "IMAGE is missing"),
            (["run", "a", "--bootindex", "x", "--", "qemu"], "not a number")]:
        assert words in refused(*argv, code=2)


@pytest.mark.core
def test_attach_and_detach(images, attach):
    image_create(f"{images}/base.qcow2", 32 * MIB)
    qemu_io(f"{images}/base.qcow2", "write -P 7 1M 2M")
    image = image_create(f"{images}/vm1.qcow2", backing="base.qcow2")
    assert attach(image) == "/dev/mapper/vm1"
    with open("/dev/mapper/vm1", "r+b", buffering=0) as dev:
        dev.seek(MIB)
        assert dev.read(4096) == b"\7" * 4096
        dev.seek(10 * MIB)
        dev.write(b"\5" * 8192)
        os.fsync(dev.fileno())

    out = tool("list")[0].splitlines()
    assert out[0].split() == ["NAME", "SIZE", "MODE", "IMAGE"]
    assert out[1].split() == ["vm1", "32", "MiB", "rw", image]
    listed = json.loads(tool("list", "--json")[0])
    assert listed == [{"name": "vm1", "device": "/dev/mapper/vm1", "size": 32 * MIB, "mode": "rw",
                       "read_only": False, "attention": [], "image": image}]
    status = json.loads(tool("status", "vm1", "--json")[0])
    assert status["layers"] == [{"format": "qcow2", "path": image},
                                {"format": "qcow2", "path": f"{images}/base.qcow2"}]
    assert status["total_clusters"] == 32 * MIB // 65536
    assert status["users"] == [] and status["open_count"] == 0
    assert re.fullmatch(r"QCOW2-[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}",
                        status["uuid"])
    text = tool("status", "/dev/mapper/vm1")[0]
    for words in ["read-write", f"qcow2 {image}", "32 MiB", "users       none"]:
        assert words in text
    assert tool("status")[0] == text

    tool("detach", "vm1")
    assert not os.path.exists("/dev/mapper/vm1")
    assert tool("list") == ("", "")
    assert json.loads(tool("list", "--json")[0]) == []
    image_check(image)
    qemu_io(image, "read -P 5 10M 8k", "read -P 7 1M 2M")


def test_told_to_end(images, spawn):
    """Whenever it is: there is no device, or one that works."""
    image = image_create(f"{images}/vm.qcow2", 64 * MIB)
    rng = random.Random(1)
    begin = time.monotonic()
    tool("attach", image)
    usual = time.monotonic() - begin
    tool("detach", "vm")
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) * 7:
        proc = spawn("qcow2attach", "attach", image, stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0, usual))
        proc.send_signal(sig)
        assert proc.wait(timeout=20) in (0, -sig)
        found = json.loads(tool("list", "--json")[0])
        assert [d["mode"] for d in found] == ["rw"] * len(found)
        if found:
            tool("detach", "vm")
        assert "vm" not in run("dmsetup", "ls").stdout
    image_check(image)


def test_options_reach_the_kernel(images, attach):
    image = image_create(f"{images}/o.qcow2", 32 * MIB)
    attach(image, "--name", "opts", "--cache", "2M", "--discard-no-unref", "--no-discard-passdown",
           "--error-if-no-space")
    words = run("dmsetup", "table", "opts").stdout.split()
    assert words[5:] == ["5", "l2_cache_kib", "2048", "discard_no_unref", "no_discard_passdown",
                         "error_if_no_space"]
    tool("detach", "opts")


def test_read_only(images, attach):
    image = image_create(f"{images}/golden.qcow2", 8 * MIB)
    qemu_io(image, "write -P 3 0 1M")
    before = open(image, "rb").read()
    first = attach(image, "--read-only", "--name", "ro1")
    # Many may read one image.
    second = attach(image, "--read-only", "--name", "ro2")
    assert run("blockdev", "--getro", first).stdout.strip() == "1"
    with open(second, "rb") as dev:
        assert dev.read(4096) == b"\3" * 4096
    assert json.loads(tool("status", "ro1", "--json")[0])["mode"] == "ro"
    text = refused("attach", image, code=3)
    assert re.search(r"attached already, as /dev/mapper/ro[12] \(read-only\)", text), text
    tool("detach", "ro1", "ro2")
    assert open(image, "rb").read() == before


def test_bdev_images(bdev, attach):
    """An image on a block device; its backing file on another takes a word of permission."""
    base, top = bdev(64 * MIB), bdev(64 * MIB)
    run("qemu-img", "create", "-q", "-f", "qcow2", base, "16M")
    qemu_io(base, "write -P 9 0 64k")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    text = refused("attach", top, "--name", "onbdev", code=4)
    assert f"backing file '{base}': {base} is not in a directory that backing files" in text
    path = attach(top, "--name", "onbdev", "--allow-dir", "/dev")
    with open(path, "r+b", buffering=0) as dev:
        assert dev.read(4096) == b"\x09" * 4096
        dev.seek(MIB)
        dev.write(b"\1" * 4096)
    tool("detach", "onbdev")
    image_check(top)
    assert "no errors; holds 1 of" in tool("check", top)[0]


def test_names(images, attach):
    path = attach(image_create(f"{images}/two words & ümlaut.qcow2", 1 * MIB))
    assert re.fullmatch(r"/dev/mapper/two_words_+mlaut", path)
    status = json.loads(tool("status", path, "--json")[0])
    assert status["image"].endswith("/two words & ümlaut.qcow2")
    other = image_create(f"{images}/other.qcow2", 1 * MIB)
    name = os.path.basename(path)
    text = refused("attach", other, "--name", name, code=3)
    assert f"there is a device named '{name}' already" in text
    tool("detach", path)


def test_names_that_would_fake_a_line(images, attach):
    """Control characters in names reach no terminal, and make no line."""
    evil = f"{images}/a\nvm9  1 GiB  rw  /etc\x1b[2J\x9b/"
    os.makedirs(evil)
    image_create(f"{evil}base.qcow2", MIB)
    image = image_create(f"{evil}vm.qcow2", backing="base.qcow2")
    full = image_create(f"{images}/full.qcow2", backing=f"{evil}base.qcow2")
    assert "the backing file name has the control character 0x0a" in refused("attach", full, code=4)
    for done in (run("qcow2attach", "attach", evil, check=False),
                 run("qcow2attach", "attach", f"{evil}none", check=False),
                 run("qcow2attach", "check", f"{evil}none", check=False)):
        assert done.returncode and re.fullmatch(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f]*\n", done.stderr)
        assert done.stderr.count("\n") == 1 and r"a\012vm9" in done.stderr
    path = attach(image)
    shown = f"{images}/" + r"a\012vm9  1 GiB  rw  /etc\033[2J\302\233/vm.qcow2"
    out = tool("list")[0].splitlines()
    assert len(out) == 2 and out[1].endswith(shown), out
    out = tool("status")[0]
    assert f"  image       qcow2 {shown}\n" in out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out)
    status = json.loads(tool("status", path, "--json")[0])
    assert status["image"] == image
    tool("detach", path)
    assert r"a\012vm9" in tool("check", image)[0]
    # The command that is advised is one that can be copied.
    trap = f"{images}/it's; touch {images}/trapped; '"
    os.makedirs(os.path.dirname(trap))
    image = image_create(trap, MIB, backing=image_create(f"{images}/b.qcow2", MIB))
    with open(image, "r+b") as f:
        head = f.read(512)
        f.seek(head.index(bytes.fromhex("e2792aca")))
        f.write(bytes.fromhex("12345678"))
    text = refused("attach", image, "--name", "trap", "--allow-dir", images, code=4)
    assert "'\\''" in text and "-F FORMAT" in text


def test_moved(images, attach, cleanup):
    """Status tells what a file is called now, and when a process here cannot find that."""
    place = f"{images}/place"
    os.mkdir(place)
    base = image_create(f"{place}/base.qcow2", MIB)
    image = image_create(f"{place}/vm.qcow2", backing=base)
    attach(image)
    assert f"qcow2 {image}\n" in tool("status", "vm")[0]
    os.rename(image, f"{place}/moved.qcow2")
    assert f"qcow2 {place}/moved.qcow2\n" in tool("status", "vm")[0]
    os.rename(f"{place}/moved.qcow2", image)
    # Another filesystem lies on top: the kernel's name is right, and leads elsewhere.
    run("mount", "-t", "tmpfs", "above", place)
    cleanup(lambda: os.path.ismount(place) and run("umount", place))
    out = tool("status", "vm")[0]
    assert f"qcow2 {image} (no file has this name any more)\n" in out
    image_create(image, MIB)
    out = tool("status", "vm")[0]
    assert f"qcow2 {image} (another file has this name now)\n" in out
    assert f"qcow2 {base} (no file has this name any more)\n" in out
    assert [layer.get("moved") for layer in json.loads(tool("status", "vm", "--json")[0])["layers"]] \
        == [True, True]
    run("umount", place)
    assert "has this name" not in tool("status", "vm")[0]
    os.unlink(image)
    assert "qcow2 (deleted)\n" in tool("status", "vm")[0]
    tool("detach", "vm")


def test_a_loop_device_on_the_disk(images, attach, cleanup):
    path = attach(image_create(f"{images}/vm.qcow2", 8 * MIB))
    run("modprobe", "loop")
    loop = run("losetup", "--find", "--show", path).stdout.strip()
    name = os.path.basename(loop)
    try:
        assert f"in use by the device {name}" in refused("detach", "vm", code=3)
        assert f"users       in use by the device {name}\n" in tool("status", "vm")[0]
    finally:
        run("losetup", "--detach", loop)
    wait_for(lambda: not run("losetup", "-a").stdout, what="the end of the loop device")
    tool("detach", "vm")


def test_status_of_many(images, attach, spawn):
    """Who uses what is looked for once, however many devices there are."""
    paths = [attach(image_create(f"{images}/vm{n}.qcow2", MIB)) for n in range(6)]
    holders = [spawn("sleep", "60", stdin=open(path, "rb")) for path in (paths[0], paths[3])]
    run("strace", "-o", f"{images}/strace", "-e", "trace=openat", "qcow2attach", "status")
    with open(f"{images}/strace") as f:
        looked_into = re.findall(r'"/proc/(\d+)/fd"', f.read())
    assert {str(holder.pid) for holder in holders} <= set(looked_into)
    assert len(looked_into) == len(set(looked_into))
    found = {d["name"]: [u["pid"] for u in d["users"]]
             for d in json.loads(tool("status", "--json")[0])}
    assert found == {"vm0": [holders[0].pid], "vm1": [], "vm2": [], "vm3": [holders[1].pid],
                     "vm4": [], "vm5": []}
    for holder in holders:
        holder.kill()
        holder.wait()
    tool("detach", *found)


def test_who_has_the_image(images, attach, spawn):
    """Second attach, QEMU and qemu-img are kept out, and so are we by them."""
    image = image_create(f"{images}/vm1.qcow2", 8 * MIB)
    attach(image)
    for options in [[], ["--name", "other"], ["--read-only", "--name", "other"]]:
        assert "it is attached already, as /dev/mapper/vm1 (read-write)" in \
            refused("attach", image, *options, code=3)
    kept_out = run("qemu-img", "info", "-f", "qcow2", image, check=False)
    assert kept_out.returncode and "lock" in kept_out.stderr
    tool("detach", "vm1")

    qemu = spawn("qemu-io", "-f", "qcow2", image, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    qemu.stdin.write(b"read 0 512\n")
    qemu.stdin.flush()
    qemu.stdout.readline()
    text = refused("attach", image, code=3)
    assert "the kernel refused it: " in text or "the kernel could not resume it: " in text
    assert "in use" in text or "lock" in text, text
    qemu.stdin.close()
    qemu.wait(timeout=20)
    attach(image)
    tool("detach", "vm1")


def test_what_is_refused(images):
    base = image_create(f"{images}/base.qcow2", 8 * MIB)
    run("truncate", "-s", "8M", f"{images}/raw")

    def over(name, backing, fmt="qcow2"):
        run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", fmt,
            f"{images}/{name}", "8M")
        return f"{images}/{name}"

    os.mkfifo(f"{images}/fifo")
    os.symlink("/etc/shadow", f"{images}/innocent")
    for image, words in [
            (f"{images}/none", "No such file or directory"),
            (images, "it is a directory"),
            (f"{images}/fifo", "it is a FIFO"),
            (f"{images}/raw", "this is not a qcow2 image"),
            (over("nbd", "nbd://localhost/x", "raw"), "the protocol 'nbd:'"),
            (over("json", "json:{}", "raw"), "a json: description"),
            (over("etc", "/etc/shadow", "raw"), "/etc/shadow is not in a directory"),
            (over("link", "innocent", "raw"), "/etc/shadow is not in a directory"),
            (over("dots", "../" * 9 + "etc/shadow", "raw"), "/etc/shadow is not in a directory"),
            (over("pipe", "fifo", "raw"), "it is a FIFO"),
            (over("gone", "no-such-base"), "No such file or directory"),
            (over("vmdk", "base.qcow2", "vmdk"), "'vmdk' is not supported"),
            (over("wrong", "raw"), "this is not a qcow2 image"),
            (over("loop-b", "loop-a") and over("loop-a", "loop-b"), "a loop")]:
        text = refused("attach", image, code=1 if "No such" in words else 4)
        assert words in text, text
    # A format that is not written down is not guessed; the advice works.
    image = over("noformat", "base.qcow2")
    with open(image, "r+b") as f:
        head = f.read(512)
        f.seek(head.index(bytes.fromhex("e2792aca")))
        f.write(bytes.fromhex("12345678"))
    text = refused("attach", image, code=4)
    advice = re.search(r"qemu-img rebase .*", text).group(0)
    run("sh", "-c", advice.replace("FORMAT", "qcow2"))
    tool("attach", image)
    tool("detach", "noformat")
    assert not tool("list")[0] and base


def test_raw_backing_files(images, attach):
    """Lying beside the image makes no raw file its own: somebody must say so."""
    with open(f"{images}/tenant.raw", "wb") as f:
        f.write(b"secret".ljust(MIB, b"\0"))
    image = image_create(f"{images}/vm.qcow2", backing="tenant.raw", backing_fmt="raw")
    text = refused("attach", image, code=4)
    assert "backing file 'tenant.raw': it is a raw file" in text and "--backing FILE" in text
    assert "it is a raw file" in refused("attach", image, "--backing", image, code=4)
    os.link(f"{images}/tenant.raw", f"{images}/other-name")
    for allowed in (["--backing", f"{images}/tenant.raw"], ["--backing", f"{images}/other-name"],
                    ["--backing", image, "--backing", f"{images}/tenant.raw"],
                    ["--allow-dir", images]):
        with open(attach(image, *allowed), "rb") as dev:
            assert dev.read(6) == b"secret"
        tool("detach", "vm")
    assert "--no-backing allows none" in refused("attach", image, "--no-backing", "--allow-dir",
                                                 images, code=4)
    done = run("qcow2attach", "run", image, "--", "true", check=False)
    assert done.returncode == 125 and "it is a raw file" in done.stderr
    alone = image_create(f"{images}/alone.qcow2", MIB)
    attach(alone, "--no-backing")
    tool("detach", "alone")


def test_the_kernels_own_reason(images):
    """What only the kernel knows about an image is said in its words."""
    image = image_create(f"{images}/x.qcow2", 8 * MIB)
    with open(image, "r+b") as f:
        f.seek(72)
        f.write((1 << 40).to_bytes(8, "big"))       # an incompatible feature nobody knows
    text = refused("attach", image, code=4)
    assert "the kernel refused it: " in text
    assert "may say why" not in text and "EINVAL" not in text
    assert not tool("list")[0]


def test_detach_in_use(images, attach, spawn):
    image = image_create(f"{images}/busy.qcow2", 64 * MIB)
    path = attach(image)
    run("mkfs.ext4", "-q", "-F", path)
    os.mkdir(f"{images}/mnt")
    run("mount", path, f"{images}/mnt")
    try:
        assert f"mounted on {images}/mnt" in refused("detach", "busy", code=3)
        status = json.loads(tool("status", "busy", "--json")[0])
        assert status["users"] == [{"kind": "mount", "name": f"{images}/mnt"}]
    finally:
        run("umount", f"{images}/mnt")
    holder = spawn("sleep", "60", stdin=open(path, "rb"))
    assert f"in use by sleep (process {holder.pid})" in refused("detach", path, code=3)
    # --wait gets it once the holder has gone.
    waiting = spawn("qcow2attach", "detach", "busy", "--wait", stderr=subprocess.PIPE, text=True)
    assert "waiting: in use by sleep" in waiting.stderr.readline()
    assert waiting.poll() is None
    holder.kill()
    assert waiting.wait(timeout=20) == 0
    assert not os.path.exists(path)
    image_check(image)


def test_detach_removes_no_namesake(images, attach, dm, spawn):
    """A name that is given to another device while --wait waits does not cost that one its life."""
    image = image_create(f"{images}/name.qcow2", 8 * MIB)
    path = attach(image)
    holder = spawn("sleep", "60", stdin=open(path, "rb"))
    waiting = spawn("qcow2attach", "detach", "name", "--wait", stderr=subprocess.PIPE, text=True)
    assert "waiting: in use by sleep" in waiting.stderr.readline()
    dm.setup("rename", "name", "renamed")
    dm.names.append("renamed")
    attach(image_create(f"{images}/namesake.qcow2", 8 * MIB), "--name", "name")
    time.sleep(0.5)
    assert waiting.poll() is None
    holder.kill()
    assert waiting.wait(timeout=20) == 0
    assert [d["image"] for d in json.loads(tool("list", "--json")[0])] == \
        [f"{images}/namesake.qcow2"]
    run("dmsetup", "mknodes")
    tool("detach", "name")
    image_check(image)


def test_detach_by_force(images, attach):
    image = image_create(f"{images}/forced.qcow2", 8 * MIB)
    path = attach(image)
    dev = os.open(path, os.O_RDWR)
    os.write(dev, b"\4" * 4096)
    os.fsync(dev)
    err = tool("detach", "forced", "--force")[1]
    assert "its I/O fails from now on" in err and "the image is closed" in err
    # The image is free at once, and holds what was written ...
    image_check(image)
    qemu_io(image, "read -P 4 0 4k")
    # ... and who still has the device gets errors.
    with pytest.raises(OSError):
        os.write(dev, b"\4" * 4096)
        os.fsync(dev)
    os.close(dev)
    wait_for(lambda: "forced" not in run("dmsetup", "ls").stdout, what="the device's end")
    run("dmsetup", "mknodes")


def test_only_our_devices(bdev, dm):
    base = bdev(8 * MIB)
    path = dm.create("foreign", f"0 {8 * MIB // 512} linear {base} 0")
    for verb in ["status", "detach"]:
        assert "not attached by qcow2attach" in refused(verb, path, code=1)
        assert "not attached by qcow2attach" in refused(verb, "foreign", code=1)
        assert "there is no such device" in refused(verb, "nothing", code=1)
        assert "not a block device" in refused(verb, "/etc/passwd", code=1)
    assert tool("list")[0] == ""


def test_configuration(images, attach, cleanup, tmp_path):
    other = tmp_path / "golden"
    other.mkdir()
    image_create(str(other / "base.qcow2"), 8 * MIB)
    image = image_create(f"{images}/vm.qcow2", backing=str(other / "base.qcow2"))
    assert "--allow-dir DIR allows one" in refused("attach", image, code=4)
    with open("/etc/qcow2attach.conf", "w") as f:
        f.write(f"# golden images\nallow-dir {other}\nallow-dir /not/there\n")
    cleanup(os.unlink, "/etc/qcow2attach.conf")
    attach(image)
    tool("detach", "vm")
    os.chmod("/etc/qcow2attach.conf", 0o666)
    assert "can be written by others" in refused("attach", image, code=1)


def test_damaged_headers_are_read_in_a_cage(images):
    """The process that reads headers is a user without rights, and may do nothing but read."""
    image = image_create(f"{images}/x.qcow2", 8 * MIB)
    log = f"{images}/strace"
    run("strace", "-f", "-o", log, "-e", "trace=all", "qcow2attach", "attach", image)
    tool("detach", "x")
    with open(log) as f:
        lines = f.read().splitlines()
    child = next(line.split()[0] for line in lines if "SECCOMP_MODE_FILTER" in line)
    mine = [line.split(None, 1)[1] for line in lines if line.startswith(child + " ")]
    after = mine[1 + next(i for i, line in enumerate(mine) if "SECCOMP_MODE_FILTER" in line):]
    uid = pwd.getpwnam("qcow2attach").pw_uid
    assert any(line.startswith(f"setresuid({uid}, {uid}, {uid})") for line in mine)
    names = {line.split("(")[0] for line in after if "(" in line and "exited" not in line}
    assert names <= {"pread64", "write", "exit_group"} and "pread64" in names, names


def test_careless_callers(images):
    """With standard error closed no message goes into the image; ignored children still end."""
    image = image_create(f"{images}/x.qcow2", 8 * MIB)
    over = image_create(f"{images}/over.qcow2", backing=image)
    os.unlink(image)
    before = open(over, "rb").read()
    for closed in ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"]:
        done = run("sh", "-c", f"qcow2attach attach {over} {closed}", check=False)
        assert done.returncode == 1
        assert open(over, "rb").read() == before, closed
    image_create(image, 8 * MIB)
    for closed in ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"]:
        run("sh", "-c", f"qcow2attach attach {over} {closed}")
        tool("detach", "over")
    image_check(over)
    subprocess.run(["qcow2attach", "attach", over], check=True, stdin=subprocess.DEVNULL,
                   preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    tool("detach", "over")


def test_a_kernel_without_filters(images, bdev):
    """Without system-call filters nothing is trusted to a process, and what is missing is named."""
    image = image_create(f"{images}/x.qcow2", 8 * MIB)
    # The second such call of a process is the one that asks for the filter.
    without = ["strace", "-f", "-o", f"{images}/strace", "-e", "trace=prctl"]
    for argv, when in (["attach", image], 2), (["serve", bdev(8 * MIB)], 3):
        done = run(*without, "-e", f"inject=prctl:error=EINVAL:when={when}", "qcow2attach", *argv,
                   check=False)
        assert done.returncode and "give up its privileges: this kernel has no system-call " \
            "filters (CONFIG_SECCOMP_FILTER)" in done.stderr, done.stderr


def test_udev_leaves_the_guests_data_alone(images, attach, cleanup):
    """With a real udevd: no link, no scan, no partition of what is inside a guest's disk."""
    if os.path.exists("/run/udev/control"):
        pytest.skip("udevd runs already")
    udevd = subprocess.Popen(["/usr/lib/systemd/systemd-udevd"], stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop():
        udevd.terminate()
        udevd.wait(timeout=20)
        if os.path.exists("/run/udev/control"):
            os.unlink("/run/udev/control")
    cleanup(stop)
    wait_for(lambda: os.path.exists("/run/udev/control"), what="udevd")
    raw = f"{images}/inside.raw"
    run("truncate", "-s", "64M", raw)
    run("mkfs.ext4", "-q", "-F", "-L", "guestfs", raw)
    image = f"{images}/inside.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)

    def check():
        run("udevadm", "settle")
        node = os.path.basename(os.path.realpath(path))
        info = run("udevadm", "info", "--query=all", f"--name={path}").stdout
        assert "DM_NAME=inside" in info
        for flag in ["DISK_RULES", "SUBSYSTEM_RULES", "OTHER_RULES"]:
            assert f"DM_UDEV_DISABLE_{flag}_FLAG=1" in info, info
        assert "ID_FS_" not in info and "guestfs" not in info, info
        links = run("find", "/dev/disk", "-lname", f"*{node}", check=False).stdout
        assert not links, links

    path = attach(image)
    assert os.path.islink(path)         # udev's: without one it is a node of its own
    check()
    # A later event, as after a restart of udevd, changes nothing.
    node = os.path.basename(os.path.realpath(path))
    run("udevadm", "trigger", "--action=change", f"/sys/block/{node}")
    check()
    before = time.monotonic()
    tool("detach", "inside")
    assert time.monotonic() - before < 20
    assert not os.path.lexists(path)
    # No semaphore is left of those by which udev was waited for.
    assert "0x" not in run("dmsetup", "udevcookies").stdout


def test_compare_with_qemu(images, attach):
    """The size and content that the tool passes on are what QEMU sees."""
    image = image_create(f"{images}/cmp.qcow2", 24 * MIB + 512)
    qemu_io(image, "write -P 1 0 100k", "write -P 2 20M 1M", "write -z 5M 1M")
    copy = f"{images}/copy.raw"
    path = attach(image, "--read-only")
    run("dd", f"if={path}", f"of={copy}", "bs=1M", "status=none")
    tool("detach", "cmp")
    assert os.path.getsize(copy) == image_info(image)["virtual-size"]
    image_compare(image, copy)


def test_a_partition_table_for_other_sectors(bdev, tmp_path):
    """An image that was moved to storage with larger sectors: its partitions are not where it says."""
    # Linux, from 1 MiB to the end of 64 MiB, in sectors of 512 bytes.
    mbr = bytes(446) + bytes([0, 0, 0, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + \
        (64 * 2048 - 2048).to_bytes(4, "little") + bytes(48) + b"\x55\xaa"
    (tmp_path / "disk.raw").write_bytes(mbr + bytes(64 * MIB - 512))
    words = "its partition table was made for sectors of 512 bytes, but those of this disk have 4096"
    for sector, said in ((512, False), (4096, True)):
        device = bdev(80 * MIB, blocksize=sector)
        run("qemu-img", "create", "-q", "-f", "qcow2", device, "64M")
        run("qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", tmp_path / "disk.raw", device)
        out, err = tool("attach", device, "--name", f"sectors{sector}")
        assert out == f"/dev/mapper/sectors{sector}\n"
        assert (words in err) == said and bool(err) == said, err
        tool("detach", f"sectors{sector}")


def test_what_is_served(images, bdev, attach, spawn, tmp_path):
    """list --served shows sockets; status tells who serves a device, be it attached or not."""
    ours, other = attach(image_create(f"{images}/vm.qcow2", 8 * MIB)), bdev(8 * MIB)
    assert tool("list", "--served") == ("", "")
    assert "not attached by qcow2attach" in refused("status", other, code=1)
    servers, processes = {}, []
    for device in (ours, other):
        path = str(tmp_path / f"{os.path.basename(device)}.sock")
        server = spawn("qcow2attach", "serve", device, "--socket", path, stdout=subprocess.PIPE,
                       text=True)
        assert ": ready at " in server.stdout.readline()
        processes.append(server)
        worker = int(run("pgrep", "-P", server.pid).stdout)
        servers[device] = {"device": device, "socket": path, "pid": worker}
    listed = json.loads(tool("list", "--served", "--json")[0])
    assert sorted(listed, key=str) == sorted(servers.values(), key=str)
    lines = tool("list", "--served")[0].splitlines()
    assert lines[0].split() == ["PROCESS", "DEVICE", "SOCKET"]
    assert sorted(line.split() for line in lines[1:]) == \
        sorted([str(s["pid"]), s["device"], s["socket"]] for s in servers.values())
    for device in (ours, other):
        words = f"in use by qcow2attach serve (process {servers[device]['pid']}) at " \
            f"{servers[device]['socket']}\n"
        assert words in tool("status", device)[0]
        users = json.loads(tool("status", device, "--json")[0])["users"]
        assert [(u["pid"], u["socket"], u["serve"]) for u in users] == \
            [(servers[device]["pid"], servers[device]["socket"], True)]
    assert f"{other} (" in (said := tool("status", other)[0]) and "not attached by" in said
    for server in processes:
        server.terminate()
        assert server.wait(timeout=20) == 0
    assert "not attached by qcow2attach" in refused("status", other, code=1)
    tool("detach", "vm")


def test_space_timeout(images, attach):
    """How long writes wait for space is told to the kernel."""
    image = image_create(f"{images}/vm.qcow2", MIB)
    assert "must be from 0 to" in refused("attach", image, "--space-timeout", "99999999999", code=2)
    assert "is not a number" in refused("attach", image, "--space-timeout", "long", code=2)
    done = run("qcow2attach", "attach", image, "--space-timeout", "7", check=False)
    if done.returncode and "space_timeout" in done.stderr:
        pytest.skip("the module that is loaded does not have it: " + done.stderr)
    assert done.returncode == 0, done.stderr
    assert run("dmsetup", "table", "vm").stdout.split()[-3:] == ["2", "space_timeout", "7"]
    tool("detach", "vm")
    attach(image, "--space-timeout", "0")
    assert run("dmsetup", "table", "vm").stdout.split()[-2:] == ["space_timeout", "0"]
    tool("detach", "vm")


def sockets_can_be_asked_for():
    """Does the kernel tell about one socket that is asked for (CONFIG_UNIX_DIAG)?"""
    request = struct.pack("=IHHIIBBHIIIII", 40, 20, 1 | 0x300, 0, 0, socket.AF_UNIX, 0, 0,
                          0xffffffff, 0, 1, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 4) as s:
        s.send(request)
        return struct.unpack_from("=IH", s.recv(1 << 16))[1] != 2


def test_a_socket_that_is_made_up(bdev, spawn, tmp_path, monkeypatch):
    """The kernel prints the names of sockets as they are, so the name of anybody's socket can hold
    a line about a server's: it is not believed."""
    device, path = bdev(8 * MIB), str(tmp_path / "disk.sock")
    server = spawn("qcow2attach", "serve", device, "--socket", path, stdout=subprocess.PIPE,
                   text=True)
    assert ": ready at " in server.stdout.readline()
    with open("/proc/net/unix") as f:
        inode, = (line.split()[6] for line in f if line.endswith(path + "\n"))
    made_up = f"{tmp_path}/a\n0: 2 0 10000 1 1 {inode} "
    os.mkdir(made_up)
    sockets = []
    monkeypatch.chdir(tmp_path)
    for n in range(300):        # more than the kernel's table of them has rows
        sockets.append(socket.socket(socket.AF_UNIX))
        sockets[-1].bind(f"{os.path.basename(made_up)}/{n}")
    with open("/proc/net/unix") as f:
        listed = f.read()
    assert re.search(rf" {inode} /\d+\n(.*\n)*.* {inode} {path}\n", listed)
    listed = json.loads(tool("list", "--served", "--json")[0])
    said = tool("status", device)[0]
    if sockets_can_be_asked_for():
        assert [s["socket"] for s in listed] == [path] and f" at {path}\n" in said
    else:
        assert listed == [] and " at " not in said
    for s in sockets:
        s.close()
    # Nobody else's name for it: it is shown again.
    assert [s["socket"] for s in json.loads(tool("list", "--served", "--json")[0])] == [path]
    server.terminate()
    assert server.wait(timeout=20) == 0


def test_a_mount_that_names_a_device(images, attach, tmp_path, cleanup):
    """What a mount says that it is a mount of can be anything; only btrfs is believed, whose device
    number is none of a disk."""
    device = attach(image_create(f"{images}/vm.qcow2", 256 * MIB))
    at = tmp_path / "mnt"
    at.mkdir()
    run("mount", "-t", "tmpfs", device, at)
    assert json.loads(tool("status", "vm", "--json")[0])["users"] == []
    run("umount", at)               # mkfs believes it
    other = tmp_path / "btrfs"
    other.mkdir()
    run("mkfs.btrfs", "-q", device)
    run("mount", device, other)
    cleanup(run, "umount", other)
    assert f"mounted on {other}" in tool("status", "vm")[0]
    assert "mounted on" in refused("detach", "vm", code=3)


def test_undone_while_it_is_open(images, spawn):
    """A device that was to be and is not, but that somebody has open already, goes with its last
    user, and that is said."""
    image = image_create(f"{images}/vm.qcow2", 8 * MIB)
    # The second look for signals is when the device works.
    proc = spawn("strace", "-o", "/dev/null", "-e",
                 "inject=rt_sigpending:delay_enter=3000000:when=2",
                 "qcow2attach", "attach", image, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: "LIVE" in run("dmsetup", "info", "-c", "--noheadings", "-o", "tables_loaded",
                                   "vm", check=False).stdout.upper(), what="the device", step=0.1)
    run("dmsetup", "mknodes")
    os.kill(child_of(proc.pid), signal.SIGTERM)
    with open("/dev/mapper/vm", "rb"):
        assert proc.wait(timeout=60) in (143, -signal.SIGTERM)
        assert "vm is in use already, and goes with its last user" in proc.stderr.read()
        assert "vm" in run("dmsetup", "ls").stdout
    wait_for(lambda: "vm" not in run("dmsetup", "ls").stdout, what="the device's end")
    run("dmsetup", "mknodes")
    image_check(image)


def test_the_maker_of_the_device_is_killed(images, spawn):
    """The process that makes the empty device is killed before it could say so: the device goes."""
    image = image_create(f"{images}/vm.qcow2", 8 * MIB)
    proc = spawn("strace", "-f", "-o", "/dev/null", "-e", "inject=write:delay_enter=3000000:when=1",
                 "qcow2attach", "attach", image, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: "vm" in run("dmsetup", "ls").stdout, what="the device", step=0.1)
    guard, = (int(pid) for pid in run("pgrep", "-x", "qcow2attach").stdout.split()
              if os.getsid(int(pid)) == int(pid))
    os.kill(guard, signal.SIGKILL)
    assert proc.wait(timeout=60) == 1
    assert "the process that makes the device was killed" in proc.stderr.read()
    assert "vm" not in run("dmsetup", "ls").stdout
    tool("attach", image)
    tool("detach", "vm")
