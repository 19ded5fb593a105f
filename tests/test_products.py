"""Products from live weights against plain torch: values, gradients, and when they are used."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from tl_sparse import HookedSparseTransformer, SparsityConfig
from tl_sparse.products import CHUNK, LiveWeights, Products, pays


def sparse_matrix(n_in: int, n_out: int, density: float, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n_in + n_out)
    weight = torch.randn(n_in, n_out, generator=generator, dtype=dtype)
    kept = torch.rand(n_in, n_out, generator=generator) < density
    return weight * kept


@pytest.mark.parametrize("n_tokens", [1, 5, CHUNK, 2 * CHUNK + 3])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("live_gradient", [False, True])
def test_values_and_gradients_equal_the_dense_product(n_tokens, density, live_gradient):
    weight = sparse_matrix(12, 7, density).requires_grad_()
    bias = torch.randn(7, dtype=torch.float64, requires_grad=True)
    x = torch.randn(n_tokens, 12, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(n_tokens, 7, dtype=torch.float64)
    fast = Products("sparse", live_gradient)("somewhere", x, weight, bias)
    slow = F.linear(x, weight.T, bias)
    torch.testing.assert_close(fast, slow)
    for name, mine, theirs in zip(
        ("x", "weight", "bias"),
        torch.autograd.grad(fast, (x, weight, bias), upstream),
        torch.autograd.grad(slow, (x, weight, bias), upstream),
        strict=True,
    ):
        if name == "weight" and live_gradient:
            theirs = theirs * (weight != 0)
        torch.testing.assert_close(mine, theirs)


def test_leading_axes_and_strides_are_kept():
    weight, bias = sparse_matrix(6, 4, 0.5), torch.zeros(4, dtype=torch.float64)
    x = torch.randn(3, 6, 5, dtype=torch.float64).transpose(1, 2)
    out = Products("sparse")("here", x, weight, bias)
    torch.testing.assert_close(out, x @ weight)


def test_changed_weights_are_seen_whichever_way_they_changed():
    products, bias = Products("sparse"), torch.zeros(8, dtype=torch.float64)
    weight, x = sparse_matrix(8, 8, 0.2), torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(products("w", x, weight, bias), weight)
    weight.data = weight.data.roll(1, 0)  # as many, elsewhere
    torch.testing.assert_close(products("w", x, weight, bias), weight)
    weight.numpy()[0] = 3.0  # behind torch's back
    torch.testing.assert_close(products("w", x, weight, bias), weight)
    other = sparse_matrix(8, 8, 0.9)
    torch.testing.assert_close(products("w", x, other, bias), other)


def test_live_weights_stay_with_their_places():
    weight = torch.tensor([[0.0, 2.0], [3.0, 0.0], [0.0, 5.0]])
    live = LiveWeights(weight)
    assert live.n == 3
    assert live.values(weight).tolist() == [2.0, 3.0, 5.0]
    assert live.fits(weight)
    assert not live.fits(weight.flip(0).roll(1, 1))
    assert not live.fits(torch.ones(3, 2))
    assert (live.matrix(live.values(weight)).todense() == weight.numpy()).all()
    assert (live.transposed(live.values(weight)).todense() == weight.numpy().T).all()


def test_the_rule_takes_sparse_products_where_much_is_saved():
    assert pays(8192, 256, 1024, 256 * 1024 // 64)
    assert not pays(8192, 256, 1024, 256 * 1024 // 2)
    assert not pays(8192, 16, 16, 4)
    assert not pays(1, 256, 1024, 100)


def a_model(sparsity: SparsityConfig, **shape) -> HookedSparseTransformer:
    cfg = dict(n_layers=2, d_model=64, n_ctx=16, d_head=16, d_vocab=30, d_mlp=128, act_fn="gelu",
               normalization_type="RMSPre", use_attention_sinks=True, device="cpu", seed=0,
               positional_embedding_type="none")  # fmt: skip
    return HookedSparseTransformer(cfg | shape, sparsity=sparsity)


@pytest.mark.parametrize("activation_density", [1.0, 0.25])
@pytest.mark.parametrize("hooked", [False, True])
def test_a_model_with_sparse_products_is_the_same_model(activation_density, hooked):
    """Logits, gradients and what hooks see; in float64, where AbsTopK has no ties to lose."""
    sparsity = SparsityConfig(
        weight_density=1 / 16, activation_density=activation_density, bigram_table=True
    )
    model = a_model(sparsity, dtype=torch.float64)
    tokens = torch.randint(0, 30, (3, 16), generator=torch.Generator().manual_seed(0))
    seen: dict[str, list[torch.Tensor]] = {}

    def run(path):
        def keep(value, hook):
            seen.setdefault(hook.name, []).append(value.detach())

        hooks = [(lambda name: True, keep)] if hooked else []
        model.zero_grad()
        with model.using_products(path), model.hooks(fwd_hooks=hooks):
            loss = model(tokens, return_type="loss")
        loss.backward()
        return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    dense, sparse = run("dense"), run("sparse")
    torch.testing.assert_close(sparse, dense)
    assert len(dense[1]) > 20
    for name, (one, other) in seen.items():
        torch.testing.assert_close(one, other, msg=name)
    assert bool(seen) == hooked
    used = set(model.products.found)
    assert used == {f"{layer}.{part}" for layer in (0, 1) for part in ("qkv", "in", "out")} | (
        set() if hooked else {"0.o", "1.o"}
    )


def test_a_sparse_model_chooses_by_the_rule_and_a_dense_one_is_the_hosts():
    assert a_model(SparsityConfig()).products.path == "dense"
    model = a_model(SparsityConfig(weight_density=1 / 16))
    assert model.products.path == "auto"
    with model.using_products("dense"):
        assert model.blocks[1].get_submodule("mlp").products is model.products
        assert model.products.path == "dense"
    with pytest.raises(ValueError, match="one of"), model.using_products("fast"):  # type: ignore
        pass
    model(torch.zeros(1, 4, dtype=torch.long))
    assert not model.products.found  # far too small to pay


def test_autocast_keeps_its_precision():
    products, weight, bias = Products("sparse"), torch.eye(4), torch.zeros(4)
    x = torch.full((2, 4), 1 / 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert products("here", x, weight, bias).dtype == torch.bfloat16
    assert products("here", x, weight, bias).dtype == torch.float32


def test_copies_have_products_of_their_own():
    model = a_model(SparsityConfig(weight_density=1 / 16))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.products is not model.products
        assert other.blocks[0].attn.products is other.products is other.blocks[1].mlp.products
        with other.using_products("sparse"):
            assert model.products.path == "auto"
