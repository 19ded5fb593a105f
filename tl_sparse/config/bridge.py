"""How a sparse model is tied to a dense one while it is trained."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tl_sparse.rules import (
    DENSITY,
    NON_NEGATIVE_NUMBER,
    SEED,
    check_fields,
    checks_itself,
    choice,
    from_mapping,
    make_plain_,
)


@checks_itself
@dataclass(frozen=True, kw_only=True)
class BridgeConfig:
    """What `tl_sparse.bridges.train_bridged` adds to the training of a sparse model.

    The loss is the sparse model's next-token loss plus four sums over the bridges, each times its
    coefficient. The paper gives neither the coefficients nor the normalisation (Gao et al. 2025,
    A.3); a term with coefficient 0 costs nothing.
    """

    encoder_density: float = 0.25
    """Fraction of the sparse model's channels that AbsTopK keeps behind an encoder, in (0, 1]; 1/4
    is what the paper keeps at the sparse model's own sites."""

    encoder_nmse_coef: float = 1.0
    """Of the normalised squared error of each encoder: sparse residuals made of dense ones."""

    decoder_nmse_coef: float = 1.0
    """Of the normalised squared error of each decoder: dense residuals made of sparse ones."""

    kl_into_sparse_coef: float = 1.0
    """Of KL(dense || hybrid) of each hybrid that begins dense and goes on sparse, in nats per
    token. The hybrids both ways are most of a step's time."""

    kl_into_dense_coef: float = 1.0
    """Of KL(dense || hybrid) of each hybrid that begins sparse and goes on dense."""

    nmse_normalisation: Literal["token", "batch"] = "token"
    """What a squared error is divided by: at each token by that token's squared deviation from the
    batch's mean, then averaged ("token", as in Drori's code), or once, all tokens summed ("batch":
    the fraction of variance unexplained, in which a token near the mean can't weigh much)."""

    seed: int = 0
    """Seeds the bridges' first weights."""

    def __post_init__(self) -> None:
        make_plain_(self)
        check_fields(self, DENSITY, "encoder_density")
        check_fields(self, NON_NEGATIVE_NUMBER, "encoder_nmse_coef", "decoder_nmse_coef")
        check_fields(self, NON_NEGATIVE_NUMBER, "kl_into_sparse_coef", "kl_into_dense_coef")
        check_fields(self, choice("token", "batch"), "nmse_normalisation")
        check_fields(self, SEED, "seed")

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain JSON values."""
        return asdict(self)

    @classmethod
    @checks_itself
    def from_dict(cls, values: Mapping[str, Any]) -> "BridgeConfig":
        """Build from `to_dict`'s values; an unknown key is a `ValueError`."""
        return from_mapping(cls, values)
