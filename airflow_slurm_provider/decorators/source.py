"""The source of a decorated function, as the module that is shipped.

The text is shipped unchanged, so strings of several lines in it stay the same. A function that
could not be called on a node is refused here, when the DAG is parsed.
"""

from __future__ import annotations
import __future__

import ast
import inspect
from collections.abc import Callable
from typing import Any

from slurm_worker.errors import UserError, describe
from slurm_worker.execution.signatures import (
    ContextPassing,
    NotCallable,
    check_kind,
    context_passing,
)

_DECORATOR = "slurm_map"
_FUTURE = "from __future__ import annotations\n\n"


def source_of(function: Callable[..., Any]) -> tuple[str, ContextPassing]:
    """A module that defines the function, without its decorator; and how it takes the context.

    Raises:
        UserError: in one line, if it can't be shipped or called with an item.
    """
    name = getattr(function, "__qualname__", None) or type(function).__name__
    try:
        check_kind(function)
        _check_plain(function)
        how = context_passing(inspect.signature(function), any_name=False)
        source = _module(function)
        _try(source)
    except NotCallable as error:
        raise UserError(f"@task.slurm_map: {name} {error}") from None
    return source, how


def _check_plain(function: Callable[..., Any]) -> None:
    if inspect.ismethod(function):
        raise NotCallable("is a method; decorate a function")
    if not inspect.isfunction(function):
        raise NotCallable(f"is {type(function).__name__}, whose source can't be shipped; use def")
    if function.__name__ == "<lambda>":
        raise NotCallable("is a lambda, whose source can't be shipped; use def")
    if hasattr(function, "__wrapped__"):
        raise NotCallable("is wrapped by another decorator, which is not shipped; call it inside")
    outer = [name for name in function.__code__.co_freevars if name != function.__name__]
    if outer:
        raise NotCallable(
            f"uses {outer[0]} of the function around it, which is not shipped; set it inside, or "
            "let the items hold it"
        )


def _module(function: Callable[..., Any]) -> str:
    try:
        lines = inspect.getsource(function).splitlines(keepends=True)
    except (OSError, TypeError):
        raise NotCallable("has no source that can be found; define it in a file") from None
    indented = lines[0][:1].isspace()
    # Not dedented: that would change strings of several lines in it.
    begin = "if True:\n" if indented else ""
    try:
        tree = ast.parse(begin + "".join(lines))
    except (SyntaxError, ValueError) as error:
        raise NotCallable(f"has source that can't be parsed alone ({error})") from None
    body = tree.body[0].body if isinstance(tree.body[0], ast.If) else tree.body
    node = body[0]
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        raise NotCallable("is not defined by a def statement of its own")
    for decorator in node.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        if ast.unparse(called).rpartition(".")[2] != _DECORATOR:
            raise NotCallable(
                f"is decorated with @{ast.unparse(called)}, which is not shipped; call it inside"
            )
    first = node.lineno - 1 - bool(begin)
    future = function.__code__.co_flags & __future__.annotations.compiler_flag
    return f"{_FUTURE if future else ''}{begin}{''.join(lines[first:])}"


def _try(source: str) -> None:
    """Define the function as on a node, without the rest of its file."""
    try:
        # Future statements of this module must not apply.
        exec(compile(source, "<slurm_map>", "exec", dont_inherit=True), {"__name__": "slurm_map"})  # noqa: S102 the DAG's own text
    except Exception as error:
        raise NotCallable(
            f"can't be defined without the rest of its file ({describe(error)}); its defaults and "
            "annotations may use built-in names alone"
        ) from None
