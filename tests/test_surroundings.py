"""Stochastic ablation: what is left in, what gradients see, and a trap that only it avoids."""

from dataclasses import replace

import pytest
import torch
from test_auditing import PRUNING, QUIET, TASK, TRUTH, circuit_of, grow, neurons

from tl_sparse import prune, site_map
from tl_sparse.ablation import gated, select_circuit, zero_references
from tl_sparse.config import PruningConfig
from tl_sparse.pruning.surroundings import SHARES, draw_surroundings, opened
from tl_sparse.pruning.trial import Trial
from tl_sparse.selection import nonzero_weights


def test_gates_of_one_stay_and_gates_of_zero_open_with_the_drawn_share():
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(40):
        gate = torch.cat([torch.ones(100), torch.zeros(4000)]).requires_grad_()
        found = opened({"a": gate}, generator)["a"]
        assert found[:100].eq(1).all()
        share = found[100:].mean().item()
        nearest = min(SHARES, key=lambda s: abs(s - share))
        assert share == pytest.approx(nearest, abs=0.04)
        seen.add(nearest)
        # what is there anyway has no gradient; all else has one of 1
        (slope,) = torch.autograd.grad(found.sum(), gate)
        assert torch.equal(slope[100:], 1 - found[100:].detach())
    assert seen == set(SHARES)


def test_a_trial_with_surroundings_gives_the_mean_over_them_if_it_is_worse():
    model = grow(TRUTH + QUIET)
    sites, refs = site_map(model), zero_references(model)
    weights = nonzero_weights(model, sites)
    kept = select_circuit(circuit_of(model, TRUTH[:-1]), sites, torch.device("cpu"))
    found = Trial(model, TASK, sites, refs, n_surroundings=7, seed=3).loss(kept, split="test")
    batch, losses = TASK.batch("test"), []
    like = torch.ones(())
    for part in draw_surroundings(sites, weights, 7, seed=3):
        nodes = {s: gate.logical_or(part.nodes[s]).float() for s, gate in kept.nodes.items()}
        edges = {
            joint: gate.logical_or(part.edges[joint]).float()
            for joint, gate in kept.edge_gates(like, weights).items()
        }
        with gated(model, sites, nodes, refs.values, edges):
            logits = model(batch.tokens)[:, -1, :2]
        losses.append(torch.nn.functional.cross_entropy(logits, batch.correct).item())
    alone = Trial(model, TASK, sites, refs).loss(kept, split="test")
    assert found == pytest.approx(max(alone, sum(losses) / 7), rel=1e-5)
    assert len({round(loss, 5) for loss in losses}) > 1


CANCELLED = TRUTH + neurons(2, size=2.4) + neurons(4, size=-2.4)
"""The answer's neurons, and others twice as strong that agree and that undo it."""


def cost_beside(model, circuit) -> float:
    """The mean loss beside many random parts of the rest, not those that were pruned beside."""
    sites = site_map(model)
    kept = select_circuit(circuit, sites, torch.device("cpu"))
    trial = Trial(model, TASK, sites, zero_references(model), n_surroundings=50, seed=99)
    return trial.loss(kept, split="test")


def test_beside_random_parts_a_circuit_includes_what_would_undo_it():
    model = grow(CANCELLED)
    refs = zero_references(model)
    alone = prune(model, TASK, refs, PRUNING, progress=False)
    beside = prune(model, TASK, refs, replace(PRUNING, n_surroundings=10), progress=False)
    assert alone.n_edges == len(TRUTH)
    assert cost_beside(model, beside) < cost_beside(model, alone) / 2
    assert beside.provenance["pruning"]["n_surroundings"] == 10
    assert beside.losses["validation"] <= PRUNING.target_loss
    again = prune(model, TASK, refs, replace(PRUNING, n_surroundings=10), progress=False)
    assert again.edges == beside.edges


def test_the_number_of_surroundings_is_checked():
    with pytest.raises(ValueError, match="n_surroundings"):
        PruningConfig(n_surroundings=-1)
