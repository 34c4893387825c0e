"""Measures configurations, each in pairs with its base: A, B, B, A, in slices so short that what
disturbs one disturbs the next."""

import pairs
from processes import stop_all
from settings import AGAIN, BUSY, ENOUGH, PAIRS, SETS, Failed

LATENCIES = ("p50_us", "p99_us", "p999_us", "max_us")
# What is known of a side of a pair, and to how many digits it is kept.
COSTS = {"us": 2, "store_us": 2, "load_us": 2, "rate": 1, "busy": 3, "p50_us": 1, "received": 1,
         "sent": 1}
GROUP = ("build", "certificate", "tls", "clients", "part", "what")


def compare(labels, loads, base, go, hits=None, times=PAIRS, saturated=False, merged=False):
    """A row for each of the loads, which is in so many pairs with that named base, for summed_up().
    go(load) makes a slice. If "saturated", ratios are of slices in which the worker limited.

    base: a name, or the base of each name.
    hits: (counter, names): by the counter each handshake of the loads named was a hit, and none of
    any other's; if lookups of a session may be merged, that many at most.
    """
    bases = base if isinstance(base, dict) else dict.fromkeys(loads, base)
    paired = [name for name in loads if bases[name] != name]
    made = dict.fromkeys(loads, 0)
    counted = [(counter, counter(), who) for counter, who in hits or []]

    def piece(name):
        answer = go(loads[name])
        made[name] += answer["handshakes"]
        return answer

    # The first slices pay for cold caches.
    for name, load in loads.items():
        piece(name)
        load.ask("latency")
    ticks = {name: load.server.ticks() for name, load in loads.items()}
    own = {name: [] for name in loads}
    other = {name: [] for name in loads}
    for turn in range(times):
        first = turn % len(paired)
        for name in paired[first:] + paired[:first]:
            a, b, again, last = (piece(one) for one in (name, bases[name], bases[name], name))
            own[name].append(added_up([a, last]))
            other[name].append(added_up([b, again]))
            own[bases[name]].append(other[name][-1])
    for counter, before, who in counted:
        expected = sum(made[name] for name in who if name in made)
        now = counter() - before
        if now > expected or (now < expected and not merged) or bool(now) != bool(expected):
            raise Failed(f"{labels}: {now} hits in the store, not {expected}")
    return [
        labels | {"sessions": name, "base": bases[name], "saturated": saturated}
        | load.ask("latency")
        | {"sets": [{"own": own[name], "base": other[name], "handshakes": made[name], "ticks": [
            after - before for before, after in zip(ticks[name], load.server.ticks())]}]}
        for name, load in loads.items()]


def added_up(answers):
    """The slices of one side of a pair: per handshake, and per second."""
    n = sum(a["handshakes"] for a in answers)
    wall = sum(a["wall_ns"] for a in answers)
    worker = sum(a["cpu_ns"][0] for a in answers)
    side = {
        "us": worker / n / 1000,
        "store_us": sum(sum(a["cpu_ns"][1:]) for a in answers) / n / 1000,
        "load_us": sum(a["own_ns"] for a in answers) / n / 1000,
        "rate": n / (wall / 1e9),
        "busy": worker / wall,
        "p50_us": sum(a["p50_us"] for a in answers) / len(answers),
        "received": sum(a["received"] for a in answers) / n,
        "sent": sum(a["sent"] for a in answers) / n,
    }
    return {name: round(side[name], digits + 2) for name, digits in COSTS.items()} | {
        "each": [round(a["cpu_ns"][0] / a["handshakes"] / 1000, 3) for a in answers],
        "slices": len(answers),
        "idle": sum(a["cpu_ns"][0] < BUSY * a["wall_ns"] for a in answers)}


def summed_up(row):
    """The row with what its sets of pairs say. Of a pair with an idle slice nothing is taken where
    the worker shall be saturated. Other rows are what they are."""
    if "sets" not in row:
        return row
    sets = row["sets"]
    sides = [side for one in sets for side in one["own"] + one["base"]]
    count = sum(len(one["own"]) for one in sets)
    kept = sets
    if row["saturated"]:
        kept = [one | busy_only(one) for one in sets]
        left = [len(one["own"]) for one in kept]
        # A few pairs, or those of a few processes, say nothing of the others.
        if sum(left) < ENOUGH * count or sum(map(bool, left)) * 2 < len(sets):
            kept = [one | {"own": [], "base": []} for one in sets]
    slices = sum(side["slices"] for side in sides)
    row = row | {
        "slices": slices, "idle": sum(side["idle"] for side in sides),
        "left_out": slices - sum(side["slices"] for one in kept
                                 for side in one["own"] + one["base"]),
        "pairs": count, "pairs_kept": sum(len(one["own"]) for one in kept),
        "handshakes": sum(one["handshakes"] for one in sets)}
    # What a handshake costs is said in any case; "worker busy" stands beside it.
    shown = kept if row["pairs_kept"] else sets
    for name, digits in COSTS.items():
        value = pairs.middle([side[name] for one in shown for side in one["own"]])
        row[name] = round(value, digits)
    row |= with_interval("us", pairs.difference(values(shown, "us")), 2)
    user, kernel = (sum(one["ticks"][i] for one in sets) for i in (0, 1))
    row["user_us"] = round(row["us"] * user / (user + kernel or 1), 2)
    row["kernel_us"] = round(row["us"] * kernel / (user + kernel or 1), 2)
    if any(one["base"] for one in sets):
        row |= with_interval("ratio", pairs.ratio(against(kept, "us")))
        row |= with_interval("ratio_all", pairs.ratio(against(sets, "us")))
        if row.get("by") == "fast":
            row |= with_interval("fast_ratio", pairs.fast_ratio([
                [(a["each"], b["each"]) for a, b in zip(one["own"], one["base"])]
                for one in sets]))
        row |= with_interval("rate_ratio", pairs.ratio(against(kept, "rate")))
        row |= with_interval("added_us", pairs.difference(against(
            sets, "p50_us", lambda is_, was: is_ - was)), 1)
    return row


def busy_only(one):
    """Pairs of which no slice was idle; of a base, its sides."""
    if not one["base"]:
        return {"own": [side for side in one["own"] if not side["idle"]]}
    both = [(a, b) for a, b in zip(one["own"], one["base"]) if not a["idle"] and not b["idle"]]
    return {"own": [a for a, _ in both], "base": [b for _, b in both]}


def values(sets, name):
    return [[side[name] for side in one["own"]] for one in sets]


def against(sets, name, how=lambda is_, was: is_ / was):
    return [[how(a[name], b[name]) for a, b in zip(one["own"], one["base"])] for one in sets]


def with_interval(name, found, digits=5):
    value, low, high = found or (None, None, None)

    def kept(number):
        return None if number is None else round(number, digits)
    return {name: kept(value), f"{name}_low": kept(low), f"{name}_high": kept(high)}


def sets(part, built, work, reduced, count=SETS):
    """The rows of a part that is measured with several sets of processes, each a few pairs."""
    together = {}
    for _ in range(-(-count // 2) if reduced else count):
        for row in part(built, work, reduced):
            labels = (*(row.get(label) for label in GROUP), row["sessions"])
            together.setdefault(labels, []).append(row)
        stop_all()
    return [merged_rows(rows) for rows in together.values()]


def merged_rows(rows):
    """One row of several that are alike but for their figures."""
    merged = dict(rows[0])
    for name in LATENCIES:
        merged[name] = round(pairs.middle([row[name] for row in rows]), 1)
    return merged | {"sets": [one for row in rows for one in row["sets"]]}


def is_control(row):
    return "base" in row and row["sessions"] == f"{row['base']}{AGAIN}"


def told(row, name="ratio"):
    """What is gone by: where the row says so the fastest tenth, and all slices where the worker could not
    be saturated."""
    if name == "ratio" and row.get("by") == "fast":
        return "fast_ratio"
    return "ratio_all" if name == "ratio" and row.get(name) is None else name


def control(rows, row, name="ratio", same=1):
    """Whether the second process that is as the base cannot be told from it, in the group of that
    row; None where there is no such process."""
    for other in rows:
        if is_control(other) and row["base"] == other["base"] and all(
                other.get(label) == row.get(label) for label in GROUP):
            name = told(other, name)
            return pairs.contains([other[name + end] for end in ("", "_low", "_high")], same)
    return None
