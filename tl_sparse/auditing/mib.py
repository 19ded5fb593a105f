"""MIB's two numbers for a circuit's curve: CPR and CMD (Mueller et al. 2025, arXiv 2504.13151).

With m the task metric, the faithfulness of a circuit with a share k of the model's edges is

    f(k) = (m(circuit) - m(empty)) / (m(whole) - m(empty)),

CPR the area under f over k and CMD the area under |1 - f|, by trapezoids between the shares that
are tried. The benchmark's begin at 0.001, so a perfect circuit has a CPR of .999 and a CMD of 0.
CPR rewards what is better than the whole model (f > 1); CMD does not.
"""

from collections.abc import Sequence
from itertools import pairwise

MIB_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The shares of edges at which the benchmark runs circuits."""


def faithfulness(metric: float, *, empty: float, whole: float) -> float:
    """Give f: 0 for what is no better than the empty circuit, 1 for the whole model.

    Raises:
        ValueError: If the whole model is no different from the empty circuit.
    """
    if whole == empty:
        raise ValueError(
            f"Faithfulness compares with the distance from the empty circuit to the whole model, "
            f"and both give {whole}: there is nothing to explain."
        )
    return (metric - empty) / (whole - empty)


def cpr(shares: Sequence[float | int], values: Sequence[float | int]) -> float:
    """Give the area under faithfulness (circuit performance ratio)."""
    return _area(shares, values)


def cmd(shares: Sequence[float | int], values: Sequence[float | int]) -> float:
    """Give the area between faithfulness and 1 (circuit-model distance); 0 is best."""
    return _area(shares, [abs(1 - value) for value in values])


def _area(shares: Sequence[float | int], values: Sequence[float | int]) -> float:
    """Give the area by trapezoids.

    Raises:
        ValueError: If the shares do not rise, or there is not one value for each.
    """
    if len(shares) != len(values) or len(shares) < 2:
        raise ValueError(
            f"An area needs one value for each of at least two shares, got {len(shares)} shares "
            f"and {len(values)} values."
        )
    steps = [b - a for a, b in pairwise(shares)]
    if min(steps) <= 0:
        raise ValueError(f"The shares have to rise, got {list(shares)}.")
    return sum(step * (a + b) / 2 for step, (a, b) in zip(steps, pairwise(values), strict=True))
