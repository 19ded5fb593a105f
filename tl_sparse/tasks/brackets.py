r"""bracket_counting and bracket_brace: which bracket is open, and how many of them.

bracket_counting (answers `]\n` and `]]\n`; the paper's Table 1):

    width = 40                      width = 40
    values = [5, 31, 7              values = [[5, 31, 7
    -> ]\n                          -> ]]\n

The prompts differ only in ` [` against ` [[`. Held-out prompts return the list, keep it in an
attribute, or have a whole row before the open one: `[5, 31], [7` against `[[5, 31], [7`. The
adversarial prompts are those that misled the paper's model, which averages over the context what
open brackets write (Figure 8): lists of 10 to 30 entries dilute the average, and a bracket that a
comment leaves open raises it.

bracket_brace (answers `:` and `,`):

    sizes = {5                      sizes = [5
    -> :                            -> ,

The prompts differ in the bracket, and where there are earlier entries in what stands between them:
`{5: 31, 7` against `[5, 31, 7`. Held-out prompts pass the dictionary or list to a call, return it,
or nest it in a list.
"""

from tl_sparse.tasks.contexts import function_header, indent_of, plain, unfamiliar
from tl_sparse.tasks.templates import Answers, PairSpec, Sides
from tl_sparse.tasks.words import Words


def _items(w: Words, low: int, high: int) -> list[str]:
    """Numbers or names."""
    n = w.between(low, high)
    return w.names(n) if w.chance(0.3) else [w.number() for _ in range(n)]


def _counted(before: str, start: str, items: str) -> Sides:
    return Sides((f"{before}{start}[{items}", f"{before}{start}[[{items}"))


def _list(w: Words) -> Sides:
    before = plain(w)
    return _counted(before, f"{indent_of(before)}{w.name()} = ", ", ".join(_items(w, 2, 9)))


def _list_of_an_attribute(w: Words) -> Sides:
    before = unfamiliar(w)
    start = f"{indent_of(before)}{w.name()}.{w.name()} = "
    return _counted(before, start, ", ".join(_items(w, 2, 9)))


def _returned_list(w: Words) -> Sides:
    before = function_header(w)
    before += unfamiliar(w, indent=indent_of(before), headers=False)
    return _counted(before, f"{indent_of(before)}return ", ", ".join(_items(w, 2, 9)))


def _second_row(w: Words) -> Sides:
    before = plain(w)
    rows = f"{', '.join(_items(w, 1, 4))}], [{', '.join(_items(w, 1, 4))}"
    return _counted(before, f"{indent_of(before)}{w.name()} = ", rows)


def _longer_list(w: Words) -> Sides:
    before = plain(w)
    return _counted(before, f"{indent_of(before)}{w.name()} = ", ", ".join(_items(w, 10, 30)))


def _after_a_comment(w: Words) -> Sides:
    """A list behind a comment that opens a bracket and does not close it."""
    before = plain(w)
    indent = indent_of(before)
    before += f"{indent}# {w.text(1, 2)} [{w.text(1, 2)}\n"
    return _counted(before, f"{indent}{w.name()} = ", ", ".join(_items(w, 2, 9)))


BRACKET_COUNTING = PairSpec(
    name="bracket_counting",
    decides="close as many brackets as are open",
    differ="one token, ` [` against ` [[`",
    answers=(Answers("]\n", "]]\n"), Answers("]", "]]"), Answers("\n", "]", tail="]")),
    templates=(_list,),
    held_out=(_list_of_an_attribute, _returned_list, _second_row),
    adversarial={
        "longer lists": (_longer_list,),
        "an open bracket in a comment": (_after_a_comment,),
    },
)


def _entries(w: Words, before: str, brackets: tuple[str, str]) -> Sides:
    """Some entries and the beginning of one more, once in a dictionary and once in a list."""
    items = _items(w, 1, 1) + [w.number() for _ in range(2 * w.pick((0, 0, 1, 2, 3)))]
    keyed = "".join(f"{k}: {v}, " for k, v in zip(items[0::2], items[1::2], strict=False))
    listed = "".join(f"{item}, " for item in items[:-1])
    last = items[-1]
    return Sides((f"{before}{brackets[0]}{keyed}{last}", f"{before}{brackets[1]}{listed}{last}"))


def _dictionary(w: Words) -> Sides:
    before = plain(w)
    return _entries(w, f"{before}{indent_of(before)}{w.name()} = ", ("{", "["))


def _argument(w: Words) -> Sides:
    before = unfamiliar(w)
    return _entries(w, f"{before}{indent_of(before)}{w.callee()}", ("({", "(["))


def _returned(w: Words) -> Sides:
    before = function_header(w)
    before += plain(w, 0, 2, indent=indent_of(before), headers=False)
    return _entries(w, f"{before}{indent_of(before, otherwise='    ')}return ", ("{", "["))


def _nested(w: Words) -> Sides:
    before = plain(w)
    return _entries(w, f"{before}{indent_of(before)}{w.name()} = ", ("[{", "[["))


BRACKET_BRACE = PairSpec(
    name="bracket_brace",
    decides="go on with a colon inside a dictionary, with a comma inside a list",
    differ="the open bracket, and the signs between earlier entries",
    answers=(Answers(":", ","),),
    templates=(_dictionary,),
    held_out=(_argument, _returned, _nested),
)
