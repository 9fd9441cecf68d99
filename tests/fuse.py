# SPDX-License-Identifier: GPL-2.0-or-later
"""A FUSE file system of one file that stops answering, and a front end that hands that file to a
server: what a hostile user can do.

Each is a process of its own, told what to do by lines. Not a thread of the test's: every process that
has the file, if only from its fork to its exec, waits for the file system when it closes it.
"""
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import termios
import time

LOOKUP, FORGET, GETATTR, OPEN, STATFS, RELEASE = 1, 2, 3, 14, 17, 18
FLUSH, INIT, INTERRUPT, BATCH_FORGET = 25, 26, 36, 42
HEADER = struct.Struct("=IIQQ")             # length, operation, request, node; more follows
ROOT, FILE, SIZE = 1, 2, 1 << 20
ENOENT, ENOSYS = 2, 38


class Process:
    """This file as a program; it ends with its standard input."""

    def __init__(self, *argv):
        self.proc = subprocess.Popen([sys.executable, os.path.abspath(__file__), *argv], text=True,
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def said(self, word):
        """Wait for a line."""
        line = self.proc.stdout.readline()
        assert line == word + "\n", line

    def tell(self, *words):
        print(*words, file=self.proc.stdin, flush=True)
        self.said("done")

    def end(self):
        if self.proc.poll() is None:
            self.proc.stdin.close()
            self.proc.wait(timeout=60)
            self.proc.stdout.close()


class HangingFile(Process):
    """`path` is a file of SIZE bytes. Without FLUSH closing it asks for nothing."""

    def __init__(self, directory, flush=True):
        self.path = f"{directory}/memory"
        super().__init__("filesystem", str(directory), *(["flush"] if flush else []))
        self.said("mounted")
        # Does it work while it is to?
        with open(self.path, "rb") as f:
            assert os.fstat(f.fileno()).st_size == SIZE

    def ignore(self, operation):
        """Requests of this kind are taken from now on, and not answered."""
        self.tell("ignore", operation)

    def hangs(self):
        """Wait until there is such a request."""
        self.said("hangs")

    def sleep(self):
        """No request is taken any more."""
        self.tell("sleep")


class FrontEnd(Process):
    """Calls the file at PATH its guest's memory."""

    def __init__(self, path, server):
        super().__init__("front-end", path, server)
        self.said("opened")

    def hand_over(self):
        """Returns when the server has taken the file."""
        self.tell("send")


def attributes(node):
    mode, size = (0o40777, 0) if node == ROOT else (0o100666, SIZE)
    return struct.pack("=QQQQQQIIIIIIIIII", node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0,
                       4096, 0)


class FileSystem:
    def __init__(self, directory, flush):
        self.directory, self.flush, self.unanswered = directory, flush, set()
        os.makedirs(directory)
        self.fd = os.open("/dev/fuse", os.O_RDWR)
        subprocess.run(["mount", "-i", "-t", "fuse", "-o", "rw,rootmode=40000,user_id=0,group_id=0,"
                        f"allow_other,fd={self.fd}", "hanging", directory], check=True,
                       pass_fds=[self.fd])
        print("mounted", flush=True)

    def serve(self):
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.register(self.fd, select.POLLIN)
        while True:
            ready = {at for at, _ in poll.poll()}
            if 0 in ready:
                words = os.read(0, 4096).decode().split()
                if not words:
                    break
                if words[0] == "sleep":
                    poll.unregister(self.fd)
                else:
                    self.unanswered.add(int(words[1]))
                print("done", flush=True)
            elif self.fd in ready:
                self.answer(os.read(self.fd, 1 << 17))
        # This fails all that waits for an answer.
        os.close(self.fd)
        subprocess.run(["umount", "-l", self.directory], check=True)

    def answer(self, request):
        _, operation, unique, node = HEADER.unpack_from(request)
        if operation in self.unanswered:
            print("hangs", flush=True)
            return
        if operation in (FORGET, INTERRUPT, BATCH_FORGET):
            return
        error, data = 0, b""
        if operation == INIT:
            data = struct.pack("=IIIIHHIIHH8I", 7, 31, 0, 0, 0, 0, 4096, 1, 0, 0, *[0] * 8)
        elif operation == LOOKUP and request[40:].rstrip(b"\0") == b"memory":
            data = struct.pack("=QQQQII", FILE, 0, 0, 0, 0, 0) + attributes(FILE)
        elif operation == LOOKUP:
            error = ENOENT
        elif operation == GETATTR:
            data = struct.pack("=QII", 0, 0, 0) + attributes(node)
        elif operation == OPEN:
            data = bytes(16)
        elif operation == STATFS:
            data = bytes(80)
        elif operation == FLUSH and self.flush or operation == RELEASE:
            pass
        else:
            error = ENOSYS
        os.write(self.fd, struct.pack("=IiQ", 16 + len(data), -error, unique) + data)


def front_end(path, server):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(server)
    fd = os.open(path, os.O_RDONLY)
    print("opened", flush=True)
    sys.stdin.readline()
    region = struct.pack("=IIQQQQ", 1, 0, 0, SIZE, 0x7f0000000000, 0)
    socket.send_fds(sock, [struct.pack("=III", 5, 1, len(region)) + region], [fd])
    unread = bytearray(b"....")
    while any(unread):
        time.sleep(0.02)
        fcntl.ioctl(sock, termios.TIOCOUTQ, unread)
    print("done", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    if sys.argv[1] == "filesystem":
        FileSystem(sys.argv[2], "flush" in sys.argv).serve()
    else:
        front_end(*sys.argv[2:])
