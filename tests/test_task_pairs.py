"""Every task, judged by Python's own parser and by counting, never by the templates themselves."""

import ast
import builtins
import keyword
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tl_sparse import data, tasks
from tl_sparse.cli import app
from tl_sparse.data import words
from tl_sparse.data.mixture import library_part, mixture
from tl_sparse.tasks import catalog

TOKENS_2048 = [name for name in tasks.names() if name != "ioi_text"]
"""The tasks that a tokenizer trained on Python serves; first names stand in English only."""

FEW = {"n_train": 8, "n_validation": 4, "n_test": 8, "n_held_out": 8}

SIZES = {"n_train": 120, "n_validation": 30, "n_test": 60, "n_held_out": 60}


@pytest.fixture(scope="session")
def tokenizer():
    return catalog.sample_tokenizer()


@pytest.fixture(scope="session")
def made(tokenizer):
    return {name: tasks.get(name, tokenizer=tokenizer, **SIZES) for name in TOKENS_2048}


def pairs_of(task, *splits):
    return [pair for split in splits or tasks.SPLITS for pair in task.pairs[split]]


# What is right and what is wrong, by the parser ---------------------------------------------------


def closed(source):
    """Source with the `try` blocks ended that its context left open."""
    opened = [line for line in source.splitlines() if line.strip() == "try:"]
    ends = [f"{line.replace('try:', 'finally:')}\n{line.replace('try:', '    pass')}"
            for line in reversed(opened)]  # fmt: skip
    return "\n".join([source, *ends, ""])


def tree(source):
    """The parsed source, or None if Python refuses it."""
    try:
        return ast.parse(closed(source))
    except SyntaxError:
        return None


def last(source, kind) -> Any:
    """The node of a kind that begins last, or None."""
    parsed = tree(source)
    found: Any = [node for node in ast.walk(parsed) if isinstance(node, kind)] if parsed else []
    return max(found, key=lambda node: (node.lineno, node.col_offset), default=None)


def indent(prompt):
    line = prompt.rsplit("\n", 1)[-1]
    return line[: len(line) - len(line.lstrip())]


def body(prompt):
    return f"{indent(prompt)}    pass"


def brackets(prompt):
    """What closes the brackets that stand open, in a prompt without strings."""
    open_ones = []
    for sign in prompt:
        if sign in "([{":
            open_ones.append(sign)
        elif sign in ")]}":
            open_ones.pop()
    return "".join(")]}"["([{".index(sign)] for sign in reversed(open_ones))


def nothing(prompt):
    return ""


COMPLETIONS = {
    "single_double_quote": (nothing, nothing),
    "bracket_counting": (nothing, nothing),
    "final_kwarg": (lambda p: f"):\n{body(p)}", body),
    "with_as": (lambda p: f" as f:\n{body(p)}", lambda p: f"{indent(p)}pass"),
    "for_while": (lambda p: f" x:\n{body(p)}", body),
    "else_elif": (body, lambda p: f" > 1:\n{body(p)}"),
    "fstring_brace": (lambda p: 'value}")', nothing),
    "if_ternary": (body, lambda p: " 1"),
    "indent_for": (lambda p: " pass", lambda p: " pass"),
    "lambda_func": (lambda p: f" 1{brackets(p)}", lambda p: f"):\n{body(p)}"),
    "var_if": (body, lambda p: f"{indent(p)}pass"),
    "while_return_true": (body, lambda p: f"{indent(p)}pass"),
}
"""What may follow the right answer on either side, and makes Python of it; behind the wrong answer
the same is refused."""

BOTH_PARSE = {("final_kwarg", 1)}
"""Sides on which the wrong answer is Python too, and means something else."""


@pytest.mark.parametrize("name", COMPLETIONS)
def test_the_right_answer_is_python_and_the_wrong_one_is_not(made, name):
    for pair in pairs_of(made[name]):
        for side, completion in enumerate(COMPLETIONS[name]):
            prompt, right, wrong = pair.prompts[side], pair.answers[side], pair.answers[1 - side]
            rest = completion(prompt)
            assert tree(prompt + right + rest) is not None, prompt + right + rest
            if (name, side) not in BOTH_PARSE:
                assert tree(prompt + wrong + rest) is None, prompt + wrong + rest


def initial_value(prompt, name):
    """What a name was last assigned in a prompt, evaluated."""
    found = re.findall(rf"^\s*{name} = (.*)$", prompt, re.MULTILINE)
    return eval(found[-1])


@pytest.mark.parametrize("name", ["set_or_string", "set_or_string_fixedvarname"])
def test_a_variable_takes_the_right_answer_when_it_runs_and_not_the_wrong_one(made, name):
    for pair in pairs_of(made[name]):
        variable = pair.prompts[0].split()[-1]
        assert name == "set_or_string" or variable == "current"
        operations = {".add": lambda x: x.add("a"), " +=": lambda x: x + "a"}
        for prompt, right, wrong in zip(
            pair.prompts, pair.answers, reversed(pair.answers), strict=True
        ):
            value = initial_value(prompt, variable)
            operations[right](value)
            with pytest.raises((AttributeError, TypeError)):
                operations[wrong](initial_value(prompt, variable))


def test_the_last_parameter_has_a_default_where_it_must(made):
    for pair in pairs_of(made["final_kwarg"]):
        for side, prompt in enumerate(pair.prompts):
            functions = [
                last(prompt + answer + rest, (ast.FunctionDef, ast.AsyncFunctionDef))
                for answer, rest in (("=None", f"):\n{body(prompt)}"), ("):\n", body(prompt)))
            ]
            n_defaults = [f and len(f.args.defaults) for f in functions]
            assert n_defaults == ([n_defaults[0], None] if side == 0 else [1, 0])


def test_attributes_take_the_parameter_of_their_name(made):
    for pair in pairs_of(made["class_init"]):
        for prompt, right, wrong in zip(
            pair.prompts, pair.answers, reversed(pair.answers), strict=True
        ):
            function = last(prompt + right, ast.FunctionDef)
            parameters = {argument.arg for argument in function.args.args}
            assert {right.strip(), wrong.strip()} <= parameters
            assignment = last(prompt + right, ast.Assign)
            assert assignment.targets[0].attr == assignment.value.id


def test_modes_fit_the_names_of_the_files_as_the_training_text_has_them(made):
    known = {"r": words.READ_STEMS, "w": words.WRITE_STEMS}
    for pair in pairs_of(made["with_open"]):
        assert pair.answers == ("r", "w")
        for prompt, mode in zip(pair.prompts, pair.answers, strict=True):
            stem = re.findall(r"open\(['\"]?([a-z]+)", prompt)[-1]
            assert stem in {word.split("_")[0] for word in known[mode]}, stem
            rest = f" as f:\n{body(prompt)}" if "with " in prompt.rsplit("\n")[-1] else ""
            assert tree(f"{prompt}{mode}{prompt[-1]}){rest}") is not None, prompt


def test_colons_make_dictionaries_and_commas_make_lists(made):
    for pair in pairs_of(made["bracket_brace"]):
        for prompt, right, wrong, kind in zip(
            pair.prompts, pair.answers, reversed(pair.answers), (ast.Dict, ast.List), strict=True
        ):
            rest = f" 1{brackets(prompt)}"
            inner = last(prompt + right + rest, (ast.Dict, ast.List))
            assert isinstance(inner, kind), prompt
            found = last(prompt + wrong + rest, (ast.Dict, ast.List))
            assert not isinstance(found, kind) or found.lineno < prompt.count("\n") + 1


def test_a_swap_gives_back_what_it_takes(made):
    for pair in pairs_of(made["var_swap"]):
        for prompt, right, wrong in zip(
            pair.prompts, pair.answers, reversed(pair.answers), strict=True
        ):
            for answer, wanted in ((right, True), (wrong, False)):
                swap = last(prompt + answer, ast.Assign)
                names = [sorted(e.id for e in side.elts) for side in (swap.targets[0], swap.value)]
                assert (names[0] == names[1]) is wanted


def test_a_name_is_compared_behind_if_and_assigned_without(made):
    for pair in pairs_of(made["if_equals"]):
        compared, assigned = pair.prompts
        is_assertion = "assert" in compared.rsplit("\n")[-1]
        rest = " 1" if is_assertion else f" 1:\n{body(compared)}"
        assert last(f"{compared} =={rest}", ast.Compare) is not None
        assert tree(f"{compared} ={rest}") is None
        line = assigned.count("\n") + 1
        assert last(f"{assigned} = 1", ast.Assign).lineno == line
        found = last(f"{assigned} == 1", ast.Assign)
        assert found is None or found.lineno < line


def test_two_loop_variables_unpack_an_enumeration_and_one_counts_a_range(made):
    for pair in pairs_of(made["enumerate_range"]):
        for prompt, right, wrong in zip(
            pair.prompts, pair.answers, reversed(pair.answers), strict=True
        ):
            is_inner = "[" in prompt.rsplit("\n")[-1]
            rest = "(y)]" if is_inner else f"(y):\n{body(prompt)}"
            node = last(prompt + right + rest, ast.ListComp if is_inner else ast.For)
            node = node.generators[0] if is_inner else node
            names = node.target.elts if isinstance(node.target, ast.Tuple) else [node.target]
            items = {" enumerate": list(enumerate("ab")), " range": list(range(2))}
            n_values = {key: len(i) if isinstance(i := some[0], tuple) else 1
                        for key, some in items.items()}  # fmt: skip
            assert len(names) == n_values[right] != n_values[wrong]


def test_induction_repeats_what_followed(made):
    for pair in pairs_of(made["induction"]):
        for prompt, right in zip(pair.prompts, pair.answers, strict=True):
            parts = re.findall(r"\w+", prompt.rsplit("\n")[-1])
            assert parts[parts.index(parts[-1]) + 1] == right.strip()
            assert parts.count(parts[-1]) == 2


def test_the_other_one_of_two_names_is_asked_for(made):
    for pair in pairs_of(made["ioi"]):
        for prompt, right in zip(pair.prompts, pair.answers, strict=True):
            function = last(prompt + right, ast.FunctionDef)
            names = [argument.arg for argument in function.args.args]
            again = [name for name in names if re.search(rf"\b{name}\b", prompt.split(":", 1)[1])]
            assert sorted([*again, right.strip()]) == sorted(names)


def test_nonsense_has_the_prompts_of_the_quotes_and_other_answers(made):
    for pair in pairs_of(made["nonsense_quotes"]):
        assert [re.findall(r"\((['\"])[^'\"]*$", p) for p in pair.prompts] == [["'"], ['"']]
        assert pair.answers in {(" when", " is"), (" will", " is"), (" in", " is")}


# Where the prompts differ -------------------------------------------------------------------------

ONE_TOKEN = ("single_double_quote", "bracket_counting", "for_while", "else_elif", "induction",
             "ioi", "while_return_true", "nonsense_quotes")  # fmt: skip


@pytest.mark.parametrize("name", ONE_TOKEN)
def test_the_prompts_differ_in_one_token(made, name):
    task = made[name]
    assert task.equal_lengths
    for split in tasks.SPLITS:
        a, b = task.batch(split).tokens.chunk(2)
        assert ((a != b).sum(1) == 1).all()


DIFFERENCES = {
    "set_or_string": lambda a, b: b in {a.replace("set()", string) for string in ("''", '""')},
    "final_kwarg": lambda a, b: (
        a[: a.rindex("(")] == b[: b.rindex("(")]
        and a[a.rindex("(") :].replace("=None", "") == re.sub("_[a-z]+", "", b[b.rindex("(") :])
    ),
    "class_init": lambda a, b: a.rpartition("self.")[0] == b.rpartition("self.")[0],
    "with_as": lambda a, b: (
        a.rpartition("with ")[0] == b[: a.rindex("with ")]
        and a.rpartition("with ")[2] == b[a.rindex("with ") :].split(" = ")[1]
    ),
    "with_open": lambda a, b: a[: a.rindex("open(") + 5] == b[: b.rindex("open(") + 5],
    "bracket_brace": lambda a, b: re.findall(r"\w+", a) == re.findall(r"\w+", b),
    "fstring_brace": lambda a, b: a.replace('f"', '"') == b,
    "if_ternary": lambda a, b: a.replace("\nif ", " if ") == b.replace("\nif ", " if "),
    "var_swap": lambda a, b: set(re.findall(r"\w+|\W", a)) == set(re.findall(r"\w+|\W", b)),
    "indent_for": lambda a, b: a.rsplit("\n", 2)[0] == b.rsplit("\n", 2)[0],
    "lambda_func": lambda a, b: a.split()[-1] == b.split()[-1],
    "if_equals": lambda a, b: re.sub(r"(if|while|assert) (?=\w+$)", "", a) == b,
    "enumerate_range": lambda a, b: re.sub(r", \w+ in$", " in", a) == b,
    "var_if": lambda a, b: re.sub(r"(if|while) (\w+) == (\w+)$", r"\2 = \3", a) == b,
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_the_prompts_differ_only_where_the_task_says(made, name):
    for pair in pairs_of(made[name]):
        assert DIFFERENCES[name](*pair.prompts), pair


def test_every_task_is_judged():
    judged = {*COMPLETIONS, *DIFFERENCES, *ONE_TOKEN, "set_or_string_fixedvarname", "ioi_text"}
    assert judged == set(tasks.names())
    assert len(tasks.PAPER_TASKS) == 20
    assert tasks.names()[:20] == tasks.PAPER_TASKS


# Splits -------------------------------------------------------------------------------------------

FIXED = {
    *keyword.kwlist, *dir(builtins), "self", "__init__", "init", "current", "add", "f", "r", "w",
}  # fmt: skip
"""What any Python has, so that it may stand in train and in test."""

QUOTES = ("single_double_quote", "nonsense_quotes")
"""Their strings have different words, their lines before have not (tests/test_tasks.py)."""


def vocabulary(pairs):
    """Words and numbers; `LastRow` and `last_row` are two words each."""
    text = " ".join(text for pair in pairs for text in (*pair.prompts, *pair.answers))
    found = re.findall(r"[A-Z]?[a-z]+|\d+", text)
    return {word.lower() for word in found} - FIXED - {word.lower() for word in FIXED}


@pytest.mark.parametrize("name", [name for name in TOKENS_2048 if name not in QUOTES])
def test_no_word_or_number_of_test_prompts_is_in_train_or_validation(made, name):
    test = vocabulary(pairs_of(made[name], "test"))
    assert len(test) > 50
    assert test.isdisjoint(vocabulary(pairs_of(made[name], "train", "validation")))


def skeleton(prompt):
    """A prompt without its words: what is left is the form of its sentences."""
    kept = {*keyword.kwlist, "open", "print", "raise", "enumerate", "range", "current"}
    return re.sub(r"\w+", lambda m: m[0] if m[0] in kept else "x", prompt)


@pytest.mark.parametrize("name", TOKENS_2048)
def test_held_out_prompts_have_forms_that_no_other_prompt_has(made, name):
    held_out = {skeleton(p) for pair in made[name].pairs["held_out"] for p in pair.prompts}
    others = pairs_of(made[name], "train", "validation", "test")
    assert held_out.isdisjoint({skeleton(p) for pair in others for p in pair.prompts})


@pytest.mark.parametrize("name", TOKENS_2048)
def test_splits_share_no_prompt_and_repeat_none(made, name):
    prompts = Counter(p for pair in pairs_of(made[name]) for p in pair.prompts)
    assert set(prompts.values()) == {1}
    by_split = [
        {p for pair in made[name].pairs[split] for p in pair.prompts} for split in tasks.SPLITS
    ]
    assert sum(map(len, by_split)) == len(set().union(*by_split))


@pytest.mark.parametrize("name", TOKENS_2048)
def test_no_answer_is_more_often_right_than_wrong(made, name):
    for split in tasks.SPLITS:
        batch = made[name].batch(split)
        right, wrong = Counter(batch.correct.tolist()), Counter(batch.wrong.tolist())
        assert right == wrong


@pytest.mark.parametrize("name", TOKENS_2048)
def test_prompt_and_answer_as_one_text_are_the_prompts_tokens_and_one_more(made, name, tokenizer):
    task = made[name]
    for split in tasks.SPLITS:
        batch, n = task.batch(split), task.n_examples(split)
        for row in range(0, 2 * n, 7):
            pair = task.pairs[split][row % n]
            prompt = batch.tokens[row, : batch.last[row] + 1].tolist()
            assert prompt == tokenizer.encode(pair.prompts[row // n])
            for answer, token in zip(
                (pair.answers[row // n], pair.answers[1 - row // n]),
                (batch.correct[row].item(), batch.wrong[row].item()),
                strict=True,
            ):
                assert tokenizer.encode(pair.prompts[row // n] + answer) == [*prompt, token]


def test_the_same_seed_gives_the_same_pairs_and_another_seed_others(made, tokenizer):
    for name in ("class_init", "bracket_counting", "if_ternary"):
        again = tasks.get(name, tokenizer=tokenizer, **SIZES)
        assert again.pairs == made[name].pairs
        other = tasks.get(name, tokenizer=tokenizer, seed=1, **SIZES)
        both = [{p.prompts for p in task.pairs["train"]} for task in (other, again)]
        assert len(both[0] & both[1]) < 10


@pytest.mark.parametrize("name", TOKENS_2048)
def test_prompts_vary_in_length_and_context(made, name):
    prompts = [pair.prompts[0] for pair in made[name].pairs["train"]]
    assert len({len(prompt) for prompt in prompts}) > 20
    n_lines = Counter(prompt.count("\n") for prompt in prompts)
    assert len(n_lines) >= 3 or name == "induction"


# Training text ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def programs():
    """Programs of both dialects."""
    return {
        "plain": list(data.generate_programs(2000, seed=0)),
        "tasks": list(data.generate_programs(500, seed=0, dialect="tasks")),
    }


@pytest.mark.parametrize("dialect", ["plain", "tasks"])
def test_the_generated_text_has_no_test_prompt_and_no_held_out_prompt(made, programs, dialect):
    text = "\n".join(programs[dialect])
    # Most first lines are nowhere in the text, from a word's beginning to the line's end.
    ends = {line[m.start() :] for line in set(text.split("\n"))
            for m in re.finditer(r"\b\w|[#@]", line)}  # fmt: skip
    n_looked_for = 0
    for task in made.values():
        for prompt in (p for pair in pairs_of(task, "test", "held_out") for p in pair.prompts):
            first, *rest = prompt.split("\n")
            if rest and first in ends:
                assert prompt not in text, prompt
                n_looked_for += 1
    assert n_looked_for > 20


CONSTRUCTS = [
    r"^( *)\w+ = set\(\)$(?:\n.*){0,3}\n\1for \w+ in \w+:\n(?:.*\n)? +\w+\.add\(",
    r"^( *)current = (?:''|\"\")$(?:\n.*){0,3}\n\1for \w+ in \w+:\n(?:.*\n)? +current \+=",
    r"= \{\w+: \d+(?:, \w+: \d+)*\}$",
    r"= \[\w+, \w+\]$",
    r"= .*[)\]]\n *if \w+",
    r"= .*[)\]] if \w+.* else ",
    r"^( *)if (\w+) .*:\n.*\n\1elif \2 ",
    r"^( *)(\w+), (\w+) = \3, \2$",
    r"with open\([^)]*\) as \w+:$",
    r"^ *\w+ = open\([^)]*\)$",
    r'print\(f"[^"]* \{\w+\}"\)',
    r'print\("[^"]* \{\w+\}',
    r"def \w+\((\w+)(?:=None)?, (\w+).*\):\n +if \1 .*:\n +return \2$",
    r"def \w+\((\w+)(?:=None)?, (\w+).*\):\n +if \2 .*:\n +return \1$",
    r"^ *# (\w+ \w+).* \1",
]

OTHER_CONSTRUCTS = [
    r"for \w+, \w+ in enumerate\(",
    r"= lambda \w+:",
    r"def __init__\(self, (\w+).*\):\n +self\.\1 = \1$",
    r"def \w+\(.*, \w+=None\):$",
    r"^ *while \w+:$",
    r"= \[\[[^\[]*\]\]$",
]


def occurrences(pattern, programs):
    """How often a pattern is found in equally many programs of either dialect."""
    return {
        dialect: sum(len(re.findall(pattern, program, re.MULTILINE)) for program in some[:400])
        for dialect, some in programs.items()
    }


@pytest.mark.parametrize("pattern", CONSTRUCTS)
def test_the_dialect_for_the_tasks_has_more_of_their_constructs(programs, pattern):
    found = occurrences(pattern, programs)
    assert found["tasks"] > max(10, 1.1 * found["plain"])


@pytest.mark.parametrize("pattern", OTHER_CONSTRUCTS)
def test_the_dialect_for_the_tasks_keeps_what_the_plain_one_has(programs, pattern):
    found = occurrences(pattern, programs)
    assert found["tasks"] > max(10, 0.7 * found["plain"])


def test_programs_of_the_dialect_for_the_tasks_compile_and_the_default_is_plain(programs):
    for program in programs["tasks"]:
        compile(program, "generated", "exec")
    assert programs["plain"][:5] == list(data.generate_programs(5, seed=0, dialect="plain"))
    assert programs["plain"][:5] != programs["tasks"][:5]
    with pytest.raises((ValueError, TypeError), match="tasc"):  # the type checker of the tests
        data.generate_programs(1, seed=0, dialect="tasc")  # pyright: ignore[reportArgumentType]


# Tokenizers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def default_text():
    """A part of the default mixture."""
    library = library_part(800_000, seed=0)
    return [document.text for document in mixture(library, 800_000, seed=0)]


@pytest.mark.parametrize("vocab_size", [1024, 2048, 4096])
def test_tokenizers_of_the_default_text_serve_all_twenty_tasks(default_text, vocab_size):
    tokenizer = data.train_tokenizer(default_text, vocab_size)
    for name in tasks.PAPER_TASKS:
        task = tasks.get(name, tokenizer=tokenizer, **FEW)
        if name not in ("with_as", "indent_for") and not tasks.spec(name).copies:
            answers = [tasks.spec(name).answers[0].a, tasks.spec(name).answers[0].b]
            assert sorted(task.answer_ids) == sorted(answers)
        assert task.longest < 128


SPLIT_BYTES = ["single_double_quote", "indent_for", "ioi_text", "nonsense_quotes"]
"""Tasks whose answers begin with the same byte, or whose prompts have to be tokens."""


def test_single_bytes_serve_what_the_first_byte_decides():
    single_bytes = data.train_tokenizer(["a"], vocab_size=257)
    refused = []
    for name in tasks.names():
        try:
            task = tasks.get(name, tokenizer=single_bytes, **FEW)
            assert all(len(answer) == 1 for answer in task.answer_ids)
        except ValueError:
            refused.append(name)
    assert refused == SPLIT_BYTES
    task = tasks.get("bracket_counting", tokenizer=single_bytes, **FEW)
    assert set(task.answer_ids) == {"\n", "]"}


def test_a_refusal_names_the_answers_that_were_tried(tokenizer):
    with pytest.raises(ValueError, match=r"ioi_text can't be made .* Tried, in this order, .*<a>"):
        tasks.get("ioi_text", tokenizer=tokenizer)


class WordTokens:
    """A tokenizer of English: a word with the space before it, or a sign, is one token."""

    def encode(self, text, add_special_tokens=False):
        return [hash(word) for word in re.findall(r" ?\w+|[^\w]", text)]

    def decode(self, tokens):
        return " ".join(map(str, tokens))


def test_people_are_told_apart_in_english():
    task = tasks.get("ioi_text", tokenizer=WordTokens(), **SIZES)
    assert task.equal_lengths
    for pair in pairs_of(task):
        for prompt, right in zip(pair.prompts, pair.answers, strict=True):
            counts = Counter(re.findall(r"[A-Z][a-z]+", prompt))
            assert counts[right.strip()] == 1
            assert 2 in counts.values()


def test_a_short_context_gets_short_prompts(tokenizer):
    task = tasks.get("class_init", tokenizer=tokenizer, max_tokens=40, **SIZES)
    assert task.longest <= 40
    why = r"class_init found only 0 of 8 .* at most 5 tokens\. .*the task has a prompt of \d+ tok"
    with pytest.raises(ValueError, match=why):
        tasks.get("class_init", tokenizer=tokenizer, max_tokens=5, n_train=8)
    with pytest.raises(ValueError, match="Each split needs a pair or more"):
        tasks.get("class_init", tokenizer=tokenizer, n_test=0)


def test_a_task_may_be_without_held_out_pairs(tokenizer):
    task = tasks.get("for_while", tokenizer=tokenizer, n_train=8, n_held_out=0)
    assert task.n_examples("held_out") == 0
    assert "held_out" not in repr(task)
    with pytest.raises(ValueError, match="for_while has no held_out pairs"):
        task.batch("held_out")


# Pages --------------------------------------------------------------------------------------------


def test_the_page_of_the_docs_is_what_the_code_writes(tokenizer):
    page = Path(__file__).parents[1].joinpath("docs/tasks.md").read_text("utf-8")
    specs = [tasks.spec(name) for name in tasks.names()]
    written = catalog.page(specs, tokenizer=tokenizer)
    assert page.endswith(f"\n\n{written.rstrip()}\n"), (
        "run: tl-sparse tasks --markdown, and paste it in docs/tasks.md"
    )
    assert all(f"\n### {name}\n" in page for name in tasks.names())


def test_the_command_line_lists_tasks_and_shows_pairs(tokenizer, monkeypatch):
    monkeypatch.setattr(catalog, "sample_tokenizer", lambda: tokenizer)
    runner = CliRunner()
    listed = runner.invoke(app, ["tasks"]).stdout
    assert [line.split()[0] for line in listed.splitlines()] == list(tasks.names())
    assert "for_while                   go on with `in` behind `for`" in listed
    shown = runner.invoke(app, ["tasks", "for_while"]).output
    assert "' in' / ':\\n'" in shown
    assert all(f"\n{split}\n" in shown for split in tasks.SPLITS)
    wrong = runner.invoke(app, ["tasks", "whale"])
    assert wrong.exit_code == 1
    assert "There is no task 'whale'" in wrong.output
