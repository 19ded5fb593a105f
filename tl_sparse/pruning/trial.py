"""Running and judging a selection of nodes and edges on a task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.ablation import References, fast_attention, gated
from tl_sparse.circuit import Site
from tl_sparse.model.prefixes import residual_streams, runs_on_prefixes
from tl_sparse.pruning.others import other_tokens
from tl_sparse.pruning.surroundings import draw_surroundings
from tl_sparse.resampling import values_on
from tl_sparse.selection import Selection, nonzero_weights
from tl_sparse.sites import Joint, SiteMap
from tl_sparse.tasks import Split, Task, TaskBatch

Values = Mapping[Site, Tensor]
"""Of what is out, by site: [node], or [batch, pos, node] under a resampling ablation."""

Key = TypeVar("Key", Site, Joint)
Gates = Mapping[Key, Tensor]
"""Of nodes by site, or of weights by joint."""

Batches = list[tuple[Sequence[int], Any]]
"""Indices of some examples, and the batch that they make."""

BATCH_SIZE = 64
"""Examples that are judged at once."""

MAX_KEPT = 2**27
"""Values of other runs that are kept at most, instead of being computed again: 512 MB."""


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
        self._batches: dict[tuple[Split, int | None, bool], Batches] = {}
        self._base: _Base | None = None

    def running(
        self,
        nodes: Mapping[Site, Tensor],
        values: Values,
        edges: Mapping[Joint, Tensor] | None = None,
        learned: Mapping[Joint, Tensor] | None = None,
    ) -> AbstractContextManager[Any]:
        """Run the model with gates on its nodes and edges inside a `with` block: see `gated`."""
        return gated(self.model, self.sites, nodes, values, edges, learned)

    def batch(self, split: Split, indices: Sequence[int]) -> Any:
        """Give examples of a split, to be run as the tree of their prefixes if that is right."""
        batch = self.task.batch(split, indices)
        return prepared(batch, self.like.device, on_prefixes=self._on_prefixes())

    def _on_prefixes(self) -> bool:
        return not self.references.resamples and runs_on_prefixes(self.model)

    def batches(self, split: Split, n_examples: int | None) -> Batches:
        """Give all examples of a split or some, as `spread_over` has them; they are kept."""
        key = (split, n_examples, self._on_prefixes())
        if key not in self._batches:
            chosen = spread_over(self.task, split, n_examples)
            self._batches[key] = [(part, self.batch(split, part)) for part in parts(chosen)]
        return self._batches[key]

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
        return self.judge(*self.gates(selection), split, n_examples=n_examples)

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
            batches = self._begun(nodes, edges, split, n_examples)
            with self.running(nodes, self.references.values, edges):
                return mean_scores(self.model, self.task, batches)

        def around(indices: Sequence[int], batch: Any) -> AbstractContextManager[Any]:
            return self.running(nodes, self.values(split, indices, batch), edges)

        return mean_scores(self.model, self.task, self.batches(split, n_examples), around)

    def start_from(self, selection: Selection) -> None:
        """Begin the runs that follow at the first layer in which they differ from a selection's.

        Up to there they do what this one does, and its residual streams are kept.
        """
        if self._base is None or self._base.selection is not selection:
            self._base = _Base(selection, *self.gates(selection))

    def _begun(
        self, nodes: Gates[Site], edges: Gates[Joint], split: Split, n_examples: int | None
    ) -> Batches:
        """Give batches that begin where `start_from` lets them."""
        batches, base = self.batches(split, n_examples), self._base
        if base is None or any(getattr(batch, "tree", None) is None for _, batch in batches):
            return batches
        n_layers = self.model.cfg.n_layers
        layer = min([*base.layers_apart(nodes, edges), n_layers - 1])
        if layer == 0:
            return batches
        key = (split, n_examples)
        if key not in base.streams:
            n_prefixes = sum(len(batch.tree.firsts) for _, batch in batches)
            if n_layers * n_prefixes * self.model.cfg.d_model > MAX_KEPT:
                return batches
            with torch.no_grad(), self.running(base.nodes, self.references.values, base.edges):
                base.streams[key] = [
                    list(islice(residual_streams(self.model, batch.tree), n_layers))
                    for _, batch in batches
                ]
        return [
            (indices, batch.starting_at(layer, streams[layer]))
            for (indices, batch), streams in zip(batches, base.streams[key], strict=True)
        ]

    def gates(self, selection: Selection) -> tuple[dict[Site, Tensor], dict[Joint, Tensor]]:
        """Give the gates of nodes and edges that leave a selection in."""
        return (
            selection.node_gates(self.like),
            selection.edge_gates(self.like, self.weights),
        )

    def outputs(self, selection: Selection, split: Split) -> Iterator[tuple[Tensor, Any]]:
        """Give the task's logits and the batch, batch by batch, with a selection left in."""
        nodes, edges = self.gates(selection)
        for indices, batch in self.batches(split, None):
            with self.running(nodes, self.values(split, indices, batch), edges):
                logits = self.task.logits(self.model, batch)
            yield logits, batch

    def loss(
        self,
        selection: Selection,
        *,
        n_examples: int | None = None,
        split: Split = "validation",
    ) -> float:
        """Give the loss with a selection left in, on all examples of a split or on some.

        With surroundings it is the mean over them, if that is higher than the selection's alone.
        """
        nodes, edges = self.gates(selection)
        alone = self.judge(nodes, edges, split, n_examples=n_examples)[0]
        if not self.surroundings:
            return alone
        beside = [
            self.judge(*part.around(nodes, edges), split, n_examples=n_examples)[0]
            for part in self.surroundings
        ]
        return max(alone, sum(beside) / len(beside))


@dataclass
class _Base:
    """A selection, and its residual streams before each layer."""

    selection: Selection
    nodes: Gates[Site]
    edges: Gates[Joint]
    streams: dict[tuple[Split, int | None], list[list[Tensor]]] = field(default_factory=dict)
    """By split and number of examples: for each batch, one for each layer."""

    def layers_apart(self, nodes: Gates[Site], edges: Gates[Joint]) -> Iterator[int]:
        """Give the layers in which other gates differ from these."""
        yield from (s.layer for s, gate in nodes.items() if not gate.equal(self.nodes[s]))
        for joint in edges.keys() | self.edges.keys():
            here, there = self.edges.get(joint), edges.get(joint)
            if here is None or there is None or not here.equal(there):
                yield joint.target.layer


def spread_over(task: Task, split: Split, n_examples: int | None) -> list[int]:
    """Give `n_examples` indices, evenly spread over a split, or all there are."""
    n_all = task.n_examples(split)
    n = min(n_examples or n_all, n_all)
    return [i * n_all // n for i in range(n)]


def parts(indices: Sequence[int], size: int = BATCH_SIZE) -> list[Sequence[int]]:
    """Cut indices into the parts that are run at once."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def prepared(batch: Any, device: torch.device, *, on_prefixes: bool) -> Any:
    """Move a batch to a device; prompts of pairs can be run as the tree of their prefixes there."""
    if on_prefixes and isinstance(batch, TaskBatch):
        batch = batch.on_prefixes()
    return batch.to(device)


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
    on_prefixes = around is None and runs_on_prefixes(model)
    batches = [
        (part, prepared(task.batch(split, part), device, on_prefixes=on_prefixes))
        for part in parts(spread_over(task, split, n_examples), batch_size)
    ]
    return mean_scores(model, task, batches, around)


@torch.no_grad()
def mean_scores(
    model: HookedTransformer,
    task: Task,
    batches: Batches,
    around: Callable[[Sequence[int], Any], AbstractContextManager[Any]] | None = None,
) -> tuple[float, float]:
    """Give loss and accuracy over batches, each run in the context that `around` gives."""
    n, loss, accuracy = sum(len(indices) for indices, _ in batches), 0.0, 0.0
    with fast_attention(model):
        for indices, batch in batches:
            with nullcontext() if around is None else around(indices, batch):
                logits = task.logits(model, batch)
            loss += task.loss(logits, batch).item() * len(indices)
            accuracy += task.accuracy(logits, batch) * len(indices)
    return loss / n, accuracy / n
