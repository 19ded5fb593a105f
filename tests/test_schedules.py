"""Schedules against the figures that the paper's text and Figure 11 give."""

import math
from itertools import pairwise

import pytest

from tl_sparse.config import TrainingConfig
from tl_sparse.schedules import density_at, embedding_density_at, learning_rate_at, n_steps


def test_linear_annealing_is_straight_between_its_ends_and_exact_after():
    config = TrainingConfig(anneal_start=0.1, anneal_stop=0.5)
    path = [density_at(1 / 64, step, 1000, config) for step in range(1000)]
    assert path[:100] == [1.0] * 100
    assert path[499:] == [1 / 64] * 501
    assert path[299] == pytest.approx((1 + 1 / 64) / 2)
    assert all(a >= b for a, b in pairwise(path))


def test_power_annealing_is_straight_in_log_log():
    config = TrainingConfig(anneal="power", anneal_start=0.01, anneal_stop=0.5)
    points = [(s + 1, density_at(1 / 64, s, 1000, config)) for s in (19, 79, 319)]
    slopes = [
        (math.log(b[1]) - math.log(a[1])) / (math.log(b[0]) - math.log(a[0]))
        for a, b in pairwise(points)
    ]
    assert slopes[0] == pytest.approx(slopes[1])
    assert density_at(1 / 64, 499, 1000, config) == 1 / 64
    assert density_at(1 / 64, 0, 1000, TrainingConfig(anneal="power", anneal_start=0.0)) == 1.0


def test_without_annealing_the_target_holds_from_the_first_step():
    assert density_at(0.1, 0, 100, TrainingConfig(anneal="none")) == 0.1


def test_sudden_embeddings_drop_at_once_half_way():
    config = TrainingConfig(anneal_embeddings="sudden", anneal_start=0.0, anneal_stop=0.5)
    path = [embedding_density_at(0.1, step, 100, config) for step in range(100)]
    assert path == [1.0] * 24 + [0.1] * 76


def test_the_sharkfin_of_figure_11():
    """Plateau near 1/8 of nominal after the warm-up, 0.505 at half-way, then linear to 0."""
    config = TrainingConfig(learning_rate=1.0, anneal_start=0.0)
    at = {
        p: learning_rate_at(1 / 64, int(p * 10_000) - 1, 10_000, config)
        for p in (0.02, 0.5, 0.75, 1)
    }
    assert at[0.02] == pytest.approx(0.127, abs=0.003)
    assert at[0.5] == pytest.approx(0.505, abs=0.001)
    assert at[0.75] == pytest.approx(0.2525, abs=0.001)
    assert at[1] == 0


def test_a_dense_model_has_no_sharkfin_and_constant_rates_stay():
    config = TrainingConfig(learning_rate=2.0, learning_rate_decay="constant")
    assert learning_rate_at(1.0, 500, 1000, config) == 2.0
    assert learning_rate_at(1.0, 4, 1000, config) == pytest.approx(1.0)


def test_steps_are_rounded_up():
    assert n_steps(TrainingConfig(n_tokens=1001, batch_size=10), 10) == 11
