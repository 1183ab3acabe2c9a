"""Check a handler's function in its source, so that submit refuses what a node would refuse.

Nothing is imported. If the source is not enough (a function that is made elsewhere, or changed by a
decorator), the node checks it, and refuses it in one line.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from inspect import Parameter, Signature

from slurm_worker.errors import UserError
from slurm_worker.execution.signatures import NotCallable, context_passing

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def check_function(tree: ast.Module, name: str, where: str) -> None:
    """Refuse a handler that can't be called: the function `name` of the module `tree`.

    The message begins with `where`, the field and its value.

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
        if any(isinstance(inner, ast.Yield | ast.YieldFrom) for inner in _of_scope(node)):
            raise NotCallable("is a generator function (it has a yield); return a list of rows")
        context_passing(_signature(node.args), any_name=True)
    except NotCallable as error:
        raise UserError(f"{where} {error}") from None


def _of_scope(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a module or function, without those of functions and classes within it."""
    queue = list(ast.iter_child_nodes(scope))
    while queue:
        node = queue.pop()
        yield node
        if not isinstance(node, _SCOPES):
            queue.extend(ast.iter_child_nodes(node))


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
    defaults = dict(zip(of.kwonlyargs, of.kw_defaults, strict=True))
    # The defaults of positional parameters are those of the last ones.
    defaults.update(zip([*of.posonlyargs, *of.args][::-1], of.defaults[::-1], strict=False))
    kinds = (
        (of.posonlyargs, Parameter.POSITIONAL_ONLY),
        (of.args, Parameter.POSITIONAL_OR_KEYWORD),
        ([of.vararg], Parameter.VAR_POSITIONAL),
        (of.kwonlyargs, Parameter.KEYWORD_ONLY),
        ([of.kwarg], Parameter.VAR_KEYWORD),
    )
    found = []
    for arguments, kind in kinds:
        for argument in filter(None, arguments):
            value = defaults.get(argument)
            default = Parameter.empty if value is None else ast.unparse(value)
            found.append(Parameter(argument.arg, kind, default=default))
    return Signature(found)
