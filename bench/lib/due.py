"""How many sessions of a store can be had, whatever is done between the clients and it."""


class Ledger:
    """What has befallen the servers of a store. A share is one of all sessions: 1, or what one server has."""

    def __init__(self):
        self.lost, self.silent, self.refused, self.withdrawn = [], [], [], []

    def lose(self, share, when, until=None, since=0.0):
        """Sessions made between "since" and "until" are gone for those who ask from "when" on."""
        self.lost.append((when, since, when if until is None else until, share))

    def hush(self, share, begin, end):
        """Who asks between these is not answered in time."""
        self.silent.append((begin, end, share))

    def refuse(self, share, begin, end):
        """What is made between these is not kept."""
        self.refused.append((begin, end, share))

    def withdraw(self, when, until):
        """Sessions made before "until" are resumed by nobody from "when" on."""
        self.withdrawn.append((when, until))

    def due(self, made, asked, known=0.0):
        """The chance that a session made then is there for one who asks now. "known" is the chance that it
        was looked up before, and lies in a zone."""
        if any(asked >= when and made < until for when, until in self.withdrawn):
            return 0.0
        chance = 1.0
        for when, since, until, share in self.lost:
            if asked >= when and since <= made < until:
                chance *= 1 - share
        for begin, end, share in self.silent:
            if begin <= asked < end:
                chance *= 1 - share
        for begin, end, share in self.refused:
            if begin <= made < end:
                chance *= 1 - share
        return max(chance, known)


def seconds(cycle, ledger, rate, zone):
    """Of each second in which sessions that were made in one go are offered in turn: when it began, handshakes,
    those due to resume, and those that did."""
    (began, ended, made), offered = cycle
    times = [began + (ended - began) * (n + 0.5) / made for n in range(made)]
    known = [0.0] * made
    turn = 0
    for when, handshakes, resumed in offered:
        due = 0.0
        for n in range(handshakes):
            session, turn = turn % made, turn + 1
            chance = ledger.due(times[session], when + n / rate, known[session])
            if zone:
                known[session] = chance
            due += chance
        yield when, handshakes, due, resumed
