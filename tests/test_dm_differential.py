# SPDX-License-Identifier: GPL-2.0-or-later
"""Random concurrent I/O against a model, over all kinds of storage, chains and geometries.

While the I/O runs the device is suspended, reloaded, told to commit and to drop its cache. After a
clean removal QEMU must find no error and no leak in the image, and the model's content.

DIFFERENTIAL_SEED and DIFFERENTIAL_OPS replay or lengthen a run.
"""
import itertools
import os
import random

import pytest

from dmqcow2 import KIB, Attached, Chain, Place, exercise, verify_device
from helpers import MIB, SECTOR, image_check, image_compare, run

pytestmark = pytest.mark.races

DIMENSIONS = {
    "storage": ("bdev", "ext4", "xfs"),
    "backing": ("none", "qcow2", "raw", "deep", "shorter", "longer"),
    "cluster": (64, 4, 2048, 8, 16, 32, 128, 256, 512, 1024),       # KiB
    "version": (3, 2),
    "cache": ("large", "small"),
}
PAIRWISE_MAX = 10
# what most people have comes first, and runs on every kernel
FIRST = (("bdev", "none", 64, 3, "large"), ("xfs", "qcow2", 64, 3, "small"),
         ("ext4", "raw", 4, 3, "large"), ("bdev", "deep", 64, 2, "small"))
CORE = 2            # of FIRST
SMALL_CACHE_KIB = 128
OPS = int(os.environ.get("DIFFERENTIAL_OPS", "500"))
SEED = int(os.environ.get("DIFFERENTIAL_SEED", "1"))


def pairs_of(combo):
    return {(i, combo[i], j, combo[j]) for i, j in itertools.combinations(range(len(combo)), 2)}


def pairwise():
    """FIRST, and a few more combinations that together have most pairs of values; always the same."""
    every = list(itertools.product(*DIMENSIONS.values()))
    random.Random(1).shuffle(every)
    chosen = list(FIRST)
    missing = set().union(*(pairs_of(c) for c in every))
    missing.difference_update(*(pairs_of(c) for c in chosen))
    while missing and len(chosen) < PAIRWISE_MAX:
        best = max(every, key=lambda c: len(pairs_of(c) & missing))
        chosen.append(best)
        missing -= pairs_of(best)
    return chosen


def cases():
    chosen = pairwise()
    for i, combo in enumerate(chosen):
        yield pytest.param(*combo, i, id="{}-{}-{}k-v{}-{}".format(*combo),
                           marks=[pytest.mark.core] if combo in FIRST[:CORE] else [])
    for i, combo in enumerate(itertools.product(*DIMENSIONS.values()), len(chosen)):
        if combo not in chosen:
            yield pytest.param(*combo, i, id="{}-{}-{}k-v{}-{}".format(*combo),
                               marks=pytest.mark.full)


@pytest.mark.parametrize("storage, backing, cluster, version, cache, number", cases())
def test_differential(dm, bdev, filesystem, tmp_path, storage, backing, cluster, version, cache,
                      number):
    seed = SEED * 1000 + number
    # an odd number of sectors past the last whole cluster
    size = (32 if cluster < 32 else 72) * MIB + 5 * SECTOR
    chain = Chain(Place(storage, bdev, filesystem), tmp_path, backing, size, version,
                  cluster * KIB, seed)
    features = [f"l2_cache_kib {SMALL_CACHE_KIB}"] if cache == "small" else []
    with Attached(dm, chain.layers, *features) as disk:
        disk.close()
        # every fourth one with reads that race with writes
        exercise(dm, "q", chain, seed, OPS, *(["--race-reads"] if number % 4 == 3 else []))
        status = disk.status()
        assert status["mode"] == "rw" and "corrupt" not in status["attention"]
        if cache == "small":        # of each image of the chain
            assert status["cache_max_kib"] <= SMALL_CACHE_KIB * len(chain.layers)
            assert status["cache_kib"] <= status["cache_max_kib"]
    chain.verify()
    # what is on the storage now, read by a new device that has nothing in memory
    with Attached(dm, chain.layers, *features) as disk:
        verify_device(disk.path, chain.model)
    image_check(chain.top)


def test_a_wrong_model_is_noticed(dm, bdev, filesystem, tmp_path):
    """The comparison itself can fail: one sector changed behind its back."""
    chain = Chain(Place("bdev", bdev, filesystem), tmp_path, "raw")
    with open(chain.model, "r+b") as f:
        f.seek(5 * MIB)
        f.write(b"changed")
    with Attached(dm, chain.layers) as disk:
        done = run("differential", "--verify-only", "--model", chain.model, disk.path, check=False)
    assert done.returncode == 1 and f"MISMATCH at sector {5 * MIB // SECTOR} " in done.stderr
    with pytest.raises(AssertionError):
        image_compare(chain.top, chain.model)
