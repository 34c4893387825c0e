"""A chart of the worker's CPU per resumed handshake, as SVG."""

import math
from xml.sax.saxutils import escape

from compare import is_control

WIDTH, LEFT, RIGHT, TOP = 760, 170, 90, 70
BAR, GAP, GROUP = 13, 3, 14
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 16px; font-weight: 600 } .small { font-size: 11px; fill: #59636e }
  .grid { stroke: #d1d9e0 } .whisker { stroke: #1f2328; stroke-width: 1.2 }
  .tls12 { fill: #5b8def } .tls13 { fill: #e08a3c } .ground { fill: #ffffff }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .small { fill: #9198a1 } .ground { fill: #0d1117 }
    .grid { stroke: #3d444d } .whisker { stroke: #f0f6fc }
    .tls12 { fill: #4a7bd8 } .tls13 { fill: #c9752a }
  }
"""


def whiskers(row):
    """Of one pair the interval has no ends."""
    low, high = row["us_low"], row["us_high"]
    return (low, high) if math.isfinite(low + high) else (row["us"], row["us"])


def chart(results, machine):
    """Bars are estimates, whiskers their intervals."""
    build = results[0]["build"]
    rows = [r for r in results if r["build"] == build and r["clients"] == 64
            and not is_control(r)]
    names = list(dict.fromkeys(r["sessions"] for r in rows))
    most = max(whiskers(r)[1] for r in rows)
    step = next(s for s in (10, 20, 25, 50, 100, 200, 250, 500, 1000, 10**4) if most / s <= 8)
    end = (int(most / step) + 1) * step
    scale = (WIDTH - LEFT - RIGHT) / end
    group = 2 * BAR + GAP + GROUP
    bottom = TOP + len(names) * group
    height = bottom + 62
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
           f'viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title">',
           f"<style>{STYLE}</style>",
           '<title id="title">Worker CPU per resumed handshake by where sessions are</title>',
           f'<rect class="ground" width="{WIDTH}" height="{height}"/>']

    def text(x, y, said, kind="", anchor="start"):
        out.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">'
                   f"{escape(said)}</text>")

    def line(x1, y1, x2, y2, kind):
        out.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
                   f'class="{kind}"/>')

    text(16, 26, "Worker CPU per resumed handshake", "title")
    text(16, 46, f"{build}, 64 clients; whiskers: 95 % intervals", "small")
    for i, version in enumerate(("1.2", "1.3")):
        x = WIDTH - 170 + i * 82
        out.append(f'<rect class="tls{version.replace(".", "")}" x="{x}" y="15" width="12" '
                   'height="12" rx="2"/>')
        text(x + 17, 26, f"TLS {version}")
    for tick in range(0, end + 1, step):
        x = LEFT + tick * scale
        line(x, TOP - 6, x, bottom, "grid")
        text(x, bottom + 16, str(tick), "small", "middle")
    text((LEFT + WIDTH - RIGHT) / 2, bottom + 34, "microseconds", "small", "middle")
    for i, name in enumerate(names):
        y = TOP + i * group
        text(LEFT - 10, y + BAR + GAP + 3, name, anchor="end")
        for r in (r for r in rows if r["sessions"] == name):
            top = y + (0 if r["tls"] == "1.2" else BAR + GAP)
            middle = top + BAR / 2
            out.append(f'<rect class="tls{r["tls"].replace(".", "")}" x="{LEFT}" y="{top:.1f}" '
                       f'width="{r["us"] * scale:.1f}" height="{BAR}" rx="2"/>')
            low, high = (LEFT + end * scale for end in whiskers(r))
            line(low, middle, high, middle, "whisker")
            for x in (low, high):
                line(x, middle - 3.5, x, middle + 3.5, "whisker")
            text(high + 7, middle + 4, f"{r['us']:.1f}", "small")
    text(16, height - 10, f"commit {machine['commit']}, {machine['date']}, {machine['cpu']}",
         "small")
    out.append("</svg>")
    return "\n".join(out) + "\n"
