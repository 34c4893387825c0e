"""Clients that forge, stores that fail, and what sealing takes."""

import json
import signal
import statistics
import time

from builds import run
from compare import compare
from handshakes import OWN_CACHE, Site
from processes import Load, Nginx, check_logs
from settings import (AGAIN, CROWD, FLOOD, OUTAGES, PATIENCE, PRESSED, ROUNDS, SEAL, SESSIONS,
                      VERSIONS, Failed)
from stores import Redis, both


def forged(built, work, _):
    """Handshakes that offer session IDs which nobody has issued, beside nginx's own cache."""
    redis = Redis(work)
    # These handshakes are full, and their sessions stored: what that costs is no cost of forgery.
    sites = {
        "nginx shared": Site(Nginx(work, built, OWN_CACHE, module=False)),
        f"nginx shared{AGAIN}": Site(Nginx(work, built, OWN_CACHE, module=False)),
        "redis": Site(Nginx(work, built, redis.backend()), stores=[redis]),
        "shared:": Site(Nginx(work, built, both("shared:tls:64m"))),
        "redis, nothing stored": Site(Nginx(work, built, redis.backend(store=False)),
                                      stores=[redis]),
    }
    results = []
    for version in VERSIONS:
        loads = {name: site.primed(version, 16, full=True) for name, site in sites.items()}
        results += compare({"build": built.name, "tls": version}, loads, "nginx shared",
                           lambda load: load.go("forged", FLOOD, CROWD, cpu=True),
                           [(redis.lookups, [])], saturated=True)
        for load in loads.values():
            load.stop()
    check_logs(site.server for site in sites.values())
    return results


def sealing(built, _work, _):
    """What sealing takes itself, in nanoseconds."""
    return [{"build": built.name} | json.loads(run([SEAL, str(ROUNDS)]))]


def outage(built, work, _):
    """Handshakes of clients that all offer sessions while Redis hangs, or is gone."""
    results = []
    for version in VERSIONS:
        redis = Redis(work)
        plain = Nginx(work, built, "", module=False)
        server = Nginx(work, built, both(f"redis://{redis.address()}"))
        base, load = (Load(one, version, full=True) for one in (plain, server))
        base.go("prime", 16)
        load.go("prime", SESSIONS)
        rows = {"hung": [], "killed": []}
        for _ in range(OUTAGES):
            for what, runs in rows.items():
                own = [base.go("full", PRESSED // 2, CROWD, cpu=True)]
                server.rest()
                server.forget_errors()
                redis.signal(signal.SIGSTOP if what == "hung" else signal.SIGKILL)
                broken = load.go("press", PRESSED, CROWD, cpu=True)
                lines = server.errors().splitlines()
                # What a busy machine does to one it may do to the other: before and after.
                own.append(base.go("full", PRESSED // 2, CROWD, cpu=True))
                if what == "hung":
                    redis.signal(signal.SIGCONT)
                else:
                    redis = redis.again()
                first = back(server, load, what == "killed")
                load.ask("forget")
                load.go("prime", SESSIONS)
                own_cpu, cpu = sum(o["cpu_ns"][0] for o in own), broken["cpu_ns"][0]
                runs.append((own, broken, len(lines), first, own_cpu / cpu))
        for what, runs in rows.items():
            rate = [sum(o["wall_ns"] for o in own) / broken["wall_ns"]
                    for own, broken, _, _, _ in runs]
            late = {p: [(b[p] - statistics.mean(o[p] for o in own)) / 1000
                        for own, b, _, _, _ in runs] for p in ("p50_us", "p99_us")}
            results.append({
                "build": built.name, "tls": version, "what": what, "runs": len(runs),
                "per_second": round(statistics.median(
                    PRESSED / (b["wall_ns"] / 1e9) for _, b, _, _, _ in runs)),
                "rate": round(statistics.median(rate), 3), "rate_min": round(min(rate), 3),
                "rate_max": round(max(rate), 3),
                "p50_more_ms": round(statistics.median(late["p50_us"]), 2),
                "p99_more_ms": round(statistics.median(late["p99_us"]), 2),
                "cpu": round(statistics.median(c for _, _, _, _, c in runs), 3),
                "cpu_min": round(min(c for _, _, _, _, c in runs), 3),
                "cpu_max": round(max(c for _, _, _, _, c in runs), 3),
                "log_lines": max(lines for _, _, lines, _, _ in runs),
                "first_hit_ms": round(statistics.median(f for _, _, _, f, _ in runs) * 1000),
                "first_hit_ms_max": round(max(f for _, _, _, f, _ in runs) * 1000),
            })
        for one in (base, load, plain, server, redis):
            one.stop()
    return results


def back(server, load, empty):
    """Seconds until a session is resumed again."""
    began = time.monotonic()
    server.forget_errors()
    while True:
        # What is offered must be in Redis to be a hit: a killed one has lost everything.
        if empty:
            load.ask("forget")
            load.go("prime", 1)
        if load.go("press", 1, 1)["resumed"]:
            return time.monotonic() - began
        if time.monotonic() > began + PATIENCE:
            raise Failed("no hit after the outage")
