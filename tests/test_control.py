"""The width search on made-up loss curves, whose answer is known."""

import math
import random

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


@pytest.mark.parametrize(("noise", "failures"), [(0.01, 0), (0.02, 3), (0.03, 12)])
def test_losses_that_jump_from_width_to_width_are_no_reason_to_give_up(noise, failures):
    """Of 300 made-up curves, each with a width within the tolerance: nearly all find one."""
    assert sum(gave_up(case, noise) for case in range(300)) <= failures


def gave_up(case: int, noise: float) -> bool:
    true_width = random.Random(case).randint(20, 120)

    def drawn(*what: object) -> float:
        return random.Random(str((case, *what))).gauss(0, noise)

    def loss_at(width: int, i: int) -> float:
        return 4.5 - 0.45 * math.log(width) + drawn(width, i)

    targets = [4.5 - 0.45 * math.log(true_width) + drawn(i) for i in range(3)]
    try:
        return abs(match_width(loss_at, targets, start=48).mean_gap) > 0.03
    except ValueError:
        return True


def test_no_more_widths_are_trained_than_allowed_and_all_are_looked_at():
    asked = []

    def loss_at(width: int, i: int) -> float:
        asked.append(width)
        return 3.3 if width == 48 else 3.0

    with pytest.raises(ValueError, match=r"after 1 tries .*: 48: 3.300"):
        match_width(loss_at, [3.0], start=48, max_widths=1)
    assert asked == [48]
    assert match_width(loss_at, [3.0], start=48, max_widths=2).width != 48
    far = []

    def bad(width: int, i: int) -> float:
        far.append(width)
        return 5.0

    with pytest.raises(ValueError, match="after 2 tries"):
        match_width(bad, [3.0], start=48, max_widths=2)
    assert max(far) <= 3 * 48
