"""Which SAEs? A small sweep over architectures, widths and L0, and a choice at equal L0.

1. for each setting train the SAEs of all sites, or open them (`train_saes`), in a folder of its
   own,
2. score them on validation text: each alone, and the loss with all at once,
3. of those whose mean L0 over the sites is at most what is asked for, take the one with the lowest
   loss when all are spliced in.

L0 is held because more latents at a token always explain more, and a circuit has to name them.
Nothing here looks at a task or a circuit: SAEs chosen by the size of their circuit would be judged
by what they were chosen by.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from tl_sparse.data import Corpus
from tl_sparse.files import write_text
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.sae_arm.scores import ArmScores, score_saes
from tl_sparse.sae_arm.training import SAESettings, train_saes

SLACK = 1.1
"""A BatchTopK or JumpReLU SAE is aimed at an L0 and misses it: up to a tenth more is let pass."""


@dataclass(frozen=True)
class SweepCell:
    """One setting of a sweep, and what came of it."""

    settings: SAESettings
    scores: ArmScores
    folder: Path
    """Where its SAEs are, for `load_saes`."""

    def row(self) -> dict[str, str]:
        """Give its line of the table."""
        scores, settings = self.scores, self.settings
        recovered = scores.loss_recovered
        return {
            "SAEs": settings.architecture,
            "latents / channel": str(settings.expansion),
            "L0 asked for": str(settings.l0),
            "mean L0": f"{scores.l0:.1f}",
            "mean explained variance": f"{scores.explained_variance:.3f}",
            "least loss recovered": "-" if recovered is None else f"{recovered:.3f}",
            "dead": f"{scores.dead_fraction:.0%}",
            "loss": f"{scores.loss:.3f}",
            "loss, all spliced": f"{scores.loss_spliced:.3f}",
        }


def sweep_saes(
    model: HookedSparseTransformer,
    corpus: Corpus,
    folder: str | Path,
    settings: Iterable[SAESettings],
    *,
    n_eval_windows: int = 64,
    progress: bool = True,
) -> list[SweepCell]:
    """Train and score every setting; what the folder has is opened, so a second run is instant.

    Raises:
        ValueError: If the folder has SAEs of other settings or of another model.
    """
    cells, folder = [], Path(folder)
    windows = corpus.validation.windows(model.cfg.n_ctx, n_eval_windows)
    for one in tqdm(list(settings), desc="sweep", disable=not progress):
        place = folder / one.name
        saes = train_saes(model, corpus, place, one, progress=progress)
        noted = place / f"scores-{n_eval_windows}.json"
        if noted.is_file():
            scores = ArmScores.from_dict(json.loads(noted.read_text(encoding="utf-8")))
        else:
            scores = score_saes(model, saes, windows, progress=progress)
            write_text(noted, json.dumps(scores.to_dict(), indent=1) + "\n")
        cells.append(SweepCell(one, scores, place))
    return cells


def choose(cells: Sequence[SweepCell], l0: float) -> SweepCell:
    """Give the cell with the lowest loss with all SAEs spliced in, among those of an L0 or less.

    Raises:
        ValueError: If none has so low an L0.
    """
    within = [cell for cell in cells if cell.scores.l0 <= SLACK * l0]
    if not within:
        lowest = min((cell.scores.l0 for cell in cells), default=float("nan"))
        raise ValueError(
            f"No SAEs of the sweep have a mean L0 of {l0} or less; the lowest is {lowest:.1f}."
        )
    return min(within, key=lambda cell: cell.scores.loss_spliced)


def sweep_table(cells: Sequence[SweepCell]) -> list[dict[str, str]]:
    """Give the table of a sweep as text, the lowest loss first."""
    return [cell.row() for cell in sorted(cells, key=lambda cell: cell.scores.loss_spliced)]
