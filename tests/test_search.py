"""Calibration and the search over settings."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from test_pruning import QUICK, letters_task, planted_model

from tl_sparse import Circuit, prune
from tl_sparse.ablation import zero_references
from tl_sparse.config import SearchConfig
from tl_sparse.pruning import UnreachableTargetError, calibrate
from tl_sparse.pruning import search as run_search
from tl_sparse.pruning.search import _proposed  # pyright: ignore[reportPrivateUsage]
from tl_sparse.tasks import Pair, PairTask, Split
from tl_sparse.tasks.base import NEEDED

TASK = letters_task()
FAST = replace(QUICK, n_steps=12, n_edge_steps=5, target_loss=0.3)


# -- calibration -----------------------------------------------------------------------------------


def overlapping(n: int = 300, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the right and the wrong answer, among tokens 3 and 8, some of them misjudged."""
    generator = torch.Generator().manual_seed(seed)
    right = torch.randint(0, 2, (n,), generator=generator)
    answers = torch.stack([3 + 5 * right, 8 - 5 * right], 1)
    z = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    z[:, 0] += 0.4 + 0.5 * right
    return z, answers


def scipy_best(z: torch.Tensor, answers: torch.Tensor) -> tuple[float, np.ndarray]:
    margin = (z[:, 0] - z[:, 1]).numpy()
    side = np.where(answers[:, 0].numpy() == 3, 1.0, -1.0)

    def loss(x):
        return np.logaddexp(0, -(x[0] * margin + x[1] * side)).mean()

    found = minimize(
        loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}
    )
    return found.fun, found.x


def test_scale_and_shifts_are_those_that_scipy_finds():
    z, answers = overlapping()
    fitted = calibrate(z, answers)
    least, (scale, difference) = scipy_best(z, answers)
    assert fitted.loss(z, answers) == pytest.approx(least, abs=1e-8)
    assert fitted.scale == pytest.approx(scale, rel=1e-3)
    assert fitted.shifts[3] - fitted.shifts[8] == pytest.approx(difference, rel=1e-3)


def test_a_circuit_reports_its_calibrated_test_loss_beside():
    model = planted_model()
    circuit = prune(model, TASK, zero_references(model), QUICK, progress=False)
    fitted = circuit.provenance["calibration"]
    assert set(fitted["shifts"]) == {"b", "c"}
    margin = torch.tensor(circuit.losses["test"]).expm1().log().neg()  # all prompts alike
    shifts = fitted["shifts"]["b"] - fitted["shifts"]["c"]
    sides = [fitted["scale"] * margin + shifts, fitted["scale"] * margin - shifts]
    by_hand = torch.nn.functional.softplus(-torch.tensor(sides)).mean().item()
    assert circuit.losses["calibrated_test"] == pytest.approx(by_hand, rel=1e-3, abs=1e-6)
    assert circuit.losses["calibrated_test"] < circuit.losses["test"] <= 0.15


# -- search ----------------------------------------------------------------------------------------


def test_the_same_seed_and_budget_give_the_same_circuit_also_when_cut_in_two(tmp_path):
    model = planted_model()
    refs = zero_references(model)
    whole = run_search(model, TASK, refs, FAST, SearchConfig(n_trials=4), progress=False)
    again = run_search(model, TASK, refs, FAST, SearchConfig(n_trials=4), progress=False)
    assert whole.to_json() == again.to_json()
    folder = str(tmp_path)
    for n in (2, 4):
        parts = run_search(
            model, TASK, refs, FAST, SearchConfig(n_trials=n, folder=folder), progress=False
        )
    assert parts.to_json() == whole.to_json()
    kept = [Circuit.load(path) for path in sorted(tmp_path.glob("trial_*.json"))]
    assert min(one.n_edges for one in kept) == whole.n_edges
    first = prune(model, TASK, refs, FAST, progress=False)
    assert kept[0].to_json() == first.to_json()
    settings = [one.provenance["pruning"] for one in kept]
    assert len({one["learning_rate"] for one in settings}) == len(settings) == 4
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)  # nothing to unpickle
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".jsonl"}


def test_ctrl_c_keeps_the_best_circuit_and_the_search_goes_on_later(tmp_path, monkeypatch):
    model = planted_model()
    refs = zero_references(model)
    calls = []

    def interrupted_prune(*args, **kwargs):
        calls.append(args[3])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return prune(*args, **kwargs)

    module = sys.modules["tl_sparse.pruning.search"]
    monkeypatch.setattr(module, "prune", interrupted_prune)
    config = SearchConfig(n_trials=4, folder=str(tmp_path))
    circuit = run_search(model, TASK, refs, FAST, config, progress=False)
    assert circuit.provenance["search"] | {"trial": 0} == {
        "n_trials": 2, "seed": 0, "trial": 0, "interrupted": True,
    }  # fmt: skip
    rest = run_search(model, TASK, refs, FAST, config, progress=False)
    assert rest.provenance["search"]["n_trials"] == 4
    assert calls[3] == calls[2]  # the trial that was cut off is run again
    assert len(calls) == 5


def test_two_workers_share_the_budget(tmp_path):
    model = planted_model()
    config = SearchConfig(n_trials=3, n_workers=2, folder=str(tmp_path))
    circuit = run_search(model, TASK, zero_references(model), FAST, config, progress=False)
    assert circuit.provenance["search"]["n_trials"] == 3
    assert len(list(tmp_path.glob("trial_*.json"))) == 3
    assert circuit.losses["validation"] <= 0.3


def test_the_minutes_end_a_search(tmp_path):
    model = planted_model()
    config = SearchConfig(n_trials=10**6, minutes=1 / 60, folder=str(tmp_path))
    circuit = run_search(model, TASK, zero_references(model), FAST, config, progress=False)
    assert 1 <= circuit.provenance["search"]["n_trials"] < 20


def test_a_search_whose_trials_all_miss_the_target_says_so():
    model = planted_model()
    config = replace(FAST, target_loss=1e-9, n_steps=1)
    with pytest.raises(UnreachableTargetError, match=r"None of 2 trials.*the lowest is") as got:
        run_search(
            model, TASK, zero_references(model), config, SearchConfig(n_trials=2), progress=False
        )
    assert 0 < got.value.best_loss < 0.3


def test_what_cannot_be_searched_is_refused(tmp_path):
    model = planted_model()
    refs, budget = zero_references(model), SearchConfig(n_trials=1, folder=str(tmp_path))
    with pytest.raises(ValueError, match="needs a budget, n_trials or minutes"):
        SearchConfig()
    with pytest.raises(ValueError, match="n_trials is a positive"):
        SearchConfig(n_trials=0)
    with pytest.raises(ValueError, match="method='random' learns none"):
        run_search(model, TASK, refs, replace(FAST, method="random"), budget, progress=False)
    with pytest.raises(ValueError, match="0 has no surroundings"):
        run_search(model, TASK, refs, replace(FAST, k_coef=0.0), budget, progress=False)
    run_search(model, TASK, refs, FAST, budget, progress=False)
    with pytest.raises(ValueError, match="holds a search that differs in pruning"):
        run_search(model, TASK, refs, replace(FAST, n_steps=13), budget, progress=False)
    pairs: dict[Split, list[Pair]] = {split: list(TASK.pairs[split][1:]) for split in NEEDED}
    fewer = PairTask(TASK.name, pairs, tokenizer=TASK.tokenizer)
    with pytest.raises(ValueError, match="holds a search that differs in examples; its"):
        run_search(model, fewer, refs, FAST, budget, progress=False)
    ones = replace(refs, values={site: x + 1 for site, x in refs.values.items()})
    with pytest.raises(ValueError, match="holds a search that differs in references; its"):
        run_search(model, TASK, ones, FAST, budget, progress=False)


def test_proposals_stay_around_the_config():
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    proposed = [_proposed(study.ask(), replace(FAST, k_coef=1e-4)) for _ in range(40)]
    prices = [one.k_coef for one in proposed if one.k_coef != "adaptive"]
    assert 5 < len(prices) < 35
    assert all(1e-6 <= price <= 1e-2 for price in prices)
    assert max(prices) / min(prices) > 100
    same = {"target_loss", "n_steps", "seed", "edges", "batch_size", "betas"}
    assert all(getattr(one, name) == getattr(FAST, name) for one in proposed for name in same)
