# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache mode of a guest that comes to a server which does not know what it has chosen."""
import os
import signal
import subprocess

import pytest

from helpers import MIB, child_of
from vuguest import FLUSH, WRITE, Guest


@pytest.fixture
def serve(spawn, tmp_path):
    def start(device):
        path = str(tmp_path / "disk.sock")
        server = spawn("qcow2attach", "serve", device, "--socket", path, "--queues", 1,
                       stdout=subprocess.PIPE, text=True)
        assert ": ready at " in server.stdout.readline()
        return server, path
    return start


def end(server):
    server.terminate()
    assert server.wait(timeout=30) == 0


@pytest.mark.core
@pytest.mark.parametrize("killed", [True, False])
def test_another_server(serve, bdev, writes_log, killed):
    """A guest that writes through meets a new server, as it does after a migration, too."""
    log = writes_log(bdev(8 * MIB))
    server, path = serve(log.path)
    guest = Guest(path)
    guest.write_through(True)
    guest.do(WRITE, 0)
    if killed:
        for pid in (child_of(server.pid), server.pid):
            os.kill(pid, signal.SIGKILL)
        server.wait(timeout=30)
    else:
        end(server)
    server, path = serve(log.path)
    guest.connect(path)
    guest.do(WRITE, 1)
    guest.do(WRITE, 2)
    # It changes its mind, by doing what it would have no cause for otherwise.
    guest.do(FLUSH)
    guest.do(WRITE, 3)
    guest.close()
    end(server)
    assert log.writes() == {0: True, 1: True, 2: True, 3: False}


@pytest.mark.core
def test_another_connection(serve, bdev, writes_log):
    """What one front end's guest has shown by flushing says nothing of the next one's."""
    log = writes_log(bdev(8 * MIB))
    server, path = serve(log.path)
    guest = Guest(path)
    guest.do(WRITE, 0)
    guest.do(FLUSH)
    guest.connect(path)
    guest.do(WRITE, 1)
    guest.do(FLUSH)
    guest.do(WRITE, 2)
    guest.close()
    # Nor must a new one pay for the last one.
    guest = Guest(path)
    guest.do(WRITE, 3)
    guest.close()
    end(server)
    assert log.writes() == {0: False, 1: True, 2: False, 3: False}
