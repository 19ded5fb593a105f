"""`compare`: a sparse model, its dense control of equal loss, and SAEs on that, by one pruner.

1. Train the main sparse model of the preset, once for each seed.
2. Find the width at which a dense model has its validation loss (`control.match_width`), in mean
   over the seeds: the dense control, as in the paper.
3. Prune every task at every target on both, and audit the circuits at the target of 0.15.
4. Train SAEs on the control, splice them in, and prune and audit every task among their latents, at
   the target of 0.15.

All of it is cells, so a comparison that was stopped goes on where it was.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tl_sparse.control import WidthMatch, match_width
from tl_sparse.rules import POSITIVE_NUMBER, checks_itself, maybe
from tl_sparse.sweeps.cells import Cell, ModelCell
from tl_sparse.sweeps.engine import Outcome, run_cells
from tl_sparse.sweeps.figures import Summary, comparison
from tl_sparse.sweeps.plans import arms_of, dense_model, sparse_model
from tl_sparse.sweeps.presets import Preset
from tl_sparse.sweeps.store import Store
from tl_sparse.sweeps.text import Text

START_WIDTH = 3 / 8
"""Of the sparse model's width: where the search for the control's begins."""


@dataclass(frozen=True)
class Comparison:
    """A sparse model, its dense control and SAEs on that, compared."""

    summary: Summary
    """Tables and figure; `save(folder)` writes JSON, Markdown and HTML."""
    match: WidthMatch
    """The control's width, its losses and the widths that were tried."""
    outcome: Outcome
    """What was done, and what failed or was left."""

    def _repr_html_(self) -> str:
        """Give what notebooks show: the summary's figure and tables."""
        return self.summary._repr_html_()


@checks_itself
def compare(
    folder: str | Path,
    preset: Preset,
    *,
    tolerance: float = 0.03,
    workers: int = 0,
    scheduler: str | None = None,
    hours: float | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare the main sparse model of a preset with its dense control, over tasks and targets.

    The paper's target of 0.15 is always among those: there circuits are audited.
    And with SAEs on the control, at the preset's `sae_targets`, unless its `saes` are None. Models,
    cells, text and results are kept in the folder; a second call goes on. `tolerance` is the
    largest mean gap in validation loss, in nats a token, that counts as equal. After `hours` no
    training and no pruning is begun.

    Raises:
        ValueError: If an argument is out of range, or no width has the sparse model's loss.
        RuntimeError: If a training fails or diverges, or the hours end before the control is found.
        KeyboardInterrupt: On Ctrl-C; what is done is kept.
    """
    POSITIVE_NUMBER.check("tolerance", tolerance)
    maybe(POSITIVE_NUMBER).check("hours", hours)
    if not preset.seeds:
        raise ValueError("A comparison is over at least one seed, and the preset has none.")
    end = None if hours is None else time.monotonic() + 3600 * hours
    store = Store(folder)
    text = preset.text(store.text_folder, progress=progress)
    how: dict[str, Any] = {"workers": workers, "scheduler": scheduler, "progress": progress}
    sparse = [sparse_model(preset, text, seed=seed) for seed in preset.seeds]
    aims = _losses(sparse, store, end, how)

    def loss_at(width: int, i: int) -> float:
        cell = dense_model(preset, text, seed=preset.seeds[i], width=width)
        return _losses([cell], store, end, how)[0]

    start = max(2, round(START_WIDTH * sparse[0].width))
    match = match_width(loss_at, aims, start=start, tolerance=tolerance)
    cells = _all_cells(preset, text, sparse, match.width)
    outcome = run_cells(cells, store, hours=_hours_left(end), **how)
    summary = comparison(preset, text, cells, store)
    summary = replace(summary, about=summary.about | {"width match": match.to_dict()})
    summary.save(store.folder)
    return Comparison(summary, match, outcome)


def _losses(
    cells: Sequence[ModelCell], store: Store, end: float | None, how: dict[str, Any]
) -> list[float]:
    """Train what is not trained, and give the validation losses."""
    outcome = run_cells(cells, store, hours=_hours_left(end), **how)
    for label, why in outcome.failed.items():
        raise RuntimeError(f"{label} failed: {why}")
    if outcome.n_left:
        raise RuntimeError(
            "The hours were over before the dense control was found: nothing is compared yet. "
            f"What is trained is kept in {store.folder}; the same call goes on."
        )
    losses = []
    for cell in cells:
        result = store.result(cell)
        assert result is not None
        if result.get("diverged"):
            raise RuntimeError(
                f"{cell.label} diverged, at a learning rate of {cell.training.learning_rate:g}: "
                "it has no loss to compare. Lower the preset's learning rate."
            )
        losses.append(result["validation_loss"])
    return losses


def _hours_left(end: float | None) -> float | None:
    """Give the hours until a moment, more than none."""
    return None if end is None else max(end - time.monotonic(), 1e-6) / 3600


def _all_cells(preset: Preset, text: Text, sparse: Sequence[ModelCell], width: int) -> list[Cell]:
    models: list[ModelCell] = []
    for model in sparse:
        models += [model, dense_model(preset, text, seed=model.training.seed, width=width)]
    return [*arms_of(preset, models, targets=preset.all_targets)]
