# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of the `qcow2attach` command share: running it, and what it must say when it refuses."""
import os
import re

import pytest

from helpers import MIB, run


def tool(*argv, code=0):
    """Run the tool; (standard output, standard error)."""
    done = run("qcow2attach", *argv, check=False)
    assert done.returncode == code, (argv, done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr


def refused(*argv, code):
    """What the tool says when it exits with CODE: one line, begun by its own name."""
    out, err = tool(*argv, code=code)
    assert not out
    assert re.fullmatch(rf"qcow2attach: {argv[0]}: .*\n(Try .*\n)?", err), err
    return err.split(": ", 2)[2].split("\n")[0]


@pytest.fixture
def images(filesystem):
    """A directory on a filesystem."""
    return filesystem("ext4", 256 * MIB)


@pytest.fixture
def attach(cleanup):
    """attach(IMAGE, options) -> device path; detached afterwards, if it still is there."""
    def gone(name):
        if os.path.exists(f"/dev/mapper/{name}"):
            tool("detach", name)

    def start(image, *options):
        path = tool("attach", image, *options)[0].strip()
        cleanup(gone, os.path.basename(path))
        return path
    return start
