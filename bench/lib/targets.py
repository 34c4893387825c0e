"""What the module is to keep to, beside what it does. A target is met if the whole interval keeps
to it, missed if nothing of it does, and not shown else. Results are rounded against the module."""

import csv
import math
import os

from compare import control, is_control, told
from memory import SUSPENDED
from pairs import judged
from settings import CROWD, ROOT
from tables import between, table

INSTRUCTIONS = os.path.join(ROOT, "t/instructions.tsv")


def targets(parts):
    """A row for each target: what, limit, result, interval or range, what is to be said of it."""
    rows = []

    def all_of(part):
        return [r for r in parts.get(part, {}).get("results", []) if r["build"].startswith("(a)")]

    def pick(part, **labels):
        return next((r for r in all_of(part)
                     if all(r.get(key) == value for key, value in labels.items())), None)

    def estimated(what, limit, part, row, name="ratio", digits=3, unit="", same=1,
                  saturated=False):
        """What compare() has found; it may have to be of a worker that was saturated."""
        if row is None:
            rows.append([what, f"<= {limit}{unit}", "-", "-", "-"])
            return
        name = told(row, name)
        of_all = {"ratio_all": ", of all slices",
                  "fast_ratio": ", of the fastest tenth of the slices"}.get(name, "")
        value, low, high = (upwards(row[name + end], digits) for end in ("", "_low", "_high"))
        said = judged(limit, float(low), float(high))
        if not control(all_of(part), row, name, same):
            said = "not shown: the control is not as its base"
        if name == "ratio_all" and saturated:
            said = "not shown: the worker was not saturated"
        rows.append([what + of_all, f"<= {limit}{unit}", value, f"{low} to {high}", said])

    def counted(what, limit, value, unit="", low=None, high=None, digits=0):
        """What has no noise, or of which all rounds are to keep to it by their median."""
        said = "-" if value is None else judged(limit, *(float(upwards(value, digits)),) * 2)
        rows.append([what, f"<= {limit:,}{unit}", "-" if value is None else upwards(value, digits),
                     "-" if low is None else f"{upwards(low, digits)} to {upwards(high, digits)}",
                     said])

    def narrowest(what, **labels):
        """The part that has the row, and the row: that of many pairs, if that was measured."""
        row = pick("many", what=what, **labels)
        return ("many", row) if row else (what, pick(what, **labels))

    crowd = {"certificate": "ecdsa", "clients": CROWD}
    for version, limit in (("1.2", 1.08), ("1.3", 1.04)):
        estimated(f"resumed, TLS {version}, Redis over TCP: worker CPU / nginx shared", limit,
                  *narrowest("resumed", tls=version, sessions="redis", **crowd), saturated=True)
    for version in ("1.2", "1.3"):
        estimated(f"resumed, TLS {version}, shared: worker CPU / nginx shared", 1.02,
                  *narrowest("resumed", tls=version, sessions="shared:", **crowd),
                  saturated=True)
    for version in ("1.2", "1.3"):
        estimated(f"full, TLS {version}, ECDSA, stored in Redis: worker CPU / without the module",
                  1.03, *narrowest("full", tls=version, sessions="redis", **crowd))
    for version in ("1.2", "1.3"):
        # To the two digits of 1.00.
        estimated(f"module loaded, nothing configured, full, TLS {version}, ECDSA: worker CPU / "
                  "without", 1.005, "full",
                  pick("full", tls=version, sessions="module, idle", **crowd))
    for version in ("1.2", "1.3"):
        estimated(f"latency added to one client, p50, TLS {version}, Redis", 45, "resumed",
                  pick("resumed", tls=version, sessions="redis", certificate="ecdsa", clients=1),
                  "added_us", 1, " us", 0)
    more, allocations = instructions()
    counted("resumed, TLS 1.2, Redis: user instructions above nginx's (t/instructions.tsv)", 25_000,
            more)
    counted("the same, allocations above nginx's", 1, allocations, digits=1)
    for version in ("1.2", "1.3"):
        row = pick("memory", tls=version, what=SUSPENDED)
        counted(f"memory of a suspended handshake above nginx's own, TLS {version}", 2048,
                *((row["uss_more"], " bytes", row["uss_more_min"], row["uss_more_max"]) if row
                  else (None, " bytes")))
    crowded = pick("growth", what="suspended", n=10_000)
    kept = crowded and crowded["finished"] == crowded["n"] and crowded["more_bytes"] <= 2048
    rows.append(["10,000 handshakes suspended at once on one worker", "all served, <= 2048 bytes",
                 "-" if not crowded else
                 f"{crowded['finished']:,} served, {crowded['more_bytes']} bytes",
                 "-", "-" if not crowded else "met" if kept else "missed"])
    rows += controls(parts) + against_peers(all_of("peers"))
    return rows


def controls(parts):
    """A row for each part, of every nginx: a process beside its like."""
    rows = []
    for part, kept in parts.items():
        found = [r for r in kept["results"] if is_control(r)]
        if found:
            contain = sum(bool(control(kept["results"], row)) for row in found)
            rows.append([f"{part}: intervals of controls that contain 1", f"{len(found)}",
                         str(contain), "-", "met" if contain == len(found) else "missed"])
    return rows


def against_peers(results):
    """The ratio of ratios: this module to its base, by a peer to its own."""
    rows = []
    for row in results:
        if "module_ratio" in row:
            said = "not shown"
            if row["controlled"]:
                said = judged(1, row["module_ratio_low"], row["module_ratio_high"])
            rows.append([f"{row['against']} beside {row['sessions']}, TLS {row['tls']}, "
                         f"{row['clients']} clients: ratio of the ratios", "< 1",
                         *(between(row, "module_ratio").rstrip(")").split(" (") + ["-"])[:2], said])
    return rows


def instructions():
    """Of a resumption of TLS 1.2 by Redis, more than nginx's own: instructions and allocations."""
    with open(INSTRUCTIONS, encoding="utf-8") as file:
        for line in csv.reader(file, delimiter="\t"):
            if line[:2] == ["redis", "resumed, TLS 1.2"]:
                return float(line[3]), float(line[5])
    return None, None


def upwards(value, digits):
    if math.isinf(value):
        return str(value)
    # What was rounded before is not rounded up for a bit that binary has added.
    exact = math.ceil(round(value * 10**digits, 6)) / 10**digits
    return f"{exact:.{digits}f}"


def targets_table(parts):
    return table("Targets, on the first nginx; estimates with intervals, or medians with ranges, "
                 "rounded against the module",
                 ["target", "limit", "result", "95 % interval, or range", ""], targets(parts))
