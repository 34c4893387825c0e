"""Requests to stores: many at once, or over the connections that a fleet's workers would have."""

import itertools
import os
import socket
import subprocess

from processes import Process
from settings import LOAD, PATIENCE, SERVER_CPU, Failed

ASKS = os.path.join(os.path.dirname(LOAD), "asks")
BATCH = 1000                            # requests in one write, where a store is only filled


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


class Links(Process):
    """So many connections to each of the ports, each with one request at a time."""

    def __init__(self, ports, each):
        super().__init__([ASKS, str(each), *map(str, ports)], SERVER_CPU, stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE)

    def run(self, feeds):
        """Makes the requests that there are for each port, by parts of its connections: how many
        replies there were, how many takes came to nothing, and the seconds."""
        try:
            for port, parts in enumerate(feeds):
                for part, requests in enumerate(parts):
                    said = b"".join(requests)
                    head = f"feed {port} {part} {len(parts)} {len(said)}\n"
                    self.process.stdin.write(head.encode() + said)
            self.process.stdin.write(b"go\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        replies, lost, seconds = (self.process.stdout.readline() or self.failed()).split()
        return int(replies), int(lost), float(seconds)

    @staticmethod
    def failed():
        raise Failed("bench/load's asks has failed")
