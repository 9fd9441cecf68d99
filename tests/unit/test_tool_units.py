# SPDX-License-Identifier: GPL-2.0-or-later
"""The tool's unit tests (tool-*.c): built with sanitizers by the tool's own Makefile and run."""
import glob
import os
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
    subprocess.run([build(program)], check=True, timeout=120)
