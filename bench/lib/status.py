"""What it costs to count, and to ask for what was counted."""

import http.client
import re
import threading
import time

from compare import compare
from handshakes import Site, percentile
from processes import Nginx, check_logs, free_port, wait
from settings import (AGAIN, CROWD, MORE_PAIRS, PACE, PATIENCE, SCRAPES, SESSIONS, SHOWN, SLICE,
                      STREAM, VERSIONS, Failed)
from stores import Redis, backend

FORMATS = ("prometheus", "json")
HOSTS = 13                              # that a redis-server listens on


def status(built, work, _):
    return counting(built, work) + scrapes(built, work)


def page(port):
    return (f"server {{ listen 127.0.0.1:{port}; keepalive_timeout 1h; keepalive_requests 1000000; "
            "location / { ssl_session_status; } }")


def counting(built, work):
    """Resumed handshakes with and without counters."""
    redis = Redis(work)
    sites = {
        "not counted": Site(Nginx(work, built, redis.backend()), stores=[redis]),
        f"not counted{AGAIN}": Site(Nginx(work, built, redis.backend()), stores=[redis]),
        "counted": Site(Nginx(work, built, redis.backend() + page(free_port())), stores=[redis]),
    }
    results = []
    for version in VERSIONS:
        loads = {name: site.primed(version, SESSIONS) for name, site in sites.items()}
        results += compare(
            {"build": built.name, "what": "counting", "tls": version, "clients": CROWD}, loads,
            "not counted",
            lambda load, version=version: load.go("resume", SLICE[CROWD, version], CROWD, cpu=True),
            [(redis.hits, list(loads))], MORE_PAIRS, saturated=True)
        for load in loads.values():
            load.stop()
    check_logs(site.server for site in sites.values())
    return results


class Scraper:
    """Asks for the page, as Prometheus does."""

    def __init__(self, port, form):
        self.link = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self.path = f"/?format={form}"
        self.times = []

    def ask(self):
        began = time.monotonic()
        self.link.request("GET", self.path)
        answer = self.link.getresponse()
        text = answer.read().decode()
        self.times.append((time.monotonic() - began) * 1e6)
        if answer.status != 200:
            raise Failed(f"{self.path}: {answer.status}")
        return text

    def row(self):
        ordered = sorted(self.times)
        return {"scrapes": len(ordered), "p50_us": percentile(ordered, 50),
                "p99_us": percentile(ordered, 99), "max_us": round(ordered[-1])}


def scrapes(built, work):
    """The page of four targets and so many servers, of a worker at rest, and of one at work."""
    fleets = [Redis(work, hosts=HOSTS) for _ in range(-(-SHOWN // HOSTS))]
    addresses = [address for redis in fleets for address in redis.addresses()][:SHOWN]
    half = SHOWN // 2
    port = free_port()
    text = "".join(backend(some, fetch="").replace("fleet", name).split("ssl_session_fetch")[0]
                   for name, some in (("one", addresses[:half]), ("two", addresses[half:])))
    targets = "shared:near:16m shared:far:16m one two"
    server = Nginx(work, built, f"{text} ssl_session_fetch {targets}; ssl_session_store {targets};"
                   + page(port))
    load = Site(server, stores=fleets).load("1.2")
    load.go("prime", SESSIONS)

    def shown(form="prometheus"):
        return len(set(re.findall(r'^nginx_ssl_session_server_requests_total(\{.*?\})',
                                  Scraper(port, form).ask(), re.M)))
    wait(f"{SHOWN} servers on the page", lambda: shown() == SHOWN)
    results = []
    for form in FORMATS:
        scraper = Scraper(port, form)
        size = len(scraper.ask())
        scraper.times.clear()
        before = server.busy()
        for _ in range(SCRAPES):
            scraper.ask()
        cpu = (server.busy() - before) / SCRAPES / 1000
        results.append({"build": built.name, "what": "scrapes", "format": form, "per_second": 0,
                        "bytes": size, "cpu_us": round(cpu, 1)} | scraper.row())
    results.append({"build": built.name, "what": "scrapes", "format": FORMATS[0]}
                   | at_work(server, load, port))
    check_logs([server])
    return results


def at_work(server, load, port):
    """The page while handshakes come at a fixed rate, of which none may be lost."""
    def counted():
        text = Scraper(port, FORMATS[0]).ask()
        numbers = re.findall(r'_handshakes_total\{.*result="resumed"\} (\d+)$', text, re.M)
        return sum(map(int, numbers)), len(text)

    scraper = Scraper(port, FORMATS[0])
    over = threading.Event()

    def scrape():
        while not over.is_set():
            scraper.ask()
            over.wait(0.02)

    before, _ = counted()
    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        answer = load.go("resume", f"{STREAM}s", 0, f"rate={PACE}", cpu=True)
    finally:
        over.set()
        thread.join()
    server.rest()
    after, size = counted()
    if after - before != answer["handshakes"]:
        raise Failed(f"{after - before} handshakes were counted of {answer['handshakes']}")
    return {"per_second": round(answer["handshakes"] / (answer["wall_ns"] / 1e9)),
            "handshakes": answer["handshakes"], "bytes": size, "cpu_us": None} | scraper.row()
