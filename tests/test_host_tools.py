"""TransformerLens' own tools on a sparse model, against plain torch; docs/concepts/tools.md lists
them with the names of these tests."""

import copy
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import SHAPE, make_model
from plain import plain_forward
from torch import Tensor
from transformer_lens import FactoredMatrix, HookedTransformer, SVDInterpreter, patching
from transformer_lens import train as host_train
from transformer_lens.evals import evaluate_on_dataset, ioi_eval
from transformer_lens.head_detector import detect_head
from transformer_lens.tools.analysis import (
    BackwardLens,
    JacobianLens,
    attention_head_subspace_affinity,
    attribution_patch,
    direct_logit_attribution,
    get_act_patch_direct_path,
)
from transformer_lens.tools.analysis.svd_circuits import decompose_head
from transformer_lens.utilities.exploratory_utils import test_prompt as try_prompt

from tl_sparse.config import SparsityConfig
from tl_sparse.data import train_tokenizer
from tl_sparse.model import HookedSparseTransformer

SPARSE = SparsityConfig(
    weight_density=1 / 2,
    embedding_density=1 / 2,
    bias_density=1 / 2,
    activation_density={"attn_in": 0.5, "q": 0.5, "k": 0.5, "v": 0.5, "attn_out": 0.5,
                        "mlp_in": 0.5, "mlp_neuron": 0.5, "mlp_out": 0.5},
    bigram_table=True,
)  # fmt: skip
CLOSE = {"rtol": 0, "atol": 1e-10}
TINY = {"n_ctx": 8, "dtype": torch.float64}


class Plain:
    """A model evaluated in plain torch, and what stands at its sites."""

    def __init__(self, model: HookedSparseTransformer) -> None:
        self.parameters = {name: p.detach() for name, p in model.named_parameters()}
        self.sparsity = model.sparsity

    def __call__(self, tokens: Tensor, at: Callable[[int, str, Tensor], Tensor]) -> Tensor:
        return plain_forward(self.parameters, tokens, self.sparsity, SHAPE, at, at)

    def values(self, tokens: Tensor) -> dict[tuple[int, str], Tensor]:
        found = {}

        def note(layer: int, site: str, x: Tensor) -> Tensor:
            found[layer, site] = x.clone()
            return x

        self(tokens, note)
        return found


def clean_and_corrupted() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    clean = torch.randint(0, 50, (2, 5), generator=generator)
    corrupted = clean.clone()
    corrupted[:, 1] = (clean[:, 1] + 7) % 50
    return clean, corrupted


def metric(logits: Tensor) -> Tensor:
    return (logits[:, -1, 3] - logits[:, -1, 5]).sum()


# -- activation patching ----------------------------------------------------------------------

VECTORS = {"resid_pre": "resid_pre", "resid_mid": "resid_mid", "attn_out": "attn_out",
           "mlp_out": "mlp_out"}  # fmt: skip
HEADS = {"out": "z", "q": "q", "k": "k", "v": "v", "pattern": "pattern"}


def patch_by_hand(
    model: HookedSparseTransformer, site: str, places: list[tuple[int, Any]]
) -> list[float]:
    """The metric after putting the clean value at each (layer, index) of a site, one by one."""
    plain, (clean, corrupted) = Plain(model), clean_and_corrupted()
    values, results = plain.values(clean), []
    for layer, index in places:

        def at(here: int, name: str, x: Tensor, layer: int = layer, index: Any = index) -> Tensor:
            if (here, name) != (layer, site):
                return x
            x, value = x.clone(), values[layer, site]
            if site in ("q", "k", "v"):  # (batch, pos, heads x channels) here
                shape = (*x.shape[:2], SHAPE["d_model"] // SHAPE["d_head"], -1)
                x.view(shape)[index] = value.view(shape)[index]
            else:
                x[index] = value[index]
            return x

        results.append(metric(plain(corrupted, at)).item())
    return results


@pytest.fixture(scope="module")
def patched() -> tuple[HookedSparseTransformer, Tensor, Any]:
    model = make_model(SPARSE, **TINY)
    clean, corrupted = clean_and_corrupted()
    _, cache = model.run_with_cache(clean)
    return model, corrupted, cache


@pytest.mark.parametrize("name", VECTORS)
def test_patching_a_vector_at_each_position_equals_patching_by_hand(name, patched):
    model, corrupted, cache = patched
    got = getattr(patching, f"get_act_patch_{name}")(model, corrupted, cache, metric)
    places = [(layer, (slice(None), pos)) for layer in (0, 1) for pos in range(5)]
    expected = torch.tensor(patch_by_hand(model, VECTORS[name], places)).view(2, 5)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_patching_heads_at_all_positions_equals_patching_by_hand(name, patched):
    model, corrupted, cache = patched
    patch = getattr(patching, f"get_act_patch_attn_head_{name}_all_pos")
    every = slice(None)
    index = (lambda h: (every, h)) if name == "pattern" else (lambda h: (every, every, h))
    places = [(layer, index(head)) for layer in (0, 1) for head in range(4)]
    expected = torch.tensor(patch_by_hand(model, HEADS[name], places)).view(2, 4)
    torch.testing.assert_close(
        patch(model, corrupted, cache, metric), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", HEADS)
def test_patching_heads_at_each_position_equals_patching_by_hand(name, patched):
    model, corrupted, cache = patched
    got = getattr(patching, f"get_act_patch_attn_head_{name}_by_pos")(
        model, corrupted, cache, metric
    )
    got = got.transpose(1, 2) if name == "pattern" else got  # layer head pos in the host
    every = slice(None)
    places = [
        (layer, (every, head, pos) if name == "pattern" else (every, pos, head))
        for layer in (0, 1)
        for pos in range(5)
        for head in range(4)
    ]
    expected = torch.tensor(patch_by_hand(model, HEADS[name], places)).view(2, 5, 4)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_patching_single_entries_of_patterns_equals_patching_by_hand(patched):
    model, corrupted, cache = patched
    got = patching.get_act_patch_attn_head_pattern_dest_src_pos(model, corrupted, cache, metric)
    places = [
        (layer, (slice(None), head, dest, src))
        for layer in (0, 1)
        for head in range(4)
        for dest in range(5)
        for src in range(5)
    ]
    expected = torch.tensor(patch_by_hand(model, "pattern", places)).view(2, 4, 5, 5)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_the_every_family_stacks_the_single_ones(patched):
    model, corrupted, cache = patched
    args = (model, corrupted, cache, metric)
    block = patching.get_act_patch_block_every(*args)
    names = ("resid_pre", "attn_out", "mlp_out")
    single = [getattr(patching, f"get_act_patch_{name}")(*args) for name in names]
    assert torch.equal(block, torch.stack(single))
    all_pos = patching.get_act_patch_attn_head_all_pos_every(*args)
    names = ("out", "q", "k", "v", "pattern")
    single = [getattr(patching, f"get_act_patch_attn_head_{n}_all_pos")(*args) for n in names]
    assert torch.equal(all_pos, torch.stack(single))
    by_pos = patching.get_act_patch_attn_head_by_pos_every(*args)
    assert torch.equal(by_pos[1], patching.get_act_patch_attn_head_q_by_pos(*args))


def test_patching_the_residual_stream_leaves_the_bigram_table_alone(patched):
    """At the last position the table still reads the corrupted token."""
    model = patched[0]
    clean, corrupted = clean_and_corrupted()
    corrupted[:, -1] = (clean[:, -1] + 3) % 50
    _, cache = model.run_with_cache(clean)

    def whole(name: str) -> tuple[str, Callable[..., Tensor]]:
        return name, lambda x, hook: cache[name]

    resid, table = whole("blocks.0.hook_resid_pre"), whole("bigram.hook_out")
    logits = model(clean)
    alone = model.run_with_hooks(corrupted, fwd_hooks=[resid])
    torch.testing.assert_close(
        alone - logits, model.bigram.table[corrupted] - model.bigram.table[clean], **CLOSE
    )
    both = model.run_with_hooks(corrupted, fwd_hooks=[resid, table])
    torch.testing.assert_close(both, logits, **CLOSE)


# -- gradients --------------------------------------------------------------------------------

SITES = {
    "attn_in": "hook_attn_read", "q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v",
    "attn_out": "hook_attn_out", "mlp_in": "hook_mlp_read", "mlp_neuron": "mlp.hook_post",
    "mlp_out": "hook_mlp_out", "resid_pre": "hook_resid_pre", "resid_mid": "hook_resid_mid",
    "z": "attn.hook_z", "pattern": "attn.hook_pattern",
}  # fmt: skip


@pytest.mark.parametrize("site", SITES)
def test_gradients_at_hook_points_are_finite_differences(site):
    model = make_model(SPARSE, **TINY)
    tokens, _ = clean_and_corrupted()
    names = [f"blocks.{layer}.{SITES[site]}" for layer in (0, 1)]
    gradients = {}

    def save(gradient: Tensor, hook: Any) -> None:
        gradients[hook.name] = gradient

    with model.hooks(bwd_hooks=[(name, save) for name in names]):
        metric(model(tokens)).backward()
    plain, generator = Plain(model), torch.Generator().manual_seed(0)
    for layer, name in enumerate(names):
        gradient = gradients[name].flatten()
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        if site not in ("resid_pre", "resid_mid"):  # stay inside AbsTopK's choice behind the site
            direction *= 1e-3

        def shifted(step: float, layer: int = layer, direction: Tensor = direction) -> float:
            def at(here: int, which: str, x: Tensor) -> Tensor:
                moved = (here, which) == (layer, site)
                return x + step * direction.view_as(x) if moved else x

            return metric(plain(tokens, at)).item()

        slope = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
        assert gradient @ direction == pytest.approx(slope, rel=1e-4, abs=1e-8), name


def test_a_cache_of_gradients_holds_the_same_ones():
    model = make_model(SPARSE, **TINY)
    tokens, _ = clean_and_corrupted()
    _, cache = model.run_with_cache(
        tokens, return_type="loss", incl_bwd=True, names_filter=lambda n: "hook_attn_read" in n
    )
    assert set(cache) == {
        f"blocks.{i}.hook_attn_read{end}" for i in (0, 1) for end in ("", "_grad")
    }
    read = cache["attn_read", 1].clone().requires_grad_()
    hook = ("blocks.1.hook_attn_read", lambda x, hook: read)
    model.run_with_hooks(tokens, return_type="loss", fwd_hooks=[hook]).backward()
    torch.testing.assert_close(cache["blocks.1.hook_attn_read_grad"], read.grad, **CLOSE)


def test_caches_take_filters_and_positions():
    model = make_model(SPARSE, **TINY)
    tokens, _ = clean_and_corrupted()
    _, whole = model.run_with_cache(tokens)
    names = ["blocks.0.attn.hook_q", "blocks.1.hook_mlp_read", "bigram.hook_out"]
    _, some = model.run_with_cache(tokens, names_filter=names, pos_slice=(1, 3))
    assert list(some) == names
    for name in names:
        torch.testing.assert_close(some[name], whole[name][:, 1:3], **CLOSE)


def test_attribution_patching_is_the_gradient_times_the_difference():
    model = make_model(SPARSE, **TINY)
    clean, corrupted = clean_and_corrupted()
    scores = attribution_patch(model, clean, corrupted, metric).node_scores
    plain, sites = Plain(model), {"attn_head_out": "z", "mlp_out": "mlp_out"}
    effects: dict[tuple[int, str], Tensor] = {}
    for one, other in zip(clean, corrupted, strict=True):
        leaves: dict[tuple[int, str], Tensor] = {}

        def at(layer: int, site: str, x: Tensor, leaves: Any = leaves) -> Tensor:
            if site not in sites.values():
                return x
            leaves[layer, site] = x + torch.zeros_like(x).requires_grad_()
            leaves[layer, site].retain_grad()
            return leaves[layer, site]

        metric(plain(other[None], at)).backward()
        values = plain.values(one[None])
        for key, leaf in leaves.items():
            assert leaf.grad is not None
            effect = ((values[key] - leaf.detach()) * leaf.grad).sum(-1)[0] / len(clean)
            effects[key] = effects.get(key, torch.zeros_like(effect)) + effect
    checked = 0
    for node, score in scores.items():
        if node.layer is not None:
            place = (node.position,) if node.head is None else (node.position, node.head)
            expected = effects[node.layer, sites[node.kind]][place].item()
            assert score == pytest.approx(expected, rel=1e-5, abs=1e-7), node
            checked += 1
    assert checked == 2 * 5 * (1 + 4)


# -- reading logits ---------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["component", "head"])
def test_direct_logit_attribution_is_the_residual_streams_part(unit):
    model = make_model(SPARSE, **TINY)
    tokens, _ = clean_and_corrupted()
    result = direct_logit_attribution(model, tokens, 3, 5, unit=unit)
    logits, cache = model.run_with_cache(tokens)
    table = model.bigram.table[tokens[:, -1]]
    rest = model.b_U[3] - model.b_U[5] + table[:, 3] - table[:, 5]
    total = result.attribution.sum(0) + rest
    torch.testing.assert_close(total, logits[:, -1, 3] - logits[:, -1, 5], **CLOSE)
    rows, labels = cache.logit_decomposition(3, 5, pos_slice=-1)  # and ours has all of it
    torch.testing.assert_close(rows[labels.index("bigram")], table[:, 3] - table[:, 5], **CLOSE)
    torch.testing.assert_close(rows.sum(0), total, **CLOSE)


def test_direct_path_patching_is_refused_under_abs_topk_and_the_hosts_without(patched):
    model, corrupted, cache = patched
    _, corrupted_cache = model.run_with_cache(corrupted)
    args = (corrupted, cache, corrupted_cache, metric, 0, 1)
    with pytest.raises(ValueError, match=r"AbsTopK at attn_out, .* hook_q_input"):
        get_act_patch_direct_path(model, *args, verbose=False)
    linear = make_model(SparsityConfig(weight_density=1 / 4), **TINY)
    host = dense_copy(linear, **TINY)
    clean, _ = clean_and_corrupted()
    results = []
    for either in (linear, host):
        caches = [either.run_with_cache(tokens)[1] for tokens in (clean, corrupted)]
        results.append(
            get_act_patch_direct_path(
                either, corrupted, caches[0], caches[1], metric, 0, 1, "v", verbose=False
            )
        )
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


def dense_copy(model: HookedSparseTransformer, **shape: Any) -> HookedTransformer:
    """TransformerLens' own model with the zeros written into its weights."""
    host = HookedTransformer(SHAPE | shape)
    with torch.no_grad():
        for name, parameter in host.named_parameters():
            parameter.copy_(model.get_parameter(name) * model.weight_masks.get(name, 1))
    return host


# -- weights ----------------------------------------------------------------------------------


def test_factored_matrices_are_products_of_the_masked_weights():
    model = make_model(SPARSE, **TINY)
    w = {name: p.detach() for name, p in model.named_parameters()}
    for layer in (0, 1):
        a = f"blocks.{layer}.attn."
        ov = torch.stack([w[f"{a}W_V"][h] @ w[f"{a}W_O"][h] for h in range(4)])
        qk = torch.stack([w[f"{a}W_Q"][h] @ w[f"{a}W_K"][h].T for h in range(4)])
        assert isinstance(model.OV, FactoredMatrix)
        torch.testing.assert_close(model.OV[layer].AB, ov, **CLOSE)
        torch.testing.assert_close(model.QK[layer].AB, qk, **CLOSE)


def test_composition_scores_are_norms_of_products():
    model = make_model(SPARSE, **TINY)
    scores = model.all_composition_scores("K")
    ov, qk = torch.as_tensor(model.OV.AB).detach(), torch.as_tensor(model.QK.AB).detach()
    for h in range(4):
        for g in range(4):
            product = (ov[0, h] @ qk[1, g].T).norm() / (ov[0, h].norm() * qk[1, g].norm())
            assert scores[0, h, 1, g].item() == pytest.approx(product.item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["OV", "w_in", "w_out"])
def test_singular_vectors_are_those_of_the_masked_weights(kind):
    model = make_model(SPARSE)
    vectors = SVDInterpreter(model).get_singular_vectors(kind, 1, 4, head_index=2)
    matrix = {"OV": model.OV[1, 2].AB, "w_in": model.W_in[1].T, "w_out": model.W_out[1]}[kind]
    right = torch.linalg.svd(matrix.detach(), full_matrices=False).Vh[:4]
    expected = (right @ model.W_U.detach()).T
    overlap = torch.nn.functional.cosine_similarity(vectors[..., :4].reshape(50, 4), expected, 0)
    torch.testing.assert_close(overlap.abs(), torch.ones(4), rtol=0, atol=1e-4)


def test_head_decompositions_rebuild_the_masked_weights():
    model = make_model(SPARSE)
    head = decompose_head(model, 1, 2)
    for svd, matrix in ((head.QK, model.QK[1, 2].AB), (head.OV, model.OV[1, 2].AB)):
        assert svd is not None
        torch.testing.assert_close(
            svd.U @ svd.S.diag() @ svd.V.T, torch.as_tensor(matrix).detach(), rtol=0, atol=1e-4
        )


# -- texts ------------------------------------------------------------------------------------

TEXTS = ["def f(x):\n    return x + 1\n", "print('a')\n", "for i in range(10):\n    pass\n"]


@pytest.fixture(scope="module")
def reader() -> HookedSparseTransformer:
    """A model that reads text, with positions so that a wrong one is seen."""
    tokenizer = train_tokenizer(TEXTS * 3, vocab_size=270)
    shape = SHAPE | {"dtype": torch.float64, "n_ctx": 40, "d_vocab": tokenizer.vocab_size}
    shape |= {"default_prepend_bos": False}
    model = HookedSparseTransformer(shape, tokenizer, sparsity=SPARSE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    model.project_()
    return model


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_logits(side, reader):
    tokens = reader.to_tokens(TEXTS, padding_side=side)
    logits = reader(TEXTS, padding_side=side)
    assert logits.shape[:2] == tokens.shape
    for row, text in zip(logits, TEXTS, strict=True):
        alone = reader(text)[0]
        part = row[-len(alone) :] if side == "left" else row[: len(alone)]
        torch.testing.assert_close(part, alone, **CLOSE)


def test_bos_is_prepended_when_asked(reader):
    bos = reader.tokenizer.bos_token_id
    tokens = reader.to_tokens(TEXTS[0], prepend_bos=True)
    assert tokens[0, 0] == bos
    torch.testing.assert_close(reader(TEXTS[0], prepend_bos=True), reader(tokens), **CLOSE)


def test_heads_are_detected_by_their_patterns(reader):
    scores = detect_head(reader, TEXTS[0], "previous_token_head", error_measure="abs")
    tokens = reader.to_tokens(TEXTS[0])
    pattern = Plain(reader).values(tokens)[1, "pattern"][0, 2]
    wanted = torch.zeros_like(pattern)
    wanted[1:, :-1] = torch.eye(len(pattern) - 1)
    by_hand = 1 - (pattern - wanted).abs().mean() * len(pattern)
    assert scores[1, 2].item() == pytest.approx(by_hand.item(), abs=0.01)


def test_a_prompt_is_tried(reader, capsys):
    try_prompt("def f(x", ")", reader, prepend_space_to_answer=False, prepend_bos=False)
    order = reader("def f(x")[0, -1].argsort(descending=True)
    rank = (order == reader.to_single_token(")")).nonzero().item()
    assert f"Rank: {rank} " in capsys.readouterr().out


def test_a_dataset_is_evaluated():
    model = make_model(SPARSE)
    batches = [{"tokens": torch.randint(0, 50, (2, 9))} for _ in range(3)]
    losses = [model(b["tokens"]).log_softmax(-1)[:, :-1].gather(-1, b["tokens"][:, 1:, None])
              for b in batches]  # fmt: skip
    expected = -torch.stack(losses).mean().item()
    assert evaluate_on_dataset(model, batches, device="cpu") == pytest.approx(expected, rel=1e-5)


def test_pairs_of_names_are_evaluated(reader):
    generator = torch.Generator().manual_seed(0)
    samples = []
    for n in (6, 9, 7):
        prompt = torch.randint(0, 200, (n,), generator=generator)
        samples.append({"prompt": prompt, "IO": prompt[-1:], "S": (prompt[-1:] + 1) % 200})
    found = ioi_eval(reader, samples, num_samples=3)
    differences = [
        reader(s["prompt"])[0, -2, s["IO"]] - reader(s["prompt"])[0, -2, s["S"]] for s in samples
    ]
    mean = torch.cat(differences).mean().item()
    assert found["Logit Difference"] == pytest.approx(mean, rel=1e-6)


# -- generating -------------------------------------------------------------------------------


def greedy(model: HookedTransformer, tokens: Tensor, n_new: int) -> Tensor:
    for _ in range(n_new):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    return tokens


OPTIONS: dict[str, Any] = {"max_new_tokens": 9, "stop_at_eos": False, "verbose": False}


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("positions", ["standard", "none", "rotary", "shortformer"])
@pytest.mark.parametrize("table", [True, False])
def test_generating_without_a_tokenizer_is_greedy_decoding(cached, positions, table, tokens):
    """TransformerLens 3.9 miscounts positions here, and stops with an error half-way through."""
    sparsity = SparsityConfig(weight_density=1 / 2, activation_density=1 / 2, bigram_table=table)
    shape: dict[str, Any] = {"positional_embedding_type": positions, "dtype": torch.float64}
    shape |= {"rotary_dim": 8} if positions == "rotary" else {}
    model = make_model(sparsity, **shape)
    options = OPTIONS | {"use_past_kv_cache": cached, "do_sample": False}
    out = model.generate(tokens[:, :6], **options)
    assert torch.equal(out, greedy(model, tokens[:, :6], 9))
    top = model.generate(tokens[:, :6], **OPTIONS | {"top_k": 1, "use_past_kv_cache": cached})
    assert torch.equal(top, out)
    stream = list(model.generate_stream(tokens[:, :6], max_tokens_per_yield=100, **options))
    assert torch.equal(torch.as_tensor(stream[-1]), out)


@pytest.mark.parametrize("cached", [True, False])
def test_generating_text_is_greedy_decoding_also_in_a_padded_batch(cached, reader):
    options = OPTIONS | {"use_past_kv_cache": cached, "do_sample": False}
    alone = []
    for text in TEXTS:
        tokens = reader.to_tokens(text)
        expected = greedy(reader, tokens, 9)
        assert torch.equal(reader.generate(tokens, **options), expected)
        alone.append(reader.tokenizer.decode(expected[0], skip_special_tokens=True))
        assert reader.generate(text, **options) == alone[-1]
    assert reader.generate(TEXTS, **options) == alone
    tokens = reader.to_tokens(TEXTS[0])
    logits = reader.generate(tokens, **options, output_logits=True).logits
    torch.testing.assert_close(logits[0], reader(tokens)[:, -1], **CLOSE)


def test_generation_stops_at_the_end_of_text(reader):
    tokens = reader.to_tokens(TEXTS[0])
    first = int(reader(tokens)[0, -1].argmax())
    out = reader.generate(
        tokens, max_new_tokens=5, eos_token_id=first, do_sample=False, verbose=False
    )
    assert out.shape[1] == tokens.shape[1] + 1


def test_embeddings_without_tokens_are_refused_under_a_table(tokens):
    model = make_model(SPARSE)
    embeddings = model.embed(tokens)
    with pytest.raises(ValueError, match="generate from tokens or text, not from embeddings"):
        model.generate(embeddings, **OPTIONS)
    with pytest.raises(ValueError, match="given 4 for 12"):
        model(embeddings, start_at_layer=0, tokens=tokens[:, :4])
    assert model.generate(tokens[:, :4], **OPTIONS).shape == (3, 13)  # and nothing is left over


# -- parts of a forward pass ------------------------------------------------------------------


def test_a_forward_pass_may_start_and_stop_at_any_layer(tokens):
    model = make_model(SPARSE, n_layers=3, dtype=torch.float64)
    logits, cache = model.run_with_cache(tokens)
    for layer in (0, 1, 2, -1):
        stream = cache["resid_pre", layer]
        torch.testing.assert_close(model(tokens, stop_at_layer=layer), stream, **CLOSE)
        rest = model(stream, start_at_layer=layer, tokens=tokens)
        torch.testing.assert_close(rest, logits, **CLOSE)
        loss = model(stream, start_at_layer=layer, tokens=tokens, return_type="loss")
        torch.testing.assert_close(loss, model(tokens, return_type="loss"), **CLOSE)
    middle = model(cache["resid_pre", 1], start_at_layer=1, stop_at_layer=2)
    torch.testing.assert_close(middle, cache["resid_pre", 2], **CLOSE)


def test_both_gives_logits_and_loss_by_name(tokens):
    out = make_model(SPARSE)(tokens, return_type="both")
    assert torch.equal(out.logits, out[0])
    assert torch.equal(out.loss, out[1])


def test_keys_and_values_of_a_prefix_can_be_kept(tokens):
    from transformer_lens import TransformerLensKeyValueCache

    model = make_model(SPARSE, dtype=torch.float64)
    logits = model(tokens)
    kept = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", 3)
    model(tokens[:, :7], past_kv_cache=kept)
    kept.freeze()
    for end in (9, 12):
        more = model(tokens[:, 7:end], past_kv_cache=kept)
        torch.testing.assert_close(more, logits[:, 7:end], **CLOSE)


# -- hooks, copies, types ---------------------------------------------------------------------


def test_removing_all_hooks_leaves_the_sparsity(tokens):
    model = make_model(SPARSE)
    before = model(tokens)
    model.add_hook("blocks.0.hook_attn_read", lambda tensor, hook: tensor * 2)
    model.add_perma_hook("blocks.1.mlp.hook_post", lambda tensor, hook: tensor * 0)
    assert not torch.equal(model(tokens), before)
    model.reset_hooks(including_permanent=True)
    assert torch.equal(model(tokens), before)
    _, cache = model.run_with_cache(tokens)
    assert ((cache["post", 1] != 0).sum(-1) == 32).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_counts_and_nearly_the_values(dtype, tokens):
    model = make_model(SPARSE)
    double = copy.deepcopy(model).to(torch.float64)
    half = copy.deepcopy(model).to(dtype)
    for name, mask in model.weight_masks.items():
        assert torch.equal(half.weight_masks[name], mask)
        assert torch.equal(half.get_parameter(name) != 0, model.get_parameter(name) != 0)
    _, cache = half.run_with_cache(tokens)
    kept = (cache["blocks.0.hook_attn_read"] != 0).sum(-1)
    assert (kept <= 16).all()
    loss = half(tokens, return_type="loss")
    loss.backward()
    assert loss.dtype == dtype
    assert all(bool(p.grad.isfinite().all()) for p in half.parameters() if p.grad is not None)
    # Without AbsTopK, whose choice may flip, rounding is all that differs.
    smooth = make_model(SparsityConfig(weight_density=1 / 2, bigram_table=True))
    expected = copy.deepcopy(smooth).to(torch.float64)(tokens)
    torch.testing.assert_close(smooth.to(dtype)(tokens).double(), expected, rtol=0, atol=0.5)
    out = half.generate(tokens[:, :4], max_new_tokens=3, stop_at_eos=False, verbose=False)
    assert out.shape == (3, 7)
    assert double(tokens).dtype == torch.float64


def test_everything_moves_with_the_model():
    model = make_model(SPARSE).to("meta")
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert {name for name, t in tensors.items() if t.device.type != "meta"} == set()
    assert len(model.weight_masks) == 26


COMPILED = """
import torch
from tl_sparse import HookedSparseTransformer, SparsityConfig
shape = dict(n_layers=2, d_model=32, d_head=8, d_mlp=64, n_ctx=16, d_vocab=50, act_fn="gelu",
             normalization_type="RMSPre", use_attention_sinks=True, device="cpu", seed=0)
sparsity = SparsityConfig(weight_density=1 / 2, activation_density=1 / 2, bigram_table=True)
model = HookedSparseTransformer(shape, sparsity=sparsity)
tokens = torch.randint(0, 50, (3, 12))
fast = torch.compile(model, backend="aot_eager", fullgraph=True)
torch.testing.assert_close(fast(tokens), model(tokens), rtol=0, atol=1e-5)
gradients = []
for handle in (fast, model):
    model.zero_grad()
    handle(tokens, return_type="loss").backward()
    gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)
"""


def test_a_compiled_handle_computes_the_same_without_a_break():
    """In a Python of its own: jaxtyping's checks, which pytest switches on, do not compile."""
    command = [sys.executable, "-W", "ignore", "-c", COMPILED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_compiling_in_place_is_refused_since_hooks_would_be_skipped(tokens):
    model = make_model(SPARSE)
    with pytest.raises(ValueError, match=r"fast = torch\.compile\(model\)"):
        model.compile()
    hook = ("blocks.0.hook_resid_pre", lambda x, hook: x * 0)
    assert not torch.allclose(model.run_with_hooks(tokens, fwd_hooks=[hook]), model(tokens))


# -- training by others -----------------------------------------------------------------------


class Windows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"tokens": torch.arange(index, index + 12) % 50}


def train_as_the_host_does(model: HookedSparseTransformer) -> None:
    config = host_train.HookedTransformerTrainConfig(
        num_epochs=2, batch_size=4, lr=5e-2, weight_decay=0.1, device="cpu", print_every=None
    )
    host_train.train(model, config, Windows())


def test_the_hosts_own_training_loop_regrows_weights_until_projected():
    model = make_model(SPARSE)
    before = {name: mask.clone() for name, mask in model.weight_masks.items()}
    train_as_the_host_does(model)
    dense = sum(int((model.get_parameter(n)[~m] != 0).sum()) for n, m in before.items())
    assert dense > 0
    model.project_()
    for name, mask in model.weight_masks.items():
        assert mask.sum() == before[name].sum()
        assert (model.get_parameter(name)[~mask] == 0).all()
    assert any(not torch.equal(model.weight_masks[n], before[n]) for n in before)


def test_with_frozen_masks_any_optimiser_keeps_the_wiring():
    model = make_model(SPARSE)
    before = {name: mask.clone() for name, mask in model.weight_masks.items()}
    start = model.W_in.detach().clone()
    with model.frozen_masks():
        train_as_the_host_does(model)
    assert not torch.equal(model.W_in, start)
    for name, mask in before.items():
        assert torch.equal(model.weight_masks[name], mask)
        assert (model.get_parameter(name)[~mask] == 0).all()
    model(torch.arange(12)[None], return_type="loss").backward()
    mask = before["blocks.0.mlp.W_in"]
    gradient = model.get_parameter("blocks.0.mlp.W_in").grad
    assert gradient is not None
    assert (gradient[~mask] != 0).any()  # outside the block gradients are dense again


# -- weight processing ------------------------------------------------------------------------

STEPS = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases",
         "refactor_factored_attn_matrices")  # fmt: skip
OFF = dict.fromkeys(STEPS, False)
METHODS = {"fold_ln": "fold_layer_norm"}


def try_step(model: HookedSparseTransformer, step: str, tokens: Tensor) -> bool:
    """Take one step; tell whether it was allowed, and that it was right to allow or refuse it."""
    before = model(tokens).log_softmax(-1)
    counts = {name: int((p != 0).sum()) for name, p in model.named_parameters()}
    masked = {name for name, m in model.weight_masks.items() if not m.all()}
    state = copy.deepcopy(model.state_dict())
    method = METHODS.get(step, step)
    logging.disable(logging.WARNING)
    try:
        model.load_and_process_state_dict(state, **OFF | {step: True})
    except ValueError:
        assert torch.equal(model(tokens).log_softmax(-1), before)
        with pytest.raises(ValueError, match=step):
            getattr(model, method)(model.state_dict())
        return False
    finally:
        logging.disable(logging.NOTSET)
    # The host computes some of it in float32.
    torch.testing.assert_close(model(tokens).log_softmax(-1), before, rtol=0, atol=1e-4)
    for name in masked:
        assert int((model.get_parameter(name) != 0).sum()) == counts[name]
    return True


@pytest.mark.parametrize("norm", ["RMS", "RMSPre", "LN", "LNPre"])
@pytest.mark.parametrize("sinks", [True, False])
@pytest.mark.parametrize(
    ("sparsity", "allowed"),
    [
        ({}, set(STEPS)),
        ({"weight_density": 0.5, "qkv_ranking": "joint"}, {"fold_ln", "center_unembed",
                                                           "fold_value_biases"}),
        ({"embedding_density": 0.5}, {"fold_ln", "fold_value_biases",
                                      "refactor_factored_attn_matrices"}),
        ({"activation_density": 0.5}, {"center_unembed"}),
        ({"activation_density": {"q": 0.5}}, {"fold_ln", "center_writing_weights",
                                              "center_unembed", "fold_value_biases"}),
    ],
)  # fmt: skip
def test_a_processing_step_is_taken_exactly_or_refused(norm, sinks, sparsity, allowed, tokens):
    shape: dict[str, Any] = {"use_attention_sinks": sinks, "normalization_type": norm}
    rms = norm.startswith("RMS")
    if sinks:
        allowed = allowed - {"fold_value_biases", "refactor_factored_attn_matrices"}
    if rms:
        allowed = allowed | {"center_writing_weights"}  # it does nothing under RMS norm
    if norm.endswith("Pre"):
        allowed = allowed | {"fold_ln"}  # so does folding where nothing is left to fold
    if norm == "LN" and sparsity.keys() & {"weight_density", "embedding_density"}:
        allowed = allowed - {"fold_ln"}
    taken = set()
    for step in STEPS:
        model = make_model(SparsityConfig(**sparsity), dtype=torch.float64, **shape)
        if try_step(model, step, tokens):
            taken.add(step)
    assert taken == allowed


def test_the_default_processing_is_refused_on_a_sparse_model(tokens):
    model = make_model(SPARSE)
    before = model(tokens)
    with pytest.raises(ValueError, match=r"center_unembed: .* fold_value_biases: "):
        model.process_weights_()
    assert torch.equal(model(tokens), before)


# -- what refuses by itself -------------------------------------------------------------------


def test_tools_made_for_the_bridge_alone_say_so_themselves():
    """They know no HookedTransformer at all, sparse or not."""
    model = make_model(SPARSE)
    for error, call in (
        (TypeError, lambda: JacobianLens.fit(model, ["a"], corpus="c")),
        (TypeError, lambda: BackwardLens(model)),
        (ValueError, lambda: attention_head_subspace_affinity(model, target_role="Q")),
    ):
        with pytest.raises(error, match="TransformerBridge"):
            call()
