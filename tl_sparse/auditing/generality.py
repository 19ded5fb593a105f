"""Does the circuit answer as the model does, right or wrong, on prompts of other forms?

Mean loss does not tell: a circuit can fail where the model is right and be right where it fails.

1. Families of prompts: the test prompts; the held-out forms; the test prompts behind lines of the
   corpus; real contexts of the two answers; the task's adversarial prompts (Gao et al. 2025, Figure
   8: long lists, and a bracket that a comment leaves open). What a task, its tokenizer or the
   corpus does not allow is left out.
2. For each family: the share of prompts that circuit and model both have right or both have wrong.
3. Over all families: of the prompts that the model has wrong, the share that the circuit has wrong
   too. A circuit that is right there does not work as the model does.

Many real contexts, and test prompts behind lines that open a bracket or a string, have no right
answer to speak of. What counts is that the circuit says what the model says.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tl_sparse.auditing.findings import Finding
from tl_sparse.auditing.subject import Gates, Subject
from tl_sparse.data import Corpus
from tl_sparse.pruning.trial import Trial, spread_over
from tl_sparse.tasks import PairTask, Split, adversarial, longer, mined_like, names

AGREE = 0.9
"""Nine of ten answers: the gate of `prune`, with the model's answers in place of the right ones."""

SHARED = 0.5
"""Half of the model's mistakes."""

MIN_WRONG = 10
"""Mistakes of the model under which no share of them is given."""

GROWING = ("longer contexts", "longer lists")
"""Families whose prompts are the test prompts with more in them: given as a curve over length."""

N_BINS = 4

Family = tuple[PairTask, Split]
"""Prompts of one form: a task, and the split that they stand in."""


@dataclass(frozen=True)
class Answers:
    """What model and circuit make of some prompts: 1 where the answer is right, else 0."""

    whole: Tensor
    circuit: Tensor
    n_tokens: Tensor
    """Length of each prompt."""

    @classmethod
    def joined(cls, some: Collection["Answers"]) -> "Answers":
        """Put those of several families behind each other."""
        parts = zip(*((each.whole, each.circuit, each.n_tokens) for each in some), strict=True)
        return cls(*map(torch.cat, parts))


def generality(
    subject: Subject, corpus: Corpus | None, curves: dict[str, list[tuple[float, float]]]
) -> Iterator[Finding]:
    """Compare answers on every family of prompts there is; adds accuracy by length to `curves`."""
    if not isinstance(subject.task, PairTask):
        return
    found: dict[str, Answers] = {}
    for what, (task, split) in families(subject, corpus).items():
        found[what] = answers_on(subject, task, split)
        yield alike(what, found[what])
    for what in [what for what in GROWING if what in found]:
        both = Answers.joined((found["new words"], found[what]))
        for who, right in (("whole model", both.whole), ("circuit", both.circuit)):
            name = f"{subject.task.name}, {what}: accuracy by number of tokens, {who}"
            curves[name] = by_length(right, both.n_tokens)
    yield from shared_mistakes(Answers.joined(found.values()))


def families(subject: Subject, corpus: Corpus | None) -> Mapping[str, Family]:
    """Give the prompts to compare answers on, by what they are; the test prompts come first."""
    task, n_ctx = subject.task, subject.model.cfg.n_ctx
    assert isinstance(task, PairTask)
    found: dict[str, Family] = {"new words": (task, "test")}
    if task.n_examples("held_out"):
        found["held-out templates"] = (task, "held_out")
    if corpus is not None:
        for what, made in (("longer contexts", longer), ("mined contexts", mined_like)):
            try:
                found[what] = (made(task, corpus, n_ctx=n_ctx), "test")
            except ValueError:  # no room, too few contexts, or answers that are not two tokens
                continue
    if task.name in names():
        others = adversarial(task.name, tokenizer=task.tokenizer, max_tokens=n_ctx)
        for what, other in others.items():
            if other.answer_ids == task.answer_ids:
                found[what] = (other, "held_out")
    if subject.trial.references.ablation == "resample_pair":  # other prompts, place by place
        found = {what: each for what, each in found.items() if each[0].equal_lengths}
    return found


def alike(what: str, answers: Answers) -> Finding:
    """Judge how many answers to one family of prompts agree."""
    whole, circuit = answers.whole.mean().item(), answers.circuit.mean().item()
    return Finding(
        "general", f"prompts that circuit and model answer alike, {what}",
        (answers.whole == answers.circuit).float().mean().item(), AGREE, at_most=False,
        why="nine of ten answers, as at the gate of the pruner",
        control=whole * circuit + (1 - whole) * (1 - circuit),
        control_name="if they were independent",
    )  # fmt: skip


def shared_mistakes(answers: Answers) -> Iterator[Finding]:
    """Judge whether the circuit fails where the model does, if the model fails often enough."""
    wrong = answers.whole == 0
    if wrong.sum() < MIN_WRONG:
        return
    yield Finding(
        "general", "share of the model's wrong answers that the circuit gets wrong too",
        (1 - answers.circuit[wrong]).mean().item(), SHARED, at_most=False,
        why="a circuit that mostly is right where the model fails does not say when it fails",
        control=(1 - answers.circuit).mean().item(),
        control_name="share of all answers that the circuit gets wrong",
    )  # fmt: skip


def by_length(right: Tensor, n_tokens: Tensor) -> list[tuple[float, float]]:
    """Give mean length and accuracy in four bins of equally many prompts, short ones first."""
    order = n_tokens.argsort(stable=True)
    return [
        (n_tokens[some].float().mean().item(), right[some].mean().item())
        for some in order.tensor_split(N_BINS)
        if len(some)
    ]


def answers_on(subject: Subject, task: PairTask, split: Split) -> Answers:
    """Give the answers to the prompts of a split, `n_examples` pairs of it at most."""
    trial = subject.trial
    if task is not subject.task:
        trial = Trial(subject.model, task, trial.sites, trial.references)
    chosen = spread_over(task, split, subject.config.n_examples)
    whole, n_tokens = _right(trial, task, subject.everything(), split, chosen)
    circuit, _ = _right(trial, task, subject.inside(), split, chosen)
    return Answers(whole, circuit, n_tokens)


@torch.no_grad()
def _right(
    trial: Trial, task: PairTask, gates: Gates, split: Split, chosen: list[int]
) -> tuple[Tensor, Tensor]:
    """Give 1 for each prompt that is answered right, and how long each is."""
    right, n_tokens = [], []
    for start in range(0, len(chosen), 64):
        indices = chosen[start : start + 64]
        batch = task.batch(split, indices).to(trial.like.device)
        with trial.running(gates.nodes, trial.values(split, indices, batch), gates.edges):
            right.append(task.margins(task.logits(trial.model, batch), batch) > 0)
        n_tokens.append(batch.last + 1)
    return torch.cat(right).float(), torch.cat(n_tokens)
