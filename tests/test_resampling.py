"""Resampling ablations: what is out takes its value on another prompt, against plain torch."""

from dataclasses import replace

import pytest
import torch
from conftest import SHAPE, make_model
from plain import plain_cut, plain_forward, plain_parameters
from test_ablation import (
    SPARSE,
    check_gradients_of_edge_gates,
    connected,
    random_edges,
    random_gates,
    whole_circuit,
)
from test_pruning import FREE, QUICK, Letters, letters_task, planted_model
from transformer_lens import HookedTransformer

from tl_sparse import Circuit, only_circuit, prune
from tl_sparse.ablation import (
    References,
    gated,
    pair_references,
    resampled_references,
    zero_references,
)
from tl_sparse.circuit import Edge, Node, Site
from tl_sparse.config import SparsityConfig
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.pruning import Trial, named_references, other_tokens, sweep, task_references
from tl_sparse.resampling import values_on
from tl_sparse.selection import select_nodes
from tl_sparse.sites import joint_matrix, model_hash, site_map
from tl_sparse.tasks import Pair, PairTask

TASK = letters_task()


@pytest.fixture(scope="module")
def model() -> HookedSparseTransformer:
    return make_model(SPARSE, dtype=torch.float64)


@pytest.fixture
def other() -> torch.Tensor:
    return torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(7))


def plain_values(p, tokens, sparsity=SPARSE, shape=SHAPE) -> dict[Site, torch.Tensor]:
    """What stands at every site in a run of the plain network."""
    found = {}

    def at(layer, name, x):
        found[Site(layer, name)] = x
        return x

    plain_forward(p, tokens, sparsity, shape, at)
    return found


def cut_by_hand(model, tokens, other, nodes, edges, shape=SHAPE) -> torch.Tensor:
    """The plain network with nodes out and edges cut, at their values in a plain run on `other`."""
    values = plain_values(plain_parameters(model), other, model.sparsity, shape)
    return plain_cut(model, tokens, nodes, edges, values, shape)


def test_values_are_those_of_a_plain_run_on_the_other_prompts(model, other):
    expected = plain_values(plain_parameters(model), other)
    found = values_on(model, site_map(model), other)
    assert set(found) == set(expected)
    for site, values in found.items():
        torch.testing.assert_close(values, expected[site], rtol=0, atol=1e-12)


@pytest.mark.parametrize("attention", ["eager", "auto"])
def test_nodes_and_edges_take_their_values_from_the_other_prompts(model, attention, tokens, other):
    nodes, edges = random_gates(model), random_edges(model)
    values = values_on(model, site_map(model), other)
    before = model(tokens)
    block = gated(model, site_map(model), nodes, values, edges)
    with block, model.using_attention(attention):
        got = model(tokens)
    expected = cut_by_hand(model, tokens, other, nodes, edges)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)
    assert torch.equal(model(tokens), before)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_cut_edges_of_a_stock_model_too_with_its_sinks(tokens, other):
    ours = make_model(dtype=torch.float64)
    stock = HookedTransformer(SHAPE | {"dtype": torch.float64})
    stock.load_state_dict(ours.state_dict())
    nodes, edges = random_gates(ours), random_edges(ours)
    values = values_on(stock, site_map(stock), other)
    with gated(stock, site_map(stock), nodes, values, edges):
        got = stock(tokens)
    expected = cut_by_hand(ours, tokens, other, nodes, edges)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


def test_the_other_prompts_themselves_change_nothing(model, tokens):
    values = values_on(model, site_map(model), tokens)
    with gated(model, site_map(model), random_gates(model), values, random_edges(model)):
        got = model(tokens)
    torch.testing.assert_close(got, model(tokens), rtol=0, atol=1e-11)


def test_gradients_of_edge_gates_match_finite_differences(model, tokens, other):
    check_gradients_of_edge_gates(model, tokens, values_on(model, site_map(model), other))


def test_tokens_of_another_shape_are_refused_inside_and_everything_is_undone(model, tokens, other):
    before = model(tokens)
    values = values_on(model, site_map(model), other)
    with gated(model, site_map(model), random_gates(model), values, random_edges(model)):
        for wrong in (tokens[:2], tokens[:, :5]):
            with pytest.raises(ValueError, match="3 x 12 tokens, and the model is run on"):
                model(wrong)
    assert torch.equal(model(tokens), before)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def resampled_circuit(model) -> Circuit:
    return replace(whole_circuit(model), references={}, ablation="resample_pair")


@pytest.mark.parametrize("cut", [2, 3])
def test_a_circuit_runs_on_given_other_prompts(cut, model, tokens, other):
    circuit = resampled_circuit(model)
    circuit = replace(circuit, edges=circuit.edges[::cut])
    assert Circuit.from_json(circuit.to_json()) == circuit
    kept = connected(set(circuit.nodes), list(circuit.edges))
    ends = {(e.source, e.target) for e in circuit.edges}
    nodes = {
        i.site: torch.tensor([Node(i.site, c) in kept for c in range(i.width)])
        for i in site_map(model).sites
    }
    edges = {}
    for joint in site_map(model).joints:
        edges[joint] = torch.ones(joint_matrix(model, joint).shape)
        for s, t in edges[joint].nonzero().tolist():
            pair = Node(joint.source, s), Node(joint.target, t)
            edges[joint][s, t] = pair in ends or not set(pair) <= kept
    expected = cut_by_hand(model, tokens, other, nodes, edges)
    with only_circuit(model, circuit, other=other):
        torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-11)


def test_a_circuit_asks_for_other_prompts_exactly_where_it_needs_them(model, other):
    circuit = resampled_circuit(model)
    for refused, given in ((circuit, None), (whole_circuit(model), other)):
        with (
            pytest.raises(ValueError, match=r"found under the ablation .*(Give those|Leave)"),
            only_circuit(model, refused, other=given),
        ):
            pass
    with pytest.raises(ValueError, match="this needs constants"):
        circuit.explain(model)
    with pytest.raises(ValueError, match="no constant reference values"):
        replace(whole_circuit(model), ablation="resample_corpus")
    assert "reference" not in circuit.to_networkx().nodes[str(circuit.nodes[0])]


# -- where the values come from --------------------------------------------------------------------


def test_in_a_batch_of_pairs_each_prompt_has_its_partner():
    refs = References({}, "resample_pair", "-", {})
    batch = TASK.batch("validation", [3, 1, 4])
    others = other_tokens(refs, "validation", [3, 1, 4], batch.tokens)
    assert torch.equal(others[:, 1:], batch.tokens[:, 1:])  # letters differ in the first alone
    assert (others[:, 0] != batch.tokens[:, 0]).all()


def test_windows_of_the_corpus_follow_the_prompt_and_the_draw(corpus):
    model = make_model(d_vocab=corpus.d_vocab)
    refs = resampled_references(model, corpus, n_windows=200, seed=3)
    again = resampled_references(model, corpus, n_windows=200, seed=3)
    assert refs.windows is not None
    assert again.windows is not None
    assert torch.equal(refs.windows, again.windows)
    text = corpus.train.windows(corpus.train.n_tokens, 1)[0].tolist()
    starts = {tuple(text[i : i + 16]) for i in range(len(text) - 15)}
    assert all(tuple(window) in starts for window in refs.windows.tolist())
    tokens = torch.zeros(8, 6, dtype=torch.long)
    whole = other_tokens(refs, "test", [0, 1, 2, 3], tokens)
    some = other_tokens(refs, "test", [2, 0], tokens[:4])
    assert torch.equal(some, whole[[2, 0, 6, 4]])
    assert len({tuple(row) for row in whole.tolist()}) == 8
    assert not torch.equal(other_tokens(refs, "test", [0, 1, 2, 3], tokens, draw=1), whole)
    assert not torch.equal(other_tokens(refs, "train", [0, 1, 2, 3], tokens), whole)


def test_the_task_mean_is_over_the_true_tokens_of_the_training_prompts():
    pairs = [Pair(("y" + "d" * n, "z" + "e" * n), ("b", "c")) for n in (1, 3, 6)]
    rest = {
        "validation": [Pair(("yf", "zf"), ("b", "c"))],
        "test": [Pair(("yg", "zg"), ("b", "c"))],
    }
    task = PairTask("lengths", {"train": pairs, **rest}, tokenizer=Letters())  # pyright: ignore[reportArgumentType]
    model = make_model(SPARSE, d_vocab=26, dtype=torch.float64)
    refs = task_references(model, task, batch_size=2, progress=False)
    prompts = [Letters().encode(prompt) for pair in pairs for prompt in pair.prompts]
    found = [plain_values(plain_parameters(model), torch.tensor([prompt])) for prompt in prompts]
    for info in site_map(model).sites:
        mean = torch.cat([values[info.site][0] for values in found]).mean(0)
        torch.testing.assert_close(refs.values[info.site], mean, rtol=0, atol=1e-12)
    assert (refs.ablation, refs.provenance["n_tokens"]) == ("task_mean", 26)


# -- pruning ---------------------------------------------------------------------------------------


def test_the_planted_circuit_is_found_under_every_ablation():
    model = planted_model()
    read, value, write = (
        Node(Site(0, s), c) for s, c in (("attn_in", 0), ("v", 2), ("attn_out", 5))
    )
    windows = torch.randint(0, 24, (40, 16), generator=torch.Generator().manual_seed(0))
    for refs in (
        task_references(model, TASK, progress=False),
        pair_references(model),
        References({}, "resample_corpus", model_hash(model), {"seed": 0}, windows),
    ):
        circuit = prune(model, TASK, refs, replace(QUICK, target_loss=0.3), progress=False)
        plant = {Edge(read, value, 1.0), Edge(value, write, 2.0)}
        if refs.ablation == "resample_corpus":  # without y and z a decoy is larger, and so the norm
            assert set(circuit.edges) >= plant
        else:
            assert set(circuit.edges) == plant
        assert circuit.ablation == refs.ablation
        assert Circuit.from_json(circuit.to_json()) == circuit
        assert bool(circuit.references) == (not refs.resamples)


@pytest.mark.parametrize("ablation", ["resample_pair", "resample_corpus"])
def test_losses_of_the_circuit_are_those_of_the_plain_network(ablation):
    sparsity = SparsityConfig(weight_density=1 / 4, activation_density=1 / 2)
    model = make_model(sparsity, d_vocab=26, dtype=torch.float64)
    windows = torch.randint(0, 24, (40, 16), generator=torch.Generator().manual_seed(0))
    refs = References({}, ablation, model_hash(model), {}, windows)
    config = replace(FREE, target_loss=1.3, drop_one=False)
    circuit = prune(model, TASK, refs, config, progress=False)
    assert prune(model, TASK, refs, config, progress=False).to_json() == circuit.to_json()
    batch, everyone = TASK.batch("test"), range(TASK.n_examples("test"))
    others = other_tokens(refs, "test", everyone, batch.tokens)
    if ablation == "resample_pair":
        assert torch.equal(others, torch.cat(batch.tokens.chunk(2)[::-1]))
    with only_circuit(model, circuit, other=others):
        logits = TASK.logits(model, batch)
    assert circuit.losses["test"] == pytest.approx(TASK.loss(logits, batch).item(), abs=1e-12)
    kept, ends = set(circuit.nodes), {(e.source, e.target) for e in circuit.edges}
    nodes = {
        i.site: torch.tensor([Node(i.site, c) in kept for c in range(i.width)])
        for i in site_map(model).sites
    }
    edges = {}
    for joint in site_map(model).joints:
        edges[joint] = torch.ones(joint_matrix(model, joint).shape)
        for s, t in (joint_matrix(model, joint) != 0).nonzero().tolist():
            pair = Node(joint.source, s), Node(joint.target, t)
            edges[joint][s, t] = pair in ends or not set(pair) <= kept
    by_hand = cut_by_hand(model, batch.tokens, others, nodes, edges)
    last = by_hand[torch.arange(len(batch.last)), batch.last]
    torch.testing.assert_close(logits, last, rtol=0, atol=1e-11)


def test_trials_of_some_examples_see_the_values_of_those(model):
    model = make_model(SPARSE, d_vocab=26, dtype=torch.float64)
    trial = Trial(model, TASK, site_map(model), pair_references(model))
    kept = select_nodes({s: g.bool() for s, g in random_gates(model).items()}, trial.weights)
    few = trial.loss(kept, n_examples=2)
    indices = [0, 8]
    batch = TASK.batch("validation", indices)
    nodes, edges = kept.node_gates(trial.like), kept.edge_gates(trial.like, trial.weights)
    by_hand = cut_by_hand(model, batch.tokens, batch.tokens.roll(2, 0), nodes, edges)
    last = by_hand[torch.arange(4), batch.last]
    assert few == pytest.approx(TASK.loss(last, batch).item(), abs=1e-11)
    assert trial.loss(kept, n_examples=2) == few


# -- what is refused -------------------------------------------------------------------------------


def uneven() -> PairTask:
    splits = {
        split: [Pair(("y" + letter, "z" + letter * 2), ("b", "c"))]
        for split, letter in (("train", "d"), ("validation", "e"), ("test", "f"))
    }
    return PairTask("uneven", splits, tokenizer=Letters())  # pyright: ignore[reportArgumentType]


def test_pairs_of_unequal_length_have_no_partner_to_resample_from():
    model = planted_model()
    for call in (prune, sweep):
        with pytest.raises(ValueError, match=r"equally many tokens, and some of uneven have not"):
            call(model, uneven(), pair_references(model), QUICK, progress=False)
    config = replace(QUICK, min_accuracy=0.0, target_loss=0.9, n_steps=2)
    prune(model, uneven(), zero_references(model), config, progress=False)  # elsewhere padded


def test_the_unembedding_is_not_pruned_under_resampling():
    model = planted_model()
    with pytest.raises(ValueError, match="mask_final needs constant reference values"):
        prune(model, TASK, pair_references(model), replace(QUICK, mask_final=True), progress=False)


def test_nan_at_a_site_is_refused_before_any_work_even_where_no_logit_shows_it():
    model = planted_model()
    with torch.no_grad():
        model.blocks[0].attn.W_Q[0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"activations at 0\.q have NaN or infinite"):
        prune(model, TASK, zero_references(model), QUICK, force=True, progress=False)


def test_reference_values_have_names(model):
    task = TASK
    assert named_references("zero", model, task).ablation == "zero"
    assert named_references("resample_pair", model, task).resamples
    named = named_references("task_mean", model, task)
    same = task_references(model, task, progress=False)
    assert all(torch.equal(named.values[site], values) for site, values in same.values.items())
    for name in ("corpus_mean", "resample_corpus"):
        with pytest.raises(ValueError, match=f"'{name}' takes its values from a corpus"):
            named_references(name, model, task)
    with pytest.raises(ValueError, match="no ablation 'mean'; there are: corpus_mean, "):
        named_references("mean", model, task)
