"""How circuits are found, and how settings for that are searched."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tl_sparse.rules import (
    BETAS,
    FRACTION,
    NON_NEGATIVE_INTEGER,
    NON_NEGATIVE_NUMBER,
    POSITIVE_INTEGER,
    POSITIVE_NUMBER,
    SEED,
    SWITCH,
    Rule,
    check_fields,
    checks_itself,
    choice,
    from_mapping,
    make_plain_,
    maybe,
    number,
    plain,
)

_TAU = number("is a tau in [-1, 1]", lambda v: -1 <= v <= 1)
_PRICE = Rule(
    'is "adaptive" or a non-negative finite number',
    lambda v: NON_NEGATIVE_NUMBER.holds(v) or (isinstance(v, str) and v == "adaptive"),
)
_METHOD = choice("learned", "attribution", "integrated_gradients", "random", "magnitude")


@checks_itself
@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    """How `prune` finds what a task needs (paper, A.5; centres of its Table 2).

    Each node has a number tau in [-1, 1] and is on where tau > 0. The taus are learned with a
    straight-through step on task loss + `k_coef` x (number of nodes that are on), then ranked.
    """

    method: Literal["learned", "attribution", "integrated_gradients", "random", "magnitude"] = (
        "learned"
    )
    """How nodes and edges are ranked: by learned masks, or by one of the baselines of
    `tl_sparse.pruning.scores`. Sizes are chosen and circuits cleaned up alike for all."""

    n_ig_steps: int = 16
    """Points on the path of "integrated_gradients", and forward passes over the pairs."""

    target_loss: float = 0.15
    """Task loss, in nats, that the circuit must reach on the validation pairs."""

    k_coef: float | Literal["adaptive"] = "adaptive"
    """Price of one node, in nats. "adaptive" raises it while the loss is under the target and
    lowers it while it is over; the paper searches a fixed one, around 1e-4 for ~1e5 nodes."""

    n_steps: int = 300
    """Optimiser steps on the masks."""

    batch_size: int = 32
    """Pairs in a step: twice as many prompts (the paper: 64)."""

    learning_rate: float = 1e-2
    """Peak learning rate of AdamW on the taus; decays linearly to 0 after the warm-up."""

    warmup_fraction: float = 0.0
    """Fraction of the steps over which the learning rate rises (text of the paper: none)."""

    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates (the paper lists 1 - beta2 = 0.05)."""

    weight_decay: float = 1e-3
    """AdamW's decay of the taus."""

    gradient_clip: float = 1.0
    """Largest norm of the gradient on the taus."""

    init_noise_scale: float = 1e-2
    """Spread of the initial taus."""

    init_noise_bias: float = 1e-1
    """Mean of the initial taus: positive, so that learning starts from the whole model."""

    heaviside_temperature: float = 1.0
    """Width of the sigmoid whose derivative stands for the step's in the backward pass."""

    edges: bool = True
    """Stage two: after the nodes, learn which of the weights between them are needed. The paper
    counts every nonzero weight between kept nodes; its authors name this as the better way."""

    n_edge_steps: int = 200
    """Optimiser steps on the masks of edges, at most: two for each edge, but 50, are enough."""

    drop_one: bool = True
    """Clean up: take out nodes and edges that the target does not need, until each of those left is
    needed. The paper's authors cleaned up by hand; False gives what the ranking by tau finds."""

    max_singles: int = 200
    """The largest circuit, in edges, whose edges the clean-up tries one by one; of larger ones, as
    dense models have, it takes four at a time."""

    exchange: bool = True
    """In the clean-up of small circuits, also take out edges in pairs, and put one back where that
    makes more than one needless."""

    max_exchange: int = 24
    """The largest circuit, in edges, that pairs and exchanges are tried on."""

    n_surroundings: int = 0
    """Stochastic ablation: so many random parts of the rest, beside which a selection has to reach
    the target in the mean, as well as alone; while masks are learned, every other step has such a
    part in. 0, as in the paper, judges a circuit alone."""

    tie_qk: bool = False
    """Keep or drop the q and k node of one (head, channel) together (the paper's are separate)."""

    mask_final: bool = False
    """Prune the input of the unembedding too; its nodes are never in the headline counts."""

    min_accuracy: float = 0.9
    """The gate: the least accuracy of the whole model on the test pairs."""

    seed: int = 0
    """Seeds the initial taus and the order of the pairs, and the scores of "random"."""

    def __post_init__(self) -> None:
        make_plain_(self)
        check_fields(self, _METHOD, "method")
        check_fields(self, POSITIVE_INTEGER, "n_steps", "n_edge_steps", "batch_size", "n_ig_steps")
        check_fields(self, POSITIVE_NUMBER, "target_loss", "learning_rate", "gradient_clip")
        check_fields(self, POSITIVE_NUMBER, "heaviside_temperature")
        check_fields(self, NON_NEGATIVE_NUMBER, "weight_decay", "init_noise_scale")
        check_fields(self, _PRICE, "k_coef")
        check_fields(self, _TAU, "init_noise_bias")
        check_fields(self, FRACTION, "warmup_fraction", "min_accuracy")
        check_fields(self, SWITCH, "edges", "drop_one", "exchange", "tie_qk", "mask_final")
        check_fields(self, NON_NEGATIVE_INTEGER, "max_exchange", "max_singles")
        check_fields(self, NON_NEGATIVE_INTEGER, "n_surroundings")
        check_fields(self, SEED, "seed")
        check_fields(self, BETAS, "betas")
        object.__setattr__(self, "betas", tuple(map(plain, self.betas)))

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain JSON values."""
        return asdict(self)

    @classmethod
    @checks_itself
    def from_dict(cls, values: Mapping[str, Any]) -> "PruningConfig":
        """Build from `to_dict`'s values; an unknown key is a `ValueError`."""
        return from_mapping(cls, values)


@checks_itself
@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How `search` looks for settings of the pruning that give a small circuit.

    At least one of `n_trials` and `minutes` is needed; whichever is spent first ends the search.
    """

    n_trials: int | None = None
    """Prunings in all; a search that goes on in its folder counts those already there."""

    minutes: float | None = None
    """Wall-clock minutes after which no further pruning begins."""

    n_workers: int = 1
    """Processes that prune at the same time, each with one thread. With one worker and a budget in
    trials the same seed gives the same circuit."""

    folder: str | None = None
    """Where trials and their circuits are kept, so that the search can go on later. None keeps them
    until the search ends."""

    seed: int = 0
    """Seeds the choice of settings; `PruningConfig.seed` stays the same in all trials."""

    def __post_init__(self) -> None:
        make_plain_(self)
        check_fields(self, maybe(POSITIVE_INTEGER), "n_trials")
        check_fields(self, maybe(POSITIVE_NUMBER), "minutes")
        check_fields(self, POSITIVE_INTEGER, "n_workers")
        check_fields(self, SEED, "seed")
        if self.folder is not None:
            object.__setattr__(self, "folder", str(self.folder))
        if self.n_trials is None and self.minutes is None:
            raise ValueError(
                "A search needs a budget, n_trials or minutes, and got neither. Pruning once, "
                "without a search, is prune()."
            )

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain JSON values."""
        return asdict(self)

    @classmethod
    @checks_itself
    def from_dict(cls, values: Mapping[str, Any]) -> "SearchConfig":
        """Build from `to_dict`'s values; an unknown key is a `ValueError`."""
        return from_mapping(cls, values)
