# SPDX-License-Identifier: GPL-2.0-or-later
"""What one owner of /dev/vhost-blk, or its guest, can do to the host and to other guests."""
import os

import pytest

from helpers import MIB, run

pytestmark = pytest.mark.races


@pytest.fixture
def ring(bdev):
    def do(case, kind="brd"):
        done = run("ringhost", case, bdev(16 * MIB, kind), timeout=90)
        print(done.stdout)
    return do


@pytest.mark.skipif(os.cpu_count() == 1, reason="who polls gives way to who wants its processor")
@pytest.mark.full
def test_ioctls_do_not_wait_for_polling(ring):
    """It would take minutes."""
    ring("polling")


def test_an_index_that_jumps_unasked(ring):
    ring("jump")


@pytest.mark.core
def test_the_log_has_room_for_all(ring, kernel_log):
    ring("notices")
    assert kernel_log.grep("ring 1 of process .* is stopped")


@pytest.mark.core
def test_rings_and_their_sizes(ring):
    ring("sizes")
