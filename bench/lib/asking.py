"""CPU of stores, and a fleet that asks many of them."""

import itertools
import json
import random
import statistics
import time

import builds
import links
from entries import KINDS
from holding import LINKS, MEGABYTES, SCALE, settled
from makers import mean, table
from rendezvous import Rendezvous
from settings import Failed, size
from stores import Memcached, Redis

OPERATIONS = size(100_000, 1000)
ROUNDS = size(5, 1)
SHARDS = size(16, 4)
WORKERS = size(32, 4)
SHORT = 3                               # seconds until entries expire, where that is measured


class Cpu:
    """Microseconds of CPU that a store has had since it was last asked."""

    def __init__(self, store):
        self.store = store
        self.last = 0.0
        self.split()

    def split(self):
        if isinstance(self.store, Redis):
            said = self.store.info()
            now = sum(float(said[name]) for name in ("used_cpu_user", "used_cpu_sys"))
        else:
            said = self.store.stats()
            now = sum(float(said[name]) for name in ("rusage_user", "rusage_system"))
        more, self.last = now - self.last, now
        return more * 1e6


def cpu(bench):
    """CPU of operations at saturation, a name that is new for each store."""
    results, lost = {}, 0
    for protocol in ("redis", "memcached"):
        rounds, busy = {kind: {} for kind in KINDS}, []
        for _ in range(ROUNDS):
            for kind in KINDS:
                said = one_round(bench, protocol, kind)
                lost += said.pop("lost")
                for name, (cost, share) in said.items():
                    rounds[kind].setdefault(name, []).append(cost)
                    busy += [share] if share else []
        results[protocol] = {
            name: table([kind for kind in KINDS if name in rounds[kind]],
                        lambda kind, name=name, of=rounds: middle(of[kind][name]))
            for name in ("store", "fetch", "take", "expire")}
        results[protocol]["alone"] = {
            name: middle(rounds["1.3", "none"][f"{name} alone"]) for name in ("fetch", "store")}
        results[protocol]["busy"] = round(statistics.median(busy), 3)
        print(f"  {protocol}: {json.dumps(results[protocol])}", flush=True)
    return results | {"links": LINKS, "operations": OPERATIONS, "rounds": ROUNDS,
                      "lost takes": lost}


def middle(costs):
    """The median of rounds, and how far they lay apart, in microseconds."""
    return {"us": round(statistics.median(costs), 2),
            "range": [round(min(costs), 2), round(max(costs), 2)]}


def one_round(bench, protocol, kind):
    """Microseconds of each kind of operation, and the share of the time that the store, one of its
    own, was busy; and how many takes came to nothing."""
    if protocol == "redis":
        store = Redis(bench.work)
        store.tell(f"CONFIG SET maxclients {LINKS + 100}")
    else:
        store = Memcached(memory=MEGABYTES, links=LINKS + 100)
    many = links.Links([store.port], LINKS)
    new = list(bench.requests(protocol, kind, OPERATIONS))
    names = [name for name, _ in new]
    plain, once = bench.sites[protocol, ""], bench.sites[protocol, "single_use"]
    found = {"lost": 0}

    def run(name, requests, steps=1, by=many):
        # They are made beforehand: the store has nothing to do meanwhile.
        requests = list(requests)
        meter = Cpu(store)
        made, lost, wall = by.run([[requests]])
        cost = meter.split()
        if made != len(requests) * steps:
            raise Failed(f"{made} of {len(requests) * steps}")
        found["lost"] += lost
        found[name] = cost / len(requests), cost / 1e6 / wall if by is many else None

    run("store", (request for _, request in new))
    fetch = plain.forms(kind, "GET", "mg")[0]
    random.shuffle(names)
    run("fetch", (fetch.of(name) for name in names))
    if kind == ("1.3", "none"):
        # What it is at the most: each request by itself.
        alone = links.Links([store.port], 1)
        run("fetch alone", (fetch.of(name) for name in names[:OPERATIONS // 5]), by=alone)
        run("store alone", (request for _, request in new[:OPERATIONS // 5]), by=alone)
        alone.stop()
    if kind[0] == "1.3":
        take = once.forms(kind, "GETDEL", "mg")[0]
        # memcached has two steps of it.
        run("take", (take.of(name) for name in names), 1 if protocol == "redis" else 2)
    if protocol == "redis":
        store.tell("FLUSHALL SYNC")
        found["expire"] = expiry(bench, kind, store), None
    many.stop()
    store.stop()
    return found


def expiry(bench, kind, redis):
    """What it takes Redis to remove an entry whose time is over, less what it takes to be idle."""
    meter, began = Cpu(redis), time.monotonic()
    time.sleep(1)
    idle = meter.split() / (time.monotonic() - began)
    links.fill(redis.port, (request for _, request in
                            bench.requests("redis", kind, OPERATIONS, ttl=SHORT)))
    left = redis.keys()
    if not left:
        raise Failed("all had expired before they were counted")
    meter, began = Cpu(redis), time.monotonic()
    while redis.keys():
        # Each question costs as much as some removals.
        time.sleep(0.2)
    return (meter.split() - idle * (time.monotonic() - began)) / left


def fleet(bench):
    """Many sessions in many Redis: memory, spread and CPU, beside what is computed."""
    kind = ("1.3", "none")
    shards = [Redis(bench.work) for _ in range(SHARDS)]
    route = Rendezvous([redis.address() for redis in shards])
    empty = settled(lambda: [int(redis.info()["used_memory"]) for redis in shards])
    placed, batch = [[] for _ in shards], [[] for _ in shards]
    new = [[] for _ in shards]          # what is stored while they are asked
    for number, (name, request) in enumerate(
            bench.requests("redis", kind, SCALE + SHARDS * OPERATIONS // 4)):
        place = route.pick(name)
        if number >= SCALE:
            new[place].append(request)
            continue
        placed[place].append(name)
        batch[place].append(request)
        if len(batch[place]) == 10_000:
            links.fill(shards[place].port, batch[place])
            batch[place] = []
    for place, requests in enumerate(batch):
        links.fill(shards[place].port, requests)
        random.shuffle(placed[place])
    counts = [redis.keys() for redis in shards]
    # A worker has a link for lookups and one for stores to each.
    many = links.Links([redis.port for redis in shards], 2 * WORKERS)
    get = bench.sites["redis", ""].forms(kind, "GET")[0]

    def gets(names, number):
        return (get.of(name) for name in itertools.islice(itertools.cycle(names), number))
    # One of each link, so that its buffers are there.
    many.run([[gets(names, 2 * WORKERS)] for names in placed])
    used = settled(lambda: [int(redis.info()["used_memory"]) for redis in shards])
    asked = [[list(gets(names, len(stored))), stored] for names, stored in zip(placed, new)]
    meters = [Cpu(redis) for redis in shards]
    made, _, wall = many.run(asked)
    spent = sum(meter.split() for meter in meters) / 1e6
    many.stop()
    for redis in shards:
        redis.stop()
    # So many resumptions a second, for so long that there are as many sessions.
    rate = made / 2 / wall
    said = json.loads(builds.run([
        builds.run(["tools/build-cli"]).strip(), "size", "--json", "--rate", str(rate),
        "--lifetime", str(SCALE / rate), "--tls13", "1", "--resumed", "1", "--machines", "1",
        "--workers", str(WORKERS), "--shards", str(SHARDS)]))
    pairs = {
        "memory, MB": (sum(used) / 2**20, said["memory"] / 2**20),
        "memory of the largest shard, MB": (max(used) / 2**20, said["memory_of_shard"] / 2**20),
        "memory of the smallest shard, MB": (min(used) / 2**20, said["memory_of_shard"] / 2**20),
        # Nothing expires meanwhile.
        "operations/s of one CPU, of busy Redis": (
            made / spent, said["operations"] / (said["cpus"] - said["cpus_of_expiry"])),
        "the same, each operation alone": (
            made / spent, said["operations"] / (said["cpus_at_most"] - said["cpus_of_expiry"])),
    }
    expected = SCALE / SHARDS
    chi_square = sum((count - expected) ** 2 / expected for count in counts)
    print(f"{'':40}{'measured':>14}{'computed':>14}{'deviation':>11}")
    for name, (measured, computed) in pairs.items():
        print(f"{name:40}{measured:>14,.2f}{computed:>14,.2f}{measured / computed - 1:>11.1%}")
    print(f"{made / wall:,.0f} operations/s by the clock, Redis busy for {spent / wall:.0%} of it; "
          f"entries of a shard: {min(counts):,} to {max(counts):,}, mean {expected:,.0f}, "
          f"chi-square {chi_square:.1f} with {SHARDS - 1} degrees of freedom")
    return {
        "pairs": {name: [round(number, 3) for number in pair] for name, pair in pairs.items()},
        "entries": counts, "used": used, "empty": round(mean(empty)), "links": 2 * WORKERS * SHARDS,
        "operations": round(made / wall), "busy": round(spent / wall, 3),
        "most": max(counts), "least": min(counts), "chi_square": round(chi_square, 2),
    }
