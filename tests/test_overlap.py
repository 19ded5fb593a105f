"""Circuits side by side: shares counted by hand, and names that people gave."""

from dataclasses import replace

import pytest

from tl_sparse import Circuit, Edge, Node, Site
from tl_sparse.auditing import overlap

SITES = [Site(0, "mlp_in"), Site(0, "mlp_neuron"), Site(0, "mlp_out")]


def circuit(pairs: list[tuple[int, int]], task: str = "toy", model: str = "m") -> Circuit:
    """Edges from channels of the read to neurons."""
    edges = tuple(Edge(Node(SITES[0], a), Node(SITES[1], b), 1.0) for a, b in pairs)
    return Circuit(
        nodes=tuple({node for edge in edges for node in (edge.source, edge.target)}),
        edges=edges,
        references={site: (0.0,) * 8 for site in SITES},
        task=task,
        model_hash=model,
    )


A, B, C = (circuit(pairs) for pairs in ([(0, 0), (1, 1)], [(0, 0), (2, 1)], [(0, 0)]))


def test_shares_are_counted():
    found = overlap([A, B, C])
    assert found.jaccard()[0] == pytest.approx([1, 1 / 3, 1 / 2])
    assert found.jaccard("nodes")[1] == pytest.approx([3 / 5, 1, 1 / 2])
    counts = {str(part): n for part, n in found.counts().items()}
    assert counts["0.mlp_in.0"] == counts["0.mlp_neuron.0"] == 3
    assert counts["0.mlp_neuron.1"] == 2
    assert counts["0.mlp_in.2"] == 1
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    shared = found.shared()
    assert shared.edges == C.edges
    assert "in all: 1 edges, 2 nodes" in str(found)


def test_circuits_have_names():
    assert overlap([A, B]).names == ("toy 1", "toy 2")
    assert overlap([A, circuit([(0, 0)], "other")]).names == ("toy", "other")
    named = overlap({"<b>first</b>": A, "second": B})
    assert named.rows()[0]["second"] == "33% / 60%"
    assert "<b>" not in named._repr_html_()
    assert "&lt;b&gt;first&lt;/b&gt;" in named._repr_html_()


def test_circuits_under_other_ablations_are_compared_and_not_combined():
    found = overlap([A, replace(C, ablation="zero")])
    assert "in all: 1 edges, 2 nodes\n  0.mlp_in.0 -> 0.mlp_neuron.0 (+1)" in str(found)
    with pytest.raises(ValueError, match="under other ablations"):
        found.shared()


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="two circuits or more, got 1"):
        overlap([A])
    with pytest.raises(ValueError, match="different models"):
        overlap([A, circuit([(0, 0)], model="other")])
