"""Results of a commit: kept after each part, put into the documentation."""

import datetime
import json
import os
import platform
import re
import shutil
import time

import tables
from builds import clients, run
from chart import chart
from settings import (CHART, DOCUMENT, LOAD_CPU, QUICK, RESULTS, SERVER_CPU, Failed)
from targets import targets_table

BEGIN, END = "<!-- results: bench/run write -->", "<!-- end of results -->"


class Report:
    """What bench.json has, if it is of this commit, and what comes to it."""

    def __init__(self, builds, order):
        self.order = order
        self.report = {"machine": machine(builds), "parts": {}}
        try:
            old = load()
        except (OSError, ValueError):
            return
        if QUICK or old.get("machine", {}).get("commit") != self.report["machine"]["commit"]:
            return
        self.report["parts"] = old.get("parts", {})

    def add(self, part, results, began, before):
        self.report["parts"][part] = {
            "date": datetime.date.today().isoformat(), "seconds": round(time.monotonic() - began),
            "load_before": before, "load_after": round(os.getloadavg()[0], 2),
            "results": results}
        parts = self.report["parts"]
        self.report["parts"] = {name: parts[name] for name in self.order if name in parts}
        # An interrupted run leaves the file of before.
        with open(RESULTS + ".new", "w", encoding="utf-8") as file:
            json.dump(self.report, file, indent=1)
        os.replace(RESULTS + ".new", RESULTS)
        if part == "resumed":
            with open(CHART, "w", encoding="utf-8") as file:
                file.write(chart(results, self.report["machine"]))

    def targets(self):
        return targets_table(self.report["parts"])


def load():
    with open(RESULTS, encoding="utf-8") as file:
        return json.load(file)


def said(part, results):
    return getattr(tables, part)(results)


def machine(builds):
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = re.search(r"model name\s*: (.*)", file.read())
    commit = run(["git", "describe", "--always", "--exclude=*"]).strip()
    if run(["git", "status", "--porcelain", "--", "src", "core", "Cargo.lock"]):
        commit += " with changes"
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "cpu": model.group(1) if model else platform.machine(),
        "cpus": os.cpu_count(),
        "server_cpu": SERVER_CPU, "load_cpu": LOAD_CPU,
        "kernel": platform.release(),
        "nginx": [built.label for built in builds],
        "clients": [openssl(full) for full in (False, True)],
        "redis": re.search(r"v=(\S+)", run(["redis-server", "--version"])).group(1),
        "memcached": run(["memcached", "-V"]).split()[-1],
    }


def openssl(full):
    said_it = run([*clients(full), "0", "1.2"], say="version")
    return " ".join(json.loads(said_it)["openssl"].split()[:2])


def heading(m):
    return "\n".join([
        f"{m['date']}, commit {m['commit']}, {m['cpus']} x {m['cpu']}, Linux {m['kernel']}",
        *m["nginx"],
        f"redis {m['redis']}, memcached {m['memcached']}, clients with {m['clients'][0]}, full "
        f"handshakes with {m['clients'][1]}; nginx on CPU {m['server_cpu']}, clients and stores on "
        f"{m['load_cpu']}"])


def write():
    """Puts the last results in the place of those in docs/performance.md."""
    report = load()
    parts = report["parts"]
    text = [*heading(report["machine"]).replace("\n", "\n\n").splitlines()]
    sections = [targets_table(parts)]
    for part, kept in parts.items():
        sections.append(said(part, kept["results"])
                        + f"\n\n{kept['date']}, {kept['seconds']} s; load average "
                        f"{kept['load_before']} before, {kept['load_after']} after.")
    if "resumed" in parts:
        picture = os.path.join(os.path.dirname(DOCUMENT), "performance.svg")
        shutil.copyfile(CHART, picture)
        sections.insert(1, "\nWorker CPU per resumed handshake\n\n"
                        "![Worker CPU per resumed handshake](performance.svg)")
    for section in sections:
        title, rows = section.strip().split("\n", 1)
        text += ["", f"### {title}", *rows.splitlines()]
    with open(DOCUMENT, encoding="utf-8") as file:
        found = re.split(f"({BEGIN}\n.*?)(?={END})", file.read(), flags=re.S)
    if len(found) != 3:
        raise Failed(f"no place for results in {DOCUMENT}")
    with open(DOCUMENT, "w", encoding="utf-8") as file:
        file.write("\n".join([f"{found[0]}{BEGIN}", "", *text, "", found[2]]))
