"""What is each node and each edge of the circuit worth? Two answers, side by side.

- **ablation**: take it alone out of the circuit; how far does the loss rise?
- **integrated gradients**: let all gates rise together from 0 to 1; the part of the fall in loss
  that comes through this gate (Sundararajan et al. 2017, arXiv 1703.01365, in the space of gates).
  On a smooth model the parts add up to the whole fall.

The two agree for parts that act side by side. In a chain each link is worth all of it by ablation,
and shares it by integrated gradients. AbsTopK jumps, and there the sum may miss the fall.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from tl_sparse.auditing.findings import Effect
from tl_sparse.auditing.subject import Gates, Parts, Subject
from tl_sparse.circuit import Edge, Site
from tl_sparse.pruning.trial import spread_over
from tl_sparse.sites import Joint

N_STEPS = 16
"""Points on the path, each at the middle of its part."""

Worth = tuple[tuple[Effect, ...], tuple[Effect, ...]]


def worth(subject: Subject, progress: bool) -> Worth:
    """Give what each node and each edge of the circuit is worth on the test examples."""
    selection, like = subject.selection, subject.trial.like
    circuit = subject.inside()

    def nodes_at(gates: Parts) -> Gates:
        return Gates({site: gates[site] for site in selection.nodes}, circuit.edges)

    def edges_at(gates: Parts) -> Gates:
        edges = {}
        for joint, gate in gates.items():
            assert isinstance(joint, Joint)
            rest = circuit.edges.get(joint, torch.ones_like(gate))
            edges[joint] = torch.where(selection.edges[joint], gate, rest)
        return Gates(circuit.nodes, {**circuit.edges, **edges})

    nodes: Parts = {site: kept.to(like) for site, kept in selection.nodes.items()}
    edges: Parts = {j: kept.to(like) for j, kept in selection.edges.items() if kept.any()}
    by_node = integrated(subject, nodes, nodes_at, progress)
    by_edge = integrated(subject, edges, edges_at, progress)
    costs = subject.edge_costs(progress)
    found_nodes = [
        Effect(str(node), cost, float(by_node[node.site][node.channel]))
        for node, cost in subject.node_costs(progress).items()
    ]
    found_edges = [Effect(str(edge), cost, _at(by_edge, edge)) for edge, cost in costs.items()]
    return tuple(found_nodes), tuple(found_edges)


def integrated(
    subject: Subject, ends: Parts, gates_at: Callable[[Parts], Gates], progress: bool
) -> Parts:
    """Give each gate's part of the fall in test loss while all go from 0 to their end.

    `gates_at` says what is run at some height of the gates. Of no gates there is nothing to give.
    """
    if not ends:
        return {}
    trial, task = subject.trial, subject.task
    chosen = spread_over(task, "test", subject.config.n_examples)
    n = len(chosen)
    totals: Parts = {key: torch.zeros_like(end) for key, end in ends.items()}
    for step in tqdm(range(N_STEPS), desc="integrated gradients", disable=not progress):
        height = (step + 0.5) / N_STEPS
        for start in range(0, n, 64):
            indices = chosen[start : start + 64]
            batch = task.batch("test", indices).to(trial.like.device)
            here = {key: (height * end).requires_grad_() for key, end in ends.items()}
            gates = gates_at(here)
            with trial.running(gates.nodes, trial.values("test", indices, batch), gates.edges):
                loss = task.loss(task.logits(subject.model, batch), batch)
            found = torch.autograd.grad(loss, list(here.values()), allow_unused=True)
            for (key, end), gradient in zip(ends.items(), found, strict=True):
                if gradient is not None:
                    totals[key] -= len(indices) / n / N_STEPS * gradient * end
    return totals


def _at(found: dict[Site | Joint, Tensor], edge: Edge) -> float:
    (joint,) = (
        key
        for key in found
        if isinstance(key, Joint)
        and (key.source, key.target) == (edge.source.site, edge.target.site)
    )
    return float(found[joint][edge.source.channel, edge.target.channel])
