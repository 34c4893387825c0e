"""Where a worker's CPU goes, by perf."""

import os
import re
import shutil
import signal
import statistics
import subprocess

from builds import run
from handshakes import REDUCED, Sites
from processes import Process, wait
from settings import CROWD, FEW_ROUNDS, LOAD_CPU, PATIENCE, SESSIONS, SLICE, VERSIONS

# What takes its time in a worker; all else is "rest".
OBJECTS = {"kernel": "[kernel.kallsyms]", "libcrypto": "libcrypto", "libssl": "libssl",
           "libc": "libc.so", "nginx": "nginx", "the module": "ssl_session_module"}
GOES = 4                                # that one sampling sees


def profile(built, work, _):
    """Microseconds of each part of a worker per resumed handshake of 64 clients, and how many
    lookups share a write to Redis."""
    if not has_perf():
        return []
    sites = Sites(built, work, REDUCED)
    results = []
    for version in VERSIONS:
        loads = {name: site.primed(version, SESSIONS) for name, site in sites.all.items()}
        samples = {name: [] for name in loads}
        shared = []
        for turn in range(-1, FEW_ROUNDS):
            for name, load in loads.items():
                hits, reads = sites.redis.hits(), sites.redis.stat("total_reads_processed")
                taken = sample(load, version, work)
                reads = sites.redis.stat("total_reads_processed") - reads
                hits = sites.redis.hits() - hits
                if turn >= 0:
                    samples[name].append(taken)
                    if name == "redis":
                        shared.append(hits / reads)
        for name, rounds in samples.items():
            results.append({
                "build": built.name, "tls": version, "clients": CROWD, "sessions": name,
                "rounds": FEW_ROUNDS,
                "us": {part: round(statistics.median(r[part] for r in rounds), 2)
                       for part in rounds[0]},
                "shared": round(statistics.median(shared), 2) if name == "redis" else None})
        for load in loads.values():
            load.stop()
    sites.check_logs()
    return results


def has_perf():
    """perf may be there, and the kernel refuse it."""
    return shutil.which("perf") and subprocess.run(
        ["perf", "stat", "-e", "cpu-clock", "true"], capture_output=True,
        check=False).returncode == 0


def sample(load, version, work):
    file = os.path.join(work, "perf")
    perf = Process(["perf", "record", "-q", "-e", "cpu-clock", "-F", "4999", "-p",
                    str(load.server.worker), "-o", file], LOAD_CPU, stderr=subprocess.DEVNULL)
    wait("perf", lambda: os.path.exists(file))
    before = load.server.busy()
    made = sum(load.go("resume", SLICE[CROWD, version], CROWD, cpu=True)["handshakes"]
               for _ in range(GOES))
    us = (load.server.busy() - before) / made / 1000
    perf.process.send_signal(signal.SIGINT)
    perf.process.wait(PATIENCE)
    found = re.findall(r"^ +([\d.]+)% +(\S+)", run(
        ["perf", "report", "-i", file, "--stdio", "--sort", "dso", "-w", "0,200"]), re.M)
    os.unlink(file)
    parts = {name: us * sum(float(share) for share, where in found if is_of(where, name)) / 100
             for name in OBJECTS}
    return parts | {"rest": us - sum(parts.values()), "all": us}


def is_of(where, name):
    if name == "nginx":
        return where == "nginx"
    return OBJECTS[name] in where
