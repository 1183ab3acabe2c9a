"""`slurmctl dashboard`: the site's jobs in a browser."""

from __future__ import annotations

import json

import click

from airflow_slurm_provider.cli.options import Common, command
from airflow_slurm_provider.cli.rendering.output import say, show
from slurm_worker.errors import UserError


@command("slurmctl dashboard --port 8077")
@click.option(
    "--port",
    metavar="N",
    type=click.IntRange(0, 65535),
    default=8077,
    show_default=True,
    help="Port on 127.0.0.1; 0 for any free port.",
)
def dashboard(common: Common, port: int) -> int:
    """Serve a web page with the site's jobs on this machine, until Ctrl-C.

    Prints the address to open. The address holds a token, which is new at each start. To use it
    from another machine, forward the port: ssh -L 8077:127.0.0.1:8077 HOST.
    """
    try:
        from airflow_slurm_provider.dashboard.server import serve
    except ModuleNotFoundError as error:
        raise UserError(
            f"dashboard: {error.name} is not installed; "
            "pip install 'airflow-slurm-provider[dashboard]'"
        ) from error

    def announce(address: str) -> None:
        show(json.dumps({"url": address}) if common.as_json else address)
        say("serving until Ctrl-C; anybody with this address can do what you can do")

    with common.services() as services:
        try:
            serve(services, port, common.actor, announce)
        except KeyboardInterrupt:
            say("stopped; jobs continue")
    return 0
