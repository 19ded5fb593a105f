"""Labels of concepts against labels written by hand, and against Python's own parser."""

import ast
import asyncio
import json
import textwrap
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

from tl_sparse import concepts, data
from tl_sparse.concepts.labelling import characters, label_tokens
from tl_sparse.data import train_tokenizer

EXAMPLES = {
    "string": ("x = 'a'", "    ^^ "),
    "single_quoted": ("f('a', \"b\")", "  ^^       "),
    "double_quoted": ("f('a', \"b\")", "       ^^  "),
    "triple_quoted": ("x = '''a'''", "    ^^^^   "),
    "f_string": ("f'a{b}' + 'c'", " ^^^^^       "),
    "docstring": ('"""d"""\nx = "s"', "^^^^           "),
    "comment": ("x = 1  # hi\ny", "       ^^^^  "),
    "depth_1": ("f(a[0])", " ^^^^^ "),
    "depth_2": ("f(a[0])", "   ^^  "),
    "depth_3": ("f([(1)])", "   ^^   "),
    "call_arguments": ("(f)(x) + (y)", "   ^^       "),
    "list": ("x = [1] + y[2]", "    ^^        "),
    "dict": ("{1: 2}, {3}", "^^^^^      "),
    "set": ("{1: 2}, {3}", "        ^^ "),
    "subscript": ("x = [1] + y[2]", "           ^^ "),
    "def_name": ("def go(a): pass", "  ^^^^         "),
    "parameters": ("def go(a): pass", "      ^^       "),
    "class_header": ("class A(B): x = 1", "^^^^^^^^^^       "),
    "decorator": ("@a.b\ndef f(): pass", "^^^^              "),
    "lambda": ("g = lambda: 0, 1", "    ^^^^^^^^^   "),
    "function_body": ("def f():\n  x\ny", "           ^  "),
    "import": ("import os; x", "^^^^^^^^^   "),
    "if_header": ("if a: b\nelif c: d", "^^^^    ^^^^^^   "),
    "for_header": ("for i in x: i", "^^^^^^^^^^   "),
    "while_header": ("while a: b", "^^^^^^^   "),
    "with_header": ("with a as b: c", "^^^^^^^^^^^   "),
    "return": ("def f(): return 1", "         ^^^^^^^^"),
    "assigned_value": ("x = y; z += w", "  ^^^     ^^^"),
    "keyword_name": ("f(a, b=c)", "     ^^  "),
    "attribute": ("a.b + 1", " ^^    "),
    "self_attribute": ("self.x + a.y", "    ^^      "),
    "number": ("x1 = 12", "     ^^"),
    "keyword": ("x is None", "  ^^ ^^^^"),
    "comparison": ("a <= b", "  ^^  "),
    "seen_name": ("a = b + a", "        ^"),
    "line_start": ("a\n\n  # c\nb", " ^^^^   ^ "),
    "indent_1": ("if a:\n b\nc", "       ^  "),
    "indent_2": ("if a:\n if b:\n  c\nd", "               ^  "),
    "indent_3": ("if a:\n if b:\n  if c:\n   d\ne", "                        ^  "),
    "block_start": ("if a:  # c\n b", "    ^^^^^^^^ "),
}
"""Each concept with a source, and a mark under every character at which it holds."""

MORE = [
    ("string", 'rb"x" b"y"', "  ^^   ^^ "),
    ("string", "x = 1  # don't", "              "),
    ("f_string", "rf'''{x}'''", "  ^^^^^^   "),
    ("string", "f'{a[\"k\"]}' + c", " ^^^^^^^^^     "),
    ("depth_1", "f'{(a)}'", "        "),
    ("depth_1", "['(', 1]", "^^^^^^^ "),
    ("docstring", "def f():\n 'd'\n 'e'", "          ^^      "),
    ("docstring", "x = 1\n'd'", "         "),
    ("def_name", "async \\\ndef f(): pass", "          ^^^        "),
    ("def_name", "async  def  f(): pass", "         ^^^^        "),
    ("parameters", "def f(a=(1, 2)): g(a)", "     ^^^^^^^^^        "),
    ("call_arguments", "f(g(x))(y)", " ^^^^^ ^^ "),
    ("call_arguments", "class A(B): pass", "                "),
    ("class_header", "class A : pass", "^^^^^^^^      "),
    ("class_header", "class A(B, m=C): pass", "^^^^^^^^^^^^^^^       "),
    ("keyword_name", "class A(B, m=C): pass", "           ^^        "),
    ("decorator", "@ a(1)\nclass B: pass", "^^^^^^               "),
    ("assigned_value", "x: int = 3", "       ^^^"),
    ("assigned_value", "x: int", "      "),
    ("assigned_value", "(a) = b = c", "        ^^^"),
    ("keyword_name", "f(*a, **b)", "          "),
    ("attribute", "f(1.5).real", "      ^^^^^"),
    ("attribute", "é.b", " ^^"),
    ("comparison", "def f() -> a: b << c", "                    "),
    ("keyword", "match = case", "            "),
    ("line_start", "f(\n a)\nb", "      ^ "),
    ("line_start", "'''\n\n'''", "        "),
    ("indent_1", "if a:\n b(\nc) # d\ne", "       ^^^^^^^^^  "),
    ("block_start", "if a: b\nc", "         "),
    ("seen_name", "ab = 'ab'\nab", "          ^^"),
    ("list", "[a for a in b]", "^^^^^^^^^^^^^ "),
    ("if_header", "a if b else c", "             "),
    ("for_header", "[a for a in b]", "              "),
    ("with_header", "with a, b: c", "^^^^^^^^^   "),
]


BRACKETS_AND_COMMENTS = [
    ("if_header", "if (a and (b)):\n  pass", ["if (a and (b))"]),
    ("if_header", "if (a # x: y\n ) : b\nelif (c): d", ["if (a # x: y\n ) ", "elif (c)"]),
    ("if_header", "if (lambda: a): b", ["if (lambda: a)"]),
    ("if_header", "if (a := b): c", ["if (a := b)"]),
    ("if_header", "if a[':']: b", ["if a[':']"]),
    ("while_header", "while (x): y", ["while (x)"]),
    ("for_header", "for (x) in (1, (2)): y", ["for (x) in (1, (2))"]),
    ("for_header", "for x in ((y)  # a: b\n  ): z", ["for x in ((y)  # a: b\n  )"]),
    ("with_header", "with (open(a)): b", ["with (open(a))"]),
    ("with_header", "with (a as b, # x: y\n c as (d),): e", ["with (a as b, # x: y\n c as (d),)"]),
    ("class_header", "class A(B # x: y\n  ): pass", ["class A(B # x: y\n  )"]),
    ("class_header", "class A(  # a: b\n): pass", ["class A(  # a: b\n)"]),
    ("class_header", "class A(B, m=(C)): pass", ["class A(B, m=(C))"]),
    ("decorator", "@(a)\nclass B: pass", ["@(a)"]),
    ("decorator", "@((  # @b (\n a)  # c\n)\ndef f(): pass", ["@((  # @b (\n a)  # c\n)"]),
    ("decorator", "@(a).b\n@(c @ d)\ndef f(): pass", ["@(a).b", "@(c @ d)"]),
    ("assigned_value", "x = (1)", ["= (1)"]),
    ("assigned_value", "x += ((1)  # )\n)\n(y)", ["= ((1)  # )\n)"]),
    ("assigned_value", "(x # = y\n) = 1", ["= 1"]),
    ("assigned_value", "(x # = y\n) **= 1", ["= 1"]),
    ("assigned_value", "x['='] = (y) = z", ["= z"]),
    ("assigned_value", "x: (a) = (b)", ["= (b)"]),
    ("keyword_name", "f(a=(1 + 2))", ["a="]),
    ("keyword_name", "f(a # =\n =(1))", ["a # =\n ="]),
    ("keyword_name", "f((a)==b, c = d)", ["c ="]),
    ("attribute", "(a.  # e.g. x\n b)", [".  # e.g. x\n b"]),
    ("attribute", "(a  # e.g. x\n .b)", [".b"]),
    ("attribute", "((a  # e.g. x\n ). b), ....c, '.'.d", [". b", ".c", ".d"]),
    ("parameters", "def f( # (\n a): pass", ["( # (\n a"]),
]
"""Where a bracket or a comment stands beside what bounds a concept: its spans, written by hand."""


def marked(text: str, concept: str) -> str:
    row = characters(text)[concepts.names().index(concept)]
    return "".join("^" if held else " " for held in row)


@pytest.mark.parametrize("concept", concepts.names())
def test_a_concept_holds_where_the_hand_written_example_says(concept):
    text, expected = EXAMPLES[concept]
    expected = expected.ljust(len(text))
    assert "^" in expected
    assert " " in expected
    assert marked(text, concept) == expected


@pytest.mark.parametrize(("concept", "text", "expected"), MORE)
def test_a_concept_holds_in_corner_cases_as_written_by_hand(concept, text, expected):
    assert marked(text, concept) == expected.ljust(len(text))[: len(text)]


@pytest.mark.parametrize(("concept", "text", "expected"), BRACKETS_AND_COMMENTS)
def test_closing_brackets_belong_to_what_they_close_and_comments_bound_nothing(
    concept, text, expected
):
    assert sorted(text[a:b] for a, b in concepts.spans(text)[concept]) == sorted(expected)


@pytest.mark.parametrize("package", [asyncio, json], ids=lambda m: m.__name__)
def test_headers_and_decorators_of_the_standard_library_are_whole(package):
    paths = sorted(Path(package.__file__).parent.glob("*.py"))
    assert len(paths) >= 5
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for concept, found in concepts.spans(text).items():
            for start, end in found:
                span = text[start:end]
                if concept.endswith("_header"):
                    assert text[end] == ":"
                    ast.parse(span.removeprefix("el") + ": pass")
                if concept == "decorator":
                    ast.parse(span + "\ndef f(): pass")
                if concept == "assigned_value":
                    ast.parse("x " + span)


def test_every_concept_has_an_example_and_a_description():
    assert set(EXAMPLES) == set(concepts.names()) == set(concepts.CONCEPTS)
    assert all(concepts.CONCEPTS.values())


def library(module) -> str:
    with open(module.__file__, encoding="utf-8") as file:
        return file.read()


@pytest.fixture(scope="module", params=[textwrap, ast, warnings], ids=lambda m: m.__name__)
def parsed(request):
    """A source of the standard library, its nodes outside f-strings, and the spans found in it."""
    text = library(request.param)
    nodes: list[ast.AST] = []
    waiting: list[ast.AST] = [ast.parse(text)]
    while waiting:
        nodes.append(waiting.pop())
        if not isinstance(nodes[-1], ast.JoinedStr):
            waiting.extend(ast.iter_child_nodes(nodes[-1]))
    found = {
        name: [text[a:b] for a, b in sorted(some)] for name, some in concepts.spans(text).items()
    }
    return text, nodes, found


def of(nodes, *kinds):
    return [node for node in nodes if isinstance(node, kinds)]


def test_the_arguments_of_every_call_parse_to_the_arguments_of_a_node(parsed):
    _, nodes, found = parsed
    mine = Counter()
    for span in found["call_arguments"]:
        call = ast.parse(f"f{span})", mode="eval").body
        assert isinstance(call, ast.Call)
        mine[ast.dump(ast.Tuple([*call.args, *(k.value for k in call.keywords)]))] += 1
    theirs = Counter(
        ast.dump(ast.Tuple([*call.args, *(k.value for k in call.keywords)]))
        for call in of(nodes, ast.Call)
    )
    assert mine == theirs


def test_definitions_statements_and_attributes_are_those_of_the_tree(parsed):
    text, nodes, found = parsed
    functions = of(nodes, ast.FunctionDef, ast.AsyncFunctionDef)
    assert Counter(span.split()[-1] for span in found["def_name"]) == Counter(
        node.name for node in functions
    )
    parameters = [
        ast.dump(ast.parse(f"def f{span}): pass").body[0].args)  # pyright: ignore
        for span in found.get("parameters", ())
    ]
    assert Counter(parameters) == Counter(ast.dump(node.args) for node in functions)
    assert Counter(found["attribute"]) == Counter(f".{n.attr}" for n in of(nodes, ast.Attribute))
    segments = [ast.get_source_segment(text, node) for node in of(nodes, ast.Return)]
    assert Counter(found["return"]) == Counter(segments)
    imports = [ast.get_source_segment(text, n) for n in of(nodes, ast.Import, ast.ImportFrom)]
    assert Counter(found["import"]) == Counter(imports)


def test_numbers_and_docstrings_are_those_of_the_tree(parsed):
    _, nodes, found = parsed
    values = [
        node.value
        for node in of(nodes, ast.Constant)
        if isinstance(node.value, int | float | complex) and not isinstance(node.value, bool)
    ]
    assert Counter(map(ast.literal_eval, found.get("number", []))) == Counter(values)
    owners = of(nodes, ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    docs = [ast.get_docstring(node, clean=False) for node in owners]
    docs = [doc for doc in docs if doc is not None]
    mine = [span.lstrip("\"'") for span in found.get("docstring", [])]
    assert len(mine) == len(docs)
    assert sum("\\" in span for span in mine) < len(mine)
    assert Counter(s for s in mine if "\\" not in s) <= Counter(docs)


def test_brackets_are_as_deep_as_counting_says_on_generated_programs(texts):
    for text in texts[:40]:
        inside = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}
        rows = characters(text)
        quoted = rows[concepts.names().index("string")] | rows[concepts.names().index("comment")]
        depth, expected = 0, []
        for char, is_quoted in zip(text, quoted, strict=True):
            depth += 0 if is_quoted else inside.get(char, 0)
            expected.append(depth)
        for least in (1, 2, 3):
            row = rows[concepts.names().index(f"depth_{least}")]
            assert row.tolist() == [depth >= least for depth in expected]


def test_a_token_has_the_label_of_its_last_character(texts):
    tokenizer = train_tokenizer(texts, vocab_size=400)
    for text in texts[:5]:
        found = concepts.labels(text, tokenizer)
        ids = tokenizer.encode(text)
        assert found.shape == (len(concepts.names()), len(ids))
        ends = [len(tokenizer.decode(ids[: i + 1])) - 1 for i in range(len(ids))]
        assert torch.equal(found, torch.from_numpy(characters(text)[:, ends]))


def test_a_letter_of_several_bytes_gives_its_label_to_each_of_its_tokens():
    tokenizer = train_tokenizer(["x = 1"], vocab_size=257)  # bytes alone
    found = concepts.labels("'é'+1", tokenizer)[concepts.names().index("string")]
    assert found.tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize("text", ["x = = 1", "x = 'a", "f(", "a\rb", "x\0y", "if a:\nb"])
def test_text_that_is_not_python_is_refused(text):
    tokenizer = train_tokenizer(["x = 1"], vocab_size=257)
    with pytest.raises(concepts.NotPythonError, match=r"The text is not Python|carriage return"):
        concepts.labels(text, tokenizer)


def test_a_tokenizer_that_does_not_know_its_places_is_refused():
    with pytest.raises(ValueError, match=r"fast tokenizer.*got object"):
        concepts.labels("x", object())


def test_a_corpus_is_labelled_as_its_documents_are(corpus):
    n = min(2000, corpus.validation.n_tokens)
    stream = label_tokens(corpus, corpus.tokenizer, n)
    assert stream.tokens.tolist() == corpus.validation.tokens[:n].tolist()
    ends = (stream.tokens == corpus.tokenizer.eos_token_id).nonzero()[:, 0].tolist()
    start = 0
    for end in ends:
        text = corpus.tokenizer.decode(stream.tokens[start:end])
        expected = concepts.labels(text, corpus.tokenizer)
        assert torch.equal(stream.labels[:, start:end], expected)
        assert len(set(stream.half[start:end].tolist())) == 1
        start = end + 1
    assert set(stream.half[ends].tolist()) == {-1}
    assert not stream.labels[:, ends].any()
    assert {0, 1} <= set(stream.half.tolist())


def test_documents_that_do_not_parse_are_read_but_not_scored(corpus):
    texts = ["x = 1\n", "x = = 1\n", "y = [2]\n", "z = 3\n"]
    stream = label_tokens(texts, corpus.tokenizer, 10**6)
    assert (stream.n_documents, stream.n_skipped) == (3, 1)
    ids = [corpus.tokenizer.encode(text) for text in texts]
    assert stream.tokens.tolist() == [
        t for some in ids for t in [*some, corpus.tokenizer.eos_token_id]
    ]
    start = len(ids[0]) + 1
    assert set(stream.half[start : start + len(ids[1])].tolist()) == {-1}
    assert (stream.half >= 0).sum() == sum(len(ids[i]) for i in (0, 2, 3))
    with pytest.raises(ValueError, match="at least two have to be Python that parses, and 1 of 2"):
        label_tokens(texts[:2], corpus.tokenizer, 10**6)


def test_the_first_tokens_of_each_window_are_not_scored(corpus):
    stream = label_tokens(["x = 1\n"] * 40, corpus.tokenizer, 100)
    cut = stream.cut(n_ctx=8, n_skipped=3)
    for place in range(100):
        assert cut.half[place] == (-1 if place % 8 < 3 else stream.half[place])


def test_halves_have_about_as_many_tokens_each():
    texts = list(data.generate_programs(60, seed=3))
    stream = label_tokens(texts, train_tokenizer(texts, vocab_size=300), 10**6)
    sizes = [(stream.half == half).sum().item() for half in (0, 1)]
    assert abs(sizes[0] - sizes[1]) < 0.1 * sum(sizes)
