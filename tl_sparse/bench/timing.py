"""Candidates run in turn, and what their times say.

1. `measure` sets all candidates up and runs each once, untimed. One that takes less than `SHORT`
   seconds is called several times in a round, and a value is then the mean of these calls.
2. Rounds: every candidate once, always in the same order, until there are `repeats` rounds or
   `seconds` have passed.
3. `Result.rows`: median and quartiles of a candidate's values, and of value / baseline's value in
   the same round: what slows a whole round down drops out of the ratio.
"""

import math
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

Run = Callable[[], Any]
"""Does a candidate's work once."""

SHORT = 2e-3
"""Seconds that a timing lasts at least: enough for the clock, and for a GPU's launch queue."""

FEWEST_ROUNDS = 3
"""Rounds that are run whatever the budget: fewer have no quartiles."""


@dataclass(frozen=True)
class Candidate:
    """One way to do the work of a measurement."""

    name: str
    prepare: Callable[[], AbstractContextManager[Run]]
    """Sets up what is not measured and gives what is: `with prepare() as run: run()`."""
    n_units: int = 1
    """Units of work, such as steps, in one call; values are per unit."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Candidates for the same work; the first is the baseline."""

    kind: str
    """What is measured, a name of `tl_sparse.bench.settings.KIND_NAMES`."""
    size: str
    candidates: tuple[Candidate, ...]
    case: str = ""
    """What else sets it apart: a density, a width."""
    unit: str = "s"
    """"s" is timed; of anything else each run gives the value itself."""
    max_rounds: int | None = None
    """Rounds at most, below the settings': for what is slow or always gives the same."""

    @property
    def label(self) -> str:
        """Kind, size and case."""
        return " ".join(filter(None, (self.kind, self.size, self.case)))


class Row(NamedTuple):
    """One candidate of a measurement; each triple is first quartile, median, third quartile."""

    name: str
    n_rounds: int
    value: tuple[float, float, float]
    ratio: tuple[float, float, float] | None
    """Against the baseline, round by round; None where the baseline has no value."""


@dataclass
class Result:
    """The values of one measurement."""

    measurement: Measurement
    values: dict[str, list[float]] = field(default_factory=dict)
    """Every value of each candidate, in the order of the rounds; per unit of work."""
    calls: dict[str, int] = field(default_factory=dict)
    """Calls of which each value is the mean."""
    note: str = ""
    """Why there are fewer values than asked for, if there are."""

    @property
    def baseline(self) -> str:
        """The candidate that the others are compared with."""
        return self.measurement.candidates[0].name

    def rows(self) -> list[Row]:
        """Give median and quartiles of every candidate that has a value."""
        found = []
        base = self.values.get(self.baseline, [])
        for name, values in self.values.items():
            if not values:
                continue
            # Cut off in a round, the last ones have a value less.
            ratios = [v / b for v, b in zip(values, base, strict=False) if b > 0]
            ratio = quartiles(ratios) if ratios else None
            found.append(Row(name, len(values), quartiles(values), ratio))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain JSON values."""
        one = self.measurement
        return {
            "kind": one.kind,
            "size": one.size,
            "case": one.case,
            "unit": one.unit,
            "baseline": self.baseline,
            "note": self.note,
            "candidates": [
                {
                    "name": row.name,
                    "median": row.value[1],
                    "quartiles": [row.value[0], row.value[2]],
                    "ratio": row.ratio and row.ratio[1],
                    "ratio_quartiles": row.ratio and [row.ratio[0], row.ratio[2]],
                    "calls": self.calls.get(row.name, 1),
                    "values": self.values[row.name],
                }
                for row in self.rows()
            ],
        }


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Give first quartile, median and third quartile; of one value, three times that.

    Examples:
        >>> quartiles([4.0, 1.0, 2.0, 3.0, 5.0])
        (2.0, 3.0, 4.0)
    """
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def clock_of(device: torch.device) -> Callable[[], float]:
    """Give a clock that first waits until the device has done all its work."""
    if device.type != "cuda":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def measure(
    measurement: Measurement, *, repeats: int, seconds: float, clock: Callable[[], float]
) -> Result:
    """Run the candidates in turn; Ctrl-C or want of memory keeps what there is, with a note."""
    result = Result(measurement, {one.name: [] for one in measurement.candidates})
    rounds = min(repeats, measurement.max_rounds or repeats)
    timed = measurement.unit == "s"
    try:
        with ExitStack() as stack:
            runs = {
                one.name: (one, stack.enter_context(one.prepare()))
                for one in measurement.candidates
            }
            for one, run in runs.values():
                result.calls[one.name] = _calls(run, clock) if timed else 1
            began = clock()
            for done in range(rounds):
                if done >= FEWEST_ROUNDS and clock() - began > seconds:
                    break
                for one, run in runs.values():
                    n = result.calls[one.name]
                    value = _mean_time(run, n, clock) if timed else run()
                    result.values[one.name].append(value / one.n_units)
    except KeyboardInterrupt:
        result.note = "interrupted"
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        result.note = "out of memory"
    return result


def _calls(run: Run, clock: Callable[[], float]) -> int:
    """Run once to warm up, and tell how many calls a timing needs."""
    if _mean_time(run, 1, clock) >= SHORT:
        return 1
    return max(1, math.ceil(SHORT / max(_mean_time(run, 1, clock), 1e-6)))


def _mean_time(run: Run, n_calls: int, clock: Callable[[], float]) -> float:
    began = clock()
    for _ in range(n_calls):
        run()
    return (clock() - began) / n_calls


def _out_of_memory(error: Exception) -> bool:
    # On the CPU torch raises a plain RuntimeError.
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)
