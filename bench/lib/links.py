"""Connections to stores that a fleet's workers would have, in one loop of one thread."""

import itertools
import select
import socket

from entries import one
from settings import PATIENCE, Failed

BATCH = 1000                            # requests in one write, where a store is only filled
GOOD = (b"+", b"$", b"H", b"V")         # what replies that are neither misses nor errors begin with


def fill(port, requests):
    """Makes requests that store, many in one write; how many."""
    made = 0
    requests = iter(requests)
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as link:
        while batch := list(itertools.islice(requests, BATCH)):
            link.sendall(b"".join(batch))
            made += len(batch)
            owed = b"".join(b"HD\r\n" if request[:2] == b"ms" else b"+OK\r\n" for request in batch)
            while owed:
                said = link.recv(len(owed))
                if not said or not owed.startswith(said):
                    raise Failed(f"not stored: {said[:100]}")
                owed = owed[len(said):]
    return made


class Links:
    """So many connections to each of the ports, each with one request at a time."""

    def __init__(self, ports, each):
        self.each = each
        self.sockets = [[self.connect(port) for _ in range(each)] for port in ports]

    @staticmethod
    def connect(port):
        link = socket.create_connection(("127.0.0.1", port), PATIENCE)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setblocking(False)
        return link

    def run(self, feeds, follow=lambda reply, request: None):
        """Makes the requests that feeds, iterators, have for a port: the first feed of a port is
        for its first connection, and so on in turn. `follow` is what is asked next about a reply.
        Ends with the last reply; how many there were."""
        poll, links, replies = select.epoll(), {}, 0
        for port, of_port in zip(self.sockets, feeds):
            for place, link in enumerate(port):
                feed = of_port[place % len(of_port)]
                if (request := next(feed, None)) is not None:
                    links[link.fileno()] = [link, feed, request, b""]
                    poll.register(link, select.EPOLLIN)
                    link.send(request)
        while links:
            ready = poll.poll(PATIENCE)
            if not ready:
                raise Failed("a store does not answer")
            for number, _ in ready:
                state = links[number]
                link, feed, request, kept = state
                reply = kept + link.recv(65536)
                if one(reply) != len(reply):
                    state[3] = reply
                    continue
                if reply[:1] not in GOOD or reply[:3] == b"$-1":
                    raise Failed(f"{request[:80]}: {reply[:80]}")
                replies += 1
                request = follow(reply, request) or next(feed, None)
                if request is None:
                    poll.unregister(link)
                    del links[number]
                    continue
                state[2], state[3] = request, b""
                link.send(request)
        poll.close()
        return replies

    def close(self):
        for link in itertools.chain(*self.sockets):
            link.close()
