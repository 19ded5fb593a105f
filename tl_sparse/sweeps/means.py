"""Means and intervals of counts of edges: geometric, over tasks, paired."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

N_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A geometric mean, with the 95 % interval of a bootstrap over its groups."""

    value: float
    low: float
    high: float
    n: int
    """Groups, such as tasks, that it is over."""

    def to_list(self) -> list[float]:
        """Give value and interval, rounded to four digits."""
        return [float(f"{v:.4g}") for v in (self.value, self.low, self.high)]

    def __str__(self) -> str:
        """Value and interval."""
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
