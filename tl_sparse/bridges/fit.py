"""`fit_bridges`: bridges between two models that are both trained already, in closed form.

The paper trains the sparse model and the bridges together, from scratch (`train_bridged`). Here
neither model moves, and only the bridges are found:

1. both models run over the same text, and products of their residual streams are summed, in double
   precision;
2. each decoder is the ridge regression of the dense stream on the sparse one, with a bias: the one
   with the least decoder NMSE (`nmse_normalisation="batch"`) but for the ridge;
3. each encoder likewise the other way round, its AbsTopK left aside.

It takes seconds, and says what two models that were never tied to each other have in common. No
hybrid had a part in it: a linear map can miss a direction that has little variance and much effect.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm
from transformer_lens import HookedTransformer

from tl_sparse.ablation import fast_attention
from tl_sparse.bridges.hybrids import as_normed, check_models, run_with_residuals
from tl_sparse.bridges.modules import Bridge, Bridges
from tl_sparse.config import BridgeConfig
from tl_sparse.data import Corpus
from tl_sparse.rules import POSITIVE_INTEGER, POSITIVE_NUMBER, checks_itself


@torch.no_grad()
@checks_itself
def fit_bridges(
    dense: HookedTransformer,
    sparse: HookedTransformer,
    corpus: Corpus,
    *,
    n_tokens: int = 2**17,
    ridge: float = 1e-4,
    batch_size: int = 32,
    config: BridgeConfig | None = None,
    progress: bool = True,
) -> Bridges:
    """Fit bridges between two trained models over about `n_tokens` tokens of the training text.

    `ridge` is a fraction of the inputs' mean square. Of the config only `encoder_density` has a
    part in it.

    Raises:
        ValueError: If the models can't be joined, or a number is out of range.
    """
    POSITIVE_INTEGER.check("n_tokens", n_tokens)
    POSITIVE_INTEGER.check("batch_size", batch_size)
    POSITIVE_NUMBER.check("ridge", ridge)
    check_models(dense, sparse)
    bridges = Bridges.between(dense, sparse, config)
    n_ctx = min(dense.cfg.n_ctx, sparse.cfg.n_ctx)
    n_windows = max(1, min(n_tokens, corpus.train.n_tokens) // n_ctx)
    products: list[Tensor] = []
    windows = corpus.train.windows(n_ctx, n_windows)
    device = next(dense.parameters()).device
    with fast_attention(dense), fast_attention(sparse):
        for batch in tqdm(windows.split(batch_size), desc="bridges", disable=not progress):
            some = _products(dense, sparse, batch.to(device))
            products = [a + b for a, b in zip(products, some, strict=True)] if products else some
    d, squares = dense.cfg.d_model, []
    for site, product in enumerate(products):
        _fill_(bridges[site], product, d, ridge)
        mean = product / product[-1, -1]
        of_both = (dense, mean[:d, :d]), (sparse, mean[d:-1, d:-1])
        squares.append(torch.stack([_mean_square(model, some) for model, some in of_both]))
    bridges.note_sizes_(torch.stack(squares, 1).to(bridges.rms_dense.dtype))
    return bridges


def _products(
    dense: HookedTransformer, sparse: HookedTransformer, tokens: Int[Tensor, "batch pos"]
) -> list[Float[Tensor, "entry entry"]]:
    """Give the products of all channels at each site: dense ones, sparse ones, and a constant 1."""
    products = []
    _, of_dense = run_with_residuals(dense, tokens)
    _, of_sparse = run_with_residuals(sparse, tokens)
    for a, b in zip(of_dense, of_sparse, strict=True):
        both = torch.cat([a, b, torch.ones_like(a[..., :1])], -1).flatten(0, 1).double()
        products.append(both.T @ both)
    return products


def _fill_(bridge: Bridge, product: Float[Tensor, "entry entry"], d: int, ridge: float) -> None:
    """Put both regressions into a bridge, in place; `d` is the dense model's width."""
    last = len(product) - 1
    of_dense, of_sparse = list(range(d)), list(range(d, last))
    for W, b, inputs, outputs in (
        (bridge.W_enc, bridge.b_enc, of_dense, of_sparse),
        (bridge.W_dec, bridge.b_dec, of_sparse, of_dense),
    ):
        rows = product[[*inputs, last]]
        solved = _ridge(rows[:, [*inputs, last]], rows[:, outputs], ridge)
        W.copy_(solved[:-1])
        b.copy_(solved[-1])


def _mean_square(
    model: HookedTransformer, products: Float[Tensor, "channel channel"]
) -> Float[Tensor, ""]:
    """Give the mean square of a stream's entries, as the norms see them, from its mean products."""
    return as_normed(model, as_normed(model, products).T).diagonal().mean()


def _ridge(
    inputs: Float[Tensor, "a a"], with_outputs: Float[Tensor, "a b"], ridge: float
) -> Float[Tensor, "a b"]:
    """Solve a regression whose last input is the constant, which the ridge leaves alone."""
    penalty = torch.full_like(inputs.diagonal(), ridge * inputs.diagonal()[:-1].mean().item())
    penalty[-1] = 0
    return torch.linalg.solve(inputs + penalty.diag(), with_outputs)
