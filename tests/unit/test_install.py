# SPDX-License-Identifier: GPL-2.0-or-later
"""`make install` into a directory, for a kernel that does not run, and what it says when it cannot.

What it does to a machine is for tests/install/.
"""
import glob
import os
import re
import stat
import subprocess

import pytest

REPO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
KERNEL = min((os.path.basename(p) for p in glob.glob("/lib/modules/*")),
             key=lambda v: [int(n) for n in re.findall(r"\d+", v)])
COMMAND = {"sbin/qcow2attach": 0o755, "share/man/man8/qcow2attach.8": 0o644,
           "share/bash-completion/completions/qcow2attach": 0o644,
           "lib/udev/rules.d/56-qcow2attach.rules": 0o644,
           "lib/modules-load.d/qcow2attach.conf": 0o644,
           "lib/sysusers.d/qcow2attach.conf": 0o644}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("host")


def make(*args, check=True, prefix=(), **env):
    done = subprocess.run([*prefix, "make", "-C", REPO, *args], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env={**os.environ, **env})
    assert not check or done.returncode == 0, done.stdout
    return done


def files(root):
    return {os.path.relpath(os.path.join(at, f), root):
            stat.S_IMODE(os.stat(os.path.join(at, f)).st_mode)
            for at, _, found in os.walk(root) for f in found}


def test_directory(out, tmp_path):
    """The files are all there, readable, and gone afterwards; a packager's umask does not count."""
    args = [f"HOST_BUILD={out}", f"DESTDIR={tmp_path}", f"KVER={KERNEL}", "PREFIX=/usr"]
    os.umask(0o077)
    make("install", "DKMS=no", *args)
    command = {"usr/" + name: mode for name, mode in COMMAND.items()}
    modules = {f"lib/modules/{KERNEL}/updates/qcow2attach/{m}/{m}.ko.xz": 0o644
               for m in ("dm-qcow2", "vhost-blk")}
    assert files(tmp_path) == {**command, **modules}
    for name in modules:
        magic = subprocess.run(["modinfo", "-F", "vermagic", tmp_path / name], check=True,
                               stdout=subprocess.PIPE, text=True).stdout
        assert magic.split()[0] == KERNEL
    # What is to make the user is understood by the program that makes users.
    users = subprocess.run(["systemd-sysusers", "--dry-run",
                            tmp_path / "usr/lib/sysusers.d/qcow2attach.conf"],
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    assert re.search("user '?qcow2attach", users.stdout) or "qcow2attach" in os.popen(
        "getent passwd qcow2attach").read(), users.stdout
    said = make("install", "DKMS=no", *args).stdout
    assert " CC " not in said                       # what was built is not built again
    assert files(tmp_path) == {**command, **modules}
    # Another way of getting the modules takes the place of the first one's sources.
    make("install", "DKMS=yes", *args)
    version = subprocess.run([tmp_path / "usr/sbin/qcow2attach", "--version"], check=True,
                             stdout=subprocess.PIPE, text=True).stdout.split()[1]
    source = tmp_path / f"usr/src/qcow2attach-{version}"
    assert f'PACKAGE_VERSION="{version}"' in (source / "dkms.conf").read_text()
    inside = set(files(source))
    assert {"Kbuild", "dm-qcow2/Kbuild", "vhost-blk/Kbuild", "vhost-blk/gen-vhost-header.py",
            "vhost-blk/uapi/vhost_blk.h"} < inside
    assert not [f for f in inside if not re.search(r"(Kbuild|\.[ch]|\.py|dkms\.conf)$", f)]
    make("uninstall", *args)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("how, told", [
    (["KVER=6.1.0-37-amd64"], "Linux 6.1.0-37-amd64 is too old: 6.12"),
    (["KVER=5.10.0"], "Linux 5.10.0 is too old"),
    (["KVER=new"], "'new' is not the release of a kernel"),
    (["KVER=6.99.1-amd64"], "apt-get install linux-headers-6.99.1-amd64\n"),
    (["PAHOLE=no-such-pahole"], "apt-get install pahole\n"),
    (["CC=no-such-cc"], "apt-get install build-essential libdevmapper-dev libjson-c-dev\n"),
    (["CC=cc -nostdinc"], "apt-get install libc6-dev libdevmapper-dev libjson-c-dev\n"),
    (["PREFIX=usr"], "PREFIX is 'usr'"),
], ids=lambda v: v[0] if isinstance(v, list) else "")
def test_refused(out, tmp_path, how, told):
    """What is missing is named, with its package, before anything is built or installed."""
    done = make("install", f"HOST_BUILD={out}/none", f"DESTDIR={tmp_path}", "DKMS=no",
                *([] if how[0].startswith("KVER") else [f"KVER={KERNEL}"]), check=False,
                **dict([how[0].split("=", 1)]))
    done.stdout = done.stdout.replace("\n    ", "\n")
    assert done.returncode and told in done.stdout, done.stdout
    assert not files(tmp_path) and not os.path.exists(f"{out}/none")


@pytest.mark.parametrize("verb", ["install", "uninstall"])
def test_not_root(out, verb):
    done = make(verb, f"KVER={KERNEL}", f"HOST_BUILD={out}/none", check=False,
                prefix=["setpriv", "--reuid=65534", "--clear-groups"])
    assert done.returncode and f"sudo make {verb}" in done.stdout, done.stdout
