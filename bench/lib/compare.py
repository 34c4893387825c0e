"""Measures configurations in turn, in slices so short that what disturbs one disturbs the next."""

import statistics

from settings import ROUNDS, SLICES, Failed


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

    result = {"rounds": len(rounds), "handshakes": sum(all_of("handshakes")),
              "us_all": [round(us, 3) for us in all_of("us")]}
    result |= spread("us", all_of("us"))
    result |= spread("ratio", against("us", lambda is_, was: is_ / was), 5)
    result |= spread("rate", all_of("rate"), 1)
    result |= spread("rate_ratio", against("rate", lambda is_, was: is_ / was), 5)
    result |= spread("added_us", against("p50_us", lambda is_, was: is_ - was), 1)
    result |= spread("store_us", all_of("store_us"))
    result |= spread("load_us", all_of("load_us"))
    result |= spread("busy", all_of("busy"), 3)
    result |= {"received": round(statistics.median(all_of("received")), 1),
               "sent": round(statistics.median(all_of("sent")), 1)}
    return result | latency


def spread(name, values, digits=2):
    return {name: round(statistics.median(values), digits),
            f"{name}_min": round(min(values), digits), f"{name}_max": round(max(values), digits)}
