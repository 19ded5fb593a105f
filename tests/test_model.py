"""`HookedSparseTransformer` against TransformerLens itself and against a plain-torch evaluation."""

import copy
import pickle

import pytest
import torch
from conftest import SHAPE, make_model
from plain import plain_forward
from transformer_lens import HookedTransformer

from tl_sparse.config import SparsityConfig
from tl_sparse.data import Corpus
from tl_sparse.model import HookedSparseTransformer

SPARSE = SparsityConfig(
    weight_density=1 / 4,
    embedding_density=1 / 2,
    bias_density=1 / 2,
    activation_density={"attn_in": 0.5, "q": 0.25, "k": 0.5, "v": 0.4, "attn_out": 0.5,
                        "mlp_in": 0.3, "mlp_neuron": 0.25, "mlp_out": 0.6},
    min_alive=2,
    bigram_table=True,
)  # fmt: skip


@pytest.mark.parametrize("attention", ["eager", "fused", "auto"])
def test_the_model_computes_what_plain_torch_computes_in_float64(attention, tokens):
    model = make_model(SPARSE, dtype=torch.float64)
    model.set_attention(attention)
    p = {name: parameter.detach() for name, parameter in model.named_parameters()}
    expected = plain_forward(p, tokens, SPARSE, SHAPE)
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-11)


def test_masked_model_equals_dense_model_with_zeroed_weights(tokens):
    sparsity = SparsityConfig(weight_density=0.2, embedding_density=0.5, bias_density=0.3)
    model = make_model(sparsity)
    dense = HookedTransformer(SHAPE)
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            mask = model.weight_masks.get(name, torch.tensor(1))
            parameter.copy_(model.get_parameter(name) * mask)
    torch.testing.assert_close(
        model.to(torch.float64)(tokens), dense.to(torch.float64)(tokens), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("normalization", ["RMSPre", "RMS", "LN", "LNPre"])
@pytest.mark.parametrize("sinks", [True, False])
def test_with_nothing_sparse_it_is_transformerlens_bit_for_bit(normalization, sinks, tokens):
    shape = SHAPE | {"normalization_type": normalization, "use_attention_sinks": sinks}
    ours, theirs = HookedSparseTransformer(dict(shape)), HookedTransformer(dict(shape))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    logits, cache = ours.run_with_cache(tokens)
    their_logits, their_cache = theirs.run_with_cache(tokens)
    assert isinstance(logits, torch.Tensor)
    assert isinstance(their_logits, torch.Tensor)
    assert torch.equal(logits, their_logits)
    for name, activation in their_cache.items():
        assert torch.equal(cache[name], activation), name
    new = set(cache) - set(their_cache)
    assert new == {f"blocks.{i}.hook_{s}_read" for i in (0, 1) for s in ("attn", "mlp")}
    for model in (ours, theirs):
        model(tokens, return_type="loss").backward()
    for name, parameter in theirs.named_parameters():
        # Not the same bits: the host norms three times and adds up three gradients.
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "toggle", ["use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in"]
)
def test_the_hosts_toggles_do_not_change_the_logits(toggle, tokens):
    model = make_model(SPARSE, dtype=torch.float64)
    before = model(tokens)
    setattr(model.cfg, toggle, True)
    torch.testing.assert_close(model(tokens), before, rtol=0, atol=1e-12)


def test_hook_points_show_the_sparsified_activations(tokens):
    model = make_model(SPARSE)
    _, cache = model.run_with_cache(tokens)
    n_kept = {
        "hook_attn_read": 16, "attn.hook_q": 8, "attn.hook_k": 16, "attn.hook_v": 12,
        "hook_attn_out": 16, "hook_mlp_read": 9, "mlp.hook_post": 16, "hook_mlp_out": 19,
    }  # fmt: skip
    for name, k in n_kept.items():
        activation = cache[f"blocks.1.{name}"].flatten(2)
        assert ((activation != 0).sum(-1) == k).all(), name


@pytest.mark.parametrize("sinks", [True, False])
def test_fused_attention_agrees_with_eager_in_values_and_gradients(sinks, tokens):
    def run(path, dtype):
        model = make_model(use_attention_sinks=sinks, dtype=dtype)
        model.set_attention(path)
        loss = model(tokens, return_type="loss")
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    for dtype, close in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        torch.testing.assert_close(run("fused", dtype), run("eager", dtype), rtol=0, atol=close)


def test_auto_steps_aside_for_hooks_on_the_scores_and_fused_refuses(tokens):
    model = make_model(SPARSE)
    fused = model(tokens)

    def uniform(pattern, hook):
        return torch.full_like(pattern, 0.1)

    changed = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_pattern", uniform)])
    assert (changed - fused).abs().max() > 0.1
    _, cache = model.run_with_cache(tokens)
    assert cache["pattern", 0].sum(-1).max() < 1  # the sink takes its share
    model.set_attention("fused")
    with pytest.raises(ValueError, match="a hook stands on hook_attn_scores or hook_pattern"):
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_pattern", uniform)])


def test_positions_can_be_switched_off():
    model = make_model(positional_embedding_type="none")
    same = torch.full((1, 6), 7)
    logits = model(same)
    # Without positions a constant text looks alike from everywhere but for the sink's share.
    no_sink = make_model(positional_embedding_type="none", use_attention_sinks=False)(same)
    torch.testing.assert_close(no_sink[0, 0], no_sink[0, 5])
    assert not torch.allclose(logits[0, 0], logits[0, 5])
    assert not model.pos_embed.W_pos.requires_grad
    assert (model.pos_embed.W_pos == 0).all()


def test_the_bigram_table_is_added_and_asks_for_tokens(tokens):
    model = make_model(SPARSE)
    logits, cache = model.run_with_cache(tokens)
    assert torch.equal(cache["bigram.hook_out"], model.bigram.table[tokens])
    resid = cache["blocks.1.hook_resid_pre"]
    with pytest.raises(ValueError, match=r"Pass tokens=\.\.\. beside start_at_layer"):
        model(resid, start_at_layer=1)
    torch.testing.assert_close(model(resid, start_at_layer=1, tokens=tokens), logits)
    torch.testing.assert_close(model(tokens, stop_at_layer=1), resid)
    both = model(tokens, return_type="both", loss_per_token=True)
    by_hand = -both[0].log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(both[1], by_hand)


@pytest.mark.parametrize("cached", [True, False])
def test_generation_with_the_table_is_greedy_decoding(cached, tokens):
    model = make_model(SPARSE, positional_embedding_type="none", dtype=torch.float64)
    expected = tokens[:, :4]
    for _ in range(6):
        expected = torch.cat([expected, model(expected)[:, -1:].argmax(-1)], 1)
    out = model.generate(
        tokens[:, :4],
        max_new_tokens=6,
        do_sample=False,
        stop_at_eos=False,
        return_type="tokens",
        verbose=False,
        use_past_kv_cache=cached,
    )
    assert torch.equal(out, expected)


def test_masks_follow_the_model_through_copies_and_files(tokens, tmp_path):
    model = make_model(SPARSE)
    logits = model(tokens)
    model.save(tmp_path / "model")
    copies = {
        "deepcopy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "file": HookedSparseTransformer.load(tmp_path / "model"),
    }
    for how, other in copies.items():
        assert torch.equal(other(tokens), logits), how
        assert other.sparsity == model.sparsity
        for name, mask in model.weight_masks.items():
            assert torch.equal(other.weight_masks[name], mask), (how, name)
            assert other.weight_masks[name].data_ptr() != mask.data_ptr()
    assert model.to(torch.float64).weight_masks["embed.W_E"].dtype == torch.bool


def test_loading_a_dense_state_dict_keeps_its_largest_weights(tokens):
    dense = HookedTransformer(SHAPE | {"seed": 5})
    model = make_model(SparsityConfig(weight_density=1 / 8))
    model.load_state_dict(dense.state_dict())
    w = dense.W_in[0].detach()
    threshold = w.abs().flatten().sort(descending=True).values[w.numel() // 8 - 1]
    assert torch.equal(model.W_in[0], torch.where(w.abs() >= threshold, w, 0))
    assert torch.equal(model.weight_masks["blocks.0.mlp.W_in"], w.abs() >= threshold)


def test_value_biases_are_not_folded_under_sinks(tokens):
    """TransformerLens 3.9 folds them: attention that ends in a sink does not carry the bias."""
    model = make_model(random=True)
    expected = model(tokens).log_softmax(-1)
    with pytest.raises(ValueError, match="fold_value_biases: with attention sinks"):
        model.process_weights_()
    torch.testing.assert_close(model(tokens).log_softmax(-1), expected)
    model.load_and_process_state_dict(model.state_dict(), fold_value_biases=False)
    torch.testing.assert_close(model(tokens).log_softmax(-1), expected, atol=1e-4, rtol=1e-4)
    without = make_model(random=True, use_attention_sinks=False)
    expected = without(tokens).log_softmax(-1)
    without.process_weights_()
    torch.testing.assert_close(without(tokens).log_softmax(-1), expected, atol=1e-4, rtol=1e-4)


def test_weight_processing_that_would_change_the_function_is_refused(tokens):
    model = make_model(SPARSE)
    before = model(tokens)
    with pytest.raises(ValueError, match="center_unembed: subtracting means fills"):
        model.process_weights_()
    assert torch.equal(model(tokens), before)
    dense = make_model(use_attention_sinks=False, normalization_type="RMS", dtype=torch.float64)
    before = dense(tokens).log_softmax(-1)
    dense.process_weights_()
    torch.testing.assert_close(dense(tokens).log_softmax(-1), before, rtol=0, atol=1e-6)


def test_reopening_gives_masked_weights_fresh_draws_and_leaves_the_others():
    model = HookedSparseTransformer(SHAPE, sparsity=SparsityConfig(weight_density=1 / 16))
    kept = model.W_in.detach().clone()
    state = torch.get_rng_state()
    model.reopen_(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.where(kept != 0, kept, model.W_in), model.W_in)
    assert (model.W_in != 0).all()
    assert model.weight_masks["blocks.0.mlp.W_in"].all()
    # cfg.seed makes the fresh draws those that construction had masked: a dense model's own
    assert torch.equal(model.W_in, HookedTransformer(SHAPE).W_in)


def test_text_goes_in_when_there_is_a_tokenizer(corpus: Corpus):
    model = make_model(d_vocab=corpus.d_vocab, default_prepend_bos=False)
    with_tokenizer = HookedSparseTransformer(
        SHAPE | {"d_vocab": corpus.d_vocab, "default_prepend_bos": False},
        tokenizer=corpus.tokenizer,
    )
    ids = corpus.tokenizer.encode("x = 1")
    assert with_tokenizer.to_tokens("x = 1").tolist() == [ids]
    assert with_tokenizer("x = 1").shape == (1, len(ids), corpus.d_vocab)
    assert model.tokenizer is None


@pytest.mark.parametrize(
    ("shape", "sparsity", "message"),
    [
        ({}, {"weight_density": 1 / 64, "min_alive": 4}, "min_alive=4 can't be met"),
        ({}, {"weight_density": 1e-5}, "weight_density=1e-05 keeps none of the 1024 entries"),
        ({}, {"activation_density": 0.01}, "keeps none of 32 channels"),
        ({"gated_mlp": True}, {}, "does not support cfg.gated_mlp"),
        ({"n_key_value_heads": 2}, {}, "does not support cfg.n_key_value_heads"),
    ],
)
def test_shapes_and_sparsities_that_do_not_fit_are_refused(shape, sparsity, message):
    with pytest.raises(ValueError, match=message):
        HookedSparseTransformer(SHAPE | shape, sparsity=SparsityConfig(**sparsity))


def test_the_summary_counts_nonzeros_and_dead_neurons():
    model = make_model(SparsityConfig(weight_density=1 / 4))
    with torch.no_grad():
        model.blocks[1].mlp.W_in[:, :3] = 0
        model.blocks[1].mlp.W_out[2:5] = 0
    rows = {p.name: p for p in model.summary().parameters}
    assert rows["blocks.0.mlp.W_in"].n_nonzero == 32 * 64 // 4
    assert model.summary().n_dead_neurons == (0, 5)
    assert "layer 1: 5 of 64 neurons dead" in repr(model.summary())
    assert "block weights nonzero" in repr(model)
