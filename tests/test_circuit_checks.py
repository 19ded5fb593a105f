"""Circuits that do not fit a model, and what stays of a model when one ran in it."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import make_model, write_edges

from tl_sparse.ablation import only_circuit
from tl_sparse.circuit import Circuit, Edge, Node, Site
from tl_sparse.circuit_checks import check_circuit
from tl_sparse.config import SparsityConfig
from tl_sparse.explain import explain
from tl_sparse.sites import model_hash, site_map

SPARSE = SparsityConfig(weight_density=0.2, activation_density=0.5)
EDGES = [
    ("0.attn_in.2", "0.v.9", 0.75),
    ("0.attn_in.2", "0.q.9", -1.5),
    ("0.v.9", "0.attn_out.4", 1.25),
    ("1.mlp_in.4", "1.mlp_neuron.40", -0.5),
    ("1.mlp_neuron.40", "1.mlp_out.7", 2.0),
]


@pytest.fixture
def model():
    model = make_model(SPARSE, dtype=torch.float64)
    write_edges(model, EDGES)
    with torch.no_grad():
        model.blocks[1].mlp.W_in[3, 40] = 0.0
    return model


@pytest.fixture
def circuit(model) -> Circuit:
    edges = tuple(Edge(Node.parse(a), Node.parse(b), w) for a, b, w in EDGES)
    nodes = {node for edge in edges for node in (edge.source, edge.target)}
    return Circuit(
        nodes=(*nodes, Node(Site(1, "mlp_in"), 3)),
        edges=edges,
        references={i.site: (0.25,) * i.width for i in site_map(model).sites},
        task="toy",
        model_hash=model_hash(model),
    )


def changed(circuit: Circuit, **changes) -> Circuit:
    """The circuit from a file in which something was changed by hand."""
    data = json.loads(circuit.to_json())
    for key, change in changes.items():
        data[key] = change(data[key])
    return Circuit.from_json(json.dumps(data))


UNFIT = [
    (
        "a site of a layer that the model lacks",
        {
            "references": lambda r: r | {"7.mlp_in": [0.0] * 32},
            "nodes": lambda n: [*n, "7.mlp_in.3"],
        },
        r"has nodes at 7\.mlp_in, and the model is without that site",
    ),
    (
        "a channel out of range",
        {
            "references": lambda r: r | {"0.mlp_in": [0.0] * 99},
            "nodes": lambda n: [*n, "0.mlp_in.80"],
        },
        r"has 99 reference values for 0\.mlp_in, where the model has 32 nodes",
    ),
    (
        "a site without references",
        {"references": lambda r: {k: v for k, v in r.items() if k != "1.q"}},
        r"has 0 reference values for 1\.q",
    ),
    (
        "an edge that no weight makes",
        {"edges": lambda e: [*e, ["0.attn_in.2", "1.mlp_out.7", 1.0]]},
        r"no weight of the model leads from 0\.attn_in to 1\.mlp_out",
    ),
    (
        "an edge whose weight is zero",
        {"edges": lambda e: [*e, ["1.mlp_in.3", "1.mlp_neuron.40", 1.0]]},
        r"has the edge 1\.mlp_in\.3 -> 1\.mlp_neuron\.40 \(\+1\); in the model this weight is zero",
    ),
    (
        "an edge with another weight",
        {"edges": lambda e: [*e[:-1], ["1.mlp_neuron.40", "1.mlp_out.7", 3.0]]},
        r"1\.mlp_out\.7 \(\+3\); in the model this weight is \+2",
    ),
    ("the hash of another model", {"model_hash": lambda h: h[::-1]}, "found in another model"),
]


@pytest.mark.parametrize(("changes", "message"), [u[1:] for u in UNFIT], ids=[u[0] for u in UNFIT])
def test_a_file_that_does_not_fit_the_model_is_refused(changes, message, model, circuit, tokens):
    unfit, before = changed(circuit, **changes), model(tokens)
    with pytest.raises(ValueError, match=message), only_circuit(model, unfit):
        pass
    for ask in (check_circuit, explain):
        with pytest.raises(ValueError, match=message):
            ask(unfit, model)
    assert torch.equal(model(tokens), before)


def test_a_circuit_fits_its_model_and_that_model_in_another_type(model, circuit):
    check_circuit(circuit, model)
    double = Circuit.from_json(circuit.to_json())
    check_circuit(double, model)
    single = make_model(SPARSE)
    kept = ("1.mlp_neuron.40", "1.mlp_out.7", 0.1)  # as float32, not the nearest number to 0.1
    write_edges(single, [kept])
    edge = Edge(Node.parse(kept[0]), Node.parse(kept[1]), 0.1)
    check_circuit(replace(circuit, edges=(edge,), model_hash=model_hash(single)), single)


def test_every_hook_of_the_host_is_live_while_a_circuit_runs(model, circuit, tokens):
    whole, last = model(tokens), "blocks.1.hook_resid_post"
    with only_circuit(model, circuit):
        alone = model(tokens)
        logits, cache = model.run_with_cache(tokens)
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-12)
        held = [cache["blocks.1.mlp.hook_post"][..., c].eq(0.25).all().item() for c in range(64)]
        assert held == [c != 40 for c in range(64)]

        seen = []  # attention steps aside from its fused path where a hook needs the pattern
        look = [("blocks.0.attn.hook_pattern", lambda x, hook: seen.append(x.shape))]
        again = model.run_with_hooks(tokens, fwd_hooks=look)
        torch.testing.assert_close(again, alone, rtol=0, atol=1e-12)
        assert seen == [(3, 4, 12, 12)]

        def patch(x, hook):
            seen.append(x)
            return x + torch.nn.functional.one_hot(torch.tensor(7), 32)

        patches = [("blocks.1.hook_mlp_out", patch), (last, lambda x, hook: seen.append(x))]
        patched = model.run_with_hooks(tokens, fwd_hooks=patches)
        moved = seen[2] - cache[last]
        one = torch.nn.functional.one_hot(torch.tensor(7), 32).double().expand_as(moved)
        torch.testing.assert_close(moved, one, rtol=0, atol=1e-12)
        assert not torch.allclose(patched, alone)

        alone.sum().backward()
        gradient = model.get_parameter("embed.W_E").grad
        assert gradient is not None
        used = torch.zeros(len(gradient), dtype=torch.bool)
        used[tokens.unique()] = True
        assert (gradient[~used] == 0).all()
        assert (gradient[used] != 0).any()
    assert torch.equal(model(tokens), whole)


class Stop(Exception):
    """Raised inside a block."""


def test_everything_is_undone_after_an_exception(model, circuit, tokens):
    def stop(x, hook):
        raise Stop

    before = model(tokens)
    parameters = {name: (id(p), p.clone()) for name, p in model.named_parameters()}
    for stopping in ("blocks.0.hook_attn_out", "blocks.1.hook_mlp_out"):
        with pytest.raises(Stop), only_circuit(model, circuit):
            model.run_with_hooks(tokens, fwd_hooks=[(stopping, stop)])
        assert torch.equal(model(tokens), before)
        after = dict(model.named_parameters())
        assert list(after) == list(parameters)
        assert all(id(p) == parameters[n][0] for n, p in after.items())
        assert all(torch.equal(p, parameters[n][1]) for n, p in after.items())
        assert not any(
            point.fwd_hooks or point._forward_hooks for point in model.hook_dict.values()
        )
        assert model.attention == "auto"
        assert all(block.attn.row_sum_bias is None for block in model.blocks)
