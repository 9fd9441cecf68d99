#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""`make bench`: how fast this is, next to what else there is, on the same storage in one run.

Boots a guest for each mode (instruction counting, wall clock), which measures (measure.py); then
merges and shows the results. Owns build/bench/. Times are reported, never asserted; the exit code tells
whether all contestants could be measured.
"""
import argparse
import os
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
REPO = os.path.dirname(os.path.dirname(HERE))
LAB = os.path.join(REPO, "tests", "lab", "lab")
OUT = os.path.join(REPO, "build", "bench")
GUEST_OUT = os.path.join(REPO, "build", "out", "bench")         # /out/bench in the guest
DOCUMENT = os.path.join(REPO, "docs", "performance.md")
PICTURE = os.path.join(REPO, "docs", "performance.svg")
MARK, END = "<!-- make bench: {} -->\n", "<!-- end -->\n"
PLUGIN = "icount-plugin"
MEASURED = ("dm-qcow2", "vhost-blk", "tools")

sys.path.insert(0, HERE)
import measure      # noqa: E402  (finds the modules that both sides use)
import instructions     # noqa: E402
import paths        # noqa: E402
import plot         # noqa: E402
import report       # noqa: E402
import results      # noqa: E402

# Guest seconds of each measurement and rounds. An instruction is a nanosecond there, and costs
# about ten here.
MODES = {"icount": {"seconds": 0.05, "rounds": 1}, "wall": {"seconds": 1, "rounds": 3}}
QUICK = {"icount": {"seconds": 0.03, "rounds": 1}, "wall": {"seconds": 0.4, "rounds": 1}}
PANELS = [(f"{op}, 4 KiB, depth 32, preallocated, {report.MODES[mode]}",
           f"{op} 4k d32 prealloc", mode)
          for mode in MODES for op in ("randread", "randwrite")]


def say(text):
    print(f"bench: {text}", flush=True)


def parse():
    p = argparse.ArgumentParser(prog="make bench", description=__doc__)
    p.add_argument("--quick", action="store_true",
                   help="short, and of the loads only those that the aims need")
    p.add_argument("--mode", choices=MODES, help="only this mode")
    p.add_argument("--only", default="", metavar="GROUP,...",
                   help="only these of " + ", ".join(measure.GROUPS) + "; what was measured before "
                   "stays in the results")
    p.add_argument("--paths", default="", metavar="NAME,...",
                   help="only paths whose name holds one of these: " +
                   ", ".join(path.name for path in paths.PATHS))
    p.add_argument("--seconds", type=float, help="of each measurement, of the guest's time")
    p.add_argument("--rounds", type=int)
    p.add_argument("--timeout", type=float, default=5400, help="for each guest (default 5400 s)")
    p.add_argument("--report", action="store_true", help="show the results that are there")
    p.add_argument("--profile", action="store_true",
                   help="instead count where the instructions of a request go, by function")
    p.add_argument("--document", action="store_true",
                   help="also write what is shown to docs/performance.md")
    o = p.parse_args()
    o.groups = o.only.split(",") if o.only else list(measure.GROUPS)
    unknown = set(o.groups) - set(measure.GROUPS)
    if unknown:
        p.error(f"no such group: {', '.join(sorted(unknown))}")
    return o


def source():
    """The last commit that changed what is measured."""
    done = subprocess.run(["git", "-C", REPO, "log", "-1", "--format=%h", "--", *MEASURED],
                          capture_output=True, text=True)
    if done.returncode:
        return "unknown"
    dirty = subprocess.run(["git", "-C", REPO, "diff", "--quiet", "HEAD", "--",
                            *MEASURED]).returncode
    return done.stdout.strip() + (" with changes" if dirty else "")


def make_tebibyte():
    """The image of 1 TiB and its map, made by QEMU's tools: 160 MiB of tables in a sparse file."""
    image = os.path.join(GUEST_OUT, "1t.qcow2")
    if os.path.exists(image + ".map"):
        return
    say("making an image of 1 TiB")
    script = ("qemu-img create -q -f qcow2 -o preallocation=metadata /out/bench/1t.qcow2 1T && "
              "qemu-img map -f qcow2 --output=json /out/bench/1t.qcow2 >/out/bench/1t.map.tmp && "
              "mv /out/bench/1t.map.tmp /out/bench/1t.qcow2.map")
    subprocess.run([LAB, "chroot", "--", "sh", "-c", script], check=True)


def run_guest(mode, o):
    """Measure in a guest; its records, and whether all went well."""
    settings = {**(QUICK if o.quick else MODES)[mode]}
    settings.update({k: v for k, v in (("seconds", o.seconds), ("rounds", o.rounds)) if v})
    log = os.path.join(GUEST_OUT, f"{mode}.jsonl")
    if os.path.exists(log):
        os.unlink(log)
    argv = [LAB, "run", "--no-build", "--mem", "5G", "--timeout", str(o.timeout)]
    argv += ["--icount"] if mode == "icount" else []
    argv += ["--", "tests/bench/measure.py", "--mode", mode, "--out", f"/out/bench/{mode}.jsonl",
             "--seconds", str(settings["seconds"]), "--rounds", str(settings["rounds"]),
             "--groups", ",".join(o.groups)]
    argv += [f"--paths={o.paths}"] if o.paths else []
    argv += ["--quick"] if o.quick else []
    status = subprocess.run(argv, stdin=subprocess.DEVNULL).returncode
    found = results.records(log)
    if not any(r["type"] == "end" for r in found):
        found.append({"type": "failed", "mode": mode, "path": "the guest", "what": "the whole run",
                      "reason": f"it ended early, with exit code {status}"})
    elif status and not any(r["type"] == "failed" for r in found):
        found.append({"type": "failed", "mode": mode, "path": "the guest", "what": "the whole run",
                      "reason": f"exit code {status}; see its kernel log above"})
    return found


def measure_all(o):
    os.makedirs(GUEST_OUT, exist_ok=True)
    os.makedirs(OUT, exist_ok=True)
    subprocess.run([LAB, "build", "stable"], check=True, stdin=subprocess.DEVNULL)
    if {"1t", "memory"} & set(o.groups):
        make_tebibyte()
    found, environment = [], {}
    for mode in [o.mode] if o.mode else MODES:
        say(f"measuring {report.MODES[mode]}")
        before = os.getloadavg()[0]
        found += run_guest(mode, o)
        # What else the machine did: two, the guest's own, is a machine to itself.
        environment[mode] = {"date": time.strftime("%Y-%m-%d"), "commit": source(),
                             "load of the host": f"{before:.1f} to {os.getloadavg()[0]:.1f}"}
    fresh = not (o.only or o.paths or o.mode)
    kept = [] if fresh else results.load(os.path.join(OUT, "results.json"), [])
    info = {} if fresh else results.load(os.path.join(OUT, "run.json"), {})
    results.save(os.path.join(OUT, "results.json"),
                 results.merge(kept, results.medians(found)))
    results.save(os.path.join(OUT, "run.json"), results.run_info(info, found, environment))


def write_document(what, text):
    """Replace what stands between the two marks in the document."""
    begin = MARK.format(what)
    with open(DOCUMENT) as f:
        head, rest = f.read().split(begin)
    tail = rest.split(END, 1)[1]
    with open(DOCUMENT, "w") as f:
        f.write(head + begin + "\n" + text + "\n" + END + tail)


def profile(o):
    """Count in a guest and show where the instructions go."""
    os.makedirs(GUEST_OUT, exist_ok=True)
    os.makedirs(OUT, exist_ok=True)
    subprocess.run([LAB, "build", "stable"], check=True, stdin=subprocess.DEVNULL)
    subprocess.run([LAB, "chroot", "--", "gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror",
                    "-shared", "-fPIC", "-o", f"/out/bench/{PLUGIN}.so",
                    f"/repo/tests/bench/{PLUGIN}.c"], check=True)
    subprocess.run([LAB, "run", "--no-build", "--icount", "--mem", "5G", "--timeout",
                    str(o.timeout), "--plugin",
                    f"/lab/out/bench/{PLUGIN}.so,out=/lab/out/bench/profile", "--",
                    "tests/bench/profile_guest.py", *filter(None, o.paths.split(","))],
                   check=True, stdin=subprocess.DEVNULL)
    with open(os.path.join(GUEST_OUT, "kallsyms")) as f:
        symbols = instructions.Symbols(f)
    cases = []
    for n, case in enumerate(results.load(os.path.join(GUEST_OUT, "profile.json"), [])):
        with open(os.path.join(GUEST_OUT, f"profile.{n}")) as f:
            cases.append((case["case"], instructions.by_function(f, symbols, 1e9 / case["iops"])))
    text = f"{time.strftime('%Y-%m-%d')}, commit {source()}.\n\n" + instructions.tables(cases)
    with open(os.path.join(OUT, "profile.md"), "w") as f:
        f.write(text)
    if o.document:
        write_document("profile", text)
    print("\n" + text)
    return 0


def show(o):
    found = results.load(os.path.join(OUT, "results.json"), [])
    info = results.load(os.path.join(OUT, "run.json"), {})
    if not found and not info:
        sys.exit("bench: nothing has been measured yet")
    labels = {path.name: path.label for path in paths.PATHS}
    text = report.whole(results.Results(found, info["memory"]), found, info, labels)
    with open(os.path.join(OUT, "report.md"), "w") as f:
        f.write(text)
    for path in [os.path.join(OUT, "results.svg"), *([PICTURE] if o.document else [])]:
        with open(path, "w") as f:
            f.write(plot.svg(found, labels, PANELS))
    if o.document:
        write_document("results", text)
    print("\n" + text)
    say("build/bench/ has results.json, run.json, report.md and results.svg")
    for f in info["failures"]:
        say(f"FAILED: {f['mode']}: {f['path']}, {f['what']}: {f['reason']}")
    return 1 if info["failures"] else 0


def main():
    o = parse()
    if o.profile:
        return profile(o)
    if not o.report:
        measure_all(o)
    return show(o)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as e:
        sys.exit(f"bench: {' '.join(e.cmd)} failed with {e.returncode}")
