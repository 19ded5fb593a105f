"""Running with nodes cut out, against a plain-torch forward pass with the same cuts."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from conftest import SHAPE, make_model
from plain import plain_circuit, plain_cut, plain_forward, plain_parameters
from transformer_lens import HookedTransformer

from tl_sparse.ablation import (
    gated,
    only_circuit,
    references,
    zero_references,
)
from tl_sparse.circuit import SITES, Circuit, Edge, Node, Site
from tl_sparse.config import SparsityConfig
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.resampling import values_on
from tl_sparse.selection import nonzero_weights, select_nodes
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

    expected = plain_cut(model, tokens, gates, {}, values, SHAPE)
    with gated(model, site_map(model), gates, values):
        torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-11)


def random_edges(model, seed=2):
    generator = torch.Generator().manual_seed(seed)
    edges = {}
    for joint in site_map(model).joints:
        shape = joint_matrix(model, joint).shape
        edges[joint] = (torch.rand(shape, generator=generator) < 0.5).double()
    return edges


@pytest.mark.parametrize("attention", ["eager", "fused"])
@pytest.mark.parametrize("sinks", [True, False])
def test_a_cut_edge_shows_its_target_the_sources_value(attention, sinks, tokens):
    """Also through W_O, where a value arrives times the share that the sink leaves it."""
    model = make_model(SPARSE, dtype=torch.float64)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.sinks.fill_(1.0 if sinks else -torch.inf)
    gates, values, edges = random_gates(model), random_values(model), random_edges(model)

    p = plain_parameters(model)
    expected = plain_cut(model, tokens, gates, edges, values, SHAPE)
    if not sinks:
        shape = SHAPE | {"use_attention_sinks": False, "dtype": torch.float64}
        without = HookedSparseTransformer(shape, sparsity=SPARSE)
        without.load_state_dict({n: t for n, t in p.items() if "sinks" not in n}, strict=False)
        model = without
    model.set_attention("auto")
    hook = ("blocks.0.attn.hook_pattern", lambda tensor, hook: tensor)
    with gated(model, site_map(model), gates, values, edges):
        here = model(tokens)
        looked_at = model.run_with_hooks(tokens, fwd_hooks=[hook])  # not fused
    got = here if attention == "fused" else looked_at
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)
    names = list(dict(model.named_parameters()))
    assert names == [n for n in p if sinks or "sinks" not in n]
    assert all(torch.equal(model.get_parameter(n), p[n]) for n in names)


def check_gradients_of_edge_gates(model, tokens, values):
    sites = site_map(model)
    edges = {joint: 0.3 + 0.4 * gate for joint, gate in random_edges(model).items()}
    for joint in sites.joints[:6]:

        def loss(changed, joint=joint):
            with gated(model, sites, {}, values, edges | {joint: changed}):
                return model(tokens, return_type="loss")

        gate = edges[joint].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(gate), gate)
        place = tuple((joint_matrix(model, joint) != 0).nonzero()[3].tolist())
        step = torch.zeros_like(gate.detach())
        step[place] = 1e-6
        difference = (loss(edges[joint] + step) - loss(edges[joint] - step)) / 2e-6
        assert gradient[place].item() == pytest.approx(difference.item(), rel=1e-4, abs=1e-9)


def test_gradients_of_edge_gates_match_finite_differences(model, tokens):
    check_gradients_of_edge_gates(model, tokens, random_values(model))


def test_edges_are_cut_in_a_stock_model_too_but_not_under_its_sinks(tokens):
    ours = make_model(dtype=torch.float64, use_attention_sinks=False)
    shape = SHAPE | {"dtype": torch.float64, "use_attention_sinks": False}
    stock = HookedTransformer(shape)
    stock.load_state_dict(ours.state_dict())
    values, edges = random_values(ours), random_edges(ours)
    results = []
    for model in (ours, stock):
        with gated(model, site_map(model), {}, values, edges):
            results.append(model(tokens))
    torch.testing.assert_close(*results, rtol=0, atol=1e-11)
    stock = HookedTransformer(SHAPE | {"dtype": torch.float64})
    before = stock(tokens)
    with (
        pytest.raises(ValueError, match="Load it as a HookedSparseTransformer"),
        gated(stock, site_map(stock), {}, values, edges),
    ):
        pass
    assert torch.equal(stock(tokens), before)


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
    assert all(not hook._forward_hooks for hook in model.hook_dict.values())


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


@pytest.mark.parametrize("norm", ["LN", "RMS", "LNPre"])
def test_a_stock_norm_that_is_not_folded_stands_between_a_value_and_a_cut_weight(norm, tokens):
    """Its hook point comes before gain and bias, so the target sees the value through both."""
    shape = {"normalization_type": norm, "use_attention_sinks": False, "dtype": torch.float64}
    stock = HookedTransformer(SHAPE | shape)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.normal_(std=0.5, generator=generator)
    joints = site_map(stock).joints
    joint = next(j for j in joints if (j.source.layer, j.target.name) == (1, "mlp_neuron"))
    values = random_values(stock)
    gate = torch.ones_like(joint_matrix(stock, joint))
    gate[3, 5] = 0
    seen = {}

    def note(x, hook):
        seen["normed"] = x

    def swap(x, hook):
        moved = (values[joint.source][3] - seen["normed"][..., 3]) * stock.W_in[1, 3, 5]
        gain = stock.get_parameter("blocks.1.ln2.w")[3] if norm != "LNPre" else 1.0
        x[..., 5] += moved * gain
        return x

    hooks = [("blocks.1.ln2.hook_normalized", note), ("blocks.1.mlp.hook_pre", swap)]
    with torch.no_grad():
        expected = stock.run_with_hooks(tokens, fwd_hooks=hooks)
        with gated(stock, site_map(stock), {}, values, {joint: gate}):
            got = stock(tokens)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


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


@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize("toggle", ["use_split_qkv_input", "use_attn_in"])
def test_reads_that_have_a_copy_for_each_head_have_the_same_means(stock, toggle, corpus):
    shape = SHAPE | {"d_vocab": corpus.d_vocab, "dtype": torch.float64}
    model = HookedTransformer(shape) if stock else make_model(SPARSE, **shape)
    before = references(model, corpus, 8 * 16, progress=False).values
    setattr(model.cfg, toggle, True)
    for site, mean in references(model, corpus, 8 * 16, progress=False).values.items():
        torch.testing.assert_close(mean, before[site], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"an activation for each head .* Switch that off"):
        values_on(model, site_map(model), corpus.train.windows(16, 2))


@pytest.mark.parametrize("norm", ["LN", "LNPre", "RMS", "RMSPre"])
def test_a_stock_model_of_half_precision_is_cut_as_any_other(norm, tokens):
    shape = SHAPE | {"normalization_type": norm, "dtype": torch.bfloat16}
    model = HookedTransformer(shape | {"use_attention_sinks": False})
    sites = site_map(model)
    ones = {info.site: torch.ones(info.width, dtype=torch.bfloat16) for info in sites.sites}
    values = {site: 7 * one for site, one in ones.items()}
    with torch.no_grad(), gated(model, sites, ones, values):
        kept = model(tokens)
    assert torch.equal(kept, model(tokens))


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
    left = select_nodes(kept, nonzero_weights(model, sites))
    found = set(left.node_list())
    assert found == connected(chosen, edges)
    assert found != chosen
    inside = {e for e in edges if e.source in found and e.target in found}
    assert set(left.edge_list(model)) == inside
    # Single edges cut: those that lose their last in-edge fall, and what hangs on them.
    some = sorted(inside)[:: 2 + seed % 2]
    fewer = left.without(edges=some)
    found = connected(found, sorted(inside - set(some)))
    assert set(fewer.node_list()) == found
    rest = {e for e in inside - set(some) if e.source in found and e.target in found}
    assert set(fewer.edge_list(model)) == rest
    assert fewer.with_edges(inside).edge_list(model) == left.edge_list(model)


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
    weights = nonzero_weights(model, sites)
    apart = select_nodes(kept, weights).nodes
    tied = select_nodes(kept, weights, tie_qk=True).nodes
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


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_circuit_runs_inside_a_block_with_hooks_live(cut, model, tokens):
    """All its edges, every second, every third: a node without in-edges falls to its reference."""
    circuit = whole_circuit(model)
    circuit = replace(circuit, edges=circuit.edges[::cut])
    kept = connected(set(circuit.nodes), list(circuit.edges))
    expected = plain_circuit(model, tokens, circuit, kept, SHAPE)
    before = model(tokens)
    with only_circuit(model, circuit):
        logits, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-11)
    assert "blocks.0.hook_attn_read" in cache
    assert torch.equal(model(tokens), before)


@pytest.mark.parametrize("stock", [False, True])
def test_resetting_hooks_inside_the_block_leaves_the_circuit(stock, model, tokens):
    if stock:
        model = HookedTransformer(SHAPE | {"dtype": torch.float64, "use_attention_sinks": False})
    circuit = whole_circuit(model)
    circuit = replace(circuit, edges=circuit.edges[::3])
    seen = []
    model.add_hook("blocks.0.hook_mlp_out", lambda tensor, hook: seen.append(hook.name))
    with only_circuit(model, circuit):
        alone = model(tokens)
        assert len(seen) == 1
        model.reset_hooks()
        assert torch.equal(model(tokens), alone)
        model.remove_all_hook_fns(including_permanent=True)
        assert torch.equal(model(tokens), alone)
    assert len(seen) == 1
    assert not torch.equal(model(tokens), alone)


def test_a_circuit_is_not_written_down_as_its_model(model, tokens, tmp_path):
    """Its cut parameters would be saved, copied or chosen from in the place of the model's own."""
    circuit, before = whole_circuit(model), model.state_dict()
    with only_circuit(model, replace(circuit, edges=circuit.edges[::2])):
        for what, call in {
            "save": lambda: model.save(tmp_path / "inside"),
            "state_dict": model.state_dict,
            "load_state_dict": lambda: model.load_state_dict(before),
            "project_": model.project_,
            "a copy": lambda: deepcopy(model),
            "only_circuit": lambda: only_circuit(model, circuit).__enter__(),
        }.items():
            with pytest.raises(ValueError, match=f"running a circuit.* and {what} would take"):
                call()
        assert model(tokens).isfinite().all()
    assert not (tmp_path / "inside").exists()
    assert before.keys() == model.state_dict().keys()
    model.save(tmp_path / "outside")
    assert torch.equal(deepcopy(model)(tokens), model(tokens))


def test_circuits_of_another_model_are_refused(model):
    other = make_model(SPARSE, seed=9, random=False)
    with (
        pytest.raises(ValueError, match="was found in another model"),
        only_circuit(other, whole_circuit(model)),
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
