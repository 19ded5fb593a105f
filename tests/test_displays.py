"""What notebooks show of circuits, histories, models and comparisons."""

import re
from dataclasses import replace

import pytest
from conftest import make_model
from test_report import EDGES, HOSTILE, TAGS, Page, model, some_circuit  # noqa: F401

from tl_sparse import displays
from tl_sparse.auditing import AuditReport
from tl_sparse.circuit import Circuit
from tl_sparse.config import SparsityConfig
from tl_sparse.control import WidthMatch
from tl_sparse.history import History
from tl_sparse.sweeps import Comparison, Outcome, Summary

LOSSES = {"test": 0.1234, "model_test": 0.0567, "test_accuracy": 0.975}
RECORDS = (
    {"tokens": 10, "loss": 4.5, "validation_loss": 4.25, "weight_density": 1.0},
    {"tokens": 30, "loss": 3.5, "validation_loss": 3.125, "weight_density": 0.03},
)


@pytest.fixture
def circuit(model) -> Circuit:  # noqa: F811
    return some_circuit(model, EDGES, task=HOSTILE, losses=LOSSES, target_loss=0.15)


def shown(each) -> tuple[Page, str]:
    """What a notebook is given, parsed, and its text."""
    parsed = Page(each._repr_html_())
    assert parsed.open == []
    assert set(parsed.tags) <= TAGS | {"span", "code", "h3"}
    assert not any(
        name.startswith("on") or name in ("href", "src") for name, _ in parsed.attributes
    )
    return parsed, re.sub(r"\s+", " ", "".join(parsed.text))


def test_a_circuit_shows_sizes_losses_its_drawing_and_that_it_is_not_audited(circuit):
    parsed, text = shown(circuit)
    assert "Circuit for </pre></title><script>alert(1)" in text
    for words in ("edges5", "nodes8", "test0.123", "whole model, test0.0567", "target loss0.15"):
        assert words in text
    assert "Not audited here." in text
    assert "audit(model, circuit, task, corpus)" in text
    assert "weight +3.25" in text
    assert "mlp_neuron" in text
    assert "failed the task's gate" not in text
    assert "failed the task's gate" in shown(replace(circuit, forced=True))[1]
    assert parsed.tags.count("svg") == 5  # the drawing and the keys of its legend


def test_of_a_large_circuit_the_largest_edges_are_drawn_and_that_is_said(circuit, monkeypatch):
    monkeypatch.setattr(displays, "MAX_DRAWN", 2)
    _, text = shown(circuit)
    assert "The 2 largest of 5 edges are drawn." in text
    assert "weight +3.25" in text
    assert "weight -0.75" not in text


def test_latents_of_one_number_are_not_drawn_as_one_channel(circuit):
    drawn = circuit._repr_html_().split("<figcaption>")[0]
    latents = replace(circuit, provenance={"saes": {}})._repr_html_().split("<figcaption>")[0]
    assert 'class="residual"' in drawn
    assert 'class="residual"' not in latents


def test_an_empty_circuit_says_so():
    empty = Circuit(nodes=(), edges=(), references={}, task="toy", model_hash="-")
    assert "The circuit has no nodes." in shown(empty)[1]
    assert "target loss-" in shown(empty)[1]


def test_a_history_shows_where_it_ended_and_its_curves():
    parsed, text = shown(History(RECORDS))
    for words in ("tokens30", "validation loss (nats per token)3.12", "weight density0.03"):
        assert words in text
    assert parsed.tags.count("circle") == 4
    assert "There is no validation loss" in shown(History(()))[1]


def test_a_model_shows_each_parameter_with_its_nonzeros_and_density():
    some = make_model(SparsityConfig(weight_density=0.25))
    parsed, text = shown(some.summary())
    assert parsed.tags.count("tr") == 1 + len(list(some.parameters())) + 3
    w_in = some.blocks[0].mlp.W_in
    n = sum(value != 0 for value in w_in.flatten().tolist())
    assert f"blocks.0.mlp.W_in32 x 64{n}{n / w_in.numel():.3g}" in text
    assert "2 layers, d_model 32" in text


def test_a_comparison_shows_its_figure_and_tables():
    about = {"preset": "tiny", "seeds": [0, 1], "done": 3, "cells": 4}
    rows = [{"target loss": 0.15, "sparse edges": [12.0, 8.0, 16.0]}]
    curves, axes = {"sparse": [(0.15, 12.0), (0.3, 5.0)]}, ("target loss (nats)", "edges")
    summary = Summary("compare", about, {"targets": rows, "models": []}, curves, axes)
    parsed, text = shown(summary)
    assert "A sparse model and its dense control" in text
    assert "Preset tiny, seeds 0, 1: 3 of 4 cells are done." in text
    assert "12 (8 to 16)" in text
    assert parsed.tags.count("circle") == 2
    assert parsed.tags.count("table") == 1
    whole = Comparison(summary, WidthMatch(8, (3.0,), (3.0,), ((8, 3.0),)), Outcome())
    assert whole._repr_html_() == summary._repr_html_()


def test_fragments_style_themselves_alone_and_follow_a_dark_page(circuit):
    report = AuditReport("quotes", ())
    for each in (circuit, History(RECORDS), make_model().summary(), report):
        fragment = each._repr_html_()
        assert fragment.startswith('<div class="tl-sparse"><style>.tl-sparse{')
        assert "prefers-color-scheme:dark" in fragment
        assert ":root" not in fragment
        assert "body{" not in fragment
