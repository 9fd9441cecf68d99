# SPDX-License-Identifier: GPL-2.0-or-later
"""Views: a point in time of a live disk stays as it was, whatever is written meanwhile, and costs the
image nothing once it is gone."""
import os
import random
import shutil
import threading
import time

import pytest

from dmqcow2 import (GIB, KIB, Attached, Chain, Counter, Disk, Place, answer, exercise, refused,
                     verify_device)
from helpers import MIB, SECTOR, KernelLog, image_check, image_create, run, wait_for

pytestmark = pytest.mark.races
CLUSTER = 64 * KIB


class View:
    """A view of a device, shown by a device of its own."""

    def __init__(self, disk, name):
        self.disk, self.name, self.device = disk, name, f"{disk.name}-{name}"
        disk.message("view", "create", name)
        self.path = None

    def show(self):
        self.path = self.disk.dm.create_qcow2(self.device, self.disk.layers, [f"view {self.name}"],
                                              self.disk.size_in_sectors)
        return self.path

    def hide(self):
        if self.path:
            self.disk.dm.remove(self.device)
        self.path = None

    def delete(self):
        self.hide()
        self.disk.message("view", "delete", self.name)


class Live(Attached):
    """A disk that views are made of."""

    def __enter__(self):
        super().__enter__()
        self.size_in_sectors = int(self.table().split()[1])
        return self

    def names(self):
        return [line.split()[0] for line in self.message("view", "list").splitlines()]

    def reaped(self):
        """Nothing of any view is left."""
        wait_for(lambda: self.dm.status(self.name)[8:] == [], 30)


@pytest.mark.parametrize("storage, backing, cluster, version, cache", [
    pytest.param("bdev", "none", 64, 3, "large", marks=pytest.mark.core),
    ("xfs", "qcow2", 64, 3, "small"),
    pytest.param("ext4", "deep", 4, 3, "large", marks=pytest.mark.full),
    pytest.param("bdev", "raw", 64, 2, "large", marks=pytest.mark.full),
    pytest.param("bdev", "none", 2048, 3, "large", marks=pytest.mark.full)])
def test_stays_as_it_was(dm, bdev, filesystem, tmp_path, storage, backing, cluster, version, cache):
    """Five views, each of another moment, while all that can happen to the disk happens; deleted in an
    order that is neither that of their age nor the opposite."""
    size = (32 if cluster < 32 else 72) * MIB + 5 * SECTOR
    chain = Chain(Place(storage, bdev, filesystem, size=640 * MIB), tmp_path, backing, size, version,
                  cluster * KIB, 7)
    features = ["l2_cache_kib 128"] if cache == "small" else []
    with Live(dm, chain.layers, *features) as disk:
        disk.close()
        views = []
        for moment in range(5):
            exercise(dm, "q", chain, 70 + moment, 150)
            view = View(disk, f"v{moment}")
            view.model = f"{tmp_path}/model{moment}"
            shutil.copy(chain.model, view.model)
            views.append(view)
            verify_device(view.show(), view.model)
        order = [2, 4, 0, 3, 1]
        for n, which in enumerate(order):
            exercise(dm, "q", chain, 80 + n, 100)
            for view in views:
                if view.path:
                    verify_device(view.path, view.model)
            views[which].delete()
            assert sorted(disk.names()) == sorted(v.name for v in views if v.path)
        assert dm.qcow2_status("q")["attention"] in ([], ["uncommitted"])
        disk.reaped()
    chain.verify()


class Coming(threading.Thread):
    """Views that come and go at random, until told to stop; the first failure is kept."""

    def __init__(self, dm, name, seed):
        super().__init__(daemon=True)
        self.dm, self.name, self.rng = dm, name, random.Random(seed)
        self.there, self.made, self.stopping, self.failure = [], 0, False, None

    def step(self):
        if len(self.there) < self.rng.randrange(4):
            self.made += 1
            self.there.append(f"v{self.made}")
            self.dm.message(self.name, "view", "create", self.there[-1])
        elif self.there:
            # it may have been given up by then
            self.dm.message(self.name, "view", "delete",
                            self.there.pop(self.rng.randrange(len(self.there))), check=False)

    def run(self):
        try:
            while not self.stopping:
                self.step()
        except BaseException as e:      # whatever it was, the test must hear of it
            self.failure = e

    def stop(self):
        self.stopping = True
        self.join(60)
        assert not self.is_alive(), "a message hangs"
        if self.failure:
            raise self.failure


@pytest.mark.parametrize("backing, cluster, features", [
    ("raw", 64, []), ("none", 4, ["view_limit_mib 1", "l2_cache_kib 128"]), ("none", 2048, [])])
def test_nothing_is_lost(dm, bdev, filesystem, tmp_path, backing, cluster, features):
    """Views come and go in the middle of operations: the live disk has what was written to it."""
    size = (400 if cluster == 4 else 72) * MIB
    chain = Chain(Place("bdev", bdev, filesystem, size=900 * MIB), tmp_path, backing, size, 3,
                  cluster * KIB, 11)
    with Live(dm, chain.layers, *features) as disk:
        disk.close()
        coming = Coming(dm, "q", 5)
        coming.start()
        try:
            exercise(dm, "q", chain, 90, 2500, threads=12, actions=("drop_cache", "commit"))
        finally:
            coming.stop()
        print(coming.made, "views", dm.status("q"))
        for name in disk.names():
            disk.message("view", "delete", name)
        disk.reaped()
    chain.verify()


@pytest.mark.parametrize("cluster", [64 * KIB, pytest.param(2 * MIB, marks=pytest.mark.full)])
def test_one_moment(dm, bdev, cluster):
    """Writers that never pause, each of whose writes depends on the one before: a view has the writes up
    to one of them. Nothing that was acknowledged before is missing, and nothing came later."""
    image = image_create(bdev(512 * MIB), 64 * MIB, cluster_size=cluster)
    with Live(dm, f"qcow2:{image}") as disk:
        rng = random.Random(3)
        writers = []
        for n in range(4):
            places = [p * 4096 for p in rng.sample(range(n, 64 * MIB // 4096, 4), 60)]
            writers.append(Counter(disk.path, places, n))
        for w in writers:
            w.start()
        views = []
        try:
            for n in range(12):
                time.sleep(0.02)
                before = [w.done for w in writers]
                view = View(disk, f"v{n}")
                after = [w.sent for w in writers]
                views.append(view)
                view.show()
                for w, least, most in zip(writers, before, after):
                    assert least <= w.moment(view.path) <= most
                if len(views) > 3:
                    views.pop(rng.randrange(3)).delete()
        finally:
            for w in writers:
                w.stop()
        for view in views:
            for w in writers:
                w.moment(view.path)
            view.delete()
        print([w.done for w in writers], "writes")
        disk.reaped()
    image_check(image)


def test_one_moment_of_two_disks(dm, bdev):
    """A writer that goes from disk to disk, and a group of views: held, marked, released."""
    images = [image_create(bdev(256 * MIB), 64 * MIB) for _ in range(2)]
    with Live(dm, f"qcow2:{images[0]}", name="a") as a, Live(dm, f"qcow2:{images[1]}", name="b") as b:
        joined = dm.create("joined", f"0 131072 linear {a.path} 0\n131072 131072 linear {b.path} 0")
        rng = random.Random(5)
        places = [p * 4096 for p in rng.sample(range(128 * MIB // 4096), 80)]
        writer = Counter(joined, places, 1)
        writer.start()
        try:
            for n in range(10):
                time.sleep(0.05)
                before = writer.done
                for disk in a, b:
                    disk.message("view", "create", f"v{n}", "hold")
                sent = writer.sent
                time.sleep(0.02)
                assert writer.sent == sent, "a write while all is held"
                for disk in a, b:
                    disk.message("view", "release")
                for disk in a, b:
                    dm.create_qcow2(f"{disk.name}-v", disk.layers, [f"view v{n}"], 131072)
                both = dm.create("both", "0 131072 linear /dev/mapper/a-v 0\n"
                                 "131072 131072 linear /dev/mapper/b-v 0", "--readonly")
                assert before <= writer.moment(both) <= sent
                for name in "both", "a-v", "b-v":
                    dm.remove(name)
                for disk in a, b:
                    disk.message("view", "delete", f"v{n}")
        finally:
            writer.stop()
        a.message("view", "create", "forgotten", "hold")
        a.write(1, 0, 4096)         # waits until the hold ends by itself
        log = KernelLog()
        assert a.message("view", "release", check=False).returncode
        assert log.grep("the hold has ended by itself")
        assert a.message("view", "release", check=False).returncode
        assert log.grep("nothing is held")
        log.close()
        dm.remove("joined")
    for image in images:
        image_check(image)


def test_limit(dm, bdev):
    """Past view_limit_mib the oldest view goes, then the next; no write fails, and a device that shows it
    says EIO."""
    image = image_create(bdev(800 * MIB), 512 * MIB, cluster_size="4k")
    log = KernelLog()
    with Live(dm, f"qcow2:{image}", "view_limit_mib 1") as disk:
        assert disk.table().endswith("2 view_limit_mib 1")
        disk.write(1, 0, 4 * MIB)
        views = []
        event = run("dmsetup", "info", "-c", "--noheadings", "-o", "events", "q").stdout
        for name, first in ("old", 0), ("new", 256 * MIB):
            views.append(View(disk, name))
            views[-1].show()
            # a thousand chunks of each map, by one of the 64 clusters of each
            for at in range(first, first + 256 * MIB, 256 * KIB):
                disk.write(2, at, 4 * KIB)
        status = disk.status()
        print(status)
        assert status["mode"] == "rw" and status["views"] == 1
        assert status["view_kib"] <= status["view_limit_kib"] == 1024
        assert log.grep("view old is dropped: its map has reached view_limit_mib")
        assert run("dmsetup", "info", "-c", "--noheadings", "-o", "events", "q").stdout != event
        with Disk(views[0].path, False) as shown:
            assert shown.eio(0)
        # all that was changed before it was made is the other one's
        with Disk(views[1].path, False) as shown:
            shown.expect(2, 0, 4 * KIB)
            shown.expect(1, 4 * KIB, 252 * KIB)
            shown.expect(0, 256 * MIB, MIB)
        assert disk.names() == ["new"]
        views[0].hide()
        views[1].delete()
        disk.reaped()
    log.close()
    image_check(image)


def test_full_disk(dm, bdev):
    """Without room the views go, oldest first, and the guest's writes do not fail."""
    image = image_create(bdev(40 * MIB), 30 * MIB)
    log = KernelLog()
    with Live(dm, f"qcow2:{image}", "error_if_no_space") as disk:
        for n in range(5):
            disk.write(n, 0, 30 * MIB)
            disk.message("view", "create", f"v{n}")
        assert disk.status()["mode"] == "rw"
        assert log.grep("view v0 is dropped: no free cluster")
        disk.expect(4, 0, 30 * MIB)
        disk.write(9, 0, 30 * MIB)
        disk.expect(9, 0, 30 * MIB)
        assert disk.names() == []
        disk.reaped()
    log.close()
    image_check(image)


def test_kinds_of_clusters(dm, bdev, tmp_path):
    """Of compressed, zero and unallocated clusters, with a base below: what a view shows of each, and
    that their host clusters come back."""
    base = image_create(f"{tmp_path}/base", 8 * MIB)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 0xbb 0 8M", base)
    packed = f"{tmp_path}/packed"
    run("qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", base, packed)
    run("qemu-io", "-f", "qcow2", "-c", "write -z 1M 1M", "-c", "write -P 3 2M 1M", packed)
    for layers in [f"qcow2:{packed}"], None:
        if layers is None:
            top = image_create(f"{tmp_path}/top", 8 * MIB, backing=base)
            run("qemu-io", "-f", "qcow2", "-c", "write -z 1M 1M", "-c", "write -P 3 2M 1M", top)
            layers = [f"qcow2:{top}", f"qcow2:{base}"]
        with Live(dm, layers) as disk:
            view = View(disk, "v")
            for at in range(0, 8 * MIB, 3 * CLUSTER):
                disk.write(0x77, at + 4 * KIB, 4 * KIB)         # a part
            for at in range(CLUSTER, 8 * MIB, 3 * CLUSTER):
                disk.write(0x78, at, CLUSTER)                   # all of it
            disk.discard(5 * MIB, MIB)
            disk.zeroout(6 * MIB, MIB)
            for shown in range(2):
                with Disk(view.path or view.show(), False) as old:
                    old.expect(0xbb, 0, MIB)
                    old.expect(0, MIB, MIB)
                    old.expect(3, 2 * MIB, MIB)
                    old.expect(0xbb, 3 * MIB, 5 * MIB)
                    assert disk.dm.message("q-v", "map").count("\n") >= 2
                disk.discard(0, 8 * MIB)
                disk.write(1, 0, 8 * MIB)
            view.delete()
            disk.reaped()
            disk.expect(1, 0, 8 * MIB)
        image_check(layers[0].split(":", 1)[1])


def test_life(dm, bdev):
    """What is refused, and what is not: names, devices in use, a suspended disk, one that goes."""
    storage = bdev(256 * MIB)
    image = image_create(storage, 64 * MIB)
    log = KernelLog()

    def says(what, *words):
        assert dm.message("q", *words, check=False).returncode
        assert log.grep(what), log.lines[-3:]

    assert "View of an image that is not attached" in refused(dm, [f"qcow2:{image}"], ["view v"])
    with Live(dm, f"qcow2:{image}") as disk:
        disk.write(1, 0, 8 * MIB)
        view = View(disk, "v")
        assert disk.names() == ["v"]
        assert "No such view" in refused(dm, [f"qcow2:{image}"], ["view w"], 131072)
        assert "of its own image" in refused_reload(dm, "q", f"{disk.table()} 2 view v")
        says("there is a view v already", "view", "create", "v")
        says("invalid name", "view", "create", "a/b")
        says("invalid name", "view", "create", "x" * 64)
        says("there is no view w", "view", "delete", "w")
        says("expected create NAME", "view", "create")
        says("expected create NAME", "view", "create", "x", "bitmap", "b")
        says("expected create NAME", "view", "frob")
        view.show()
        assert dm.table("q-v").endswith("2 view v")
        says("a device shows v: remove the device first", "view", "delete", "v")
        assert dm.message("q-v", "view", "list", check=False).returncode
        dm.suspend("q")
        disk.message("view", "create", "w")
        dm.resume("q")
        disk.write(2, 0, 8 * MIB)
        dm.reload("q", f"{disk.table()} 2 view_limit_mib 7")
        assert disk.status()["view_limit_kib"] == 7 * KIB and disk.names() == ["v", "w"]
        disk.write(3, 4 * MIB, 8 * MIB)
        for name in "v", "w":
            path = view.path if name == "v" else dm.create_qcow2("q-w", disk.layers, ["view w"], 131072)
            with Disk(path, False) as shown:
                shown.expect(1, 0, 8 * MIB)
        dm.remove("q-w")
        for n in range(62):
            disk.message("view", "create", f"n{n}")
        says("64 views exist", "view", "create", "one-too-many")
        disk.close()
        dm.remove("q")
        with Disk(view.path, False) as shown:
            assert shown.eio(0)
        assert "Image is attached read-only" in refused(dm, [f"qcow2:{image}"], (), 131072)
        dm.remove("q-v")
        dm.create_qcow2("q", [f"qcow2:{image}"])
    log.close()
    image_check(image)


def refused_reload(dm, name, table):
    log = KernelLog()
    assert dm.setup("load", name, "--table", table, check=False).returncode
    text = "\n".join(log.read())
    log.close()
    return text


def test_large(dm, filesystem):
    """A terabyte with a million clusters of its own: the mark does not look at them."""
    image = image_create(f"{filesystem('xfs', size=8 * GIB)}/image", 4 * GIB, cluster_size="4k",
                         preallocation="metadata")
    run("qemu-img", "resize", "-q", "-f", "qcow2", image, 1024 * GIB)
    with Live(dm, f"qcow2:{image}") as disk:
        disk.write(1, 0, 32 * MIB)
        start = time.monotonic()
        view = View(disk, "v")
        print(f"marked in {(time.monotonic() - start) * 1000:.1f} ms")
        for at in range(0, 4 * GIB, 16 * MIB):
            disk.write(2, at, 4 * KIB)
        disk.write(2, 1023 * GIB, MIB)
        disk.discard(GIB, GIB)
        print(disk.status())
        with Disk(view.show(), False) as shown:
            shown.expect(1, 0, 32 * MIB)
            for at in 32 * MIB, GIB, 1023 * GIB:
                shown.expect(0, at, MIB)
        run("blkdiscard", disk.path)
        assert answer(disk.write, 3, 0, MIB) == 0
        with Disk(view.path, False) as shown:
            shown.expect(1, 0, 32 * MIB)
        view.delete()
        disk.reaped()
    image_check(image)
