# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest with one ring by hand, whose front end comes and goes while its memory stays."""
import os
import struct

import test_serve_protocol as vu

READ, WRITE, FLUSH = 0, 1, 4


class Guest(vu.Writer):
    """What test_serve_protocol.Writer does, and reads, flushes, and another front end."""

    def offer(self, what, sector=0):
        """Put a request into the ring, and tell nobody."""
        self.post(sector)
        self.mem[0x3000:0x3004] = struct.pack("<I", what)
        if what == READ:
            self.mem[0x1c:0x1e] = b"\3\0"         # the data's descriptor is the device's to write
        elif what == FLUSH:
            self.mem[0x0e:0x10] = b"\2\0"         # the header is followed by the status

    def do(self, what, sector=0):
        self.offer(what, sector)
        self.notify()

    def connect(self, path):
        """Another front end for what the guest has in its memory."""
        self.front.close()
        self.front = vu.FrontEnd(path)
        self.front.negotiate()
        self.memory_at(0)
        self.front.set(vu.SET_FEATURES, 1 << vu.VERSION_1 | 1 << vu.PROTOCOL_FEATURES_BIT |
                       1 << vu.BLK_FLUSH | 1 << vu.BLK_CONFIG_WCE)
        self.start()
        self.front.get(vu.GET_FEATURES)

    def kick_only(self):
        os.eventfd_write(self.kick, 1)
