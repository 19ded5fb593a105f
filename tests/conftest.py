"""Small models and texts that the tests share."""

from collections.abc import Iterable
from typing import Any

import pytest
import sae_lens  # noqa: F401  # before the hook that checks types: under it nothing is read from bytecode
import torch
import typechecks  # noqa: F401  # before our modules too, which it wraps

from tl_sparse import data
from tl_sparse.config import SparsityConfig
from tl_sparse.model import HookedSparseTransformer

collect_ignore = ["golden/tracr/make.py"]  # needs Tracr and jax

torch.set_num_threads(1)  # the models are tiny; a second thread only waits

SHAPE: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 32,
    "d_head": 8,
    "d_mlp": 64,
    "n_ctx": 16,
    "d_vocab": 50,
    "act_fn": "gelu",
    "normalization_type": "RMSPre",
    "use_attention_sinks": True,
    "device": "cpu",
    "seed": 0,
}


def make_model(
    sparsity: SparsityConfig | None = None, *, random: bool = True, **shape: Any
) -> HookedSparseTransformer:
    """A tiny model with random biases, sinks and table too, so that no term hides in a zero."""
    model = HookedSparseTransformer(SHAPE | shape, sparsity=sparsity)
    if random:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "W_pos" not in name:
                    drawn = torch.empty(parameter.shape, dtype=parameter.dtype)
                    parameter.copy_(drawn.normal_(std=0.3, generator=generator))
        model.project_()
    return model


def write_edges(model: HookedSparseTransformer, edges: Iterable[tuple[str, str, float]]) -> None:
    """Write weights into a model, each named by its two nodes, as `0.mlp_in.4`."""
    names = {"q": "attn.W_Q", "k": "attn.W_K", "v": "attn.W_V", "attn_out": "attn.W_O",
             "mlp_neuron": "mlp.W_in", "mlp_out": "mlp.W_out"}  # fmt: skip
    for source, target, weight in edges:
        layer, site, channel = target.split(".")
        a, b, d = int(source.split(".")[2]), int(channel), model.cfg.d_head
        index = {"attn_out": (a // d, a % d, b), "mlp_neuron": (a, b), "mlp_out": (a, b)}
        with torch.no_grad():
            parameter = model.get_parameter(f"blocks.{layer}.{names[site]}")
            parameter[index.get(site, (b // d, a, b % d))] = weight


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return list(data.generate_programs(150, seed=5))


@pytest.fixture(scope="session")
def corpus(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> data.Corpus:
    """A corpus of generated Python, small enough to train on in a second."""
    cache = tmp_path_factory.mktemp("cache")
    return data.corpus(texts, vocab_size=400, cache_dir=cache, progress=False)


@pytest.fixture(scope="session")
def quote_corpus(tmp_path_factory: pytest.TempPathFactory) -> data.Corpus:
    """A corpus whose tokenizer has the answers of the quote task as single tokens."""
    cache = tmp_path_factory.mktemp("quotes")
    texts = list(data.generate_programs(1500, seed=3))
    return data.corpus(texts, vocab_size=1024, cache_dir=cache, progress=False)
