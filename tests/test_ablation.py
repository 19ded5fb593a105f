"""Running with nodes cut out, against a plain-torch forward pass with the same cuts."""

from dataclasses import replace

import pytest
import torch
from conftest import SHAPE, make_model
from plain import plain_forward
from transformer_lens import HookedTransformer

from tl_sparse.ablation import (
    count_edges,
    gated,
    only_circuit,
    references,
    without_dropped,
    zero_references,
)
from tl_sparse.circuit import SITES, Circuit, Edge, Node, Site
from tl_sparse.config import SparsityConfig
from tl_sparse.sites import joint_matrix, model_hash, site_map

SPARSE = SparsityConfig(
    weight_density=1 / 8, activation_density=0.5, bias_density=1 / 2, bigram_table=True
)


@pytest.fixture
def model():
    return make_model(SPARSE, dtype=torch.float64)


def random_gates(model, seed=0, density=0.4):
    generator = torch.Generator().manual_seed(seed)
    return {
        info.site: (torch.rand(info.width, generator=generator) < density).double()
        for info in site_map(model).sites
    }


def random_values(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        info.site: torch.randn(info.width, generator=generator, dtype=torch.float64)
        for info in site_map(model).sites
    }


def test_a_gated_model_is_the_plain_network_with_those_activations_replaced(model, tokens):
    gates, values = random_gates(model), random_values(model)

    def at(layer, name, x):
        keep, value = gates[Site(layer, name)].bool(), values[Site(layer, name)]
        return torch.where(keep, x, value)

    p = {name: parameter.detach() for name, parameter in model.named_parameters()}
    expected = plain_forward(p, tokens, SPARSE, SHAPE, at)
    with gated(model, site_map(model), gates, values):
        torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-11)


def test_ablating_nothing_is_the_model_and_everything_is_constant(model, tokens):
    sites, values = site_map(model), random_values(model)
    ones = {info.site: torch.ones(info.width).double() for info in sites.sites}
    with gated(model, sites, ones, values):
        torch.testing.assert_close(model(tokens), model(tokens) * 1)
        nothing = model(tokens)
    torch.testing.assert_close(nothing, model(tokens), rtol=0, atol=1e-12)
    zeros = {site: gate * 0 for site, gate in ones.items()}
    with gated(model, sites, zeros, values):
        resid = model.run_with_cache(tokens, names_filter="blocks.1.hook_resid_post")[1]
    written = sum(values[Site(layer, name)] for layer in (0, 1) for name in ("attn_out", "mlp_out"))
    embedded = model.embed(tokens) + model.pos_embed(tokens)
    torch.testing.assert_close(resid["blocks.1.hook_resid_post"], embedded + written)


def test_everything_is_undone_after_the_block_and_after_an_exception(model, tokens):
    before = model(tokens)
    gates, values = random_gates(model), random_values(model)

    def fail_inside():
        with gated(model, site_map(model), gates, values):
            assert not torch.equal(model(tokens), before)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert torch.equal(model(tokens), before)
    assert all(not hook.fwd_hooks for hook in model.hook_dict.values())


def test_gradients_of_gates_match_finite_differences(model, tokens):
    sites, values = site_map(model), random_values(model)
    gates = {site: torch.full_like(v, 0.7) for site, v in values.items()}
    site, h = Site(1, "attn_out"), 1e-6

    def loss(changed):
        with gated(model, sites, gates | {site: changed}, values):
            return model(tokens, return_type="loss")

    gate = gates[site].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(gate), gate)
    for channel in (0, 7, 31):
        step = torch.zeros_like(gates[site])
        step[channel] = h
        difference = (loss(gates[site] + step) - loss(gates[site] - step)) / (2 * h)
        assert gradient[channel].item() == pytest.approx(difference.item(), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("stock", [False, True])
def test_references_are_the_means_over_the_training_text(stock, corpus):
    shape = SHAPE | {"d_vocab": corpus.d_vocab, "dtype": torch.float64}
    model = HookedTransformer(shape) if stock else make_model(SPARSE, **shape)
    refs = references(model, corpus, 32 * 16, progress=False)
    _, cache = model.run_with_cache(corpus.train.windows(16, 32))
    for info in site_map(model, final=True).sites:
        mean = cache[info.hook_name].flatten(0, 1).flatten(1).mean(0)
        torch.testing.assert_close(refs.values[info.site], mean, rtol=0, atol=1e-12)
    with torch.no_grad():
        model.blocks[0].mlp.W_in[0, 0] += 1
    with pytest.raises(ValueError, match="measured on another model"):
        refs.check(model)


def test_references_of_a_model_that_gives_nan_are_refused(corpus):
    model = make_model(d_vocab=corpus.d_vocab)
    with torch.no_grad():
        model.blocks[0].mlp.W_in.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"0\.mlp_neuron have NaN"):
        references(model, corpus, 256, progress=False)


def connected(nodes: set[Node], edges: list[Edge]) -> set[Node]:
    """The rule of dropping, edge by edge: without a kept in-edge a node falls, again and again."""
    kept = set(nodes)
    while True:
        fed = {e.target for e in edges if e.source in kept and e.target in kept}
        left = {node for node in kept if node.site.name in ("attn_in", "mlp_in") or node in fed}
        if left == kept:
            return kept
        kept = left


@pytest.mark.parametrize("seed", range(5))
def test_dropping_agrees_with_the_rule_on_single_edges(model, seed):
    sites = site_map(model)
    kept = {site: gate.bool() for site, gate in random_gates(model, seed, 0.2).items()}
    nodes = [Node(s, c) for s, keep in kept.items() for c in keep.nonzero().flatten().tolist()]
    chosen = set(nodes)
    edges = []
    for joint in sites.joints:
        matrix = joint_matrix(model, joint)
        for s, t in (matrix != 0).nonzero().tolist():
            source, target = Node(joint.source, s), Node(joint.target, t)
            if source in chosen and target in chosen:
                edges.append(Edge(source, target, float(matrix[s, t])))
    left = without_dropped(model, sites, kept)
    found = {Node(s, c) for s, keep in left.items() for c in keep.nonzero().flatten().tolist()}
    assert found == connected(chosen, edges)
    assert found != chosen
    n_edges = sum(e.source in found and e.target in found for e in edges)
    assert count_edges(model, sites, left) == n_edges


def test_tied_queries_and_keys_stay_as_long_as_one_is_fed(model):
    sites = site_map(model)
    w_q = joint_matrix(model, next(j for j in sites.joints if j.weight == "blocks.0.attn.W_Q"))
    w_k = joint_matrix(model, next(j for j in sites.joints if j.weight == "blocks.0.attn.W_K"))
    source, channel = next(
        (s, c) for s, c in (w_k != 0).nonzero().tolist() if w_q[s, c] == 0
    )  # this read feeds the key and not the query of the channel
    kept = {info.site: torch.zeros(info.width, dtype=torch.bool) for info in sites.sites}
    kept[Site(0, "attn_in")][source] = True
    kept[Site(0, "q")][channel] = kept[Site(0, "k")][channel] = True
    apart = without_dropped(model, sites, kept)
    tied = without_dropped(model, sites, kept, tie_qk=True)
    assert [int(apart[Site(0, s)].sum()) for s in "qk"] == [0, 1]
    assert [int(tied[Site(0, s)].sum()) for s in "qk"] == [1, 1]


def test_joints_are_the_weights_that_really_join_the_sites(model, tokens):
    """Finite differences: moving one source node moves one target node by the weight."""
    p = {name: parameter.detach() for name, parameter in model.named_parameters()}
    dense = SparsityConfig(bigram_table=True)
    for joint in site_map(model).joints:
        matrix = joint_matrix(model, joint)
        source, target = (matrix != 0).nonzero()[0].tolist()
        seen = []
        for step in (0.0, 1.0):

            def at(layer, name, x, step=step, joint=joint, source=source, target=target, seen=seen):
                if (layer, name) == (joint.source.layer, joint.source.name):
                    x = x.clone()
                    x[..., source] += step
                if (layer, name) == (joint.target.layer, joint.target.name):
                    seen.append(x[..., target])
                return x

            # activations dense and, for the neurons, linear enough: compare before the gelu
            plain_forward(p, tokens, dense, SHAPE, at)
        moved = seen[1] - seen[0]
        if joint.target.name in ("q", "k", "v", "mlp_out"):
            torch.testing.assert_close(moved, torch.full_like(moved, float(matrix[source, target])))
        elif joint.target.name == "attn_out":  # the pattern's row, with a sink, sums to less than 1
            share = moved / matrix[source, target]
            assert ((share > 0) & (share < 1)).all()
        else:
            assert ((moved != 0) & (moved.sign() == matrix[source, target].sign())).any()


def whole_circuit(model) -> Circuit:
    sites, values = site_map(model), random_values(model)
    edges, nodes = [], set()
    for joint in sites.joints:
        matrix = joint_matrix(model, joint)
        for s, t in (matrix != 0).nonzero().tolist():
            edges.append(Edge(Node(joint.source, s), Node(joint.target, t), float(matrix[s, t])))
            nodes |= {edges[-1].source, edges[-1].target}
    return Circuit(
        nodes=tuple(nodes),
        edges=tuple(edges),
        references={site: tuple(v.tolist()) for site, v in values.items()},
        task="all",
        model_hash=model_hash(model),
    )


def test_a_circuit_runs_inside_a_block_with_hooks_live(model, tokens):
    circuit = whole_circuit(model)
    values = random_values(model)
    kept = set(circuit.nodes)

    def at(layer, name, x):
        keep = [Node(Site(layer, name), c) in kept for c in range(x.shape[-1])]
        return torch.where(torch.tensor(keep), x, values[Site(layer, name)])

    p = {name: parameter.detach() for name, parameter in model.named_parameters()}
    expected = plain_forward(p, tokens, SPARSE, SHAPE, at)
    before = model(tokens)
    with only_circuit(model, circuit):
        logits, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-11)
    assert "blocks.0.hook_attn_read" in cache
    assert torch.equal(model(tokens), before)


def test_circuits_of_another_model_or_with_cut_edges_are_refused(model):
    circuit = whole_circuit(model)
    fewer = replace(circuit, edges=circuit.edges[1:])
    other = make_model(SPARSE, seed=9, random=False)
    with (
        pytest.raises(ValueError, match="circuits with cut edges can't be run"),
        only_circuit(model, fewer),
    ):
        pass
    with (
        pytest.raises(ValueError, match="was found in another model"),
        only_circuit(other, circuit),
    ):
        pass


def test_the_map_knows_every_site_of_sparse_and_stock_models(model):
    stock = HookedTransformer(SHAPE)
    for one in (model, stock):
        sites = site_map(one, final=True)
        names = [info.site.name for info in sites.sites]
        assert names == [*SITES[:-1], *SITES[:-1], "final_in"]
        assert all(info.hook_name in one.hook_dict for info in sites.sites)
        assert sites.n_nodes == 2 * (7 * 32 + 64)
    assert zero_references(model).values[Site(1, "v")].tolist() == [0.0] * 32
    no_norm = HookedTransformer(SHAPE | {"normalization_type": None})
    with pytest.raises(ValueError, match="it needs a norm before each read"):
        site_map(no_norm)
