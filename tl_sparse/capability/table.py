"""Models side by side: size, nonzero entries, training compute, and bits per byte."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformer_lens import HookedTransformer

from tl_sparse.bench.cost import Run, work
from tl_sparse.capability.bits import Bits, bits_per_byte
from tl_sparse.capability.ngrams import NGramModel
from tl_sparse.config import SparsityConfig, TrainingConfig
from tl_sparse.data import Corpus
from tl_sparse.markup import markdown_table
from tl_sparse.summary import count_nonzero


@dataclass(frozen=True, kw_only=True)
class CapabilityRow:
    """What a model is made of, and how well it predicts held-out text."""

    name: str
    n_parameters: int
    """Entries of all trained parameters; of an n-gram model its counts."""
    n_nonzero: int
    """Those of them that aren't zero."""
    training_flops: float | None
    """FLOPs of the whole training by `tl_sparse.bench.cost`, which counts products as done densely;
    None where it isn't known."""
    nats_per_token: float
    bits_per_byte: float
    n_tokens: int
    """Tokens predicted."""

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON values."""
        return asdict(self)


def training_flops(model: HookedTransformer, training: TrainingConfig) -> float:
    """Give the FLOPs of training a model: those of one step, times the steps.

    Raises:
        ValueError: If the cost model doesn't know the model's shape.
    """
    run = Run(model.cfg, getattr(model, "sparsity", SparsityConfig()), training)
    n_steps = -(-training.n_tokens // (training.batch_size * run.n_ctx))
    return n_steps * sum(part.flops for part in work(run).values())


def capability_row(
    name: str,
    model: HookedTransformer | NGramModel,
    corpus: Corpus,
    *,
    training: TrainingConfig | None = None,
    n_ctx: int | None = None,
    n_windows: int | None = None,
    progress: bool = True,
) -> CapabilityRow:
    """Measure one model on a corpus' validation side; see `bits_per_byte`.

    `training` is how it was trained, for its compute.
    """
    settings: dict[str, Any] = {"n_ctx": n_ctx, "n_windows": n_windows, "progress": progress}
    if isinstance(model, NGramModel):
        bits = bits_per_byte(model.log_probs, corpus, **settings)
        return _row(name, model.n_counts, model.n_counts, None, bits)
    bits = bits_per_byte(model, corpus, **settings)
    trained = [p for p in model.parameters() if p.requires_grad]
    flops = None if training is None else training_flops(model, training)
    return _row(
        name, sum(p.numel() for p in trained), sum(count_nonzero(model).values()), flops, bits
    )


def _row(
    name: str, n_parameters: int, n_nonzero: int, flops: float | None, bits: Bits
) -> CapabilityRow:
    return CapabilityRow(
        name=name,
        n_parameters=n_parameters,
        n_nonzero=n_nonzero,
        training_flops=flops,
        nats_per_token=bits.nats_per_token,
        bits_per_byte=bits.per_byte,
        n_tokens=bits.n_tokens,
    )


def capability_table(rows: Sequence[CapabilityRow]) -> str:
    """Write rows as a Markdown table."""
    names = ["model", "parameters", "nonzero", "training FLOPs", "nats per token", "bits per byte"]
    cells = [
        [row.name, f"{row.n_parameters:,}", f"{row.n_nonzero:,}",
         "-" if row.training_flops is None else f"{row.training_flops:.2e}",
         f"{row.nats_per_token:.3f}", f"{row.bits_per_byte:.3f}"]
        for row in rows
    ]  # fmt: skip
    return markdown_table(names, cells)
