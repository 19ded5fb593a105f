"""The generated Python, judged by the parser and by counting, never by the generator itself."""

import ast
import builtins
import io
import keyword
import re
import tokenize
from collections import Counter
from random import Random

import pytest

from tl_sparse.data import generate_program, generate_programs, words

N_PROGRAMS = 500


@pytest.fixture(scope="module")
def programs():
    return list(generate_programs(N_PROGRAMS, seed=11))


@pytest.fixture(scope="module")
def text(programs):
    return "\n".join(programs)


def string_literals(program):
    for token in tokenize.generate_tokens(io.StringIO(program).readline):
        if token.type == tokenize.STRING and not token.string.startswith('"""'):
            yield token.string


def test_every_program_compiles_without_a_warning(programs):
    for program in programs:
        compile(program, "generated", "exec")  # `return` and `break` outside their place fail too


def test_programs_are_distinct_and_of_the_promised_length(programs):
    assert len(set(programs)) == N_PROGRAMS
    lengths = [len(program) for program in programs]
    assert min(lengths) >= 300
    assert sorted(lengths)[int(0.98 * N_PROGRAMS)] <= 2600
    assert all(program.endswith("\n") for program in programs)
    assert all("    " in program for program in programs if "def " in program)


def test_the_same_seed_writes_the_same_programs_and_another_seed_others(programs):
    assert list(generate_programs(20, seed=11)) == programs[:20]
    assert set(generate_programs(20, seed=12)).isdisjoint(programs)


def test_the_stream_is_the_same_on_every_machine():
    # Golden: only `Random.random` and string seeds are used, which Python promises to keep.
    program = generate_program(Random("golden"))
    assert program.splitlines()[:3] == [
        'stock = "pencil train"',
        "island = 80",
        "state = sheet.skip('always', motor=7) if island >= island else 71",
    ]


def test_a_negative_count_is_refused():
    with pytest.raises(ValueError, match="n_programs is a count"):
        generate_programs(-1, seed=0)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^ *print\('[^']*'\)$",
        r'^ *print\("[^"]*"\)$',
        r"\w+\.\w+\('[^']*'\)",
        r'\w+\.\w+\("[^"]*", ',
        r"\('[^']*'\) ",  # the closing token before something other than a newline
        r'\("[^"]*"\) ',
        r"= \[[^][]*\]$",
        r"= \[\[[^][]*\]\]$",
        r"= \[\[\[.*\]\]\]$",
        r"= set\(\)$",
        r"\.add\(\w+\)$",
        r'= ""$',
        r"= ''$",
        r"\w+ \+= \w+$",
        r"current = set\(\)\n(?: *.*\n)?for \w+ in \w+:\n +current\.add\(",
        r"current = (?:''|\"\")\n(?: *.*\n)?for \w+ in \w+:\n +current \+= ",
        r"def \w+\((?:\w+, )*\w+=None\):$",
        r"def \w+\(\w+(?:, \w+)+\):$",
        r"def __init__\(self, (\w+).*\):\n +self\.\1 = \1$",
        r"with open\([^)]*\) as \w+:$",
        r"^ *\w+ = open\([^)]*\)$",
        r"= \{(?:'\w+'|\"\w+\"): ",
        r"= \{\d+: ",
        r"= \{\d+, \d+",
        r"= \(\d+, \d+",
        r"for \w+ in \w+:$",
        r"for \w+ in range\(\w+\):$",
        r"for \w+, \w+ in enumerate\(\w+\):$",
        r"while \w+:$",
        r"while True:$",
        r"return True$",
        r"return False$",
        r"else:$",
        r"elif \w+ [=<>!]+ ",
        r"f'[^'{]*\{\w+\}",
        r'f"[^"{]*\{\w+\}',
        r"= \S+ if \w+.* else \S+$",
        r"(\w+), (\w+) = \2, \1$",
        r"= lambda \w+: ",
        r"key=lambda \w+: ",
        r"if \w+ == True:$",
        r"^ *\w+ = True$",
        r"if \w+ == \d+:$",
        r"^ *# \w+",
        r'^ *"""[A-Z].*"""$',
        r"^import \w+$",
        r"^from \w+ import \w+$",
        r"^class [A-Z]\w+:$",
        r"^        +\w",  # nested indentation
        r"\w+\(.*\w+=\w+\)$",
    ],
)
def test_a_construct_is_common(programs, pattern):
    found = sum(bool(re.search(pattern, program, re.MULTILINE)) for program in programs)
    assert found >= 0.02 * N_PROGRAMS


def test_both_quote_styles_are_equally_common_and_mixed_within_a_file(programs):
    n_single = n_double = n_mixed = 0
    for program in programs:
        quotes = Counter(literal.lstrip("f")[0] for literal in string_literals(program))
        n_single, n_double = n_single + quotes["'"], n_double + quotes['"']
        n_mixed += bool(quotes["'"] and quotes['"'])
    assert 0.47 < n_single / (n_single + n_double) < 0.53
    assert n_mixed > 0.9 * N_PROGRAMS


def test_words_and_callees_tell_nothing_about_the_quotes(text):
    for group in (r"\b(\w+)\((['\"])", r"(['\"])(\w+)", r"(\w+)(['\"])[,)]"):
        pairs = [match.groups() for match in re.finditer(group, text)]
        by_word = {}
        for pair in pairs:
            quote, word = sorted(pair, key=lambda part: part not in "'\"")
            by_word.setdefault(word, Counter())[quote] += 1
        for word, counts in by_word.items():
            total = counts.total()
            if total >= 40:
                # 5 standard deviations of a fair coin
                assert abs(counts["'"] - total / 2) < 2.5 * total**0.5, word


def test_strings_have_one_to_eight_words_and_mostly_close_the_call(text):
    lengths = Counter(len(m[2].split()) for m in re.finditer(r"print\((['\"])([a-z ]+)\1", text))
    assert set(range(1, 9)) <= set(lengths)
    last = len(re.findall(r"\((['\"])[\w ]+\1\)", text))
    followed = len(re.findall(r"\((['\"])[\w ]+\1, ", text))
    assert last > 2 * followed > 0


def test_names_keep_the_kind_that_they_were_given(programs):
    """At the top level, before anything else is assigned to it, a set never gets `+=`."""
    n_checked = 0
    for program in programs:
        for statement, following in zip(
            *[iter_statements(program)[i:] for i in (0, 1)], strict=False
        ):
            name, initial = assigned(statement)
            if name is None or not isinstance(following, ast.For):
                continue
            for inner in ast.walk(following.body[0]):
                if isinstance(inner, ast.AugAssign) and ast.unparse(inner.target) == name:
                    assert initial != "set()"
                    n_checked += 1
                if isinstance(inner, ast.Attribute) and ast.unparse(inner) == f"{name}.add":
                    assert initial == "set()" or initial.startswith("{")
                    n_checked += 1
    assert n_checked > 100


def iter_statements(program):
    return ast.parse(program).body


def assigned(statement):
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id, ast.unparse(statement.value)
    return None, ""


def test_modes_fit_the_names_of_files(text):
    read = set(re.findall(r"open\(['\"]?([a-z]+)[\w.]*['\"]?, ['\"]r['\"]\)", text))
    written = set(re.findall(r"open\(['\"]?([a-z]+)[\w.]*['\"]?, ['\"]w['\"]\)", text))
    assert {"input", "source", "config"} <= read
    assert {"output", "log", "result"} <= written
    assert read.isdisjoint(written)


def test_no_word_is_a_keyword_or_a_builtin():
    names = [*words.NOUNS, *words.VERBS, *words.LETTERS, *words.ACCUMULATORS]
    assert [name for name in names if keyword.iskeyword(name) or hasattr(builtins, name)] == []
    assert len(set(words.NOUNS)) > 400
