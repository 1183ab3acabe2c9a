"""The context goes to the parameter that is meant for it, and to no other."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from slurm_worker.execution.signatures import (
    ContextPassing,
    NotCallable,
    accepting_context,
    accepting_context_only,
    check_kind,
    context_passing_of,
    is_coroutine,
)


def wrapped(function: Any) -> Any:
    """As decorators do: any arguments, under the function's own name and signature."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    return wrapper


def with_client(function: Any) -> Any:
    """A decorator that adds an argument."""

    @functools.wraps(function)
    def wrapper(item: Any, context: Any) -> Any:
        return function(item, context, "client")

    return wrapper


def forwarding(*arguments: Any) -> Any:
    return arguments


class Model:
    def __call__(self, item: Any, context: Any) -> Any:
        return item, context


@with_client
def has_client(item: Any, _context: Any, client: Any) -> Any:
    return item, client


CASES = [
    (lambda item: item, ContextPassing.NOTHING, "item"),
    (lambda item, context: (item, context), ContextPassing.SECOND, ("item", "context")),
    (lambda item, _anything: (item, _anything), ContextPassing.SECOND, ("item", "context")),
    (lambda item, dry_run=False: (item, dry_run), ContextPassing.NOTHING, ("item", False)),
    (lambda item, context=None: (item, context), ContextPassing.SECOND, ("item", "context")),
    (
        lambda item, n=1, context=None: (item, n, context),
        ContextPassing.BY_NAME,
        ("item", 1, "context"),
    ),
    (lambda item, *, context: (item, context), ContextPassing.BY_NAME, ("item", "context")),
    (lambda item, *, n=1: (item, n), ContextPassing.NOTHING, ("item", 1)),
    (lambda item, **rest: (item, rest), ContextPassing.NOTHING, ("item", {})),
    (lambda item, *rest: (item, rest), ContextPassing.SECOND, ("item", ("context",))),
    (forwarding, ContextPassing.SECOND, ("item", "context")),
    (wrapped(lambda item, dry_run=False: (item, dry_run)), ContextPassing.NOTHING, ("item", False)),
    (wrapped(lambda item, context: (item, context)), ContextPassing.SECOND, ("item", "context")),
    (has_client, ContextPassing.SECOND, ("item", "client")),
    (
        with_client(lambda *all_of_them: all_of_them),
        ContextPassing.SECOND,
        ("item", "context", "client"),
    ),
    (Model(), ContextPassing.SECOND, ("item", "context")),
    (
        functools.partial(lambda item, n, context: (n, context), n=2),
        ContextPassing.BY_NAME,
        (2, "context"),
    ),
]


@pytest.mark.parametrize(("function", "how", "result"), CASES)
def test_a_handler_in_a_file_gets_the_context_by_one_rule(
    function: Any, how: ContextPassing, result: Any
) -> None:
    assert context_passing_of(function) is how
    assert accepting_context(function, how)("item", "context") == result


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda: None, "no parameter for the item"),
        (lambda **_: None, "no parameter for the item"),
        (lambda *, item: item, "no parameter for the item"),
        (lambda context, item: item, "before context"),
        (lambda item, context, table: item, "missing a required argument: 'table'"),
        (lambda item, *, table: item, "missing a required .*argument: 'table'"),
    ],
)
def test_a_function_that_can_not_be_called_with_an_item_is_refused(
    function: Any, says: str
) -> None:
    with pytest.raises(NotCallable, match=says):
        context_passing_of(function)


def test_a_wrapper_with_a_second_parameter_gets_the_context() -> None:
    @functools.wraps(lambda item: item)
    def wrapper(item: Any, context: Any) -> Any:
        return item, context

    assert accepting_context(wrapper, context_passing_of(wrapper))("item", "context") == (
        "item",
        "context",
    )


def generator(_item: Any) -> Any:
    yield {}


async def coroutine(_item: Any) -> Any:
    return {}


async def async_generator(_item: Any) -> Any:
    yield {}


class AsyncModel:
    async def __call__(self, _item: Any) -> Any: ...


class Rows:
    def __call__(self, _item: Any) -> Any:
        yield {}


@pytest.mark.parametrize("what", [generator, async_generator, Rows(), Rows, 7, None, {}])
def test_a_function_that_returns_no_result_is_refused(what: Any) -> None:
    with pytest.raises(NotCallable):
        check_kind(what)


def test_an_object_with_an_async_call_is_a_coroutine_handler() -> None:
    assert is_coroutine(coroutine)
    assert is_coroutine(AsyncModel())
    assert is_coroutine(functools.partial(coroutine))
    assert not is_coroutine(Model())


@pytest.mark.parametrize(
    ("function", "result"),
    [
        (lambda context: context, "context"),
        (lambda worker: worker, "context"),
        (lambda: "none", "none"),
        (lambda verbose=False: verbose, False),
        (lambda verbose=False, context=None: (verbose, context), (False, "context")),
        (lambda *, context: context, "context"),
        (lambda *rest: rest, ("context",)),
        (wrapped(lambda verbose=False: verbose), False),
    ],
)
def test_setup_gets_the_context_where_it_has_a_parameter_for_it(function: Any, result: Any) -> None:
    assert accepting_context_only(function)("context") == result


def test_a_setup_with_other_required_parameters_is_refused() -> None:
    with pytest.raises(NotCallable, match="missing a required argument: 'table'"):
        accepting_context_only(lambda context, table: table)
