"""The checks of types and shapes, under which all tests run, find what they are for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import jaxtyping
import pytest
import torch
from beartype import beartype
from conftest import make_model
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from tl_sparse.masks import zero_outside_
from tl_sparse.rules import checks_itself


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """As the import hook decorates each function of the package."""
    return jaxtyping.jaxtyped(typechecker=beartype)(function)


def product(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"] | None) -> Float[Tensor, "n m"]:
    return torch.zeros(2, 4) if b is None else a @ b


def listed(mode: Literal["a", "b"], array: Float[Tensor, " n"]) -> list[Float[Tensor, " n"]]:
    return [array if mode == "a" else torch.zeros(7)]


def count(n: int, /, *, names: "list[str]") -> int:
    return n + len(names) if n and n != "a" else "none"  # pyright: ignore[reportReturnType]


def test_axes_of_a_call_agree_in_its_parameters_and_its_result():
    call = checked(product)
    assert call(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    assert call(torch.ones(5, 3), torch.ones(3, 4)).shape == (5, 4)  # each call has its own
    assert call(torch.ones(2, 3), None).shape == (2, 4)
    with pytest.raises(TypeCheckError, match="parameter b"):
        call(torch.ones(2, 3), torch.ones(4, 3))
    with pytest.raises(TypeCheckError, match="parameter a"):
        call(torch.ones(2, 3).long(), None)
    with pytest.raises(TypeCheckError, match="return"):
        call(torch.ones(3, 3), None)


def test_axes_of_a_call_inside_another_are_its_own():
    inner = checked(product)

    def outer(a: Float[Tensor, "n k"]) -> Float[Tensor, "k n"]:
        inner(torch.ones(9, 8), torch.ones(8, 7))
        return a

    assert checked(outer)(torch.ones(3, 3)).shape == (3, 3)
    with pytest.raises(TypeCheckError, match="return"):
        checked(outer)(torch.ones(2, 3))


def test_axes_of_a_context_manager_are_its_own():
    @contextmanager
    @checked
    def held(a: Float[Tensor, "n k"], b: Float[Tensor, " k"]) -> Iterator[None]:
        yield

    def outer(a: Float[Tensor, "n k"]) -> None:
        with held(torch.ones(9, 8), torch.ones(8)):
            pass

    checked(outer)(torch.ones(2, 3))
    with pytest.raises(TypeCheckError):
        held(torch.ones(9, 8), torch.ones(9))


def test_choices_and_arrays_in_lists_are_checked():
    call = checked(listed)
    assert len(call("a", torch.ones(3))) == 1
    for mode, array in [("c", torch.ones(3)), ("a", torch.ones(3, 1)), ("b", torch.ones(3))]:
        with pytest.raises(TypeCheckError):
            call(mode, array)


def test_types_without_a_shape_are_checked_too_and_in_quotes():
    call = checked(count)
    assert call(1, names=["a"]) == 2
    for wrong in [("1", []), (1, "a"), (0, [])]:
        with pytest.raises(TypeCheckError):
            call(wrong[0], names=wrong[1])


def test_what_checks_itself_is_left_alone():
    assert checks_itself(checked(count))("a", names=[]) == "none"
    assert checks_itself(checked(product))(torch.ones(3, 3), None).shape == (2, 4)


def test_functions_and_methods_of_the_package_are_checked():
    model: Any = make_model()
    with pytest.raises(TypeCheckError, match="return_type"):
        model(torch.zeros(2, 3, dtype=torch.long), return_type="logit")
    with pytest.raises(TypeCheckError, match="mask"):
        zero_outside_(torch.ones(4, 3), torch.ones(3, 4).bool())
