# SPDX-License-Identifier: GPL-2.0-or-later
"""The static check of the floors finds a call that is planted upwards."""
import os
import subprocess
import sys

import pytest

REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(REPO, "tests", "static"))
import floors   # noqa: E402

KBUILD = """# The floors.  left <-> right call each other.
x-y := top.o	# what stands above all
x-y += left.o \\
\tright.o
x-y+=bottom.o
"""
FILES = {"top": "int left(void); int top(void) { return left(); }",
         "left": "int right(void); int left(void) { return right(); }",
         "right": "int bottom(void); int right(void) { return bottom(); }",
         "bottom": "int bottom(void) { return 0; }"}


def judge(tmp_path, **changed):
    order, exceptions = floors.read(KBUILD, "x-y")
    assert order == list(FILES)
    for name, text in {**FILES, **changed}.items():
        subprocess.run(["gcc", "-c", "-x", "c", "-", "-o", tmp_path / f"{name}.o"], input=text,
                       text=True, check=True)
    return floors.upwards(order, exceptions, tmp_path)


def test_downwards(tmp_path):
    assert judge(tmp_path) == ""


def test_those_that_may_call_each_other(tmp_path):
    assert judge(tmp_path, right="int left(void); int right(void) { return left(); }") == ""


@pytest.mark.parametrize("name, above", [("bottom", "top"), ("right", "top"), ("bottom", "right")])
def test_planted_upwards(tmp_path, name, above):
    planted = f"int {above}(void); int {name}(void) {{ return {above}(); }}"
    assert judge(tmp_path, **{name: planted}) == f"{name}.c calls upwards into {above}.c: {above}"


@pytest.mark.parametrize("top", floors.LISTS)
def test_every_file_has_a_floor(top):
    makefile, variable = floors.LISTS[top]
    order, _ = floors.read(open(os.path.join(REPO, top, makefile)).read(), variable)
    there = {f[:-2] for f in os.listdir(os.path.join(REPO, top)) if f.endswith(".c") and
             not f.endswith(".mod.c")}
    assert sorted(order) == sorted(there)
