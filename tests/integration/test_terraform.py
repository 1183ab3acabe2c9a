"""Terraform itself applies the module, and finds what `slurmctl` wants in what it has made."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from airflow_slurm_provider.coordinator.maintenance.bootstrap import (
    BootstrapRequest,
    StepResult,
    bootstrap,
)
from airflow_slurm_provider.coordinator.maintenance.doctor import policies
from airflow_slurm_provider.coordinator.spec.site import Site, parse_site
from tests.stack.settings import ROOT

GUIDE = ROOT / "docs" / "guides" / "setup-aws.md"
MODULE = Path("docs/infrastructure/terraform")
PROVIDER = """
provider "aws" {
  region                      = "us-east-1"
  access_key                  = "testing"
  secret_key                  = "testing"
  s3_use_path_style           = true
  skip_credentials_validation = true
  skip_metadata_api_check     = true
}

output "storage" { value = module.backfills.storage }
output "node_role_arn" { value = module.backfills.node_role_arn }
output "policies" {
  value = {
    coordinator = module.backfills.coordinator_policy_arn
    node        = module.backfills.node_policy_arn
  }
}
"""
#: `terraform plan` by its exit codes.
NO_CHANGES = 0


class Terraform:
    """The guide's use of the module, in a folder of its own, on an AWS of its own."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.endpoint = endpoint
        self._folder = folder
        self._environment = {**os.environ, "AWS_ENDPOINT_URL": endpoint, "TF_IN_AUTOMATION": "1"}
        shutil.copytree(ROOT / MODULE, folder / MODULE)
        (use,) = re.findall(r"```hcl\n(.*?)```", GUIDE.read_text(), re.DOTALL)
        (folder / "main.tf").write_text(use + PROVIDER)

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["terraform", *arguments],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def outputs(self) -> dict[str, Any]:
        shown = json.loads(self("output", "-json").stdout)
        return {name: each["value"] for name, each in shown.items()}

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

    def site(self) -> Site:
        """The site file that one writes by the outputs."""
        made = self.outputs()
        return parse_site(
            {
                "storage": made["storage"],
                "aws": {
                    "region": "us-east-1",
                    "s3_endpoint_url": self.endpoint,
                    "dynamodb_endpoint_url": self.endpoint,
                    "node_role_arn": made["node_role_arn"],
                },
                "cluster": {"transport": "local"},
            },
            "site",
        )


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terraform]:
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not installed")
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    run = Terraform(tmp_path_factory.mktemp("terraform"), f"http://{host}:{port}")
    begun = run("init", "-no-color")
    if begun.returncode and "provider" in begun.stderr:
        server.stop()
        pytest.skip(
            "terraform finds no AWS provider: none can be downloaded, and TF_CLI_ARGS_init"
            " names no copy (-plugin-dir=FOLDER)"
        )
    assert begun.returncode == 0, begun.stderr
    applied = run("apply", "-auto-approve", "-no-color")
    assert applied.returncode == 0, applied.stderr
    yield run
    server.stop()


def test_the_module_is_valid_and_formatted(terraform: Terraform) -> None:
    assert terraform("validate", "-no-color").returncode == 0
    assert terraform("fmt", "-check", "-recursive", str(MODULE)).stdout == ""


def test_a_second_apply_would_change_nothing(terraform: Terraform) -> None:
    planned = terraform("plan", "-detailed-exitcode", "-no-color")
    assert planned.returncode == NO_CHANGES, planned.stdout


def test_bootstrap_finds_all_that_it_would_make(
    terraform: Terraform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    wanted = BootstrapRequest(bucket=True, point_in_time=True, deletion_protection=True)
    made = bootstrap(terraform.site(), wanted)
    assert {step.name: step.outcome for step in made.steps} == {
        step.name: StepResult.THERE for step in made.steps
    }


def test_the_policies_are_those_that_doctor_prints(terraform: Terraform) -> None:
    iam = terraform.client("iam")
    printed = policies(terraform.site())
    for whose, arn in terraform.outputs()["policies"].items():
        version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
        held = iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]
        assert held["Document"] == printed[whose]


def test_the_nodes_role_has_their_policy_and_trusts_whom_the_guide_names(
    terraform: Terraform,
) -> None:
    iam = terraform.client("iam")
    made = terraform.outputs()
    name = made["node_role_arn"].rpartition("/")[2]
    attached = iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]
    assert [each["PolicyArn"] for each in attached] == [made["policies"]["node"]]
    (statement,) = iam.get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Principal"] == {"AWS": ["arn:aws:iam::123456789012:role/airflow"]}
