# SPDX-License-Identifier: GPL-2.0-or-later
"""No file calls a file above its floor.

The floors stand where the objects are listed: in a module's Kbuild, in the tool's Makefile. A file may
use symbols of those to its right in its line, and of those in the lines below. Two files that a comment
there names as `one <-> other` may call each other. A function that a header defines inline belongs to
no floor, but what it calls counts for the file that uses it.
"""
import os
import re
import subprocess

LISTS = {"dm-qcow2": ("Kbuild", "dm-qcow2-y"), "vhost-blk": ("Kbuild", "vhost-blk-y"),
         "tools/qcow2attach": ("Makefile", "FILES")}


def read(text, variable):
    """(files from the top down, pairs that may call each other) of a makefile's text."""
    order = []
    text = re.sub(r"(?<=\S)[ \t]+#.*", "", text)
    for value in re.findall(rf"^{re.escape(variable)}[ \t]*[:+]?=[ \t]*((?:.*\\\n)*.*)$", text, re.M):
        order += [name.removesuffix(".o") for name in value.replace("\\\n", " ").split()]
    comments = "\n".join(line for line in text.split("\n") if line.startswith("#"))
    return order, {frozenset(pair) for pair in re.findall(r"([\w-]+) <-> ([\w-]+)", comments)}


def symbols(path):
    """(defined, wanted) global symbols of an object file."""
    done = subprocess.run(["nm", "-g", path], check=True, stdout=subprocess.PIPE, text=True)
    kinds = [line.split()[-2:] for line in done.stdout.splitlines()]
    return {s for k, s in kinds if k not in "Uw"}, {s for k, s in kinds if k in "Uw"}


def upwards(order, exceptions, objects):
    """What is wrong with the calls between the objects of ORDER in the directory OBJECTS."""
    tables = {name: symbols(os.path.join(objects, name + ".o")) for name in order}
    found = []
    for at, name in enumerate(order):
        for above in order[:at]:
            used = sorted(tables[name][1] & tables[above][0])
            if used and frozenset((name, above)) not in exceptions:
                found.append(f"{name}.c calls upwards into {above}.c: {', '.join(used)}")
    return "\n".join(found)


def check(repo, top, objects):
    """The same for one of LISTS, whose objects have been built."""
    makefile, variable = LISTS[top]
    with open(os.path.join(repo, top, makefile)) as f:
        order, exceptions = read(f.read(), variable)
    try:
        return upwards(order, exceptions, objects) if order else f"{top}/{makefile} has no floors"
    except subprocess.CalledProcessError as e:
        return f"{top}/{makefile} lists what was not built: {e}"
