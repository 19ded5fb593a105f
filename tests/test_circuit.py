"""Circuits as data: order, rules, exact files."""

import json
import math
from dataclasses import replace

import pytest

from tl_sparse.circuit import Circuit, Edge, Node, Site, edge_order

IN, NEURON, OUT = Site(0, "mlp_in"), Site(0, "mlp_neuron"), Site(0, "mlp_out")
READ, HIDDEN, WRITE = Node(IN, 3), Node(NEURON, 1), Node(OUT, 0)
EDGES = (Edge(READ, HIDDEN, 0.1), Edge(HIDDEN, WRITE, -1 / 3))


def a_circuit(**changes) -> Circuit:
    values = {
        "nodes": (WRITE, READ, HIDDEN),
        "edges": EDGES,
        "references": {IN: (0.0, 1e-30, 2.0, 1 / 3), NEURON: (0.5, 0.25), OUT: (1.0,)},
        "task": "toy",
        "model_hash": "abc",
        "target_loss": 0.15,
        "losses": {"test": 0.1, "model_test": math.nan},
        "curve": ((3, 0.1), (4, 0.05)),
        "provenance": {"seed": 1},
    }
    return Circuit(**(values | changes))


def test_nodes_stand_in_the_order_of_the_forward_pass():
    circuit = a_circuit()
    assert [str(n) for n in circuit.nodes] == ["0.mlp_in.3", "0.mlp_neuron.1", "0.mlp_out.0"]
    assert circuit.n_nodes == 3
    assert circuit.n_edges == 2
    assert circuit.channels(IN) == (3,)
    assert circuit.into(WRITE) == (Edge(HIDDEN, WRITE, -1 / 3),)
    assert circuit.out_of(READ) == (Edge(READ, HIDDEN, 0.1),)
    assert sorted(reversed(circuit.edges), key=edge_order) == list(circuit.edges)


def test_the_input_of_the_unembedding_is_not_counted():
    final = Site(1, "final_in")
    circuit = a_circuit(
        nodes=(READ, Node(final, 0)), edges=(), references={IN: (0.0,) * 4, final: (0.0,)}
    )
    assert circuit.n_nodes == 1


def test_a_file_gives_the_same_circuit_to_the_last_bit(tmp_path):
    circuit = a_circuit()
    circuit.save(tmp_path / "c.json")
    again = Circuit.load(tmp_path / "c.json")
    assert again.references == circuit.references
    assert again.edges == circuit.edges
    assert math.isnan(again.losses["model_test"])
    assert again.to_json() == circuit.to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": (READ, HIDDEN)}, "joins a node that is not in the circuit"),
        ({"nodes": (READ, READ, HIDDEN, WRITE)}, "A node stands twice"),
        ({"references": {IN: (0.0,)}}, "no reference value for the node 0.mlp_in.3"),
        (
            {"edges": (*EDGES, Edge(READ, HIDDEN, 0.1))},
            r"The edge 0\.mlp_in\.3 -> 0\.mlp_neuron\.1 \(\+0\.1\) stands twice",
        ),
        ({"edges": (*EDGES, Edge(READ, HIDDEN, 0.2))}, "stands twice"),
        ({"edges": (Edge(READ, HIDDEN, math.nan),)}, "has no weight: it is a finite number"),
        ({"ablation": "bogus"}, "ablation is one of 'corpus_mean', .* got 'bogus'"),
        ({"n_interface": -3}, "n_interface is a non-negative finite integer, got -3"),
        ({"n_biases": -1}, "n_biases is a non-negative finite integer, got -1"),
        (
            {"references": {IN: (0.0,) * 4, NEURON: (0.0, math.nan), OUT: (1.0,)}},
            r"A reference value is a finite number, got nan for the node 0\.mlp_neuron\.1",
        ),
        ({"references": {IN: (0.0,) * 4, OUT: (math.inf,)}}, r"got inf for the node 0\.mlp_out\.0"),
    ],
)
def test_circuits_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        a_circuit(**changes)


def test_files_that_are_not_whole_circuits_are_refused(tmp_path):
    text = a_circuit().to_json()
    for end in range(0, len(text), 7):
        with pytest.raises(ValueError, match=r"cut short|not a circuit"):
            Circuit.from_json(text[:end])
    data = json.loads(text)
    for change, message in (
        ({"schema_version": 7}, "schema version 7, this tl_sparse reads 2"),
        ({"nodes": ["0.mlp_in.x"]}, "A node is written layer.site.channel"),
        ({"nodes": ["0.resid.3"]}, "A site is written layer.name"),
        ({"losses": None}, "damaged"),
        (
            {"edges": [["a"]]},
            r"damaged\. An edge is written \[source, target, weight\], got \['a'\]",
        ),
        ({"edges": [["0.mlp_in.3", "0.mlp_neuron.1", "x"]]}, r"damaged\. A number .* got 'x'"),
        ({"losses": {"test": "x"}}, r"damaged\. A number stands here .* got 'x'"),
        ({"target_loss": "0.1"}, r"damaged\. A number stands here .* got '0\.1'"),
        ({"curve": [[1]]}, r"damaged\. A point of a curve is written \[size, loss\], got \[1\]"),
        ({"n_interface": 1.5}, r"damaged\. A whole number stands here .* got 1\.5"),
        ({"n_biases": math.inf}, r"damaged\. A whole number stands here .* got inf"),
        ({"references": {"0.mlp_in": ["x"]}}, r"damaged\. A number stands here .* got 'x'"),
        ({"ablation": "bogus"}, r"damaged\. ablation is one of"),
        ({"edges": data["edges"] * 2}, r"damaged\. The edge .* stands twice"),
    ):
        with pytest.raises(ValueError, match=message):
            Circuit.from_json(json.dumps(data | change))
    with pytest.raises(ValueError, match="No circuit could be read from"):
        Circuit.load(tmp_path / "none.json")


def another_circuit(**changes) -> Circuit:
    """The same read into another neuron, beside the way of the first."""
    other = Node(NEURON, 0)
    edges = (Edge(READ, HIDDEN, 0.1), Edge(READ, other, 2.0), Edge(other, WRITE, 3.0))
    nodes = (READ, HIDDEN, other, WRITE)
    return a_circuit(nodes=nodes, edges=edges, task="other", **changes)


def test_circuits_combine_as_sets_of_edges_and_nodes():
    a, b = a_circuit(), another_circuit()
    assert {str(e) for e in (a & b).edges} == {"0.mlp_in.3 -> 0.mlp_neuron.1 (+0.1)"}
    assert set((a & b).nodes) == {READ, HIDDEN, WRITE}
    assert set((a | b).edges) == set(a.edges) | set(b.edges)
    assert set((a - b).edges) == {Edge(HIDDEN, WRITE, -1 / 3)}
    assert set((a - b).nodes) == {HIDDEN, WRITE}
    assert (a | b).task == "toy | other"
    assert math.isnan((a | b).target_loss)
    assert (a | b).losses == {}
    assert Circuit.from_json((a | b).to_json()) == a | b
    assert a.jaccard(b) == 1 / 4
    assert a.jaccard(b, of="nodes") == 3 / 4
    assert a.jaccard(a) == 1
    empty = a_circuit(nodes=(), edges=())
    assert (empty.jaccard(empty), empty.jaccard(a)) == (1, 0)


def test_circuits_of_two_models_do_not_combine():
    other = another_circuit(model_hash="def")
    for combine in (Circuit.__and__, Circuit.__or__, Circuit.__sub__, Circuit.jaccard):
        with pytest.raises(ValueError, match="toy and other are of different models"):
            combine(a_circuit(), other)
    with pytest.raises(ValueError, match='compares "edges" or "nodes", got \'paths\''):
        a_circuit().jaccard(a_circuit(), of="paths")


def test_circuits_do_not_combine_where_what_is_out_is_set_to_other_values():
    a = a_circuit()
    zero = replace(a, ablation="zero", references={s: (0.0,) * 4 for s in a.references})
    mean = replace(a, references={**a.references, NEURON: (0.5, 0.5)})
    for combine in (Circuit.__and__, Circuit.__or__, Circuit.__sub__):
        with pytest.raises(
            ValueError, match=r"under other ablations: .*'corpus_mean' and to 'zero'"
        ):
            combine(a, zero)
        with pytest.raises(
            ValueError, match=r"under other ablations: .*'zero' and to 'corpus_mean'"
        ):
            combine(zero, a)
        with pytest.raises(ValueError, match=r"0\.25 and 0\.5 for the node 0\.mlp_neuron\.1"):
            combine(a, mean)
    short = replace(a, nodes=(READ,), edges=(), references={IN: (0.0,) * 5})
    with pytest.raises(ValueError, match=r"4 and 5 of them for 0\.mlp_in"):
        Circuit.__or__(a, short)
    assert a.jaccard(zero) == 1  # which says nothing of how they are run


def test_reference_values_of_nodes_that_one_circuit_holds_alone_are_kept():
    a, final = a_circuit(), Site(0, "final_in")
    part = {IN: a.references[IN], final: (2.0,)}
    other = a_circuit(nodes=(READ, Node(final, 0)), edges=(), references=part)
    assert (a | other).references == (other | a).references == {**a.references, **part}
    rounded = {site: tuple(x * (1 + 1e-7) for x in xs) for site, xs in a.references.items()}
    assert (a & replace(a, references=rounded)).references == a.references


def test_circuits_from_other_prompts_combine_if_those_are_the_same():
    def drawn(seed: int) -> Circuit:
        noted = {"references": {"n_windows": 8, "seed": seed}}
        return a_circuit(ablation="resample_corpus", references={}, provenance=noted)

    assert (drawn(0) | drawn(0)).edges == EDGES
    with pytest.raises(ValueError, match=r"what is out from other prompts: .*'seed': 0.*'seed': 1"):
        Circuit.__or__(drawn(0), drawn(1))


def test_two_circuits_of_one_task_make_one_of_that_task():
    noted = {"answers": {"a": 1, "b": 2}, "stages": ["nodes"], "saes": {"0.mlp_in": "of it"}}
    settings = {"target_loss": 0.15, "n_surroundings": 2}
    a, b = (
        replace(circuit, task="toy", provenance=noted | {"pruning": settings | {"seed": seed}})
        for seed, circuit in enumerate((a_circuit(), another_circuit()))
    )
    names = ({str(READ): "the mark", str(WRITE): "yes"}, {str(READ): "the mark", str(WRITE): "no"})
    a, b = (replace(one, labels=some, groups=some) for one, some in zip((a, b), names, strict=True))
    b = replace(b, labels={**b.labels, "0.mlp_neuron.0": "another"}, forced=True)
    either = a | b
    assert (either.task, either.target_loss, either.forced) == ("toy", 0.15, True)
    assert either.provenance == {
        "answers": noted["answers"],
        "saes": noted["saes"],
        "pruning": settings,
        "combined": "toy | toy",
    }
    assert either.labels == {str(READ): "the mark", "0.mlp_neuron.0": "another"}
    assert either.groups == {str(READ): "the mark"}
    assert (a | a).labels == a.labels
    assert (a & b).labels == {str(READ): "the mark"}
    assert math.isnan((a | replace(b, target_loss=0.1)).target_loss)
    assert "answers" not in (a | replace(b, provenance={"answers": {"a": 3}})).provenance
    assert Circuit.from_json(either.to_json()) == either


def test_an_edge_of_both_is_known_by_its_ends():
    rounded = a_circuit(edges=(Edge(READ, HIDDEN, 0.1 + 1e-9), EDGES[1]))
    assert (a_circuit() | rounded).edges == EDGES
    assert (a_circuit() - rounded).edges == ()
    assert a_circuit().jaccard(rounded) == 1


def test_the_line_of_a_circuit_says_what_is_known_of_it():
    a = a_circuit(losses={"test": 0.1, "model_test": 0.05})
    size = "Circuit(toy: 3 nodes, 2 edges; "
    known = "test loss 0.100 against 0.050 of the whole model, target 0.15; not audited)"
    assert repr(a) == size + known
    assert repr(a & a) == f"{size}not evaluated, target 0.15; not audited)"
    alone = replace(a, losses={"test": 0.1, "model_test": math.nan}, target_loss=math.nan)
    assert repr(alone) == f"{size}test loss 0.100, no target; not audited)"


def test_a_circuit_becomes_a_graph_with_the_residual_stream_on_request():
    query, key = Node(Site(1, "q"), 2), Node(Site(1, "k"), 2)
    again, elsewhere = Node(Site(1, "attn_in"), 0), Node(Site(1, "attn_in"), 1)
    a = a_circuit()
    circuit = a_circuit(
        nodes=(*a.nodes, again, elsewhere, query, key),
        edges=(*a.edges, Edge(again, query, 1.5)),
        references={**a.references, Site(1, "attn_in"): (0.0,) * 2, query.site: (0.0,) * 3,
                    key.site: (0.0,) * 3},
    )  # fmt: skip
    graph = circuit.to_networkx()
    assert set(graph.nodes) == {str(node) for node in circuit.nodes}
    assert graph.edges["0.mlp_neuron.1", "0.mlp_out.0"] == {"weight": -1 / 3, "kind": "weight"}
    assert graph.number_of_edges() == 3
    assert graph.nodes["0.mlp_in.3"] == {"layer": 0, "site": "mlp_in", "channel": 3,
                                         "reference": 1 / 3}  # fmt: skip
    whole = circuit.to_networkx(residual=True)
    added = set(whole.edges) - set(graph.edges)
    assert added == {("0.mlp_out.0", "1.attn_in.0"), ("1.q.2", "1.k.2")}
    assert whole.edges["0.mlp_out.0", "1.attn_in.0"] == {"weight": 1.0, "kind": "residual"}
    assert whole.edges["1.q.2", "1.k.2"] == {"kind": "qk"}
