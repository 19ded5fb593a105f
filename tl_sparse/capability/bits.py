"""Bits per byte: how well a model predicts text, whatever its tokens are.

    bits per byte = (sum of -log2 P(token | those before)) / (sum of the tokens' bytes)

over the tokens that are predicted: all of a split, in windows side by side, but the first of each
window, which has nothing before it. The token between documents is predicted and has no bytes.
What is left at the end of the split, shorter than a window, is left out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer, decoders
from torch import Tensor
from tqdm import tqdm
from transformer_lens import HookedTransformer

from tl_sparse.ablation import fast_attention
from tl_sparse.data import Corpus
from tl_sparse.rules import POSITIVE_INTEGER, checks_itself, is_integer, maybe

LogProbs = Callable[[Int[Tensor, "window pos"]], Float[Tensor, "window predicted"]]
"""Gives the log probability, in nats, of each token but the first of its window."""


@dataclass(frozen=True, kw_only=True)
class Bits:
    """How well text was predicted."""

    nats: float
    """Summed over the tokens predicted."""
    n_tokens: int
    """Tokens predicted."""
    n_bytes: int
    """UTF-8 bytes of those tokens."""

    @property
    def per_byte(self) -> float:
        """Bits per byte of text."""
        return self.nats / math.log(2) / self.n_bytes

    @property
    def nats_per_token(self) -> float:
        """The loss as training logs it."""
        return self.nats / self.n_tokens


@checks_itself
def bits_per_byte(
    predictor: HookedTransformer | LogProbs,
    corpus: Corpus,
    *,
    n_ctx: int | None = None,
    n_windows: int | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> Bits:
    """Measure a model, or anything that gives log probabilities, on a corpus' validation side.

    Args:
        predictor: A HookedTransformer, or a function from windows of tokens to the log probability
            of each token but the first of its window (`NGramModel.log_probs`).
        corpus: With a byte-level tokenizer.
        n_ctx: Tokens of a window; None is the model's own. Compare models at the same.
        n_windows: Windows spread evenly over the text; None takes all of it.
        batch_size: Windows at a time.
        progress: Show a progress bar.

    Raises:
        ValueError: If the tokenizer isn't byte-level, a function is given without n_ctx, or a
            number is out of range, such as more tokens than the model reads.
    """
    maybe(POSITIVE_INTEGER).check("n_windows", n_windows)
    POSITIVE_INTEGER.check("batch_size", batch_size)
    if isinstance(predictor, HookedTransformer):
        n_ctx = predictor.cfg.n_ctx if n_ctx is None else n_ctx
        log_probs: LogProbs = model_log_probs(predictor)
    else:
        log_probs = predictor
    if n_ctx is None or not is_integer(n_ctx) or n_ctx < 2:
        raise ValueError(f"Windows of 2 tokens or more are needed: set n_ctx, got {n_ctx}.")
    if isinstance(predictor, HookedTransformer) and n_ctx > predictor.cfg.n_ctx:
        raise ValueError(
            f"The model reads at most {predictor.cfg.n_ctx} tokens at a time, got n_ctx={n_ctx}."
        )
    split, sizes = corpus.validation, token_bytes(corpus.tokenizer)
    windows = split.windows(n_ctx, n_windows or max(1, split.n_tokens // n_ctx))
    nats = 0.0
    for batch in tqdm(windows.split(batch_size), desc="bits per byte", disable=not progress):
        nats -= float(log_probs(batch).double().sum())
    predicted = windows[:, 1:]
    return Bits(nats=nats, n_tokens=predicted.numel(), n_bytes=int(sizes[predicted].sum()))


def model_log_probs(model: HookedTransformer) -> LogProbs:
    """Give a model as a function from windows to log probabilities."""
    return partial(_log_probs, model)


@torch.no_grad()
def _log_probs(
    model: HookedTransformer, windows: Int[Tensor, "window pos"]
) -> Float[Tensor, "window predicted"]:
    windows = windows.to(next(model.parameters()).device)
    with fast_attention(model):
        logits = model(windows)[:, :-1]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    found = logits.gather(2, windows[:, 1:, None])[:, :, 0] - logits.logsumexp(2)
    return found.cpu()


def token_bytes(tokenizer: Any) -> Int[Tensor, " d_vocab"]:
    """Give the UTF-8 bytes that each token stands for; special tokens have none.

    Raises:
        ValueError: If the tokenizer isn't a byte-level one of the `tokenizers` library.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer) or not isinstance(backend.decoder, decoders.ByteLevel):
        raise ValueError(
            "Bytes of single tokens are known of a byte-level tokenizer alone, as "
            f"`data.train_tokenizer` makes them; got {type(tokenizer).__name__}."
        )
    vocabulary = backend.get_vocab(with_added_tokens=True)
    special = {
        index for index, added in backend.get_added_tokens_decoder().items() if added.special
    }
    sizes = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.int64)
    for token, index in vocabulary.items():
        if index not in special:
            sizes[index] = len(token)  # one printable character stands for one byte
    return sizes
