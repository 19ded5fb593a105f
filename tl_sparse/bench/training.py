"""Training steps and forward passes: ours, TransformerLens' and plain PyTorch's.

A step of ours is `take_step` of the run that `train` makes, the code that trains every model here:
the batch read from disk, forward and backward, gradients brought to RMS 1, the check that the loss
is finite, Adam, the projection of every matrix at its final density, weight decay, the sums of the
log. The steps of the other two are forward, backward and fused Adam on one batch that is there.
"""

import io
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformer_lens import HookedTransformer

from tl_sparse.bench.plain import PlainTransformer
from tl_sparse.bench.sizes import D_HEAD, Size
from tl_sparse.bench.timing import Candidate, Measurement, Run
from tl_sparse.config import SparsityConfig, TrainingConfig
from tl_sparse.data import Corpus
from tl_sparse.data.splits import TokenSplit
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.presets import FLOAT32_EPS
from tl_sparse.products import ProductPath
from tl_sparse.tokenizer import MIN_VOCAB_SIZE, train_tokenizer

# The run of `train`, not a second version of its step: `train` itself takes steps by the thousand.
from tl_sparse.training import TrainingRun, next_token_loss

ACTIVATION_DENSITY = 1 / 4

SPARSE = {
    "density 1": SparsityConfig(activation_density=ACTIVATION_DENSITY, bigram_table=True),
    "density 1/32, guard 4": SparsityConfig(
        weight_density=1 / 32, min_alive=4, activation_density=ACTIVATION_DENSITY, bigram_table=True
    ),
    "density 1/64": SparsityConfig(
        weight_density=1 / 64, activation_density=ACTIVATION_DENSITY, bigram_table=True
    ),
}
"""Our models: AbsTopK at the eight sites, attention sinks, a bigram table, at three densities."""

NOTHING_SPARSE = SparsityConfig()
"""Our model when nothing is asked for, and without sinks: the baseline's network."""

PLAIN, STOCK = "plain PyTorch, dense", "TransformerLens, dense"

SPARSEST = "density 1/64"

NEVER = 10**9
"""`regrow_every` that no run reaches: what a step between two regrowths costs."""


def shape(size: Size, device: torch.device, *, sinks: bool) -> dict[str, Any]:
    """Give the HookedTransformerConfig of a size as a dict."""
    return {
        "n_layers": size.n_layers,
        "d_model": size.d_model,
        "d_mlp": size.d_mlp,
        "d_head": D_HEAD,
        "n_heads": size.d_model // D_HEAD,
        "n_ctx": size.n_ctx,
        "d_vocab": size.d_vocab,
        "act_fn": "gelu",
        "normalization_type": "RMSPre",
        "eps": FLOAT32_EPS,
        "positional_embedding_type": "none",
        "use_attention_sinks": sinks,
        "default_prepend_bos": False,
        "initializer_range": 0.02,
        "seed": 0,
        "device": str(device),
    }


def our_model(
    size: Size, device: torch.device, sparsity: SparsityConfig
) -> HookedSparseTransformer:
    """Build our model; it has sinks where anything is sparse."""
    cfg = shape(size, device, sinks=not sparsity.is_dense)
    return HookedSparseTransformer(cfg, sparsity=sparsity, attention="auto")


def stock_model(size: Size, device: torch.device) -> HookedTransformer:
    """Build TransformerLens' own model, dense and without sinks; it can't be without positions."""
    cfg = shape(size, device, sinks=False) | {"positional_embedding_type": "standard"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return HookedTransformer(cfg)


def plain_model(size: Size, device: torch.device) -> PlainTransformer:
    """Build the plain dense model."""
    return PlainTransformer(size).to(device)


def random_tokens(size: Size, device: torch.device) -> Tensor:
    """Draw the tokens of one step."""
    generator = torch.Generator().manual_seed(0)
    shape = (size.batch_size, size.n_ctx)
    return torch.randint(0, size.d_vocab, shape, generator=generator).to(device)


@contextmanager
def random_corpus(size: Size) -> Iterator[Corpus]:
    """Write random tokens, enough for eight steps, to a folder that is removed in the end."""
    tokens = np.random.default_rng(0).integers(0, size.d_vocab, 9 * size.n_tokens, dtype=np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.bin"
        path.write_bytes(tokens.tobytes())
        split = TokenSplit(path, dtype="uint16", n_bytes=len(tokens))
        tokenizer = train_tokenizer([], vocab_size=MIN_VOCAB_SIZE)
        yield Corpus(split, split, tokenizer, "random", size.d_vocab)


@contextmanager
def our_step(
    size: Size, device: torch.device, sparsity: SparsityConfig, *, regrow_every: int = 1
) -> Iterator[Run]:
    """Give one step of `train`, at the final density from the first step on."""
    model = our_model(size, device, sparsity)
    config = TrainingConfig(
        n_tokens=10**6 * size.n_tokens,
        batch_size=size.batch_size,
        anneal="none",
        regrow_every=regrow_every,
    )
    with ExitStack() as stack:
        run = TrainingRun(model, stack.enter_context(random_corpus(size)), config, None, False)
        with redirect_stdout(io.StringIO()):  # the host prints that it moves a model
            stack.enter_context(run.accelerated())
        stack.enter_context(model.using_attention("auto"))
        yield run.take_step


@contextmanager
def dense_step(
    build: Callable[[], nn.Module], loss: Callable[[Any, Tensor], Tensor], tokens: Tensor
) -> Iterator[Run]:
    """Give forward, backward and a step of fused Adam."""
    model, config = build(), TrainingConfig()
    optimizer = torch.optim.Adam(
        [p for p in model.parameters() if p.requires_grad],
        lr=1e-3,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )

    def step() -> None:
        loss(model, tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    yield step


def stock_loss(model: HookedTransformer, tokens: Tensor) -> Tensor:
    """Give the mean next-token loss as `train` computes it."""
    return next_token_loss(model(tokens), tokens)


def training_candidates(size: Size, device: torch.device) -> tuple[Candidate, ...]:
    """Give the training steps that are compared."""
    tokens = random_tokens(size, device)
    plain = partial(dense_step, partial(plain_model, size, device), PlainTransformer.loss, tokens)
    stock = partial(dense_step, partial(stock_model, size, device), stock_loss, tokens)
    ours = {"nothing sparse": NOTHING_SPARSE} | SPARSE
    return (
        Candidate(PLAIN, plain),
        Candidate(STOCK, stock),
        *(
            Candidate(f"ours, {name}", partial(our_step, size, device, sparsity))
            for name, sparsity in ours.items()
        ),
        Candidate(
            f"ours, {SPARSEST}, between regrowths",
            partial(our_step, size, device, SPARSE[SPARSEST], regrow_every=NEVER),
        ),
    )


def training(size: Size, device: torch.device) -> list[Measurement]:
    """Measure training steps."""
    candidates = training_candidates(size, device)
    return [Measurement(kind="training", size=size.name, candidates=candidates)]


@contextmanager
def forward_pass(
    build: Callable[[], nn.Module], tokens: Tensor, *, products: ProductPath | None = None
) -> Iterator[Run]:
    """Give the forward pass of a model, without gradients; of ours with the products asked for."""
    model = build()

    def run() -> None:
        with torch.no_grad():
            model(tokens)

    if products is None:
        yield run
        return
    assert isinstance(model, HookedSparseTransformer)
    with model.using_products(products):
        yield run


def inference(size: Size, device: torch.device) -> list[Measurement]:
    """Measure forward passes without gradients, logits at every position."""
    tokens = random_tokens(size, device)
    builds: dict[str, Callable[[], nn.Module]] = {
        PLAIN: partial(plain_model, size, device),
        STOCK: partial(stock_model, size, device),
    }
    for name, sparsity in ({"nothing sparse": NOTHING_SPARSE} | SPARSE).items():
        builds[f"ours, {name}"] = partial(our_model, size, device, sparsity)
    candidates = tuple(
        Candidate(name, partial(forward_pass, build, tokens)) for name, build in builds.items()
    )
    sparsest = partial(our_model, size, device, SPARSE[SPARSEST])
    with_zeros = partial(forward_pass, sparsest, tokens, products="dense")
    candidates += (Candidate(f"ours, {SPARSEST}, dense products", with_zeros),)
    return [Measurement(kind="inference", size=size.name, candidates=candidates)]
