r"""Tasks of your own: pairs of strings, in code or in a JSON-lines file.

One line of a file is one pair:

    {"prompts": ["The cat", "The cats"], "answers": [" is", " are"], "split": "train"}

`prompts` and `answers` are two strings each, the first answer being right behind the first prompt
and the second behind the second. `split` is "train", "validation", "test" or "held_out" and stands
in every line or in none; without it the pairs are divided by a seed.
"""

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_sparse.rules import checks_itself
from tl_sparse.tasks.base import NEEDED, SPLITS, Pair, PairTask, Split, encode_pairs

FRACTIONS: dict[Split, float] = {"train": 0.7, "validation": 0.1, "test": 0.2}
"""How pairs without splits are divided."""

FIELDS = ("prompts", "answers", "split")

AnyPair = Pair | Sequence[Sequence[str]]
"""A pair, or its two prompts and its two answers."""


@checks_itself
def from_pairs(
    name: str,
    pairs: Mapping[Split, Sequence[AnyPair]] | Iterable[AnyPair],
    *,
    tokenizer: Any,
    seed: int = 0,
) -> PairTask:
    """Make a task of pairs, given by split or all together.

    Pairs given all together are divided into 70 % train, 10 % validation and 20 % test; pairs that
    share a prompt stay together.

    Raises:
        ValueError: If a pair makes no fair question for this tokenizer, splits share a prompt, or
            there are too few pairs to divide.

    Examples:
        >>> from tl_sparse.tokenizer import train_tokenizer
        >>> tokenizer = train_tokenizer(["a"], vocab_size=257)
        >>> pairs = [((f"{i} (", f"{i} ["), (")", "]")) for i in range(10)]
        >>> from_pairs("closing", pairs, tokenizer=tokenizer)
        PairTask(closing: 7 train, 1 validation, 2 test pairs; answers ')' / ']')
    """
    if not isinstance(pairs, Mapping):
        return PairTask(name, _divided(name, _pairs(pairs), seed), tokenizer=tokenizer)
    given: Any = pairs
    if unknown := [split for split in given if split not in SPLITS]:
        raise ValueError(f"A split is one of {', '.join(SPLITS)}; {name} has {unknown[0]!r}.")
    given = {split: _pairs(some) for split, some in given.items()}
    return PairTask(name, given, tokenizer=tokenizer)


def _pairs(pairs: Iterable[Any]) -> list[Pair]:
    return [_pair(pair) for pair in pairs]


@checks_itself
def _pair(given: Any) -> Pair:
    """Give a pair of its two prompts and two answers, as tuples, lists or a `Pair`."""
    parts = (given.prompts, given.answers) if isinstance(given, Pair) else given
    if not (
        isinstance(parts, tuple | list)
        and len(parts) == 2
        and all(isinstance(two, tuple | list) and len(two) == 2 for two in parts)
        and all(isinstance(text, str) for two in parts for text in two)
    ):
        raise ValueError(
            f"A pair is two prompts and two answers, (('a (', 'a ['), (')', ']')); got {given!r}."
        )
    (prompt, other), (answer, its) = parts
    if not prompt or not other:
        raise ValueError(
            "A pair's two prompts are what the answers come after, and one of them is empty; got "
            f"{given!r}."
        )
    return Pair((prompt, other), (answer, its))


def from_jsonl(
    path: str | Path, *, tokenizer: Any, name: str | None = None, seed: int = 0
) -> PairTask:
    """Make a task of a JSON-lines file; see the head of this module. Empty lines are left out.

    `name` is that of the file if none is given.

    Raises:
        ValueError: If the file is not UTF-8, or a line is not such a pair or no fair question for
            this tokenizer; the error names the line.
    """
    path = Path(path)
    pairs: list[Pair] = []
    splits: list[Split | None] = []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error.reason} at byte {error.start}.") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                pair, split = _read(line, tokenizer)
                if splits and (split is None) != (splits[0] is None):
                    raise ValueError("'split' stands in every line or in none")
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {str(error).rstrip('.')}.") from None
            pairs.append(pair)
            splits.append(split)
    given: dict[Split, list[Pair]] = defaultdict(list)
    for pair, split in zip(pairs, splits, strict=True):
        if split is not None:
            given[split].append(pair)
    return from_pairs(name or path.stem, given or pairs, tokenizer=tokenizer, seed=seed)


def _read(line: str, tokenizer: Any) -> tuple[Pair, Split | None]:
    """Read one line."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"this is not JSON: {error}") from None
    if not isinstance(row, dict) or not {"prompts", "answers"} <= set(row) <= set(FIELDS):
        shown = list(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(
            f"a pair has the fields 'prompts' and 'answers' and may have 'split', got {shown}"
        )
    for key in ("prompts", "answers"):
        value = row[key]
        if not (
            isinstance(value, list) and len(value) == 2 and all(isinstance(x, str) for x in value)
        ):
            raise ValueError(f"{key!r} is a list of two strings, got {value!r}")
    if row.get("split", "train") not in SPLITS:
        raise ValueError(f"'split' is one of {', '.join(SPLITS)}, got {row['split']!r}")
    pair = Pair(tuple(row["prompts"]), tuple(row["answers"]))
    if isinstance(wrong := encode_pairs([pair], tokenizer)[0], str):
        raise ValueError(f"the task {wrong.rstrip('.')}")
    return pair, row.get("split")


def _divided(name: str, pairs: list[Pair], seed: int) -> dict[Split, list[Pair]]:
    """Divide pairs by a seed; those that share a prompt, directly or through others, as one."""
    groups = _groups(pairs)
    random.Random(f"{name} {seed}").shuffle(groups)
    divided: dict[Split, list[Pair]] = {split: [] for split in NEEDED}
    for n_left, group in zip(range(len(groups), 0, -1), groups, strict=True):
        empty: list[Split] = [split for split in NEEDED if not divided[split]]
        candidates = empty if n_left <= len(empty) else NEEDED
        split = max(candidates, key=lambda s: FRACTIONS[s] * len(pairs) - len(divided[s]))
        divided[split].extend(group)
    if not all(divided.values()):
        raise ValueError(
            f"The task {name} has {len(pairs)} pairs in {len(groups)} groups that share no prompt; "
            "to divide them into train, validation and test takes more. Add pairs, or give them by "
            "split."
        )
    return divided


def _groups(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Put pairs with a common prompt into one group."""
    group_of: dict[str, list[Pair]] = {}
    for pair in pairs:
        merged: list[Pair] = [pair]
        for prompt in pair.prompts:
            old = group_of.get(prompt, [])
            merged += [other for other in old if all(other is not one for one in merged)]
        for other in merged:
            group_of.update(dict.fromkeys(other.prompts, merged))
    return list({id(group): group for group in group_of.values()}.values())
