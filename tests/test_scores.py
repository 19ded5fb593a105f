"""Baselines in the place of learned masks: each score against its definition, in plain torch."""

from dataclasses import replace

import pytest
import torch
from conftest import SHAPE, make_model
from plain import plain_forward
from test_pruning import QUICK, letters_task, planted_model
from torch import Tensor

from tl_sparse import prune
from tl_sparse.ablation import References, zero_references
from tl_sparse.circuit import Edge, Node, Site
from tl_sparse.config import PruningConfig, SparsityConfig
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.pruning import Sweep, Trial, sweep
from tl_sparse.pruning.scores import score_edges, score_nodes
from tl_sparse.pruning.sweep import SweepPoint
from tl_sparse.selection import nonzero_weights, select_nodes
from tl_sparse.sites import joint_matrix, model_hash, site_map

METHODS = ("attribution", "integrated_gradients", "random", "magnitude")
SPARSE = SparsityConfig(weight_density=1 / 4)  # no AbsTopK: the loss is smooth in the gates
TASK = letters_task()


@pytest.fixture(scope="module")
def model() -> HookedSparseTransformer:
    return make_model(SPARSE, d_vocab=26, dtype=torch.float64)


@pytest.fixture(scope="module")
def trial(model) -> Trial:
    return trial_of(model)


def trial_of(model: HookedSparseTransformer) -> Trial:
    generator = torch.Generator().manual_seed(3)
    values = {
        info.site: 0.3 * torch.randn(info.width, generator=generator, dtype=torch.float64)
        for info in site_map(model, final=True).sites
    }
    refs = References(values, "corpus_mean", model_hash(model), {})
    return Trial(model, TASK, site_map(model), refs)


def plain_loss(trial: Trial, gates: dict[Site, Tensor], blends=None) -> float:
    """The task's loss on the training pairs with every activation blended with its reference."""

    def at(layer, name, x):
        gate, value = gates[Site(layer, name)], trial.references.values[Site(layer, name)]
        return gate * x + (1 - gate) * value

    p = {name: parameter.detach().clone() for name, parameter in trial.model.named_parameters()}
    p |= blends or {}
    batch = TASK.batch("train")
    logits = plain_forward(p, batch.tokens, SPARSE, SHAPE, at)
    last = logits[torch.arange(len(batch.last)), batch.last]
    right, wrong = (last.gather(1, ids[:, None])[:, 0] for ids in (batch.correct, batch.wrong))
    return torch.log1p(torch.exp(wrong - right)).mean().item()


def open_gates(trial: Trial, height: float = 1.0) -> dict[Site, Tensor]:
    return {i.site: torch.full((i.width,), height).double() for i in trial.sites.sites}


def config(method: str, **changes) -> PruningConfig:
    return PruningConfig.from_dict({"method": method} | changes)


@pytest.mark.parametrize("batch_size", [7, 64])
def test_attribution_is_the_first_order_effect_of_a_little_ablation(trial, batch_size):
    scores = score_nodes(trial, config("attribution", batch_size=batch_size), False)
    for site in (Site(0, "attn_in"), Site(0, "k"), Site(1, "v"), Site(1, "mlp_neuron")):
        for channel in (0, 5, 17):
            ends = []
            for step in (1e-5, -1e-5):
                gates = open_gates(trial)
                gates[site][channel] += step
                ends.append(plain_loss(trial, gates))
            effect = abs(ends[0] - ends[1]) / 2e-5
            assert scores[site][channel].item() == pytest.approx(effect, rel=1e-4, abs=1e-8)


def test_attribution_of_an_edge_is_the_first_order_effect_of_cutting_it_a_little(trial):
    kept = select_nodes({s: g.bool() for s, g in open_gates(trial).items()}, trial.weights)
    scores = score_edges(trial, kept, config("attribution"), False)
    gates = {site: keep.double() for site, keep in kept.nodes.items()}
    joint = next(j for j in trial.sites.joints if j.weight == "blocks.1.mlp.W_in")
    w, b = (trial.model.get_parameter(name).detach() for name in (joint.weight, joint.bias))
    for i, (s, t) in enumerate(kept.edges[joint].nonzero().tolist()[:5]):
        ends = []
        for step in (1e-5, -1e-5):  # a weight moved from the source to the source's value
            weight, bias = w.clone(), b.clone()
            weight[s, t] *= 1 + step
            bias[t] -= step * w[s, t] * trial.references.values[joint.source][s]
            ends.append(plain_loss(trial, gates, {joint.weight: weight, joint.bias: bias}))
        effect = abs(ends[0] - ends[1]) / 2e-5
        assert scores[joint][i].item() == pytest.approx(effect, rel=1e-4, abs=1e-8)


def test_integrated_gradients_add_up_to_the_difference_in_loss(trial):
    from tl_sparse.pruning.scores import signed_attribution

    sizes = {info.site: info.width for info in trial.sites.sites}
    steps = config("integrated_gradients", n_ig_steps=48)
    signed = signed_attribution(trial, trial.running, sizes, steps, False)
    total = sum(score.sum().item() for score in signed.values())
    difference = plain_loss(trial, open_gates(trial)) - plain_loss(trial, open_gates(trial, 0.0))
    assert abs(difference) > 0.01
    assert total == pytest.approx(difference, rel=0.01)
    scores = score_nodes(trial, steps, False)
    assert all(torch.equal(scores[site], one.abs()) for site, one in signed.items())


def test_magnitude_is_the_norm_of_the_weights_of_a_node_and_the_size_of_an_edge(trial):
    scores = score_nodes(trial, config("magnitude"), False)
    blocks = trial.model.blocks
    neuron = torch.cat([blocks[1].mlp.W_in[:, 9], blocks[1].mlp.W_out[9]])
    assert scores[Site(1, "mlp_neuron")][9].item() == pytest.approx(neuron.norm().item())
    value = torch.cat([blocks[0].attn.W_V[2, :, 3], blocks[0].attn.W_O[2, 3]])
    assert scores[Site(0, "v")][2 * 8 + 3].item() == pytest.approx(value.norm().item())
    kept = select_nodes({s: g.bool() for s, g in open_gates(trial).items()}, trial.weights)
    for joint, score in score_edges(trial, kept, config("magnitude"), False).items():
        assert torch.equal(score, joint_matrix(trial.model, joint)[kept.edges[joint]].abs())


def test_random_scores_follow_the_seed(trial):
    one, same, other = (
        score_nodes(trial, config("random", seed=seed), False) for seed in (4, 4, 5)
    )
    assert all(torch.equal(one[site], same[site]) for site in one)
    assert not any(torch.equal(one[site], other[site]) for site in one)


@pytest.mark.parametrize("method", METHODS)
def test_tied_queries_and_keys_have_one_score(trial, method):
    scores = score_nodes(trial, config(method, tie_qk=True, n_ig_steps=2), False)
    assert list(scores) == [info.site for info in trial.sites.sites]
    for layer in (0, 1):
        assert torch.equal(scores[Site(layer, "q")], scores[Site(layer, "k")])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_through_size_choice_edges_and_clean_up(method):
    planted = planted_model()
    settings = replace(QUICK, method=method, target_loss=0.3)  # the decoys cost the whole 0.22
    circuit = prune(planted, TASK, zero_references(planted), settings, progress=False)
    read, value, write = (
        Node(Site(0, s), c) for s, c in (("attn_in", 0), ("v", 2), ("attn_out", 5))
    )
    assert set(circuit.edges) == {Edge(read, value, 1.0), Edge(value, write, 2.0)}
    assert circuit.provenance["pruning"]["method"] == method
    raw = replace(settings, edges=False, drop_one=False)
    untouched = prune(planted, TASK, zero_references(planted), raw, progress=False)
    assert set(untouched.edges) >= set(circuit.edges)
    if method == "attribution":  # decoys have no gradient: it finds the plant at once
        assert untouched.edges == circuit.edges


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"method .*learned.*got 'eap'"):
        PruningConfig(method="eap")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("method", ["learned", "magnitude"])
def test_a_sweep_gives_the_loss_of_nested_sizes_up_to_the_whole_model(method):
    planted = planted_model()
    curve = sweep(
        planted, TASK, zero_references(planted), replace(QUICK, method=method), progress=False
    )
    assert (curve.task, curve.method, curve.split) == ("letters", method, "test")
    assert curve.points[0].loss == pytest.approx(0.693147, abs=1e-5)
    weights = nonzero_weights(planted, site_map(planted))
    assert curve.points[-1].n_edges == sum(int(w.sum()) for w in weights.values())
    if method == "learned":
        assert curve.n_edges_at(0.15) == 2
    assert all(p.requires_grad for p in planted.parameters())


def test_the_running_minimum_leaves_what_nothing_smaller_beats():
    points = [(1, 2, 0.6), (2, 5, 0.7), (3, 5, 0.4), (4, 9, 0.5), (5, 10, 0.1)]
    curve = Sweep("toy", "random", "test", tuple(SweepPoint(*p) for p in points))
    assert [(p.n_edges, p.loss) for p in curve.running_minimum()] == [(2, 0.6), (5, 0.4), (10, 0.1)]
    assert curve.n_edges_at(0.5) == 5
    assert curve.n_edges_at(0.01) is None
