"""Measures configurations in turn, in slices so short that what disturbs one disturbs the next."""

import statistics

from processes import stop_all
from settings import ROUNDS, SETS, SLICES, Failed

LATENCIES = ("p50_us", "p99_us", "p999_us", "max_us")


def compare(labels, loads, base, go, hits=None, rounds=ROUNDS, slices=SLICES, merged=False):
    """A row for each of the loads, compared with that named base. go(load) makes a slice.

    hits: (counter, names): by the counter each handshake of the loads named was a hit, and none of
    any other's; if lookups of a session may be merged, that many at most.
    """
    names = list(loads)
    rows = {name: [] for name in names}
    counted = [(counter, counter(), who) for counter, who in hits or []]
    made = dict.fromkeys(names, 0)
    # The first round pays for cold caches.
    for turn in range(-1, rounds):
        answers = {name: [] for name in names}
        for piece in range(slices):
            first = (turn + piece) % len(names)
            for name in names[first:] + names[:first]:
                answer = go(loads[name])
                made[name] += answer["handshakes"]
                answers[name].append(answer)
        for name in names:
            if turn >= 0:
                rows[name].append(added_up(answers[name]))
            else:
                loads[name].ask("latency")
    for counter, before, who in counted:
        expected = sum(made[name] for name in who if name in made)
        now = counter() - before
        if now > expected or (now < expected and not merged) or bool(now) != bool(expected):
            raise Failed(f"{labels}: {now} hits in the store, not {expected}")
    return [labels | {"sessions": name} | row(rows[name], rows[base], loads[name].ask("latency"))
            for name in names]


def added_up(answers):
    """Of a round: per handshake, and per second."""
    n = sum(a["handshakes"] for a in answers)
    wall = sum(a["wall_ns"] for a in answers)
    worker = sum(a["cpu_ns"][0] for a in answers)
    return {
        "handshakes": n,
        "us": worker / n / 1000,
        "store_us": sum(sum(a["cpu_ns"][1:]) for a in answers) / n / 1000,
        "load_us": sum(a["own_ns"] for a in answers) / n / 1000,
        "rate": n / (wall / 1e9),
        "busy": worker / wall,
        "p50_us": statistics.mean(a["p50_us"] for a in answers),
        "received": sum(a["received"] for a in answers) / n,
        "sent": sum(a["sent"] for a in answers) / n,
    }


def row(rounds, base, latency):
    """Medians with ranges; a ratio is that of a round to the same round of the base."""
    def all_of(what):
        return [r[what] for r in rounds]

    def against(what, how):
        return [how(r[what], own[what]) for r, own in zip(rounds, base)]

    every = {name: all_of(name) for name in ("us", "rate", "store_us", "load_us", "busy")}
    every |= {"ratio": against("us", lambda is_, was: is_ / was),
              "rate_ratio": against("rate", lambda is_, was: is_ / was),
              "added_us": against("p50_us", lambda is_, was: is_ - was)}
    return summed_up({
        "handshakes": sum(all_of("handshakes")), "every": every,
        "received": round(statistics.median(all_of("received")), 1),
        "sent": round(statistics.median(all_of("sent")), 1)} | latency)


DIGITS = {"ratio": 5, "rate": 1, "rate_ratio": 5, "added_us": 1, "busy": 3}


def summed_up(result):
    """With the medians and ranges of its rounds."""
    for name, values in result["every"].items():
        result |= spread(name, values, DIGITS.get(name, 2))
    return result | {"rounds": len(result["every"]["us"])}


def sets(part, *args):
    """The rows of a part that is measured with several sets of processes, each a few rounds. Two
    processes that do the same differ by some per cent for as long as they live: by where the kernel
    has put their memory."""
    together = {}
    for _ in range(SETS):
        for row_ in part(*args):
            labels = tuple(row_[label] for label in (
                "build", "certificate", "tls", "clients", "sessions"))
            together.setdefault(labels, []).append(row_)
        stop_all()
    return [merged_rows(rows) for rows in together.values()]


def merged_rows(rows):
    """One row of several that are alike but for their figures."""
    merged = dict(rows[0])
    for name in LATENCIES + ("received", "sent"):
        merged[name] = statistics.median(row_[name] for row_ in rows)
    merged["handshakes"] = sum(row_["handshakes"] for row_ in rows)
    merged["every"] = {name: [value for row_ in rows for value in row_["every"][name]]
                       for name in merged["every"]}
    return summed_up(merged)


def spread(name, values, digits=2):
    return {name: round(statistics.median(values), digits),
            f"{name}_min": round(min(values), digits), f"{name}_max": round(max(values), digits)}
