"""jaxtyping's checks of the annotations, each made once.

pytest's `--jaxtyping-packages` wraps every function of the package in `jaxtyping.jaxtyped`, which
binds the arguments of each call and checks its parameters twice, also where no shape is declared:
half of the suite's time. Here beartype checks each annotation once, with the axes of a call bound
together where there are shapes. Shapes that refer to values, as `"{n}"`, are not read this way.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
jaxtyped = jaxtyping.jaxtyped


def parts(annotation: object) -> Iterator[object]:
    """An annotation and all that it is made of."""
    yield annotation
    if typing.get_origin(annotation) is not typing.Literal:
        for part in typing.get_args(annotation):
            yield from parts(part)


def unless_marked(what: Callable[..., Any], checked: Callable[..., Any]) -> Callable[..., Any]:
    """The checked function, or the plain one once it is marked as `typing.no_type_check` marks."""

    @functools.wraps(what)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return (what if "__no_type_check__" in marks else checked)(*args, **kwargs)

    marks = vars(call)  # the function itself would be a cycle, and would keep its tensors
    return call


def with_axes(checked: Callable[..., Any]) -> Callable[..., Any]:
    """With the axes of one call bound together."""

    @functools.wraps(checked)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        with jaxtyped("context"):
            return checked(*args, **kwargs)

    return call


def checked_once(*, typechecker: Callable[..., Any]) -> Callable[..., Any]:
    """In place of `jaxtyping.jaxtyped`, as the import hook calls it."""

    def decorate(what: Any) -> Any:
        if not inspect.isfunction(what):  # classes, properties
            return jaxtyped(typechecker=typechecker)(what)
        if inspect.isgeneratorfunction(what):  # beartype would check it in its caller's axes
            return jaxtyped(typechecker=typechecker)(what)
        declared = [p for a in what.__annotations__.values() for p in parts(a)]
        if any(isinstance(part, str | typing.ForwardRef) for part in declared):
            return jaxtyped(typechecker=typechecker)(what)  # knows which names are not there yet
        checked = check(what)
        if checked is what:
            return what
        if any(isinstance(p, type) and issubclass(p, jaxtyping.AbstractArray) for p in declared):
            checked = with_axes(checked)
        return unless_marked(what, checked)

    return decorate


jaxtyping.jaxtyped = checked_once
