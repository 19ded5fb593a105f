"""What is sparse in a model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tl_sparse.rules import (
    DENSITY,
    NON_NEGATIVE_INTEGER,
    SWITCH,
    check_fields,
    checks_itself,
    choice,
    from_mapping,
    make_plain_,
    plain,
)

ACTIVATION_SITES = ("attn_in", "q", "k", "v", "attn_out", "mlp_in", "mlp_neuron", "mlp_out")
"""The sites where AbsTopK can be applied, in the order of the forward pass (paper, Fig. 12)."""


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
        return from_mapping(cls, values)
