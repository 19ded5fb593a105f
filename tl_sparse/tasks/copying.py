"""induction, ioi and ioi_text: copying a word from earlier in the prompt.

induction (the answers are words of the prompt; Olsson et al. 2022, arXiv 2209.11895):

    # size color width line color       # size color width line width
    ->  width                           ->  line

What followed a word the first time follows it again. The prompts differ only in the last word.

ioi, indirect object identification (Wang et al. 2022, arXiv 2211.00593) as Python:

    def load(size, color):              def load(size, color):
        if size is None:                    if color is None:
            return                              return
    ->  color                           ->  size

Of two names the one that was not named again. The prompts differ only in that name. Held-out
prompts delete one of the two.

ioi_text is the same in English, for tokenizers that have first names as single tokens:

    When Mary and John went to the park, Mary gave a letter to
    ->  John
"""

from tl_sparse.tasks.contexts import INDENT, function_header, plain, unfamiliar
from tl_sparse.tasks.templates import Answers, PairSpec, Sides
from tl_sparse.tasks.words import COPYABLE, MIN_SINGLE, PEOPLE, Pool, Words


def _repeated(w: Words, start: str, separator: str, *others: str) -> Sides:
    words = w.copied(w.between(5, MIN_SINGLE - 1), *others)
    first, second = w.rng.sample(range(len(words) - 1), 2)
    before = f"{start} {f'{separator} '.join(words)}{separator} "
    return Sides(
        (before + words[first], before + words[second]),
        {"a": words[first + 1], "b": words[second + 1]},
    )


def _in_a_comment(w: Words) -> Sides:
    return _repeated(w, "#", "")


def _in_a_list(w: Words) -> Sides:
    name = w.name()
    sides = _repeated(w, f"{name} =", ",", name)
    return Sides((f"{sides.prompts[0]},", f"{sides.prompts[1]},"), sides.fills)


def _behind_code(w: Words) -> Sides:
    return _repeated(w, f"{unfamiliar(w, 1, 2, headers=False)}#", "")


INDUCTION = PairSpec(
    name="induction",
    decides="repeat what followed a word the first time",
    differ="the last word",
    answers=(Answers(" <a>", " <b>"), Answers("<a>", "<b>", tail=" ")),
    templates=(_in_a_comment,),
    held_out=(_in_a_list, _behind_code),
    copies=COPYABLE,
)


def _other_name(w: Words, end: str, *, unusual: bool = False) -> Sides:
    """Two parameters, then one of them again in place of `<name>`."""
    a, b = w.copied(2)
    before = function_header(w, a, b)
    lines = unfamiliar if unusual else plain
    before += lines(w, 0, 2, indent=INDENT, headers=False, avoid=(a, b))
    sides = (before + end.replace("<name>", name) for name in (a, b))
    return Sides((next(sides), next(sides)), {"a": b, "b": a})


def _returned(w: Words) -> Sides:
    test = w.pick(("is None", f"== {w.number()}", f"< {w.number()}"))
    return _other_name(w, f"{INDENT}if <name> {test}:\n{INDENT * 2}return")


def _returned_elsewhere(w: Words) -> Sides:
    return _other_name(w, f"{INDENT}while <name>:\n{INDENT * 2}yield", unusual=True)


def _deleted(w: Words) -> Sides:
    return _other_name(w, f"{INDENT}del <name>\n{INDENT}return")


IOI = PairSpec(
    name="ioi",
    decides="give the other one of two names",
    differ="the name that is repeated",
    answers=INDUCTION.answers,
    templates=(_returned,),
    held_out=(_returned_elsewhere, _deleted),
    copies=COPYABLE,
)


PLACES: dict[Pool, tuple[str, ...]] = {
    "train": ("park", "store", "office", "school", "museum", "library"),
    "test": ("garden", "station", "beach", "hotel"),
}
GIFTS: dict[Pool, tuple[str, ...]] = {
    "train": ("a letter", "a book", "a ring", "a ticket", "a picture"),
    "test": ("an apple", "an umbrella", "an egg"),
}


def _given(w: Words, sentence: str) -> Sides:
    """A sentence with the two people `<a>` and `<b>` in either order, and one of them again."""
    a, b = people = w.copied(2)
    sentence = sentence.replace("<place>", w.pick(PLACES[w.pool]))
    sentence = sentence.replace("<gift>", w.pick(GIFTS[w.pool]))
    sentence = sentence.replace("<a>", a).replace("<b>", b)
    sides = (sentence.replace("<again>", person) for person in people)
    return Sides((next(sides), next(sides)), {"a": b, "b": a})


def _went(w: Words) -> Sides:
    return _given(w, "When <a> and <b> went to the <place>, <again> gave <gift> to")


def _had_lunch(w: Words) -> Sides:
    return _given(w, "After <a> and <b> had lunch at the <place>, <again> handed <gift> to")


def _argued(w: Words) -> Sides:
    return _given(w, "Yesterday <a> met <b> near the <place>. Later <again> sold <gift> to")


IOI_TEXT = PairSpec(
    name="ioi_text",
    decides="give the other one of two people",
    differ="the person who is named again",
    answers=(Answers(" <a>", " <b>"),),
    templates=(_went, _had_lunch),
    held_out=(_argued,),
    copies=PEOPLE,
)
