r"""An n-gram model of tokens: interpolated Kneser-Ney, in numpy.

The probability of a token w behind a context h of k - 1 tokens (Kneser and Ney 1995; interpolated,
one discount for each order, as in Chen and Goodman 1999):

    P_k(w | h) = (c_k(h w) - D_k)^+ / c_k(h)  +  D_k T_k(h) / c_k(h) x P_(k-1)(w | h')

c_k counts n-grams: at the highest order how often they occur, below it behind how many different
tokens they occur. c_k(h) is the sum of c_k(h w) over w, T_k(h) the number of different w behind h,
h' is h without its first token, D_k = n_1 / (n_1 + 2 n_2) with n_i the number of n-grams of count
i, and P_0 = 1 / V. A context that was never seen passes the question on: P_k = P_(k-1). So each
P_k( | h) sums to 1.

1. An n-gram is one integer, its tokens as digits. The text is read in blocks; the n-grams of each
   are sorted and counted, and added to those before.
2. Counts of lower orders come from the order above; sums over a context from sorted runs.
3. Probabilities are looked up by binary search, the lowest order first.

Memory is some 100 bytes for each different n-gram of the highest order, and a block.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor
from tqdm import tqdm

from tl_sparse.data import TokenSplit
from tl_sparse.rules import POSITIVE_INTEGER, checks_itself, is_integer, maybe

BLOCK = 2**22
"""Tokens that are counted at a time."""


@dataclass(frozen=True, eq=False)
class _Order:
    """The n-grams of one length."""

    grams: Int[np.ndarray, " gram"]
    """Sorted."""
    counts: Int[np.ndarray, " gram"]
    contexts: Int[np.ndarray, " context"]
    """Their contexts, sorted; the only one of length 0 is 0."""
    sums: Int[np.ndarray, " context"]
    """c(h): the counts of the n-grams of a context, added up."""
    n_next: Int[np.ndarray, " context"]
    """T(h): the number of n-grams of a context."""
    discount: float


class NGramModel:
    """What tokens follow up to `order` - 1 others, counted on a training text.

    Examples:
        >>> tokens = torch.tensor([[0, 1, 0, 1, 0, 1]])
        >>> model = NGramModel.count(np.array([0, 1, 0, 1, 0, 2]), d_vocab=3, order=2)
        >>> model.log_probs(tokens).exp().shape
        torch.Size([1, 5])
    """

    def __init__(self, orders: list[_Order], d_vocab: int) -> None:
        """Take finished counts; `fit` and `count` make them."""
        self.orders, self.d_vocab = orders, d_vocab

    @property
    def order(self) -> int:
        """Length of the longest n-grams."""
        return len(self.orders)

    @property
    def n_counts(self) -> int:
        """The n-grams of all lengths that are kept, each a number of the model."""
        return sum(len(order.grams) for order in self.orders)

    def __repr__(self) -> str:
        """One line."""
        return f"NGramModel(order {self.order}, {self.n_counts:,} counts)"

    @classmethod
    @checks_itself
    def fit(
        cls,
        split: TokenSplit,
        d_vocab: int,
        *,
        order: int = 5,
        n_tokens: int | None = None,
        progress: bool = True,
    ) -> "NGramModel":
        """Count the n-grams of a corpus' training side: `fit(corpus.train, corpus.d_vocab)`.

        `n_tokens` stops after so many tokens, which bounds the memory; None reads all.

        Raises:
            ValueError: If a number is out of range, or n-grams of that order don't fit into 63
                bits.
        """
        maybe(POSITIVE_INTEGER).check("n_tokens", n_tokens)
        n = min(split.n_tokens, n_tokens or split.n_tokens)
        return cls.count(split.tokens[:n], d_vocab, order=order, progress=progress)

    @classmethod
    @checks_itself
    def count(
        cls,
        tokens: Integer[np.ndarray, " token"],
        d_vocab: int,
        *,
        order: int = 5,
        progress: bool = False,
    ) -> "NGramModel":
        """Count the n-grams of a sequence of tokens.

        Raises:
            ValueError: If n-grams of that order take over 63 bits, a token is not below `d_vocab`,
                or there is too little text.
        """
        POSITIVE_INTEGER.check("d_vocab", d_vocab)
        bits = digit_bits(d_vocab)
        if not is_integer(order) or order < 1 or order * bits > 63:
            raise ValueError(
                f"An n-gram of tokens below {d_vocab:,} takes {bits} bits for each of them and 63 "
                f"in all: order is 1 to {63 // bits}, got {order}."
            )
        if len(tokens) < order:
            raise ValueError(f"Counting needs {order} tokens, one n-gram, got {len(tokens)}.")
        low, high = int(np.min(tokens)), int(np.max(tokens))
        if low < 0 or high >= d_vocab:
            raise ValueError(
                f"Tokens are from 0 to below d_vocab, {d_vocab:,}; these are from {low} to {high}."
            )
        grams, counts = _count(tokens, bits, order, progress)
        orders = [_order(grams, counts, bits)]
        for length in range(order - 1, 0, -1):
            shorter = np.bitwise_and(grams, (1 << length * bits) - 1)  # without the first token
            grams, counts = np.unique(shorter, return_counts=True)
            orders.append(_order(grams, counts, bits))
        return cls(orders[::-1], d_vocab)

    def log_probs(self, windows: Int[Tensor, "window pos"]) -> Float[Tensor, "window predicted"]:
        """Give the log probability, in nats, of each token but the first of its window.

        A context doesn't reach out of its window: like a transformer's.
        """
        tokens = windows.cpu().numpy().astype(np.int64)
        found = np.full(tokens[:, 1:].shape, 1 / self.d_vocab)
        bits = digit_bits(self.d_vocab)
        for length, order in enumerate(self.orders, start=1):
            first = max(length - 1, 1)  # the first token that has so many before it
            if first >= tokens.shape[1]:
                break
            grams = _packed(tokens, bits, length)[:, first - length + 1 :]
            found[:, first - 1 :] = _interpolated(order, grams, bits, found[:, first - 1 :])
        return torch.from_numpy(np.log(found))


def digit_bits(d_vocab: int) -> int:
    """Give the bits that a token takes in an n-gram."""
    return max(1, (d_vocab - 1).bit_length())


def _packed(
    tokens: Integer[np.ndarray, "*rows token"], bits: int, length: int
) -> Int[np.ndarray, "*rows gram"]:
    """Write each n-gram as an integer, its last token in the lowest bits."""
    n = tokens.shape[-1] - length + 1
    grams = np.zeros((*tokens.shape[:-1], n), dtype=np.int64)
    for i in range(length):
        grams = (grams << bits) | tokens[..., i : i + n].astype(np.int64)
    return grams


def _count(
    tokens: Integer[np.ndarray, " token"], bits: int, length: int, progress: bool
) -> tuple[Int[np.ndarray, " gram"], Int[np.ndarray, " gram"]]:
    """Give all n-grams of a length, sorted, with their counts."""
    grams, counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    starts = range(0, len(tokens) - length + 1, BLOCK)
    for start in tqdm(starts, desc="n-grams", disable=not progress):
        block = np.asarray(tokens[start : start + BLOCK + length - 1])
        some, how_often = np.unique(_packed(block, bits, length), return_counts=True)
        both = np.concatenate([grams, some])
        grams, where = np.unique(both, return_inverse=True)
        weights = np.concatenate([counts, how_often])
        counts = np.bincount(where, weights=weights, minlength=len(grams)).astype(np.int64)
    return grams, counts


def _order(grams: Int[np.ndarray, " gram"], counts: Int[np.ndarray, " gram"], bits: int) -> _Order:
    contexts, starts, n_next = np.unique(grams >> bits, return_index=True, return_counts=True)
    sums = np.add.reduceat(counts, starts)
    n_1, n_2 = int((counts == 1).sum()), int((counts == 2).sum())
    discount = n_1 / (n_1 + 2 * n_2) if n_1 else 0.5  # without singletons it would be 0
    return _Order(grams, counts, contexts, sums, n_next, discount)


def _interpolated(
    order: _Order,
    grams: Int[np.ndarray, "window pos"],
    bits: int,
    lower: Float[np.ndarray, "window pos"],
) -> Float[np.ndarray, "window pos"]:
    """Give P_k from P_(k-1)."""
    at, is_gram = _find(order.grams, grams)
    context, is_context = _find(order.contexts, grams >> bits)
    counts = np.where(is_gram, order.counts[at] - order.discount, 0.0)
    left_over = order.discount * order.n_next[context] * lower
    return np.where(is_context, (counts + left_over) / order.sums[context], lower)


def _find(
    known: Int[np.ndarray, " known"], wanted: Int[np.ndarray, "window pos"]
) -> tuple[Int[np.ndarray, "window pos"], np.ndarray]:
    """Give where each number stands in a sorted list, and whether it is there."""
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return at, known[at] == wanted
