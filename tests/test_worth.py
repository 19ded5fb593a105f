"""What parts are worth, and the circuit among smaller and larger ones, against sums by hand."""

from itertools import pairwise

import pytest
import torch
from test_auditing import (
    CONFIG,
    KIND,
    LEAK,
    MARK,
    QUIET,
    TASK,
    TRUTH,
    circuit_of,
    grow,
    neurons,
    run,
)

from tl_sparse.ablation import zero_references
from tl_sparse.auditing import MIB_SHARES
from tl_sparse.auditing.minimality import drop_one
from tl_sparse.auditing.sizes import add_one, over_sizes
from tl_sparse.auditing.subject import Subject
from tl_sparse.auditing.worth import worth


def subject_of(model, edges) -> Subject:
    return Subject(model, circuit_of(model, edges), TASK, zero_references(model), CONFIG)


def test_single_ablation_is_the_loss_of_a_model_without_the_part():
    model = grow(TRUTH + QUIET)
    nodes, edges = worth(subject_of(model, TRUTH), progress=False)
    assert len(edges) == len(TRUTH)
    batch = TASK.batch("test", [i * 48 // 32 for i in range(32)])

    def loss(weights) -> float:
        logits = grow(weights)(batch.tokens)[:, -1, :2]
        return torch.nn.functional.cross_entropy(logits, batch.correct).item()

    for (source, target, _), part in zip(TRUTH, sorted(edges, key=place), strict=True):
        assert part.part.startswith(f"{source} -> {target}")
        without = [e for e in TRUTH if e[:2] != (source, target)]
        assert part.ablation == pytest.approx(loss(without) - loss(TRUTH), abs=1e-6)
    (neuron,) = (each for each in nodes if each.part == "0.mlp_neuron.0")
    without = [e for e in TRUTH if "0.mlp_neuron.0" not in e[:2]]
    assert neuron.ablation == pytest.approx(loss(without) - loss(TRUTH), abs=1e-6)


def place(effect) -> int:
    ends = [(source, target) for source, target, _ in TRUTH]
    return next(i for i, (s, t) in enumerate(ends) if effect.part.startswith(f"{s} -> {t}"))


def test_parts_of_a_smooth_model_add_up_to_the_fall_in_loss():
    subject = subject_of(grow(TRUTH + QUIET), TRUTH)
    nodes, edges = worth(subject, progress=False)
    fall = subject.empty - subject.alone
    assert sum(part.integrated for part in nodes) == pytest.approx(fall, rel=0.02)
    assert sum(part.integrated for part in edges) == pytest.approx(fall, rel=0.02)


def test_a_chain_shares_by_integrated_gradients_what_each_link_is_worth_by_ablation():
    # unsure of anything, the loss is linear in the logits: here the product of six gates, and of
    # five weights' gates, and every link breaks the chain
    chain = LEAK + neurons(0)
    subject = subject_of(grow(chain, sure=1e-3), chain)
    nodes, edges = worth(subject, progress=False)
    for parts, n in ((nodes, 6), (edges, 4)):
        for part in parts:
            assert part.integrated / part.ablation == pytest.approx(1 / n, rel=0.03), part


def test_the_curve_over_sizes_ends_at_the_whole_model_and_gives_both_areas():
    model = grow(TRUTH + QUIET)
    subject = subject_of(model, TRUTH)
    curves: dict = {}
    measures = over_sizes(subject, drop_one(subject, progress=False), curves, progress=False)
    points = curves["share of the model's edges, gain kept"]
    assert [share for share, _ in points] == list(MIB_SHARES)
    assert points[-1][1] == 1.0
    assert points[0][1] == pytest.approx(0, abs=1e-6)  # no edge at all of 12
    half = dict(points)[0.5]  # 6 of the 8 needed
    assert half < 0.9
    area = sum((b - a) * (x + y) / 2 for (a, x), (b, y) in pairwise(points))
    assert measures["CPR"] == pytest.approx(area)
    assert measures["CMD"] >= abs(0.999 - measures["CPR"]) - 1e-9


def test_one_node_more_gives_back_what_is_missing():
    other = (f"0.attn_in.{KIND}", "0.k.0", 0.02)
    missing = [*(e for e in TRUTH if e[0] != f"0.attn_in.{MARK}"), other]
    subject = subject_of(grow([*TRUTH, other]), missing)
    curves: dict = {}
    add_one(subject, curves, progress=False)
    points = curves["one node more, test loss"]
    assert points[0] == (0.0, subject.alone)
    assert points[1][1] < 0.05 < subject.alone


def test_the_report_has_them():
    report = run(grow(TRUTH + QUIET), TRUTH)
    assert set(report.measures) == {"CPR", "CMD"}
    assert len(report.nodes) == 12
    assert len(report.edges) == len(TRUTH)
    assert "CPR: " in str(report)
    assert report.to_dict()["edges"][0].keys() == {"part", "ablation", "integrated"}
