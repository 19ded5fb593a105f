"""Does the circuit answer as the model does, right or wrong, on prompts of other forms?

Mean loss does not tell: a circuit can fail where the model is right and be right where it fails.
"""

from collections.abc import Iterator

import torch

from tl_sparse.auditing.findings import Finding
from tl_sparse.auditing.subject import Gates, Subject
from tl_sparse.tasks import PairTask, Split

AGREE = 0.9
"""Nine of ten answers: the gate of `prune`, with the model's answers in place of the right ones."""


def generality(subject: Subject) -> Iterator[Finding]:
    """Compare answers on the test prompts and on the held-out forms, if the task has any."""
    task = subject.task
    if not isinstance(task, PairTask):
        return
    splits: dict[Split, str] = {"test": "new words", "held_out": "held-out templates"}
    for split, what in splits.items():
        if not task.n_examples(split):
            continue
        whole, alone = (
            _right(subject, task, g, split) for g in (subject.everything(), subject.inside())
        )
        chance = (whole.mean() * alone.mean() + (1 - whole.mean()) * (1 - alone.mean())).item()
        yield Finding(
            "general", f"prompts that circuit and model answer alike, {what}",
            (whole == alone).float().mean().item(), AGREE, at_most=False,
            why="nine of ten answers, as at the gate of the pruner",
            control=chance, control_name="if they were independent",
        )  # fmt: skip


@torch.no_grad()
def _right(subject: Subject, task: PairTask, gates: Gates, split: Split) -> torch.Tensor:
    """Give 1 for each prompt that is answered right."""
    trial, found = subject.trial, []
    n_all = task.n_examples(split)
    n = min(subject.config.n_examples or n_all, n_all)
    chosen = [i * n_all // n for i in range(n)]
    for start in range(0, n, 64):
        indices = chosen[start : start + 64]
        batch = task.batch(split, indices).to(trial.like.device)
        with trial.running(gates.nodes, trial.values(split, indices, batch), gates.edges):
            found.append(task.margins(task.logits(subject.model, batch), batch) > 0)
    return torch.cat(found).float()
