"""What the module is to keep to, beside what it does. Results are rounded against it."""

import math

from memory import SUSPENDED
from tables import table


def targets(parts):
    """A row for each target: what, limit, result, range, whether it is kept."""
    def pick(part, **labels):
        rows = [r for r in parts.get(part, {}).get("results", [])
                if r["build"].startswith("(a)")
                and all(r.get(key) == value for key, value in labels.items())]
        return rows[0] if rows else None

    rows = []

    def at_most(what, limit, row, name, digits=3, unit=""):
        judge(what, f"<= {limit}{unit}", row, name, digits, math.ceil, lambda value: value <= limit)

    def at_least(what, limit, row, name, digits=3):
        judge(what, f">= {limit}", row, name, digits, math.floor, lambda value: value >= limit)

    def judge(what, limit, row, name, digits, round_off, kept):
        if row is None:
            rows.append([what, limit, "-", "-", "-"])
            return
        median, low, high = (rounded(row[name + end], digits, round_off)
                             for end in ("", "_min", "_max"))
        rows.append([what, limit, median, f"{low}-{high}",
                     "ok" if kept(float(median)) else "missed"])

    crowd = {"certificate": "ecdsa", "clients": 64}
    at_most("resumed, TLS 1.2, Redis over TCP: worker CPU / nginx shared", 1.05,
            pick("resumed", tls="1.2", sessions="redis", **crowd), "ratio")
    at_least("the same, handshakes/s / nginx shared", 0.95,
             pick("resumed", tls="1.2", sessions="redis", **crowd), "rate_ratio")
    at_most("resumed, TLS 1.3, Redis over TCP: worker CPU / nginx shared", 1.04,
            pick("resumed", tls="1.3", sessions="redis", **crowd), "ratio")
    for version in ("1.2", "1.3"):
        at_most(f"resumed, TLS {version}, shared: worker CPU / nginx shared", 1.02,
                pick("resumed", tls=version, sessions="shared:", **crowd), "ratio")
    at_most("CPU of Redis per lookup", 12,
            pick("resumed", tls="1.2", sessions="redis", **crowd), "store_us", 1, " us")
    for version in ("1.2", "1.3"):
        at_most(f"full, TLS {version}, ECDSA, stored in Redis: worker CPU / without the module",
                1.03, pick("full", tls=version, sessions="redis", **crowd), "ratio")
    for version in ("1.2", "1.3"):
        at_most(f"memory of a suspended handshake above nginx's own, TLS {version}", 2048,
                pick("memory", tls=version, what=SUSPENDED), "uss_more", 0, " bytes")
    for version in ("1.2", "1.3"):
        at_most(f"latency added to one client, p50, TLS {version}, Redis", 45,
                pick("resumed", tls=version, sessions="redis", certificate="ecdsa", clients=1),
                "added_us", 1, " us")
    crowded = pick("growth", what="suspended", n=10_000)
    if crowded:
        kept = crowded["finished"] == crowded["n"] and crowded["more_bytes"] <= 2048
        rows.append(["10,000 handshakes suspended at once on one worker",
                     "all served, <= 2048 bytes",
                     f"{crowded['finished']:,} served, {crowded['more_bytes']} bytes", "-",
                     "ok" if kept else "missed"])
    else:
        rows.append(["10,000 handshakes suspended at once on one worker",
                     "all served, <= 2048 bytes", "-", "-", "-"])
    for version in ("1.2", "1.3"):
        # To the two digits of the target.
        judge(f"module loaded, nothing configured, full, TLS {version}, ECDSA: worker CPU / "
              "without", "1.00", pick("full", tls=version, sessions="module, idle", **crowd),
              "ratio", 3, math.ceil, lambda value: value < 1.005)
    return rows


def rounded(value, digits, how):
    # What was rounded before is not rounded up for a bit that binary has added.
    exact = how(round(value * 10**digits, 6)) / 10**digits
    return f"{exact:.{digits}f}"


def targets_table(parts):
    return table("Targets, on the first nginx; medians with ranges, rounded against the module",
                 ["target", "limit", "result", "range", ""], targets(parts))
