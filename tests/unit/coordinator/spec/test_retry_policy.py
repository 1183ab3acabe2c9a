"""The retry policy: what it says is what a round gets, in YAML and in an operator alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_slurm_provider.coordinator.spec.job_spec import load_config
from airflow_slurm_provider.coordinator.spec.retry_policy import (
    DEFAULT_RULES,
    Policy,
    RetryContext,
    RoundResources,
    Rules,
)
from airflow_slurm_provider.coordinator.spec.validation import validate
from airflow_slurm_provider.slurm.options import SlurmOptions
from slurm_worker.errors import ErrorClass, UserError
from tests.unit.coordinator.fakes import make_config


def resources(
    rules: dict[str, Any], classes: set[str], context: RetryContext | None = None, **options: object
) -> RoundResources:
    policy = Policy(validate(Rules, rules, "policy."))
    return policy.resources(SlurmOptions.from_mapping(options), classes, context or RetryContext())


def test_every_error_class_has_a_default_rule() -> None:
    assert set(DEFAULT_RULES) == set(ErrorClass)


def test_what_cannot_succeed_is_never_retried_by_default() -> None:
    assert Policy().rounds.keys() == {
        "network",
        "rate_limited",
        "timeout",
        "out_of_memory",
        "walltime",
        "preempted",
        "node_failure",
        "cancelled",
        "worker_crash",
        "unknown",
    }


def test_a_rule_keeps_the_defaults_of_fields_that_it_does_not_name() -> None:
    policy = Policy(validate(Rules, {"out_of_memory": {"rounds": 5}}, "policy."))
    got = policy.resources(SlurmOptions(mem="1G"), {"out_of_memory"}, RetryContext())
    assert (policy.rounds["out_of_memory"], got.slurm) == (5, {"mem": "2048M"})


def test_an_operators_rules_override_the_jobs(tmp_path: Path) -> None:
    config = make_config(tmp_path, retry={"network": 7, "timeout": "never"})
    policy = Policy(config.spec.retry, validate(Rules, {"network": "never", "auth": 1}, "policy."))
    assert (policy.rounds.get("network"), policy.rounds.get("timeout")) == (None, None)
    assert policy.rounds["auth"] == 1


@pytest.mark.parametrize(
    ("rule", "earlier", "options", "expected"),
    [
        ({"mem": "x2"}, 0, {"mem": "500M"}, {"mem": "1000M"}),
        ({"mem": "x2"}, 2, {"mem": "1G"}, {"mem": "8192M"}),
        ({"mem": "x2 up to 3G"}, 5, {"mem": "1G"}, {"mem": "3072M"}),
        ({"mem": "64G"}, 0, {}, {"mem": "65536M"}),
        ({"mem": "x1.5"}, 0, {"mem_per_cpu": "1000"}, {"mem_per_cpu": "1500M"}),
        ({"time": "x1.5"}, 0, {"time": "30"}, {"time": "0-00:45:00"}),
        ({"time": "x2 up to 1-00:00:00"}, 9, {"time": "12:00:00"}, {"time": "1-00:00:00"}),
        ({"partition": "bigmem"}, 0, {"partition": "main"}, {"partition": "bigmem"}),
    ],
)
def test_resources_are_raised_once_for_each_round_of_the_class(
    rule: dict[str, Any], earlier: int, options: dict[str, str], expected: dict[str, str]
) -> None:
    rules = {"worker_crash": rule}
    context = RetryContext([{"worker_crash"}] * earlier + [{"network"}])
    got = resources(rules, {"worker_crash"}, context, **options)
    assert (got.slurm, got.notes) == (expected, ())
    SlurmOptions.from_mapping({**options, **got.slurm})


def test_memory_is_raised_from_what_slurm_gave_if_the_job_sets_none() -> None:
    got = resources({}, {"out_of_memory"}, RetryContext(mem_mb=900))
    assert got.slurm == {"mem": "1800M"}


def test_a_factor_without_a_base_is_reported() -> None:
    got = resources({}, {"out_of_memory", "walltime"})
    assert got.slurm == {}
    assert got.notes == (
        "retry.out_of_memory.mem: can't apply x2, as slurm.mem is not set; set it",
        "retry.walltime.time: can't apply x2, as slurm.time is not set; set it",
    )


def test_a_round_gets_the_largest_amount_that_any_of_its_classes_needs() -> None:
    rules = {
        "out_of_memory": {"mem": "x2"},
        "worker_crash": {"mem": "x3", "backoff": "10s"},
        "network": {"backoff": "1m"},
    }
    got = resources(rules, set(rules), RetryContext([{"network"}]), mem="1G")
    assert (got.slurm, got.delay_s) == ({"mem": "3072M"}, 120)


def test_failed_nodes_are_excluded_in_addition_to_those_of_the_job() -> None:
    context = RetryContext(nodes={"node_failure": {"n2", "n1"}, "worker_crash": {"n9"}})
    got = resources({}, {"node_failure"}, context, exclude="n0")
    assert got.slurm == {"exclude": "n0,n1,n2"}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"network": {"round": 3}},
            r"policy\.network\.round: .*did you mean 'rounds'",
        ),
        ({"netwrok": 3}, r"policy\.netwrok: .*'network'"),
        ({"network": {"mem": "twice"}}, r"policy\.network\.mem: 'twice' .* use a factor \(x2"),
        (
            {"network": {"mem": "x0.5"}},
            r"mem: 'x0\.5' is not a valid memory increase",
        ),
        (
            {"network": {"mem": "x2 up to much"}},
            r"\(x2, x2 up to 64G\) or a size \(64G\)",
        ),
        ({"network": {"time": "x2 up to 64G"}}, r"use a factor \(x1.5, x2 up to 1-00:00:00\)"),
        ({"network": {"backoff": "soon"}}, "'soon' is not a duration"),
        ({"network": -1}, "greater than or equal to 0"),
    ],
)
def test_the_message_for_a_wrong_rule_names_the_class_and_the_field(
    rules: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        validate(Rules, rules, "policy.")


@pytest.mark.parametrize(
    ("classify", "message"),
    [
        ([{"class": "network"}], "must have either exception, message or status, or else slurm"),
        ([{"class": "network", "status": 500, "slurm": "FAILED"}], "must have either exception"),
        ([{"class": "network", "message": "("}], "is not a regular expression"),
        ([{"class": "netwrok", "status": 500}], r"classify\.0\.class"),
        ([{"class": "network", "slurm": "BROKEN"}], r"classify\.0\.slurm"),
    ],
)
def test_a_wrong_rule_on_classes_is_refused(
    tmp_path: Path, classify: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_config(tmp_path, classify=classify)


def test_only_rules_on_exceptions_reach_the_workers(tmp_path: Path) -> None:
    config = make_config(
        tmp_path,
        classify=[
            {"class": "rate_limited", "message": "quota"},
            {"class": "out_of_memory", "slurm": "FAILED"},
        ],
    )
    assert load_config(config.spec.model_dump(by_alias=True)).spec == config.spec
    (state,) = config.spec.slurm_classes
    assert (state.value, config.spec.slurm_classes[state]) == ("FAILED", ErrorClass.OUT_OF_MEMORY)
