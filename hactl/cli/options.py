"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SOCKET = Path("/run/hactl/agent.sock")

Json = Annotated[bool, typer.Option("--json", help="Print JSON; errors too, to standard error.")]
Socket = Annotated[Path, typer.Option("--socket", envvar="HACTL_SOCKET", help="The agent's socket.")]
Resource = Annotated[str, typer.Argument(metavar="RESOURCE", help="Name of the resource.")]
Host = Annotated[str, typer.Argument(metavar="HOST", help="Name of the host.")]
Node = Annotated[str, typer.Argument(metavar="NODE", help="Name of the node.")]
Seconds = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for the outcome.")]
ShowSecrets = Annotated[bool, typer.Option("--show-secrets", help="Print passwords, too.")]
File = Annotated[
    Path,
    typer.Option(
        "--file", "-f", metavar="FILE", help="The cluster as one YAML file; - reads it from standard input."
    ),
]
Destroy = Annotated[
    list[str] | None,
    typer.Option("--yes-destroy", metavar="NAME", help="Remove the data of this resource, without asking."),
]
