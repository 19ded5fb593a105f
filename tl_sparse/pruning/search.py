"""`search`: prune again and again with other settings, and keep the smallest circuit.

The paper searches the price `k_coef` and the settings of its Table 2 anew for each task and model.
Here:

1. the first trial is `prune` with the given config, so that a search is never worse than none,
2. optuna's tree-structured Parzen estimator proposes price (fixed, or following the loss), learning
   rate, warm-up, noise and mean of the initial taus and temperature, in ranges around the config's,
3. each trial is a whole pruning and its score the number of edges; one that misses the target
   scores worse than the whole model, the more so the higher its loss,
4. trials stand in the folder as they end, a journal of JSON lines and a circuit each, so that a
   search stopped by its budget, by Ctrl-C or by a crash goes on where it was.
"""

import hashlib
import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformer_lens import HookedTransformer

from tl_sparse.ablation import References
from tl_sparse.circuit import Circuit
from tl_sparse.config import PruningConfig, SearchConfig
from tl_sparse.pruning.others import check_arguments
from tl_sparse.pruning.prune import UnreachableTargetError, check_gate, prune
from tl_sparse.rules import Rule, checks_itself
from tl_sparse.selection import nonzero_weights
from tl_sparse.sites import site_map
from tl_sparse.tasks import Task
from tl_sparse.tasks.base import NEEDED

JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class _Job:
    """What every worker of one search is given."""

    model: HookedTransformer
    task: Task
    references: References
    config: PruningConfig
    seed: int
    folder: Path
    limit: float
    """Trials that may have begun."""
    deadline: float
    """Time after which none begins."""


_SEARCH_CONFIG = Rule(
    "is a SearchConfig",
    lambda v: isinstance(v, SearchConfig),
    "It holds the budget: SearchConfig(n_trials=20).",
)


@checks_itself
def search(
    model: HookedTransformer,
    task: Task,
    references: References,
    config: PruningConfig,
    search_config: SearchConfig,
    *,
    force: bool = False,
    progress: bool = True,
) -> Circuit:
    """Find the smallest circuit over many settings of the pruning; the model is left as it was.

    Ctrl-C ends the search and gives the best circuit so far. A script that searches with several
    workers starts under `if __name__ == "__main__":`, since each is a fresh Python.

    Raises:
        TaskGateError: If the model's accuracy on the test examples is below `config.min_accuracy`.
        UnreachableTargetError: If no trial reaches `config.target_loss`.
        ValueError: If there is nothing to search, the folder holds another search, or `prune` would
            refuse its arguments.
    """
    check_arguments(model, task, references, config)
    _SEARCH_CONFIG.check("search_config", search_config)
    _check_searchable(model, config, search_config)
    whole, _ = check_gate(model, task, config, force=force)
    with _folder(search_config.folder) as folder, _quiet_optuna():
        study = _open(folder)
        _begin(study, model_config=(references, task, config))
        limit, deadline = _budget(search_config, n_failed=_count(study, "FAIL"))
        seed = search_config.seed
        job = _Job(model, task, references, config, seed, folder, limit, deadline)
        interrupted = _run(job, search_config, progress)
        return _best(job, search_config, interrupted, whole)


def _budget(search_config: SearchConfig, *, n_failed: int) -> tuple[float, float]:
    """Give how many trials may have begun, those that failed too, and until when."""
    limit = deadline = math.inf
    if search_config.n_trials is not None:
        limit = float(search_config.n_trials + n_failed)
    if search_config.minutes is not None:
        deadline = time.time() + 60 * search_config.minutes
    return limit, deadline


def _check_searchable(
    model: HookedTransformer, config: PruningConfig, search_config: SearchConfig
) -> None:
    if config.method != "learned":
        raise ValueError(
            f"search varies how masks are learned, and method={config.method!r} learns none. Call "
            "prune once instead."
        )
    if config.k_coef == 0:
        raise ValueError(
            "search looks for a price around k_coef, and 0 has no surroundings. Give a positive "
            'k_coef or "adaptive".'
        )
    device = next(model.parameters()).device
    if search_config.n_workers > 1 and device.type != "cpu":
        raise ValueError(
            f"n_workers={search_config.n_workers} are processes on the CPU, and the model is on "
            f"{device}. Use n_workers=1, or model.to('cpu')."
        )


@contextmanager
def _folder(given: str | None) -> Iterator[Path]:
    if given is not None:
        Path(given).mkdir(parents=True, exist_ok=True)
        yield Path(given)
        return
    with tempfile.TemporaryDirectory(prefix="tl_sparse_search_") as folder:
        yield Path(folder)


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


# -- the study on disk -----------------------------------------------------------------------------


def _open(folder: Path) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    return optuna.create_study(storage=storage, study_name="search", load_if_exists=True)


def _begin(study: Any, model_config: tuple[References, Task, PruningConfig]) -> None:
    """Name what is searched, or check it; close what a crash left open; queue the first trial."""
    references, task, config = model_config
    names = {
        "model_hash": references.model_hash,
        "task": task.name,
        "examples": _hash_of_examples(task),
        "ablation": references.ablation,
        "references": _hash_of_references(references),
        "pruning": config.to_dict() | {"betas": list(config.betas)},
    }
    held = study.user_attrs.get("of")
    if held is None:
        study.set_user_attr("of", names)
    elif held != names:
        differ = ", ".join(name for name in names if held.get(name) != names[name])
        raise ValueError(
            f"The folder holds a search that differs in {differ}; its trials can't be compared "
            "with these. Give another folder, or the same arguments to go on."
        )
    import optuna

    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    if not _count(study, "COMPLETE") and not _count(study, "WAITING"):
        study.enqueue_trial(_as_parameters(config))


def _hash_of_examples(task: Task) -> str:
    """Hash all that a task asks: the tensors of its batches."""
    digest = hashlib.sha256()
    for split in NEEDED:
        batch = task.batch(split)
        for name, value in sorted(getattr(batch, "__dict__", {"tokens": batch.tokens}).items()):
            if isinstance(value, Tensor):
                digest.update(f"{split} {name} {tuple(value.shape)}".encode())
                digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _hash_of_references(references: References) -> str:
    """Hash the values that nodes take when they are out, or where they come from."""
    digest = hashlib.sha256(json.dumps(dict(references.provenance), sort_keys=True).encode())
    for site, values in sorted(references.values.items()):
        digest.update(str(site).encode() + values.cpu().double().numpy().tobytes())
    return digest.hexdigest()[:16]


def _count(study: Any, *states: str) -> int:
    return sum(trial.state.name in states for trial in study.get_trials(deepcopy=False))


# -- one trial -------------------------------------------------------------------------------------


def _as_parameters(config: PruningConfig) -> dict[str, Any]:
    """Give a config as a point of the space that `_proposed` searches."""
    names = ("learning_rate", "warmup_fraction", "init_noise_bias", "heaviside_temperature")
    point = {name: getattr(config, name) for name in names}
    point |= {"init_noise_scale": config.init_noise_scale} if config.init_noise_scale else {}
    if config.k_coef == "adaptive":
        return point | {"adaptive": True}
    return point | {"adaptive": False, "k_coef": config.k_coef}


def _proposed(trial: Any, config: PruningConfig) -> PruningConfig:
    """Give the config with what a trial proposes in the place of its settings."""

    def around(name: str, value: float, factor: float) -> float:
        return trial.suggest_float(name, value / factor, value * factor, log=True)

    changes: dict[str, Any] = {"k_coef": "adaptive"}
    if not trial.suggest_categorical("adaptive", [True, False]):
        price = 1e-3 if config.k_coef == "adaptive" else config.k_coef
        changes["k_coef"] = around("k_coef", price, 100.0)
    changes["learning_rate"] = around("learning_rate", config.learning_rate, 10.0)
    if config.init_noise_scale:
        changes["init_noise_scale"] = around("init_noise_scale", config.init_noise_scale, 10.0)
    bias = config.init_noise_bias
    low, high = min(0.0, bias), max(0.5, bias)
    changes["init_noise_bias"] = trial.suggest_float("init_noise_bias", low, high)
    width = config.heaviside_temperature
    changes["heaviside_temperature"] = around("heaviside_temperature", width, 4.0)
    high = max(0.2, config.warmup_fraction)
    changes["warmup_fraction"] = trial.suggest_float("warmup_fraction", 0.0, high)
    return replace(config, **changes)


def _trial_file(folder: Path, number: int) -> Path:
    return folder / f"trial_{number:05d}.json"


def _work(job: _Job, worker: int = 0, bar: Any = None) -> None:
    """Run trials until the budget is spent; an interrupted one counts as not run."""
    import optuna

    study, failed = _open(job.folder), optuna.trial.TrialState.FAIL
    while time.time() < job.deadline:
        n_done = _count(study, "COMPLETE")
        if _count(study, "COMPLETE", "RUNNING", "FAIL") >= job.limit:
            break
        # A sampler for each trial, so that a search that goes on proposes what one in a row would.
        study.sampler = optuna.samplers.TPESampler(seed=(job.seed + n_done + 7919 * worker) % 2**32)
        trial = study.ask()
        try:
            if trial.number >= job.limit:  # another worker was faster
                study.tell(trial, state=failed)
                break
            study.tell(trial, _score(job, trial))
        except KeyboardInterrupt:
            study.tell(trial, state=failed)
            raise
        if bar is not None:
            bar.update()
            bar.set_postfix_str(_postfix(study))


def _score(job: _Job, trial: Any) -> float:
    """Prune with what a trial proposes, keep the circuit, and give its number of edges."""
    settings = _proposed(trial, job.config)
    arguments = (job.model, job.task, job.references, settings)
    try:
        circuit = prune(*arguments, force=True, progress=False)
    except UnreachableTargetError as error:
        trial.set_user_attr("best_loss", error.best_loss)
        weights = nonzero_weights(job.model, site_map(job.model))
        return sum(int(some.sum()) for some in weights.values()) * (1 + error.best_loss)
    circuit.save(_trial_file(job.folder, trial.number))
    trial.set_user_attr("validation", circuit.losses["validation"])
    trial.set_user_attr("n_edges", circuit.n_edges)
    if circuit.provenance.get("interrupted"):
        raise KeyboardInterrupt
    return float(circuit.n_edges)


# -- all trials ------------------------------------------------------------------------------------


def _run(job: _Job, search_config: SearchConfig, progress: bool) -> bool:
    """Run the trials, here or in processes; tell whether Ctrl-C ended them."""
    study = _open(job.folder)
    total, n_done = search_config.n_trials, _count(study, "COMPLETE")
    name = f"{job.task.name}: search"
    with tqdm(total=total, initial=n_done, desc=name, disable=not progress) as bar:
        try:
            if search_config.n_workers == 1:
                _work(job, bar=bar)
            else:
                _run_workers(job, search_config.n_workers, study, bar)
        except KeyboardInterrupt:
            return True
    return False


def _run_workers(job: _Job, n_workers: int, study: Any, bar: Any) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_worker, args=(job, i)) for i in range(n_workers)]
    try:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            time.sleep(0.5)
            bar.update(_count(study, "COMPLETE") - bar.n)
            bar.set_postfix_str(_postfix(study))
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
            worker.join()
    n_broken = sum(worker.exitcode != 0 for worker in workers)
    if n_broken:
        raise RuntimeError(
            f"{n_broken} of {n_workers} workers of the search ended with an error; what they wrote "
            "stands above. Their trials are run again when the search goes on in its folder."
        )


def _worker(job: _Job, worker: int) -> None:
    """Run trials in a process of their own."""
    torch.set_num_threads(1)
    with _quiet_optuna():
        try:
            _work(job, worker)
        except KeyboardInterrupt:
            return


def _held(study: Any) -> list[Any]:
    """Give the trials that have a circuit, the best first."""
    held = [trial for trial in study.get_trials(deepcopy=False) if "n_edges" in trial.user_attrs]
    return sorted(
        held, key=lambda t: (t.user_attrs["n_edges"], t.user_attrs["validation"], t.number)
    )


def _postfix(study: Any) -> str:
    held = _held(study)
    return f"{held[0].user_attrs['n_edges']} edges" if held else "no circuit yet"


def _best(
    job: _Job, search_config: SearchConfig, interrupted: bool, whole: dict[str, float]
) -> Circuit:
    study = _open(job.folder)
    held, n_done = _held(study), _count(study, "COMPLETE")
    if not held:
        if interrupted:
            raise KeyboardInterrupt
        losses = [t.user_attrs["best_loss"] for t in study.get_trials(deepcopy=False)
                  if "best_loss" in t.user_attrs]  # fmt: skip
        lowest = min(losses, default=math.nan)
        raise UnreachableTargetError(
            f"None of {n_done} trials for {job.task.name} reaches a loss of "
            f"{job.config.target_loss}: the lowest is {lowest:.4f}. Raise target_loss, or search "
            "longer (n_trials, minutes, n_steps).",
            lowest,
            whole,
        )
    circuit = Circuit.load(_trial_file(job.folder, held[0].number))
    found = {"n_trials": n_done, "seed": search_config.seed, "trial": held[0].number}
    found |= {"interrupted": True} if interrupted else {}
    return replace(circuit, provenance={**circuit.provenance, "search": found})
