"""var_swap: the second half of a swap.

One pair, as an example (the answers are the two names):

    size = 4                        size = 4
        width, color = color,           color, width = width,
    ->  width                       ->  color

The prompts differ in the two names, which have changed places. Held-out prompts move three names
round: `a, b, c = b, c,` -> `a`.
"""

from tl_sparse.tasks.contexts import indent_of, plain, unfamiliar
from tl_sparse.tasks.templates import Answers, PairSpec, Sides
from tl_sparse.tasks.words import COPYABLE, Words


def _swapped(w: Words, before: str) -> Sides:
    start, (a, b) = before + indent_of(before), w.copied(2)
    return Sides((f"{start}{a}, {b} = {b},", f"{start}{b}, {a} = {a},"), {"a": a, "b": b})


def _swap(w: Words) -> Sides:
    return _swapped(w, plain(w))


def _swap_elsewhere(w: Words) -> Sides:
    return _swapped(w, unfamiliar(w))


def _turn(w: Words) -> Sides:
    before = unfamiliar(w)
    start, (a, b) = before + indent_of(before), w.copied(2)
    c = w.name(a, b)
    sides = f"{start}{a}, {b}, {c} = {b}, {c},", f"{start}{b}, {a}, {c} = {a}, {c},"
    return Sides(sides, {"a": a, "b": b})


VAR_SWAP = PairSpec(
    name="var_swap",
    decides="end a swap with the name that it began with",
    differ="the two names, which change places",
    answers=(Answers(" <a>", " <b>"), Answers("<a>", "<b>", tail=" ")),
    templates=(_swap,),
    held_out=(_turn, _swap_elsewhere),
    copies=COPYABLE,
)
