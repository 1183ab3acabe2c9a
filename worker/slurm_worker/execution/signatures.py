"""Which of a function's parameters receives the context, and whether it can be called.

One rule for handlers in files and for functions of ``@task.slurm_map``: the first parameter is
the item. A parameter named ``context`` receives the context. In a file, a second parameter
without a default receives it too, whatever its name, as handlers are called
``handle(item, context)``. All other parameters keep their defaults.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import Enum
from inspect import Parameter, Signature
from typing import Any

CONTEXT = "context"
_BY_PLACE = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class ContextPassing(Enum):
    """How a function receives the context."""

    NOTHING = "nothing"  #: ``f(item)``
    SECOND = "second"  #: ``f(item, context)``
    BY_NAME = "by name"  #: ``f(item, context=context)``


class NotCallable(ValueError):
    """The function can't be called with an item; the message gives the reason and the fix."""


def check_kind(function: object) -> None:
    """Raise a `NotCallable` for a class, a generator function and what is not callable."""
    if inspect.isclass(function):
        raise NotCallable("is a class; name a function")
    if not callable(function):
        raise NotCallable(f"is {type(function).__name__}, not a function; name a function")
    if any(
        inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code)
        for code in (function, type(function).__call__)
    ):
        raise NotCallable("is a generator function (it has a yield); return a list of rows")


def is_coroutine(function: Callable[..., Any]) -> bool:
    """Whether a call gives a coroutine: ``async def``, or an object whose call is one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        type(function).__call__
    )


def context_passing_of(function: Callable[..., Any]) -> ContextPassing:
    """How a handler in a file receives the context; see `context_passing`."""
    found = _signatures(function)
    if found is None:
        return ContextPassing.SECOND
    named, real = found
    try:
        return context_passing(named, real=real, any_name=True)
    except NotCallable:
        if real == named:
            raise
        return context_passing(real, any_name=True)


def context_passing(
    signature: Signature, *, real: Signature | None = None, any_name: bool
) -> ContextPassing:
    """How a function of this signature receives the context.

    Args:
        signature: the parameters, as their author named them.
        real: those that a call meets, where a decorator replaced the function by another.
        any_name: a second parameter without a default receives the context, whatever its name.

    Raises:
        NotCallable: if the function can't be called like that.
    """
    parameters = list(signature.parameters.values())
    places = [parameter for parameter in parameters if parameter.kind in _BY_PLACE]
    several = any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in parameters)
    if not places and not (several and any_name):
        raise NotCallable(f"{signature} has no parameter for the item; add one as the first")
    if places and places[0].name == CONTEXT:
        raise NotCallable(f"{signature} has no parameter for the item before context")
    how = _how(signature, places, several=several and any_name, any_name=any_name)
    names: dict[str, None] = {CONTEXT: None} if how is ContextPassing.BY_NAME else {}
    _bind(signature, real or signature, 2 if how is ContextPassing.SECOND else 1, names)
    return how


def _how(
    signature: Signature, places: list[Parameter], *, several: bool, any_name: bool
) -> ContextPassing:
    context = signature.parameters.get(CONTEXT)
    if context is not None and context.kind in (*_BY_PLACE, Parameter.KEYWORD_ONLY):
        return ContextPassing.SECOND if context in places[1:2] else ContextPassing.BY_NAME
    if len(places) < 2:
        return ContextPassing.SECOND if several else ContextPassing.NOTHING
    wanted = any_name and places[1].default is Parameter.empty
    return ContextPassing.SECOND if wanted else ContextPassing.NOTHING


def accepting_context(function: Callable[..., Any], how: ContextPassing) -> Callable[..., Any]:
    """The function as one that is called ``f(item, context)``."""
    if how is ContextPassing.NOTHING:
        return lambda item, _context: function(item)
    if how is ContextPassing.BY_NAME:
        return lambda item, context: function(item, context=context)
    return function


def accepting_context_only(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is called without an item, as one that is called ``f(context)``.

    A parameter named ``context``, or a first one without a default, receives the context. Raises
    a `NotCallable` if it can't be called like that.
    """
    found = _signatures(function)
    if found is None:
        return function
    signature, real = found
    parameters = list(signature.parameters.values())
    context = signature.parameters.get(CONTEXT)
    first = parameters[0] if parameters else None
    if context is not None and (context is not first or context.kind is Parameter.KEYWORD_ONLY):
        _bind(signature, real, 0, {CONTEXT: None})
        return lambda context: function(context=context)
    if first is not None and (
        first.name == CONTEXT
        or first.kind is Parameter.VAR_POSITIONAL
        or (first.kind in _BY_PLACE and first.default is Parameter.empty)
    ):
        _bind(signature, real, 1, {})
        return function
    _bind(signature, real, 0, {})
    return lambda _context: function()


def _signatures(function: Callable[..., Any]) -> tuple[Signature, Signature] | None:
    """The author's signature, and the one that a call meets; None for compiled code."""
    try:
        return inspect.signature(function), inspect.signature(function, follow_wrapped=False)
    except (ValueError, TypeError):
        return None


def _bind(signature: Signature, real: Signature, places: int, names: dict[str, None]) -> None:
    try:
        real.bind(*[None] * places, **names)
    except TypeError as error:
        raise NotCallable(
            f"{signature} can't be called ({error}); give its parameters defaults, except "
            f"the item's and {CONTEXT}"
        ) from None
