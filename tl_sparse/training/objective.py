"""What a training run minimises.

`train` minimises the next-token loss of its model. Another loss, with parameters of its own beside
the model's, is another `Objective` (`tl_sparse.bridges` has one). Its parameters are in the run's
optimiser and checkpoints, and their gradients count in the root mean square by which all are
scaled; density and weight decay are the model's alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_sparse.model import HookedSparseTransformer
from tl_sparse.training.losses import next_token_loss


class Objective(nn.Module):
    """The loss of a run: here the next-token loss of the model, for others to build on."""

    model: HookedSparseTransformer

    def __init__(self, model: HookedSparseTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
        """Give the loss of a batch."""
        return next_token_loss(self.model(tokens), tokens)

    def own_parameters(self) -> Mapping[str, nn.Parameter]:
        """Give what is trained beside the model, under names that no parameter of it has."""
        return {}

    def scores(self, windows: Int[Tensor, "window pos"]) -> Mapping[str, float]:
        """Give what goes into the log beside the validation loss, over the same windows."""
        return {}

    def identity(self) -> Mapping[str, Any] | None:
        """Give, as JSON values, what must be equal for a stopped run to go on."""
        return None

    def save(self, place: Path) -> None:
        """Write the own parameters into a checkpoint's folder."""

    def load_(self, place: Path) -> None:
        """Take the own parameters over from a checkpoint's folder, in place."""
