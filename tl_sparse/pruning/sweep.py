"""A method's whole curve, edges against loss: what one ranking of the nodes gives at every size.

`prune` stops at a target; to compare methods on one plot, `sweep` ranks the nodes once and judges
the nested selections from a single node up to the whole model, each with all weights between its
nodes. Stage two and the clean-up aim at a target and have no part in it: run `prune` at several
targets for those.
"""

from dataclasses import dataclass

from tqdm import tqdm
from transformer_lens import HookedTransformer

from tl_sparse.ablation import References
from tl_sparse.config import PruningConfig
from tl_sparse.pruning.learning import learn_nodes
from tl_sparse.pruning.others import check_arguments, check_lengths
from tl_sparse.pruning.prune import frozen_parameters
from tl_sparse.pruning.scores import score_nodes
from tl_sparse.pruning.sizes import grid, nested_nodes
from tl_sparse.pruning.trial import Trial
from tl_sparse.rules import checks_itself
from tl_sparse.sites import site_map
from tl_sparse.tasks import Split, Task


@dataclass(frozen=True)
class SweepPoint:
    """One size of a sweep."""

    n_nodes: int
    n_edges: int
    loss: float
    """Task loss, in nats."""


@dataclass(frozen=True)
class Sweep:
    """The curve of one method on one task."""

    task: str
    method: str
    split: Split
    """The examples that the losses are of."""
    points: tuple[SweepPoint, ...]
    """From few nodes to many; the loss need not fall from one to the next."""

    def running_minimum(self) -> tuple[SweepPoint, ...]:
        """Give the points that no smaller or equal one beats, in the order of their edges."""
        best: list[SweepPoint] = []
        for point in sorted(self.points, key=lambda p: (p.n_edges, p.loss)):
            if not best or point.loss < best[-1].loss:
                best.append(point)
        return tuple(best)

    def n_edges_at(self, target_loss: float) -> int | None:
        """Give the fewest edges that reach a loss, or None where no size does."""
        reached = [point.n_edges for point in self.points if point.loss <= target_loss]
        return min(reached, default=None)


@checks_itself
def sweep(
    model: HookedTransformer,
    task: Task,
    references: References,
    config: PruningConfig | None = None,
    *,
    split: Split = "test",
    ratio: float = 1.2,
    progress: bool = True,
) -> Sweep:
    """Rank the nodes by `config.method` and judge every size, each `ratio` times the last.

    Learned masks aim at `config.target_loss` while they are learned, as in `prune`.

    Raises:
        ValueError: If the references belong to another model, a prompt is too long, or the task has
            no other prompts of the kind that the ablation takes values from.
    """
    config = config or PruningConfig()
    check_arguments(model, task, references, config)
    check_lengths(model, task)
    with frozen_parameters(model):
        trial = Trial(model, task, site_map(model, final=config.mask_final), references)
        rank = learn_nodes if config.method == "learned" else score_nodes
        taus = rank(trial, config, progress)
        select = nested_nodes(trial, taus, tie_qk=config.tie_qk)
        points: list[SweepPoint] = []
        sizes = grid(1, sum(len(tau) for tau in taus.values()), ratio)
        for n in tqdm(sizes, desc=f"{task.name}: sizes", disable=not progress):
            kept = select(n)
            point = SweepPoint(kept.n_nodes, kept.n_edges, trial.loss(kept, split=split))
            if point not in points[-1:]:
                points.append(point)
    return Sweep(task.name, config.method, split, tuple(points))
