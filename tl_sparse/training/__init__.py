"""`train`: the sparse training loop, read top to bottom.

One step of Gao et al. 2025 (arXiv 2511.13653, sections 2.1 and A.2), with theta the parameters:

1. gradients of the mean next-token loss, brought to root mean square 1 over all entries,
2. a dense Adam step: gradients and moments are never masked, so zeroed weights can come back,
3. theta <- top-k of |theta| per matrix at this step's density (`schedules.density_at`),
4. theta <- theta - weight_decay x learning rate x theta on the matrices.

With `regrow_every` = N > 1, ours, steps after the annealing are like that only every N-th time. In
the steps between no weight comes back: 1. is made for live weights alone, 3. keeps the masks.

Order of the data, and hence the whole run on a CPU, is a function of (seed, step): a run that was
stopped and resumed gives bit for bit the weights of one that was not.
"""

from pathlib import Path

from tl_sparse.config import TrainingConfig
from tl_sparse.data import Corpus
from tl_sparse.history import History
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.threads import keep_freed_memory
from tl_sparse.training.interrupt import finish_step_on_interrupt
from tl_sparse.training.losses import mean_loss, next_token_loss
from tl_sparse.training.objective import Objective
from tl_sparse.training.run import DivergedError, TrainingRun
from tl_sparse.training.saving import steps_done, stopped_early

__all__ = [
    "DivergedError", "Objective", "TrainingRun", "mean_loss", "next_token_loss", "steps_done",
    "stopped_early",
    "train",
]  # fmt: skip


def train(
    model: HookedSparseTransformer,
    corpus: Corpus,
    config: TrainingConfig | None = None,
    *,
    folder: str | Path | None = None,
    progress: bool = True,
    objective: Objective | None = None,
) -> History:
    """Train a model in place on a corpus and give the log.

    With a `folder`, the run writes `log.jsonl` and a checkpoint there, at intervals and on Ctrl-C;
    a second call with the same folder, config, corpus and a freshly built model goes on where the
    first was stopped, or returns at once if it had ended. `folder/checkpoint/model` is a model
    folder like any other. When the densities are annealed, weights masked in `model` start from
    fresh draws (`model.reopen_`); fine-tune a sparse model with `anneal="none"`. An `objective` of
    this model takes the place of its next-token loss.

    Raises:
        ValueError: If corpus and model do not fit, or the folder holds a run with other settings.
        DivergedError: If the loss becomes NaN or infinite.
        KeyboardInterrupt: On Ctrl-C, after the step in hand and the checkpoint.
    """
    keep_freed_memory()
    run = TrainingRun(model, corpus, config or TrainingConfig(), folder, progress, objective)
    with run.accelerated(), model.using_attention("auto"), finish_step_on_interrupt() as stop:
        while run.step < run.total:
            run.take_step()
            stop.requested = run.in_any_process(stop.requested)
            stopping = stop.requested and folder is not None
            if run.step % run.config.eval_every == 0 or run.step == run.total:
                run.evaluate()
            if run.step % run.config.checkpoint_every == 0 or run.step == run.total or stopping:
                run.checkpoint()
            if stop.requested:
                raise KeyboardInterrupt
    return History(tuple(run.records))
