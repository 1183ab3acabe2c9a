"""`slurmctl dashboard`: the site's jobs in a browser."""

from __future__ import annotations

import json

import click

from airflow_slurm_provider.cli.options import Common, common_options
from airflow_slurm_provider.cli.output import say, show
from slurm_worker.errors import UserError


@click.command(epilog="\b\nExample:\n  slurmctl dashboard --port 8077")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8077,
    show_default=True,
    help="Port on 127.0.0.1; 0 for any that is free.",
)
@common_options
def dashboard(common: Common, port: int) -> int:
    """Serve the site's jobs to a browser on this machine, until Ctrl-C.

    Prints the address to open, with a token that is made anew at each start. From another
    machine, forward the port: ssh -L 8077:127.0.0.1:8077 HOST.
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
        say("serving until Ctrl-C; whoever has this address may do what you may")

    with common.services() as services:
        try:
            serve(services, port, common.actor, announce)
        except KeyboardInterrupt:
            say("stopped; jobs go on")
    return 0
