# SPDX-License-Identifier: GPL-2.0-or-later
"""Results as a picture: horizontal bars of one workload's IOPS, a panel for each, as SVG."""
from xml.sax.saxutils import escape

LABELS, BARS, ROW, TOP = 390, 420, 20, 34       # widths and heights in pixels
OURS, OTHERS = "#1b6ca8", "#b8b8b8"
ROUND = (1, 2, 2.5, 5, 10)


def is_ours(path):
    return path.startswith(("qcow2-", "vhost-"))


def ticks(largest):
    """Round numbers from 0 to at least the largest value, four to six of them."""
    power = 10 ** (len(str(int(largest / 5 or 1))) - 1)
    step = next(n * power for n in ROUND if n * power * 5 >= largest)
    return [step * n for n in range(int(-(-largest // step)) + 1)]


def text(x, y, content, anchor="start", size=12, **more):
    attributes = "".join(f' {k.replace("_", "-")}="{v}"' for k, v in more.items())
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{attributes}>'
            f"{escape(content)}</text>")


def panel(title, bars, top):
    """(elements, height): BARS are (label, path, value)."""
    scale = ticks(max(value for _, _, value in bars))
    bottom = top + TOP + ROW * len(bars)
    parts = [text(0, top + 16, title, size=14, font_weight="bold")]
    for tick in scale:
        x = LABELS + BARS * tick / scale[-1]
        parts.append(f'<line x1="{x:.1f}" y1="{top + TOP - 4}" x2="{x:.1f}" y2="{bottom}" '
                     'stroke="#ddd"/>')
        parts.append(text(x, bottom + 14, f"{tick / 1000:g}k", "middle", 11))
    for n, (label, path, value) in enumerate(bars):
        y = top + TOP + ROW * n
        width = BARS * value / scale[-1]
        parts.append(text(LABELS - 8, y + 13, label, "end"))
        parts.append(f'<rect x="{LABELS}" y="{y + 2}" width="{width:.1f}" height="{ROW - 5}" '
                     f'fill="{OURS if is_ours(path) else OTHERS}"/>')
        parts.append(text(LABELS + width + 5, y + 13, f"{value / 1000:.1f}k", size=11))
    return parts, bottom - top + 32


def svg(found, labels, panels):
    """PANELS are (title, workload, mode); one of which nothing was measured is left out."""
    parts, height = [], 8
    for title, workload, mode in panels:
        values = {r["path"]: r["iops"] for r in found
                  if r["workload"] == workload and r["mode"] == mode}
        bars = [(label, path, values[path]) for path, label in labels.items() if values.get(path)]
        if bars:
            more, used = panel(title, bars, height)
            parts += more
            height += used
    width = LABELS + BARS + 70
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="-8 0 {width} {height}" font-family="sans-serif">\n'
            f'<rect x="-8" width="{width}" height="{height}" fill="white"/>\n'
            + "\n".join(parts) + "\n</svg>\n")
