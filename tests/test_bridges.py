"""Bridges: hybrids and losses against plain torch, training, files, and what is refused."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHAPE, make_model
from plain import plain_forward, plain_parameters
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse import data
from tl_sparse.bridges import (
    BridgeConfig,
    BridgedObjective,
    Bridges,
    bridge_losses,
    fit_bridges,
    hybrid_logits,
    kl_divergence,
    nmse,
    run_with_residuals,
    train_bridged,
)
from tl_sparse.checkpoints import read_json
from tl_sparse.config import SparsityConfig, TrainingConfig
from tl_sparse.history import History
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.training import Objective, TrainingRun, next_token_loss, train

DENSE_SHAPE = SHAPE | {"d_model": 24, "d_mlp": 40}
SPARSE = SparsityConfig(activation_density=1 / 2, weight_density=1 / 2, bigram_table=True)
POSITIONED = SparsityConfig(activation_density=1 / 2, position_channels=5)
PLACES = [(layer, place) for layer in range(2) for place in ("resid_pre", "resid_mid")]
QUICK = TrainingConfig(
    n_tokens=8 * 4 * 16, batch_size=4, eval_every=4, checkpoint_every=4, n_eval_windows=4
)


def make_dense(**shape: Any) -> HookedTransformer:
    """TransformerLens' own class, narrower than the sparse models, with random weights."""
    model = HookedTransformer(DENSE_SHAPE | shape)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model


def make_bridges(
    dense: HookedTransformer, sparse: HookedTransformer, config: BridgeConfig | None = None
) -> Bridges:
    """Bridges with random weights and biases, none of them small."""
    bridges = Bridges.between(dense, sparse, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in bridges.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return bridges


def identity_bridges(model: HookedTransformer) -> Bridges:
    """Bridges between a model and its copy that change nothing."""
    bridges = Bridges.between(model, model, BridgeConfig(encoder_density=1.0))
    with torch.no_grad():
        for name, parameter in bridges.named_parameters():
            parameter.copy_(torch.eye(len(parameter))) if "W_" in name else parameter.zero_()
    return bridges


@pytest.fixture
def pair(request) -> tuple[HookedTransformer, HookedSparseTransformer]:
    """A dense and a sparse model in float64."""
    double: dict[str, Any] = {"dtype": torch.float64}
    sparsity = getattr(request, "param", SPARSE)
    if sparsity.position_channels:
        double["positional_embedding_type"] = "none"
    return make_dense(dtype=torch.float64), make_model(sparsity, **double)


def plain_residuals(model: Any, tokens: Tensor, shape: dict[str, Any]) -> tuple[Tensor, list]:
    """Logits and residual streams of the plain network."""
    kept = {}

    def between(layer, place, x):
        kept[layer, place] = x
        return x

    sparsity = getattr(model, "sparsity", SparsityConfig())
    logits = plain_forward(plain_parameters(model), tokens, sparsity, shape, between=between)
    return logits, [kept[place] for place in PLACES]


def plain_from(model: Any, site: int, resid: Tensor, tokens: Tensor, shape: dict) -> Tensor:
    """The plain network with its residual stream replaced at one site."""

    def between(layer, place, x):
        return resid if (layer, place) == PLACES[site] else x

    sparsity = getattr(model, "sparsity", SparsityConfig())
    return plain_forward(plain_parameters(model), tokens, sparsity, shape, between=between)


def plain_encode(bridges: Bridges, site: int, x: Tensor, n_kept: int) -> Tensor:
    """Linear and AbsTopK by sorting."""
    p = {n: t.detach() for n, t in bridges[site].named_parameters()}
    y = x @ p["W_enc"] + p["b_enc"]
    order = y.abs().argsort(-1, descending=True)[..., :n_kept]
    return torch.zeros_like(y).scatter(-1, order, y.gather(-1, order))


# -- hybrids and losses -----------------------------------------------------------------------


@pytest.mark.parametrize("site", range(4))
@pytest.mark.parametrize("pair", [SPARSE, POSITIONED], ids=["table", "positions"], indirect=True)
def test_a_hybrid_is_a_forward_pass_that_switches_models(pair, site, tokens):
    dense, sparse = pair
    bridges = make_bridges(dense, sparse)
    _, of_dense = plain_residuals(dense, tokens, DENSE_SHAPE)
    crossed = plain_encode(bridges, site, of_dense[site], n_kept=8)  # a quarter of 32
    expected = plain_from(sparse, site, crossed, tokens, SHAPE)
    logits = hybrid_logits(dense, sparse, bridges, site, tokens, into="sparse")
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    assert (logits - sparse(tokens)).abs().max() > 0.1

    _, of_sparse = plain_residuals(sparse, tokens, SHAPE)
    crossed = of_sparse[site] @ bridges[site].W_dec + bridges[site].b_dec
    expected = plain_from(dense, site, crossed, tokens, DENSE_SHAPE)
    logits = hybrid_logits(dense, sparse, bridges, site, tokens, into="dense")
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


def test_bridges_that_change_nothing_between_a_model_and_its_copy_cost_nothing(tokens):
    model, copy = (make_model(dtype=torch.float64) for _ in range(2))
    bridges = identity_bridges(model)
    losses = bridge_losses(model, copy, bridges, tokens, BridgeConfig(encoder_density=1.0))
    for part in (losses.encoder_nmse, losses.decoder_nmse):
        assert torch.equal(part, torch.zeros(4, dtype=torch.float64))
    for part in (losses.kl_into_sparse, losses.kl_into_dense):
        assert part.abs().max() < 1e-12
    torch.testing.assert_close(losses.total(bridges.config), next_token_loss(model(tokens), tokens))


@pytest.mark.parametrize("normalisation", ["token", "batch"])
def test_the_losses_are_their_formulas_by_hand(pair, normalisation, tokens):
    dense, sparse = pair
    config = BridgeConfig(
        nmse_normalisation=normalisation, encoder_nmse_coef=2.0, decoder_nmse_coef=3.0,
        kl_into_sparse_coef=5.0, kl_into_dense_coef=7.0,
    )  # fmt: skip
    bridges = make_bridges(dense, sparse, config)
    losses = bridge_losses(dense, sparse, bridges, tokens, config)
    wanted, of_dense = plain_residuals(dense, tokens, DENSE_SHAPE)
    logits, of_sparse = plain_residuals(sparse, tokens, SHAPE)

    def by_hand(made, target):
        errors, sizes = [], []
        mean = target.reshape(-1, target.shape[-1]).mean(0)
        for a, b in zip(made.flatten(0, 1), target.flatten(0, 1), strict=True):
            errors.append(float(((a - b) ** 2).sum()))
            sizes.append(float(((b - mean) ** 2).sum()))
        if normalisation == "batch":
            return sum(errors) / sum(sizes)
        return sum(e / s for e, s in zip(errors, sizes, strict=True)) / len(errors)

    def divergence(made):
        p, q = wanted.softmax(-1), made.softmax(-1)
        return float((p * (p / q).log()).sum(-1).mean())

    expected = [[], [], [], []]
    for site in range(4):
        encoded = plain_encode(bridges, site, of_dense[site], n_kept=8)
        decoded = (of_sparse[site] @ bridges[site].W_dec + bridges[site].b_dec).detach()
        expected[0].append(by_hand(encoded, of_sparse[site]))
        expected[1].append(by_hand(decoded, of_dense[site]))
        expected[2].append(divergence(plain_from(sparse, site, encoded, tokens, SHAPE)))
        expected[3].append(divergence(plain_from(dense, site, decoded, tokens, DENSE_SHAPE)))
    parts = losses.encoder_nmse, losses.decoder_nmse, losses.kl_into_sparse, losses.kl_into_dense
    for part, values in zip(parts, expected, strict=True):
        assert part.tolist() == pytest.approx(values, rel=1e-7)
    own = -logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None]).mean()
    total = float(own) + sum(c * sum(v) for c, v in zip((2, 3, 5, 7), expected, strict=True))
    assert losses.total(config).item() == pytest.approx(total, rel=1e-7)
    squares = [[float((r**2).mean()) for r in some] for some in (of_dense, of_sparse)]
    torch.testing.assert_close(losses.mean_squares, torch.tensor(squares, dtype=torch.float64))


WEIGHTS = ["bridges.sites.1.W_enc", "bridges.sites.2.W_enc", "bridges.sites.3.W_dec",
           "bridges.sites.0.b_dec", "model.blocks.0.mlp.W_out", "model.embed.W_E"]  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_gradients_are_those_of_finite_differences(pair, name, tokens):
    """All but the target of the encoders' error, which is held where it is."""
    dense, sparse = pair
    config = BridgeConfig(encoder_nmse_coef=1.0 if name.startswith("bridges") else 0.0)
    objective = BridgedObjective(sparse, dense, make_bridges(dense, sparse, config))
    dense.requires_grad_(False)
    objective(tokens).backward()
    p = objective.get_parameter(name)
    assert p.grad is not None
    at = tuple(int(i) for i in (p.grad.abs() == p.grad.abs().max()).nonzero()[0])

    def loss(step):
        with torch.no_grad():
            p[at] += step
            value = objective(tokens).item()
            p[at] -= step
        return value

    measured = (loss(1e-6) - loss(-1e-6)) / 2e-6
    assert p.grad[at].item() == pytest.approx(measured, rel=1e-5)
    assert abs(measured) > 1e-4


def test_the_encoders_do_not_pull_the_sparse_model_and_the_dense_one_gets_no_gradient(pair, tokens):
    dense, sparse = pair
    alone = BridgeConfig(decoder_nmse_coef=0, kl_into_sparse_coef=0, kl_into_dense_coef=0)
    objective = BridgedObjective(sparse, dense, make_bridges(dense, sparse, alone))
    objective(tokens).backward()
    pulled = [p.grad.clone() for p in sparse.parameters() if p.grad is not None]
    sparse.zero_grad()
    next_token_loss(sparse(tokens), tokens).backward()
    own = [p.grad for p in sparse.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(pulled, own, strict=True))
    assert all(p.grad is None for p in dense.parameters())
    assert all(bridge.W_enc.grad is not None for bridge in objective.bridges.sites)
    assert all(bridge.W_dec.grad is None for bridge in objective.bridges.sites)


def test_half_precision_residuals_are_compared_in_float32():
    made, wanted = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    low = nmse(made.bfloat16(), wanted.bfloat16())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, nmse(made.bfloat16().float(), wanted.bfloat16().float()))
    logs = torch.randn(2, 3, 8).log_softmax(-1)
    assert kl_divergence(logs, logs).item() == 0


def test_the_residual_streams_are_what_stands_at_the_hook_points(tokens):
    model = make_model(SPARSE)
    model.set_attention("eager")  # as in a cache, which looks at the scores
    logits, residuals = run_with_residuals(model, tokens)
    _, cache = model.run_with_cache(tokens)
    for site, (layer, place) in enumerate(PLACES):
        assert torch.equal(residuals[site], cache[f"blocks.{layer}.hook_{place}"])
    assert torch.equal(logits, model(tokens))
    assert not any(h.fwd_hooks or h.bwd_hooks for h in model.hook_dict.values())


# -- training ---------------------------------------------------------------------------------


def fresh(corpus: data.Corpus, **shape: Any) -> HookedSparseTransformer:
    return HookedSparseTransformer(SHAPE | {"d_vocab": corpus.d_vocab} | shape, sparsity=SPARSE)


def dense_for(corpus: data.Corpus) -> HookedTransformer:
    return HookedTransformer(DENSE_SHAPE | {"d_vocab": corpus.d_vocab})


@pytest.fixture(scope="module")
def trained(corpus: data.Corpus) -> HookedTransformer:
    """A dense model that has learned something, in TransformerLens' own class."""
    shape = DENSE_SHAPE | {"d_vocab": corpus.d_vocab}
    model = HookedSparseTransformer(shape)
    config = TrainingConfig(n_tokens=60 * 16 * 16, batch_size=16, learning_rate=0.01)
    train(model, corpus, config, progress=False)
    stock = HookedTransformer(shape)
    stock.load_state_dict(model.state_dict())
    return stock


def everything(model: torch.nn.Module, bridges: torch.nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict()) | {f"bridges.{n}": t for n, t in bridges.state_dict().items()}


def without_times(records: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if "second" not in k} for record in records]


def in_step(model: HookedSparseTransformer, n: int, act: Callable[[], None]) -> None:
    """Let something happen in the own forward pass of step n, 0 for the first, of a run."""
    steps = iter(range(10**6))

    def step(tensor, hook):
        if torch.is_grad_enabled() and next(steps) == n:
            act()

    model.add_hook("hook_embed", step)


class Killed(Exception):
    pass


def die() -> None:
    raise Killed


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_a_stopped_run_goes_on_to_the_same_bits(how, corpus, tmp_path):
    dense, whole = dense_for(corpus), fresh(corpus)
    bridges, history = train_bridged(
        whole, dense, corpus, QUICK, folder=tmp_path / "whole", progress=False
    )
    stopped = fresh(corpus)
    if how == "killed":
        in_step(stopped, 5, die)
    else:
        in_step(stopped, 5, lambda: signal.raise_signal(signal.SIGINT))
    folder = tmp_path / "stopped"
    with pytest.raises((Killed, KeyboardInterrupt)):
        train_bridged(stopped, dense, corpus, QUICK, folder=folder, progress=False)
    step = read_json(folder / "checkpoint/state.json")["step"]
    assert step == (4 if how == "killed" else 6)
    HookedSparseTransformer.load(folder / "checkpoint/model")  # usable, both
    Bridges.load(folder / "checkpoint/bridges")

    again = fresh(corpus)
    resumed, log = train_bridged(again, dense, corpus, QUICK, folder=folder, progress=False)
    expected = everything(whole, bridges)
    found = everything(again, resumed)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert without_times(log.records) == without_times(history.records)
    assert without_times(History.load(folder).records) == without_times(history.records)
    on_disk = everything(
        HookedSparseTransformer.load(folder / "checkpoint/model"),
        Bridges.load(folder / "checkpoint/bridges"),
    )
    assert all(torch.equal(on_disk[name], tensor) for name, tensor in found.items())


def test_training_lowers_every_part_and_leaves_the_dense_model_as_it_was(corpus, trained):
    dense, sparse = trained, fresh(corpus)
    dense.W_E.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in dense.named_parameters()}
    config = replace(QUICK, n_tokens=24 * 8 * 16, batch_size=8, eval_every=8, anneal="none")
    bridges, history = train_bridged(sparse, dense, corpus, config, progress=False)
    first, last = history.records[0], history.records[-1]
    for name in ("encoder_nmse", "decoder_nmse", "kl_into_sparse", "kl_into_dense"):
        assert last[name] < first[name], name
    assert last["validation_loss"] < first["validation_loss"]
    assert last["loss"] > last["validation_loss"]  # the whole sum
    for name, p in dense.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None
        assert p.requires_grad == (name != "embed.W_E")
    nonzero = int((sparse.blocks[0].mlp.W_in != 0).sum())
    assert nonzero == sparse.blocks[0].mlp.W_in.numel() // 2
    assert not bridges.rms_dense.isnan().any()
    windows = corpus.validation.windows(16, 4)
    _, streams = run_with_residuals(sparse, windows)
    sizes = torch.stack([resid.square().mean().sqrt() for resid in streams])
    torch.testing.assert_close(bridges.rms_sparse, sizes)


def test_gradients_are_scaled_over_model_and_bridges_together(corpus):
    sparse, dense = fresh(corpus), dense_for(corpus)
    dense.requires_grad_(False)
    objective = BridgedObjective(sparse, dense, Bridges.between(dense, sparse))
    run = TrainingRun(sparse, corpus, QUICK, None, False, objective)
    seen: list[float] = []

    def look(optimizer, args, kwargs):
        parameters = [*sparse.parameters(), *objective.bridges.parameters()]
        total = sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None)
        count = sum(p.numel() for p in parameters if p.requires_grad)
        seen.append((total / count) ** 0.5)

    run.optimizer.register_step_pre_hook(look)
    with run.accelerated():
        run.take_step()
    assert seen == [pytest.approx(1, abs=1e-3)]


def test_weight_decay_is_for_the_sparse_model_alone(corpus):
    """Without a gradient a bridge stays where it was, while the matrices shrink."""
    off = dict.fromkeys(
        ("encoder_nmse_coef", "decoder_nmse_coef", "kl_into_sparse_coef", "kl_into_dense_coef"), 0.0
    )
    dense, sparse, config = dense_for(corpus), fresh(corpus), BridgeConfig(**off)
    first = Bridges.between(dense, sparse, config)
    training = replace(QUICK, weight_decay=10.0)
    bridges, _ = train_bridged(sparse, dense, corpus, training, config, progress=False)
    for name, p in first.named_parameters():
        assert torch.equal(bridges.get_parameter(name), p)
    mild = fresh(corpus)
    train_bridged(mild, dense, corpus, QUICK, config, progress=False)
    assert sparse.W_in.abs().sum() < mild.W_in.abs().sum()


def test_half_precision_trains(corpus):
    dense, sparse = dense_for(corpus), fresh(corpus)
    training = replace(QUICK, precision="bf16", n_tokens=4 * 64)
    bridges, history = train_bridged(sparse, dense, corpus, training, progress=False)
    assert {p.dtype for p in [*sparse.parameters(), *bridges.parameters()]} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in bridges.parameters())
    assert history.records[-1]["kl_into_dense"] > 0


def test_a_folder_with_another_dense_model_or_another_loss_is_refused(corpus, tmp_path):
    dense, short = dense_for(corpus), replace(QUICK, n_tokens=64)
    train_bridged(fresh(corpus), dense, corpus, short, folder=tmp_path / "a", progress=False)
    train(fresh(corpus), corpus, short, folder=tmp_path / "b", progress=False)
    other = make_dense(d_vocab=corpus.d_vocab)
    for run in (
        lambda: train_bridged(fresh(corpus), other, corpus, short, folder=tmp_path / "a"),
        lambda: train_bridged(
            fresh(corpus), dense, corpus, short, BridgeConfig(seed=1), folder=tmp_path / "a"
        ),
        lambda: train(fresh(corpus), corpus, short, folder=tmp_path / "a"),
        lambda: train_bridged(fresh(corpus), dense, corpus, short, folder=tmp_path / "b"),
    ):
        with pytest.raises(ValueError, match="holds a run with another objective"):
            run()


def test_an_objective_of_another_model_is_refused(corpus):
    with pytest.raises(ValueError, match="The objective holds another model"):
        train(fresh(corpus), corpus, QUICK, objective=Objective(fresh(corpus)))


# -- files ------------------------------------------------------------------------------------


def test_bridges_are_saved_and_loaded_to_the_bit(pair, tmp_path):
    dense, sparse = pair
    bridges = make_bridges(dense, sparse, BridgeConfig(encoder_density=0.5, seed=4))
    bridges.note_sizes_(torch.arange(8.0).reshape(2, 4).double())
    bridges.save(tmp_path / "bridges")
    again = Bridges.load(tmp_path / "bridges")
    assert again.config == bridges.config
    assert again.dense_hash == bridges.dense_hash
    for name, tensor in bridges.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    x = torch.randn(1, 2, 24, dtype=torch.float64)
    assert torch.equal(again[3].encode(x), bridges[3].encode(x))
    assert repr(again) == "Bridges(4 sites, d_dense 24, d_sparse 32, encoders keep 16 of 32)"
    assert {p.name for p in (tmp_path / "bridges").iterdir()} == {
        "config.json", "bridges.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "tl_sparse.model"}, "is not of bridges of format 1"),
        ({"d_sparse": 40}, "holds bridges of another shape"),
        ({"d_dense": None}, "is damaged"),
        ({"d_sparse": 0}, "is damaged"),
        ({"config": {"colour": 1}}, "has no field colour"),
    ],
)
def test_a_folder_that_disagrees_with_itself_is_refused(change, message, tmp_path):
    Bridges(n_layers=1, d_dense=8, d_sparse=16).save(tmp_path / "b")
    values = read_json(tmp_path / "b/config.json") | change
    (tmp_path / "b/config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        Bridges.load(tmp_path / "b")


def test_a_cut_file_is_refused(tmp_path):
    Bridges(n_layers=1, d_dense=8, d_sparse=16).save(tmp_path / "b")
    tensors = tmp_path / "b/bridges.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"bridges.safetensors is damaged"):
        Bridges.load(tmp_path / "b")
    with pytest.raises(ValueError, match=r"config.json is missing"):
        Bridges.load(tmp_path / "nothing")


def test_the_first_weights_are_those_of_the_seed():
    one, two, other = (
        Bridges(n_layers=1, d_dense=8, d_sparse=16, config=BridgeConfig(seed=s)) for s in (0, 0, 1)
    )
    assert torch.equal(one[1].W_dec, two[1].W_dec)
    assert not torch.equal(one[1].W_dec, other[1].W_dec)
    assert one[1].W_dec.std().item() == pytest.approx(0.02, rel=0.3)
    assert one[1].W_enc.std().item() == pytest.approx(0.02 / 8**0.5, rel=0.3)
    assert not one[0].b_enc.any()


# -- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"n_layers": 3}, "the dense model has 3 layers, the sparse one 2"),
        ({"d_vocab": 60}, "d_vocab is 60 in the dense model and 50 in the sparse one"),
        ({"d_vocab_out": 60}, "d_vocab_out is 60 in the dense model"),
        ({"attn_only": True}, r"dense model has no hook point blocks\.0\.hook_resid_mid"),
        ({"parallel_attn_mlp": True}, r"no hook point blocks\.0\.hook_resid_mid"),
        ({"dtype": torch.float64}, "the dense one has torch.float64, the sparse one torch.float32"),
        ({"positional_embedding_type": "shortformer"}, "its hybrids would have none"),
    ],
)
def test_models_that_cannot_be_joined_are_refused_before_any_work(shape, message, corpus):
    dense = HookedTransformer(DENSE_SHAPE | shape)
    with pytest.raises(ValueError, match=message):
        train_bridged(make_model(SPARSE), dense, corpus, QUICK)


def test_losses_of_a_model_without_a_stream_in_its_middle_are_refused(tokens):
    dense, sparse = HookedTransformer(DENSE_SHAPE | {"attn_only": True}), make_model(SPARSE)
    bridges = make_bridges(make_dense(), sparse)
    with pytest.raises(ValueError, match=r"given model has no hook point blocks\.0\.hook_resid"):
        bridge_losses(dense, sparse, bridges, tokens, BridgeConfig())


def test_a_model_on_another_device_and_a_model_with_itself_are_refused(corpus):
    sparse, dense = make_model(SPARSE), make_dense()
    torch.nn.Module.to(dense, "meta")
    with pytest.raises(ValueError, match="on one device; the dense one has meta"):
        train_bridged(sparse, dense, corpus, QUICK)
    with pytest.raises(ValueError, match="one and the same"):
        train_bridged(sparse, sparse, corpus, QUICK)


def test_a_model_over_several_devices_is_refused(corpus):
    dense = make_dense()
    dense.cfg.n_devices = 2
    with pytest.raises(ValueError, match="spread over 2 devices"):
        train_bridged(make_model(SPARSE), dense, corpus, QUICK)


def test_tokenizers_that_differ_are_refused(corpus, texts):
    from tl_sparse.tokenizer import train_tokenizer

    other = train_tokenizer(texts[:20], vocab_size=corpus.d_vocab)
    shape = {"d_vocab": corpus.d_vocab}
    dense = HookedSparseTransformer(DENSE_SHAPE | shape, tokenizer=other)
    sparse = HookedSparseTransformer(SHAPE | shape, tokenizer=corpus.tokenizer, sparsity=SPARSE)
    with pytest.raises(ValueError, match="their tokenizers differ, for one in the token"):
        train_bridged(sparse, dense, corpus, QUICK)


def test_sequences_longer_than_the_dense_model_can_read_are_refused(corpus):
    dense = HookedTransformer(DENSE_SHAPE | {"d_vocab": corpus.d_vocab, "n_ctx": 8})
    with pytest.raises(ValueError, match=r"Set TrainingConfig\(n_ctx=8\)"):
        train_bridged(fresh(corpus), dense, corpus, QUICK)


def test_bridges_of_other_models_are_refused(pair, tokens):
    dense, sparse = pair
    bridges = make_bridges(dense, sparse)
    with pytest.raises(ValueError, match="The sites are 0 to 3, two in each layer; got 4"):
        hybrid_logits(dense, sparse, bridges, 4, tokens, into="dense")
    with pytest.raises(ValueError, match="into is one of 'sparse', 'dense'"):
        hybrid_logits(dense, sparse, bridges, 0, tokens, into="both")  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        dense.W_E[0, 0] += 1
    with pytest.raises(ValueError, match="trained with another dense model"):
        hybrid_logits(dense, sparse, bridges, 0, tokens, into="dense")
    wide = make_model(SPARSE, d_model=40, dtype=torch.float64)
    with pytest.raises(ValueError, match="a sparse one of 2 layers and width 40"):
        hybrid_logits(dense, wide, bridges, 0, tokens, into="dense")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoder_density": 0.0}, "encoder_density is a fraction of kept entries"),
        ({"encoder_nmse_coef": -1.0}, "encoder_nmse_coef is a non-negative finite number"),
        ({"kl_into_dense_coef": float("inf")}, "kl_into_dense_coef is a non-negative"),
        ({"nmse_normalisation": "none"}, "nmse_normalisation is one of 'token', 'batch'"),
        ({"seed": -1}, "seed is an integer"),
    ],
)
def test_bad_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        BridgeConfig(**values)
    config = BridgeConfig(encoder_density=0.5)
    assert BridgeConfig.from_dict(config.to_dict()) == config


# -- bridges between trained models ---------------------------------------------------------------


@pytest.mark.parametrize("norm", ["RMSPre", "LN"])
def test_fitted_bridges_are_the_ridge_regressions_of_both_streams(norm, quote_corpus):
    """Against numpy's least squares on data that ridge is added to as rows."""
    double: dict[str, Any] = {"dtype": torch.float64, "d_vocab": quote_corpus.d_vocab}
    dense, sparse = make_dense(normalization_type=norm, **double), make_model(SPARSE, **double)
    fitted = fit_bridges(dense, sparse, quote_corpus, n_tokens=1024, batch_size=16, progress=False)
    windows = quote_corpus.train.windows(dense.cfg.n_ctx, 1024 // dense.cfg.n_ctx)
    (_, of_dense), (_, of_sparse) = (run_with_residuals(m, windows) for m in (dense, sparse))
    for site, (a, b) in enumerate(zip(of_dense, of_sparse, strict=True)):
        a, b = (x.detach().flatten(0, 1).numpy() for x in (a, b))
        seen = a - a.mean(1, keepdims=True) if norm == "LN" else a
        assert fitted.rms_dense[site].item() == pytest.approx(np.sqrt((seen**2).mean()))
        assert fitted.rms_sparse[site].item() == pytest.approx(np.sqrt((b**2).mean()))
        for x, y, W, bias in (
            (b, a, fitted[site].W_dec, fitted[site].b_dec),
            (a, b, fitted[site].W_enc, fitted[site].b_enc),
        ):
            size = np.sqrt(1e-4 * (x**2).sum() / x.shape[1])
            penalty = size * np.eye(x.shape[1], x.shape[1] + 1)
            rows = np.concatenate([np.c_[x, np.ones(len(x))], penalty])
            wanted = np.concatenate([y, np.zeros((x.shape[1], y.shape[1]))])
            best = np.linalg.lstsq(rows, wanted, rcond=None)[0]
            np.testing.assert_allclose(W.detach(), best[:-1], rtol=0, atol=1e-7)
            np.testing.assert_allclose(bias.detach(), best[-1], rtol=0, atol=1e-7)


def test_what_cannot_be_fitted_is_refused(quote_corpus):
    dense, sparse = make_dense(), make_model(SPARSE)
    with pytest.raises(ValueError, match="ridge is a positive"):
        fit_bridges(dense, sparse, quote_corpus, ridge=0.0)
    with pytest.raises(ValueError, match="one and the same"):
        fit_bridges(sparse, sparse, quote_corpus)
