# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the instructions of a request go: counts by address become tables by function."""
import bisect
import collections

USER = ("(the load generator)", "user space")
KERNEL = "kernel"


class Symbols:
    """The kernel's and its modules' functions, from the text of /proc/kallsyms."""

    def __init__(self, lines):
        found = {}
        for line in lines:
            words = line.split()
            if len(words) < 3 or words[1] not in "tTwW" or words[2].startswith("__pfx_"):
                continue
            module = words[3].strip("[]") if len(words) > 3 else KERNEL
            found.setdefault(int(words[0], 16), (words[2], module))
        self.addresses = sorted(found)
        self.names = [found[a] for a in self.addresses]

    def at(self, address):
        """(function, module)."""
        n = bisect.bisect_right(self.addresses, address) - 1
        return self.names[n] if n >= 0 else USER


def by_function(lines, symbols, per_request):
    """{(function, module): instructions for a request}, from lines `ADDRESS COUNT`.

    The counts are of a stretch of a machine that did nothing else, so their sum is what the
    requests in it took, and PER_REQUEST, which the load generator saw, what each of them took.
    """
    counts = collections.Counter()
    for line in lines:
        address, count = line.split()
        counts[symbols.at(int(address, 16))] += int(count)
    total = sum(counts.values())
    return {name: count * per_request / total for name, count in counts.items()} if total else {}


def table(head, rows):
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def row(name, values):
    return [name, *(f"{v:,.0f}" if v >= 0.5 else "-" for v in values)]


def tables(cases, functions=40):
    """CASES is [(title, by_function())]; Markdown by part and by function, the largest first."""
    head = ["instructions for a request", *(title for title, _ in cases)]
    parts = [collections.Counter() for _ in cases]
    for part, (_, found) in zip(parts, cases):
        for (_, module), count in found.items():
            part[module] += count
    modules = sorted({m for p in parts for m in p}, key=lambda m: -max(p[m] for p in parts))
    text = table(head, [row("all", [sum(p.values()) for p in parts])] +
                 [row(m, [p[m] for p in parts]) for m in modules
                  if max(p[m] for p in parts) >= 10])
    names = sorted({n for _, found in cases for n in found if n != USER},
                   key=lambda n: -max(found.get(n, 0) for _, found in cases))
    # What is ours is worth a line however small it is.
    ours = [n for n in names if n[1] in ("dm_qcow2", "vhost_blk")
            and max(found.get(n, 0) for _, found in cases) >= 5]
    others = [n for n in names if n not in set(ours)][:functions]
    for title, chosen in (("our functions", ours), ("others", others)):
        text += "\n" + table([title, *head[1:]],
                             [row(f"`{name}`" + (f" ({module})" if module != KERNEL else ""),
                                  [found.get((name, module), 0) for _, found in cases])
                              for name, module in chosen])
    return text
