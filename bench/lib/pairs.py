"""What pairs of measurements say: a ratio, and the interval that it lies in. No process, no clock.

A pair is four slices: A, B, B, A. What drifts meanwhile drifts for both. Pairs come in sets, one of
each set of processes: two processes that do the same differ by some per cent for as long as they
live, so that the pairs of one set err alike.

As a program, `python3 bench/lib/pairs.py`, it shows that this works, and in how many of simulated
runs the interval has the truth in it.
"""

import math
import random
import statistics

LEVEL = 0.95
RESAMPLES = 2000
SEED = 20260                            # a run that is judged again gets the same interval
FAST = 0.1                              # of the slices are as fast as that, or faster
CUT = 0.25                              # of the pairs at each end are not averaged


def middle(values):
    """The mean without the smallest and greatest quarter. It bears what a busy machine does to some
    slices, as the median does, and varies less."""
    ordered = sorted(values)
    cut = int(len(ordered) * CUT)
    return statistics.fmean(ordered[cut:len(ordered) - cut])


def fast(values):
    """The cost that a tenth of the slices keep below. What else the machine does makes a slice dearer and
    never cheaper, by up to twice, so that this varies far less than what is in the middle."""
    return sorted(values)[int(len(values) * FAST)]


def fast_ratio(sets):
    """The ratio of two such costs, and both ends of its interval by the bootstrap. sets: for each set of
    processes the pairs; for each pair what the slices of the one cost, and those of the other. With
    another such pair of the same turn behind it, the ratio of both ratios."""
    def found(drawn):
        a, b, *others = (fast([cost for pair in drawn for cost in pair[side]])
                         for side in range(len(drawn[0])))
        return a / b / (others[0] / others[1] if others else 1)
    sets = [pairs for pairs in sets if pairs]
    if not sets:
        return None
    return found([pair for pairs in sets for pair in pairs]), *interval(sets, found)


def interval(sets, estimate=middle):
    """Where the estimate of all pairs lies, by the bootstrap: first sets are drawn, then pairs within
    each. Sets may be of any length. One value alone may lie anywhere.
    """
    if sum(map(len, sets)) < 2:
        return -math.inf, math.inf
    chance = random.Random(SEED)
    found = sorted(
        estimate([value for values in chance.choices(sets, k=len(sets))
                for value in chance.choices(values, k=len(values))])
        for _ in range(RESAMPLES))
    # As many are left out at each end.
    outside = round(RESAMPLES * (1 - LEVEL) / 2)
    return found[outside], found[-1 - outside]


def difference(sets):
    """The estimate, and both ends of its interval; of nothing, None."""
    sets = [values for values in sets if values]
    if not sets:
        return None
    return middle([value for values in sets for value in values]), *interval(sets)


def ratio(sets):
    """The same of ratios, by their logarithms: A to B is as far from 1 as B to A."""
    found = difference([[math.log(value) for value in values] for values in sets])
    return found and tuple(math.exp(value) for value in found)


def contains(found, value):
    return found[1] <= value <= found[2]


def judged(limit, low, high):
    """Of a limit that is not to be passed."""
    if high <= limit:
        return "met"
    return "missed" if low > limit else "not shown"


def check():
    """Raises AssertionError if what is known is not found."""
    # Worked out by hand: a quarter of eight is two at each end.
    assert middle([9, 1, 2, 3, 4, 5, 6, -90]) == statistics.fmean([2, 3, 4, 5])
    assert math.isclose(ratio([[0.5, 2]])[0], 1)
    assert ratio([]) is None and ratio([[]]) is None
    assert ratio([[1.25]])[1:] == (0, math.inf)
    # Sets that have nothing within them: the ends are those of the sets that are drawn.
    assert difference([[1.0] * 4, [2.0] * 4]) == (1.5, 1.0, 2.0)
    # The mean of n values from a normal distribution lies within 1.96 / sqrt(n) of them. The middle
    # half has 1.09 times that; the ends vary.
    chance = random.Random(1)
    one = [[chance.gauss(0, 1)] for _ in range(100)]
    _, low, high = difference(one)
    assert 0.8 < (high - low) / (2 * 1.96 * 1.09 / 10) < 1.2, (low, high)
    assert difference(one) == difference(one)
    # Noise of slices and of processes, and of some slices that somebody else has disturbed.
    for shift, told in ((1.0, "not shown"), (1.05, "missed"), (0.95, "met")):
        found = [ratio(noisy(random.Random(seed), shift)) for seed in range(3)]
        assert all(contains(one, shift) for one in found), (shift, found)
        assert all(judged(1, low, high) == told for _, low, high in found), (shift, found)
    # A host that makes every other slice up to twice as dear does not hide 5 %.
    for shift, told in ((1.05, "missed"), (0.95, "met")):
        found = [fast_ratio(disturbed(random.Random(seed), shift)) for seed in range(3)]
        assert all(contains([value / shift for value in one], 1) for one in found[:2]), found
        assert all(judged(1, low, high) == told for _, low, high in found), (shift, found)
    # Who does not draw sets takes three odd processes for a difference.
    odd = [[1.03] * 20, [1.02] * 20, [0.985] * 20]
    assert contains(ratio(odd), 1)
    assert not contains(ratio([[value] for one in odd for value in one]), 1)


def noisy(chance, shift, sets=12, pairs=4):
    found = []
    for _ in range(sets):
        process = chance.gauss(0, 0.015)
        found.append([shift * math.exp(process + chance.gauss(0, 0.02)
                                       + (chance.random() < 0.1) * chance.gauss(0, 0.3))
                      for _ in range(pairs)])
    return found


def disturbed(chance, shift, sets=24, pairs=6):
    def slices(cost, process):
        return [cost * process * math.exp(chance.gauss(0, 0.01))
                * (1 + (chance.random() < 0.5) * chance.random()) for _ in range(2)]
    found = []
    for _ in range(sets):
        own, base = (math.exp(chance.gauss(0, 0.015)) for _ in range(2))
        found.append([(slices(shift, own), slices(1, base)) for _ in range(pairs)])
    return found


def covered(runs=200):
    """By number of sets and of pairs in each: the share of runs whose interval has the truth in it,
    and how wide intervals are."""
    for sets, within in ((3, 4), (6, 4), (12, 4), (24, 4), (1, 20)):
        found = [ratio(noisy(random.Random(seed), 1, sets, within)) for seed in range(runs)]
        share = sum(contains(one, 1) for one in found) / runs
        width = statistics.fmean(high - low for _, low, high in found)
        print(f"{sets:2} sets of {within:2} pairs: 1 in {share:.0%} of intervals, {width:.3f} wide")
    found = [fast_ratio(disturbed(random.Random(seed), 1)) for seed in range(runs // 2)]
    share = sum(contains(one, 1) for one in found) / len(found)
    width = statistics.fmean(high - low for _, low, high in found)
    print(f"24 sets of  6 pairs, the fastest tenth: 1 in {share:.0%} of intervals, {width:.3f} wide")


if __name__ == "__main__":
    check()
    covered()
