"""Every knob there is, as frozen dataclasses that are checked once.

Three configs, in the order of the flow: what is sparse in a model (`SparsityConfig`), how it is
trained (`TrainingConfig`) and how a task's circuit is found in it (`PruningConfig`). The shape of
the network itself is TransformerLens' own `HookedTransformerConfig`.

Defaults follow Gao et al. 2025 (arXiv 2511.13653, section 2.1 and appendix A.2). Where the paper
and the authors' released script disagree, the field says so.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from tl_sparse.rules import (
    BETAS,
    DENSITY,
    FRACTION,
    NON_NEGATIVE_INTEGER,
    NON_NEGATIVE_NUMBER,
    POSITIVE_INTEGER,
    POSITIVE_NUMBER,
    SWITCH,
    Rule,
    check_fields,
    checks_itself,
    choice,
    integer,
    make_plain_,
    maybe,
    number,
    plain,
)

ACTIVATION_SITES = ("attn_in", "q", "k", "v", "attn_out", "mlp_in", "mlp_neuron", "mlp_out")
"""The sites where AbsTopK can be applied, in the order of the forward pass (paper, Fig. 12)."""

_SEED = integer("is an integer in [0, 2**63)", 0, below=2**63)
_TAU = number("is a tau in [-1, 1]", lambda v: -1 <= v <= 1)
_PRICE = Rule(
    'is "adaptive" or a non-negative finite number',
    lambda v: NON_NEGATIVE_NUMBER.holds(v) or (isinstance(v, str) and v == "adaptive"),
)
_TRACKERS = Rule("is a tuple of tracker names", lambda v: isinstance(v, list | tuple))


@checks_itself
@dataclass(frozen=True, kw_only=True)
class SparsityConfig:
    """What is sparse in a `HookedSparseTransformer`. Everything is off by default.

    Examples:
        >>> SparsityConfig(weight_density=1 / 64, activation_density=1 / 4).site_density("mlp_out")
        0.25
        >>> SparsityConfig(weight_density=0.0)
        Traceback (most recent call last):
        ...
        ValueError: weight_density is a fraction of kept entries in (0, 1], got 0.0. Leave it ...
    """

    weight_density: float = 1.0
    """Fraction of entries kept in each block matrix (W_Q, W_K, W_V, W_O, W_in, W_out); (0, 1]."""

    embedding_density: float = 1.0
    """Fraction of entries kept in W_E and in W_U, in (0, 1]. The released script uses a milder one
    than in the blocks: the square root of their density at a width factor of 1."""

    bias_density: float = 1.0
    """Fraction of entries kept in each bias of the blocks, in (0, 1]. The paper's biases are
    sparse; the released script leaves them dense, which its ablation finds slightly better in
    loss."""

    activation_density: float | Mapping[str, float] = 1.0
    """Fraction of channels that AbsTopK keeps at each token, in (0, 1]: one number for all eight
    sites, or a mapping from site to number (sites left out stay dense). The paper uses 1/4."""

    min_alive: int = 0
    """Least number of nonzero weights into each neuron and q, k, v channel, and out of each neuron
    and head channel. The paper uses 4, which needs `weight_density >= 4 / d_model`."""

    qkv_ranking: Literal["separate", "joint"] = "separate"
    """Whether the largest weights are chosen within W_Q, W_K and W_V each, or among the three
    together, as the released script does (its c_attn is one matrix)."""

    bigram_table: bool = False
    """Add a dense learned table, row of the current token, to the logits, so that the sparse
    weights need not store bigram statistics (paper, A.1). d_vocab x d_vocab_out parameters."""

    position_channels: int = 0
    """Learned positions as that many channels which attention and MLP read beside the residual
    stream, instead of positions added to it (paper, A.1: some earlier models). They have norms of
    their own and compete in AbsTopK at attn_in and mlp_in, whose widths are then d_model + this
    many. Needs `cfg.positional_embedding_type="none"`."""

    def __post_init__(self) -> None:
        make_plain_(self)
        check_fields(self, DENSITY, "weight_density", "embedding_density", "bias_density")
        if isinstance(self.activation_density, Mapping):
            sites = {site: plain(density) for site, density in self.activation_density.items()}
            object.__setattr__(self, "activation_density", sites)
            for site, density in sites.items():
                if site not in ACTIVATION_SITES:
                    raise ValueError(
                        f"activation_density names the site {site!r}; "
                        f"AbsTopK can stand at {', '.join(ACTIVATION_SITES)}."
                    )
                DENSITY.check(f"activation_density[{site!r}]", density)
        else:
            DENSITY.check("activation_density", self.activation_density)
        check_fields(self, NON_NEGATIVE_INTEGER, "min_alive", "position_channels")
        check_fields(self, choice("separate", "joint"), "qkv_ranking")
        check_fields(self, SWITCH, "bigram_table")

    def site_density(self, site: str) -> float:
        """Give the activation density at one of `ACTIVATION_SITES`."""
        if isinstance(self.activation_density, Mapping):
            return self.activation_density.get(site, 1.0)
        return self.activation_density

    @property
    def is_dense(self) -> bool:
        """Whether nothing at all is asked for: such a model is TransformerLens' own."""
        densities = (self.weight_density, self.embedding_density, self.bias_density)
        sites_dense = all(self.site_density(site) == 1 for site in ACTIVATION_SITES)
        added = self.bigram_table or self.position_channels
        return all(d == 1 for d in densities) and sites_dense and not added

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain JSON values."""
        return asdict(self)

    @classmethod
    @checks_itself
    def from_dict(cls, values: Mapping[str, Any]) -> "SparsityConfig":
        """Build from `to_dict`'s values; an unknown key is a `ValueError`."""
        return _from_dict(cls, values)


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
        check_fields(self, maybe(POSITIVE_INTEGER), "n_ctx")
        check_fields(self, POSITIVE_NUMBER, "learning_rate", "eps", "gradient_rms")
        check_fields(self, NON_NEGATIVE_NUMBER, "weight_decay")
        check_fields(self, FRACTION, "warmup_fraction", "anneal_start", "anneal_stop")
        check_fields(self, SWITCH, "sharkfin", "regrow")
        check_fields(self, _SEED, "seed")
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
        return _from_dict(cls, values)


@checks_itself
@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    """How `prune` finds the nodes that a task needs (paper, A.5; centres of its Table 2).

    Each node has a number tau in [-1, 1] and is on where tau > 0. The taus are learned with a
    straight-through step on task loss + `k_coef` x (number of nodes that are on), then ranked.
    """

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
    """Optimiser steps on the masks of edges."""

    drop_one: bool = True
    """Clean up: take out nodes and edges that the target does not need, until each of those left is
    needed. The paper's authors cleaned up by hand; False gives what the ranking by tau finds."""

    max_singles: int = 200
    """The largest circuit, in edges, whose edges the clean-up tries one by one; of larger ones, as
    dense models have, it takes four at a time."""

    exchange: bool = True
    """In the clean-up of small circuits, also take out edges in pairs, and put one back where that
    makes more than one needless."""

    max_exchange: int = 40
    """The largest circuit, in edges, that pairs and exchanges are tried on."""

    tie_qk: bool = False
    """Keep or drop the q and k node of one (head, channel) together (the paper's are separate)."""

    mask_final: bool = False
    """Prune the input of the unembedding too; its nodes are never in the headline counts."""

    min_accuracy: float = 0.9
    """The gate: the least accuracy of the whole model on the test pairs."""

    seed: int = 0
    """Seeds the initial taus and the order of the pairs."""

    def __post_init__(self) -> None:
        make_plain_(self)
        check_fields(self, POSITIVE_INTEGER, "n_steps", "n_edge_steps", "batch_size")
        check_fields(self, POSITIVE_NUMBER, "target_loss", "learning_rate", "gradient_clip")
        check_fields(self, POSITIVE_NUMBER, "heaviside_temperature")
        check_fields(self, NON_NEGATIVE_NUMBER, "weight_decay", "init_noise_scale")
        check_fields(self, _PRICE, "k_coef")
        check_fields(self, _TAU, "init_noise_bias")
        check_fields(self, FRACTION, "warmup_fraction", "min_accuracy")
        check_fields(self, SWITCH, "edges", "drop_one", "exchange", "tie_qk", "mask_final")
        check_fields(self, NON_NEGATIVE_INTEGER, "max_exchange", "max_singles")
        check_fields(self, _SEED, "seed")
        check_fields(self, BETAS, "betas")
        object.__setattr__(self, "betas", tuple(map(plain, self.betas)))

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain JSON values."""
        return asdict(self)

    @classmethod
    @checks_itself
    def from_dict(cls, values: Mapping[str, Any]) -> "PruningConfig":
        """Build from `to_dict`'s values; an unknown key is a `ValueError`."""
        return _from_dict(cls, values)


def _from_dict(cls: Any, values: Any) -> Any:
    known = {f.name for f in fields(cls)}
    if not isinstance(values, Mapping):
        raise ValueError(f"{cls.__name__} is built from a mapping of its fields, got {values!r}.")
    unknown = sorted(str(name) for name in values if name not in known)
    if unknown:
        raise ValueError(
            f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}."
        )
    return cls(**values)
