"""``hactl agent``: this node's agent, in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hactl.cli.options import SOCKET, Socket


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(agent)


def agent(
    spec: Annotated[
        Path | None,
        typer.Option(
            "--spec", metavar="FILE", help="Go by a specification file (YAML) instead of the cluster's store."
        ),
    ] = None,
    socket: Socket = SOCKET,
) -> None:
    """Run this node's agent in the foreground."""
    from hactl.agents.main import run

    run(spec, socket)
