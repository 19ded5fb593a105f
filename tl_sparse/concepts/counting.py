"""Histograms: how often each node is at each level, in all and where each concept holds.

For a chunk of nodes the levels are a sparse matrix with one row for each (node, level), one column
for each token and one entry for each (node, token). Its product with the labels counts all concepts
at once. Counts are whole numbers below 2**24, hence exact in float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy.sparse import csc_array
from torch import Tensor

from tl_sparse.concepts.activations import Group

MOST_TOKENS = 2**24
"""Tokens that can be counted exactly."""

CHUNK = 32
"""Nodes that are counted at a time: their histograms fit into a core's cache."""


@dataclass(frozen=True, eq=False)
class Counts:
    """Histograms of some nodes over some tokens."""

    positive: Float[Tensor, "concept node level"]
    """Tokens at a level at which the concept holds."""
    total: Float[Tensor, "node level"]
    """Tokens at a level."""


def count_levels(
    levels: UInt8[Tensor, "node token"], labels: Float[np.ndarray, "token column"], n_levels: int
) -> Counts:
    """Count levels, in all and by concept; the last column of the labels is all ones."""
    n_nodes, n_tokens = levels.shape
    if n_tokens > MOST_TOKENS:
        raise ValueError(
            f"At most {MOST_TOKENS:,} tokens are counted exactly, got {n_tokens:,}. Set n_tokens."
        )
    rows = levels.numpy().T.astype(np.int32) + n_levels * np.arange(n_nodes, dtype=np.int32)
    starts = np.arange(n_tokens + 1) * n_nodes
    ones = np.ones(rows.size, dtype=np.float32)
    shape = (n_nodes * n_levels, n_tokens)
    found = csc_array((ones, rows.ravel(), starts.astype(np.int32)), shape=shape) @ labels
    counts = torch.from_numpy(found).double().view(n_nodes, n_levels, -1).permute(2, 0, 1)
    return Counts(counts[:-1].contiguous(), counts[-1].contiguous())


def chunks(
    group: Group, halves: tuple[Tensor, Tensor], labels: tuple[np.ndarray, np.ndarray],
    n_levels: int,
) -> Iterator[tuple[slice, Counts, Counts]]:  # fmt: skip
    """Count the nodes of a group on both halves, a chunk at a time.

    `halves` are the tokens of each half among those of the group, `labels` theirs.
    """
    for start in range(0, len(group.levels), CHUNK):
        nodes = slice(start, min(start + CHUNK, len(group.levels)))
        chosen, held = (
            count_levels(group.levels[nodes][:, half], label, n_levels)
            for half, label in zip(halves, labels, strict=True)
        )
        yield nodes, chosen, held
