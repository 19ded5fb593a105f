"""How a model is trained."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tl_sparse.rules import (
    BETAS,
    FRACTION,
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
    plain,
)

_TRACKERS = Rule("is a tuple of tracker names", lambda v: isinstance(v, list | tuple))


@checks_itself
@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How `train` trains: the recipe of Gao et al. 2025, each choice an option.

    One step is: forward and backward on `batch_size` sequences, gradients brought to RMS
    `gradient_rms`, a *dense* Adam step, the density of this step enforced by magnitude, weight
    decay.
    """

    n_tokens: int = 6_144_000
    """Training tokens in all; the steps are n_tokens / (batch_size x n_ctx) of them, rounded up."""

    batch_size: int = 32
    """Sequences in one optimiser step, over all processes and accumulated micro-batches."""

    n_ctx: int | None = None
    """Tokens in a training sequence; None means the model's own `cfg.n_ctx`."""

    learning_rate: float = 3e-2
    """Peak learning rate before the sharkfin factor. With eps 0.1 Adam is close to momentum on
    normalised gradients, hence values far above Adam's usual ones (the paper tries 0.0128-0.2)."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's decay rates of the first and second moment (paper, A.2)."""

    eps: float = 0.1
    """Adam's epsilon; 0.1 is the paper's, 1e-8 is plain Adam's."""

    weight_decay: float = 0.1
    """Decoupled decay: after the step and the projection, p -= weight_decay x learning rate x p, on
    W_E, W_U and the block matrices; never on biases, gains, sinks, positions or the bigram
    table."""

    gradient_scaling: Literal["normalize", "clip", "none"] = "normalize"
    """What is done with the root mean square of all gradient entries: "normalize" always divides by
    it (the released script), "clip" only when it exceeds `gradient_rms` (the paper's text)."""

    gradient_rms: float = 1.0
    """The root mean square that gradients are brought to, or clipped at."""

    warmup_fraction: float = 0.01
    """Fraction of the steps over which the learning rate rises linearly from 0."""

    learning_rate_decay: Literal["linear", "constant"] = "linear"
    """Linear decay to 0 after the warm-up (the paper), or none."""

    sharkfin: bool = True
    """Multiply the learning rate by sqrt(final density / density now) (paper, A.2 and Fig. 11)."""

    anneal: Literal["linear", "power", "none"] = "linear"
    """How the densities fall from 1 to the model's: linearly in the step, as a power law (linear in
    log density against log step), or not at all: the target holds from the first step."""

    anneal_start: float = 0.01
    """Fraction of the steps at which the density begins to fall (script: 0.01, paper: 0)."""

    anneal_stop: float = 0.5
    """Fraction of the steps from which the final density holds (paper: 0.5; 0.8 helped the largest,
    sparsest models)."""

    anneal_embeddings: Literal["gradual", "sudden"] = "gradual"
    """Embeddings and biases follow the same schedule ("gradual", the released script), or stay
    dense and drop at once half-way through the annealing ("sudden", the paper's models;
    neutral)."""

    regrow: bool = True
    """Whether a zeroed weight may come back (the masks are chosen anew at each step). False freezes
    the model's masks: fine-tuning that keeps every circuit's wiring. Needs anneal="none"."""

    regrow_every: int = 1
    """Once the final density is reached, zeroed weights get a gradient, and may come back, on every
    so many-th step. Between them masks stay and gradients are made for live weights alone, which
    costs less (ours; docs/results/speed.md says how much, and what it does to the loss)."""

    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Autocast precision of the forward pass; parameters, loss and optimiser stay in float32."""

    gradient_accumulation: int = 1
    """Micro-batches in one step; must divide `batch_size` together with the number of processes."""

    eval_every: int = 100
    """Steps between validation losses (and at the end)."""

    n_eval_windows: int = 64
    """Sequences of the validation split in each validation loss, the same ones every time."""

    checkpoint_every: int = 500
    """Steps between checkpoints, when `train` is given a folder."""

    trackers: tuple[str, ...] = ()
    """accelerate's trackers to report to beside the JSON-lines log: "wandb", "tensorboard"."""

    seed: int = 0
    """Seeds the order of the data and the weights that annealing brings back at the start."""

    def __post_init__(self) -> None:
        make_plain_(self)
        check_fields(self, POSITIVE_INTEGER, "n_tokens", "batch_size", "gradient_accumulation")
        check_fields(self, POSITIVE_INTEGER, "eval_every", "n_eval_windows", "checkpoint_every")
        check_fields(self, POSITIVE_INTEGER, "regrow_every")
        check_fields(self, maybe(POSITIVE_INTEGER), "n_ctx")
        check_fields(self, POSITIVE_NUMBER, "learning_rate", "eps", "gradient_rms")
        check_fields(self, NON_NEGATIVE_NUMBER, "weight_decay")
        check_fields(self, FRACTION, "warmup_fraction", "anneal_start", "anneal_stop")
        check_fields(self, SWITCH, "sharkfin", "regrow")
        check_fields(self, SEED, "seed")
        check_fields(self, BETAS, "betas")
        check_fields(self, choice("normalize", "clip", "none"), "gradient_scaling")
        check_fields(self, choice("linear", "constant"), "learning_rate_decay")
        check_fields(self, choice("linear", "power", "none"), "anneal")
        check_fields(self, choice("gradual", "sudden"), "anneal_embeddings")
        check_fields(self, choice("float32", "bf16", "fp16"), "precision")
        check_fields(self, _TRACKERS, "trackers")
        object.__setattr__(self, "betas", tuple(map(plain, self.betas)))
        object.__setattr__(self, "trackers", tuple(self.trackers))
        for tracker in self.trackers:
            choice("wandb", "tensorboard").check("each of trackers", tracker)
        if self.anneal != "none" and self.anneal_start > self.anneal_stop:
            raise ValueError(
                f"anneal_start ({self.anneal_start}) comes after anneal_stop ({self.anneal_stop}); "
                "both are fractions of the run, in order."
            )
        if not self.regrow and self.anneal != "none":
            raise ValueError(
                f"regrow=False freezes the masks, but anneal={self.anneal!r} would change them. "
                'Set anneal="none" to fine-tune with frozen masks.'
            )
        if not self.regrow and self.regrow_every > 1:
            raise ValueError(
                f"regrow=False lets no weight come back, so regrow_every={self.regrow_every} would "
                "do nothing. Leave one of them at its default."
            )
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"gradient_accumulation must divide batch_size, got {self.gradient_accumulation} "
                f"and {self.batch_size}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain JSON values."""
        return asdict(self)

    @classmethod
    @checks_itself
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainingConfig":
        """Build from `to_dict`'s values; an unknown key is a `ValueError`."""
        return from_mapping(cls, values)
