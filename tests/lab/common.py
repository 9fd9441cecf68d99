# SPDX-License-Identifier: GPL-2.0-or-later
"""What every part of the lab shares: paths, messages, errors and the cache.

Owns the cache directory: an entry is named by a hash of what it is made from, is made under a
temporary name and renamed when complete, so that a half-made entry is never taken for a whole one.
"""
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time

LAB = os.path.dirname(os.path.abspath(__file__))
REPO = os.path.dirname(os.path.dirname(LAB))
BUILD = os.path.join(REPO, "build")
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
                     "qcow2attach")
KERNELS = ("stable", "backports", "um", "debug", "kcsan")
# A guest that has a root of its own besides, in which nothing of ours is built or loaded.
FRESH = "fresh"
GUESTS = (*KERNELS, FRESH)


class LabError(Exception):
    """Something the user can act on; printed without a traceback."""


def say(text):
    """Progress, on stderr: stdout belongs to the command that runs in the guest."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


def digest(*parts):
    """A short name for what an entry is made from."""
    h = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        h.update(len(data).to_bytes(8, "little") + data)
    return h.hexdigest()[:12]


def read(path, mode="r"):
    with open(path, mode) as f:
        return f.read()


def write(path, data):
    """Replace a file as a whole: a guest may be reading the old one."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    tmp = f"{path}.{os.getpid()}.tmp"
    with open(tmp, "wb" if isinstance(data, bytes) else "w") as f:
        f.write(data)
    os.rename(tmp, path)


@contextlib.contextmanager
def locked(path):
    """An exclusive lock that the kernel gives back when we die."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that holds {os.path.basename(path)}")
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def cached(kind, key, make, remove=shutil.rmtree):
    """The path of cache entry KIND-KEY; make(tmp_dir) fills it when it is not there yet.

    remove(path) deletes a directory; the root file system needs its own when we are not root.
    """
    path = os.path.join(CACHE, f"{kind}-{key}")
    if os.path.isdir(path):
        return path
    with locked(os.path.join(CACHE, f"{kind}-{key}.lock")):
        if os.path.isdir(path):
            return path
        tmp = path + ".tmp"
        if os.path.exists(tmp):
            remove(tmp)
        os.makedirs(tmp)
        start = time.monotonic()
        say(f"making {kind} (cached afterwards in {path})")
        make(tmp)
        os.rename(tmp, path)
        say(f"made {kind} in {time.monotonic() - start:.0f} s")
    return path


def run(argv, **kw):
    """Run a host command; its failure is ours, with the command named."""
    kw.setdefault("stdin", subprocess.DEVNULL)
    try:
        return subprocess.run(argv, check=True, **kw)
    except FileNotFoundError:
        raise LabError(f"{argv[0]} is not installed") from None
    except subprocess.CalledProcessError as e:
        raise LabError(f"command failed with {e.returncode}: {' '.join(argv)}") from None
