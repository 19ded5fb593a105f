"""Means and intervals of counts of edges: geometric, over tasks, paired or adjusted."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

N_RESAMPLES = 2000

FEWEST_GROUPS = 4
"""Of fewer, 95 % of resampled means reach from the smallest group to the largest: no interval."""


@dataclass(frozen=True)
class Estimate:
    """A geometric mean, with the 95 % interval of a bootstrap over its groups.

    With fewer than `FEWEST_GROUPS` the interval says nothing, and is not shown.
    """

    value: float
    low: float
    high: float
    n: int
    """Groups, such as tasks, that it is over."""

    def to_list(self) -> list[float]:
        """Give value and interval, or the value alone, rounded to four digits."""
        interval = (self.low, self.high) if self.n >= FEWEST_GROUPS else ()
        return [float(f"{v:.4g}") for v in (self.value, *interval)]

    def __str__(self) -> str:
        """Value and interval."""
        if self.n < FEWEST_GROUPS:
            return f"{self.value:.3g}"
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


def geometric_mean(values: Sequence[float | int]) -> float:
    """Give exp of the mean log.

    Examples:
        >>> round(geometric_mean([1, 100]), 6)
        10.0
    """
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def estimate(groups: Mapping[str, Sequence[float | int]], *, seed: int = 0) -> Estimate | None:
    """Give the geometric mean of positive numbers in groups, each group counting once.

    The bootstrap draws groups, whole: the seeds of one task are not independent of each other.
    None if there is no group.
    """
    logs = [
        math.fsum(map(math.log, some)) / len(some) for _, some in sorted(groups.items()) if some
    ]
    if not logs:
        return None
    rng = random.Random(seed)
    means = sorted(
        math.fsum(rng.choices(logs, k=len(logs))) / len(logs) for _ in range(N_RESAMPLES)
    )
    low, high = means[int(0.025 * N_RESAMPLES)], means[int(0.975 * N_RESAMPLES) - 1]
    return Estimate(math.exp(math.fsum(logs) / len(logs)), math.exp(low), math.exp(high), len(logs))


def adjusted_means(
    counts: Mapping[str, Mapping[str, Sequence[float | int]]],
) -> dict[str, float]:
    """Give each row's geometric mean over the same columns, though it may lack some of them.

    By least squares, log count = row + column: a row's mean is where it would stand in a column
    that is as the columns are on average. Rows of which no chain of shared columns leads to the
    row with the most columns can't be compared with it, and are left out.

    Examples:
        >>> rows = {"a": {"easy": [10], "hard": [100]}, "b": {"hard": [50]}}
        >>> {name: round(value, 3) for name, value in adjusted_means(rows).items()}
        {'a': 31.623, 'b': 15.811}
    """
    rows = _connected({name: set(row) for name, row in counts.items()})
    columns = sorted({column for name in rows for column in counts[name]})
    places, logs = [], []
    for i, name in enumerate(rows):
        for column, some in counts[name].items():
            places += [(i, len(rows) + columns.index(column))] * len(some)
            logs += [math.log(value) for value in some]
    design = np.zeros((len(logs), len(rows) + len(columns)))
    for k, place in enumerate(places):
        design[k, list(place)] = 1
    solved = np.linalg.lstsq(design, np.array(logs), rcond=None)[0] if logs else np.zeros(0)
    typical = solved[len(rows) :].mean() if columns else 0.0
    return {name: math.exp(solved[i] + typical) for i, name in enumerate(rows)}


def _connected(columns: Mapping[str, set[str]]) -> list[str]:
    """List, in order, the rows that shared columns join to the row with the most columns."""
    first = max(columns, key=lambda name: len(columns[name]), default=None)
    if first is None or not columns[first]:
        return []
    found, reached, grown = {first}, set(columns[first]), True
    while grown:
        more = {n for n, some in columns.items() if n not in found and some & reached}
        found |= more
        reached |= {column for name in more for column in columns[name]}
        grown = bool(more)
    return [name for name in columns if name in found]
