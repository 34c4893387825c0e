"""How much is measured, and where things are."""

import os
import sys

# Shows that everything works, no more.
QUICK = sys.argv[1:2] == ["smoke"]


def size(full, quick):
    return quick if QUICK else full


ROUNDS = int(os.environ.get("BENCH_ROUNDS", size(12, 1)))
FEW_ROUNDS = min(ROUNDS, 5)             # where each takes long
SETS = ROUNDS                           # of processes, each for some of the pairs
PAIRS = size(4, 1)                      # of each configuration with its base, in a set
MANY_SETS = 2 * SETS                    # where intervals have to be narrow
MANY_PAIRS = size(6, 1)
MORE_PAIRS = PAIRS * FEW_ROUNDS         # where there is one set
BUSY = size(0.9, 0.0)                   # of the clock: less is a worker that something else limits
ENOUGH = 0.25                           # of all pairs: from less there is no ratio
AGAIN = ", again"                       # a second process that is as the base
# More than are offered at once: lookups of one session would be one request.
SESSIONS = size(512, 256)
SOURCES = 8                             # addresses that clients come from, so that ports suffice
ALONE, CROWD = 1, 64                    # clients at the same time
TRACED = size(None, CROWD)              # handshakes under strace, if not one of each session
# Resumed handshakes in one go, less than a tenth of a second.
SLICE = {(ALONE, "1.2"): size(200, 12), (ALONE, "1.3"): size(80, 12),
         (CROWD, "1.2"): size(640, 72), (CROWD, "1.3"): size(192, 72)}
FULL_SLICE = size(128, 16)
HELD = size(2000, 60)                   # handshakes suspended at once
HOLDS = size(3, 1)                      # how often that is repeated
LOOKUPS = size(4000, 100)
PRESSED = size(3000, 200)               # handshakes in one go while a store is out of order
OUTAGES = size(5, 1)                    # how often that is repeated
FLOOD = size(300, 32)                   # handshakes in one go with forged session IDs
RECONNECTS = size(30, 3)
SCHEDULE = size(0.5, 0.2)               # seconds of arrivals in one go
LOADS = (0.5, 0.8)                      # of what nginx's own cache reaches
STORED = size((10**3, 10**4, 10**5, 10**6), (400, 1000))
SAMPLE = size(4000, 200)                # of them are resumed
SERVERS = size((1, 2, 4, 8, 16), (1, 2))
BLOCKS = size((1, 10, 100, 1000), (1, 10))
SUSPENDED = size((10, 100, 1000, 10_000), (10, 100))
ZONE = size("1000m", "16m")
SHOWN = 50                              # servers on the status page
SCRAPES = size(500, 20)
PACE = size(5000, 500)                  # handshakes a second while it is asked for,
STREAM = size(10, 3)                    # for so many seconds

PATIENCE = 60                           # seconds
CPUS = sorted(os.sched_getaffinity(0))
SERVER_CPU, LOAD_CPU = CPUS[0], CPUS[-1]
VERSIONS = ("1.2", "1.3")
CERTIFICATES = ("ecdsa", "rsa")

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODULE = "ngx_http_ssl_session_module.so"
LOAD = os.path.join(ROOT, "target/bench/load/release/load")
SEAL = os.path.join(ROOT, "target/bench/seal/release/seal")
RESULTS = os.path.join(ROOT, "target", size("bench.json", "bench-smoke.json"))
CHART = os.path.join(ROOT, "target", size("bench.svg", "bench-smoke.svg"))
DOCUMENT = os.path.join(ROOT, "docs/performance.md")


class Failed(Exception):
    """Something was not as expected: there is no figure."""
