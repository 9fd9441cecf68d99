# SPDX-License-Identifier: GPL-2.0-or-later
"""The results of `make bench`: read from what the guests wrote, merged, looked up.

build/bench/results.json is a list of objects with `path`, `workload`, `mode` (icount or wall),
`iops`, `p50_us` and `p99_us`, each the median of the rounds. build/bench/run.json has what belongs
to the run: the environment of each mode, memory in bytes, readers beside a trim, and failures.
"""
import json
import os
import statistics

FIGURES = ("iops", "p50_us", "p99_us")


def load(path, default):
    if not os.path.exists(path):
        return default
    with open(path) as f:
        return json.load(f)


def save(path, value):
    tmp = path + ".tmp"
    with open(tmp, "w") as f:
        json.dump(value, f, indent=1)
        f.write("\n")
    os.rename(tmp, path)


def records(path):
    """The lines that a guest wrote; one that was cut off by its death is left out."""
    found = []
    if os.path.exists(path):
        with open(path) as f:
            for line in f:
                try:
                    found.append(json.loads(line))
                except ValueError:
                    continue
    return found


def medians(found):
    """Records of type result, one for each path, workload and mode."""
    rounds = {}
    for r in found:
        if r["type"] == "result":
            rounds.setdefault((r["path"], r["workload"], r["mode"]), []).append(r)
    return [{"path": p, "workload": w, "mode": m,
             **{f: round(statistics.median(r[f] for r in rs), 1) for f in FIGURES}}
            for (p, w, m), rs in rounds.items()]


def merge(old, new):
    """NEW measurements replace the old ones of the same path, workload and mode."""
    keys = {(r["path"], r["workload"], r["mode"]) for r in new}
    return [r for r in old if (r["path"], r["workload"], r["mode"]) not in keys] + new


def run_info(old, found, environment):
    """The other file's content after a run; OLD is what it was, or {}.

    ENVIRONMENT is what the host adds, by mode.
    """
    info = {"environment": dict(old.get("environment", {})), "memory": dict(old.get("memory", {})),
            "trim": dict(old.get("trim", {})), "failures": []}
    trims = {}
    for r in found:
        if r["type"] == "environment":
            info["environment"][r["mode"]] = {
                **{k: v for k, v in r.items() if k not in ("type", "mode")},
                **environment.get(r["mode"], {})}
        elif r["type"] == "memory":
            info["memory"][r["what"]] = r["bytes"]
        elif r["type"] == "trim":
            trims.setdefault(f"{r['what']}, {r['mode']}", []).append(r["figures"])
        elif r["type"] == "failed":
            info["failures"].append({k: r[k] for k in ("mode", "path", "what", "reason")})
    for what, rounds in trims.items():
        info["trim"][what] = {f: statistics.median(r[f] for r in rounds) for f in rounds[0]}
    return info


class Results:
    """Looked up by path, workload and mode."""

    def __init__(self, found, memory=None):
        self.by_key = {(r["path"], r["workload"], r["mode"]): r for r in found}
        self.memory = memory or {}

    def iops(self, path, workload, mode):
        """None when it was not measured."""
        r = self.by_key.get((path, workload, mode))
        return r["iops"] if r else None

    def best(self, paths, workload, mode):
        """(path, IOPS) of the best of some paths, all of which must have been measured."""
        found = [(self.iops(p, workload, mode), p) for p in paths]
        if any(i is None for i, _ in found):
            return None
        iops, path = max(found)
        return path, iops

    def ratio(self, path, bases, workload, mode, base_workload=None):
        """IOPS over those of the best of BASES, or None."""
        ours = self.iops(path, workload, mode)
        base = self.best(bases, base_workload or workload, mode)
        return ours / base[1] if ours and base and base[1] else None
