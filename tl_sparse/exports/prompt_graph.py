r"""What a circuit computes on one prompt, as a graph of direct effects that add up.

The circuit runs alone on the prompt. Then the attention patterns, the scales of the norms and the
choices of AbsTopK are taken as they were, as in circuit-tracer's local replacement model, and what
is left is linear between two neurons' activation functions.

- A **place** is a kept node at a position where it is not 0, a token of the prompt, or a logit at
  the last position. Places from which no logit can be reached are left out.
- A **link** from place s to place t has as weight what s adds to t:

      edge into q, k, v, neuron, mlp_out    w a_s                 w: the weight, a: the activation
      v at j -> attn_out at p               pattern[p, j] w a_s
      write or token -> a read, one channel (g / scale) a_s       g: the norm's gain
      write or token -> logit               (g / scale) W_U a_s

  where a_s of a token is its entry of W_E. A token's link to a logit goes through all channels and
  has its row of the bigram table in it.
- A place's **constant** is what comes from no place: biases, positions, and all that is held at its
  reference value. So for every place but tokens

      input = sum of the links into it + constant,

  where the input is the activation itself, and what the activation function is given for a neuron.
  Building the graph checks each of these sums and refuses a model with parts it does not know.

q and k have no links onwards: the pattern is taken as it was. What they do to it is in `scores`:
with s the scale of attention, the score of two positions is the sum over channels of q k / s, of
which a pair of kept q and k places has one term, and a lone q or k the term with the other's
reference value.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tl_sparse.nodes import Node


class Place(NamedTuple):
    """A kept node, a token or a logit, at a position of the prompt."""

    what: Node | Literal["token", "logit"]
    pos: int
    token: int = -1
    """Of a token or a logit: which."""


class Value(NamedTuple):
    """What a place holds."""

    activation: float
    input: float
    """Of a neuron what its activation function is given; the activation for all else."""
    constant: float
    """The part of the input that comes from no place."""


class Link(NamedTuple):
    """What one place adds to another."""

    source: Place
    target: Place
    weight: float


class Score(NamedTuple):
    """One term of an attention score; q or k is None where it is held at its reference."""

    layer: int
    head: int
    query_pos: int
    key_pos: int
    q: Place | None
    k: Place | None
    weight: float


@dataclass(frozen=True, kw_only=True)
class PromptGraph:
    """A circuit on one prompt: places, what they hold, and what they add to each other."""

    tokens: tuple[int, ...]
    values: Mapping[Place, Value] = field(repr=False)
    """In the order of the forward pass; a token holds 1."""
    links: tuple[Link, ...] = field(repr=False)
    scores: tuple[Score, ...] = field(repr=False)
    """Terms of attention scores at the places of q and k; empty where a score is more than q k / s
    (rotary positions, normalised queries, a soft cap)."""
    probabilities: Mapping[int, float]
    """Of each logit's token, among all tokens; the most probable first."""

    @property
    def logits(self) -> tuple[Place, ...]:
        """The logits, the most probable first."""
        last = len(self.tokens) - 1
        return tuple(Place("logit", last, token) for token in self.probabilities)

    def into(self) -> dict[Place, list[Link]]:
        """Sort the links by where they end."""
        found: dict[Place, list[Link]] = defaultdict(list)
        for link in self.links:
            found[link.target].append(link)
        return found
