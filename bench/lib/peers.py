"""Other software that does what the module does, beside it. bench/peers/README.md says what a
description has; nothing of theirs is here."""

import os
import re
import subprocess
import tomllib

import pairs
from builds import Build
from compare import compare, control, with_interval
from handshakes import (OWN_CACHE, OWN_TICKETS, TICKET_KEYS, TICKET_KEYS_ALONE, Site,
                        Sites)
from processes import Nginx, Process, check_logs, connects, free_port, wait
from settings import AGAIN, ALONE, CROWD, SERVER_CPU, SESSIONS, SLICE, VERSIONS, Failed
from stores import Memcached, Redis

# What a description may say, and what holds if it does not.
COMMON = {"name": None, "tls": list(VERSIONS), "shared": True, "against": "redis", "sni": ""}
NGINX = COMMON | {"nginx": None, "main": "", "http": "", "server": "", "tickets": False,
                  "base_main": "", "base_http": OWN_CACHE, "base_tickets": False}
COMMAND = COMMON | {"command": None, "config": None, "base_config": None, "version": ""}
OURS = "nginx shared"


def described(file):
    """Reads a description, and refuses what it does not know."""
    try:
        with open(file, "rb") as text:
            said = tomllib.load(text)
    except (OSError, tomllib.TOMLDecodeError) as e:
        raise Failed(f"{file}: {e}") from e
    peers = said.pop("peer", [])
    if said or not peers:
        raise Failed(f"{file}: a list of [[peer]] is expected, and nothing else")
    return [complete(peer, file) for peer in peers]


def complete(peer, file):
    known = COMMAND if "command" in peer else NGINX
    if odd := peer.keys() - known.keys():
        raise Failed(f"{file}: what is {', '.join(sorted(odd))}?")
    peer = known | peer
    if missing := [key for key, value in peer.items() if value is None]:
        raise Failed(f"{file}: no {', '.join(missing)}")
    if odd := set(peer["tls"]) - set(VERSIONS):
        raise Failed(f"{file}: tls has {', '.join(sorted(odd))}")
    return peer


class Other(Process):
    """A server that is not nginx, or not begun as one: one process, or a parent with one child."""

    made = 0

    def __init__(self, work, peer, text, words):
        Other.made += 1
        self.dir = f"{work}/other-{Other.made}"
        os.mkdir(self.dir)
        self.ports = {"ecdsa": free_port()}
        words = words | {"DIR": self.dir, "PORT": str(self.ports["ecdsa"]),
                         "CONFIG": f"{self.dir}/config"}
        with open(words["CONFIG"], "w", encoding="utf-8") as file:
            file.write(filled(peer[text], words))
        with open(f"{self.dir}/output", "w", encoding="utf-8") as output:
            super().__init__([filled(word, words) for word in peer["command"]], SERVER_CPU,
                             stdout=output, stderr=subprocess.STDOUT, cwd=self.dir)
        wait(peer["name"], self.serves)

    def serves(self):
        if self.process.poll() is not None:
            raise Failed(f"{' '.join(self.process.args)}: {self.errors()}")
        return connects(self.ports["ecdsa"])

    def served_by(self):
        with open(f"/proc/{self.pid}/task/{self.pid}/children", encoding="ascii") as file:
            children = file.read().split()
        return int(children[0]) if len(children) == 1 else self.pid

    def errors(self):
        with open(f"{self.dir}/output", encoding="utf-8", errors="replace") as file:
            return file.read()


def filled(text, words):
    """With the words in the place of @NAME@."""
    def word(found):
        if found[1] not in words:
            raise Failed(f"what is @{found[1]}@?")
        return words[found[1]]
    return re.sub("@([A-Z_]+)@", word, text)


class Peer:
    """A peer, its base, and the stores that it asks for."""

    def __init__(self, peer, built, work):
        self.name, self.said = peer["name"], peer
        self.base = f"{self.name}: base"
        self.redis, stores = None, []
        everything = " ".join(str(value) for value in peer.values())
        words = {"CERTIFICATE": f"{work}/ecdsa.pem", "KEY": f"{work}/ecdsa.key",
                 "BUNDLE": f"{work}/ecdsa.both", "NGINX": built.binary, "MODULE": built.module,
                 "SECRET": f"{work}/session.key"}
        with open(words["BUNDLE"], "w", encoding="utf-8") as both:
            for name in ("CERTIFICATE", "KEY"):
                with open(words[name], encoding="utf-8") as file:
                    both.write(file.read())
        if "@REDIS_PORT@" in everything or "@REDIS_SOCKET@" in everything:
            self.redis = Redis(work)
            stores.append(self.redis)
            words |= {"REDIS_PORT": str(self.redis.port), "REDIS_SOCKET": self.redis.socket}
        if "@MEMCACHED_PORT@" in everything:
            stores.append(Memcached())
            words["MEMCACHED_PORT"] = str(stores[-1].port)
        if "command" in peer:
            self.version = peer["version"] or filled(peer["command"][0], words)
            server = lambda kind: Other(work, peer, f"{kind}config", words)
        else:
            binary = Build("peer", filled(peer["nginx"], words), "")
            self.version = f"{binary.version}, {binary.openssl}"
            server = lambda kind: Nginx(
                work, binary, filled(peer[f"{kind}http"], words), module=False,
                tickets=peer[f"{kind}tickets"], main=filled(peer[f"{kind}main"], words),
                server=filled(peer["server"], words) if not kind else "")
        self.sites = {
            self.name: Site(server(""), server("") if peer["shared"] else None, stores),
            self.base: Site(server("base_")),
        }
        for one in self.servers():
            # What it says when it begins is its own affair.
            one.forget_errors()

    def servers(self):
        return [one for site in self.sites.values() for one in (site.server, site.primer)
                if isinstance(one, Nginx)]

    def loads(self, version):
        found = {}
        for name, site in self.sites.items():
            found[name] = load = site.load(version)
            if self.said["sni"]:
                load.ask("name", self.said["sni"])
            load.prime(SESSIONS, site.primer)
        return found


def peers(said, built, work, _):
    """Resumed handshakes of the peers that are described, each beside its own base, and of the
    module in the same turns."""
    ours = {OURS, f"{OURS}{AGAIN}", *(one["against"] for one in said)}
    if ours & {TICKET_KEYS, TICKET_KEYS_ALONE}:
        ours |= {OWN_TICKETS, f"{OWN_TICKETS}{AGAIN}"}
    sites = Sites(built, work, ours)
    if odd := ours - sites.all.keys():
        raise Failed(f"against {', '.join(odd)}: there is no such row of resumed handshakes")
    others = [Peer(one, built, work) for one in said]
    results = []
    for version in VERSIONS:
        taking_part = [peer for peer in others if version in peer.said["tls"]]
        if not taking_part:
            continue
        loads = {name: site.primed(version, SESSIONS) for name, site in sites.all.items()}
        bases = dict.fromkeys(loads, OURS) | dict.fromkeys(
            (TICKET_KEYS, TICKET_KEYS_ALONE, f"{OWN_TICKETS}{AGAIN}"), OWN_TICKETS)
        for peer in taking_part:
            more = peer.loads(version)
            loads |= more
            bases |= dict.fromkeys(more, peer.base)
        for load in loads.values():
            load.go("resume", max(SESSIONS, load.ask("prime", 0)["sessions"]), CROWD)
        for clients in (ALONE, CROWD):
            asked = {peer.name: -peer.redis.lookups() for peer in taking_part if peer.redis}
            rows = {row["sessions"]: row for row in compare(
                {"build": built.name, "certificate": "ecdsa", "tls": version, "clients": clients,
                 "by": "fast"},
                loads, bases,
                lambda load, n=clients: load.go("resume", SLICE[n, load.version], n, cpu=True),
                sites.hits(), saturated=clients > ALONE)}
            for row in rows.values():
                row["server"] = built.label
            for peer in taking_part:
                for name in peer.sites:
                    rows[name]["server"] = peer.version
                rows[peer.name]["against"] = peer.said["against"]
                if peer.redis:
                    rows[peer.name]["sets"][0]["asked"] = (
                        asked[peer.name] + peer.redis.lookups())
            results += rows.values()
        for load in loads.values():
            load.stop()
    sites.check_logs()
    check_logs(one for peer in others for one in peer.servers())
    return results


def with_ratios(results):
    """The rows of peers with what this module costs beside its base by what they cost beside
    theirs: below 1 the module is the cheaper one. Of all sets together."""
    rows = []
    for row in results:
        if "against" in row:
            ours = next(r for r in results if r["sessions"] == row["against"] and all(
                r[label] == row[label] for label in ("build", "tls", "clients")))
            row = row | {"controlled": bool(control(results, ours))}
            row |= with_interval("module_ratio", pairs.fast_ratio([
                [tuple(side["each"] for side in sides) for sides in zip(
                    mine["own"], mine["base"], other["own"], other["base"])]
                for mine, other in zip(ours["sets"], row["sets"])]))
            if "asked" in row["sets"][0]:
                asked = sum(one["asked"] for one in row["sets"])
                row["lookups"] = round(asked / row["handshakes"], 2)
        rows.append(row)
    return rows
