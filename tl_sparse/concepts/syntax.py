"""What `ast` tells about the characters of a source: calls, literals, definitions, statements.

One rule for each kind of node marks its spans. Nothing is looked for below an f-string, whose
inner nodes have reliable places in newer Pythons only.
"""

import ast
import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from tl_sparse.concepts.source import NotPythonError, Source

GAP = r"(?:\s|\\\n)+"
"""What may stand between two words of a line: space, or a line joined to the next."""
DEF = re.compile(rf"(?:async{GAP})?def{GAP}")
CLASS = re.compile(rf"class{GAP}")


def parse(text: str) -> ast.Module:
    """Parse a text.

    Raises:
        NotPythonError: If Python's parser refuses it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in strings
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotPythonError(f"The text is not Python: {error}.") from error


def mark_syntax(source: Source, tree: ast.Module) -> None:
    """Mark the spans of all concepts that need the parser, in place.

    The source's brackets, signs and strings have to be known: `mark_lexical` comes first. `ast`
    leaves out the brackets around an expression and says nothing of signs: those are looked up
    among the tokens, where comments and strings have none.
    """
    nodes: list[Any] = [tree]
    while nodes:
        node = nodes.pop()
        rule = RULES.get(type(node))
        if rule is not None:
            rule(source, node)
        if not isinstance(node, ast.JoinedStr):
            nodes.extend(ast.iter_child_nodes(node))


def _start(source: Source, node: Any) -> int:
    return source.at_byte(node.lineno, node.col_offset)


def _end(source: Source, node: Any) -> int:
    return source.at_byte(node.end_lineno, node.end_col_offset)


def _last_end(source: Source, end: int, nodes: Iterable[Any]) -> int:
    return max([end, *(_end(source, node) for node in nodes)])


def _docstring(source: Source, node: Any) -> None:
    if ast.get_docstring(node, clean=False) is None:
        return
    first, last = _start(source, node.body[0]), _end(source, node.body[0])
    for start, end in source.spans["string"]:
        if first <= start < last:
            source.mark("docstring", start, end)


def _function(source: Source, node: Any) -> None:
    found = DEF.match(source.text, _start(source, node))
    assert found is not None, "a definition begins with def"
    name_end = found.end() + len(node.name)
    keyword_end = source.text.index("def", found.start()) + len("def")
    source.mark("def_name", keyword_end - 1, name_end)
    opener = source.sign("(", _last_end(source, name_end, getattr(node, "type_params", ())))
    source.mark("parameters", opener, source.closers[opener])
    source.mark("function_body", _start(source, node.body[0]), _end(source, node))
    _decorators(source, node)
    _docstring(source, node)


def _class(source: Source, node: Any) -> None:
    start = _start(source, node)
    found = CLASS.match(source.text, start)
    assert found is not None, "a class begins with class"
    parts = (*getattr(node, "type_params", ()), *node.bases, *node.keywords)
    end = _last_end(source, found.end() + len(node.name), parts)
    source.mark("class_header", start, source.sign(":", end))
    _decorators(source, node)
    _docstring(source, node)
    _keywords(source, node)


def _decorators(source: Source, node: Any) -> None:
    for decorator in node.decorator_list:
        start, end = _start(source, decorator), _end(source, decorator)
        at = source.sign_before("@", start)
        opener = source.sign("(", at) if "(" in source.text[at:start] else start
        source.mark("decorator", at, source.closers[opener] + 1 if opener < start else end)


def _keywords(source: Source, node: Any) -> None:
    for keyword in node.keywords:
        if keyword.arg is not None:
            start = _start(source, keyword)
            source.mark("keyword_name", start, source.sign("=", start) + 1)


def _call(source: Source, node: Any) -> None:
    close = _end(source, node) - 1
    source.mark("call_arguments", source.openers[close], close)
    _keywords(source, node)


def _subscript(source: Source, node: Any) -> None:
    close = _end(source, node) - 1
    source.mark("subscript", source.openers[close], close)


def _attribute(source: Source, node: Any) -> None:
    end = _end(source, node)
    dot = source.sign(".", _end(source, node.value))
    source.mark("attribute", dot, end)
    if isinstance(node.value, ast.Name) and node.value.id == "self":
        source.mark("self_attribute", dot, end)


def _assignment(source: Source, node: Any) -> None:
    if node.value is None:  # an annotation alone
        return
    last = node.targets[-1] if isinstance(node, ast.Assign) else node.target
    last = getattr(node, "annotation", last)
    # From the sign on; a bracket around the target may stand between.
    source.mark("assigned_value", source.sign("=", _end(source, last)), _end(source, node))


def _with(source: Source, node: Any) -> None:
    last = node.items[-1]
    end = _end(source, last.optional_vars or last.context_expr)
    source.mark("with_header", _start(source, node), source.sign(":", end))


def _displayed(concept: str) -> Callable[[Source, Any], None]:
    return lambda source, node: source.mark(concept, _start(source, node), _end(source, node) - 1)


def _whole(concept: str) -> Callable[[Source, Any], None]:
    return lambda source, node: source.mark(concept, _start(source, node), _end(source, node))


def _header(concept: str, last: str) -> Callable[[Source, Any], None]:
    return lambda source, node: source.mark(
        concept, _start(source, node), source.sign(":", _end(source, getattr(node, last)))
    )


RULES: dict[type, Callable[[Source, Any], None]] = {
    ast.Module: _docstring,
    ast.FunctionDef: _function,
    ast.AsyncFunctionDef: _function,
    ast.ClassDef: _class,
    ast.Call: _call,
    ast.Subscript: _subscript,
    ast.Attribute: _attribute,
    ast.Assign: _assignment,
    ast.AugAssign: _assignment,
    ast.AnnAssign: _assignment,
    ast.With: _with,
    ast.AsyncWith: _with,
    ast.List: _displayed("list"),
    ast.ListComp: _displayed("list"),
    ast.Dict: _displayed("dict"),
    ast.DictComp: _displayed("dict"),
    ast.Set: _displayed("set"),
    ast.SetComp: _displayed("set"),
    ast.Lambda: _whole("lambda"),
    ast.Import: _whole("import"),
    ast.ImportFrom: _whole("import"),
    ast.Return: _whole("return"),
    ast.If: _header("if_header", "test"),
    ast.While: _header("while_header", "test"),
    ast.For: _header("for_header", "iter"),
    ast.AsyncFor: _header("for_header", "iter"),
}
"""What each kind of node marks."""
