"""Memory of sessions in stores."""

import itertools
import json
import resource
import time

import builds
import entries
import links
from entries import KINDS
from makers import mean, table
from processes import Nginx, free_port, wait
from settings import Failed, size
from stores import Memcached, Redis, both

FILLS = size((10**3, 10**4, 10**5, 10**6, 1_100_000), (100, 1000, 1100))
SCALE = size(10**6, 1000)               # the one that counts
SAMPLE = size(1000, 50)
ZONE = size("4m", "64k")
LINKS = size(1000, 50)
MEGABYTES = size(4096, 64)              # of memcached


def settled(read):
    """What is read when it is twice the same: tables have been moved by then."""
    last = [None]

    def same():
        before, last[0] = last[0], read()
        time.sleep(0.3)
        return last[0] == before
    wait("the store at rest", same)
    return last[0]


def redis(bench):
    """used_memory of entries by how many there are, and MEMORY USAGE."""
    results, empties, resident = {}, [], []

    def measure(kind):
        store = Redis(bench.work)
        empty = settled(lambda: int(store.info()["used_memory"]))
        empties.append(empty)
        requests = bench.requests("redis", kind, FILLS[-1])
        each, held, usage = {}, 0, []
        for count in FILLS:
            names = []

            def taken(count=count, held=held, names=names):
                for key, request in itertools.islice(requests, count - held):
                    if len(names) < SAMPLE:
                        names.append(key.decode())
                    yield request
            held += links.fill(store.port, taken())
            used = settled(lambda: int(store.info()["used_memory"]))
            if store.keys() != count:
                raise Failed(f"{store.keys()} of {count} entries")
            each[str(count)] = round((used - empty) / count, 1)
            if count == SCALE:
                usage = [int(store.tell(f"MEMORY USAGE {name}").split("\r\n", maxsplit=1)[0][1:])
                         for name in names]
                info = store.info()
                resident.append(int(info["used_memory_rss"]) / int(info["used_memory"]))
        store.stop()
        results[kind] = {"each": each, "usage": round(mean(usage), 1)}
        print(f"  redis, TLS {kind[0]}, {kind[1]}: {results[kind]}", flush=True)
        return results[kind]
    return {"of": table(KINDS, measure), "empty": round(mean(empties)),
            "resident": round(mean(resident), 3), "link": link(bench)}


def link(bench):
    """What a connection to Redis takes when it is in use, and when it was idle for some seconds."""
    store = Redis(bench.work)
    store.tell(f"CONFIG SET maxclients {LINKS + 100}")
    kind = KINDS[-1]
    stored = list(bench.requests("redis", kind, LINKS))
    links.fill(store.port, (request for _, request in stored))
    get = bench.sites["redis", ""].forms(kind, "GET")[0]
    before = settled(lambda: int(store.info()["used_memory"]))
    many = links.Links([store.port], LINKS)
    many.run([[[get.of(name) for name, _ in stored]]])
    most = int(store.info()["used_memory"])
    time.sleep(5)
    least = settled(lambda: int(store.info()["used_memory"]))
    many.stop()
    store.stop()
    return {"used": round((most - before) / LINKS), "idle": round((least - before) / LINKS)}


def memcached(bench):
    """The same of memcached: items, their chunks, what its slabs take."""
    empty = []

    def measure(kind):
        store = Memcached(memory=MEGABYTES)
        was = rss(store)
        empty.append(was)
        requests = (request for _, request in bench.requests("memcached", kind, FILLS[-1]))
        figures, held = {"each": {}}, 0
        for count in FILLS:
            held += links.fill(store.port, itertools.islice(requests, count - held))
            slabs = store.stats("slabs")
            stats = store.stats()
            if int(stats["curr_items"]) != count:
                raise Failed(f"{stats['curr_items']} of {count} entries")
            figures["each"][str(count)] = round(int(slabs["total_malloced"]) / count, 1)
            if count == SCALE:
                # Of the class that has most of them.
                used = {int(slabs[name.replace("chunk_size", "used_chunks")]): int(number)
                        for name, number in slabs.items() if name.endswith(":chunk_size")}
                item = int(stats["bytes"]) / count
                chunk = used[max(used)]
                figures |= {"item": round(item, 1), "chunk": chunk,
                            "waste": round(1 - item / chunk, 3),
                            "table": round(int(stats["hash_bytes"]) / count, 1),
                            "resident": round((rss(store) - was) / count, 1)}
        store.stop()
        print(f"  memcached, TLS {kind[0]}, {kind[1]}: {figures}", flush=True)
        return figures
    return {"of": table(KINDS, measure), "empty": round(mean(empty))}


def rss(process):
    with open(f"/proc/{process.pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def zone(bench):
    """Bytes of a zone for each session in it, when it is full."""
    def measure(kind):
        shown = free_port()
        page = f"server {{ listen 127.0.0.1:{shown}; location / {{ ssl_session_status; }} }}"
        nginx = Nginx(bench.work, bench.built, both(f"shared:tls:{ZONE}") + page,
                      server=entries.verifies(bench.work))
        client = entries.Client(bench.work, *kind)
        # A hundred tickets in a handshake.
        port = nginx.ports["fill" if kind[0] == "1.3" else "ecdsa"]
        while True:
            for _ in range(50 if kind[0] == "1.2" else 1):
                client.visit(port)
            tier = json.loads(builds.run(["curl", "-fsS", "--noproxy", "*",
                                          f"http://127.0.0.1:{shown}/?format=json"]))["tiers"][0]
            if tier["evictions"]:
                break
        nginx.stop()
        held = tier["stores"] - tier["evictions"]
        kilobytes = int(ZONE[:-1]) * (1024 if ZONE[-1] == "m" else 1)
        return round(kilobytes * 1024 / held, 1)
    return {"of": table(KINDS, measure), "zone": ZONE}
