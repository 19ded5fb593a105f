"""The circuit among smaller and larger ones: a curve over sizes, and one node more.

The nested circuits: the circuit's own edges go, the least needed first; past its size come nodes of
the rest, by the size of d loss / d gate in the whole model, each with every weight between the
nodes. They are judged at the shares of edges of the MIB benchmark, whose two areas come of it
(`tl_sparse.auditing.mib`).
"""

import torch
from torch import Tensor
from tqdm import tqdm

from tl_sparse.auditing.mib import MIB_SHARES, cmd, cpr
from tl_sparse.auditing.subject import Gates, Subject
from tl_sparse.circuit import Edge, Site
from tl_sparse.config import PruningConfig
from tl_sparse.pruning.scores import score_nodes
from tl_sparse.pruning.sizes import nested_nodes
from tl_sparse.selection import Selection

Curves = dict[str, list[tuple[float, float]]]


def over_sizes(
    subject: Subject, costs: dict[Edge, float], curves: Curves, progress: bool
) -> dict[str, float]:
    """Draw the curve of faithfulness over MIB's shares of edges, and give CPR and CMD of it.

    `costs` order the circuit's edges, the least needed first. Nothing where the whole model gains
    nothing over the empty circuit.
    """
    if subject.whole >= subject.empty:
        return {}
    total = sum(int(live.sum()) for live in subject.trial.weights.values())
    larger = _Larger(subject)
    order = sorted(costs, key=costs.__getitem__)
    gains = []
    for share in tqdm(MIB_SHARES, desc="sizes", disable=not progress):
        n = round(share * total)
        if share == MIB_SHARES[-1]:
            gains.append(1.0)
        elif n <= subject.selection.n_edges:
            gone = order[: subject.selection.n_edges - n]
            fewer = subject.selection.without(edges=gone)
            gains.append(subject.gain(subject.loss(subject.gates_of(fewer))))
        else:
            gains.append(subject.gain(subject.loss(subject.gates_of(larger.with_edges(n)))))
    curves["share of the model's edges, gain kept"] = list(zip(MIB_SHARES, gains, strict=True))
    return {"CPR": cpr(MIB_SHARES, gains), "CMD": cmd(MIB_SHARES, gains)}


class _Larger:
    """Circuits that hold the audited one, from its nodes up to the whole model."""

    def __init__(self, subject: Subject) -> None:
        scores = score_nodes(subject.trial, PruningConfig(method="attribution"), progress=False)
        first = 1 + max(float(score.max()) for score in scores.values())
        ranked = {
            site: torch.where(subject.selection.nodes[site], first, score)
            for site, score in scores.items()
        }
        tie_qk = subject.circuit.tie_qk
        self.select = nested_nodes(subject.trial, ranked, tie_qk=tie_qk)
        self.n_nodes = sum(map(len, ranked.values()))

    def with_edges(self, n: int) -> Selection:
        """Give the smallest one that has `n` edges or more."""
        low, high = 0, self.n_nodes
        while low < high:
            middle = (low + high) // 2
            if self.select(middle).n_edges >= n:
                high = middle
            else:
                low = middle + 1
        return self.select(low)


def add_one(subject: Subject, curves: Curves, progress: bool) -> None:
    """Draw what one node more does to the loss, for the nodes that promise most.

    Nodes are ranked by d loss / d gate at the circuit, and a quarter of `config.max_edges` of those
    that would lower the loss are tried.
    """
    inside = subject.inside()
    slopes = _slopes(subject, inside)
    outside = [
        (float(slopes[site][channel]), site, channel)
        for site, kept in subject.selection.nodes.items()
        for channel in (~kept).nonzero().flatten().tolist()
    ]
    most = sorted(outside, key=lambda one: one[0])[: max(1, subject.config.max_edges // 4)]
    losses = []
    for _, site, channel in tqdm(most, desc="add one", disable=not progress):
        gate = inside.nodes[site].clone()
        gate[channel] = 1
        losses.append(subject.loss(Gates({**inside.nodes, site: gate}, inside.edges)))
    curves["one node more, test loss"] = [
        (0.0, subject.alone), *((i + 1.0, loss) for i, loss in enumerate(sorted(losses)))
    ]  # fmt: skip


def _slopes(subject: Subject, gates: Gates) -> dict[Site, Tensor]:
    trial, task, n = subject.trial, subject.task, subject.config.batch_size
    indices = list(range(min(n, task.n_examples("train"))))
    batch = task.batch("train", indices).to(trial.like.device)
    nodes = {site: gate.clone().requires_grad_() for site, gate in gates.nodes.items()}
    with trial.running(nodes, trial.values("train", indices, batch), gates.edges):
        loss = task.loss(task.logits(subject.model, batch), batch)
    found = torch.autograd.grad(loss, list(nodes.values()), allow_unused=True)
    return {
        site: torch.zeros_like(gate) if gradient is None else gradient
        for (site, gate), gradient in zip(nodes.items(), found, strict=True)
    }
