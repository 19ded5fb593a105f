"""`train_bridged`: a sparse model and its bridges, trained from scratch to a dense model.

The loop is `tl_sparse.training`'s own: same steps, schedules, checkpoints and Ctrl-C. Beside it:

- The bridges are dense and have no schedule of their own: one learning rate, sharkfin and all.
- Gradients are brought to root mean square 1 over the entries of the sparse model *and* of the
  bridges together, by one factor, so that the loss is one loss.
- Weight decay is for the sparse model's matrices alone. Shrinking a bridge would only bias what it
  reconstructs towards zero.
- The dense model is frozen: no gradient, no step, not a bit of it changes.

A step costs 6.1 times one of `train` for the demo's models on a CPU, and 1.4 times without the KLs:
the hybrids are 2 x n_layers runs of half a model each way, and those that end in the dense model
need a backward pass too. All are in memory at once. The bridges' gradients are the larger ones, so
the sparse model moves less in a step than it would alone.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens import HookedTransformer

from tl_sparse.ablation import fast_attention
from tl_sparse.bridges.hybrids import check_models
from tl_sparse.bridges.losses import bridge_losses
from tl_sparse.bridges.modules import Bridges
from tl_sparse.config import BridgeConfig, TrainingConfig
from tl_sparse.data import Corpus
from tl_sparse.history import History
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.training import Objective, train


class BridgedObjective(Objective):
    """The loss of a sparse model tied to a frozen dense one by bridges, which it trains too."""

    def __init__(
        self,
        model: HookedSparseTransformer,
        dense: HookedTransformer,
        bridges: Bridges,
    ) -> None:
        super().__init__(model)
        self.dense, self.bridges = dense, bridges

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
        """Give the loss of a batch: next-token loss, reconstructions and hybrids."""
        config = self.bridges.config
        return bridge_losses(self.dense, self.model, self.bridges, tokens, config).total(config)

    def own_parameters(self) -> Mapping[str, nn.Parameter]:
        """Give the bridges' parameters."""
        return {f"bridges.{name}": p for name, p in self.bridges.named_parameters()}

    @torch.no_grad()
    def scores(self, windows: Int[Tensor, "window pos"]) -> Mapping[str, float]:
        """Give the four parts of the loss as means over the sites, whatever their coefficients.

        The size of both residual streams is measured on the way and noted in the bridges.
        """
        ones = ("encoder_nmse", "decoder_nmse", "kl_into_sparse", "kl_into_dense")
        config = replace(self.bridges.config, **{f"{name}_coef": 1.0 for name in ones})
        device = next(self.model.parameters()).device
        totals: dict[str, float] = dict.fromkeys(ones, 0.0)
        squares: Tensor | float = 0.0
        for batch in windows.split(32):
            batch = batch.to(device)
            losses = bridge_losses(self.dense, self.model, self.bridges, batch, config)
            share = len(batch) / len(windows)
            for name in ones:
                totals[name] += getattr(losses, name).mean().item() * share
            squares = squares + losses.mean_squares * share
        assert isinstance(squares, Tensor)
        self.bridges.note_sizes_(squares)
        return totals

    def identity(self) -> Mapping[str, Any]:
        """Give the config of the bridges and the hash of the dense model."""
        return {"bridges": self.bridges.config.to_dict(), "dense": self.bridges.dense_hash}

    def save(self, place: Path) -> None:
        """Write the bridges to a checkpoint."""
        self.bridges.save(place / "bridges")

    def load_(self, place: Path) -> None:
        """Take the bridges over from a checkpoint, in place."""
        saved = Bridges.load(place / "bridges")
        self.bridges.fill_(saved.state_dict(), place / "bridges")


def train_bridged(
    sparse: HookedSparseTransformer,
    dense: HookedTransformer,
    corpus: Corpus,
    training: TrainingConfig | None = None,
    bridge: BridgeConfig | None = None,
    *,
    folder: str | Path | None = None,
    progress: bool = True,
) -> tuple[Bridges, History]:
    """Train a sparse model in place, with bridges to a dense one, and give bridges and log.

    The dense model is any HookedTransformer of the same depth, vocabulary, device and precision
    that has a residual stream between attention and MLP. With a `folder` a stopped run goes on as
    in `train`; `folder/checkpoint/model` and `folder/checkpoint/bridges` are what
    `HookedSparseTransformer.load` and `Bridges.load` read. In the log `loss` is the whole sum,
    `validation_loss` the sparse model's next-token loss alone, and `encoder_nmse`, `decoder_nmse`,
    `kl_into_sparse` and `kl_into_dense` are means over the sites, on the validation windows.

    Raises:
        ValueError: If the models can't be joined, corpus and models do not fit, or the folder holds
            a run with other settings or another dense model.
        DivergedError: If the loss becomes NaN or infinite.
        KeyboardInterrupt: On Ctrl-C, after the step in hand and the checkpoint.
    """
    training = TrainingConfig() if training is None else training
    check_models(dense, sparse)
    n_ctx = training.n_ctx or sparse.cfg.n_ctx
    if n_ctx > dense.cfg.n_ctx:
        raise ValueError(
            f"The dense model sees {dense.cfg.n_ctx} tokens at most, training sequences have "
            f"{n_ctx}. Set TrainingConfig(n_ctx={dense.cfg.n_ctx})."
        )
    bridges = Bridges.between(dense, sparse, bridge)
    objective = BridgedObjective(sparse, dense, bridges)
    with frozen(dense), fast_attention(dense):
        history = train(
            sparse, corpus, training, folder=folder, progress=progress, objective=objective
        )
    return bridges, history


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Take a model's parameters out of training inside a `with` block."""
    live = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in live:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in live:
            parameter.requires_grad_(True)
