"""Orders to agents: ``hactl promote``, ``demote`` and ``switchover``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hactl.cli.options import SOCKET, Json, Resource, Seconds, Socket
from hactl.cli.reporting import begin, named, print_json

if TYPE_CHECKING:
    from hactl.cli.client import AgentClient

OnNode = Annotated[
    str | None, typer.Option("--node", metavar="NODE", help="Order another node, through this one's agent.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (promote, demote, switchover):
        app.command()(command)


def promote(
    context: typer.Context,
    resource: Resource,
    node: OnNode = None,
    socket: Socket = SOCKET,
    timeout: Seconds = 120.0,
    as_json: Json = False,
) -> None:
    """Make this node the active one of a resource, where Pacemaker does not decide that."""
    begin(context, as_json, ordering=True)
    named("resource", resource)
    where = f"on {named('node', node)}" if node else "on this node"
    _order(socket, timeout, as_json, lambda a: a.promote(resource, node), f"{resource} is active {where}")


def demote(
    context: typer.Context,
    resource: Resource,
    node: OnNode = None,
    socket: Socket = SOCKET,
    timeout: Seconds = 120.0,
    as_json: Json = False,
) -> None:
    """Make this node a standby one of a resource, where Pacemaker does not decide that."""
    begin(context, as_json, ordering=True)
    named("resource", resource)
    where = f"on {named('node', node)}" if node else "on this node"
    _order(socket, timeout, as_json, lambda a: a.demote(resource, node), f"{resource} is demoted {where}")


def switchover(
    context: typer.Context,
    resource: Resource,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="NODE", help="The node to become active; else the preferred or the other replica."
        ),
    ] = None,
    socket: Socket = SOCKET,
    timeout: Seconds = 120.0,
    as_json: Json = False,
) -> None:
    """Move a resource from the active node to another; initiators see a pause."""
    mode = begin(context, as_json)
    named("resource", resource)
    goal = named("node", to) if to else _elsewhere(socket, resource)
    mode.ordering = True
    _order(
        socket, timeout, as_json, lambda a: a.switchover(resource, goal), f"{resource} is active on {goal}"
    )


def _elsewhere(socket: Path, resource: str) -> str:
    from hactl.cli.client import AgentClient
    from hactl.cli.cluster_view import other_replica

    return other_replica(AgentClient(str(socket)).cluster(), resource)


def _order(
    socket: Path, timeout: float, as_json: bool, order: Callable[[AgentClient], dict[str, Any]], done: str
) -> None:
    from hactl.cli.client import AgentClient

    answer = order(AgentClient(str(socket), order_seconds=timeout))
    if as_json:
        print_json(answer)
        return
    seconds = answer.get("seconds")
    typer.echo(done + (f" ({seconds:.1f} s)" if isinstance(seconds, int | float) else ""))
