"""``hactl status`` and ``hactl plan``: what is, and what the agents would do about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hactl.cli.options import SOCKET, Json, Socket
from hactl.cli.reporting import begin, print_json
from hactl.errors import HactlError, Refused

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hactl.cli.client import AgentClient

REFRESH = 2.0
"""Seconds between two looks of ``--watch``."""

STILL_WORKS = (
    "configuration still works from here while etcd answers (hactl resource, host, export, apply), "
    "and so does everything on nodes whose agent runs"
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(status)
    app.command()(plan)


def status(
    context: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show it again and again, until Ctrl-C.")
    ] = False,
    here: Annotated[bool, typer.Option("--here", help="Ask this node only, as it sees itself.")] = False,
    spec: Annotated[
        Path | None, typer.Option("--spec", help="Tell, too, how this file differs from what the agent runs.")
    ] = None,
    socket: Socket = SOCKET,
    as_json: Json = False,
) -> None:
    """Show nodes, resources, roles, replication and access states of the whole cluster."""
    from hactl.cli.client import AgentClient

    begin(context, as_json)
    agent = AgentClient(str(socket))
    if watch:
        if as_json:
            raise Refused(
                "watch-json", "--watch is for people and prints no JSON", "ask for --json again and again"
            )
        _watch(agent, here)
        return
    document, cluster, trouble = look(agent, here)
    notes = _compare(document, spec) if spec else {}
    if as_json:
        body: dict[str, Any] = {**document, "cluster": cluster}
        if trouble is not None:
            body["cluster_error"] = trouble.as_dict()
        print_json({**body, **({"spec": notes} if spec else {})})
        return
    from hactl.cli import render

    render.show(render.screen(document, cluster, trouble))
    for what, names in notes.items():
        if names:
            typer.echo(f"{what.replace('_', ' ')}: {', '.join(names)}")


def look(
    agent: AgentClient, here: bool = False
) -> tuple[dict[str, Any], dict[str, Any] | None, HactlError | None]:
    """This node's document; the cluster's, or None and why this node's agent could not give it."""
    from hactl.cli.exits import AgentUnreachable

    try:
        document = agent.status()
    except AgentUnreachable as error:
        hint = f"{error.hint}; {STILL_WORKS}" if error.hint else STILL_WORKS
        raise AgentUnreachable(error.code, error.message, hint) from None
    if here:
        return document, None, None
    try:
        return document, agent.cluster(), None
    except HactlError as error:
        return document, None, error


def _watch(agent: AgentClient, here: bool) -> None:
    import time

    from rich.live import Live

    from hactl.cli import render

    def picture() -> RenderableType:
        try:
            return render.group(render.screen(*look(agent, here)))
        except HactlError as error:
            # It may be back in a moment: that is what one watches for.
            return render.group([f"{error.code}: {error}"])

    screen = render.console()
    while not screen.is_terminal:
        # For a file or a pager: one picture below the other.
        screen.print(picture())
        time.sleep(REFRESH)
    with Live(picture(), console=screen, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(REFRESH)
            live.update(picture(), refresh=True)


def plan(context: typer.Context, socket: Socket = SOCKET, as_json: Json = False) -> None:
    """Show what the agent would do next and why; nothing is changed."""
    from hactl.cli.client import AgentClient

    begin(context, as_json)
    document = AgentClient(str(socket)).plan()
    if as_json:
        print_json(document)
        return
    from hactl.cli import render

    render.show(render.plan(document))


def _compare(document: Mapping[str, Any], spec: Path) -> dict[str, list[str]]:
    """Resources that only the file has for this node, and that only the agent has."""
    from hactl.model.load import load

    cluster = load(spec)
    here = {r.name for r in cluster.resources if document.get("node") in r.nodes}
    running = {str(r["name"]) for r in document.get("resources", [])}
    return {"only_in_file": sorted(here - running), "only_in_agent": sorted(running - here)}
