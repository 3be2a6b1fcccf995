"""Answers as tables and text for people. What the agents say is shown as it is, never as markup."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hactl.cli.cluster_view import bad_shape
from hactl.errors import HactlError
from hactl.model.size import format_size

PIPE_WIDTH = 240
"""Columns where standard output is no terminal: lines are not broken for a program that reads them."""

_GOOD = frozenset(
    {"active", "open", "UpToDate", "Connected", "active/optimized", "Established", "Primary", "up"}
)
_QUIET = frozenset({"standby", "closed", "Secondary", "demoted", "-"})

Json = Mapping[str, Any]


def console() -> Console:
    """Where everything is shown: standard output."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(file=sys.stdout, markup=False, highlight=False, width=width)


def show(parts: Iterable[RenderableType]) -> None:
    """Print parts, all or none: an answer of the wrong shape is an error before anything is printed."""
    made = _made(parts)
    to = console()
    for part in made:
        to.print(part)


def group(parts: Iterable[RenderableType]) -> RenderableType:
    """Parts as one."""
    return Group(*_made(parts))


def _made(parts: Iterable[RenderableType]) -> list[RenderableType]:
    try:
        return list(parts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise bad_shape(error) from error


def screen(document: Json, cluster: Json | None, trouble: HactlError | None) -> Iterable[RenderableType]:
    """The whole cluster if it could be asked, else this node's view with the reason."""
    if cluster is None:
        yield from node(document)
        if trouble is not None:
            yield Text(
                f"only this node's view, since its agent could not give the others': {trouble.message}",
                style="yellow",
            )
        return
    from hactl.cli import render_cluster

    yield from render_cluster.cluster(cluster)


def node(document: Json) -> Iterable[RenderableType]:
    """A node's status: one table with a row per volume, then what is in the way and what is pending."""
    peers = {p["node"]: p["reachable"] for p in document["peers"]}
    yield Text(f"node {document['node']}, hactl {document['version']}{_reachable(peers)}")
    made = table("RESOURCE", "ROLE", "ACTIVE ON", "LUN", "SIZE", "GATE", "DISK", "REPLICATION", "ALUA")
    for resource in document["resources"]:
        for k, volume in enumerate(resource["volumes"]):
            first = k == 0
            made.add_row(
                plain(resource["name"] if first else ""),
                word(resource["role"] if first else ""),
                plain((resource["active_node"] or "nobody") if first else ""),
                plain(volume["lun"]),
                plain(format_size(volume["size"])),
                word(volume["gate"]),
                word(volume["disk"]),
                join("\n", (_connection(c, volume["number"]) for c in resource["connections"])),
                join(" ", (alua(name, state) for name, state in volume["alua"].items())),
            )
    yield made if document["resources"] else Text("no resources")
    for resource in document["resources"]:
        yield from remarks(resource)
    yield from node_remarks(document, document["node"])


def node_remarks(document: Json, name: str) -> Iterable[Text]:
    """What is in the way of a node as a whole, and what it has still to take down."""
    if document["reason"]:
        yield Text(f"{name}: {document['reason']}", style="yellow")
    for resource in document["leaving"]:
        why = f": {resource['reason']}" if resource["reason"] else ""
        yield Text(f"{resource['name']} on {name}: is being taken down{why}")
    for left in document["leftovers"]:
        what = "to be removed" if left["destroy"] else "to be let go"
        why = f": {left['reason']}" if left["reason"] else ""
        yield Text(f"{left['resource']}/{left['volume']} on {name}: has still {what}{why}")


def remarks(resource: Json, on: str = "") -> Iterable[Text]:
    """What is in the way of a resource, and what its agent would do next, ``on`` which node."""
    head = f"{resource['name']} on {on}" if on else resource["name"]
    if resource["reason"]:
        yield Text(f"{head}: {resource['reason']}", style="yellow")
    for step in resource["pending"]:
        yield Text(f"{head}: pending: {step}")


def plan(document: Json) -> Iterable[RenderableType]:
    """What the agent would do next."""
    steps = [(r["name"], a["description"], a["reason"]) for r in document["resources"] for a in r["actions"]]
    problems = [(r["name"], p) for r in document["resources"] for p in r.get("problems", ())]
    for name, p in problems:
        yield Text(f"{name}: {p['message']} ({p['hint']}) [{p['code']}]", style="yellow")
    if not steps and not problems:
        yield Text(f"node {document['node']}: nothing to do")
    for name, description, reason in steps:
        yield Text(f"{name}: {description} ({reason})" if reason else f"{name}: {description}")


def listing(rows: Sequence[Mapping[str, object]], columns: Mapping[str, str], empty: str) -> None:
    """Print dictionaries as a table; ``columns`` maps keys to headings."""
    made = table(*columns.values())
    for row in rows:
        made.add_row(*(plain(row[key]) for key in columns))
    show([made] if rows else [Text(empty)])


def table(*headings: str) -> Table:
    """A table without lines."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        made.add_column(heading)
    return made


def bar(done: float, width: int = 12) -> RenderableType:
    """A resync's progress; ``done`` in per cent."""
    made = Table.grid(padding=(0, 1))
    made.add_row(ProgressBar(total=100, completed=done, width=width), Text(f"{done:.1f} %"))
    return made


def plain(value: object) -> Text:
    """A value as it is."""
    return Text("" if value is None else str(value))


def word(value: str | None) -> Text:
    """A word for a state, green if all is well, yellow if somebody should look."""
    shown = value or ("-" if value is None else "")
    style = "green" if shown in _GOOD else "" if shown in _QUIET or not shown else "yellow"
    return Text(shown, style=style)


def join(between: str, parts: Iterable[Text]) -> Text:
    """Parts in a row, or a dash."""
    found = list(parts)
    return Text(between).join(found) if found else Text("-")


def alua(name: str, state: str) -> Text:
    """A node's access state."""
    return Text.assemble(f"{name}=", word(state))


def _reachable(peers: Mapping[str, bool]) -> str:
    if not peers:
        return ""
    silent = [name for name, reachable in peers.items() if not reachable]
    return f"; agents not reachable: {', '.join(silent)}" if silent else "; all agents reachable"


def _connection(connection: Json, number: int) -> Text:
    """``n2 Secondary UpToDate``, with what is not as it should be: connection, resync and its progress."""
    text = Text.assemble(f"{connection['peer']} ", word(connection["role"]))
    if connection["state"] != "Connected":
        text.append(" ").append(word(connection["state"]))
    for volume in connection["volumes"]:
        if volume["number"] != number:
            continue
        text.append(" ").append(word(volume["disk"]))
        if volume["replication"] not in ("Established", "Off"):
            text.append(" ").append(word(volume["replication"]))
        if volume["done"] is not None:
            text.append(f" {volume['done']:.1f} %")
    return text
