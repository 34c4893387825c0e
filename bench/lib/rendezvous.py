"""Which of several servers has an entry, as core/src/rendezvous.rs says it, for equal weights."""

MASK = 2**64 - 1


def fnv(data, start=0xcbf29ce484222325):
    """FNV-1a; goes on from `start` where that is the hash of what comes before."""
    for byte in data:
        start = ((start ^ byte) * 0x100000001b3) & MASK
    return start


def mix(number):
    """The finaliser of SplitMix64."""
    number = ((number ^ (number >> 30)) * 0xbf58476d1ce4e5b9) & MASK
    number = ((number ^ (number >> 27)) * 0x94d049bb133111eb) & MASK
    return number ^ (number >> 31)


class Rendezvous:
    """Servers, by their addresses as they are written in the configuration."""

    def __init__(self, names):
        self.names = [mix(fnv(name.encode())) for name in names]

    def pick(self, key):
        """The place of the server that has the entry."""
        hashed = fnv(key)
        costs = [mix(hashed ^ name) for name in self.names]
        return costs.index(max(costs))
