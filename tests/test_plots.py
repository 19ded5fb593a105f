"""Plotly figures: their numbers against computations of their own, their texts against Plotly."""

import math
from dataclasses import replace
from html import unescape
from typing import Any

import plotly.graph_objects as go
import pytest
import torch
from conftest import make_model
from test_ablation import whole_circuit
from test_audit_page import REPORT
from test_report import HOSTILE
from transformer_lens import HookedTransformer

from tl_sparse import plots
from tl_sparse.auditing import AuditReport
from tl_sparse.circuit import Circuit, Site
from tl_sparse.config import SparsityConfig
from tl_sparse.history import History
from tl_sparse.markup import PALETTE
from tl_sparse.pruning import Sweep
from tl_sparse.pruning.sweep import SweepPoint

LOSSES = {"validation": 0.14, "test": 0.16, "model_validation": 0.05}
CURVE = ((40, 0.1), (3, 0.6), (12, 0.2))
RECORDS = (
    {"tokens": 100, "loss": 5.0, "validation_loss": 4.5, "weight_density": 1.0},
    {"tokens": 200, "validation_loss": 4.0, "weight_density": 0.1},
    {"tokens": 300, "loss": 3.0, "validation_loss": 3.5, "weight_density": 0.02},
)


def circuit(**fields) -> Circuit:
    """A circuit without nodes, with the curve and losses of one."""
    given = {"task": "quotes", "losses": LOSSES, "edge_curve": CURVE, "target_loss": 0.15}
    return Circuit(nodes=(), edges=(), references={}, model_hash="-", **given | fields)


def traces(figure: go.Figure) -> dict[str, Any]:
    """The traces of a figure by what a reader sees as their names."""
    assert isinstance(figure, go.Figure)
    some: Any = figure.data
    names = [unescape(trace.name) for trace in some]
    assert len(set(names)) == len(names)
    return dict(zip(names, some, strict=True))


def test_sizes_tried_are_in_the_order_of_edges_and_the_circuit_is_a_mark():
    model = make_model(SparsityConfig(weight_density=0.2))
    whole = replace(whole_circuit(model), losses=LOSSES, edge_curve=CURVE)
    found = traces(plots.plot_loss_against_edges({"mine": whole}))
    assert list(found) == ["mine", "mine, circuit"]
    assert found["mine"].x == (3, 12, 40)
    assert found["mine"].y == (0.6, 0.2, 0.1)
    weights = [w for name, w in model.named_parameters() if name[:6] == "blocks" and "W_" in name]
    assert found["mine, circuit"].x == (sum(int(w.count_nonzero()) for w in weights),)
    assert found["mine, circuit"].y == (0.14,)
    assert "test loss 0.16" in found["mine, circuit"].hovertemplate


def test_targets_are_lines_and_a_sweep_of_a_method_stands_beside_circuits():
    points = (SweepPoint(2, 5, 0.7), SweepPoint(9, 60, 0.2))
    sweep = Sweep("quotes", "random", "test", points)
    easier = circuit(target_loss=0.3)
    figure = plots.plot_loss_against_edges({"a": circuit(), "b": easier, "random": sweep})
    assert [shape.y0 for shape in figure.layout.shapes] == [0.15, 0.3]
    assert traces(figure)["random"].x == (5, 60)
    assert traces(figure)["random"].y == (0.7, 0.2)
    assert figure.layout.xaxis.type == "log"


def test_without_a_mapping_names_are_the_tasks_and_count_where_they_recur():
    figure = plots.plot_loss_against_edges([circuit(), circuit(), circuit(task="sets")])
    assert [name for name in traces(figure) if "circuit" not in name] == [
        "quotes 1", "quotes 2", "sets"
    ]  # fmt: skip
    assert "quotes" in traces(plots.plot_loss_against_edges(circuit()))


def test_training_curves_are_the_records_that_have_them():
    figure = plots.plot_training({"mine": History(RECORDS)})
    validation, training, density = figure.data
    assert validation.x == density.x == (100, 200, 300)
    assert validation.y == (4.5, 4.0, 3.5)
    assert (training.x, training.y) == ((100, 300), (5.0, 3.0))
    assert density.y == (1.0, 0.1, 0.02)
    assert (figure.layout.yaxis.type, figure.layout.yaxis3.type) == (None, "log")
    assert [trace.showlegend for trace in figure.data] == [True, False, False]
    assert len(plots.plot_training([History(RECORDS), History(())]).data) == 6


def test_densities_are_those_of_the_parameters():
    model = make_model(SparsityConfig(weight_density=0.2, bigram_table=True))
    figure = plots.plot_density(model)
    shown = {
        unescape(name): (share, entries[0])
        for trace in figure.data
        for name, share, entries in zip(trace.y, trace.x, trace.customdata, strict=True)
    }
    for name, (share, n_nonzero) in shown.items():
        values = model.state_dict()[name.removesuffix(" (all zero)")].flatten().tolist()
        assert n_nonzero == sum(value != 0 for value in values)
        assert share == (n_nonzero / len(values) or None)
    assert "bigram.table" in shown
    assert not any("b_" in name for name in shown)
    assert {trace.name: "embed.W_E" in trace.y for trace in figure.data} == {
        "masked": "embed.W_E" in model.weight_masks, "not masked": False
    }  # fmt: skip


def test_a_stock_models_density_is_plotted_and_what_is_all_zero_says_so():
    model = HookedTransformer(make_model().cfg)
    with torch.no_grad():
        model.blocks[0].mlp.W_in.zero_()
    figure = plots.plot_density(model)
    assert [trace.name for trace in figure.data] == ["not masked"]
    place = figure.data[0].y.index("blocks.0.mlp.W_in (all zero)")
    assert figure.data[0].x[place] is None
    assert figure.data[0].text[place] == "0"


@pytest.fixture
def sparse(corpus):
    return make_model(
        SparsityConfig(weight_density=0.3, activation_density=0.25), d_vocab=corpus.d_vocab
    )


def test_activations_are_counted_as_numpy_counts_them(sparse, corpus):
    sites = [Site(0, "mlp_neuron"), "1.attn_out"]
    found = plots.activation_histograms(sparse, corpus, sites, n_tokens=160, n_bins=7, batch_size=3)
    assert list(map(str, found)) == ["0.mlp_neuron", "1.attn_out"]
    windows = corpus.validation.windows(16, 10)
    _, cache = sparse.run_with_cache(windows)
    for site, hook in zip(found, ("blocks.0.mlp.hook_post", "blocks.1.hook_attn_out"), strict=True):
        values = cache[hook].detach().flatten().float().numpy()
        some = found[site]
        assert some.zeros == pytest.approx((values == 0).mean(), abs=1e-12)
        live = values[values != 0]
        low, high = min(values), max(values)
        counts = [
            ((live >= a) & ((live < b) if i < 6 else (live <= high))).sum()
            for i, (a, b) in enumerate(
                zip(some.bounds[:-1].numpy(), some.bounds[1:].numpy(), strict=True)
            )
        ]
        assert (some.bounds[0], some.bounds[-1]) == pytest.approx((low, high), abs=1e-6)
        # a value on a bound may fall to either side by rounding
        assert some.shares.tolist() == pytest.approx(
            [n / len(values) for n in counts], abs=2 / len(values)
        )
    assert found[Site(0, "mlp_neuron")].zeros == pytest.approx(0.75)


def test_bars_and_zeros_together_are_all_activations(sparse, corpus):
    figure = plots.plot_activations(sparse, corpus, n_tokens=64, n_bins=9)
    titles = [note.text for note in figure.layout.annotations]
    assert len(figure.data) == len(titles) == 16
    for bars, title in zip(figure.data, titles, strict=True):
        name, _, zeros = title.partition(": ")
        assert name == bars.name
        assert sum(bars.y) + float(zeros.split("%")[0]) / 100 == pytest.approx(1, abs=1e-3)
        assert len(bars.x) == len(bars.width) == 9
    assert figure.layout.yaxis16.type == "log"


def test_a_site_without_any_activation_has_no_bars(sparse, corpus):
    with torch.no_grad():
        sparse.blocks[1].mlp.W_out.zero_()
        sparse.blocks[1].mlp.b_out.zero_()
    found = plots.activation_histograms(sparse, corpus, ["1.mlp_out"], n_tokens=32)
    assert found[Site(1, "mlp_out")].zeros == 1
    assert not found[Site(1, "mlp_out")].shares.any()


def test_activations_of_a_stock_model_and_wrong_arguments(sparse, corpus):
    model = HookedTransformer(make_model(d_vocab=corpus.d_vocab).cfg)
    some = plots.activation_histograms(model, corpus, ["0.attn_in"], n_tokens=32)
    assert some[Site(0, "attn_in")].shares.sum() == pytest.approx(1)
    with pytest.raises(KeyError, match=r"no site 5\.mlp_in"):
        plots.plot_activations(sparse, corpus, [Site(5, "mlp_in")])
    with pytest.raises(ValueError, match="1 or more, got 8192, 0 and 16"):
        plots.activation_histograms(sparse, corpus, n_bins=0)
    with torch.no_grad():
        sparse.blocks[0].mlp.b_in[0] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        plots.activation_histograms(sparse, corpus, ["0.mlp_in", "1.mlp_in"], n_tokens=32)


def test_the_model_is_left_as_it_was(sparse, corpus, tokens):
    before = sparse(tokens)
    plots.plot_activations(sparse, corpus, ["0.q"], n_tokens=32)
    torch.testing.assert_close(sparse(tokens), before, rtol=0, atol=0)
    assert not any(point.fwd_hooks for point in sparse.hook_dict.values())


def test_an_audits_curves_are_drawn_by_what_lies_across():
    figure = plots.plot_audit(REPORT)
    places = [(unescape(t.name), t.xaxis, t.x) for t in figure.data]
    assert places[0] == ("loss", "x", (1.0, 3.0, 4.0))
    assert places[1] == ("empty", "x", (1.0,))
    assert (places[2][0], places[2][1]) == ("circuit", "x2")
    assert figure.layout.xaxis.title.text == "edges left"
    assert len({(t.line.color, t.line.dash) for t in figure.data}) == len(figure.data) == 4
    assert "2 holds, 2 fails, 4 not tested" in figure.layout.title.text
    assert plots.plot_audit(AuditReport("quotes", ())).data == ()


def test_a_curve_of_one_name_looks_alike_wherever_it_is_drawn():
    curves = {
        "edges, whole": [(1.0, 2.0)],
        "edges, loss": [(1.0, 3.0)],
        "nodes, loss": [(1.0, 4.0)],
    }
    drawn = plots.plot_audit(AuditReport("quotes", (), curves)).data
    assert [trace.name for trace in drawn] == ["whole", "loss", "loss"]
    assert drawn[1].line == drawn[2].line
    assert drawn[0].line != drawn[1].line
    assert [trace.showlegend for trace in drawn] == [True, True, False]


def test_texts_from_data_are_letters_to_plotly():
    evil = f"<b>{HOSTILE}</b><a href='http://evil.example'>x</a> &amp; $x^2$ %{{x}}"
    figures = [
        plots.plot_loss_against_edges({evil: circuit(task=evil)}),
        plots.plot_loss_against_edges([circuit(task=evil)]),
        plots.plot_training({evil: History(RECORDS)}),
        plots.plot_audit(REPORT),
    ]
    for figure in figures:
        texts = [trace.name for trace in figure.data]
        texts += [note.text for note in figure.layout.annotations]
        texts += [figure.layout.title.text or ""]
        assert any("&lt;" in text for text in texts)
        assert not any(set(text) & set("<>$\0\u202e") for text in texts)
        assert not any("evil" in trace.hovertemplate for trace in figure.data)
    assert unescape(figures[2].data[0].name).endswith("</a> &amp; $x^2$ %{x}")


def test_curves_are_told_apart_by_colour_and_by_dash():
    names = list("abcdefg")
    figure = plots.plot_training({name: History(RECORDS) for name in names})
    lines = [trace.line for trace in figure.data[::3]]
    assert tuple(line.color for line in lines[:6]) == PALETTE
    assert len({line.dash for line in lines[:6]}) == 6
    assert lines[6].color == PALETTE[0]
