"""``hactl multipath-conf``: settings for hosts."""

from __future__ import annotations

from typing import Annotated

import typer

from hactl.cli.options import Json
from hactl.cli.reporting import begin, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="multipath-conf")(multipath_conf)


def multipath_conf(
    context: typer.Context,
    queue_seconds: Annotated[
        int, typer.Option(min=10, max=86400, help="How long I/O waits when no path is left.")
    ] = 180,
    polling_interval: Annotated[int, typer.Option(min=1, max=60, help="Seconds between path checks.")] = 2,
    as_json: Json = False,
) -> None:
    """Print the drop-in for multipath-tools on hosts: /etc/multipath/conf.d/hactl.conf."""
    from hactl.multipath import render

    begin(context, as_json)
    text = render(queue_seconds=queue_seconds, polling_interval=polling_interval)
    if as_json:
        print_json({"path": "/etc/multipath/conf.d/hactl.conf", "text": text})
    else:
        typer.echo(text, nl=False)
