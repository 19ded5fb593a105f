"""The activation cache of a sparse model: its parts add up, computed by hand beside it."""

import pytest
import torch
from conftest import SHAPE, make_model
from plain import keep_largest
from torch import Tensor
from transformer_lens import ActivationCache, HookedTransformer

from tl_sparse.config import SparsityConfig
from tl_sparse.model import HookedSparseTransformer, SparseActivationCache

SPARSE = SparsityConfig(
    weight_density=1 / 2,
    bias_density=1 / 2,
    activation_density={"attn_in": 0.5, "q": 0.5, "v": 0.5, "attn_out": 0.5, "mlp_in": 0.5,
                        "mlp_neuron": 0.5, "mlp_out": 0.25},
    bigram_table=True,
)  # fmt: skip
CLOSE = {"rtol": 0, "atol": 1e-10}
NORMS = ("RMSPre", "RMS", "LN", "LNPre")


def build(norm: str = "RMSPre", sparsity: SparsityConfig = SPARSE, **shape) -> tuple:
    model = make_model(sparsity, normalization_type=norm, dtype=torch.float64, **shape)
    tokens = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(2))
    logits, cache = model.run_with_cache(tokens)
    return model, tokens, logits, cache


def normed(model: HookedSparseTransformer, x: Tensor, name: str) -> Tensor:
    """A norm in plain torch, gain and bias included."""
    p = dict(model.named_parameters())
    if str(model.cfg.normalization_type).startswith("LN"):
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + model.cfg.eps).sqrt()
    return x * p.get(f"{name}.w", torch.tensor(1.0)) + p.get(f"{name}.b", torch.tensor(0.0))


def written(layer: int, site: str, model, cache, parts: Tensor, bias: Tensor) -> Tensor:
    """The parts of a sublayer's output in the channels that AbsTopK keeps of their sum."""
    whole = parts.sum(-2) + bias
    kept = keep_largest(whole, model.sparsity.site_density(site)) != 0
    torch.testing.assert_close(cache[f"blocks.{layer}.hook_{site}"], whole * kept, **CLOSE)
    return parts * kept[..., None, :]


def heads_by_hand(model, cache, layer: int) -> Tensor:
    z, w = cache[f"blocks.{layer}.attn.hook_z"], model.blocks[layer].attn.W_O
    parts = torch.stack([z[:, :, h] @ w[h] for h in range(w.shape[0])], dim=-2)
    return written(layer, "attn_out", model, cache, parts, model.blocks[layer].attn.b_O)


def neurons_by_hand(model, cache, layer: int) -> Tensor:
    post, w = cache[f"blocks.{layer}.mlp.hook_post"], model.blocks[layer].mlp.W_out
    parts = torch.stack([post[:, :, n, None] * w[n] for n in range(w.shape[0])], dim=-2)
    return written(layer, "mlp_out", model, cache, parts, model.blocks[layer].mlp.b_out)


def test_head_results_are_those_in_the_channels_that_abs_topk_kept():
    model, _, _, cache = build()
    stack, labels = cache.stack_head_results(return_labels=True)
    by_hand = torch.cat([heads_by_hand(model, cache, layer) for layer in (0, 1)], dim=-2)
    torch.testing.assert_close(stack, by_hand.movedim(-2, 0), **CLOSE)
    assert labels == [f"L{layer}H{head}" for layer in (0, 1) for head in range(4)]
    first = cache.stack_head_results(1, pos_slice=-1)
    torch.testing.assert_close(first, heads_by_hand(model, cache, 0)[:, -1].movedim(-2, 0), **CLOSE)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("ready", [True, False])
def test_heads_and_their_remainder_are_the_residual_stream(layer, ready):
    model, tokens, _, cache = build()
    if ready:  # the results before AbsTopK come from the hook point
        model.set_use_attn_result(True)
        _, cache = model.run_with_cache(tokens)
    stack, labels = cache.stack_head_results(layer, return_labels=True, incl_remainder=True)
    # With no layer at all the host's remainder is the last stream, and its own tests say so.
    stream = cache["resid_pre", 1] if layer == 1 else cache["resid_post", 1]
    torch.testing.assert_close(stack.sum(0), stream, **CLOSE)
    assert (len(labels), labels[-1]) == (4 * layer + 1, "remainder")


def test_neuron_results_are_those_in_the_channels_that_abs_topk_kept():
    model, _, _, cache = build()
    for layer in (0, 1):
        by_hand = neurons_by_hand(model, cache, layer)
        torch.testing.assert_close(cache.get_neuron_results(layer), by_hand, **CLOSE)
        some = cache.get_neuron_results(layer, neuron_slice=[3, 5], pos_slice=(2, 7))
        torch.testing.assert_close(some, by_hand[:, 2:7, [3, 5]], **CLOSE)
        one = cache.get_neuron_results(layer, neuron_slice=3, pos_slice=4)
        torch.testing.assert_close(one, by_hand[:, 4, 3], **CLOSE)
        for onto in (torch.randn(32).double(), torch.randn(32, 2).double()):
            projected = cache.get_neuron_results(layer, project_output_onto=onto)
            torch.testing.assert_close(projected, by_hand @ onto, **CLOSE)
            one = cache.get_neuron_results(layer, 3, 4, onto)
            torch.testing.assert_close(one, by_hand[:, 4, 3] @ onto, **CLOSE)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("apply_ln", [False, True])
@pytest.mark.parametrize("project", [None, 1, 2])
def test_neurons_and_their_remainder_are_the_residual_stream(norm, apply_ln, project):
    model, _, _, cache = build(norm)
    onto = None if project is None else torch.randn(32, project).double().squeeze(-1)
    got = cache.stack_neuron_results(
        2, incl_remainder=True, apply_ln=apply_ln, project_output_onto=onto
    )
    expected = cache["resid_post", 1]
    if apply_ln:
        bias = dict(model.named_parameters()).get("ln_final.b", torch.tensor(0.0))
        expected = normed(model, expected, "ln_final") - bias  # a bias belongs to no neuron
    expected = expected if onto is None else expected @ onto
    torch.testing.assert_close(got.sum(0), expected, **CLOSE)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("expand", [True, False])
@pytest.mark.parametrize(("layer", "mlp_input"), [(0, False), (0, True), (1, False), (1, True),
                                                  (None, False)])  # fmt: skip
def test_the_full_decomposition_adds_up_to_what_a_layer_reads(norm, expand, layer, mlp_input):
    model, _, _, cache = build(norm)
    names = {(None, False): "ln_final"}
    name = names.get((layer, mlp_input), f"blocks.{layer}.ln{1 + mlp_input}")
    stream = cache["resid_post", 1] if layer is None else cache["resid_pre", layer]
    stream = cache["resid_mid", layer] if mlp_input else stream
    for apply_ln in (False, True):
        expected = normed(model, stream, name) if apply_ln else stream
        for onto in (None, torch.randn(32).double(), torch.randn(32, 3).double()):
            stack, labels = cache.get_full_resid_decomposition(
                layer, mlp_input, expand, apply_ln, return_labels=True, project_output_onto=onto
            )
            total = expected if onto is None else expected @ onto
            torch.testing.assert_close(stack.sum(0), total, **CLOSE)
            assert len(labels) == len(stack)
            assert labels[-3:] == ["embed", "pos_embed", "bias"]


@pytest.mark.parametrize("sparsity", [SPARSE, SparsityConfig()])
def test_decompositions_have_the_hosts_rows_and_shapes(sparsity):
    """Where nothing is sparse they are the host's to the last digits; else in shape and name."""
    model, tokens, _, cache = build(sparsity=sparsity)
    host = HookedTransformer(SHAPE | {"dtype": torch.float64})
    host.load_state_dict(model.state_dict(), strict=False)
    _, theirs = host.run_with_cache(tokens)
    calls = {
        "stack_head_results": [{}, {"incl_remainder": True}, {"apply_ln": True}, {"layer": 1}],
        "stack_neuron_results": [{"layer": 2}, {"layer": 1, "apply_ln": True}],
        "get_full_resid_decomposition": [{}, {"expand_neurons": False}, {"layer": 1},
                                         {"pos_slice": -1, "apply_ln": True}],
        "decompose_resid": [{}, {"apply_ln": True}, {"mode": "mlp"}],
        "accumulated_resid": [{}, {"incl_mid": True, "apply_ln": True}],
    }  # fmt: skip
    for name, variants in calls.items():
        for options in variants:
            a, labels = getattr(cache, name)(return_labels=True, **options)
            b, their_labels = getattr(theirs, name)(return_labels=True, **options)
            assert labels == their_labels, (name, options)
            assert a.shape == b.shape, (name, options)
            if sparsity.is_dense:
                torch.testing.assert_close(a, b, rtol=0, atol=1e-6)  # its biases: float32


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("unit", ["component", "head", "neuron"])
def test_logits_are_the_sum_of_their_rows_and_the_table_is_one_of_them(norm, unit):
    model, tokens, logits, cache = build(norm)
    at = torch.arange(3)
    rows, labels = cache.logit_decomposition(7, unit=unit)
    torch.testing.assert_close(rows.sum(0), logits[..., 7], **CLOSE)
    bigram = rows[labels.index("bigram")]
    torch.testing.assert_close(bigram, model.bigram.table[tokens, 7], **CLOSE)
    right, wrong = torch.tensor([1, 2, 3]), torch.tensor([4, 4, 9])
    rows, labels = cache.logit_decomposition(right, wrong, unit=unit, pos_slice=-1)
    difference = logits[at, -1, right] - logits[at, -1, wrong]
    torch.testing.assert_close(rows.sum(0), difference, **CLOSE)
    assert len(rows) == len(labels)
    rows, _ = cache.logit_decomposition(tokens.roll(-1, 1), unit=unit)
    expected = logits.gather(-1, tokens.roll(-1, 1)[..., None])[..., 0]
    torch.testing.assert_close(rows.sum(0), expected, **CLOSE)


def test_logit_attrs_are_the_residual_streams_part_of_a_logit():
    """TransformerLens counts b_U to no component; the table is counted to none either."""
    model, tokens, logits, cache = build("RMS")
    attrs = cache.logit_attrs(cache.decompose_resid(), 7)
    rest = model.b_U[7] + model.bigram.table[tokens, 7]
    torch.testing.assert_close(attrs.sum(0) + rest, logits[..., 7], **CLOSE)


def test_a_logit_without_a_table_has_no_row_for_it():
    _, _, logits, cache = build(sparsity=SparsityConfig(activation_density=0.5))
    rows, labels = cache.logit_decomposition(3)
    assert labels == ["embed", "pos_embed", "0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out",
                      "b_U"]  # fmt: skip
    torch.testing.assert_close(rows.sum(0), logits[..., 3], **CLOSE)


def test_the_last_row_of_the_logit_lens_is_the_logits_without_the_table():
    model, tokens, logits, cache = build("RMS")
    lens = cache.accumulated_resid(apply_ln=True) @ model.W_U + model.b_U
    table = model.bigram.table[tokens]
    torch.testing.assert_close(lens[-1] + table, logits, **CLOSE)
    early = normed(model, cache["resid_pre", 1], "ln_final") @ model.W_U + model.b_U
    torch.testing.assert_close(lens[1], early, **CLOSE)


def test_slicing_and_dropping_the_batch_keep_the_class_and_the_sums():
    model, tokens, logits, cache = build()
    second = cache.apply_slice_to_batch_dim(1)
    assert isinstance(second, SparseActivationCache)
    rows, _ = second.logit_decomposition(7, unit="head")
    torch.testing.assert_close(rows.sum(0), logits[1, :, 7], **CLOSE)
    _, single = model.run_with_cache(tokens[:1], remove_batch_dim=True)
    assert not single.has_batch_dim
    rows, _ = single.logit_decomposition(7, unit="neuron", pos_slice=-1)
    torch.testing.assert_close(rows.sum(0), logits[0, -1, 7], **CLOSE)
    some = cache.apply_slice_to_batch_dim((0, 2))
    torch.testing.assert_close(some["resid_post", 1], cache["resid_post", 1][:2])


def test_attention_only_models_are_decomposed_too():
    _, _, logits, cache = build(attn_only=True, d_mlp=None)
    for unit in ("component", "head", "neuron"):
        rows, _ = cache.logit_decomposition(7, unit=unit)
        torch.testing.assert_close(rows.sum(0), logits[..., 7], **CLOSE)


def test_a_cache_as_a_plain_dict_stays_one(tokens):
    model = make_model(SPARSE)
    _, cache = model.run_with_cache(tokens, return_cache_object=False)
    assert type(cache) is dict
    _, cache = model.run_with_cache(tokens)
    assert isinstance(cache, ActivationCache)


def test_what_cannot_be_decomposed_says_why(tokens):
    model = make_model(SPARSE)
    _, cache = model.run_with_cache(tokens, return_type=None)
    with pytest.raises(ValueError, match=r"lacks bigram\.hook_out"):
        cache.logit_decomposition(7)
    _, cache = model.run_with_cache(tokens)
    with pytest.raises(ValueError, match="one token or one for each prompt and position"):
        cache.logit_decomposition(torch.arange(5))
    with pytest.raises(ValueError, match='"component", "head", "neuron", got \'layer\''):
        cache.logit_decomposition(7, unit="layer")
    capped = make_model(SPARSE, output_logits_soft_cap=5.0)
    _, cache = capped.run_with_cache(tokens)
    with pytest.raises(ValueError, match="a logit is no sum of parts"):
        cache.logit_decomposition(7)
