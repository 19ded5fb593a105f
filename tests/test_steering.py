"""The dense model moved by a node of the sparse one, against patching by hand and plain torch."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import SHAPE, make_model
from plain import plain_forward, plain_parameters
from test_bridges import (
    DENSE_SHAPE,
    POSITIONED,
    SPARSE,
    identity_bridges,
    make_bridges,
    make_dense,
)
from test_experiments import imported
from torch import Tensor

from tl_sparse import data, tasks, zoo
from tl_sparse.bridges import (
    BridgeConfig,
    Bridges,
    StrengthCurve,
    bridge_losses,
    rank_nodes,
    read_limits,
    read_nodes,
    steer,
    steering_push,
    strength_curve,
)
from tl_sparse.circuit import Circuit
from tl_sparse.config import SparsityConfig
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.nodes import Node
from tl_sparse.tasks import PairTask

DOUBLE: dict[str, Any] = {"dtype": torch.float64}
NODES = [Node.parse(text) for text in ("0.attn_in.3", "0.mlp_in.5", "1.attn_in.2", "1.mlp_in.7")]


@pytest.fixture
def counterfactual(tokens) -> Tensor:
    """The same prompts with other tokens at two positions."""
    other = tokens.clone()
    other[:, 2], other[:, 5] = (tokens[:, 2] + 1) % 50, (tokens[:, 5] + 7) % 50
    return other


def sized(bridges: Bridges, dense: Any, sparse: Any, tokens: Tensor) -> Bridges:
    losses = bridge_losses(dense, sparse, bridges, tokens, BridgeConfig())
    bridges.note_sizes_(losses.mean_squares)
    return bridges


@pytest.mark.parametrize("node", NODES, ids=str)
def test_between_a_model_and_its_copy_full_strength_is_patching_the_node(
    node, tokens, counterfactual
):
    model, copy = make_model(**DOUBLE), make_model(**DOUBLE)
    bridges = sized(identity_bridges(model), model, copy, tokens)
    kind = "attn" if node.site.name == "attn_in" else "mlp"
    name = f"blocks.{node.site.layer}.hook_{kind}_read"
    _, cache = model.run_with_cache(counterfactual)

    def patch(activation, hook):
        activation[..., node.channel] = cache[name][..., node.channel]
        return activation

    patched = model.run_with_hooks(tokens, fwd_hooks=[(name, patch)])
    steered = steer(model, copy, bridges, node, tokens, counterfactual)
    torch.testing.assert_close(steered, patched, rtol=0, atol=1e-11)
    assert (patched - model(tokens)).abs().max() > 1e-3


@pytest.mark.parametrize("into", ["read", "residual"])
def test_strength_nought_changes_nothing_and_no_hook_stays(into, tokens, counterfactual):
    dense, sparse = make_dense(), make_model(SPARSE)
    bridges = sized(make_bridges(dense, sparse), dense, sparse, tokens)
    before = dense(tokens)
    args = (dense, sparse, bridges, NODES[1], tokens, counterfactual)
    assert torch.equal(steer(*args, strength=0.0, into=into), before)
    assert not torch.equal(steer(*args, strength=1.0, into=into), before)
    assert torch.equal(dense(tokens), before)


@pytest.mark.parametrize("into", ["read", "residual"])
@pytest.mark.parametrize("node", NODES, ids=str)
def test_a_push_is_the_difference_times_the_rescaled_row(node, into, tokens, counterfactual):
    """All of it in plain torch: both sparse runs, the sizes, the row and the dense run."""
    dense, sparse = make_dense(**DOUBLE), make_model(SPARSE, **DOUBLE)
    bridges = sized(make_bridges(dense, sparse), dense, sparse, tokens)
    site = 2 * node.site.layer + (node.site.name == "mlp_in")
    place = (node.site.layer, "resid_mid" if site % 2 else "resid_pre")
    seen: dict[str, Any] = {}

    def run(model, shape, some, at=None, between=None):
        sparsity = getattr(model, "sparsity", SparsityConfig())

        def read(layer, name, x):
            if (layer, name) == tuple(node.site):
                seen["read"] = x
                return x if at is None else at(x)
            return x

        def stream(layer, name, x):
            if (layer, name) == place:
                seen["stream"] = x
                return x if between is None else between(x)
            return x

        parameters = plain_parameters(model)
        return plain_forward(parameters, some, sparsity, shape, read, stream)

    run(sparse, SHAPE, counterfactual)
    there = seen["read"][..., node.channel]
    run(sparse, SHAPE, tokens)
    delta, of_sparse = there - seen["read"][..., node.channel], seen["stream"]
    run(dense, DENSE_SHAPE, tokens)
    scale = of_sparse.square().mean().sqrt()
    if into == "read":
        scale = scale / seen["stream"].square().mean().sqrt()
    row = bridges[site].W_dec.detach()[node.channel] * scale
    push = delta[..., None] * row
    given = steering_push(dense, sparse, bridges, node, tokens, counterfactual, into=into)
    torch.testing.assert_close(given, push, rtol=0, atol=1e-12)

    def add(x):
        return x + 0.3 * push

    where = {"at" if into == "read" else "between": add}
    expected = run(dense, DENSE_SHAPE, tokens, **where)
    steered = steer(dense, sparse, bridges, node, tokens, counterfactual, strength=0.3, into=into)
    torch.testing.assert_close(steered, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("into", ["read", "residual"])
@pytest.mark.parametrize("node", NODES, ids=str)
def test_what_layer_norm_takes_away_has_no_part_in_steering(node, into, tokens, counterfactual):
    """A constant on all channels of the stream or of a decoder: the dense model is the same."""
    sparse = make_model(SPARSE, **DOUBLE)
    moved = []
    for shift in (0.0, 3.0):
        dense = make_dense(normalization_type="LN", **DOUBLE)
        with torch.no_grad():
            dense.embed.W_E += shift
            bridges = make_bridges(dense, sparse)
            for site in range(len(bridges)):
                bridges[site].W_dec.add_(shift)
        sized(bridges, dense, sparse, tokens)
        args = (dense, sparse, bridges, node, tokens, counterfactual)
        moved.append(steer(*args, strength=0.1, into=into))
        assert (moved[-1] - dense(tokens)).abs().max() > 1e-4
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=1e-9)


def test_heads_that_read_copies_of_their_own_are_all_pushed(tokens, counterfactual):
    dense, sparse = make_dense(**DOUBLE), make_model(SPARSE, **DOUBLE)
    bridges = sized(make_bridges(dense, sparse), dense, sparse, tokens)
    expected = steer(dense, sparse, bridges, NODES[2], tokens, counterfactual)
    dense.set_use_split_qkv_input(True)
    split = steer(dense, sparse, bridges, NODES[2], tokens, counterfactual)
    torch.testing.assert_close(split, expected, rtol=0, atol=1e-11)


# -- curves -----------------------------------------------------------------------------------


class Letters:
    """A tokenizer of single characters."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [ord(letter) - 40 for letter in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(token + 40) for token in tokens)


def closing(**more: Any) -> PairTask:
    """Pairs `x(` and `x[`, to be closed by the same kind; prompts of two lengths."""
    pairs = [(("(" + a * n, "8" + a * n), (")", "9")) for a in "ABCDEF" for n in (2, 4)]
    splits = {"train": pairs[:4], "validation": pairs[4:8], "test": pairs[8:]} | more
    return tasks.from_pairs("closing", splits, tokenizer=Letters())  # pyright: ignore[reportArgumentType]


def of_answer(logits: Tensor, wanted: int, other: int, among: str) -> float:
    """The probability of one token, by hand."""
    weights = logits[0, -1].exp()
    whole = weights.sum() if among == "all" else weights[wanted] + weights[other]
    return (weights[wanted] / whole).item()


@pytest.mark.parametrize("among", ["all", "answers"])
def test_a_curve_is_the_probability_of_the_other_answer_prompt_by_prompt(among, tokens):
    dense, sparse = make_dense(**DOUBLE), make_model(SPARSE, **DOUBLE)
    bridges = sized(make_bridges(dense, sparse), dense, sparse, tokens)
    task, node, strengths = closing(), NODES[0], (0.0, 0.5, 1.0)
    curve = strength_curve(
        dense, sparse, bridges, task, node, strengths=strengths, among=among, n_random=0,
        progress=False,
    )  # fmt: skip
    expected: dict[tuple[int, float], list[float]] = {}
    there_itself: list[float] = []
    for pair in task.encoded("test"):
        for side in (0, 1):
            here, there = (torch.tensor([pair.prompts[s]]) for s in (side, 1 - side))
            answers = pair.answers[1 - side], pair.answers[side]
            for strength in (*strengths, -0.5, -1.0):
                logits = steer(dense, sparse, bridges, node, here, there, strength=strength)
                p = of_answer(logits, *answers, among)
                expected.setdefault((side, strength), []).append(p)
            there_itself.append(of_answer(dense(there), *answers, among))
    for side in (0, 1):
        means = [sum(expected[side, s]) / len(expected[side, s]) for s in strengths]
        assert curve.by_side[side] == pytest.approx(means, rel=1e-9)
    both = [(a + b) / 2 for a, b in zip(*curve.by_side, strict=True)]
    assert curve.probability == pytest.approx(both, rel=1e-12)
    assert curve.n_prompts == 2 * task.n_examples("test")
    assert curve.random == ()
    backwards = [(expected[0, s] + expected[1, s]) for s in (0.0, -0.5, -1.0)]
    assert curve.reverse == pytest.approx([sum(p) / len(p) for p in backwards], rel=1e-9)
    assert curve.counterfactual == pytest.approx(sum(there_itself) / len(there_itself), rel=1e-9)


def test_random_directions_are_as_long_and_start_where_the_curve_does(tokens, monkeypatch):
    dense, sparse = make_dense(**DOUBLE), make_model(SPARSE, **DOUBLE)
    bridges = sized(make_bridges(dense, sparse), dense, sparse, tokens)
    lengths = []

    def spy(dense, task, batch, site, push, into, among):
        lengths.append(push.norm().item())
        return torch.zeros(len(push), dtype=push.dtype)

    args = (dense, sparse, bridges, closing(), NODES[0])
    curve = strength_curve(*args, strengths=(0.0, 1.0), n_random=3, backwards=False, progress=False)
    assert curve.reverse == ()
    assert len(curve.random) == 2
    assert curve.random[0] == pytest.approx(curve.probability[0], rel=1e-12)
    assert curve.random[1] != pytest.approx(curve.probability[1], rel=1e-3)
    monkeypatch.setattr("tl_sparse.bridges.curve.pushed_answers", spy)
    strength_curve(*args, strengths=(1.0,), n_random=3, progress=False)
    assert lengths == [pytest.approx(lengths[0])] * 5


def made(**changes: Any) -> StrengthCurve:
    curve = StrengthCurve(
        node="1.attn_in.7", task="toy", split="test", into="read", among="all",
        strengths=(0.0, 0.1, 0.2, 1.0), probability=(0.1, 0.3, 0.7, 0.6), n_prompts=8,
        by_side=((0.0, 0.2, 0.6, 0.5), (0.2, 0.4, 0.8, 0.7)), random=(0.1, 0.1, 0.1, 0.2),
        reverse=(0.1, 0.05, 0.02, 0.0), counterfactual=0.75,
    )  # fmt: skip
    return replace(curve, **changes)


def test_the_strength_at_one_half_lies_between_two_points():
    assert made().strength_at(0.5) == pytest.approx(0.15)
    assert made().strength_at(0.05) == 0.0
    assert made().strength_at(0.7) == pytest.approx(0.2)
    assert made().strength_at(0.71) is None


def test_a_curve_is_saved_loaded_and_drawn(tmp_path):
    made().save(tmp_path / "curve.json")
    assert StrengthCurve.load(tmp_path / "curve.json") == made()
    values = json.loads((tmp_path / "curve.json").read_text())
    assert values["strength_at_half"] == pytest.approx(0.15)
    for name in ("strengths", "probability", "by_side", "random", "reverse"):
        with pytest.raises(ValueError, match=f"has the field '{name}', and here is none"):
            StrengthCurve.from_dict({k: v for k, v in values.items() if k != name})
    with pytest.raises(ValueError, match="not the fields of a StrengthCurve"):
        StrengthCurve.from_dict(values | {"colour": 1})
    for wrong in ({"strengths": 5}, {"by_side": 5}, {"probability": None}):
        with pytest.raises(ValueError, match="not the fields of a StrengthCurve"):
            StrengthCurve.from_dict(values | wrong)
    figure = ElementTree.fromstring(made().draw())
    assert [item.text or item[-1].tail for item in figure.iter("li")] == [
        "steered", "first prompts", "second prompts", "random directions", "backwards",
    ]  # fmt: skip
    assert len(list(ElementTree.fromstring(made(random=()).draw()).iter("li"))) == 4
    assert len(list(ElementTree.fromstring(made(reverse=()).draw()).iter("li"))) == 4
    assert "of the two" in made(among="answers").draw()
    assert "of the two" not in made().draw()
    assert "push by 2 nodes of 1.attn_in<" in made(node="1.attn_in.7+1.attn_in.9").draw()
    shown = made()._repr_html_()
    assert made().draw() in shown
    assert "<style>" in shown


def test_nodes_are_ranked_by_the_strength_they_need_then_by_how_far_they_get(monkeypatch):
    dense, sparse = make_dense(), make_model(SPARSE)
    wanted = {"0.attn_in.3": made(), "0.mlp_in.5": made(probability=(0.1, 0.6, 0.6, 0.6)),
              "1.attn_in.2": made(probability=(0.1, 0.2, 0.2, 0.3)),
              "1.mlp_in.7": made(probability=(0.1, 0.4, 0.2, 0.2))}  # fmt: skip
    asked: list[dict[str, Any]] = []

    def curve(dense, sparse, bridges, task, node, **options):
        asked.append(options)
        return replace(wanted[str(node)], node=str(node))

    monkeypatch.setattr("tl_sparse.bridges.curve.strength_curve", curve)
    bridges = make_bridges(dense, sparse)
    ranked = rank_nodes(dense, sparse, bridges, closing(), NODES, progress=False)
    assert [c.node for c in ranked] == ["0.mlp_in.5", "0.attn_in.3", "1.mlp_in.7", "1.attn_in.2"]
    assert all(options["split"] == "validation" for options in asked)
    assert not any(options["backwards"] or options["n_random"] for options in asked)


def test_the_nodes_of_a_circuit_that_can_steer_are_its_reads():
    nodes = tuple(Node.parse(t) for t in ("0.attn_in.1", "0.v.2", "0.mlp_in.4", "0.mlp_neuron.0"))
    references = {node.site: (0.0,) * 8 for node in nodes}
    circuit = Circuit(nodes=nodes, edges=(), references=references, task="-", model_hash="-")
    assert [str(node) for node in read_nodes(circuit)] == ["0.attn_in.1", "0.mlp_in.4"]


# -- how far a push can get ----------------------------------------------------------------------


def test_what_a_read_can_do_is_patching_it_and_a_perfect_bridge_carries_all_of_it(tokens):
    model, copy = make_model(**DOUBLE), make_model(**DOUBLE)
    bridges = sized(identity_bridges(model), model, copy, tokens)
    limits = read_limits(
        model, copy, bridges, closing(), strengths=(0.0, 1.0), split="test", progress=False
    )
    assert [limit.site for limit in limits] == ["0.attn_in", "0.mlp_in", "1.attn_in", "1.mlp_in"]
    for limit, name in zip(limits, ("attn", "mlp") * 2, strict=True):
        hook_name = f"blocks.{limit.site[0]}.hook_{name}_read"
        patched = []
        for pair in closing().encoded("test"):
            for side in (0, 1):
                here, there = (torch.tensor([pair.prompts[s]]) for s in (side, 1 - side))
                _, cache = model.run_with_cache(there)
                hook = (hook_name, lambda x, hook, cache=cache: cache[hook.name])
                logits = model.run_with_hooks(here, fwd_hooks=[hook])
                patched.append(of_answer(logits, pair.answers[1 - side], 0, "all"))
        assert limit.own[1] == pytest.approx(sum(patched) / len(patched), rel=1e-9)
        assert limit.decoded == pytest.approx(limit.own, rel=1e-9)
        assert limit.cosine == pytest.approx(1.0)
        assert limit.random[0] == pytest.approx(limit.own[0], rel=1e-9)
        assert limit.random[1] != pytest.approx(limit.own[1], rel=1e-4)
        assert limit.own[0] != pytest.approx(limit.own[1], rel=1e-4)


def test_nodes_that_steer_together_add_up_their_pushes(tokens, counterfactual):
    dense, sparse = make_dense(**DOUBLE), make_model(SPARSE, **DOUBLE)
    bridges = sized(make_bridges(dense, sparse), dense, sparse, tokens)
    nodes = [Node.parse("1.attn_in.2"), Node.parse("1.attn_in.9")]
    args = (dense, sparse, bridges)
    each = [steering_push(*args, node, tokens, counterfactual) for node in nodes]
    together = steering_push(*args, nodes, tokens, counterfactual)
    torch.testing.assert_close(together, each[0] + each[1], rtol=0, atol=1e-12)
    assert min(push.abs().max() for push in each) > 1e-3
    curve = strength_curve(*args, closing(), nodes, strengths=(0.0, 1.0), progress=False)
    alone = strength_curve(*args, closing(), nodes[0], strengths=(0.0, 1.0), progress=False)
    assert curve.node == "1.attn_in.2+1.attn_in.9"
    assert curve.probability[1] != pytest.approx(alone.probability[1], rel=1e-4)
    for wrong in ([], [nodes[0], nodes[0]], [nodes[0], NODES[1]]):
        with pytest.raises(ValueError, match="different ones of one site"):
            strength_curve(*args, closing(), wrong)


def test_what_a_bridge_decodes_at_a_read_is_the_sum_of_its_nodes_pushes(tokens):
    dense, sparse = make_dense(**DOUBLE), make_model(SPARSE, **DOUBLE)
    bridges = sized(make_bridges(dense, sparse), dense, sparse, tokens)
    task, by_hand = closing(test=[(("(FF", "8FF"), (")", "9"))]), []
    (pair,) = task.encoded("test")
    nodes = [Node(NODES[2].site, channel) for channel in range(sparse.cfg.d_model)]
    for side in (0, 1):
        here, there = (torch.tensor([pair.prompts[s]]) for s in (side, 1 - side))
        push = sum(steering_push(dense, sparse, bridges, node, here, there) for node in nodes)
        hook = ("blocks.1.ln1.hook_normalized", lambda x, hook, push=push: x + 0.4 * push)
        logits = dense.run_with_hooks(here, fwd_hooks=[hook])
        by_hand.append(of_answer(logits, pair.answers[1 - side], pair.answers[side], "answers"))
    limit = read_limits(
        dense, sparse, bridges, task, strengths=(0.4,), split="test", among="answers",
        n_random=0, progress=False,
    )[2]  # fmt: skip
    assert limit.decoded == pytest.approx([sum(by_hand) / 2], rel=1e-9)
    assert limit.random == ()


def test_random_pushes_at_a_read_are_as_long_at_every_token(tokens, monkeypatch):
    dense, sparse = make_dense(**DOUBLE), make_model(SPARSE, **DOUBLE)
    bridges = sized(make_bridges(dense, sparse), dense, sparse, tokens)
    lengths = []

    def spy(dense, task, batch, site, push, into, among):
        lengths.append(push.norm(dim=-1))
        return torch.zeros(len(push), dtype=push.dtype)

    monkeypatch.setattr("tl_sparse.bridges.limits.pushed_answers", spy)
    args = (dense, sparse, bridges, closing())
    read_limits(*args, strengths=(0.7,), n_random=2, progress=False)
    for decoded, first, second in (lengths[i + 1 : i + 4] for i in range(0, 16, 4)):
        torch.testing.assert_close(first, decoded)
        torch.testing.assert_close(second, decoded)


# -- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("0.v.2", "bridges stand where attention and MLPs read"),
        ("0.mlp_out.2", "Choose a node at attn_in or mlp_in of a layer below 2"),
        ("2.attn_in.1", "of a layer below 2"),
        ("1.attn_in.32", "no row for a position channel"),
    ],
)
def test_nodes_that_cannot_steer_are_refused(node, message, tokens, counterfactual):
    dense = make_dense()
    sparse = make_model(POSITIONED, positional_embedding_type="none")
    bridges = sized(make_bridges(dense, sparse), dense, sparse, tokens)
    with pytest.raises(ValueError, match=message):
        steer(dense, sparse, bridges, Node.parse(node), tokens, counterfactual)


def test_what_steering_cannot_do_is_refused(tokens, counterfactual):
    dense, sparse = make_dense(), make_model(SPARSE)
    bridges = make_bridges(dense, sparse)
    rest = (NODES[0], tokens, counterfactual)
    with pytest.raises(ValueError, match=r"do not know the sizes.*note_sizes_"):
        steer(dense, sparse, bridges, *rest)
    sized(bridges, dense, sparse, tokens)
    with pytest.raises(ValueError, match=r"need one shape, got \(3, 12\) and \(3, 11\)"):
        steer(dense, sparse, bridges, NODES[0], tokens, tokens[:, 1:])
    with pytest.raises(ValueError, match="into is one of 'read', 'residual'"):
        steer(dense, sparse, bridges, *rest, into="logits")  # pyright: ignore[reportArgumentType]
    sparse.set_use_split_qkv_input(True)
    with pytest.raises(ValueError, match="each head of the sparse model reads a copy"):
        steer(dense, sparse, bridges, *rest)


def test_norms_that_would_make_the_numbers_wrong_are_refused(tokens, counterfactual):
    rest = (NODES[0], tokens, counterfactual)
    without = make_dense(normalization_type=None)
    sparse = make_model(SPARSE)
    bridges = sized(make_bridges(without, sparse), without, sparse, tokens)
    with pytest.raises(ValueError, match='Use into="residual"'):
        steer(without, sparse, bridges, *rest)
    assert steer(without, sparse, bridges, *rest, into="residual").shape == (3, 12, 50)
    dense, gained = make_dense(), make_model(SPARSE, normalization_type="RMS")
    bridges = sized(make_bridges(dense, gained), dense, gained, tokens)
    with pytest.raises(ValueError, match='Use normalization_type="RMSPre"'):
        steer(dense, gained, bridges, *rest)


def test_a_task_or_strengths_that_make_no_curve_are_refused(tokens):
    dense, sparse = make_dense(), make_model(SPARSE)
    bridges = sized(make_bridges(dense, sparse), dense, sparse, tokens)
    uneven = closing(test=[(("(FFFF", "8FFF"), (")", "9"))])
    with pytest.raises(ValueError, match="pairs whose prompts differ in length"):
        strength_curve(dense, sparse, bridges, uneven, NODES[0])
    short = make_dense(n_ctx=4)
    joined = sized(make_bridges(short, sparse), short, sparse, tokens[:, :4])
    with pytest.raises(ValueError, match=r"a prompt of \d+ tokens; the model reads at most 4"):
        strength_curve(short, sparse, joined, closing(), NODES[0])
    for wrong in ((), (0.5, 0.1), (0.0, float("nan")), 1.0):
        with pytest.raises(ValueError, match="strengths are a list or tuple"):
            strength_curve(dense, sparse, bridges, closing(), NODES[0], strengths=wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="among is one of 'all', 'answers'"):
        strength_curve(dense, sparse, bridges, closing(), NODES[0], among="two")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="n_random is a non-negative"):
        strength_curve(dense, sparse, bridges, closing(), NODES[0], n_random=-1)
    with pytest.raises(ValueError, match="split is one of 'train', 'validation'"):
        strength_curve(dense, sparse, bridges, closing(), NODES[0], split="bad")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="seed is an integer"):
        strength_curve(dense, sparse, bridges, closing(), NODES[0], seed="a")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"At a strength of 1e\+300 .* nearer to 0"):
        strength_curve(
            dense, sparse, bridges, closing(), NODES[0], strengths=(0.0, 1e300), progress=False
        )


# -- the experiment -----------------------------------------------------------------------------


def test_the_experiment_steers_the_zoos_control(tmp_path, quote_corpus, monkeypatch):
    script, asked = imported("bridge"), []

    def corpus(**options: Any) -> data.Corpus:
        asked.append(options)
        return quote_corpus

    shape = script.demo_shape(quote_corpus.d_vocab, width=16)
    control = HookedSparseTransformer(
        shape, tokenizer=quote_corpus.tokenizer, sparsity=SparsityConfig(bigram_table=True)
    )
    pair = zoo.Pair("toy", control, control, {}, {}, {})
    monkeypatch.setattr(script.zoo, "load", lambda name: pair)
    monkeypatch.setattr(script.data, "python_corpus", corpus)
    command = ["bridge.py", "--out", str(tmp_path), "--tiny", "--tasks", "single_double_quote"]
    monkeypatch.setattr("sys.argv", command)
    script.main()
    assert asked[0]["tokenizer"] is control.tokenizer
    found = json.loads((tmp_path / "found.json").read_text())["tasks"]["single_double_quote"]
    curve = StrengthCurve.from_dict(found["test"][0])
    assert found["validation"][0]["node"] == curve.node
    assert (curve.among, found["test"][1]["among"]) == ("answers", "all")
    assert Bridges.load(tmp_path / "run/checkpoint/bridges").dense_hash is not None
    text = (tmp_path / "bridge.md").read_text()
    assert "<svg" in text
    assert f"| {curve.node} |" in text
    assert "| 1.mlp_in |" in text
