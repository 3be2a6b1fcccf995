"""``hactl pr``: persistent reservations as the log in the store has them, and how far nodes have come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from hactl.cli.options import SOCKET, Json, Resource, Seconds, Socket
from hactl.cli.reporting import begin, named, print_json, warn

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from hactl.model.spec import ClusterSpec
    from hactl.pr_sync.log import PrLog
    from hactl.pr_sync.records import Entry, Head
    from hactl.pr_sync.units import Unit
    from hactl.store.protocol import Store

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Persistent reservations (SPC-4) of a resource."
)

T = TypeVar("T")

Volume = Annotated[
    int | None, typer.Option("--volume", metavar="N", min=0, max=15, help="One volume; all if not given.")
]


@app.command()
def show(
    context: typer.Context,
    resource: Resource,
    volume: Volume = None,
    socket: Socket = SOCKET,
    as_json: Json = False,
) -> None:
    """Show registrations and reservation of each volume, and how far each node has applied the log."""
    from hactl.cli import pr_text

    begin(context, as_json)

    async def read(log: PrLog, unit: Unit) -> tuple[Head, tuple[Entry, ...], frozenset[str]]:
        head = await log.head(unit.serial)
        return head, await log.entries(unit.serial, 0), await log.members(unit.serial)

    cluster, found = _read(context, resource, volume, read)
    # Asked after the log was read: an agent that has less than that is behind.
    told = _agents(socket)
    volumes = []
    for unit, (head, entries, members) in found:
        nodes = pr_text.node_documents(unit, head, members, told)
        names = pr_text.Names.of(cluster, unit)
        volumes.append(pr_text.volume_document(unit, names, head, entries, nodes))
    if as_json:
        print_json({"schema": 1, "resource": resource, "volumes": volumes})
        return
    from hactl.cli import render

    render.show(part for v in volumes for part in _shown(resource, v))


@app.command()
def history(
    context: typer.Context,
    resource: Resource,
    volume: Volume = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="The last N entries of each volume.")
    ] = 50,
    as_json: Json = False,
) -> None:
    """Show what initiators did to the reservations, the newest last; the log keeps 512 entries a volume."""
    from hactl.cli import pr_text

    begin(context, as_json)

    async def read(log: PrLog, unit: Unit) -> tuple[Entry, ...]:
        return (await log.entries(unit.serial, 0))[-limit:]

    cluster, found = _read(context, resource, volume, read)
    volumes = []
    for unit, entries in found:
        names = pr_text.Names.of(cluster, unit)
        documents = [pr_text.entry_document(entry, names) for entry in entries]
        volumes.append({"number": unit.volume, "serial": unit.serial, "entries": documents})
    if as_json:
        print_json({"schema": 1, "resource": resource, "volumes": volumes})
        return
    from hactl.cli import render

    render.show(part for v in volumes for part in _told(resource, v))


@app.command()
def clear(
    context: typer.Context,
    resource: Resource,
    volume: Volume = None,
    yes_clear: Annotated[
        str | None,
        typer.Option("--yes-clear", metavar="RESOURCE", help="Clear that resource's without asking."),
    ] = None,
    socket: Socket = SOCKET,
    timeout: Seconds = 60.0,
    as_json: Json = False,
) -> None:
    """Remove all registrations and the reservation, on all nodes; asks for the resource's name."""
    from hactl.cli import confirm
    from hactl.cli.client import AgentClient

    mode = begin(context, as_json)

    async def read(log: PrLog, unit: Unit) -> int:
        return len((await log.head(unit.serial)).state.registrations)

    # Refusals first: nobody should type a name for what is not possible anyway.
    _, found = _read(context, resource, volume, read)
    what = resource if volume is None else f"volume {volume} of {resource}"
    warning = (
        f"clearing {what} ({sum(count for _, count in found)} registrations) takes away, on all nodes, what "
        "keeps hosts from writing over each other; hosts that rely on it have to register anew"
    )
    confirm.order(mode, resource, yes_clear, warning, "--yes-clear")
    mode.ordering = True
    agent = AgentClient(str(socket), order_seconds=timeout)
    answer = agent.clear_reservations(resource, volume, _user())
    if as_json:
        print_json(answer)
        return
    for one in answer.get("volumes", ()):
        done = f"cleared on all nodes (entry {one['index']})" if one["changed"] else "nothing was registered"
        typer.echo(f"{resource}/{one['number']}: {done}")


def _user() -> str:
    """Who orders it, for the agent's journal: the user behind sudo, if it was used."""
    import getpass
    import os

    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def _read(
    context: typer.Context,
    resource: str,
    volume: int | None,
    read: Callable[[PrLog, Unit], Awaitable[T]],
) -> tuple[ClusterSpec, list[tuple[Unit, T]]]:
    """What ``read`` finds in the log of each volume that is asked for."""
    from hactl.cli import configuration
    from hactl.model import find
    from hactl.pr_sync.log import PrLog
    from hactl.pr_sync.units import units_of
    from hactl.store import desired as desired_state

    named("resource", resource)

    async def work(store: Store, cluster: str, node: str) -> tuple[ClusterSpec, list[tuple[Unit, T]]]:
        desired = await desired_state.read(store, cluster)
        spec = find.resource(desired, resource)
        if volume is not None:
            find.volume(spec, volume)
        log = PrLog(store, cluster, node)
        units = [u for u in units_of(desired.cluster, spec) if volume in (None, u.volume)]
        return desired.cluster, [(unit, await read(log, unit)) for unit in units]

    return configuration.look(context, work)


def _agents(socket: Path) -> dict[str, Any] | None:
    from hactl.cli.client import AgentClient
    from hactl.errors import HactlError

    try:
        return AgentClient(str(socket)).cluster()
    except HactlError as error:
        warn(f"how far nodes are is not known: {error.message}")
        return None


def _shown(resource: str, volume: Mapping[str, Any]) -> Iterator[RenderableType]:
    """One volume of ``hactl pr show``."""
    from rich.text import Text

    from hactl.cli import render
    from hactl.cli.pr_text import when, who

    registrations, held = volume["registrations"], volume["reservation"]
    keys = len({r["key"] for r in registrations})
    yield Text(
        f"{resource}/{volume['number']}: PRgeneration {volume['generation']}, registrations: "
        f"{len(registrations)}, different keys: {keys}, log at entry {volume['index']}"
    )
    if held is None:
        yield Text("not reserved")
    else:
        everybody = len(held["holders"]) > 1
        holders = "every registrant" if everybody else ", ".join(who(h) for h in held["holders"])
        yield Text(f"reserved: {held['type']}, held by {holders}")
    if registrations:
        made = render.table("HOST", "INITIATOR", "ISID", "KEY", "AT NODE", "RTPI", "ALL_TG_PT", "MADE (UTC)")
        for one in registrations:
            origin = one["made"]
            made.add_row(
                render.plain(one["host"] or "-"),
                render.plain(one["initiator"]),
                render.plain(one["isid"] or "-"),
                render.plain(one["key"]),
                render.plain(one["node"] or "-"),
                render.plain(f"{one['rtpi']:#x}"),
                render.plain("yes" if one["all_tg_pt"] else "-"),
                render.plain(
                    f"{when(origin['at'])} on {origin['node']}" if origin else "before what is kept"
                ),
            )
        yield made
    nodes = render.table("NODE", "AGENT", "MEMBER", "APPLIED")
    for node in volume["nodes"]:
        nodes.add_row(
            render.plain(node["node"]),
            render.word("up" if node["reachable"] else "not reached"),
            render.plain("yes" if node["member"] else "no"),
            _applied(node),
        )
    yield nodes
    for node in volume["nodes"]:
        if node["problem"] is not None:
            yield Text(f"{node['node']}: {node['problem']}", style="yellow")
    yield Text("")


def _applied(node: Mapping[str, Any]) -> Text:
    from rich.text import Text

    if node["index"] is None:
        return Text("not known", style="yellow")
    late = f", {node['behind']} behind" if node["behind"] else ""
    return Text(f"entry {node['index']}{late}", style="yellow" if late else "green")


def _told(resource: str, volume: Mapping[str, Any]) -> Iterator[RenderableType]:
    """One volume of ``hactl pr history``."""
    from rich.text import Text

    from hactl.cli import render
    from hactl.cli.pr_text import when

    if not volume["entries"]:
        yield Text(f"{resource}/{volume['number']}: nothing was ever logged")
        return
    yield Text(f"{resource}/{volume['number']}:")
    made = render.table("ENTRY", "TIME (UTC)", "ON NODE", "WHAT", "PRGENERATION")
    for entry in volume["entries"]:
        made.add_row(
            render.plain(entry["index"]),
            render.plain(when(entry["at"])),
            render.plain(entry["node"]),
            render.plain(entry["what"]),
            render.plain(entry["generation"]),
        )
    yield made
