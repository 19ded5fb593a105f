"""The width search on made-up loss curves, whose answer is known."""

import math

import pytest

from tl_sparse.control import match_width


def curve(slope: float, noise: tuple[float, ...] = (0.0, 0.0, 0.0)):
    """Loss 4 at width 64, falling by `slope` for each doubling; seeds differ by `noise`."""
    asked = []

    def loss_at(width: int, i: int) -> float:
        asked.append((width, i))
        return 4 - slope * math.log2(width / 64) + noise[i]

    return loss_at, asked


@pytest.mark.parametrize("slope", [0.1, 0.3, 0.8])
@pytest.mark.parametrize("true_width", [20, 47, 100])
@pytest.mark.parametrize("start", [32, 64, 96])
def test_the_width_found_is_within_the_tolerance(slope, true_width, start):
    loss_at, asked = curve(slope, (0.02, -0.01, -0.01))
    target = 4 - slope * math.log2(true_width / 64)
    match = match_width(loss_at, [target] * 3, start=start)
    assert abs(match.mean_gap) <= 0.03
    assert match.gaps == pytest.approx(
        [d - t for d, t in zip(match.losses, match.target_losses, strict=True)]
    )
    assert len(asked) == len(set(asked))  # nothing is trained twice
    assert (match.width, 2) in asked
    assert dict(match.tried)[match.width] == match.losses[0]


def test_an_odd_first_seed_is_corrected_by_the_mean():
    loss_at, _ = curve(0.3, (0.15, -0.02, -0.02))
    target = 4 - 0.3 * math.log2(50 / 64)
    match = match_width(loss_at, [target] * 3, start=64)
    assert abs(match.mean_gap) <= 0.03


def test_a_target_that_no_width_reaches_is_refused_with_what_was_tried():
    def flat(width: int, i: int) -> float:
        return 4.0

    with pytest.raises(ValueError, match=r"No width comes within 0.03 nats of 3.000.*\d+: 4.000"):
        match_width(flat, [3.0, 3.0], start=64)


def test_a_target_that_even_the_narrowest_model_beats_is_refused():
    def good(width: int, i: int) -> float:
        assert width >= 1
        return 5 - 0.1 * width

    with pytest.raises(
        ValueError, match=r"after 3 tries \(width: .*: 1: 4.900, 2: 4.800, 6: 4.400"
    ):
        match_width(good, [6.0], start=6)
    with pytest.raises(ValueError, match="tolerance is a positive finite number, got -1"):
        match_width(good, [6.0], start=6, tolerance=-1)
