"""Attention in a compiled circuit: the heads that it has a part in, at the positions that are read.

A query attends to all positions up to its `place`: its own, or the prompt's end where attention
looks both ways. There may be fewer queries than keys: of the last attention only the query at the
last position is read.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tl_sparse.compiling.parts import Affine, Part, Read, Write


class Head(Part):
    """One attention head: its pattern, its kept values mixed by it, and the sum of its rows."""

    head: int
    queries: list[int]
    """For each q.k product that is not constant, the place of its query among the kept ones; -1
    where the query is at its reference value."""
    keys: list[int]
    query_values: Tensor
    """[product]: the reference values; used where there is no place."""
    key_values: Tensor
    constant: Tensor
    """The sum of the products that are constant."""
    scale: float
    sink: Tensor | None
    causal: bool
    values: list[int]
    """The places of the head's kept v channels among all kept v channels."""

    def forward(
        self,
        q: Float[Tensor, "batch query_pos kept_q"],
        k: Float[Tensor, "batch key_pos kept_k"],
        v: Float[Tensor, "batch key_pos kept_v"],
        place: Int[Tensor, "batch query_pos"],
    ) -> tuple[Float[Tensor, "batch query_pos value"], Float[Tensor, "batch query_pos"]]:
        """Give the mixed values and the sum of each row of the pattern."""
        pattern = self.pattern(q, k, place)
        return pattern @ v[..., self.values], pattern.sum(-1)

    def pattern(
        self,
        q: Float[Tensor, "batch query_pos kept_q"],
        k: Float[Tensor, "batch key_pos kept_k"],
        place: Int[Tensor, "batch query_pos"],
    ) -> Float[Tensor, "batch query_pos key_pos"]:
        """Give the pattern; with a sink its rows sum to less than 1."""
        left = _mixed(q, self.queries, self.query_values)
        right = _mixed(k, self.keys, self.key_values)
        scores = (left @ right.transpose(1, 2) + self.constant) / self.scale
        later = torch.arange(k.shape[1], device=k.device) > place[..., None]
        scores = scores.masked_fill(later, float("-inf"))
        if self.sink is None:
            return scores.softmax(-1)
        sink = self.sink.expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]


class Attention(Part):
    """An attention sublayer of the circuit."""

    read: Read
    q: Affine
    k: Affine
    v: Affine
    write: Write
    n_heads: int
    """Heads that the circuit touches, `head0`, `head1`, ...: those with a kept q, k or v."""
    row_sums: bool
    """Whether the sums of the pattern's rows are written from too: with sinks they are not 1."""

    def forward(
        self,
        stream: Float[Tensor, "batch pos stream"],
        row: Int[Tensor, "batch pos"],
        place: Int[Tensor, "batch pos"],
    ) -> Float[Tensor, "batch pos stream"]:
        """Give the stream with this sublayer added."""
        q, (k, v) = self.queries(stream, row), self.keys_and_values(stream, row)
        return self.write(self.sources(q, k, v, place), stream, place)

    def queries(
        self, stream: Float[Tensor, "batch pos stream"], row: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos kept_q"]:
        """Give the queries that are in the circuit."""
        return self.q(self.read(stream, row), row)

    def keys_and_values(
        self, stream: Float[Tensor, "batch pos stream"], row: Int[Tensor, "batch pos"]
    ) -> tuple[Float[Tensor, "batch pos kept_k"], Float[Tensor, "batch pos kept_v"]]:
        """Give the keys and values that are in the circuit."""
        read = self.read(stream, row)
        return self.k(read, row), self.v(read, row)

    def sources(
        self,
        q: Float[Tensor, "batch query_pos kept_q"],
        k: Float[Tensor, "batch key_pos kept_k"],
        v: Float[Tensor, "batch key_pos kept_v"],
        place: Int[Tensor, "batch query_pos"],
    ) -> Float[Tensor, "batch query_pos source"]:
        """Give what is written from: each head's mixed values, then the sum of its row."""
        parts = [v.new_empty(*q.shape[:2], 0)]
        for head in self.heads():
            mixed, row_sum = head(q, k, v, place)
            parts += [mixed, row_sum[..., None]] if self.row_sums else [mixed]
        return torch.cat(parts, -1)

    def heads(self) -> list[Head]:
        """Give the heads in order."""
        return [getattr(self, f"head{i}") for i in range(self.n_heads)]


def _mixed(values: Tensor, places: list[int], constants: Tensor) -> Tensor:
    """Give the values at some places, and constants where the place is -1."""
    index = torch.tensor(places, dtype=torch.long, device=values.device)
    padded = F.pad(values, (0, 1))[..., index]  # -1 is the padding
    return torch.where(index >= 0, padded, constants)
