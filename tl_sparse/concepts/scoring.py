r"""From histograms to scores: thresholds are chosen on one half of the tokens, scored on the other.

For a node and a concept, with P positive tokens of T:

1. **Threshold**: "the concept holds where the activation is above t", or below t, for every t
   between two levels; the one with the highest F1 = 2 TP / (predicted + P) on the first half. Of
   equals in one direction it is the one that says yes most often, of equals in both directions the
   one with an AUROC of at least a half; so a node and its negative get the same scores.
2. On the second half: precision, recall and F1 of that very rule.
3. **Gain**: (F1 - F1_0) / (1 - F1_0), where F1_0 = 2P / (T + P) is what always saying yes gives.
   0 is no better than that, 1 is perfect; so common and rare concepts can be compared.
4. **AUROC**: the probability that a positive token has a higher activation than a negative one, a
   tie counting half; 1 minus it where the rule of step 1 is "below".
5. **Information**: mutual information, in bits, between the concept and the rule's answer.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_sparse.concepts.counting import Counts


@dataclass(frozen=True, eq=False)
class Rules:
    """For each concept and node the best threshold, as the first level above it."""

    cut: Int[Tensor, "concept node"]
    """Levels from this one on are above the threshold."""
    above: Bool[Tensor, "concept node"]
    """Whether the concept is said to hold above the threshold, or else below."""
    f1: Float[Tensor, "concept node"]
    """On the tokens that the threshold was chosen on."""


@dataclass(frozen=True, eq=False)
class PairScores:
    """How well each node tracks each concept, on tokens that nothing was chosen on."""

    f1: Float[Tensor, "concept node"]
    precision: Float[Tensor, "concept node"]
    recall: Float[Tensor, "concept node"]
    auroc: Float[Tensor, "concept node"]
    gain: Float[Tensor, "concept node"]
    information: Float[Tensor, "concept node"]
    """Bits."""
    threshold: Float[Tensor, "concept node"]
    """Value of the activation."""
    above: Bool[Tensor, "concept node"]
    """Whether the concept holds above the threshold, or else below."""
    chosen_f1: Float[Tensor, "concept node"]
    """F1 on the half that the threshold was chosen on; by it a concept's best node is chosen."""


def best_rules(counts: Counts) -> Rules:
    """Find the threshold and the direction with the highest F1 of each concept at each node."""
    hits, said = _above(counts.positive), _above(counts.total)
    n_positive = counts.positive.sum(2, keepdim=True)
    n_tokens = counts.total.sum(1)[:, None]
    up = _f1(hits, said, n_positive)
    down = _f1(n_positive - hits, n_tokens - said, n_positive)
    best_up, cut_up = up.max(2)  # the first of equals
    best_down, cut_down = down.flip(2).max(2)
    cut_down = down.shape[2] - 1 - cut_down
    above = (best_up > best_down) | ((best_up == best_down) & (_auroc(counts) >= 0.5))
    cut = torch.where(above, cut_up, cut_down) + 1
    return Rules(cut, above, torch.where(above, best_up, best_down))


def score_rules(counts: Counts, rules: Rules, edges: Float[Tensor, "node edge"]) -> PairScores:
    """Score rules on the histograms of other tokens."""
    place = (rules.cut - 1)[:, :, None]
    n_positive = counts.positive.sum(2)
    n_tokens = counts.total.sum(1).expand_as(n_positive)
    hits = _above(counts.positive).gather(2, place)[:, :, 0]
    said = _above(counts.total).expand(len(n_positive), -1, -1).gather(2, place)[:, :, 0]
    hits = torch.where(rules.above, hits, n_positive - hits)
    said = torch.where(rules.above, said, n_tokens - said)
    auroc = _auroc(counts)
    f1, always = _f1(hits, said, n_positive), 2 * n_positive / (n_tokens + n_positive)
    return PairScores(
        f1=f1,
        precision=hits / said.clamp(min=1),
        recall=hits / n_positive.clamp(min=1),
        auroc=torch.where(rules.above, auroc, 1 - auroc),
        gain=(f1 - always) / (1 - always).clamp(min=1e-12),
        information=information(hits, said, n_positive, n_tokens),
        threshold=edges.gather(1, (rules.cut - 1).T).T.to(f1),
        above=rules.above,
        chosen_f1=rules.f1,
    )


def joined(parts: list[PairScores]) -> PairScores:
    """Put the scores of several groups of nodes side by side."""
    names = [field.name for field in fields(PairScores)]
    return PairScores(**{n: torch.cat([getattr(part, n) for part in parts], 1) for n in names})


def rows_of(scores: PairScores, rows: slice) -> PairScores:
    """Give the scores of some concepts."""
    names = [field.name for field in fields(PairScores)]
    return PairScores(**{name: getattr(scores, name)[rows] for name in names})


def information(
    hits: Float[Tensor, "*pair"],
    said: Float[Tensor, "*pair"],
    n_positive: Float[Tensor, "*pair"],
    n_tokens: Float[Tensor, "*pair"],
) -> Float[Tensor, "*pair"]:
    """Give the mutual information, in bits, of two labels: counts of both, of each, and of all."""
    total = torch.zeros_like(hits)
    for both, one, other in (
        (hits, said, n_positive),
        (said - hits, said, n_tokens - n_positive),
        (n_positive - hits, n_tokens - said, n_positive),
        (n_tokens - said - n_positive + hits, n_tokens - said, n_tokens - n_positive),
    ):
        ratio = both * n_tokens / (one * other).clamp(min=1)
        total += torch.where(both > 0, both / n_tokens * ratio.clamp(min=1e-300).log2(), 0.0)
    return total.clamp(min=0)


def _above(histogram: Float[Tensor, "*rows level"]) -> Float[Tensor, "*rows cut"]:
    """Count what is at each level but the first, or above it."""
    return histogram.flip(-1).cumsum(-1).flip(-1)[..., 1:]


def _f1(hits: Tensor, said: Tensor, n_positive: Tensor) -> Tensor:
    return 2 * hits / (said + n_positive).clamp(min=1)


def _auroc(counts: Counts) -> Float[Tensor, "concept node"]:
    negative = counts.total - counts.positive
    below = negative.cumsum(2) - negative / 2
    pairs = counts.positive.sum(2) * negative.sum(2)
    won = (counts.positive * below).sum(2)
    return torch.where(pairs > 0, won / pairs.clamp(min=1), 0.5)
