"""How much work an audit does."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tl_sparse.rules import (
    NON_NEGATIVE_INTEGER,
    POSITIVE_INTEGER,
    POSITIVE_NUMBER,
    SEED,
    check_fields,
    checks_itself,
    from_mapping,
    make_plain_,
    maybe,
)


@checks_itself
@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """How many draws, steps and examples an audit takes; thresholds are not settings."""

    n_random: int = 100
    """Random sets of the circuit's size that are taken out of the model, to compare with."""

    n_subsets: int = 40
    """Random parts of the rest that are left in beside the circuit."""

    n_adversarial_steps: int = 60
    """Gradient steps towards the part of the rest that does the circuit most harm."""

    adversarial_rate: float = 0.1
    """Learning rate of these steps (Adam)."""

    n_examples: int | None = 128
    """Test examples that are used at most; None takes all. Minimality is judged on all of the
    validation examples, by which the circuit was chosen."""

    batch_size: int = 32
    """Examples in a step of the adversary."""

    max_edges: int = 100
    """Edges of a circuit that are tried one by one at most, evenly spread over it."""

    max_nodes: int | None = None
    """Nodes whose worth is measured one by one at most, evenly spread; None takes all."""

    n_control_seeds: int = 0
    """Seeds on which the task is pruned again, on its own prompts, on these resampled and on its
    held-out forms, and nonsense, shuffled labels, shuffled weights and a random model: seven
    prunings each, for "better than chance" and "stable", which are else not tested."""

    seed: int = 0
    """Seeds all draws."""

    def __post_init__(self) -> None:
        make_plain_(self)
        check_fields(self, POSITIVE_INTEGER, "n_random", "n_subsets", "n_adversarial_steps")
        check_fields(self, POSITIVE_INTEGER, "batch_size", "max_edges")
        check_fields(self, POSITIVE_NUMBER, "adversarial_rate")
        check_fields(self, maybe(POSITIVE_INTEGER), "n_examples", "max_nodes")
        check_fields(self, NON_NEGATIVE_INTEGER, "n_control_seeds")
        check_fields(self, SEED, "seed")

    @classmethod
    @checks_itself
    def quick(cls) -> "AuditConfig":
        """Give a quarter of the draws, on 32 examples, and of the edges: for a first look."""
        return cls(n_random=25, n_subsets=10, n_adversarial_steps=30, n_examples=32, max_edges=25)

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain JSON values."""
        return asdict(self)

    @classmethod
    @checks_itself
    def from_dict(cls, values: Mapping[str, Any]) -> "AuditConfig":
        """Build from `to_dict`'s values; an unknown key is a `ValueError`."""
        return from_mapping(cls, values)
