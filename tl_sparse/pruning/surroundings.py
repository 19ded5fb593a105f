"""Stochastic ablation: a circuit has to work beside random parts of the rest too.

With everything outside set to reference values, a search may pick a part of the model whose damage
happens to cancel in this one surrounding (METHOD.md, section 7). Here a gate of 0, of a node or of
a cut weight, becomes 1 wherever chance leaves it in; gates of 1 stay. A part is left in with one of
several shares, since the harm may lie anywhere between all of the rest and none of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from tl_sparse.circuit import Site
from tl_sparse.sites import Joint, SiteMap

Key = TypeVar("Key")

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Shares of the rest that are left in, in turn."""


@dataclass(frozen=True)
class Surrounding:
    """One fixed part of a model, left in whatever is selected."""

    nodes: Mapping[Site, Tensor]
    edges: Mapping[Joint, Tensor]

    def around(
        self, nodes: Mapping[Site, Tensor], edges: Mapping[Joint, Tensor]
    ) -> tuple[dict[Site, Tensor], dict[Joint, Tensor]]:
        """Open the gates, of 0 and 1, of this part."""
        return (
            {site: torch.maximum(gate, self.nodes[site].to(gate)) for site, gate in nodes.items()},
            {
                joint: torch.maximum(gate, self.edges[joint].to(gate))
                for joint, gate in edges.items()
            },
        )


def draw_surroundings(
    sites: SiteMap, weights: Mapping[Joint, Tensor], n: int, *, seed: int
) -> list[Surrounding]:
    """Draw `n` parts of a model, of the `SHARES` in turn; the same seed gives the same parts."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(n):
        share = SHARES[i % len(SHARES)]
        nodes = {
            info.site: torch.rand(info.width, generator=generator) < share for info in sites.sites
        }
        edges = {
            joint: torch.rand(live.shape, generator=generator) < share
            for joint, live in weights.items()
        }
        found.append(Surrounding(nodes, edges))
    return found


def opened(gates: Mapping[Key, Tensor], generator: torch.Generator) -> dict[Key, Tensor]:
    """Open gates at random, all with one share that is drawn from `SHARES`.

    A gate that is opened passes no gradient: what it guards is there, whatever its tau says.
    """
    share = SHARES[int(torch.randint(len(SHARES), (), generator=generator))]
    found = {}
    for key, gate in gates.items():
        left_in = (torch.rand(gate.shape, generator=generator) < share).to(gate)
        found[key] = gate + (1 - gate) * left_in
    return found
