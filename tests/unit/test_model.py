# SPDX-License-Identifier: GPL-2.0-or-later
"""The models of tests/model/, checked by spin in all their states; each of the mistakes that a model knows
must be found."""
import glob
import os
import re
import subprocess

import pytest

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "model")
MODELS = sorted(glob.glob(os.path.join(HERE, "*.pml")))


def mistakes(model):
    """The names and numbers of the mistakes that a model can have: the list that begins with NONE."""
    return re.findall(r"^#define (\w+)\t+(\d+)\t",
                      re.search(r"^#define NONE.*?\n\n", open(model).read(), re.M | re.S).group(), re.M)


def checked(model, mistake, tmp_path):
    """What the checker says of a model: (whether it looked at all states, the number of errors)."""
    subprocess.run(["spin", "-a", f"-DBROKEN={mistake}", model], cwd=tmp_path, check=True,
                   stdout=subprocess.DEVNULL)
    subprocess.run(["gcc", "-w", "-O2", "-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=2000", "-o", "pan", "pan.c"],
                   cwd=tmp_path, check=True)
    said = subprocess.run(["./pan", "-m3000000"], cwd=tmp_path, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=110).stdout
    print(said)
    assert "max search depth too small" not in said and "out of memory" not in said
    return ("Search not completed" not in said, int(re.search(r"errors: (\d+)", said).group(1)))


@pytest.mark.parametrize("model", MODELS, ids=os.path.basename)
def test_model_is_sound(model, tmp_path):
    assert checked(model, 0, tmp_path) == (True, 0)


@pytest.mark.parametrize("model, name, number", [
    pytest.param(model, name, number, id=f"{os.path.basename(model)}-{name}")
    for model in MODELS for name, number in mistakes(model) if name != "NONE"])
def test_mistake_is_found(model, name, number, tmp_path):
    assert checked(model, number, tmp_path)[1] == 1


def test_functions_exist():
    """The functions that a model names are those of the module."""
    source = "".join(open(f).read() for f in glob.glob(os.path.join(HERE, "..", "..", "dm-qcow2", "*.c")))
    for model in MODELS:
        comments = " ".join(re.findall(r"/\*.*?\*/", open(model).read(), re.S))
        named = set(re.findall(r"\b([a-z_0-9]+)\(\)", comments))
        assert named and not {f for f in named if not re.search(rf"\b{f}\(", source)}
