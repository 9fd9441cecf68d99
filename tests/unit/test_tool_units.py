# SPDX-License-Identifier: GPL-2.0-or-later
"""The tool's unit tests (tool-*.c): built with sanitizers by the tool's own Makefile and run."""
import glob
import os
import re
import subprocess

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
TOOL = os.path.join(HERE, "..", "..", "tools", "qcow2attach")
PROGRAMS = sorted(os.path.basename(p)[:-2] for p in glob.glob(os.path.join(HERE, "tool-*.c")))


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    out = tmp_path_factory.mktemp("tool")

    def make(target):
        subprocess.run(["make", "-s", "-C", TOOL, f"BUILD={out}", f"-j{os.cpu_count()}",
                        f"{out}/test/{target}"], check=True)
        return f"{out}/test/{target}"
    return make


@pytest.mark.parametrize("program", PROGRAMS)
def test_tool(build, program):
    subprocess.run([build(program)], check=True, timeout=900)


def test_filter_knows_all_ioctls():
    """An ioctl that the server takes to use and its filter does not let through would be found out
    only when a front end has it used."""
    text = {name: open(os.path.join(TOOL, name)).read()
            for name in ("sandbox.c", "vhost-dev.c", "vu-ring.c", "vu-session.c")}
    allowed = set(re.findall(r"\bIOCTL\(([A-Z]\w+)\)", text.pop("sandbox.c")))
    used = {request for source in text.values()
            for request in re.findall(r"(?:VHOST_CALL|APPLY_FILE|->call)\([^;{}]*?\b(VHOST_\w+)",
                                      source)}
    assert {"VHOST_BLK_SET_RING", "VHOST_SET_VRING_CALL", "VHOST_GET_VRING_BASE"} <= used
    # Asked before the filter is there.
    used.remove("VHOST_GET_FEATURES")
    assert used <= allowed, used - allowed
    assert allowed <= used | {"BLKGETSIZE64"}, allowed - used
