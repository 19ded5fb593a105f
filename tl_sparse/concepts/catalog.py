"""The concepts: what can be true of a place in Python source, each in a line of words."""

CONCEPTS = {
    "string": "a string is open",
    "single_quoted": "a string opened by one ' is open",
    "double_quoted": 'a string opened by one " is open',
    "triple_quoted": "a string opened by three quotes is open",
    "f_string": "an f-string is open",
    "docstring": "a docstring is open",
    "comment": "in a comment",
    "depth_1": "at least one bracket is open",
    "depth_2": "at least two brackets are open",
    "depth_3": "at least three brackets are open",
    "call_arguments": "between the parentheses of a call",
    "list": "in a list or list comprehension",
    "dict": "in a dict or dict comprehension",
    "set": "in a set or set comprehension",
    "subscript": "between the square brackets of a subscript",
    "def_name": "from `def` to the end of the function's name",
    "parameters": "between the parentheses of a function's definition",
    "class_header": "from `class` to the colon",
    "decorator": "in a decorator",
    "lambda": "in a lambda",
    "function_body": "in the body of a function",
    "import": "in an import statement",
    "if_header": "in the header of an `if` or `elif`",
    "for_header": "in the header of a `for` statement",
    "while_header": "in the header of a `while`",
    "with_header": "in the header of a `with`",
    "return": "in a return statement",
    "assigned_value": "from the `=` of an assignment to the end of its value",
    "keyword_name": "the name of a keyword argument, and its `=`",
    "attribute": "the dot and the name of an attribute",
    "self_attribute": "the dot and the name of an attribute of `self`",
    "number": "in a number",
    "keyword": "in a keyword of the language",
    "comparison": "in one of == != < > <= >=",
    "seen_name": "in a name that stands earlier in the document too",
    "line_start": "behind the end of a line, before the first word of the next",
    "indent_1": "in a statement at indentation level 1",
    "indent_2": "in a statement at indentation level 2",
    "indent_3": "in a statement at indentation level 3 or deeper",
    "block_start": "from the colon of a header to the first word of its block, on a new line",
}
"""Each concept's name and what it says. None of them is looked for in the fields of f-strings."""


def names() -> tuple[str, ...]:
    """Give the names of all concepts, in the order of `labels`' rows.

    Examples:
        >>> len(names()), names()[:3]
        (40, ('string', 'single_quoted', 'double_quoted'))
    """
    return tuple(CONCEPTS)
