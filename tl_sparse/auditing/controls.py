"""Does pruning find something where there is nothing? And the same again by another seed?

The pruner that found the circuit is given, with the same settings and target,

- **nonsense answers**: the same prompts, answered by two tokens that mean nothing there;
- **shuffled labels**: the two answers exchanged in half of the pairs, so that no rule is left;
- **weights drawn anew**: the model with the weights of each matrix of its blocks shuffled among the
  places that they stand at;
- **a random model**: every parameter drawn anew, at the places and of the size that it has.

A circuit that is no smaller than what is found there is not distinguishable from chance (Drori
2026; METHOD.md, section 7). Where no size reaches the target, the whole model's edges count.

For stability it is also given the task itself: on another seed, on its prompts drawn anew with
repeats, and on its held-out forms in place of the others.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations

import torch
from tqdm import tqdm
from transformer_lens import HookedTransformer

from tl_sparse.ablation import References
from tl_sparse.auditing.findings import Finding
from tl_sparse.auditing.subject import Subject
from tl_sparse.circuit import Circuit
from tl_sparse.config import PruningConfig
from tl_sparse.pruning import UnreachableTargetError
from tl_sparse.pruning.prune import prune
from tl_sparse.tasks import PairTask, Task, from_held_out, nonsense, resampled, shuffled

SEPARATED = 1.5
"""Half as many edges again, in the nearest pair of seeds: more than seeds differ by among
themselves on the models looked at."""

SHARED = 0.5
"""Half of the edges of two circuits together are in both."""

AGAIN, RESAMPLED, OTHER_FORMS = "the task again", "its prompts resampled", "its held-out forms"
"""Prunings of the task itself."""

Measure = Callable[[HookedTransformer], References]
"""Measures the values of what is out on another model, as they were on this one."""

Job = tuple[str, HookedTransformer, Task, References]
"""What is pruned: its name, and what `prune` needs."""


def controls(
    subject: Subject, measure: Measure, progress: bool
) -> tuple[list[Finding], list[Circuit]]:
    """Prune the task and its controls on as many seeds as the settings ask for.

    Also gives the circuits that other seeds found for the task.
    """
    seeds = range(subject.config.n_control_seeds)
    if not seeds:
        return [], []
    begin = pruning_of(subject.circuit)
    found: dict[str, list[Circuit | None]] = {}
    jobs = [(seed, *job) for seed in seeds for job in _jobs(subject, measure, seed)]
    bar = tqdm(jobs, disable=not progress)
    for seed, what, model, task, references in bar:
        bar.set_description(what)
        config = replace(begin, seed=begin.seed + 1 + seed, min_accuracy=0.0)
        found.setdefault(what, []).append(_found(model, task, references, config))
    again = [circuit for circuit in found[AGAIN] if circuit is not None]
    return [*_better(subject, found, again), *_stable(subject, found)], again


def _jobs(subject: Subject, measure: Measure, seed: int) -> Iterator[Job]:
    model, task, own = subject.model, subject.task, subject.trial.references
    yield AGAIN, model, task, own
    if isinstance(task, PairTask):
        yield RESAMPLED, model, resampled(task, seed=seed), own
        if task.n_examples("held_out") > 1:
            yield OTHER_FORMS, model, from_held_out(task), own
        yield "nonsense answers", model, nonsense(task, seed=seed), own
        yield "shuffled labels", model, shuffled(task, seed=seed), own
    shuffled_weights = with_shuffled_weights(model, seed=seed)
    yield "weights drawn anew", shuffled_weights, task, measure(shuffled_weights)
    random_one = with_random_parameters(model, seed=seed)
    yield "a random model", random_one, task, measure(random_one)


def _found(
    model: HookedTransformer, task: Task, references: References, config: PruningConfig
) -> Circuit | None:
    try:
        circuit = prune(model, task, references, config, progress=False)
    except UnreachableTargetError:
        return None
    if circuit.provenance.get("interrupted"):
        raise KeyboardInterrupt
    return circuit


def _better(
    subject: Subject, found: dict[str, list[Circuit | None]], again: list[Circuit]
) -> Iterator[Finding]:
    sizes = [subject.circuit.n_edges, *(circuit.n_edges for circuit in again)]
    for what, circuits in found.items():
        if what in (AGAIN, RESAMPLED, OTHER_FORMS):
            continue
        counts = [n_edges(subject) if one is None else one.n_edges for one in circuits]
        ratios = [max(count, 1) / max(size, 1) for count in counts for size in sizes]
        yield Finding(
            "better than chance", f"edges of {what} / edges of the circuit, nearest seeds",
            min(ratios), SEPARATED, at_most=False, spread=(min(ratios), max(ratios)),
            why="half as many edges again at the same loss; less is not distinguishable from "
            f"chance. Edges found: {', '.join(map(str, counts))}; of the task: "
            f"{', '.join(map(str, sizes))}; the whole model has {n_edges(subject):,}",
            control=1.0, control_name="the same",
        )  # fmt: skip


def _stable(subject: Subject, found: dict[str, list[Circuit | None]]) -> Iterator[Finding]:
    for what in (AGAIN, RESAMPLED, OTHER_FORMS):
        if what not in found:
            continue
        circuits = [circuit for circuit in found[what] if circuit is not None]
        missing = len(found[what]) - len(circuits)
        overlaps = [a.jaccard(b) for a, b in combinations([subject.circuit, *circuits], 2)]
        nodes = [subject.circuit.jaccard(one, "nodes") for one in circuits]
        yield Finding(
            "stable", f"edges in both of two circuits, of those in either, least alike: {what}",
            min(overlaps, default=0.0) if not missing else 0.0, SHARED, at_most=False,
            spread=(min(overlaps), max(overlaps)) if overlaps else None,
            why="half of the edges: below it, another seed or other prompts tell another story"
            + (f"; {missing} prunings found no circuit" if missing else ""),
            control=min(nodes, default=None), control_name="of the nodes",
        )  # fmt: skip


def pruning_of(circuit: Circuit) -> PruningConfig:
    """Give the settings that a circuit was found with, or the default ones at its target."""
    noted = circuit.provenance.get("pruning")
    if noted:
        return PruningConfig.from_dict(noted)
    target = circuit.target_loss if math.isfinite(circuit.target_loss) else 0.15
    return PruningConfig(target_loss=target, tie_qk=circuit.tie_qk)


def n_edges(subject: Subject) -> int:
    """Give the number of nonzero weights that could be edges, in the whole model."""
    return sum(int(live.sum()) for live in subject.trial.weights.values())


@torch.no_grad()
def with_shuffled_weights(model: HookedTransformer, *, seed: int = 0) -> HookedTransformer:
    """Give a copy whose block weights have changed places, matrix by matrix; zeros stay."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for name, parameter in other.named_parameters():
        if name.startswith("blocks") and ".W_" in name:
            places = parameter != 0
            values = parameter[places]
            order = torch.randperm(len(values), generator=generator).to(values.device)
            parameter[places] = values[order]
    return other


@torch.no_grad()
def with_random_parameters(model: HookedTransformer, *, seed: int = 0) -> HookedTransformer:
    """Give a copy with normal numbers of each parameter's size where it is not zero."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for parameter in other.parameters():
        places = (parameter != 0) & parameter.isfinite()
        values = parameter[places]
        if len(values):
            drawn = torch.randn(len(values), generator=generator).to(values)
            parameter[places] = drawn * values.square().mean().sqrt()
    return other
