"""A handler's function, looked at in its source: what a node would refuse is refused at submit.

Nothing is imported. What the source alone does not tell (a function that is made elsewhere, or
changed by a decorator) is left to the node, which refuses it in one line.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from inspect import Parameter, Signature

from slurm_worker.errors import UserError
from slurm_worker.execution.signatures import NotCallable, context_passing

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def check_function(tree: ast.Module, name: str, where: str) -> None:
    """Refuse a handler that can't be called.

    Args:
        tree: the handler's module.
        name: of the function.
        where: begins the message: the field and its value.

    Raises:
        UserError: if it is a class, a generator function, or has parameters that get no value.
    """
    bound = [node for node in _of_scope(tree) if _binds(node, name)]
    if len(bound) != 1 or bound[0] not in tree.body:
        return
    node = bound[0]
    try:
        if isinstance(node, ast.ClassDef):
            raise NotCallable("is a class; name a function")
        if not isinstance(node, _Function) or not all(map(_is_batch, node.decorator_list)):
            return
        if any(isinstance(each, ast.Yield | ast.YieldFrom) for each in _of_scope(node)):
            raise NotCallable("is a generator function (it has a yield); return a list of rows")
        context_passing(_signature(node.args), any_name=True)
    except NotCallable as error:
        raise UserError(f"{where} {error}") from None


def _of_scope(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a module or function, without those of functions and classes within it."""
    left = list(ast.iter_child_nodes(scope))
    while left:
        node = left.pop()
        yield node
        if not isinstance(node, _SCOPES):
            left.extend(ast.iter_child_nodes(node))


def _binds(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name == name
    if isinstance(node, ast.Name):
        return node.id == name and not isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.alias):
        return node.name == "*" or (node.asname or node.name) == name
    return False


def _is_batch(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(called) in ("batch", "slurm_worker.batch")


def _signature(of: ast.arguments) -> Signature:
    places: list[tuple[ast.arg, inspect._ParameterKind]] = [
        *((each, Parameter.POSITIONAL_ONLY) for each in of.posonlyargs),
        *((each, Parameter.POSITIONAL_OR_KEYWORD) for each in of.args),
    ]
    bare = len(places) - len(of.defaults)
    defaults = [*[Parameter.empty] * bare, *map(ast.unparse, of.defaults)]
    found = [
        Parameter(each.arg, kind, default=default)
        for (each, kind), default in zip(places, defaults, strict=True)
    ]
    if of.vararg:
        found.append(Parameter(of.vararg.arg, Parameter.VAR_POSITIONAL))
    for each, value in zip(of.kwonlyargs, of.kw_defaults, strict=True):
        default = Parameter.empty if value is None else ast.unparse(value)
        found.append(Parameter(each.arg, Parameter.KEYWORD_ONLY, default=default))
    if of.kwarg:
        found.append(Parameter(of.kwarg.arg, Parameter.VAR_KEYWORD))
    return Signature(found)
