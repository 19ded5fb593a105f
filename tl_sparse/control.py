"""The dense control: a dense model whose *width* is chosen so that its validation loss matches.

The paper compares a sparse model with a dense one of equal pretraining loss (Gao et al. 2025,
section 3.1). Loss falls with width, and from one width to the next it also jumps a little, as it
does from seed to seed. So:

1. train at the widths tried so far, first seed only,
2. estimate the width at which the loss crosses the target, on a line over log width: through the
   points on both sides of it, or near it on one side, or through all if they are out of order;
3. when that width is tried already, or a tried one is near enough, train the other seeds at the
   nearest one; if the mean gap over seeds is within the tolerance that is the control, else correct
   the target by that gap;
4. go on at the untried width nearest to the estimate.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from statistics import linear_regression, mean
from typing import Any

from tl_sparse.rules import POSITIVE_NUMBER, checks_itself

USUAL_SLOPE, STEEPEST, FLATTEST = -2 / 3, -2.0, -0.1
"""Nats for each e-fold of the width: at first, and at the most and the least that is believed."""


@dataclass(frozen=True)
class WidthMatch:
    """The width at which a dense model's validation loss equals a sparse model's."""

    width: int
    target_losses: tuple[float, ...]
    """Validation losses of the sparse model, nats per token, one for each seed."""
    losses: tuple[float, ...]
    """Validation losses of the dense model at `width`, same seeds."""
    tried: tuple[tuple[int, float], ...]
    """(width, loss of the first seed) of every width trained."""

    @property
    def gaps(self) -> tuple[float, ...]:
        """Dense minus sparse loss, seed by seed, in nats per token."""
        return tuple(d - s for d, s in zip(self.losses, self.target_losses, strict=True))

    @property
    def mean_gap(self) -> float:
        """Mean dense minus mean sparse loss."""
        return sum(self.gaps) / len(self.gaps)

    def to_dict(self) -> dict[str, Any]:
        """Give the fields and gaps as JSON values."""
        return asdict(self) | {"gaps": self.gaps, "mean_gap": self.mean_gap}


@checks_itself
def match_width(
    loss_at: Callable[[int, int], float],
    target_losses: Sequence[float],
    *,
    start: int,
    tolerance: float = 0.03,
    max_widths: int = 8,
) -> WidthMatch:
    """Find the width whose mean loss over seeds is within `tolerance` of the targets' mean.

    `loss_at(width, i)` trains a dense model of that width with the i-th seed and gives its
    validation loss in nats per token; it is called at most once for each pair.

    Raises:
        ValueError: If none of at most `max_widths` widths comes close enough, or `tolerance` is
            not positive.
    """
    POSITIVE_NUMBER.check("tolerance", tolerance)
    seen: dict[tuple[int, int], float] = {}

    def loss(width: int, i: int) -> float:
        if (width, i) not in seen:
            seen[width, i] = loss_at(width, i)
        return seen[width, i]

    def result(width: int) -> WidthMatch:
        losses = tuple(loss(width, i) for i in range(len(target_losses)))
        tried = tuple(sorted((w, value) for (w, i), value in seen.items() if i == 0))
        return WidthMatch(width, tuple(target_losses), losses, tried)

    aim, width = target_losses[0], start
    gaps: dict[int, float] = {}  # of the widths that were trained with all seeds
    while width is not None:
        loss(width, 0)
        points = {w: value for (w, i), value in seen.items() if i == 0}
        full = len(points) >= max_widths
        while open_ := [w for w in points if w not in gaps]:
            best = min(open_, key=lambda w: abs(points[w] - aim))
            off = abs(points[best] - aim)
            settled = off <= tolerance / 2 or round(_crossing(points, aim)) in points
            if not settled and not (full and off <= tolerance):
                break
            match = result(best)
            if abs(match.mean_gap) <= tolerance:
                return match
            gaps[best] = match.mean_gap
            # What the first seed should have given.
            aim = sum(points[w] - gap for w, gap in gaps.items()) / len(gaps)
            if not full:
                break
        width = None if full else _next_width(points, aim)
    tried = [f"{w}: {value:.3f}" for (w, i), value in sorted(seen.items()) if i == 0]
    raise ValueError(
        f"No width comes within {tolerance} nats of {sum(target_losses) / len(target_losses):.3f} "
        f"after {len(tried)} tries (width: loss of the first seed: {', '.join(tried)}). "
        "Start nearer, or allow more."
    )


def _crossing(points: dict[int, float], aim: float) -> float:
    """Estimate the width at which the loss is `aim`, at most three times beyond those tried."""
    best = min(points, key=lambda w: abs(points[w] - aim))
    above = [w for w, value in points.items() if value >= aim]
    below = [w for w, value in points.items() if value < aim]
    if not above or not below:
        some = sorted(points, key=lambda w: abs(points[w] - aim))[:2]
    elif max(above) < min(below):
        some = [max(above), min(below)]
    else:
        some = list(points)
    x, y, slope = math.log(best), points[best], USUAL_SLOPE
    if len(some) > 1:
        logs, losses = [math.log(w) for w in some], [points[w] for w in some]
        line = linear_regression(logs, losses)
        slope = min(max(line.slope, STEEPEST), FLATTEST)
        if above and below:
            x, y = mean(logs), mean(losses)
    low, high = math.log(min(points) / 3), math.log(max(points) * 3)
    return max(1.0, math.exp(min(max(x + (aim - y) / slope, low), high)))


def _next_width(points: dict[int, float], aim: float) -> int | None:
    """Give the untried width nearest to the estimate, wider or narrower than all if it has to be.

    None if a model of width 1 is still too good.
    """
    low, high = 1, 3 * max(points)
    if all(value < aim for value in points.values()):
        high = min(points) - 1
    if all(value >= aim for value in points.values()):
        low = max(points) + 1
    there = _crossing(points, aim)
    untried = (w for w in range(low, high + 1) if w not in points)
    return min(untried, key=lambda w: abs(math.log(w / there)), default=None)


def matched_width_preset(corpus_hash: str) -> int | None:
    """Give the width that was found for the demo's sparse model, if it was found on this corpus.

    The standard library differs from one Python to the next, and with it the corpus and its hash.
    """
    place = files("tl_sparse").joinpath("matched_width.json")
    if not place.is_file():
        return None
    preset = json.loads(place.read_text(encoding="utf-8"))
    return preset["width"] if preset["corpus"] == corpus_hash else None
