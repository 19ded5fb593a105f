r"""Tasks that are answered with a whole sequence, as algorithmic toy models answer.

A `SequenceExample` has tokens and one answer for each position, or None where nothing is asked.
With z the logits at a position (the model's `d_vocab_out` outputs there), an answer is

- a **class**, the output that should be largest: loss -log softmax(z)[class], in nats; right if it
  is the largest;
- **numbers**, what the outputs themselves should be: loss mean over outputs of (z - number)^2;
  right if none is further off than `tolerance`.

The loss is the mean over an example's asked positions, then over examples. So for numbers
`PruningConfig.target_loss`, and every loss in a circuit, is in squared units of the output: to
keep every output of every position within e, ask for e^2 / (positions x outputs).

`of_model` takes the model's own clean output as the answers: the circuit is then to reproduce the
model, whatever the model is for. Nothing is known of a tokenizer; tokens are numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.rules import checks_itself
from tl_sparse.tasks.base import NEEDED, SPLITS, Split, Task

Answer = int | float | tuple[float, ...] | None
"""A class (int), the outputs' values (a float if there is one output), or nothing asked."""

Kind = Literal["classes", "numbers"]


@dataclass(frozen=True)
class SequenceExample:
    """Tokens, and what each position should answer."""

    tokens: tuple[int, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class SequenceBatch:
    """Examples as tensors, padded on the right; padding asks nothing."""

    tokens: Int[Tensor, "batch pos"]
    lengths: Int[Tensor, " batch"]
    """Tokens in each example."""
    asked: Bool[Tensor, "batch pos"]
    answers: Shaped[Tensor, "batch pos *outputs"]
    """Classes, or numbers with the outputs as last axis."""

    def to(self, device: torch.device) -> "SequenceBatch":
        """Move to a device."""
        parts = (self.tokens, self.lengths, self.asked, self.answers)
        return SequenceBatch(*(part.to(device) for part in parts))


class SequenceTask(Task):
    """Token sequences with an answer for each position.

    `examples` maps each split to its examples (`held_out` may be absent), and no sequence may be in
    two splits. One list instead of a mapping stands for all splits alike: for models so small that
    the list is every input there is. `tolerance` is how far off an answer in numbers may be and
    still count as right.

    Raises:
        ValueError: If a split is empty or shares a sequence with another, an example asks nothing
            or has not one answer for each token, or the answers are not of the kind.

    Examples:
        >>> words = [(1, 2, 3), (3, 1, 1), (2, 2, 1)]
        >>> task = SequenceTask("mirror", [SequenceExample(w, w[::-1]) for w in words])
        >>> task
        SequenceTask(mirror: 3 sequences of 3 tokens, the same in each split; classes)
        >>> task.batch("test", [0]).answers
        tensor([[3, 2, 1]])
    """

    @checks_itself
    def __init__(
        self,
        name: str,
        examples: Mapping[Split, Sequence[SequenceExample]] | Sequence[SequenceExample],
        *,
        kind: Kind = "classes",
        tolerance: float = 1e-2,
    ) -> None:
        if kind not in ("classes", "numbers"):
            raise ValueError(f'kind is "classes" or "numbers", got {kind!r}.')
        self.name, self.kind, self.tolerance = name, kind, tolerance
        self.exhaustive = not isinstance(examples, Mapping)
        """Whether every split is the same list: all inputs there are."""
        found: dict[Split, tuple[SequenceExample, ...]] = {}
        for split in SPLITS:
            if isinstance(examples, Mapping):
                found[split] = tuple(examples.get(split, ()))
            else:
                found[split] = tuple(examples) if split in NEEDED else ()
        self.examples = found
        self._check_splits()
        answers = {split: tuple(map(self._rows, some)) for split, some in found.items()}
        self._n_outputs = self._widths([row for some in answers.values() for row in some])
        self._whole = {s: self._tensors(found[s], answers[s]) for s in SPLITS if found[s]}

    @classmethod
    def of_model(
        cls,
        name: str,
        model: HookedTransformer,
        sequences: Mapping[Split, Sequence[Sequence[int]]] | Sequence[Sequence[int]],
        *,
        kind: Kind = "numbers",
        n_skipped: int = 0,
        tolerance: float = 1e-2,
    ) -> "SequenceTask":
        """Make a task whose answers are a model's own, as it runs now.

        Of kind "numbers" they are its outputs, of kind "classes" the largest of them. The first
        `n_skipped` positions (such as one for a start token) ask nothing.
        """

        def answered(some: Sequence[Sequence[int]]) -> list[SequenceExample]:
            return [_own_answers(model, tuple(tokens), kind, n_skipped) for tokens in some]

        if isinstance(sequences, Mapping):
            examples: dict[Split, Sequence[SequenceExample]] = {
                split: answered(some) for split, some in sequences.items()
            }
            return cls(name, examples, kind=kind, tolerance=tolerance)
        return cls(name, answered(sequences), kind=kind, tolerance=tolerance)

    def _check_splits(self) -> None:
        seen: dict[tuple[int, ...], Split] = {}
        for split, some in self.examples.items():
            if not some and split in NEEDED:
                raise ValueError(
                    f"The task {self.name} has no {split} sequences; each split needs some. One "
                    "list instead of a mapping serves all splits."
                )
            for tokens in {example.tokens for example in some}:
                if seen.setdefault(tokens, split) != split and not self.exhaustive:
                    raise ValueError(
                        f"The task {self.name} has the sequence {tokens} in {seen[tokens]} and in "
                        f"{split}. If these are all inputs there are, give one list instead."
                    )

    def _rows(self, example: SequenceExample) -> tuple[tuple[float, ...] | None, ...]:
        """Check one example; give its answers with classes and single numbers as rows of one."""
        tokens, answers = example.tokens, example.answers
        if len(tokens) != len(answers):
            raise ValueError(
                f"The task {self.name} has {len(answers)} answers for the {len(tokens)} tokens "
                f"{tokens}. Give one for each; None where nothing is asked."
            )
        if all(answer is None for answer in answers):
            raise ValueError(f"The task {self.name} asks nothing of the sequence {tokens}.")
        for answer in answers:
            is_class = isinstance(answer, int) and not isinstance(answer, bool) and answer >= 0
            if answer is not None and self.kind == "classes" and not is_class:
                raise ValueError(
                    f"The task {self.name} answers with classes, integers from 0 on, got "
                    f'{answer!r} for {tokens}. For values of the outputs set kind="numbers".'
                )
        return tuple(
            None if a is None else tuple(map(float, a)) if isinstance(a, tuple) else (float(a),)
            for a in answers
        )

    def _widths(self, examples: Sequence[Sequence[tuple[float, ...] | None]]) -> int:
        """Give the number of outputs that the answers are about: at least so many for classes."""
        rows = [row for answers in examples for row in answers if row is not None]
        if self.kind == "classes":
            return int(max(row[0] for row in rows)) + 1
        widths = {len(row) for row in rows}
        if len(widths) != 1:
            raise ValueError(
                f"The task {self.name} has answers of {sorted(widths)} numbers; each needs as many "
                "as the model has outputs."
            )
        return widths.pop()

    def _tensors(
        self,
        examples: Sequence[SequenceExample],
        answers: Sequence[Sequence[tuple[float, ...] | None]],
    ) -> SequenceBatch:
        """Give a whole split as tensors."""
        lengths = torch.tensor([len(example.tokens) for example in examples])
        shape = len(examples), int(lengths.max())
        tokens = torch.zeros(shape, dtype=torch.long)
        asked = torch.zeros(shape, dtype=torch.bool)
        width = 1 if self.kind == "classes" else self._n_outputs
        numbers = torch.zeros(*shape, width, dtype=torch.float64)
        for row, example in enumerate(examples):
            tokens[row, : len(example.tokens)] = torch.tensor(example.tokens)
            for pos, answer in enumerate(answers[row]):
                if answer is not None:
                    asked[row, pos] = True
                    numbers[row, pos] = torch.tensor(answer, dtype=torch.float64)
        classes = self.kind == "classes"
        return SequenceBatch(tokens, lengths, asked, numbers[..., 0].long() if classes else numbers)

    @property
    def longest(self) -> int:
        """Tokens in the longest sequence of any split."""
        return max(len(example.tokens) for some in self.examples.values() for example in some)

    def n_examples(self, split: Split) -> int:
        """Give the number of sequences of a split."""
        return len(self.examples[split])

    def batch(self, split: Split, indices: Sequence[int] | None = None) -> SequenceBatch:
        """Give sequences of a split, all or those named.

        Raises:
            ValueError: If the task is without that split.
        """
        if not self.examples[split]:
            raise ValueError(f"The task {self.name} has no {split} sequences.")
        whole = self._whole[split]
        if indices is None:
            return whole
        rows = torch.tensor(indices)
        n = int(whole.lengths[rows].max())
        return SequenceBatch(
            whole.tokens[rows, :n],
            whole.lengths[rows],
            whole.asked[rows, :n],
            whole.answers[rows, :n],
        )

    def logits(
        self, model: HookedTransformer, batch: SequenceBatch
    ) -> Float[Tensor, "batch pos d_vocab_out"]:
        """Run a model and give its outputs at every position; those of padding mean nothing.

        A bidirectional model would attend to padding, so its scores are masked there.

        Raises:
            ValueError: If the model has not the outputs that the answers are about.
        """
        n_outputs = model.cfg.d_vocab_out
        short = n_outputs < self._n_outputs
        if short or (self.kind == "numbers" and n_outputs != self._n_outputs):
            raise ValueError(
                f"The task {self.name} has answers about {self._n_outputs} outputs; the model has "
                f"{n_outputs} (cfg.d_vocab_out)."
            )
        n = batch.tokens.shape[1]
        if model.cfg.attention_dir == "causal" or bool((batch.lengths == n).all()):
            return model(batch.tokens)
        padding = torch.arange(n, device=batch.lengths.device) >= batch.lengths[:, None]

        def mask(scores: Tensor, hook: Any) -> Tensor:
            return scores.masked_fill(padding[:, None, None], float("-inf"))

        with model.hooks(fwd_hooks=[(lambda name: name.endswith("attn.hook_attn_scores"), mask)]):
            return model(batch.tokens)

    def loss(
        self, logits: Float[Tensor, "batch pos d_vocab_out"], batch: SequenceBatch
    ) -> Float[Tensor, ""]:
        """Give cross entropy in nats, or the mean squared error; each example weighs the same."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.kind == "classes":
            each = F.cross_entropy(logits.transpose(1, 2), batch.answers, reduction="none")
        else:
            each = (logits - batch.answers.to(logits)).pow(2).mean(-1)
        each = torch.where(batch.asked, each, 0.0)
        return (each.sum(1) / batch.asked.sum(1)).mean()

    def accuracy(
        self, logits: Float[Tensor, "batch pos d_vocab_out"], batch: SequenceBatch
    ) -> float:
        """Give the fraction of asked positions that are right; each example weighs the same."""
        if self.kind == "classes":
            right = logits.argmax(-1) == batch.answers
        else:
            right = ((logits - batch.answers.to(logits)).abs() <= self.tolerance).all(-1)
        share = (right & batch.asked).sum(1) / batch.asked.sum(1)
        return share.mean().item()

    def __repr__(self) -> str:
        """One line."""
        lengths = {len(example.tokens) for some in self.examples.values() for example in some}
        tokens = f"{min(lengths)} to {max(lengths)}" if len(lengths) > 1 else str(max(lengths))
        counts = ", ".join(f"{len(some)} {s}" for s, some in self.examples.items() if some)
        many = f"{counts} sequences of {tokens} tokens"
        if self.exhaustive:
            n = len(self.examples["train"])
            many = f"{n} sequences of {tokens} tokens, the same in each split"
        return f"SequenceTask({self.name}: {many}; {self.kind})"


@torch.no_grad()
def _own_answers(
    model: HookedTransformer, tokens: tuple[int, ...], kind: Kind, n_skipped: int
) -> SequenceExample:
    """Ask a model about one sequence."""
    device = next(model.parameters()).device
    logits = model(torch.tensor([tokens], device=device))[0, n_skipped:]
    rows = logits.argmax(-1) if kind == "classes" else logits
    answers = [tuple(row) if isinstance(row, list) else row for row in rows.tolist()]
    return SequenceExample(tokens, (*(None,) * min(n_skipped, len(tokens)), *answers))
