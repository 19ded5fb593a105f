"""Running and judging a selection of nodes and edges on a task."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.ablation import References, fast_attention, gated
from tl_sparse.circuit import Site
from tl_sparse.selection import Selection, nonzero_weights
from tl_sparse.sites import Joint, SiteMap
from tl_sparse.tasks import Split, Task


class Trial:
    """A model, a task and the values of what is cut: everything that a selection is judged by."""

    def __init__(
        self, model: HookedTransformer, task: Task, sites: SiteMap, references: References
    ) -> None:
        self.model, self.task, self.sites, self.references = model, task, sites, references
        self.weights = nonzero_weights(model, sites)
        self.like = next(model.parameters()).detach()

    def running(
        self, nodes: Mapping[Site, Tensor], edges: Mapping[Joint, Tensor] | None = None
    ) -> AbstractContextManager[Any]:
        """Run the model with gates on its nodes and edges inside a `with` block."""
        return gated(self.model, self.sites, nodes, self.references.values, edges)

    def only(self, selection: Selection) -> AbstractContextManager[Any]:
        """Run the model with a selection left in, inside a `with` block."""
        return self.running(
            selection.node_gates(self.like), selection.edge_gates(self.like, self.weights)
        )

    def loss(
        self, selection: Selection, *, n_examples: int | None = None, split: Split = "validation"
    ) -> float:
        """Give the loss with a selection left in, on all examples of a split or on some."""
        with self.only(selection):
            return evaluate(self.model, self.task, split, n_examples=n_examples)[0]


@torch.no_grad()
def evaluate(
    model: HookedTransformer,
    task: Task,
    split: Split,
    *,
    batch_size: int = 64,
    n_examples: int | None = None,
) -> tuple[float, float]:
    """Give task loss (nats) and accuracy of a model, as it runs now, on a split.

    `n_examples` takes so many examples spread over the split instead of all.
    """
    device = next(model.parameters()).device
    n_all, loss, accuracy = task.n_examples(split), 0.0, 0.0
    n = min(n_examples or n_all, n_all)
    chosen = [i * n_all // n for i in range(n)]
    with fast_attention(model):
        for start in range(0, n, batch_size):
            indices = chosen[start : start + batch_size]
            batch = task.batch(split, indices).to(device)
            logits = task.logits(model, batch)
            loss += task.loss(logits, batch).item() * len(indices)
            accuracy += task.accuracy(logits, batch) * len(indices)
    return loss / n, accuracy / n
