"""Do the circuit's parts do in the model what they do alone?

- **nodes**: the values of each kept node, in the circuit and in the model, on the same prompts: the
  fraction of the model's variance that the circuit's value leaves unexplained, and for how many
  nodes it is small;
- **interchange**: put the model's values into the circuit at a random share of its nodes, from none
  to all; if they mean the same, the answer stays;
- **attention**: how far the patterns of the circuit's heads lie from the model's;
- **edges**: what cutting one edge does to the model, beside what it does to the circuit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tl_sparse.auditing.findings import Finding
from tl_sparse.auditing.subject import Gates, Subject, percentile, spread
from tl_sparse.circuit import Edge, Node, Site
from tl_sparse.pruning.trial import evaluate, spread_over
from tl_sparse.resampling import values_on
from tl_sparse.sites import SiteInfo

UNEXPLAINED = 0.5
"""Half of a node's variance: above it the circuit's value says less than half of the model's."""

KEPT_GAIN = 0.5
"""Half of the gain over the empty circuit."""

DISTANCE = 0.25
"""A quarter of the attention elsewhere than in the model."""

AGREE = 0.75
"""Three of four: nodes that are explained, and edges that matter in the circuit and matter in the
model in the same direction."""

SAME_SIZE = 0.1
"""An edge matters in the model if cutting it costs a tenth of what it costs the circuit."""

Curves = dict[str, list[tuple[float, float]]]


def mechanism(subject: Subject, curves: Curves, progress: bool) -> Iterator[Finding]:
    """Compare the circuit's nodes, patterns and edges with the model's own."""
    here = _Run(subject, subject.inside())
    there = _Run(subject, subject.everything())
    empty = _Run(subject, subject.gates_of(subject.nothing()))
    yield from _nodes(subject, here, there, empty)
    yield from _interchange(subject, curves, progress)
    yield from _attention(subject, here, there, empty)
    yield from _edges(subject, progress)


class _Run:
    """Values of all nodes, and patterns, on some test examples under some gates."""

    @torch.no_grad()
    def __init__(self, subject: Subject, gates: Gates) -> None:
        trial, task = subject.trial, subject.task
        indices = spread_over(task, "test", min(subject.config.n_examples or 128, 128))
        batch = task.batch("test", indices).to(trial.like.device)
        self.patterns: dict[int, Tensor] = {}

        def note(pattern: Tensor, hook: Any) -> None:
            self.patterns[hook.layer()] = pattern

        watch = subject.model.hooks(fwd_hooks=[(lambda n: n.endswith("hook_pattern"), note)])
        values = trial.values("test", indices, batch)
        with trial.running(gates.nodes, values, gates.edges), watch:
            self.values = values_on(subject.model, trial.sites, batch.tokens)
        last = batch.last if hasattr(batch, "last") else batch.lengths - 1
        positions = torch.arange(batch.tokens.shape[1], device=last.device)
        self.there = positions[None, :] <= last[:, None]
        """Tokens that are no padding, [batch, pos]."""


def _nodes(subject: Subject, here: _Run, there: _Run, empty: _Run) -> Iterator[Finding]:
    unexplained = _unexplained(subject, here, there)
    if unexplained:
        low, high = spread(unexplained)
        yield Finding(
            "same mechanism", "share of nodes whose variance is at most half unexplained",
            _share_explained(unexplained), AGREE, at_most=False,
            why="three of four nodes say what they say in the model, as with edges; unexplained is "
            f"{low:.2g} to {high:.2g} of a node's variance, median "
            f"{percentile(unexplained, 0.5):.2g}, and 1 of a node at the model's mean",
            control=_share_explained(_unexplained(subject, empty, there)),
            control_name="empty circuit",
        )  # fmt: skip


def _unexplained(subject: Subject, here: _Run, there: _Run) -> list[float]:
    """Give, for each kept node that varies in the model, the fraction that a run leaves out."""
    found = []
    for node in subject.selection.node_list():
        entries = subject.trial.sites[node.site].entries(node.channel)  # an error has many
        whole = there.values[node.site][..., entries][there.there]
        alone = here.values[node.site][..., entries][here.there]
        variance = whole.var(0, correction=0).sum()
        if variance > 0:
            found.append(((whole - alone).square().mean(0).sum() / variance).item())
    return found


def _share_explained(unexplained: list[float]) -> float:
    return sum(one <= UNEXPLAINED for one in unexplained) / len(unexplained)


def _interchange(subject: Subject, curves: Curves, progress: bool) -> Iterator[Finding]:
    generator = torch.Generator().manual_seed(subject.config.seed)
    points: list[tuple[float, float]] = []
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    for share in tqdm(shares, desc="interchange", disable=not progress):
        chosen = {
            site: kept & (torch.rand(kept.shape, generator=generator) < share).to(kept.device)
            for site, kept in subject.selection.nodes.items()
        }
        points.append((share, subject.gain(_loss_with(subject, chosen))))
    curves["interchanged, gain kept"] = points
    yield Finding(
        "same mechanism", "gain kept with the model's values at the circuit's nodes",
        min(gain for _, gain in points), KEPT_GAIN, at_most=False,
        why="half of the gain, at every share of nodes tried: values that mean the same in both "
        "can stand for each other",
        control=points[0][1], control_name="none interchanged",
    )  # fmt: skip


def _loss_with(subject: Subject, chosen: dict[Site, Tensor]) -> float:
    """Give the circuit's loss with the whole model's values at chosen nodes."""
    model, trial, gates = subject.model, subject.trial, subject.inside()

    @contextmanager
    def around(indices: Sequence[int], batch: Any) -> Iterator[None]:
        whole = values_on(model, trial.sites, batch.tokens)
        hooks: list[tuple[str | Callable[..., Any], Callable[..., Any]]] = [
            (trial.sites[site].hook_name, partial(_put, trial.sites[site], some, whole[site]))
            for site, some in chosen.items()
            if some.any()
        ]
        values = trial.values("test", indices, batch)
        with trial.running(gates.nodes, values, gates.edges), model.hooks(fwd_hooks=hooks):
            yield

    n = subject.config.n_examples
    return evaluate(model, subject.task, "test", n_examples=n, around=around)[0]


def _put(info: SiteInfo, chosen: Tensor, whole: Tensor, activation: Tensor, hook: Any) -> Tensor:
    flat = activation.flatten(2)
    some = torch.where(info.spread(chosen), whole[:, : flat.shape[1]], flat)
    return some.view_as(activation)


def _attention(subject: Subject, here: _Run, there: _Run, empty: _Run) -> Iterator[Finding]:
    heads = {
        (node.site.layer, head)
        for node in subject.selection.node_list()
        if node.site.name in ("q", "k", "v")
        for head in _heads_of(subject, node)
    }
    if heads:
        yield Finding(
            "same mechanism", "distance of the heads' patterns from the model's",
            _distance(heads, here, there), DISTANCE, at_most=True,
            why="the share of attention that lies elsewhere, mean over heads and queries; a "
            "quarter leaves three quarters in place",
            control=_distance(heads, empty, there), control_name="empty circuit",
        )  # fmt: skip


def _heads_of(subject: Subject, node: Node) -> range:
    """Give the query heads that a node of q, k or v is part of: under grouped queries several."""
    cfg = subject.model.cfg
    head = node.channel // cfg.d_head
    if node.site.name == "q" or not cfg.n_key_value_heads:
        return range(head, head + 1)
    n_sharing = cfg.n_heads // cfg.n_key_value_heads
    return range(head * n_sharing, (head + 1) * n_sharing)


def _distance(heads: set[tuple[int, int]], one: _Run, other: _Run) -> float:
    """Give the total variation between two runs' patterns; what a sink takes counts too."""
    found = []
    for layer, head in sorted(heads):
        a, b = one.patterns[layer][:, head], other.patterns[layer][:, head]
        rest = (a.sum(-1) - b.sum(-1)).abs()
        distance = ((a - b).abs().sum(-1) + rest) / 2
        found.append(distance[one.there].mean().item())
    return sum(found) / len(found)


def _edges(subject: Subject, progress: bool) -> Iterator[Finding]:
    pairs = []
    costs = subject.edge_costs(progress)
    for edge, alone in tqdm(costs.items(), desc="edges in the model", disable=not progress):
        pairs.append((alone, subject.loss(_cut_edge(subject, edge)) - subject.whole))
    matter = [(alone, whole) for alone, whole in pairs if abs(alone) > 1e-3]
    if matter:
        agree = [[_alike(alone, whole) for _, whole in matter] for alone, _ in matter]
        own = sum(row[i] for i, row in enumerate(agree)) / len(agree)
        yield Finding(
            "same mechanism", "share of edges that matter in the model as in the circuit", own,
            AGREE, at_most=False,
            why="cutting the edge changes the model's loss in the same direction by at least a "
            "tenth as much; in three of four edges",
            control=sum(map(sum, agree)) / len(agree) ** 2,
            control_name="each edge beside any of them",
        )  # fmt: skip


def _alike(alone: float, whole: float) -> bool:
    return whole * alone > 0 and abs(whole) >= SAME_SIZE * abs(alone)


def _cut_edge(subject: Subject, edge: Edge) -> Gates:
    """Give the gates of the whole model without one weight."""
    for joint, kept in subject.selection.edges.items():
        if (joint.source, joint.target) == (edge.source.site, edge.target.site):
            part = torch.zeros_like(kept)
            part[edge.source.channel, edge.target.channel] = True
            return subject.cut({joint: part})
    raise ValueError(f"The model has no weight {edge}.")
