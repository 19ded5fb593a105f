"""Circuits as data: order, rules, exact files."""

import json
import math

import pytest

from tl_sparse.circuit import Circuit, Edge, Node, Site, edge_order

IN, NEURON, OUT = Site(0, "mlp_in"), Site(0, "mlp_neuron"), Site(0, "mlp_out")
READ, HIDDEN, WRITE = Node(IN, 3), Node(NEURON, 1), Node(OUT, 0)


def a_circuit(**changes) -> Circuit:
    values = {
        "nodes": (WRITE, READ, HIDDEN),
        "edges": (Edge(READ, HIDDEN, 0.1), Edge(HIDDEN, WRITE, -1 / 3)),
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
        ({"schema_version": 7}, "schema version 7, this tl_sparse reads 1"),
        ({"nodes": ["0.mlp_in.x"]}, "A node is written layer.site.channel"),
        ({"nodes": ["0.resid.3"]}, "A site is written layer.name"),
        ({"losses": None}, "damaged"),
    ):
        with pytest.raises(ValueError, match=message):
            Circuit.from_json(json.dumps(data | change))
    with pytest.raises(ValueError, match="No circuit could be read from"):
        Circuit.load(tmp_path / "none.json")
