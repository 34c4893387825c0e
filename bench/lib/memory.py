"""Memory of handshakes that wait for a store."""

import statistics

from processes import MEMORY, Load, Nginx, check_logs, wait
from settings import HELD, HOLDS, VERSIONS, Failed
from stores import Redis, Silent

# With half a record OpenSSL keeps a read buffer of 16 KB; with whole records it keeps none.
HELLOS = {"no module, half a ClientHello": (False, "half"),
          "no module, half a ClientHello in a record": (False, "record"),
          "module, half a ClientHello": (True, "half"),
          "module, suspended": (True, "whole")}
OWN = "no module, half a ClientHello in a record"
SUSPENDED = "module, suspended"


def memory(built, work, reduced):
    """Memory of a handshake that waits for a store that says nothing."""
    redis = Redis(work)
    # The sessions that are offered come from one nginx; each measurement is of a fresh one.
    maker = Nginx(work, built, redis.backend())
    results = []
    for version in VERSIONS:
        load = Load(maker, version)
        # As many as are held: lookups of one session would be one request.
        load.go("prime", HELD)
        samples = {name: [] for name in HELLOS}
        for _ in range(1 if reduced else HOLDS):
            for name, growths in samples.items():
                growths.append(hold(built, work, load, *HELLOS[name]))
        load.stop()
        # The dearer comparison of the two.
        own = samples[OWN]
        for name, growths in samples.items():
            result = {"build": built.name, "tls": version, "what": name, "handshakes": HELD}
            for kind in MEMORY:
                more = [g[kind] - o[kind] for g, o in zip(growths, own)]
                result[kind] = round(statistics.median(g[kind] for g in growths))
                result[kind + "_more"] = round(statistics.median(more))
                result[kind + "_more_min"] = round(min(more))
                result[kind + "_more_max"] = round(max(more))
            results.append(result)
    check_logs([maker])
    return results


def hold(built, work, load, module, part):
    """Bytes per handshake by which a worker grows over HELD of them."""
    held = Held(built, work, load, module)
    growth = held.grow(HELD, part)
    check_logs([held.server])
    load.ask("release")
    held.stop()
    return growth


class Held:
    """A server of which handshakes are suspended, or have come half."""

    def __init__(self, built, work, load, module):
        self.load, self.module = load, module
        self.silent = Silent()
        self.server = Nginx(work, built, f"""
            ssl_session_backend fleet {{
                server 127.0.0.1:{self.silent.port}; fetch_timeout 600s; queue 20000;
            }}
            ssl_session_fetch fleet; ssl_session_store off;""" if module else "", module=module)
        self.before = self.server.memory()

    def grow(self, n, part):
        lookups = n if self.module and part == "whole" else 0
        self.load.to(self.server)
        self.load.ask("hold", n, part)
        wait("all connections accepted", lambda: self.server.sockets() >= n)
        wait("all lookups asked for", lambda: self.silent.gets >= lookups)
        self.server.rest()
        after = self.server.memory()
        if self.silent.gets != lookups:
            raise Failed(f"{self.silent.gets} lookups for {n} handshakes, not {lookups}")
        if self.server.sockets() < n:
            raise Failed("the server has closed connections")
        return {kind: (after[kind] - self.before[kind]) / n for kind in after}

    def stop(self):
        self.server.stop()
        self.silent.stop()
