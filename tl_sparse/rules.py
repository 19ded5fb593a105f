"""Rules for the fields of a config: what a value must be, in words and as a test.

A test takes any value at all and never raises, so that None, a list or a tensor where a number
belongs is answered in the same words as a number out of range.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeVar

Thing = TypeVar("Thing")


def checks_itself(thing: Thing) -> Thing:
    """Mark a dataclass or function that answers wrong types itself, with a `ValueError`.

    Run-time type checkers then leave its arguments alone, as after `typing.no_type_check`; editors
    still know the types.
    """
    marked: Any = thing
    marked.__no_type_check__ = True
    return thing


class Rule(NamedTuple):
    """What a field must be."""

    what: str
    """The end of the sentence that begins with the field's name: "is a positive number"."""
    holds: Callable[[Any], bool]
    advice: str = ""
    """What to do about it, where the rule does not say so itself."""

    @checks_itself
    def check(self, name: str, value: Any) -> None:
        """Raise a `ValueError` with the rule in words where it does not hold."""
        if not self.holds(value):
            raise ValueError(
                f"{name} {self.what}, got {value!r}.{self.advice and ' ' + self.advice}"
            )


@checks_itself
def is_integer(value: Any) -> bool:
    """Tell whether a value is a whole number, Python's or numpy's; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


@checks_itself
def is_number(value: Any) -> bool:
    """Tell whether a value is a finite real number; a bool is none."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer or fraction beyond any float
        return False


def integer(what: str, least: int, *, below: int | None = None) -> Rule:
    """Make a rule for whole numbers in [least, below)."""
    return Rule(what, lambda v: is_integer(v) and least <= v and (below is None or bool(v < below)))


def number(what: str, holds: Callable[[Any], Any], advice: str = "") -> Rule:
    """Make a rule for finite numbers with a property."""
    return Rule(what, lambda v: is_number(v) and bool(holds(v)), advice)


def choice(*values: Any, advice: str = "") -> Rule:
    """Make a rule for a word, or another constant, out of a few."""
    return Rule(
        f"is one of {', '.join(map(repr, values))}",
        lambda v: any(v is c or (isinstance(v, str) and v == c) for c in values),
        advice,
    )


def maybe(rule: Rule) -> Rule:
    """Let None pass too."""
    return Rule(f"{rule.what} or None", lambda v: v is None or rule.holds(v), rule.advice)


SWITCH = Rule("is True or False", lambda v: isinstance(v, bool))
WORD = Rule("is a string", lambda v: isinstance(v, str))
POSITIVE_INTEGER = integer("is a positive finite integer", 1)
NON_NEGATIVE_INTEGER = integer("is a non-negative finite integer", 0)
POSITIVE_NUMBER = number("is a positive finite number", lambda v: v > 0)
NON_NEGATIVE_NUMBER = number("is a non-negative finite number", lambda v: v >= 0)
FRACTION = number("is a fraction in [0, 1]", lambda v: 0 <= v <= 1)
DENSITY = number(
    "is a fraction of kept entries in (0, 1]",
    lambda v: 0 < v <= 1,
    "Leave it at 1.0 for a dense model; for '99 % sparse' write 0.01.",
)
BETAS = Rule(
    "are two numbers in [0, 1)",
    lambda v: (
        isinstance(v, list | tuple)
        and len(v) == 2
        and all(is_number(beta) and 0 <= beta < 1 for beta in v)
    ),
)


def check_fields(config: Any, rule: Rule, *names: str) -> None:
    """Check a rule on some fields of a config."""
    for name in names:
        rule.check(name, getattr(config, name))


@checks_itself
def plain(value: Any) -> Any:
    """Give a number as Python's own, which JSON knows: numpy's and fractions are turned into it."""
    if is_integer(value):
        return int(value)
    return float(value) if is_number(value) else value


def make_plain_(config: Any) -> None:
    """Turn the numbers of a frozen dataclass into Python's own, in place."""
    for field in fields(config):
        object.__setattr__(config, field.name, plain(getattr(config, field.name)))


SEED = integer("is an integer in [0, 2**63)", 0, below=2**63)


@checks_itself
def from_mapping(cls: Any, values: Any) -> Any:
    """Build a config from its fields' values; an unknown key is a `ValueError`."""
    known = {f.name for f in fields(cls)}
    if not isinstance(values, Mapping):
        raise ValueError(f"{cls.__name__} is built from a mapping of its fields, got {values!r}.")
    unknown = sorted(str(name) for name in values if name not in known)
    if unknown:
        raise ValueError(
            f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}."
        )
    return cls(**values)
