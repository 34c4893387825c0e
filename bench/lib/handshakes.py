"""Parts that make handshakes with all kinds of configurations."""

import os
import re
import shutil
import signal
import statistics
import subprocess

from compare import compare
from processes import Load, Nginx, Process, check_logs, wait
from settings import (AGAIN, ALONE, CERTIFICATES, CROWD, FEW_ROUNDS, FULL_SLICE, LOAD_CPU, LOADS,
                      LOOKUPS, MANY_PAIRS, PATIENCE, RECONNECTS, SCHEDULE, SESSIONS, SLICE, TRACED, VERSIONS,
                      Failed)
from stores import Memcached, Redis, both

REDUCED = ("nginx shared", "shared:", "redis")
WITH_CONTROL = (*REDUCED, f"nginx shared{AGAIN}")
OWN_TICKETS = "nginx tickets"
TICKET_KEYS = "ticket keys"
TICKET_KEYS_ALONE = "ticket keys alone"
OWN_CACHE = "ssl_session_cache shared:own:64m;"


class Site:
    """A server, the one that its sessions are made on, and the stores between them."""

    def __init__(self, server, primer=None, stores=()):
        self.server, self.primer, self.stores = server, primer, stores

    def load(self, version, port="ecdsa", full=False):
        return Load(self.server, version, port, self.stores, full)

    def primed(self, version, n, port="ecdsa", full=False):
        load = self.load(version, port, full)
        load.prime(n, self.primer, port)
        return load


class Sites:
    """All configurations that are wanted, by name."""

    def __init__(self, built, work, names=None):
        self.redis = redis = Redis(work)
        self.memcached = memcached = None
        if names is None or "memcached" in names:
            self.memcached = memcached = Memcached()

        def own(*args, **how):
            return lambda: Site(Nginx(work, built, *args, **how))

        primer = Nginx(work, built, redis.backend())

        def remote(text, by=None, store=redis):
            return lambda: Site(Nginx(work, built, text), by or primer, [store])

        makers = {
            "nginx shared": own(OWN_CACHE, module=False),
            f"nginx shared{AGAIN}": own(OWN_CACHE, module=False),
            OWN_TICKETS: own("", module=False, tickets=True),
            "shared:": own(both("shared:tls:64m")),
            "redis": remote(redis.backend()),
            "redis, unix socket": remote(redis.backend_unix()),
            "redis, TLS": remote(redis.backend_tls()),
            "redis, not sealed": lambda: self.not_sealed(built, work),
            "shared:, redis": remote(redis.backend(tiers="shared:tls:64m")),
        }
        if memcached:
            makers["memcached"] = lambda: remote(
                memcached.backend(), Nginx(work, built, memcached.backend()), memcached)()
        if names:
            makers |= {f"{OWN_TICKETS}{AGAIN}": makers[OWN_TICKETS],
                       TICKET_KEYS: lambda: self.ticket_keys(built, work, Redis.backend),
                       TICKET_KEYS_ALONE: lambda: self.ticket_keys(built, work, Redis.block)}
        self.all = {name: make() for name, make in makers.items()
                    if names is None or name in names}
        for site in self.all.values():
            # ssl_session_key says that it is off.
            site.server.forget_errors()

    def not_sealed(self, built, work):
        text = "ssl_session_key off; " + self.redis.backend()
        primer, server = Nginx(work, built, text), Nginx(work, built, text)
        primer.forget_errors()
        return Site(server, primer, [self.redis])

    def ticket_keys(self, built, work, backend):
        # Of its own: servers ask for keys by themselves, and hits are counted.
        redis = Redis(work)
        text = backend(redis) + " ssl_session_ticket_keys fleet;"
        primer = Nginx(work, built, text, tickets=True)
        wait("ticket keys", lambda: not redis.tell("DBSIZE").startswith(":0"))
        heard = redis.hits()
        server = Nginx(work, built, text, tickets=True)
        wait("ticket keys", lambda: redis.hits() > heard)
        return Site(server, primer, [redis])

    def hits(self):
        """What compare() has to see: a local tier has all that was looked up once."""
        asked = [name for name in self.all if name.startswith("redis")]
        counters = [(self.redis.hits, asked)]
        if self.memcached:
            counters.append((self.memcached.hits, ["memcached"]))
        return counters

    def check_logs(self):
        check_logs({one for site in self.all.values() for one in (site.server, site.primer) if one})


def resumed(built, work, reduced):
    """Resumed handshakes; with a remote store, of sessions that another nginx has made."""
    sites = Sites(built, work, WITH_CONTROL if reduced else None)
    results = []
    for version in VERSIONS:
        loads = {name: site.primed(version, SESSIONS) for name, site in sites.all.items()}
        for load in loads.values():
            load.go("resume", max(SESSIONS, load.ask("prime", 0)["sessions"]), CROWD)
        for clients in (ALONE, CROWD):
            results += compare(
                {"build": built.name, "certificate": "ecdsa", "tls": version, "clients": clients},
                loads, "nginx shared",
                lambda load, n=clients: load.go("resume", SLICE[n, load.version], n, cpu=True),
                sites.hits(), saturated=clients > ALONE)
        for load in loads.values():
            load.stop()
    sites.check_logs()
    return results


def many(built, work, _):
    """The rows that targets are about, in more sets of processes and more pairs of each, judged by the
    fastest tenth of the slices, so that their intervals are narrow: resumed handshakes, and full
    ones with ECDSA, of 64 clients."""
    sites = Sites(built, work, WITH_CONTROL)
    redis = sites.redis
    rest = {
        "no module": Site(Nginx(work, built, "", module=False)),
        f"no module{AGAIN}": Site(Nginx(work, built, "", module=False)),
        "redis": Site(sites.all["redis"].server, stores=[redis]),
    }
    results = []
    for version in VERSIONS:
        labels = {"build": built.name, "certificate": "ecdsa", "tls": version, "clients": CROWD,
                  "by": "fast"}
        loads = {name: site.primed(version, SESSIONS) for name, site in sites.all.items()}
        for load in loads.values():
            load.go("resume", max(SESSIONS, load.ask("prime", 0)["sessions"]), CROWD)
        results += compare(
            labels | {"what": "resumed"}, loads, "nginx shared",
            lambda load: load.go("resume", SLICE[CROWD, load.version], CROWD, cpu=True),
            sites.hits(), MANY_PAIRS, saturated=True)
        for load in loads.values():
            load.stop()
        loads = {name: site.load(version, full=True) for name, site in rest.items()}
        results += compare(
            labels | {"what": "full"}, loads, "no module",
            lambda load: load.go("full", FULL_SLICE, CROWD, cpu=True), [(redis.lookups, [])],
            MANY_PAIRS, saturated=True)
        for load in loads.values():
            load.stop()
    sites.check_logs()
    check_logs(site.server for site in rest.values())
    return results


def together(built, work, _):
    """Clients that come with one session at the same time, beside such that each have their own."""
    redis = Redis(work)
    server, primer = (Nginx(work, built, redis.backend()) for _ in range(2))
    results = []
    for version in VERSIONS:
        loads = {f"{n} session{'s' * (n > 1)}": Site(server, primer, [redis]).primed(version, n)
                 for n in (SESSIONS, 1)}
        asked, made = (dict.fromkeys(loads.values(), 0) for _ in range(2))

        def go(load, asked=asked, made=made):
            before = redis.hits()
            answer = load.go("resume", SLICE[CROWD, load.version], CROWD, cpu=True)
            asked[load] += redis.hits() - before
            made[load] += answer["handshakes"]
            return answer

        many, _ = loads
        for row in compare({"build": built.name, "tls": version, "clients": CROWD}, loads, many, go,
                           saturated=True):
            load = loads[row["sessions"]]
            results.append(row | {"lookups": round(asked[load] / made[load], 3)})
        for load in loads.values():
            load.stop()
    check_logs([server, primer])
    return results


def full(built, work, reduced):
    """Full handshakes: without the module, with it, and with it at work."""
    redis = Redis(work)
    sites = {
        "no module": Site(Nginx(work, built, "", module=False)),
        f"no module{AGAIN}": Site(Nginx(work, built, "", module=False)),
        "module, idle": Site(Nginx(work, built, "")),
        "redis": Site(Nginx(work, built, redis.backend()), stores=[redis]),
        "shared:": Site(Nginx(work, built, both("shared:tls:64m"))),
        "nginx shared": Site(Nginx(work, built, OWN_CACHE, module=False)),
    }
    results = []
    for certificate in CERTIFICATES[:1] if reduced else CERTIFICATES:
        for version in VERSIONS:
            loads = {name: site.load(version, certificate, full=True)
                     for name, site in sites.items()}
            results += compare(
                {"build": built.name, "certificate": certificate, "tls": version,
                 "clients": CROWD},
                loads, "no module",
                lambda load: load.go("full", FULL_SLICE, CROWD, cpu=True),
                [(redis.lookups, [])], saturated=True)
            for load in loads.values():
                load.stop()
    check_logs(site.server for site in sites.values())
    return results


def early(built, work, _):
    """Handshakes whose request comes in early data: nginx's way, and that without replay."""
    redis = Redis(work)
    on = "ssl_early_data on;"
    once = redis.backend(fetch="single_use")

    # The connection outlives the answer, or there would be no ticket.
    def tickets():
        return Site(Nginx(work, built, on, module=False, tickets=True, keepalive=PATIENCE))

    sites = {
        OWN_TICKETS: tickets(),
        f"{OWN_TICKETS}{AGAIN}": tickets(),
        "redis, single_use": Site(Nginx(work, built, once + on, keepalive=PATIENCE),
                                  Nginx(work, built, once + on, keepalive=PATIENCE), [redis]),
    }
    results = []
    for clients in (ALONE, CROWD):
        # Each ticket is good for once; the next handshake offers one that the last has brought.
        loads = {name: site.primed("1.3", SESSIONS) for name, site in sites.items()}

        def go(load, n=clients):
            what = "early-once" if load.server is sites["redis, single_use"].server else "early"
            answer = load.go(what, SLICE[n, "1.3"], n, cpu=True)
            if answer["early"] != answer["handshakes"]:
                raise Failed(f"early data was not accepted: {answer}")
            return answer

        results += compare(
            {"build": built.name, "certificate": "ecdsa", "tls": "1.3", "clients": clients},
            loads, OWN_TICKETS, go, [(redis.hits, ["redis, single_use"])],
            saturated=clients > ALONE)
        for load in loads.values():
            load.stop()
    check_logs(one for site in sites.values() for one in (site.server, site.primer) if one)
    return results


def schedule(built, work, _):
    """Latency of resumed handshakes that come at a fixed rate, whatever has become of others."""
    sites = Sites(built, work, WITH_CONTROL)
    results = []
    for version in VERSIONS:
        loads = {name: site.primed(version, SESSIONS) for name, site in sites.all.items()}
        most = statistics.median(
            answer["handshakes"] / (answer["wall_ns"] / 1e9) for answer in (
                loads["nginx shared"].go("resume", SLICE[CROWD, version], CROWD) for _ in range(5)))
        for part in LOADS:
            behind = dict.fromkeys(loads, 0)
            rate = round(most * part)

            def go(load, rate=rate, behind=behind):
                answer = load.go("resume", f"{SCHEDULE}s", 0, f"rate={rate}", cpu=True)
                name = next(name for name, one in loads.items() if one is load)
                behind[name] = max(behind[name], answer["behind_us"])
                return answer

            for row in compare(
                    {"build": built.name, "certificate": "ecdsa", "tls": version, "part": part,
                     "per_second": rate},
                    loads, "nginx shared", go, sites.hits(), FEW_ROUNDS, merged=True):
                results.append(row | {"behind_us": behind[row["sessions"]]})
        for load in loads.values():
            load.stop()
    sites.check_logs()
    return results


def lookup(built, work, _):
    """How long lookups take on the loopback, as $ssl_session_fetch_time says it."""
    redis = Redis(work)
    site = Site(Nginx(work, built, redis.backend(), log=True), Nginx(work, built, redis.backend()))
    results = []
    for version in VERSIONS:
        load = site.primed(version, SESSIONS)
        load.go("request", SESSIONS, CROWD)
        for clients in (ALONE, CROWD):
            site.server.rest()
            site.server.forget_log()
            load.go("request", LOOKUPS, clients)
            lines = site.server.log_lines(LOOKUPS)
            misses = [line for line in lines if not line.startswith("HIT ")]
            if misses or len(lines) != LOOKUPS:
                raise Failed(f"{len(lines)} lookups, {len(misses)} not a HIT: {misses[:3]}")
            times = sorted(float(line.split()[1]) * 1e6 for line in lines)
            results.append({
                "build": built.name, "tls": version, "clients": clients, "lookups": len(times),
                "p50_us": percentile(times, 50), "p99_us": percentile(times, 99),
                "max_us": round(times[-1]),
            })
        load.stop()
    check_logs([site.server])
    return results


def percentile(ordered, percent):
    return round(ordered[max(0, -(-len(ordered) * percent // 100) - 1)])


def reconnect(built, work, _):
    """Worker CPU of a connection to Redis that has to be made anew."""
    redis = Redis(work)
    sites = {name: Site(Nginx(work, built, text), stores=[redis]) for name, text in {
        "redis": redis.backend(),
        "redis, TLS": redis.backend_tls("ssl_session_reuse on;"),
        "redis, TLS, no session reuse": redis.backend_tls("ssl_session_reuse off;"),
    }.items()}
    results = []
    for version in VERSIONS:
        loads = {name: site.primed(version, 16) for name, site in sites.items()}
        costs = {name: [] for name in loads}
        # Handshakes of a client alone, and such that find the links to Redis closed.
        for _ in range(FEW_ROUNDS):
            for name, load in loads.items():
                spent = []
                for drop in (False, True):
                    before = load.server.busy()
                    for _ in range(RECONNECTS):
                        if drop:
                            redis.drop_links()
                        load.go("resume", 1, 1, cpu=True)
                    spent.append(load.server.busy() - before)
                costs[name].append((spent[1] - spent[0]) / RECONNECTS / 1000)
        for name, load in loads.items():
            results.append({"build": built.name, "tls": version, "sessions": name,
                            "rounds": FEW_ROUNDS} | spread("us", costs[name], 1))
            load.stop()
    check_logs(site.server for site in sites.values())
    return results


def spread(name, values, digits=2):
    return {name: round(statistics.median(values), digits),
            f"{name}_min": round(min(values), digits), f"{name}_max": round(max(values), digits)}


def syscalls(built, work, _):
    """System calls of the worker for a resumed handshake: what no noise changes."""
    if not shutil.which("strace"):
        raise Failed("no strace here")
    sites = Sites(built, work)
    results = []
    for version in VERSIONS:
        for name, site in sites.all.items():
            if name.endswith(AGAIN):
                continue
            load = site.primed(version, SESSIONS)
            n = TRACED or max(SESSIONS, load.ask("prime", 0)["sessions"])
            for clients in (ALONE, CROWD):
                load.go("resume", n, clients, cpu=True)
                file = os.path.join(work, "strace")
                trace = Process(["strace", "-c", "-f", "-p", str(site.server.worker), "-o", file],
                                LOAD_CPU, stderr=subprocess.DEVNULL)
                wait("strace", site.server.is_traced)
                load.go("resume", n, clients, cpu=True)
                trace.process.send_signal(signal.SIGINT)
                trace.process.wait(PATIENCE)
                with open(file, encoding="ascii") as lines:
                    calls = re.findall(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?([a-z]\w+)$",
                                       lines.read(), re.M)
                calls = {call: round(int(made) / n, 2) for made, call in calls
                         if call != "total"}
                results.append({"build": built.name, "tls": version, "clients": clients,
                                "sessions": name, "calls": calls})
            load.stop()
    return results
