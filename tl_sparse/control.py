"""The dense control: a dense model whose *width* is chosen so that its validation loss matches.

The paper compares a sparse model with a dense one of equal pretraining loss (Gao et al. 2025,
section 3.1). Loss falls with width, so the width is found by secant steps on log width, one seed at
a time, and confirmed on all seeds:

1. train at the widths tried so far, first seed only,
2. interpolate log width at the target loss between the two nearest points (extrapolate at the
   ends),
3. when the step lands on a width already tried, train the other seeds there; if the mean gap over
   seeds is within the tolerance that is the control, else correct the target by that gap.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

from tl_sparse.rules import POSITIVE_NUMBER, checks_itself


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
        ValueError: If no width within `max_widths` tries comes close enough, or `tolerance` is not
            positive.
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
    confirmed: set[int] = set()
    for _ in range(2 * max_widths):
        loss(width, 0)
        points = {w: value for (w, i), value in seen.items() if i == 0}
        if len(points) > max_widths:
            break
        best = min(points, key=lambda w: abs(points[w] - aim))
        step = _interpolate(points, aim)
        if abs(points[best] - aim) <= tolerance / 2 or step in points:
            match = result(best)
            if abs(match.mean_gap) <= tolerance:
                return match
            if best in confirmed:
                step = best + (1 if match.mean_gap > 0 else -1)
            confirmed.add(best)
            aim = points[best] - match.mean_gap  # what the first seed should have given
            step = step if step not in points else _interpolate(points, aim)
        if step < 1:
            break
        width = step
    tried = [f"{w}: {value:.3f}" for (w, i), value in sorted(seen.items()) if i == 0]
    raise ValueError(
        f"No width comes within {tolerance} nats of {sum(target_losses) / len(target_losses):.3f} "
        f"after {len(tried)} tries (width: loss of the first seed: {', '.join(tried)}). "
        "Start nearer, or allow more."
    )


def _interpolate(points: dict[int, float], aim: float) -> int:
    """Give the width at which a line through the two points nearest to `aim` crosses it."""
    if len(points) == 1:
        ((width, loss),) = points.items()
        return max(2, round(width * math.exp(1.5 * (loss - aim)))) if loss != aim else width
    above = [w for w, value in points.items() if value >= aim]
    below = [w for w, value in points.items() if value < aim]
    if above and below:
        a, b = max(above), min(below)
    else:
        a, b = sorted(points, key=lambda w: abs(points[w] - aim))[:2]
    if points[a] == points[b]:
        return max(a, b) + 1
    t = (aim - points[a]) / (points[b] - points[a])
    log_width = math.log(a) + t * (math.log(b) - math.log(a))
    low, high = min(points) / 3, max(points) * 3
    return max(2, round(min(max(math.exp(log_width), low), high)))


def matched_width_preset(corpus_hash: str) -> int | None:
    """Give the width that was found for the demo's sparse model, if it was found on this corpus.

    The standard library differs from one Python to the next, and with it the corpus and its hash.
    """
    place = files("tl_sparse").joinpath("matched_width.json")
    if not place.is_file():
        return None
    preset = json.loads(place.read_text(encoding="utf-8"))
    return preset["width"] if preset["corpus"] == corpus_hash else None
