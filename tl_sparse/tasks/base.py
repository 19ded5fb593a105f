"""What a task is: prompts, a loss and an accuracy, in three splits that never share a prompt.

`Task` is the interface that pruning sees. `PairTask` is the paper's kind (Gao et al. 2025, section
2.2 and Table 1): pairs of prompts that differ only in what decides between two answer tokens. With
z the logits at the true last token, side A should give answer a and side B answer b:

    loss     = mean over pairs and both sides of -log softmax(z_correct, z_wrong)[0], in nats
    accuracy = fraction of prompts, both sides counted, with z_correct > z_wrong

so a coin has loss ln 2 and accuracy 1/2. (The authors' files hold the sum of the two sides.)
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Pair:
    """Two prompts and the token that each should be followed by, as text."""

    prompts: tuple[str, str]
    answers: tuple[str, str]


@dataclass(frozen=True)
class TaskBatch:
    """Prompts as tokens, padded on the right, and where and what to answer."""

    tokens: Int[Tensor, "batch pos"]
    last: Int[Tensor, " batch"]
    """Position of each prompt's true last token."""
    correct: Int[Tensor, " batch"]
    wrong: Int[Tensor, " batch"]

    def to(self, device: torch.device) -> "TaskBatch":
        """Move to a device."""
        parts = (self.tokens, self.last, self.correct, self.wrong)
        return TaskBatch(*(part.to(device) for part in parts))


class Task(ABC):
    """What `prune` needs of a task: examples in splits, a loss and an accuracy on logits."""

    name: str

    @abstractmethod
    def n_examples(self, split: Split) -> int:
        """Give the number of examples (pairs) of a split."""

    @abstractmethod
    def batch(self, split: Split, indices: Sequence[int] | None = None) -> Any:
        """Give examples of a split, all or those named, with `tokens` and `.to(device)`."""

    @abstractmethod
    def logits(self, model: HookedTransformer, batch: Any) -> Float[Tensor, "batch *pos d_vocab"]:
        """Run a model on a batch and give the logits that `loss` and `accuracy` take."""

    @abstractmethod
    def loss(self, logits: Float[Tensor, "batch *pos d_vocab"], batch: Any) -> Float[Tensor, ""]:
        """Give the mean task loss of a batch, in nats."""

    @abstractmethod
    def accuracy(self, logits: Float[Tensor, "batch *pos d_vocab"], batch: Any) -> float:
        """Give the fraction of a batch that is answered right."""


class PairTask(Task):
    """Pairs of prompts with two answer tokens.

    `pairs` maps each split to its pairs; `tokenizer` turns text into tokens without adding any.

    Raises:
        ValueError: If an answer is not one token, a split is empty or shares a prompt with another,
            or the two prompts of a pair are the same.
    """

    def __init__(self, name: str, pairs: Mapping[Split, Sequence[Pair]], *, tokenizer: Any) -> None:
        self.name, self.pairs = name, {split: tuple(pairs.get(split, ())) for split in SPLITS}
        seen: dict[str, str] = {}
        for split, some in self.pairs.items():
            if not some:
                raise ValueError(f"The task {name} has no {split} pairs; each split needs some.")
            for prompt in {prompt for pair in some for prompt in pair.prompts}:
                if seen.setdefault(prompt, split) != split:
                    raise ValueError(
                        f"The task {name} has the prompt {prompt!r} in {seen[prompt]} and in "
                        f"{split}."
                    )
        for some in self.pairs.values():
            for pair in some:
                if pair.prompts[0] == pair.prompts[1]:
                    raise ValueError(f"A pair of {name} has one prompt twice: {pair.prompts[0]!r}.")
        answers = {
            answer for some in self.pairs.values() for pair in some for answer in pair.answers
        }
        self.answer_ids = {text: _one_token(text, tokenizer, name) for text in sorted(answers)}
        self._tokens = {
            split: [tuple(_encode(p, tokenizer, name) for p in pair.prompts) for pair in some]
            for split, some in self.pairs.items()
        }
        for split, tokens in self._tokens.items():  # neighbours in a batch then need little padding
            order = sorted(range(len(tokens)), key=lambda i: max(map(len, tokens[i])))
            self._tokens[split] = [tokens[i] for i in order]
            self.pairs[split] = tuple(self.pairs[split][i] for i in order)

    @property
    def longest(self) -> int:
        """Tokens in the longest prompt of any split."""
        return max(len(p) for pairs in self._tokens.values() for pair in pairs for p in pair)

    def n_examples(self, split: Split) -> int:
        """Give the number of pairs of a split."""
        return len(self.pairs[split])

    def batch(self, split: Split, indices: Sequence[int] | None = None) -> TaskBatch:
        """Give pairs of a split, side A of all, then side B of all."""
        chosen = range(self.n_examples(split)) if indices is None else indices
        prompts, correct, wrong = [], [], []
        for side in (0, 1):
            for i in chosen:
                prompts.append(self._tokens[split][i][side])
                answers = [self.answer_ids[text] for text in self.pairs[split][i].answers]
                correct.append(answers[side])
                wrong.append(answers[1 - side])
        last = torch.tensor([len(prompt) - 1 for prompt in prompts])
        tokens = torch.zeros(len(prompts), int(last.max()) + 1, dtype=torch.long)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        return TaskBatch(tokens, last, torch.tensor(correct), torch.tensor(wrong))

    def logits(self, model: HookedTransformer, batch: TaskBatch) -> Float[Tensor, "batch d_vocab"]:
        """Give the logits at each prompt's true last token; those of the others are never made."""
        n_layers = model.cfg.n_layers
        resid = model(batch.tokens, stop_at_layer=n_layers)
        rows = torch.arange(len(batch.last), device=resid.device)
        resid, tokens = resid[rows, batch.last, None], batch.tokens[rows, batch.last, None]
        return model(resid, start_at_layer=n_layers, tokens=tokens)[:, 0]

    def loss(self, logits: Float[Tensor, "batch d_vocab"], batch: TaskBatch) -> Float[Tensor, ""]:
        """Give the two-way loss in nats, averaged over pairs and both sides."""
        return F.softplus(-self.margins(logits, batch)).mean()

    def accuracy(self, logits: Float[Tensor, "batch d_vocab"], batch: TaskBatch) -> float:
        """Give the fraction of prompts whose right answer beats the other one."""
        return (self.margins(logits, batch) > 0).float().mean().item()

    def margins(
        self, logits: Float[Tensor, "batch d_vocab"], batch: TaskBatch
    ) -> Float[Tensor, " batch"]:
        """Give logit(correct) - logit(wrong) of each prompt."""
        rows = torch.arange(len(logits), device=logits.device)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits[rows, batch.correct] - logits[rows, batch.wrong]

    def examples(self, n: int = 4, *, split: Split = "train") -> list[Pair]:
        """Give some pairs of a split, short and long ones, to look at."""
        step = max(1, self.n_examples(split) // max(n, 1))
        return list(self.pairs[split][::step][:n])

    def __repr__(self) -> str:
        """One line."""
        counts = ", ".join(f"{len(some)} {split}" for split, some in self.pairs.items())
        answers = " / ".join(map(repr, self.answer_ids))
        return f"PairTask({self.name}: {counts} pairs; answers {answers})"


def _encode(prompt: str, tokenizer: Any, name: str) -> tuple[int, ...]:
    tokens = tuple(tokenizer.encode(prompt, add_special_tokens=False))
    if not tokens:
        raise ValueError(f"The task {name} has a prompt without any token: {prompt!r}.")
    return tokens


def _one_token(text: str, tokenizer: Any, name: str) -> int:
    tokens = tokenizer.encode(text, add_special_tokens=False)
    if len(tokens) != 1:
        raise ValueError(
            f"The task {name} needs its answer {text!r} to be one token; this tokenizer makes "
            f"{len(tokens)}: {[tokenizer.decode([token]) for token in tokens]}. Train a tokenizer "
            "on Python text (tl_sparse.data.train_tokenizer) or choose another task."
        )
    return tokens[0]
