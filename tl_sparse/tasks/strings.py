r"""fstring_brace: insert a variable in a formatted string, and in no other.

One pair, as an example (answers ` {` and `")`):

    total = load(rows)              total = load(rows)
    print(f"the last row is         print("the last row is
    ->  {                           -> ")

The prompts differ only in the letter `f`, which the tokenizer may join with what stands around it.
Held-out prompts raise or pass the string on.
"""

from tl_sparse.tasks.contexts import indent_of, plain, unfamiliar
from tl_sparse.tasks.templates import Answers, PairSpec, Sides
from tl_sparse.tasks.words import Words


def _formatted(w: Words, start: str) -> Sides:
    text = w.text(1, 5)
    return Sides((f'{start}f"{text}', f'{start}"{text}'))


def _call(w: Words) -> Sides:
    before = plain(w)
    start = w.pick(("print", w.callee(), f"{w.name()} = {w.callee()}"))
    return _formatted(w, f"{before}{indent_of(before)}{start}(")


def _raised(w: Words) -> Sides:
    before = plain(w)
    error = w.pick(("ValueError", "KeyError", "TypeError", "RuntimeError"))
    return _formatted(w, f"{before}{indent_of(before)}raise {error}(")


def _second_argument(w: Words) -> Sides:
    before = unfamiliar(w)
    return _formatted(w, f"{before}{indent_of(before)}{w.callee()}({w.name()}, ")


FSTRING_BRACE = PairSpec(
    name="fstring_brace",
    decides="insert a variable in a formatted string, end one that is not",
    differ="the letter `f` before the string",
    answers=(Answers(" {", '")'), Answers(" ", '")'), Answers(" ", '"')),
    templates=(_call,),
    held_out=(_raised, _second_argument),
    aligned=False,
)
