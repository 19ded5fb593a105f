"""Reference values by name, and those that a task gives: its mean, and other prompts."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm
from transformer_lens import HookedTransformer

from tl_sparse.ablation import (
    References,
    fast_attention,
    pair_references,
    references,
    resampled_references,
    zero_references,
)
from tl_sparse.circuit_rules import ABLATION, ABLATIONS
from tl_sparse.config import PruningConfig
from tl_sparse.data import Corpus
from tl_sparse.resampling import values_on
from tl_sparse.rules import Rule, checks_itself
from tl_sparse.sites import model_hash, site_map
from tl_sparse.tasks import PairTask, Split, Task
from tl_sparse.tasks.base import SPLITS


def task_references(
    model: HookedTransformer, task: Task, *, batch_size: int = 32, progress: bool = True
) -> References:
    """Measure the mean of every node over the task's training prompts, padding left out.

    Raises:
        ValueError: If an activation is NaN or infinite.
    """
    check_lengths(model, task)
    sites = site_map(model, final=True)
    device = next(model.parameters()).device
    sums = {info.site: torch.zeros(info.n_entries, dtype=torch.float64) for info in sites.sites}
    n, count = task.n_examples("train"), 0
    for start in tqdm(range(0, n, batch_size), desc="task mean", disable=not progress):
        batch = task.batch("train", range(start, min(start + batch_size, n))).to(device)
        there = torch.ones_like(batch.tokens, dtype=torch.bool)
        if hasattr(batch, "last"):
            positions = torch.arange(batch.tokens.shape[1], device=device)
            there = positions[None, :] <= batch.last[:, None]
        with fast_attention(model):
            found = values_on(model, sites, batch.tokens)
        for site, values in found.items():
            sums[site] += values[there].sum(0, dtype=torch.float64).cpu()
        count += int(there.sum())
    means = {site: (total / count).to(model.cfg.dtype).to(device) for site, total in sums.items()}
    provenance = {"n_tokens": count, "task": task.name}
    return References(means, "task_mean", model_hash(model), provenance)


def named_references(
    name: str,
    model: HookedTransformer,
    task: Task,
    corpus: Corpus | None = None,
    *,
    n_tokens: int = 2**18,
    n_windows: int = 1024,
    seed: int = 0,
    progress: bool = False,
) -> References:
    """Measure reference values by the name of their ablation, one of `ABLATIONS`.

    `n_tokens` of the corpus are for "corpus_mean"; `n_windows` of it and the seed of their order
    for "resample_corpus".

    Raises:
        ValueError: If there is no ablation of that name, or its corpus is not given.
    """
    if name not in ABLATIONS:
        raise ValueError(f"There is no ablation {name!r}; there are: {', '.join(ABLATIONS)}.")
    if name == "zero":
        return zero_references(model)
    if name == "task_mean":
        return task_references(model, task, progress=progress)
    if name == "resample_pair":
        return pair_references(model)
    if corpus is None:
        raise ValueError(f"The ablation {name!r} takes its values from a corpus; give one.")
    if name == "corpus_mean":
        return references(model, corpus, n_tokens, progress=progress)
    return resampled_references(model, corpus, n_windows=n_windows, seed=seed)


def other_tokens(
    references: References,
    split: Split,
    indices: Sequence[int],
    tokens: Int[Tensor, "batch pos"],
    *,
    draw: int = 0,
) -> Int[Tensor, "batch pos"]:
    """Give the prompts on which what is out takes its values, one for each prompt of a batch.

    They depend on split, index and side of a prompt alone, not on the batch that it stands in; from
    the corpus each `draw` gives others.
    """
    n_sides = len(tokens) // len(indices)
    if references.ablation == "resample_pair":
        return tokens.roll(len(indices), 0)
    windows = references.windows
    assert windows is not None
    first = 7919 * SPLITS.index(split) + 104729 * draw  # primes: draws and splits start apart
    places = [first + n_sides * i + side for side in range(n_sides) for i in indices]
    chosen = windows[torch.tensor(places) % len(windows), : tokens.shape[1]]
    return chosen.to(tokens.device)


def check_lengths(model: HookedTransformer, task: Task) -> None:
    """Check that a model can read every prompt of a task.

    Raises:
        ValueError: If one is longer than `cfg.n_ctx`.
    """
    longest = getattr(task, "longest", 0)
    if longest > model.cfg.n_ctx:
        raise ValueError(
            f"The task {task.name} has a prompt of {longest} tokens; the model reads at most "
            f"{model.cfg.n_ctx}. Choose another task, or train with a larger n_ctx."
        )


_ARGUMENTS = {
    "model": Rule("is a HookedTransformer", lambda v: isinstance(v, HookedTransformer)),
    "task": Rule(
        "is a Task",
        lambda v: isinstance(v, Task),
        "By name it is tasks.get(name, tokenizer=model.tokenizer).",
    ),
    "references": Rule(
        "are the reference values of the model's nodes, as References",
        lambda v: isinstance(v, References),
        "Measure them with references(model, corpus), or take zeros: zero_references(model).",
    ),
    "config": Rule(
        "is a PruningConfig",
        lambda v: isinstance(v, PruningConfig),
        "Of a mapping of its fields it is PruningConfig.from_dict(mapping).",
    ),
}


@checks_itself
def check_arguments(model: Any, task: Any, references: Any, config: Any) -> None:
    """Check what every pruning is given, before anything is run.

    Raises:
        ValueError: If one of them is another kind of thing, the references are of another model or
            of no ablation that there is, or the task lacks the prompts that they ask for.
    """
    given = {"model": model, "task": task, "references": references, "config": config}
    for name, rule in _ARGUMENTS.items():
        rule.check(name, given[name])
    ABLATION.check("references.ablation", references.ablation)
    references.check(model)
    check_ablation(references, task, config)


def check_ablation(references: References, task: Task, config: PruningConfig) -> None:
    """Check that a task has the other prompts that a resampling ablation asks for.

    Raises:
        ValueError: If it has no pairs, or pairs of unequal length; or if the unembedding's input is
            to be pruned, which a task reads at the last position only.
    """
    if references.resamples and config.mask_final:
        raise ValueError(
            f"mask_final needs constant reference values, got {references.ablation!r}: a task "
            "reads the unembedding at one position. Leave mask_final off, or ablate by a mean or "
            "by zero."
        )
    if references.ablation != "resample_pair":
        return
    instead = "Ablate by a mean, by zero, or from the corpus (resampled_references)."
    if not isinstance(task, PairTask):
        raise ValueError(
            f"Resampling from the paired prompt needs a task of pairs; {task.name} is none. "
            f"{instead}"
        )
    if not task.equal_lengths:
        raise ValueError(
            f"Resampling from the paired prompt needs the two prompts of each pair to have equally "
            f"many tokens, and some of {task.name} have not. {instead}"
        )
