"""Positions as channels of their own, against a plain-torch evaluation that concatenates them."""

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import SHAPE, make_model
from plain import plain_forward
from torch import Tensor
from transformer_lens import TransformerLensKeyValueCache

from tl_sparse.ablation import gated, only_circuit, references, zero_references
from tl_sparse.circuit import SITES, Circuit, Edge, Node, Site
from tl_sparse.config import PruningConfig, SparsityConfig, TrainingConfig
from tl_sparse.drawing import draw_circuit
from tl_sparse.explain import explain
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.pruning import prune
from tl_sparse.selection import interface_counts
from tl_sparse.sites import joint_matrix, model_hash, site_map
from tl_sparse.tasks import Pair, PairTask, Split
from tl_sparse.training import train

SPARSE = SparsityConfig(
    weight_density=1 / 4,
    embedding_density=1 / 2,
    bias_density=1 / 2,
    activation_density={"attn_in": 0.5, "q": 0.25, "k": 0.5, "v": 0.4, "attn_out": 0.5,
                        "mlp_in": 0.3, "mlp_neuron": 0.25, "mlp_out": 0.6},
    min_alive=2,
    bigram_table=True,
    position_channels=5,
)  # fmt: skip
DENSE = SparsityConfig(position_channels=5)


def positioned(sparsity: SparsityConfig = SPARSE, **shape) -> HookedSparseTransformer:
    defaults = {"positional_embedding_type": "none", "dtype": torch.float64}
    return make_model(sparsity, **(defaults | shape))


def parameters(model: HookedSparseTransformer) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def plain(model: HookedSparseTransformer, tokens: Tensor, **changes) -> Tensor:
    return plain_forward(parameters(model) | changes, tokens, model.sparsity, SHAPE)


# -- the forward and the backward pass ----------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "fused", "auto"])
@pytest.mark.parametrize("sparsity", [SPARSE, DENSE], ids=["sparse", "dense"])
def test_the_model_computes_what_plain_torch_computes_in_float64(attention, sparsity, tokens):
    model = positioned(sparsity)
    model.set_attention(attention)
    torch.testing.assert_close(model(tokens), plain(model, tokens), rtol=0, atol=1e-11)
    moved = model.positions.table.detach().roll(1, 0)
    assert (plain(model, tokens, **{"positions.table": moved}) - model(tokens)).abs().max() > 0.01


def test_reads_show_the_residual_stream_and_then_the_positions_after_abs_topk(tokens):
    model = positioned()
    _, cache = model.run_with_cache(tokens)
    shown = cache["positions.hook_out"]
    assert torch.equal(shown, model.positions.table[:12].expand(3, -1, -1))
    normed = shown / (shown.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    for name, n_kept in (("hook_attn_read", 18), ("hook_mlp_read", 11)):  # 0.5 and 0.3 of 37
        read = cache[f"blocks.1.{name}"]
        assert read.shape == (3, 12, 32 + 5)
        assert ((read != 0).sum(-1) == n_kept).all()
        last = read[..., 32:]
        torch.testing.assert_close(last, torch.where(last != 0, normed, 0), rtol=0, atol=1e-12)
    assert torch.equal(cache["hook_embed"], cache["blocks.0.hook_resid_pre"])


def test_without_a_norm_positions_are_read_as_they_are(tokens):
    model = positioned(DENSE, normalization_type=None)
    _, cache = model.run_with_cache(tokens)
    for name in ("hook_attn_read", "hook_mlp_read"):
        assert torch.equal(cache[f"blocks.1.{name}"][0, :, 32:], model.positions.table[:12])


def test_a_hook_on_the_positions_reaches_every_read(tokens):
    model = positioned()
    moved = model.positions.table.detach().roll(3, 0)

    def move(activation, hook):
        return moved[: activation.shape[1]].expand_as(activation)

    logits = model.run_with_hooks(tokens, fwd_hooks=[("positions.hook_out", move)])
    expected = plain(model, tokens, **{"positions.table": moved})
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-11)


def test_gradients_are_those_of_finite_differences(tokens):
    model = positioned()
    model(tokens, return_type="loss").backward()
    generator = torch.Generator().manual_seed(0)
    names = ["positions.table", "blocks.0.mlp.W_in", "blocks.1.attn.W_Q", "blocks.1.attn.W_V"]
    for name in names:
        p = model.get_parameter(name)
        assert p.grad is not None
        rows = p.shape[-2]  # the reading side: the last five are position channels
        for row in (rows - 1, rows - 5) if name != names[0] else (0, 11):
            column = int(torch.randint(p.shape[-1], (), generator=generator))
            where = (0,) * (p.ndim - 2) + (row, column)
            losses = []
            for step in (1e-6, -1e-6):
                changed = parameters(model)
                changed[name][where] += step
                logits = plain_forward(changed, tokens, SPARSE, SHAPE)[:, :-1]
                chosen = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])
                losses.append(-chosen.mean())
            slope = (losses[0] - losses[1]).item() / 2e-6
            assert p.grad[where].item() == pytest.approx(slope, rel=1e-5, abs=1e-9), name
    unused = model.positions.table.grad
    assert unused is not None
    assert (unused[12:] == 0).all()  # positions that no token has


@pytest.mark.parametrize(
    "toggle", ["use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in"]
)
def test_the_hosts_toggles_do_not_change_the_logits(toggle, tokens):
    model = positioned()
    before = model(tokens)
    setattr(model.cfg, toggle, True)
    torch.testing.assert_close(model(tokens), before, rtol=0, atol=1e-12)
    _, cache = model.run_with_cache(tokens)
    per_head = toggle in ("use_split_qkv_input", "use_attn_in")
    heads = (4,) if per_head else ()
    assert cache["blocks.0.hook_attn_read"].shape == (3, 12, *heads, 37)


@pytest.mark.parametrize("shape", [{"attn_only": True}, {"parallel_attn_mlp": True}])
def test_other_shapes_of_block_read_them_too(shape, tokens):
    model = positioned(replace(SPARSE, activation_density=1.0), **shape)
    same = torch.full((1, 6), 7)
    logits = model(same)  # only its position tells one token of this text from another
    assert (logits[0, 0] - logits[0, 5]).abs().max() > 0.01
    with torch.no_grad():
        model.positions.table[:] = model.positions.table[0]
        for block in model.blocks:
            block.attn.sinks.fill_(-torch.inf)
    logits = model(same)
    torch.testing.assert_close(logits[0, 0], logits[0, 5])


# -- positions where the tokens do not begin at the first ---------------------------------------


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("bigram", [True, False])
def test_generation_is_greedy_decoding(cached, bigram, tokens):
    model = positioned(replace(SPARSE, bigram_table=bigram))
    expected = tokens[:, :4]
    for _ in range(12):  # up to the last position there is
        expected = torch.cat([expected, plain(model, expected)[:, -1:].argmax(-1)], 1)
    options = {"max_new_tokens": 12, "do_sample": False, "stop_at_eos": False, "verbose": False}
    out = model.generate(tokens[:, :4], return_type="tokens", use_past_kv_cache=cached, **options)
    assert torch.equal(out, expected)
    stream: Any = model.generate_stream(tokens[:, :4], use_past_kv_cache=cached, **options)
    assert torch.equal(torch.cat(list(stream), 1), expected)


def test_padding_on_the_left_moves_no_position(tokens):
    model = positioned()
    mask = torch.ones_like(tokens)
    for row, n_padding in enumerate((0, 3, 5)):
        mask[row, :n_padding] = 0
    logits = model(tokens, attention_mask=mask)
    resid = model(tokens, attention_mask=mask, stop_at_layer=1)
    started = model(resid, start_at_layer=1, attention_mask=mask, tokens=tokens)
    _, cache = model.run_with_cache(tokens, attention_mask=mask)
    assert torch.equal((cache["positions.hook_out"] != 0).all(-1), mask.bool())
    for row, n_padding in enumerate((0, 3, 5)):
        alone = plain(model, tokens[row : row + 1, n_padding:])[0]
        torch.testing.assert_close(logits[row, n_padding:], alone, rtol=0, atol=1e-11)
        torch.testing.assert_close(started[row, n_padding:], alone, rtol=0, atol=1e-11)


@pytest.mark.parametrize("padded", [True, False])
def test_a_cache_of_keys_and_values_goes_on_counting(padded, tokens):
    model = positioned()
    mask = torch.ones_like(tokens)
    mask[1, : 2 * padded] = 0
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", 3)
    parts = [
        model(tokens[:, part], attention_mask=mask[:, part], past_kv_cache=cache)
        for part in (slice(0, 5), slice(5, 6), slice(6, 12))
    ]
    expected = model(tokens, attention_mask=mask if padded else None)
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=0, atol=1e-11)


def test_a_residual_stream_behind_a_cache_takes_the_positions_that_follow(tokens):
    model = positioned()
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", 3)
    model(tokens[:, :5], past_kv_cache=cache)
    later = model.embed(tokens[:, 5:])
    logits = model(later, start_at_layer=0, past_kv_cache=cache, tokens=tokens[:, 5:])
    torch.testing.assert_close(logits, plain(model, tokens)[:, 5:], rtol=0, atol=1e-11)
    _, positions = model.get_residual(later, 5, tokens=tokens[:, 5:])
    assert torch.equal(positions[2], model.positions.table[5:12])
    assert model.get_residual(later, 5, return_shortformer_pos_embed=False) is later


def test_text_that_is_padded_on_the_left_is_read_and_continued_as_if_alone(corpus):
    model = HookedSparseTransformer(
        SHAPE | {"d_vocab": corpus.d_vocab, "default_prepend_bos": False, "dtype": torch.float64,
                 "positional_embedding_type": "none"},
        tokenizer=corpus.tokenizer,
        sparsity=replace(DENSE, bigram_table=True),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    texts = ["for i in range(3):", "x ="]
    batch = model(texts, padding_side="left")
    options = {"max_new_tokens": 4, "do_sample": False, "stop_at_eos": False, "verbose": False}
    for use_cache in (True, False):
        many = model.generate(texts, return_type="tokens", use_past_kv_cache=use_cache, **options)
        for row, text in enumerate(texts):
            tokens = model.to_tokens(text)
            expected = plain(model, tokens)[0]
            torch.testing.assert_close(batch[row, -tokens.shape[1] :], expected)
            for _ in range(4):
                tokens = torch.cat([tokens, plain(model, tokens)[:, -1:].argmax(-1)], 1)
            assert torch.equal(many[row, -4:], tokens[0, -4:])


def test_starting_at_a_layer_takes_the_first_positions_or_those_given(tokens):
    model = positioned()
    logits = model(tokens)
    resid = model(tokens, stop_at_layer=1)
    started = model(resid, start_at_layer=1, tokens=tokens)
    torch.testing.assert_close(started, logits, rtol=0, atol=1e-12)
    given = model.positions.table[2:14].expand(3, -1, -1)
    shifted = model(resid, start_at_layer=1, tokens=tokens, shortformer_pos_embed=given)
    assert (shifted - logits).abs().max() > 0.01
    embedded, _, positions, _ = model.input_to_embed(tokens)
    out = model.blocks[0](embedded, shortformer_pos_embed=positions)
    torch.testing.assert_close(out, resid, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"reads position channels .* shortformer_pos_embed"):
        model.blocks[0](embedded)


# -- weights, masks, files ----------------------------------------------------------------------


def test_each_matrix_keeps_exactly_its_share_of_the_wider_shape():
    model = positioned()
    for name, size in (("attn.W_Q", 4 * 37 * 8), ("mlp.W_in", 37 * 64), ("mlp.W_out", 64 * 32)):
        weight, mask = (
            model.get_parameter(f"blocks.1.{name}"),
            model.weight_masks[f"blocks.1.{name}"],
        )
        assert weight.numel() == mask.numel() == size
        assert int(mask.sum()) == int((weight != 0).sum()) == size // 4
    assert ((model.blocks[0].mlp.W_in != 0).sum(0) >= 2).all()
    assert ((model.blocks[0].attn.W_K != 0).sum(1) >= 2).all()
    assert not any("positions" in name for name in model.weight_masks)
    with pytest.raises(ValueError, match=r"min_alive=4 can't be met.*>= min_alive / 37 = 0.108"):
        positioned(SparsityConfig(weight_density=0.1, min_alive=4, position_channels=5))


def test_the_table_is_drawn_like_an_embedding_and_nothing_redraws_it():
    sparsity = SparsityConfig(weight_density=1 / 8, position_channels=64)
    shape = SHAPE | {"positional_embedding_type": "none", "n_ctx": 256}
    model = HookedSparseTransformer(shape, sparsity=sparsity)
    table = model.positions.table.detach().clone()
    assert table.mean().abs() < 1e-3
    assert 0.0195 < table.std() < 0.0205
    model.reopen_(3)
    assert torch.equal(model.positions.table, table)
    assert (model.W_in != 0).all()
    assert (model.W_Q[:, :, 32:] != 0).all()


def test_the_model_follows_copies_and_files(tokens, tmp_path):
    model = positioned(normalization_type="RMS")
    logits = model(tokens)
    model.save(tmp_path / "model")
    copies = {
        "deepcopy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "file": HookedSparseTransformer.load(tmp_path / "model"),
    }
    for how, other in copies.items():
        assert torch.equal(other(tokens), logits), how
        assert other.sparsity == model.sparsity, how
        for name, mask in model.weight_masks.items():
            assert torch.equal(other.weight_masks[name], mask), (how, name)
    other = positioned(normalization_type="RMS", seed=3)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(tokens), logits)
    added = set(model.state_dict()) - set(
        positioned(replace(SPARSE, position_channels=0)).state_dict()
    )
    norms = {f"blocks.{i}.ln{j}_positions.w" for i in (0, 1) for j in (1, 2)}
    assert norms | {"positions.table"} <= added


@pytest.mark.parametrize("normalization", ["RMSPre", "RMS", "LNPre", "LN"])
def test_the_released_format_takes_it_and_gives_it_back(normalization, tokens, tmp_path):
    eps = torch.finfo(torch.float32).eps if "RMS" in normalization else 1e-5
    quarter = replace(SPARSE, activation_density=0.25)
    model = positioned(quarter, normalization_type=normalization, eps=eps)
    model.export_openai(tmp_path / "out")
    again = HookedSparseTransformer.load_openai(tmp_path / "out", dtype=torch.float64)
    again.set_attention(model.attention)
    assert again.sparsity.position_channels == 5
    torch.testing.assert_close(again(tokens), model(tokens), rtol=0, atol=1e-12)


def test_training_learns_the_table_and_never_decays_it(corpus):
    shape = SHAPE | {"d_vocab": corpus.d_vocab, "positional_embedding_type": "none"}
    two_steps = TrainingConfig(
        n_tokens=2 * 4 * 16, batch_size=4, anneal="none", warmup_fraction=0.0, n_eval_windows=1
    )

    def trained(weight_decay: float) -> HookedSparseTransformer:
        model = HookedSparseTransformer(shape, sparsity=DENSE)
        train(model, corpus, replace(two_steps, weight_decay=weight_decay), progress=False)
        return model

    fresh, without, decayed = HookedSparseTransformer(shape, sparsity=DENSE), trained(0), trained(2)
    changed = without.positions.table != fresh.positions.table
    assert changed[:15].all()
    assert not changed[15].any()  # the last token predicts nothing
    assert torch.equal(without.positions.table, decayed.positions.table)
    assert not torch.equal(without.W_in, decayed.W_in)


# -- circuits -----------------------------------------------------------------------------------


def random_circuit(model: HookedSparseTransformer, share: float = 0.6) -> Circuit:
    """A circuit of some of the nodes, all the weights between them, and random references."""
    generator = torch.Generator().manual_seed(0)
    sites, kept, values = site_map(model), {}, {}
    for info in sites.sites:
        kept[info.site] = torch.rand(info.width, generator=generator) < share
        values[info.site] = torch.randn(info.width, generator=generator).double()
    edges = []
    for joint in sites.joints:
        matrix = joint_matrix(model, joint)
        live = kept[joint.source][:, None] & kept[joint.target] & (matrix != 0)
        edges += [
            Edge(Node(joint.source, a), Node(joint.target, b), matrix[a, b].item())
            for a, b in live.nonzero().tolist()
        ]
    return Circuit(
        nodes=tuple(
            Node(site, c) for site, keep in kept.items() for c in keep.nonzero().flatten().tolist()
        ),
        edges=tuple(edges),
        references={site: tuple(value.tolist()) for site, value in values.items()},
        task="random",
        model_hash=model_hash(model),
    )


def test_reads_are_wider_sites_and_joints_than_writes():
    model = positioned()
    sites = site_map(model)
    widths = {name: sites[Site(1, name)].width for name in SITES[:-1]}
    reads, others = dict.fromkeys(("attn_in", "mlp_in"), 37), dict.fromkeys(("q", "k", "v"), 32)
    assert widths == reads | others | {"attn_out": 32, "mlp_neuron": 64, "mlp_out": 32}
    for joint in sites.joints:
        shape = (sites[joint.source].width, sites[joint.target].width)
        assert joint_matrix(model, joint).shape == shape
    interface, _ = interface_counts(model, {Site(0, "attn_in"): (2, 32, 35)})
    assert interface == int((model.W_E[:, 2] != 0).sum())  # no token writes the other two


def test_a_circuit_alone_is_the_plain_network_with_all_else_held(tokens):
    model = positioned()
    circuit = random_circuit(model)

    def at(layer, name, x):
        site = Site(layer, name)
        if site.name not in SITES:
            return x
        keep = torch.zeros(x.shape[-1], dtype=torch.bool)
        keep[list(circuit.channels(site))] = True
        return torch.where(keep, x, torch.tensor(circuit.references[site], dtype=x.dtype))

    expected = plain_forward(parameters(model), tokens, SPARSE, SHAPE, at)
    with only_circuit(model, circuit):
        torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-11)
    whole = {info.site: torch.ones(info.width).double() for info in site_map(model).sites}
    values = {site: gate * 0 for site, gate in whole.items()}
    with gated(model, site_map(model), whole, values):
        torch.testing.assert_close(model(tokens), plain(model, tokens), rtol=0, atol=1e-11)


def test_references_are_the_means_over_the_text(corpus):
    model = positioned(d_vocab=corpus.d_vocab)
    found = references(model, corpus, n_tokens=8 * 16, progress=False).values
    sums: dict[Site, Tensor] = {}

    def at(layer, name, x):
        sums[Site(layer, name)] = x.reshape(-1, x.shape[-1]).mean(0)
        return x

    windows = corpus.train.windows(16, 8)
    plain_forward(parameters(model), windows, SPARSE, SHAPE, at)
    for name in ("attn_in", "mlp_in", "v", "mlp_out"):
        torch.testing.assert_close(found[Site(1, name)], sums[Site(1, name)], rtol=0, atol=1e-11)


def test_pruning_finds_that_a_task_about_places_needs_a_position_channel():
    model, task = planted()
    config = PruningConfig(n_steps=150, batch_size=16, learning_rate=0.02, k_coef=3e-3)
    circuit = prune(model, task, zero_references(model), config, progress=False)
    assert set(circuit.edges) == {
        Edge(Node(Site(0, "mlp_in"), 33), Node(Site(0, "mlp_neuron"), 4), 3.0),
        Edge(Node(Site(0, "mlp_neuron"), 4), Node(Site(0, "mlp_out"), 5), 1.0),
    }
    assert circuit.n_interface == 2  # out of the write: no token's embedding is a position
    assert circuit.losses["test_accuracy"] == 1


class Letters:
    """A tokenizer of single letters."""

    def encode(self, text, add_special_tokens=True):
        return [ord(c) - 97 for c in text]

    def decode(self, tokens):
        return "".join(chr(97 + t) for t in tokens)


def planted(**shape) -> tuple[HookedSparseTransformer, PairTask]:
    """Which of b and c follows is a matter of length alone: position channel 1 says so."""
    model = positioned(DENSE, n_layers=1, d_vocab=26, random=False, **shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name.endswith(".w") else 0.0)
        model.embed.W_E[:, 0] = 1.0  # every token alike
        model.positions.table[:, 0] = 0.5
        model.positions.table[3, 1], model.positions.table[4, 1] = 2.0, -2.0
        mlp = model.blocks[0].mlp
        mlp.W_in[33, 4] = 3.0
        model.get_parameter("blocks.0.mlp.b_in")[4] = 0.5
        mlp.W_in[0, 7] = mlp.W_in[34, 8] = 1.0  # decoys
        mlp.W_out[4, 5] = mlp.W_out[7, 9] = mlp.W_out[8, 11] = 1.0
        model.unembed.W_U[5, 1], model.unembed.W_U[5, 2] = 4.0, -4.0
        model.unembed.b_U[2] = 5.0
    model.weight_masks.project_(model, model.sparsity)
    letters: dict[Split, str] = {"train": "defghij", "validation": "klmn", "test": "opqr"}
    pairs: dict[Split, list[Pair]] = {
        split: [Pair((3 * a + b, 3 * a + b + b), ("b", "c")) for a in some for b in some]
        for split, some in letters.items()
    }
    return model, PairTask("places", pairs, tokenizer=Letters())


def test_a_circuit_names_position_channels_in_words_and_in_the_drawing():
    model, task = planted(normalization_type="RMS")
    with torch.no_grad():
        model.get_parameter("blocks.0.ln2_positions.w")[1] = 0.5
    names = ["0.mlp_in.33", "0.mlp_neuron.4", "0.mlp_out.5"]
    read, neuron, write = map(Node.parse, names)
    circuit = Circuit(
        nodes=(read, neuron, write),
        edges=(Edge(read, neuron, 3.0), Edge(neuron, write, 1.0)),
        references={i.site: (0.0,) * i.width for i in site_map(model).sites},
        task="places",
        model_hash=model_hash(model),
    )
    explanation = explain(circuit, model, task)
    found = explanation.nodes[0]
    assert (found.channel, found.position_channel, found.n_tokens) == (33, 1, 0)
    assert found.highest == (("position 3", 2.0),)
    assert found.lowest == (("position 4", -2.0),)
    assert found.gain == 0.5
    text = str(explanation)
    assert "reads position channel 1, times its gain 0.5\n        highest: position 3 +2\n" in text
    assert "neuron 4 = gelu(3 x position channel 1 + 0.5 bias)" in text
    assert "5 position channels too, behind the 32 of the residual stream" in text
    kinds = [(row["kind"], row["source"], row["weight"]) for row in explanation.rows()]
    assert kinds[:2] == [("position", "position 3", 2.0), ("position", "position 4", -2.0)]
    svg = draw_circuit(circuit, tokens={33: [*found.highest, *found.lowest]}, d_model=32)
    assert ">position channel 1<" in svg
    assert ">position 4 \N{MINUS SIGN}2.00<" in svg
    assert ">channel 33<" not in svg


# -- what does not go together ------------------------------------------------------------------


def test_what_position_channels_cannot_be_joined_with_is_refused(tokens):
    with pytest.raises(ValueError, match="position_channels are read instead of positions in"):
        positioned(positional_embedding_type="standard")
    wrong: Any
    for wrong in (-1, 2.5, True):
        with pytest.raises(ValueError, match="position_channels is a non-negative finite integer"):
            SparsityConfig(position_channels=wrong)
    assert not DENSE.is_dense
    model = positioned(DENSE, normalization_type="RMS")
    with pytest.raises(ValueError, match="W_Q, W_K and W_V read 5 position channels more"):
        model.all_composition_scores("Q")
    with pytest.raises(ValueError, match="fold_ln"):
        model.process_weights_()
    with pytest.raises(ValueError, match=r"positions for 16 tokens \(cfg.n_ctx\), got 20"):
        model(torch.zeros(1, 20, dtype=torch.long))
    assert "5 position channels" in repr(model)
