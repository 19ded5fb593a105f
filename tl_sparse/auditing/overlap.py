"""Which parts do several circuits of one model share?"""

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tl_sparse.circuit import Circuit, Edge, Node, edge_order


@dataclass(frozen=True)
class Overlap:
    """Several circuits of one model, side by side."""

    names: tuple[str, ...]
    circuits: tuple[Circuit, ...] = field(repr=False)

    def jaccard(self, of: str = "edges") -> list[list[float]]:
        """Give for each two circuits the share of their edges, or "nodes", that both have."""
        return [[a.jaccard(b, of) for b in self.circuits] for a in self.circuits]

    def counts(self) -> dict[Node | Edge, int]:
        """Give in how many circuits each node and edge is, the most shared first."""
        found: Counter[Node | Edge] = Counter()
        for circuit in self.circuits:
            found.update(circuit.nodes)
            found.update(circuit.edges)
        return dict(sorted(found.items(), key=lambda one: (-one[1], str(one[0]))))

    def shared(self) -> Circuit:
        """Give what all circuits have, as a circuit.

        Raises:
            ValueError: If what is out is set to other values in one of them.
        """
        found = self.circuits[0]
        for other in self.circuits[1:]:
            found = found & other
        return found

    def rows(self) -> list[dict[str, str]]:
        """Give the table: sizes, and under each circuit's name the edges and nodes in both."""
        edges, nodes = self.jaccard("edges"), self.jaccard("nodes")
        return [
            {"circuit": name, "nodes": f"{one.n_nodes:,}", "edges": f"{one.n_edges:,}"}
            | {
                other: f"{edges[i][j]:.0%} / {nodes[i][j]:.0%}"
                for j, other in enumerate(self.names)
            }
            for i, (name, one) in enumerate(zip(self.names, self.circuits, strict=True))
        ]

    def __str__(self) -> str:
        """The table, and what all have."""
        rows = self.rows()
        widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
        table = [{name: name for name in rows[0]}, *rows]
        lines = ["  ".join(row[name].ljust(widths[name]) for name in widths) for row in table]
        shared = [part for part, n in self.counts().items() if n == len(self.circuits)]
        edges = sorted((part for part in shared if isinstance(part, Edge)), key=edge_order)
        n_nodes = sum(isinstance(p, Node) and p.site.name != "final_in" for p in shared)
        lines.append(
            f"edges / nodes in both, of those in either; in all: {len(edges)} edges, "
            f"{n_nodes} nodes"
        )
        lines += [f"  {edge}" for edge in edges]
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        rows = self.rows()
        head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row.values()) + "</tr>"
            for row in rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def overlap(circuits: Sequence[Circuit] | Mapping[str, Circuit]) -> Overlap:
    """Compare circuits of one model: of several tasks, seeds or settings.

    Names are the mapping's, or the circuits' tasks, with a number where two have the same.

    Raises:
        ValueError: If there are fewer than two, or they are of different models.
    """
    if isinstance(circuits, Mapping):
        names, some = tuple(circuits), tuple(circuits.values())
    else:
        some = tuple(circuits)
        tasks = [circuit.task for circuit in some]
        names = tuple(
            task if tasks.count(task) == 1 else f"{task} {1 + tasks[:i].count(task)}"
            for i, task in enumerate(tasks)
        )
    if len(some) < 2:
        raise ValueError(f"An overlap is of two circuits or more, got {len(some)}.")
    for other in some[1:]:
        some[0].jaccard(other)  # refuses another model's
    return Overlap(names, some)
