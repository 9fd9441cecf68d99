# SPDX-License-Identifier: GPL-2.0-or-later
"""Results as text, in Markdown: what was aimed at, IOPS with ratios, and where it was measured."""
import targets

# What each path is measured against, first by what is there: the same storage without us.
BASES = {"qcow2-bdev": ["linear", "thin"], "qcow2-xfs": ["loop-xfs"], "qcow2-ext4": ["loop-ext4"],
         "linear": ["raw"], "vhost-null": ["qsd-io_uring-null", "qsd-native-null"]}
BASES.update({f"vhost-{place}": [f"qsd-io_uring-{place}", f"qsd-native-{place}"]
              for place in ("bdev", "xfs", "ext4")})
BASES.update({f"{path}-poll": BASES[path] for path in ("vhost-null", "vhost-bdev")})
KINDS = {"prealloc": "a preallocated image", "empty": "an empty image",
         "backed": "an empty image on a preallocated one",
         "1t-warm": "a preallocated image of 1 TiB, its tables in the cache",
         "1t-miss": "a preallocated image of 1 TiB, its tables never in the cache"}
MODES = {"icount": "by instruction counting", "wall": "by the wall clock"}


def table(head, rows):
    """Columns of numbers are aligned to the right."""
    left = {n for n in range(len(head))
            if any(not r[n][:1].isdigit() and r[n] != "-" for r in rows)}
    lines = [head, ["---" if n in left else "---:" for n in range(len(head))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def target_table(results):
    return table(["aimed at", "measured by", "is", "aim", ""],
                 [t.row for t in targets.all_targets(results)])


def base_of(results, path, workload, mode):
    """The path to compare with, or None: of several bases the best that was measured."""
    found = [(results.iops(b, workload, mode), b) for b in BASES.get(path, ())]
    found = [f for f in found if f[0]]
    if not found:
        return None
    if path.startswith("vhost-"):
        return max(found)[1]
    return found[0][1]


def workloads(found, kind, mode):
    """Of one kind, in the order of their measurement, without those of several queues."""
    seen = dict.fromkeys(r["workload"] for r in found
                         if r["mode"] == mode and r["workload"].split()[-1] == kind)
    return [w for w in seen if "queues" not in w]


def cell(results, path, workload, mode):
    iops = results.iops(path, workload, mode)
    if iops is None:
        return "-"
    base = base_of(results, path, workload, mode)
    ratio = f" ({iops / results.iops(base, workload, mode):.2f})" if base else ""
    return f"{iops / 1000:,.1f}{ratio}"


def figures(results, found, labels, kind, mode):
    """Thousands of requests in a second, in brackets the ratio to the base; or ""."""
    loads = workloads(found, kind, mode)
    rows = []
    for path, label in labels.items():
        cells = [cell(results, path, w, mode) for w in loads]
        if any(c != "-" for c in cells):
            bases = {base_of(results, path, w, mode) for w in loads} - {None}
            rows.append([f"{label} (`{path}`)", *cells,
                         ", ".join(f"`{b}`" for b in sorted(bases)) or "-"])
    if not rows:
        return ""
    head = [MODES[mode], *(w.rsplit(" ", 1)[0] for w in loads), "ratio to"]
    return table(head, rows)


def trim_table(found):
    """One line for each image: the reader alone, and while the trim is going on."""
    head = ["image, ranges, measured by", "requests/s alone", "p99 us alone", "requests/s beside",
            "p99 us beside", "worst p99 us", "seconds"]
    keys = ("alone_iops", "alone_p99_us", "iops", "p99_us", "worst_p99_us", "trim_s")
    return table(head, [[what, *(f"{figures[k]:,.6g}" for k in keys)]
                        for what, figures in found.items()])


def environment(info):
    lines = []
    for mode, e in info["environment"].items():
        lines.append(f"- {mode}: " + ", ".join(f"{k} {v}" for k, v in e.items()))
    return "\n".join(lines) + "\n"


def failures(info):
    return "".join(f"- {f['mode']}: {f['path']}, {f['what']}: {f['reason']}\n"
                   for f in info["failures"])


def whole(results, found, info, labels):
    """Everything, for build/bench/report.md and docs/performance.md."""
    text = ["### Aims\n", target_table(results)]
    for kind, title in KINDS.items():
        tables = [t for mode in MODES if (t := figures(results, found, labels, kind, mode))]
        if tables:
            text += [f"### Thousands of requests a second on {title}\n", *tables]
    if info["memory"]:
        text += ["### Memory\n", table(["what", "bytes"], [[what, f"{b:,}"] for what, b in
                                                           info["memory"].items()])]
    if info.get("trim"):
        text += ["### A reader beside a guest's fstrim\n", trim_table(info["trim"])]
    text += ["### Where\n", environment(info)]
    if info["failures"]:
        text += ["### What failed\n", failures(info)]
    return "\n".join(text)
