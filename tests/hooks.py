# SPDX-License-Identifier: GPL-2.0-or-later
"""Parameters that the modules have only for tests (dm-qcow2/hooks.h)."""
import os

import pytest


def set_hook(name, value):
    """Set a parameter that only tests have; skips where the module was built without."""
    path = f"/sys/module/dm_qcow2/parameters/{name}"
    if not os.path.exists(path):
        pytest.skip("the module was built without test hooks")
    with open(path, "w") as f:
        f.write(str(value))
