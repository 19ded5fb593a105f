"""How concepts are scored."""

from dataclasses import dataclass

from tl_sparse.rules import (
    NON_NEGATIVE_INTEGER,
    POSITIVE_INTEGER,
    SEED,
    check_fields,
    checks_itself,
    integer,
    make_plain_,
    number,
)


@checks_itself
@dataclass(frozen=True, kw_only=True)
class ConceptConfig:
    """How nodes are scored for concepts.

    Raises:
        ValueError: If a field can't work.
    """

    n_tokens: int = 200_000
    """Tokens that are read; fewer where the text ends before."""

    n_unscored: int = 16
    """Tokens at the beginning of each window that the model reads and nobody scores."""

    n_levels: int = 256
    """Levels to which activations are rounded, in [8, 256]. Every threshold between two levels is
    tried. A node is scored exactly if it has at most n_levels - 4 values other than zero and the
    sample of tokens that sets the levels has them all; 32,767 scored tokens or fewer are all in
    it."""

    threshold: float = 0.5
    """A node tracks a concept if its gain on the held-out half reaches this, in (0, 1]."""

    min_positives: int = 20
    """A concept is left out if it holds, or fails, at fewer tokens of either half."""

    batch_size: int = 32
    """Windows that the model runs at a time."""

    max_bytes: int = 2**28
    """Bytes of activations held at a time. The nodes are taken in as many groups as that needs, and
    the model runs over the text once for each."""

    seed: int = 0
    """Of the control: how far the labels are shifted against the tokens."""

    def __post_init__(self) -> None:
        check_fields(self, POSITIVE_INTEGER, "n_tokens", "min_positives", "batch_size", "max_bytes")
        check_fields(self, NON_NEGATIVE_INTEGER, "n_unscored")
        check_fields(self, integer("is an integer in [8, 256]", 8, below=257), "n_levels")
        check_fields(self, number("is a number in (0, 1]", lambda v: 0 < v <= 1), "threshold")
        check_fields(self, SEED, "seed")
        make_plain_(self)
