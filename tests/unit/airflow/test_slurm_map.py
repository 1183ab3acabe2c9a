"""`@task.slurm_map` ships the function and the items unchanged."""

from __future__ import annotations

import functools
import importlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG, task

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.decorators.slurm_map import SlurmMapOperator
from airflow_slurm_provider.decorators.source import source_of
from airflow_slurm_provider.hooks.slurm import SlurmHook
from slurm_worker.errors import UserError
from slurm_worker.execution.signatures import ContextPassing
from tests.unit.coordinator.fakes import services


def square(number):  # type: ignore[no-untyped-def]
    # Shipped unchanged.
    return {"square": number * number}


def told(item, context=None):  # type: ignore[no-untyped-def]
    return {"told": f"{item['id']} of {context}"}


@pytest.fixture(autouse=True)
def edges(monkeypatch: pytest.MonkeyPatch) -> Services:
    found = services()
    monkeypatch.setattr(SlurmHook, "services", lambda _self, **_: found)
    return found


def operator(function: Any, *arguments: Any, **options: Any) -> SlurmMapOperator:
    return SlurmMapOperator(
        task_id="map", python_callable=function, op_args=arguments, job_id="job-1", **options
    )


def handler_of(config: Any) -> Any:
    """The module that is shipped, imported as a node does it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(config.spec.handler.code)
        for name in ("slurm_map_handler", "slurm_map_function"):
            sys.modules.pop(name, None)
        return importlib.import_module("slurm_map_handler")


def shipped(mapped: SlurmMapOperator) -> Any:
    """As `handler_of`, of an operator, which removes the files when it is gone."""
    return handler_of(mapped.build_config())


def test_plain_values_become_items_and_the_function_gets_them_back(edges: Services) -> None:
    mapped = operator(square, [3, 4], workers=5, bundle=7, options={"worker": {"tries": 2}})
    config = mapped.build_config()
    assert (config.spec.workers, config.spec.bundle, config.spec.worker.tries) == (5, 7, 2)
    key = config.spec.input.path.removeprefix("s3://lab/")
    items = [json.loads(line) for line in edges.objects.get(key).splitlines()]  # type: ignore[union-attr]  # it is there
    assert items == [{"id": 3, "value": 3}, {"id": 4, "value": 4}]
    assert [handler_of(config).handle(item, None) for item in items] == [
        {"square": 9},
        {"square": 16},
    ]


def test_objects_are_passed_unchanged_with_the_context_if_the_function_takes_it() -> None:
    mapped = operator(told, [{"id": "a"}])
    config = mapped.build_config()
    assert handler_of(config).handle({"id": "a"}, "ctx") == {"told": "a of ctx"}


def test_a_path_is_the_input() -> None:
    config = operator(told, "s3://lab/items.parquet", item_key="user").build_config()
    assert config.spec.input.path == "s3://lab/items.parquet"
    assert config.spec.input.key == "user"


def test_the_same_items_are_the_same_input() -> None:
    one, two = (operator(square, [3, 4]).build_config() for _ in "ab")
    assert one.spec.identity() == two.spec.identity()
    other = operator(square, [3, 5]).build_config()
    assert other.spec.identity() != one.spec.identity()


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([], "items: the list is empty"),
        ([{"id": 1}, 2.5], "items: number 2 is float"),
        ([{"id": 1, "x": {1, 2}}], "items: number 1 is not JSON"),
    ],
)
def test_a_value_that_can_not_be_an_item_is_named(items: list[Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        operator(square, items).build_config()


def test_failed_items_fail_the_task_unless_max_failed_items_allows_them() -> None:
    progress = {"job_id": "job-1", "items": 10, "failed": {"network": 2}}
    with pytest.raises(AirflowFailException, match="2 of 10 items failed"):
        operator(square, [1]).publish({}, progress)


def test_it_is_a_task_decorator() -> None:
    with DAG("d", schedule=None):

        @task.slurm_map(job_id="j", workers=2)  # type: ignore[attr-defined]  # a provider's
        def double(number):  # type: ignore[no-untyped-def]
            return {"double": 2 * number}

        mapped = double([1, 2]).operator
    assert isinstance(mapped, SlurmMapOperator)
    assert not any("task.slurm_map" in source for source in mapped.sources(plain=True).values())
    assert handler_of(mapped.build_config()).handle({"id": 1, "value": 1}, None) == {"double": 2}


# --- which functions are taken, and what they are called with -----------------


def dry(number, dry_run=False, *, mode="full", **rest):  # type: ignore[no-untyped-def]
    return {"n": number, "dry_run": dry_run, "mode": mode, "rest": rest}


def wants_context(item, context):  # type: ignore[no-untyped-def]
    return {"n": item, "context": context}


def wants_it_last(item, dry_run=False, *, context):  # type: ignore[no-untyped-def]
    return {"n": item, "dry_run": dry_run, "context": context}


def wants_it_third(item, dry_run=False, context=None):  # type: ignore[no-untyped-def]
    return {"n": item, "dry_run": dry_run, "context": context}


def airflows_names(item, ds="none", params=None):  # type: ignore[no-untyped-def]
    return {"n": item, "ds": ds, "params": params}


def handle(item):  # type: ignore[no-untyped-def]
    return {"n": item}


def setup(item):  # type: ignore[no-untyped-def]
    return {"n": item}


def text_of_lines(item):  # type: ignore[no-untyped-def]
    return {
        "n": item,
        "text": """
# a heading
    indented
""",
    }


@pytest.mark.parametrize(
    ("function", "result"),
    [
        (dry, {"n": 3, "dry_run": False, "mode": "full", "rest": {}}),
        (wants_context, {"n": 3, "context": "ctx"}),
        (wants_it_last, {"n": 3, "dry_run": False, "context": "ctx"}),
        (wants_it_third, {"n": 3, "dry_run": False, "context": "ctx"}),
        (airflows_names, {"n": 3, "ds": "none", "params": None}),
        (handle, {"n": 3}),
        (setup, {"n": 3}),
        (text_of_lines, {"n": 3, "text": "\n# a heading\n    indented\n"}),
    ],
)
def test_context_alone_receives_the_context_and_others_keep_their_defaults(
    function: Any, result: dict[str, Any]
) -> None:
    module = shipped(operator(function, [3]))
    assert module.handle({"id": 3, "value": 3}, "ctx") == result
    assert not hasattr(module, "setup"), "a worker would call it"


def test_a_coroutine_function_is_awaited() -> None:
    async def twice(number):  # type: ignore[no-untyped-def]
        return {"twice": 2 * number}

    called = shipped(operator(twice, [3])).handle({"id": 3, "value": 3}, None)
    with pytest.raises(StopIteration) as ended:
        called.send(None)
    assert ended.value.value == {"twice": 6}


def test_a_function_within_another_is_shipped_unchanged() -> None:
    with DAG("d", schedule=None):

        @task.slurm_map(job_id="j")  # type: ignore[attr-defined]  # a provider's
        def lines(_number: int) -> dict[str, Any]:
            # A comment.
            return {
                "text": """first
# second
   third"""
            }

        mapped = lines([1]).operator
    result = handler_of(mapped.build_config()).handle({"id": 1, "value": 1}, None)
    assert result == {"text": "first\n# second\n   third"}


def needs_more(item, table):  # type: ignore[no-untyped-def]
    return {}


def needs_more_by_name(item, *, table):  # type: ignore[no-untyped-def]
    return {}


def nothing():  # type: ignore[no-untyped-def]
    return {}


def anything(*items):  # type: ignore[no-untyped-def]
    return {}


def context_first(context, item):  # type: ignore[no-untyped-def]
    return {}


def generator(item):  # type: ignore[no-untyped-def]
    yield {}


async def async_generator(item):  # type: ignore[no-untyped-def]
    yield {}


LIMIT = 5


def global_default(item, limit=LIMIT):  # type: ignore[no-untyped-def]
    return {}


def global_annotation(item: Any) -> dict[str, Any]:
    return {}


def logged(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


@logged
def decorated(item):  # type: ignore[no-untyped-def]
    return {}


def closure() -> Any:
    limit = 5

    def over(item):  # type: ignore[no-untyped-def]
        return {"over": item > limit}

    return over


def recursive() -> Any:
    def depth(item):  # type: ignore[no-untyped-def]
        return {"depth": depth(item[0])["depth"] + 1 if item else 0}

    return depth


def test_a_function_within_another_may_call_itself() -> None:
    assert source_of(recursive())[1] is ContextPassing.NOTHING


class Square:
    def __init__(self, item: Any) -> None: ...

    def method(self, item: Any) -> None: ...

    def __call__(self, item: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (needs_more, "missing a required argument: 'table'"),
        (needs_more_by_name, "missing a required .*argument: 'table'"),
        (nothing, "no parameter for the item"),
        (anything, "no parameter for the item"),
        (context_first, "no parameter for the item before context"),
        (generator, "is a generator function"),
        (async_generator, "is a generator function"),
        (global_default, "without the rest of its file .*'LIMIT'"),
        (decorated, "wrapped by another decorator"),
        (closure(), "uses limit of the function around it"),
        (Square, "Square is a class"),
        (Square(0), "Square is Square, whose source can't be shipped"),
        (Square(0).method, "is a method"),
        (len, "is builtin_function_or_method"),
        (functools.partial(square), "is partial"),
        (lambda item: {"n": item}, "is a lambda"),
    ],
)
def test_a_function_that_can_not_be_called_on_a_node_is_refused_when_the_dag_is_parsed(
    function: Any, says: str
) -> None:
    for refused in (
        lambda: task.slurm_map(job_id="j")(function),  # type: ignore[attr-defined]  # a provider's
        lambda: operator(function, [1]),
    ):
        with pytest.raises(UserError, match=says) as told:
            refused()
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("arguments", [(), ([1], True)])
def test_a_call_takes_the_items_and_nothing_else(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(UserError, match=rf"is called with {len(arguments)} arguments"):
        operator(dry, *arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"config": {}}, "config can't be used; give its sections in options"),
        ({"items": [1]}, "items can't be used; call the function with the items"),
        ({"slurm": {"mem": "1G"}}, "slurm can't be used; use options={'slurm'"),
        ({"env": {"A": "1"}}, "env can't be used; export variables in options"),
        ({"durable": False}, "durable=False can't work, because a backfill always continues"),
        ({"options": {"workers": 9}}, "options can't set workers; use the argument workers"),
        ({"options": {"handler": {}}}, "options can't set handler; the function is the handler"),
    ],
)
def test_an_argument_that_would_have_no_effect_is_refused_when_the_dag_is_parsed(
    arguments: dict[str, Any], says: str
) -> None:
    for refused in (
        lambda: task.slurm_map(job_id="j", **arguments)(square),  # type: ignore[attr-defined]  # a provider's
        lambda: operator(square, [1], **arguments),
    ):
        with pytest.raises(UserError, match=says) as error:
            refused()
        assert "\n" not in str(error.value)


def test_durable_is_accepted_because_a_backfill_always_continues() -> None:
    assert operator(square, [1], durable=True).build_config().spec.id == "job-1"


def test_a_function_is_mapped_over_several_lists_as_any_other_task() -> None:
    with DAG("d", schedule=None):

        @task.slurm_map(job_id="j")  # type: ignore[attr-defined]  # a provider's
        def double(number, context):  # type: ignore[no-untyped-def]
            return {"double": 2 * number}

        mapped = double.expand(number=[[1, 2], [3]]).operator
    one = mapped.unmap({"op_kwargs": {"number": [1, 2]}})
    assert shipped(one).handle({"id": 3, "value": 3}, None) == {"double": 6}


def test_annotations_may_name_anything_where_python_does_not_evaluate_them() -> None:
    assert shipped(operator(global_annotation, [1])).handle({"id": 1, "value": 1}, None) == {}


# --- what may be passed ---------------------------------------------------------


class Lazy(Sequence[int]):
    """As Airflow passes the results of mapped tasks."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: Any) -> Any:
        return [3, 4][index]


def generated() -> Iterator[int]:
    yield from (3, 4)


@pytest.mark.parametrize(
    "items", [[3, 4], (3, 4), "[3, 4]", " [3,\n4] ", Lazy(), generated(), {3: 0, 4: 0}.keys()]
)
def test_any_iterable_of_items_is_accepted(edges: Services, items: Any) -> None:
    mapped = operator(square, items)
    config = mapped.build_config()
    key = config.spec.input.path.removeprefix("s3://lab/")
    assert [json.loads(line)["value"] for line in edges.objects.get(key).splitlines()] == [3, 4]  # type: ignore[union-attr]  # it is there
    assert handler_of(config).handle({"id": 3, "value": 3}, None) == {"square": 9}


def test_a_path_object_is_the_input(tmp_path: Path) -> None:
    assert operator(told, tmp_path / "a.csv").build_config().spec.input.path == str(
        tmp_path / "a.csv"
    )


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ("", "'' is text, but not a JSON list"),
        ("['a', 'b']", "not a JSON list .* tojson"),
        ('{"id": 1}', "is a JSON dict, not a list"),
        ("[1, NaN]", "holds NaN"),
        ('[{"id": 1, "id": 2}]', "names 'id' twice"),
        ("a\nb", "several lines"),
        ({"id": 1}, r"is a mapping; pass a list: \[it\]"),
        ({1, 2}, "is a set, which has no order"),
        (b"[7]", "is bytes"),
        (io.StringIO("1\n2\n"), "is an open file"),
        (None, "is None; .* does the task before this one return a list"),
        (7, r"is int \(7\)"),
        (True, "is bool"),
        ([{"id": 1}, 2], "number 2 is int, but number 1 is dict; pass only objects"),
        ([True], "number 1 is bool"),
        ([None], "number 1 is NoneType"),
        ([[1, 2]], "number 1 is list"),
        ([{"id": 1, "x": {1: "a", "1": "b"}}], "number 1 is not JSON .*become one name"),
        (["\ud800"], "number 1 is not JSON"),
        ([{"id": 1, "x": float("nan")}], "number 1 is not JSON"),
        ([{"id": 1}, {"key": 2}], "number 2 has no field 'id'"),
    ],
)
def test_a_value_without_items_is_refused_in_one_line(items: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as told:
        operator(square, items).build_config()
    assert "\n" not in str(told.value)
