"""nginx in front of stores: what handshakes have them say, and requests of the same form."""

import itertools
import statistics

import entries
import processes
from entries import KINDS, Form, Relay
from processes import Nginx
from settings import size
from stores import Memcached, Redis, backend

VISITS = size(32, 4)                    # handshakes whose entries are repeated


class Site:
    """An nginx in front of a store, and what its handshakes have said to that."""

    def __init__(self, work, built, store, protocol="redis", fetch=""):
        self.relay = Relay(store.port)
        text = backend([f"127.0.0.1:{self.relay.port}"], more=f"protocol {protocol};", fetch=fetch)
        self.nginx = Nginx(work, built, text, server=entries.verifies(work))
        self.said = {kind: entries.handshakes(self.nginx, self.relay, work, kind, VISITS)
                     for kind in KINDS}
        processes.check_logs([self.nginx])

    def of(self, kind, *names):
        """What was said of these names, in full handshakes and resumptions."""
        return [one for all_of in self.said[kind].values() for one in all_of if one.name in names]

    def forms(self, kind, *names):
        """Forms of requests, the stored ones of full handshakes and resumptions alike."""
        return [Form(one) for one in self.of(kind, *names)]

    def stop(self):
        self.nginx.stop()
        self.relay.stop()


def mean(values):
    return statistics.fmean(values)


def table(kinds, of):
    """Figures by version of TLS and certificate."""
    figures = {}
    for version, certificate in kinds:
        figures.setdefault(version, {})[certificate] = of((version, certificate))
    return figures


def wire(site, kind, *names):
    """Bytes to the store and back, of one operation, which may have several steps."""
    said = site.of(kind, *names)
    first = sum(one.name == names[0] for one in said)
    return [round(sum(one.bytes()[way] for one in said) / first) for way in (0, 1)]


class Bench:
    """What all parts stand on: a directory, nginx, and the forms of requests."""

    def __init__(self, work, built):
        self.work, self.built = work, built
        processes.certificates(work)
        self.certificates = entries.client_certificates(work)
        self.sites = {}
        for protocol, store in (("redis", Redis(work)), ("memcached", Memcached())):
            for fetch in ("", "single_use"):
                self.sites[protocol, fetch] = site = Site(work, built, store, protocol, fetch)
                site.stop()
            store.stop()

    def entries(self):
        """Sizes of entries and of what is said, and how often."""
        redis = self.sites["redis", ""]

        def entry(kind):
            found = {what: [len(one.value()) for one in said if one.name == "SET"]
                     for what, said in redis.said[kind].items()}
            return {what: round(mean(lengths)) for what, lengths in found.items() if lengths}

        def asked(fetch):
            return lambda kind: {
                what: {name: sum(one.name == name for one in said) / VISITS
                       for name in sorted({one.name for one in said})}
                for what, said in self.sites["redis", fetch].said[kind].items()}
        names = {"redis": {"fetch": ("GET",), "store": ("SET",), "take": ("GETDEL",)},
                 "memcached": {"fetch": ("mg",), "store": ("ms",), "take": ("mg", "md")}}
        said = {}
        for protocol, of in names.items():
            plain, once = self.sites[protocol, ""], self.sites[protocol, "single_use"]
            said[protocol] = {
                "fetch": table(KINDS, lambda kind, p=plain, n=of: wire(p, kind, *n["fetch"])),
                "store": table(KINDS, lambda kind, p=plain, n=of: wire(p, kind, *n["store"])),
                # Sessions of TLS 1.2 are looked up as ever.
                "take": table([kind for kind in KINDS if kind[0] == "1.3"],
                              lambda kind, o=once, n=of: wire(o, kind, *n["take"])),
            }
        return {
            "key": round(mean(len(one.key) for kind in KINDS for one in redis.of(kind, "SET"))),
            "certificate": self.certificates,
            "entry": table(KINDS, entry),
            "asked": {"plain": table(KINDS, asked("")),
                      "single_use": table(KINDS, asked("single_use"))},
            "links": {protocol: len(self.sites[protocol, ""].relay.links)
                      for protocol in names},
            "wire": said,
        }

    def requests(self, protocol, kind, count, ttl=None):
        """Stores under so many new names."""
        forms = self.sites[protocol, ""].forms(kind, "SET", "ms")
        for form in forms if ttl else ():
            head, sep, _ = form.tail.rpartition(b"EX\r\n")
            form.tail = head + sep + b"$%d\r\n%d\r\n" % (len(str(ttl)), ttl)
        for key, form in zip(entries.keys(count), itertools.cycle(forms)):
            yield key, form.of(key)
