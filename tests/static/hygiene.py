# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules for every file of the repository; each returns its findings as text."""
import os
import re
import subprocess

MAX_LINES, MAX_COLUMNS = 1000, 100
# Words that a finished file does not hold; in two parts, or this file would.
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")
PLACES = re.compile(r"(?<![\w.-])/(root|home/\w+|wor" r"k)/|https?://[\w.]*(deb|mirror)[\w.]*\.\w+/")
VERSION_IF = re.compile(r"^\s*#\s*(el)?if.*\b(LINUX_VERSION_CODE|KERNEL_VERSION)\b")


def tracked(repo):
    """Paths of the files that belong to the project."""
    done = subprocess.run(["git", "-c", "safe.directory=*", "-C", repo, "ls-files", "-z"],
                          capture_output=True, text=True)
    if not done.returncode:
        names = done.stdout.split("\0")[:-1]
    else:                               # an unpacked archive
        names = []
        for at, dirs, found in os.walk(repo):
            dirs[:] = [d for d in dirs if d not in (".git", "build")]
            names += [os.path.relpath(os.path.join(at, f), repo) for f in found]
    return [n for n in sorted(names) if os.path.isfile(os.path.join(repo, n))]


def lines(repo, name):
    with open(os.path.join(repo, name), errors="replace") as f:
        return f.read().split("\n")


def first_line(repo, name):
    with open(os.path.join(repo, name), "rb") as f:
        return f.readline().decode(errors="replace")


def text_files(repo):
    for name in tracked(repo):
        with open(os.path.join(repo, name), "rb") as f:
            if b"\0" not in f.read(8192):
                yield name


def spdx(repo):
    bad = []
    for name in text_files(repo):
        if name.endswith((".md", ".gitignore", ".json", ".svg")) or "LICENSE" in name or \
           "COPYING" in name:
            continue
        head = lines(repo, name)
        line = head[1] if head[0].startswith("#!") and len(head) > 1 else head[0]
        wanted = "GPL-2.0-only" if name.startswith(("dm-qcow2/", "vhost-blk/")) \
            else "GPL-2.0-or-later"
        if f"SPDX-License-Identifier: {wanted}" not in line and \
           not (wanted == "GPL-2.0-only" and "SPDX-License-Identifier: " in line and
                ("uapi/" in name or name.endswith((".py", "qcow2-format.h")))):
            bad.append(f"{name}: no `SPDX-License-Identifier: {wanted}` in its first line")
    return "\n".join(bad)


def scan(repo, pattern, message, suffixes=None):
    bad = []
    for name in text_files(repo):
        if suffixes and not name.endswith(suffixes):
            continue
        bad += [f"{name}:{n}: {message}: {line.strip()}"
                for n, line in enumerate(lines(repo, name), 1) if pattern.search(line)]
    return "\n".join(bad)


def length(repo):
    return "\n".join(f"{name}: {len(lines(repo, name)) - 1} lines, the limit is {MAX_LINES}"
                     for name in text_files(repo) if len(lines(repo, name)) > MAX_LINES)


def width(repo):
    """The kernel's rule, for what is shipped; tables and messages of tests may be wider."""
    return "\n".join(f"{name}:{n}: {len(line.expandtabs(8))} columns, the limit is {MAX_COLUMNS}"
                     for name in text_files(repo)
                     if name.endswith((".c", ".h")) and not name.startswith("tests/")
                     for n, line in enumerate(lines(repo, name), 1)
                     if len(line.expandtabs(8)) > MAX_COLUMNS)


def whitespace(repo):
    bad = scan(repo, re.compile(r"[ \t]+$"), "trailing white space")
    for name in text_files(repo):
        with open(os.path.join(repo, name), "rb") as f:
            data = f.read()
        if data and not data.endswith(b"\n"):
            bad += f"\n{name}: no newline at its end"
    return bad.strip()


def versions(repo):
    bad = scan(repo, VERSION_IF, "a kernel version outside compat.h", (".c", ".h"))
    return "\n".join(line for line in bad.splitlines()
                     if not line.split(":")[0].endswith("/compat.h"))


def opening(repo):
    """A file says what it owns before it does anything."""
    bad = []
    for name in text_files(repo):
        if not name.endswith((".c", ".h", ".py")):
            continue
        head = [x for x in lines(repo, name)[:12] if x.strip()]
        if not any(x.startswith(("/*", " *", '"""', "//", "#")) for x in head[1:3]) or \
           not re.search(r'^(/\*|"""|# |// )', "\n".join(head[1:]), re.M):
            bad.append(f"{name}: no comment at its start says what it is for")
    return "\n".join(bad)


def options(repo):
    """What can be typed can be read about: in --help, the manual page, and on the tab key."""
    def text(*parts):
        return "\n".join(lines(repo, os.path.join("tools/qcow2attach", *parts)))
    source = "\n".join(text(os.path.basename(f)) for f in tracked(repo)
                       if re.match(r"tools/qcow2attach/[^/]+\.[ch]$", f))
    places = {"--help": "\n".join(re.findall(r'"(      --[a-z](?:[^"\\\n]|\\.)*)"', source)),
              "the manual page": text("qcow2attach.8").replace("\\-", "-"),
              "the completion": text("completion", "qcow2attach")}
    names = sorted(set(re.findall(r'\{ "([a-z-]+)", (?:required|no)_argument', source)))
    return "\n".join([f"--{name} is missing in {place}" for name in names
                      for place, found in places.items()
                      if not re.search(rf"--{name}(?![\w-])", found)] +
                     ([] if names else ["no options were found"]))


RULES = {
    "licence lines": spdx,
    "file length": length,
    "line length": width,
    "white space": whitespace,
    "unfinished work": lambda repo: scan(repo, UNFINISHED, "unfinished"),
    "places of one machine": lambda repo: scan(repo, PLACES, "a place outside the project"),
    "kernel versions": versions,
    "opening comments": opening,
    "options": options,
}
