"""Does the circuit alone do the task, whatever the rest is set to? And not better than its model?

Under its own ablation a circuit promised a loss, on prompts that it was not chosen by. Under other
ablations (zero, means over the task, other prompts) it promised nothing; a circuit that falls to a
coin there leans on what its own reference values happen to say. With the norms' scales held at
those of the whole model, it cannot use the scale to shut out what is cut.

A circuit that is surer than its model does something that the model does not: on a nonsense task
pruning alone makes what was asked for (Drori 2026; METHOD.md, section 7).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from tl_sparse.ablation import References
from tl_sparse.auditing.findings import Finding
from tl_sparse.auditing.subject import Subject
from tl_sparse.pruning.trial import evaluate

KEPT_GAIN = 0.5
"""Half of what the model gains over the empty circuit: below it, most of the task is gone."""

GATE = 0.9
"""The accuracy below which `prune` does not call a task done."""


def sufficiency(subject: Subject, others: Mapping[str, References]) -> Iterator[Finding]:
    """Judge the circuit under its own ablation, under `others`, and with norms held still."""
    circuit = subject.circuit
    losses = subject.example_losses(subject.inside())
    error = 2 * losses.std().item() / len(losses) ** 0.5 if len(losses) > 1 else 0.0
    yield Finding(
        "sufficient", "test loss of the circuit alone", subject.alone,
        circuit.target_loss + error, at_most=True,
        why="no target is known that the circuit was to reach" if math.isnan(circuit.target_loss)
        else "the loss that was asked for, and two standard errors of the mean over test examples",
        control=subject.empty, control_name="empty circuit",
    )  # fmt: skip
    yield Finding(
        "sufficient", "test accuracy of the circuit alone", subject.alone_accuracy, GATE,
        at_most=False, why="the gate below which the pruner does not call a task done",
        control=subject.whole_accuracy, control_name="whole model",
    )  # fmt: skip
    yield Finding(
        "sufficient", "loss below the whole model's", subject.whole - subject.alone,
        max(error, 1e-3), at_most=True,
        why="a circuit that is surer than its model, by over two standard errors, does something "
        "else",
    )  # fmt: skip
    scaled = subject.model.cfg.normalization_type in ("RMS", "RMSPre", "LN", "LNPre")
    if scaled:
        yield _with_still_norms(subject, "its own ablation")
    for name, references in others.items():
        other, what = subject.under(references), name.replace("_", " ")
        yield Finding(
            "sufficient", f"gain kept under {what}", other.gain(other.alone), KEPT_GAIN,
            at_most=False,
            why="half of what the model gains over the empty circuit, under that ablation",
            control=subject.gain(subject.alone), control_name="under its own ablation",
        )  # fmt: skip
        if scaled:
            yield _with_still_norms(other, what)


def _with_still_norms(subject: Subject, what: str) -> Finding:
    return Finding(
        "sufficient", f"gain kept under {what}, with the norms' scales of the whole model",
        subject.gain(loss_with_norms_of_the_whole(subject)), KEPT_GAIN, at_most=False,
        why="half of the gain: the rest of it may come from scales that shut out what is cut",
        control=subject.gain(subject.alone), control_name="with its own scales",
    )  # fmt: skip


def loss_with_norms_of_the_whole(subject: Subject) -> float:
    """Give the circuit's loss with every norm's scale as in the whole model on the same tokens."""
    model, task, gates = subject.model, subject.task, subject.inside()

    @contextmanager
    def around(indices: Sequence[int], batch: Any) -> Iterator[None]:
        scales: dict[str, list[Tensor]] = {}
        with model.hooks(fwd_hooks=[(is_scale, partial(_note, scales))]):
            task.logits(model, batch)
        values = subject.trial.values("test", indices, batch)
        held = model.hooks(fwd_hooks=[(is_scale, partial(_replace, scales))])
        with subject.trial.running(gates.nodes, values, gates.edges), held:
            yield

    n = subject.config.n_examples
    return evaluate(model, task, "test", n_examples=n, around=around)[0]


def is_scale(name: str) -> bool:
    """Whether a hook point shows the scale of a norm."""
    return name.endswith("hook_scale")


def _note(scales: dict[str, list[Tensor]], scale: Tensor, hook: Any) -> None:
    scales.setdefault(hook.name, []).append(scale)


def _replace(scales: dict[str, list[Tensor]], scale: Tensor, hook: Any) -> Tensor:
    return scales[hook.name].pop(0)
