"""The words of the tasks: names, verbs, text and numbers, in two pools that share none.

Train and validation prompts take their words from the pool `train`, test prompts from `test`, and
held-out forms of sentence are filled from `train` again, so that what is new there is the form
alone. `Words` draws from one pool; everything random in a task goes through it.
"""

import random
from collections.abc import Sequence
from typing import Literal, TypeVar

T = TypeVar("T")

Pool = Literal["train", "test"]

NAMES: dict[Pool, tuple[str, ...]] = {
    "train": tuple("""
        value name line result data code arg part index item count size total color action
        address answer block buffer column content date document element error event field frame
        group label length level limit message node number option order parent point position record
        request root row score section state step table target text token user width word channel
        client device editor engine figure height image layer market matrix member model module
        owner package planet player price product profile project region report river rule sample
        season sensor signal station stock student theme ticket topic train vector vehicle village
    """.split()),  # noqa: SIM905  (a table of words reads better as text)
    "test": tuple("""
        key path file time stream handle argument method col entry balance context copy day example
        flag font header host letter link lock mark measure mode month pair pattern place plan
        port process reader rest scale server sign space symbol tag track version way week window
        year account agent amount area battery board bridge bucket camera cell circle city cloud
        company customer degree depth desk driver edge energy factor family garden goal grid guest
        island journey kitchen lake machine manager mirror music network ocean
    """.split()),  # noqa: SIM905
}  # fmt: skip
"""Words that name variables, attributes and arguments, and stand in texts."""

LETTERS: dict[Pool, tuple[str, ...]] = {
    "train": ("x", "y", "a", "b", "i", "n", "s", "t", "k"),
    "test": ("c", "d", "j", "m", "p", "q", "v", "z"),
}
"""Names of one letter."""

COPYABLE: dict[Pool, tuple[str, ...]] = {
    "train": (*NAMES["train"], *LETTERS["train"]),
    "test": (*NAMES["test"], *LETTERS["test"]),
}
"""Names that a prompt may ask for, where the tokenizer has them as single tokens."""

PEOPLE: dict[Pool, tuple[str, ...]] = {
    "train": tuple("""
        Mary John Tom James Dan Sarah Michael Paul Mark Laura Anna Peter Robert Emma Alice Jack
        Lily Ben Max Kate Simon Grace
        """.split()),  # noqa: SIM905
    "test": tuple("""
        David Adam Daniel Andrew Lucy Jane Alex Ryan Rachel Maria Martin Sam Tim Leo Mia Sue
        """.split()),  # noqa: SIM905
}  # fmt: skip
"""First names, for tasks in English."""

VERBS: dict[Pool, tuple[str, ...]] = {
    "train": tuple("""
        load find check parse update build create run show save send make apply remove scan clean
        collect convert draw gather inspect join move notify sort
        """.split()),  # noqa: SIM905
    "test": tuple("""
        fetch merge store expand reduce compare prepare select publish push query refresh repair
        review search split start stop trim
        """.split()),  # noqa: SIM905
}  # fmt: skip
"""What functions do."""

FILLERS: dict[Pool, tuple[str, ...]] = {
    "train": ("the", "a", "this", "no", "on", "of", "that", "all", "new", "first", "missing"),
    "test": ("an", "at", "from", "our", "these", "by", "last", "old", "invalid", "empty"),
}
"""Words between the others in a text."""

SUFFIXES: dict[Pool, tuple[str, ...]] = {
    "train": ("_name", "_size", "_list", "_count", "_to", "_str", "_data", "_value"),
    "test": ("_path", "_file", "_key", "_header", "_dir", "_plan", "_type"),
}
"""Endings of names."""

MIN_SINGLE = 8
"""A task that copies names needs so many of them as single tokens."""


class Words:
    """Draws words and numbers of one pool.

    `copied` holds what a prompt may ask for, and `suffixes` endings of names: one token each.
    """

    def __init__(
        self, rng: random.Random, pool: Pool, *, copied: Sequence[str], suffixes: Sequence[str]
    ) -> None:
        self.rng = rng
        self.pool: Pool = pool
        self._copied, self._suffixes = copied, suffixes

    def pick(self, options: Sequence[T]) -> T:
        """Draw one of some options."""
        return self.rng.choice(options)

    def chance(self, probability: float) -> bool:
        """Draw yes or no."""
        return self.rng.random() < probability

    def between(self, low: int, high: int) -> int:
        """Draw a whole number from `low` to `high`, both included."""
        return self.rng.randint(low, high)

    def name(self, *others: str) -> str:
        """Draw a name: a word, two words, a word with an ending, or a letter; none of `others`."""
        while True:
            u, name = self.rng.random(), self.pick(NAMES[self.pool])
            if u > 0.85:
                name = self.pick(LETTERS[self.pool])
            elif u > 0.70:
                name += self.pick(SUFFIXES[self.pool])
            elif u > 0.60:
                name += f"_{self.pick(NAMES[self.pool])}"
            if name not in others:
                return name

    def names(self, n: int, *others: str) -> list[str]:
        """Draw different names."""
        found: list[str] = []
        while len(found) < n:
            found.append(self.name(*others, *found))
        return found

    def plain_names(self, n: int) -> list[str]:
        """Draw different names of one word or letter."""
        return self.rng.sample(COPYABLE[self.pool], n)

    def copied(self, n: int, *others: str) -> list[str]:
        """Draw different names that a prompt may ask for."""
        return self.rng.sample([name for name in self._copied if name not in others], n)

    def suffix(self) -> str:
        """Draw an ending, one that is a single token if there are such."""
        return self.pick(self._suffixes or SUFFIXES[self.pool])

    def function(self) -> str:
        """Draw the name of a function."""
        verb = self.pick(VERBS[self.pool])
        return verb if self.chance(0.3) else f"{verb}_{self.pick(NAMES[self.pool])}"

    def class_name(self) -> str:
        """Draw the name of a class."""
        parts = self.rng.sample(NAMES[self.pool], self.between(1, 2))
        return "".join(part.title().replace("_", "") for part in parts)

    def callee(self) -> str:
        """Draw what may stand before the bracket of a call."""
        if self.chance(0.4):
            return f"{self.pick(NAMES[self.pool])}.{self.pick(VERBS[self.pool])}"
        return self.function()

    def number(self) -> str:
        """Draw a number of one to three digits; those that 3 divides are the test pool's."""
        while True:
            number = self.rng.randrange(self.pick((10, 100, 100, 1000)))
            if (number % 3 == 0) == (self.pool == "test"):
                return str(number)

    def text(self, low: int, high: int) -> str:
        """Draw words as in a message."""
        words = NAMES[self.pool] + FILLERS[self.pool] * 3
        return " ".join(self.pick(words).replace("_", " ") for _ in range(self.between(low, high)))
