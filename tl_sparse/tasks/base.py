r"""What a task is: prompts, a loss and an accuracy, in splits that never share a prompt.

`Task` is the interface that pruning sees. `PairTask` is the paper's kind (Gao et al. 2025, section
2.2 and Table 1): pairs of prompts that differ only in what decides between two answer tokens. With
z the logits at the true last token, side A should give answer a and side B answer b:

    loss     = mean over pairs and both sides of -log softmax(z_correct, z_wrong)[0], in nats
    accuracy = fraction of prompts, both sides counted, with z_correct > z_wrong

so a coin has loss ln 2 and accuracy 1/2. (The authors' files hold the sum of the two sides.)

A prompt must end where the answer's token would begin: prompt and answer, tokenised as one text,
have to give the prompt's tokens and one more. Otherwise the model is asked at a place where its
training text never had a choice (`)` before a newline, where that is one token `)\n`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.model.prefixes import PrefixTree, last_logits

Split = Literal["train", "validation", "test", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "held_out")
"""Pruning learns on `train`, chooses on `validation` and reports `test`, whose words no other split
has. `held_out` has other forms of sentence; a task may be without it."""

NEEDED: tuple[Split, ...] = SPLITS[:3]
"""The splits that every task has."""


@dataclass(frozen=True)
class Pair:
    """Two prompts and the token that each should be followed by, as text."""

    prompts: tuple[str, str]
    answers: tuple[str, str]


@dataclass(frozen=True)
class EncodedPair:
    """A pair as tokens."""

    prompts: tuple[tuple[int, ...], tuple[int, ...]]
    answers: tuple[int, int]


@dataclass(frozen=True)
class TaskBatch:
    """Prompts as tokens, padded on the right, and where and what to answer."""

    tokens: Int[Tensor, "batch pos"]
    last: Int[Tensor, " batch"]
    """Position of each prompt's true last token."""
    correct: Int[Tensor, " batch"]
    wrong: Int[Tensor, " batch"]
    tree: PrefixTree | None = None
    """The tree of the prompts' prefixes, if the model is to be run along it."""

    def to(self, device: torch.device) -> "TaskBatch":
        """Move to a device."""
        return TaskBatch(
            self.tokens.to(device),
            self.last.to(device),
            self.correct.to(device),
            self.wrong.to(device),
            None if self.tree is None else self.tree.to(device),
        )

    def on_prefixes(self) -> "TaskBatch":
        """Give the same prompts, to be run as the tree of their prefixes."""
        return replace(self, tree=PrefixTree.of(self.tokens, self.last))

    def starting_at(self, layer: int, resid: Float[Tensor, "1 prefix d_model"]) -> "TaskBatch":
        """Give the same prompts, to be run from the residual stream before some layer on."""
        assert self.tree is not None
        return replace(self, tree=replace(self.tree, start=(layer, resid)))


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

    `pairs` maps each split to its pairs (`held_out` may be absent); `tokenizer` turns text into
    tokens without adding any. Pairs that `encode_pairs` has tokenised already may be given as
    `encoded`.

    Raises:
        ValueError: If an answer is not one token, is not the same token in all pairs, or grows
            together with the end of a prompt, a split is empty or shares a prompt with another, or
            the two prompts or the two answers of a pair are the same.
    """

    def __init__(
        self,
        name: str,
        pairs: Mapping[Split, Sequence[Pair]],
        *,
        tokenizer: Any,
        encoded: Mapping[Pair, EncodedPair] | None = None,
    ) -> None:
        self.name, self.tokenizer = name, tokenizer
        self.pairs: dict[Split, tuple[Pair, ...]] = {
            split: tuple(pairs.get(split, ())) for split in SPLITS
        }
        self._refuse_shared_prompts()
        self._encoded: dict[Split, list[EncodedPair]] = {}
        self.answer_ids: dict[str, int] = {}
        """Token of each answer, by its text."""
        for split in SPLITS:
            some = self.pairs[split]
            tokens = self._encode(some, encoded or {})
            for pair, found in zip(some, tokens, strict=True):
                for text, token in zip(pair.answers, found.answers, strict=True):
                    if self.answer_ids.setdefault(text, token) != token:
                        raise ValueError(
                            f"The task {name} has an answer {text!r} that this tokenizer makes "
                            f"token {self.answer_ids[text]} of in one pair and {token} in another. "
                            "Put those pairs into tasks of their own."
                        )
            # by length: neighbours in a batch then need little padding
            order = sorted(range(len(some)), key=lambda i: max(map(len, tokens[i].prompts)))
            self._encoded[split] = [tokens[i] for i in order]
            self.pairs[split] = tuple(some[i] for i in order)
        self.answer_ids = {text: self.answer_ids[text] for text in sorted(self.answer_ids)}

    def _refuse_shared_prompts(self) -> None:
        seen: dict[str, str] = {}
        for split, some in self.pairs.items():
            if not some and split in NEEDED:
                raise ValueError(
                    f"The task {self.name} has no {split} pairs; each split needs some."
                )
            for prompt in {prompt for pair in some for prompt in pair.prompts}:
                if seen.setdefault(prompt, split) != split:
                    raise ValueError(
                        f"The task {self.name} has the prompt {prompt!r} in {seen[prompt]} and in "
                        f"{split}."
                    )

    def _encode(
        self, pairs: Sequence[Pair], encoded: Mapping[Pair, EncodedPair]
    ) -> list[EncodedPair]:
        new = [pair for pair in pairs if pair not in encoded]
        found = dict(encoded)
        for pair, result in zip(new, encode_pairs(new, self.tokenizer), strict=True):
            if isinstance(result, str):
                raise ValueError(f"The task {self.name} {result}")
            found[pair] = result
        return [found[pair] for pair in pairs]

    @property
    def equal_lengths(self) -> bool:
        """Whether the two prompts of every pair have equally many tokens.

        Then what one prompt computes at a position can stand for what the other computes there.
        """
        pairs = (pair.prompts for some in self._encoded.values() for pair in some)
        return all(len(a) == len(b) for a, b in pairs)

    @property
    def longest(self) -> int:
        """Tokens in the longest prompt of any split."""
        pairs = (pair for some in self._encoded.values() for pair in some)
        return max(len(prompt) for pair in pairs for prompt in pair.prompts)

    def encoded(self, split: Split) -> tuple[EncodedPair, ...]:
        """Give the pairs of a split as tokens, in the order of `pairs`."""
        return tuple(self._encoded[split])

    def n_examples(self, split: Split) -> int:
        """Give the number of pairs of a split."""
        return len(self.pairs[split])

    def batch(self, split: Split, indices: Sequence[int] | None = None) -> TaskBatch:
        """Give pairs of a split, side A of all, then side B of all.

        Raises:
            ValueError: If the task is without that split.
        """
        if not self.pairs[split]:
            raise ValueError(f"The task {self.name} has no {split} pairs.")
        chosen = range(self.n_examples(split)) if indices is None else indices
        prompts, correct, wrong = [], [], []
        for side in (0, 1):
            for i in chosen:
                pair = self._encoded[split][i]
                prompts.append(pair.prompts[side])
                correct.append(pair.answers[side])
                wrong.append(pair.answers[1 - side])
        last = torch.tensor([len(prompt) - 1 for prompt in prompts])
        longest = max(map(len, prompts))
        tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts])
        return TaskBatch(tokens, last, torch.tensor(correct), torch.tensor(wrong))

    def logits(self, model: HookedTransformer, batch: TaskBatch) -> Float[Tensor, "batch d_vocab"]:
        """Give the logits at each prompt's true last token; those of the others are never made."""
        if batch.tree is not None:
            return last_logits(model, batch.tree)
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
        counts = ", ".join(f"{len(some)} {split}" for split, some in self.pairs.items() if some)
        shown = list(map(repr, self.answer_ids))
        if len(shown) > 6:
            shown[6:] = [f"{len(shown) - 6} more"]
        return f"PairTask({self.name}: {counts} pairs; answers {' / '.join(shown)})"


def encode_pairs(pairs: Sequence[Pair], tokenizer: Any) -> list[EncodedPair | str]:
    """Tokenise pairs; in place of one that makes no fair question, say what is wrong with it."""
    texts = []
    for pair in pairs:
        texts += [*pair.prompts, *(p + a for p in pair.prompts for a in pair.answers)]
    for text in texts:
        if not _is_text(text):
            raise ValueError(f"Half of a character (a surrogate) is no text, got {text!r}.")
    tokens = encode(texts, tokenizer)
    return [_encoded(pair, tokens[6 * i : 6 * i + 6], tokenizer) for i, pair in enumerate(pairs)]


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def encode(texts: Sequence[str], tokenizer: Any) -> list[tuple[int, ...]]:
    """Tokenise texts without special tokens, in one call where the tokenizer knows how.

    Raises:
        ValueError: If the tokenizer is none.
    """
    if texts and (isinstance(tokenizer, str) or not hasattr(tokenizer, "encode")):
        raise ValueError(
            f"A task is made for a tokenizer, which has a method encode, got {tokenizer!r}. Give "
            "the model's own, model.tokenizer; where that is None, the one it was trained with."
        )
    if texts and getattr(tokenizer, "is_fast", False):
        found = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    else:
        found = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    return [tuple(tokens) for tokens in found]


def _encoded(pair: Pair, tokens: Sequence[tuple[int, ...]], tokenizer: Any) -> EncodedPair | str:
    """Check one pair, given its two prompts and then each prompt with each answer as tokens."""
    if pair.prompts[0] == pair.prompts[1]:
        return f"has a pair with one prompt twice: {pair.prompts[0]!r}."
    if pair.answers[0] == pair.answers[1]:
        return f"has a pair with one answer twice: {pair.answers[0]!r} after {pair.prompts[0]!r}."
    for text, found in zip(pair.prompts, tokens[:2], strict=True):
        if not found:
            return f"has a prompt without any token: {text!r}."
    answers: list[int] = []
    for place, whole in enumerate(tokens[2:]):
        prompt, text = tokens[place // 2], pair.answers[place % 2]
        if whole[:-1] != prompt or (place > 1 and answers[place % 2] != whole[-1]):
            return _why_not(pair.prompts[place // 2], text, whole=whole, tokenizer=tokenizer)
        answers.append(whole[-1])
    return EncodedPair((tokens[0], tokens[1]), (answers[0], answers[1]))


def _why_not(prompt: str, answer: str, *, whole: tuple[int, ...], tokenizer: Any) -> str:
    """Say why an answer is not the one next token behind a prompt."""
    alone = encode([answer], tokenizer)[0]
    if len(alone) != 1:
        return (
            f"needs its answer {answer!r} to be one token; this tokenizer makes {len(alone)}: "
            f"{[tokenizer.decode([token]) for token in alone]}. Choose another answer, or "
            "train with a tokenizer that has it: of more such text, or with a larger vocabulary."
        )
    return (
        f"needs its answer {answer!r} to be the next token after {prompt!r}; this tokenizer cuts "
        f"the two together into {[tokenizer.decode([token]) for token in whole]}. End the prompt "
        "where a token ends."
    )
