"""How the cost of a handshake grows with what there is."""

from compare import compare
from handshakes import Site
from memory import Held
from processes import Load, Nginx, check_logs, stop_all, wait
from settings import (BLOCKS, CROWD, FEW_ROUNDS, FULL_SLICE, MORE_PAIRS, SAMPLE, SERVERS, SESSIONS,
                      SLICE, STORED, SUSPENDED, ZONE, Failed)
from stores import Redis, backend, both


def growth(built, work, _):
    results = []
    for part in (sessions, servers, blocks, suspended):
        results += part(built, work)
        stop_all()
    return results


def resume(load):
    return load.go("resume", SLICE[CROWD, load.version], CROWD, cpu=True)


def sessions(built, work):
    """Sessions in the store. TLS 1.3 fills it and 1.2 is measured, which adds none."""
    redis = Redis(work)
    sites = {
        "nginx shared": Site(Nginx(work, built, f"ssl_session_cache shared:own:{ZONE};",
                                   module=False)),
        "shared:": Site(Nginx(work, built, both(f"shared:tls:{ZONE}"))),
        "redis": Site(Nginx(work, built, redis.backend()), stores=[redis]),
    }
    loads = {name: site.load("1.2") for name, site in sites.items()}
    fillers = {name: Load(site.server, "1.3", "fill") for name, site in sites.items()}
    stored, sample = 0, 0
    results = []
    for n in STORED:
        more = min(n // 2, SAMPLE) - sample
        sample += more
        handshakes = (n - stored - more) // 100
        stored = n
        for name, load in loads.items():
            load.go("prime", more)
            fillers[name].go("full", handshakes, 16)
            # None of them has given way to others.
            load.go("resume", sample, CROWD)
        wait(f"{n} sessions in redis", lambda n=n: redis.keys() == n)
        results += compare({"build": built.name, "what": "sessions", "tls": "1.2", "n": n}, loads,
                           "nginx shared", resume, [(redis.hits, ["redis"])], FEW_ROUNDS,
                           saturated=True)
    check_logs(site.server for site in sites.values())
    return results


def servers(built, work):
    """Servers of the backend."""
    fleet = [Redis(work) for _ in range(max(SERVERS))]
    loads = {}
    for n in SERVERS:
        text = backend([redis.address() for redis in fleet[:n]])
        site = Site(Nginx(work, built, text), Nginx(work, built, text), fleet[:n])
        loads[n] = site.primed("1.2", SESSIONS)
    return along("servers", built, loads,
                 [(lambda: sum(redis.hits() for redis in fleet), list(loads))])


def blocks(built, work):
    """server{} blocks; the host of the last one is asked for."""
    redis = Redis(work)
    loads = {}
    for n in BLOCKS:
        server, primer = (Nginx(work, built, redis.backend(), blocks=n) for _ in range(2))
        loads[n] = Site(server, primer, [redis]).load("1.2")
        loads[n].ask("name", f"host-{n - 1}.example")
        loads[n].prime(SESSIONS, primer)
    return along("blocks", built, loads, [(redis.hits, list(loads))])


def along(what, built, loads, hits):
    rows = compare({"build": built.name, "what": what, "tls": "1.2"}, loads, min(loads), resume,
                   hits, MORE_PAIRS, saturated=True)
    check_logs(load.server for load in loads.values())
    return [row | {"n": row["sessions"], "sessions": "redis"} for row in rows]


def suspended(built, work):
    """Handshakes that wait for a store while others are made, and that all end in the end."""
    redis = Redis(work)
    maker = Nginx(work, built, redis.backend())
    results = []
    for n in SUSPENDED:
        load = Load(maker, "1.3")
        # As many as wait: lookups of one session would be one request.
        load.to(maker, "fill")
        load.go("prime", max(1, n // 100))
        plain = Held(built, work, load, False)
        own = plain.grow(n, "record")
        load.ask("release")
        plain.stop()

        # Full handshakes of others, beside those of a server on which nothing waits.
        held, idle = Held(built, work, load, True), Held(built, work, load, True)
        grown = held.grow(n, "whole")
        others = {"waiting": Load(held.server, "1.3"), "idle": Load(idle.server, "1.3")}
        compared = compare({}, others, "idle",
                           lambda one: one.go("full", FULL_SLICE, 16, cpu=True),
                           [(lambda silent=held.silent: silent.gets, [])], FEW_ROUNDS)
        row = next(row for row in compared if row["sessions"] == "waiting")
        held.silent.answer()
        answer = load.go("finish", "full", f"pids={held.server.worker}")
        if answer["handshakes"] != n:
            raise Failed(f"{answer['handshakes']} of {n} suspended handshakes came to their end")
        check_logs([held.server, idle.server])
        results.append({
            "build": built.name, "what": "suspended", "tls": "1.3", "n": n,
            "bytes": round(grown["uss"]), "own_bytes": round(own["uss"]),
            "more_bytes": round(grown["uss"] - own["uss"]),
            "finished": answer["handshakes"],
            "finish_us": round(answer["cpu_ns"][0] / n / 1000, 2),
        } | {key: row[key] for key in ("sessions", "base", "saturated", "sets")})
        for one in (load, *others.values(), held, idle):
            one.stop()
    return results
