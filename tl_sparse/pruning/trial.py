"""Running and judging a selection of nodes and edges on a task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.ablation import References, fast_attention, gated
from tl_sparse.circuit import Site
from tl_sparse.pruning.others import other_tokens
from tl_sparse.pruning.surroundings import draw_surroundings
from tl_sparse.resampling import values_on
from tl_sparse.selection import Selection, nonzero_weights
from tl_sparse.sites import Joint, SiteMap
from tl_sparse.tasks import Split, Task

Values = Mapping[Site, Tensor]
"""Of what is out, by site: [node], or [batch, pos, node] under a resampling ablation."""

MAX_KEPT = 2**27
"""Values of other prompts that are kept at most, instead of being computed again: 512 MB."""


class Trial:
    """A model, a task and the values of what is cut: everything that a selection is judged by."""

    def __init__(
        self,
        model: HookedTransformer,
        task: Task,
        sites: SiteMap,
        references: References,
        *,
        n_surroundings: int = 0,
        seed: int = 0,
    ) -> None:
        self.model, self.task, self.sites, self.references = model, task, sites, references
        self.weights = nonzero_weights(model, sites)
        self.surroundings = draw_surroundings(sites, self.weights, n_surroundings, seed=seed)
        self.like = next(model.parameters()).detach()
        self._kept: dict[tuple[Split, tuple[int, ...]], Values] = {}

    def running(
        self,
        nodes: Mapping[Site, Tensor],
        values: Values,
        edges: Mapping[Joint, Tensor] | None = None,
    ) -> AbstractContextManager[Any]:
        """Run the model with gates on its nodes and edges inside a `with` block."""
        return gated(self.model, self.sites, nodes, values, edges)

    def values(self, split: Split, indices: Sequence[int], batch: Any, *, draw: int = 0) -> Values:
        """Give the values of what is out, for a batch of examples of a split.

        Under "resample_corpus" each `draw` gives the examples other windows.
        """
        if not self.references.resamples:
            return self.references.values
        key = (split, tuple(indices))
        if draw == 0 and key in self._kept:
            return self._kept[key]
        tokens = other_tokens(self.references, split, indices, batch.tokens, draw=draw)
        with fast_attention(self.model):
            found = values_on(self.model, self.sites, tokens)
        if draw == 0:
            held = [v for kept in self._kept.values() for v in kept.values()]
            if sum(v.numel() for v in [*held, *found.values()]) <= MAX_KEPT:
                self._kept[key] = found
        return found

    def evaluate(
        self, selection: Selection, split: Split, *, n_examples: int | None = None
    ) -> tuple[float, float]:
        """Give loss and accuracy with a selection left in, on all examples of a split or some."""
        nodes = selection.node_gates(self.like)
        edges = selection.edge_gates(self.like, self.weights)
        return self.judge(nodes, edges, split, n_examples=n_examples)

    def judge(
        self,
        nodes: Mapping[Site, Tensor],
        edges: Mapping[Joint, Tensor],
        split: Split,
        *,
        n_examples: int | None = None,
    ) -> tuple[float, float]:
        """Give loss and accuracy under gates of nodes and edges, whatever they are."""
        if not self.references.resamples:  # one set of weights for all batches
            with self.running(nodes, self.references.values, edges):
                return evaluate(self.model, self.task, split, n_examples=n_examples)

        def around(indices: Sequence[int], batch: Any) -> AbstractContextManager[Any]:
            return self.running(nodes, self.values(split, indices, batch), edges)

        return evaluate(self.model, self.task, split, n_examples=n_examples, around=around)

    def outputs(self, selection: Selection, split: Split) -> Iterator[tuple[Tensor, Any]]:
        """Give the task's logits and the batch, batch by batch, with a selection left in."""
        nodes = selection.node_gates(self.like)
        edges = selection.edge_gates(self.like, self.weights)
        n = self.task.n_examples(split)
        for start in range(0, n, 64):
            indices = range(start, min(start + 64, n))
            batch = self.task.batch(split, indices).to(self.like.device)
            with self.running(nodes, self.values(split, indices, batch), edges):
                logits = self.task.logits(self.model, batch)
            yield logits, batch

    def loss(
        self, selection: Selection, *, n_examples: int | None = None, split: Split = "validation"
    ) -> float:
        """Give the loss with a selection left in, on all examples of a split or on some.

        With surroundings it is the mean over them, if that is higher than the selection's alone.
        """
        alone = self.evaluate(selection, split, n_examples=n_examples)[0]
        if not self.surroundings:
            return alone
        nodes = selection.node_gates(self.like)
        edges = selection.edge_gates(self.like, self.weights)
        beside = [
            self.judge(*part.around(nodes, edges), split, n_examples=n_examples)[0]
            for part in self.surroundings
        ]
        return max(alone, sum(beside) / len(beside))


def spread_over(task: Task, split: Split, n_examples: int | None) -> list[int]:
    """Give `n_examples` indices, evenly spread over a split, or all there are."""
    n_all = task.n_examples(split)
    n = min(n_examples or n_all, n_all)
    return [i * n_all // n for i in range(n)]


@torch.no_grad()
def evaluate(
    model: HookedTransformer,
    task: Task,
    split: Split,
    *,
    batch_size: int = 64,
    n_examples: int | None = None,
    around: Callable[[Sequence[int], Any], AbstractContextManager[Any]] | None = None,
) -> tuple[float, float]:
    """Give task loss (nats) and accuracy of a model, as it runs now, on a split.

    `n_examples` takes so many examples spread over the split instead of all. `around` gives, for
    the indices of a batch and the batch, the context to run it in.
    """
    device = next(model.parameters()).device
    chosen, loss, accuracy = spread_over(task, split, n_examples), 0.0, 0.0
    n = len(chosen)
    with fast_attention(model):
        for start in range(0, n, batch_size):
            indices = chosen[start : start + batch_size]
            batch = task.batch(split, indices).to(device)
            with nullcontext() if around is None else around(indices, batch):
                logits = task.logits(model, batch)
            loss += task.loss(logits, batch).item() * len(indices)
            accuracy += task.accuracy(logits, batch) * len(indices)
    return loss / n, accuracy / n
