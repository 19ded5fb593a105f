"""What is audited: a circuit in its model, run under any gates on what is inside and outside."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm
from transformer_lens import HookedTransformer

from tl_sparse.ablation import References, select_circuit
from tl_sparse.circuit import Circuit, Edge, Node, Site
from tl_sparse.config import AuditConfig
from tl_sparse.pruning.trial import Trial, spread_over
from tl_sparse.selection import Selection
from tl_sparse.sites import Joint, site_map
from tl_sparse.tasks import Split, Task

Parts = dict[Site | Joint, Tensor]
"""Some of the nodes (by site) and edges (by joint), as boolean masks."""


@dataclass(frozen=True)
class Gates:
    """A gate for every node and, where an edge may be cut, for every weight of a joint."""

    nodes: Mapping[Site, Tensor]
    edges: Mapping[Joint, Tensor]


class Subject:
    """A circuit in its model on its task, with the losses that everything is compared with."""

    def __init__(
        self,
        model: HookedTransformer,
        circuit: Circuit,
        task: Task,
        references: References,
        config: AuditConfig,
    ) -> None:
        sites = site_map(model, final=any(n.site.name == "final_in" for n in circuit.nodes))
        self.model, self.circuit, self.task, self.config = model, circuit, task, config
        noted = circuit.provenance.get("pruning", {})  # what it was chosen by, but for the target
        n, seed = noted.get("n_surroundings", 0), noted.get("seed", 0)
        self.trial = Trial(model, task, sites, references, n_surroundings=n, seed=seed)
        self._edge_costs: dict[Edge, float] = {}
        self.selection = select_circuit(circuit, sites, self.trial.like.device)
        self.whole, self.whole_accuracy = self.judge(self.everything())
        self.alone, self.alone_accuracy = self.judge(self.inside())
        self.empty, _ = self.judge(self.gates_of(self.nothing()))
        if not math.isfinite(self.whole + self.alone + self.empty):
            raise ValueError(
                f"The loss on {task.name} is NaN or infinite: {self.whole} of the whole model, "
                f"{self.alone} of the circuit, {self.empty} of the empty circuit. Look at the "
                "model's weights and at the circuit's reference values."
            )

    def under(self, references: References) -> "Subject":
        """Give the same circuit with what is out set to other values."""
        return Subject(self.model, self.circuit, self.task, references, self.config)

    # -- gates --------------------------------------------------------------------------------

    def inside(self) -> Gates:
        """Give the gates that leave the circuit alone in."""
        return self.gates_of(self.selection)

    def gates_of(self, selection: Selection) -> Gates:
        """Give the gates of a selection."""
        like, weights = self.trial.like, self.trial.weights
        return Gates(selection.node_gates(like), selection.edge_gates(like, weights))

    def everything(self) -> Gates:
        """Give the gates of the whole model."""
        like = self.trial.like
        return Gates({s: torch.ones_like(k).to(like) for s, k in self.selection.nodes.items()}, {})

    def nothing(self) -> Selection:
        """Give the selection without any node."""
        nodes = {site: torch.zeros_like(kept) for site, kept in self.selection.nodes.items()}
        edges = {joint: torch.zeros_like(kept) for joint, kept in self.selection.edges.items()}
        return Selection(nodes, edges, self.selection.tie_qk)

    def outside(self) -> Parts:
        """Give what the circuit does not have: nodes, and edges between its nodes."""
        parts: Parts = {site: ~kept for site, kept in self.selection.nodes.items()}
        for joint, gate in self.inside().edges.items():
            parts[joint] = gate == 0
        return parts

    def members(self) -> Parts:
        """Give the circuit's own nodes."""
        return {**self.selection.nodes}

    def cut(self, parts: Parts) -> Gates:
        """Give the gates of the whole model without some nodes and edges."""
        like = self.trial.like
        nodes = {
            site: torch.ones_like(kept).to(like) for site, kept in self.selection.nodes.items()
        }
        edges: dict[Joint, Tensor] = {}
        for key, some in parts.items():
            if isinstance(key, Site):
                nodes[key] = (~some).to(like)
            else:
                edges[key] = (~some).to(like)
        return Gates(nodes, {joint: gate for joint, gate in edges.items() if not gate.all()})

    # -- losses -------------------------------------------------------------------------------

    def judge(self, gates: Gates, split: Split = "test") -> tuple[float, float]:
        """Give loss and accuracy under some gates."""
        n = self.config.n_examples
        return self.trial.judge(gates.nodes, gates.edges, split, n_examples=n)

    def loss(self, gates: Gates) -> float:
        """Give the test loss under some gates."""
        return self.judge(gates)[0]

    def gain(self, loss: float) -> float:
        """Give the share of what the whole model gains over the empty circuit; 1 is all of it.

        NaN where the whole model gains nothing.
        """
        if self.whole >= self.empty:
            return math.nan
        return (self.empty - loss) / (self.empty - self.whole)

    def edge_costs(self, progress: bool) -> dict[Edge, float]:
        """Give how far the test loss rises without each edge; of very many, of some evenly spread.

        Measured once, and kept.
        """
        if not self._edge_costs:
            for edge in tqdm(self.some_edges(), desc="edges alone", disable=not progress):
                fewer = self.selection.without(edges=[edge])
                self._edge_costs[edge] = self.loss(self.gates_of(fewer)) - self.alone
        return self._edge_costs

    def node_costs(self, progress: bool) -> dict[Node, float]:
        """Give how far the test loss rises without each node; of very many, of some of them."""
        costs = {}
        for node in tqdm(self.some_nodes(), desc="nodes alone", disable=not progress):
            fewer = self.selection.without(nodes=[node])
            costs[node] = self.loss(self.gates_of(fewer)) - self.alone
        return costs

    def some_edges(self) -> list[Edge]:
        """Give the circuit's edges, or `config.max_edges` of them evenly spread."""
        edges = self.selection.edge_list(self.model)
        return edges[:: -(-len(edges) // self.config.max_edges) or 1]

    def some_nodes(self) -> list[Node]:
        """Give the circuit's nodes, or `config.max_nodes` of them evenly spread."""
        nodes = self.selection.node_list()
        return nodes[:: -(-len(nodes) // (self.config.max_nodes or len(nodes) or 1)) or 1]

    @torch.no_grad()
    def example_losses(self, gates: Gates, split: Split = "test") -> Tensor:
        """Give the loss on each example by itself."""
        found = []
        for index in spread_over(self.task, split, self.config.n_examples):
            batch = self.task.batch(split, [index]).to(self.trial.like.device)
            values = self.trial.values(split, [index], batch)
            with self.trial.running(gates.nodes, values, gates.edges):
                found.append(self.task.loss(self.task.logits(self.model, batch), batch).item())
        return torch.tensor(found)


def percentile(values: Sequence[float], share: float) -> float:
    """Give the value below which a share of the values lies."""
    return torch.tensor(list(values), dtype=torch.float64).quantile(share).item()


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Give the 5th and the 95th percentile."""
    some = list(values)
    return percentile(some, 0.05), percentile(some, 0.95)


def random_like(
    parts: Parts, among: Mapping[Site | Joint, Tensor], generator: torch.Generator
) -> Parts:
    """Draw as many nodes at each site, and edges of each joint, as `parts` has, from `among`."""
    drawn: Parts = {}
    for key, some in parts.items():
        places = among[key].nonzero()
        chosen = places[torch.randperm(len(places), generator=generator)[: int(some.sum())]]
        drawn[key] = torch.zeros_like(some)
        drawn[key][tuple(chosen.T)] = True
    return drawn
