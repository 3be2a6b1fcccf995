"""The whole cluster on one screen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from hactl.cli.cluster_view import Json, View, active_node, statuses, views
from hactl.cli.render import alua, bar, join, node_remarks, plain, remarks, table, word
from hactl.cli.render_failover import failover
from hactl.model.size import format_size


def cluster(document: Json) -> Iterable[RenderableType]:
    """Nodes; resources with roles, replication, paths and their access states; what is in the way."""
    told = statuses(document)
    yield _nodes(document)
    # An agent of the version before says nothing about it.
    if "failover" in document:
        yield from failover(document["failover"])
        held = [r["name"] for r in document["resources"] if r["maintenance"]]
        if held and document["failover"]["automatic"]:
            yield Text(
                f"in maintenance, so that Pacemaker leaves it alone: {', '.join(held)}", style="yellow"
            )
    yield Text("")
    names = sorted({r["name"] for status in told.values() if status is not None for r in status["resources"]})
    if not names:
        yield Text("no resources")
    else:
        made = table(
            "RESOURCE", "ACTIVE ON", "LUN", "SIZE", "NODE", "ROLE", "GATE", "DISK", "REPLICATION", "ALUA"
        )
        for name in names:
            for row in _resource(views(document, name)):
                made.add_row(*row)
        yield made
    for name in names:
        for view in views(document, name):
            yield from remarks(view.document, view.node)
    for name, status in told.items():
        if status is not None:
            yield from node_remarks(status, name)
    yield from _silent(document["node"], told, names)


def _nodes(document: Json) -> RenderableType:
    told = statuses(document)
    made = table("NODE", "AGENT", "HACTL", "CONFIG", "ACTIVE", "STANDBY", "IN TROUBLE")
    for name, status in told.items():
        here = " (here)" if name == document["node"] else ""
        if status is None:
            made.add_row(plain(name + here), word("not reached"), *[plain("-")] * 5)
            continue
        roles = [r["role"] for r in status["resources"]]
        trouble = sum(r["reason"] is not None for r in status["resources"])
        made.add_row(
            plain(name + here),
            word("up"),
            plain(status["version"]),
            Text(
                str(status["generation"]),
                # An agent that is behind has not heard of the last change yet, or cannot follow it.
                style="yellow" if status["generation"] < document["generation"] else "",
            ),
            plain(roles.count("active")),
            plain(len(roles) - roles.count("active")),
            Text(str(trouble), style="yellow" if trouble else ""),
        )
    return made


def _resource(found: tuple[View, ...]) -> Iterable[tuple[RenderableType, ...]]:
    """A row for each volume on each node."""
    active = active_node(found)
    numbers = sorted({v["number"] for view in found for v in view.document["volumes"]})
    for k, number in enumerate(numbers):
        for j, view in enumerate(found):
            volume = next((v for v in view.document["volumes"] if v["number"] == number), None)
            if volume is None:
                continue
            first = k == 0 and j == 0
            yield (
                plain(view.document["name"] if first else ""),
                plain((active or "nobody") if first else ""),
                plain(volume["lun"] if j == 0 else ""),
                plain(format_size(volume["size"]) if j == 0 else ""),
                plain(view.node),
                word(view.document["role"] if k == 0 else ""),
                word(volume["gate"]),
                word(volume["disk"]),
                _replication(view, number),
                join(" ", (alua(node, state) for node, state in volume["alua"].items())),
            )


def _replication(view: View, number: int) -> RenderableType:
    """A line for each connection; a resync has a bar."""
    lines: list[RenderableType] = []
    for connection in view.document["connections"]:
        text = Text.assemble(f"{connection['peer']} ", word(connection["state"]))
        volume: Any = next((v for v in connection["volumes"] if v["number"] == number), None)
        if volume is None:
            lines.append(text)
            continue
        if volume["replication"] not in ("Established", "Off"):
            text.append(" ").append(word(volume["replication"]))
        lines.append(text)
        if volume["done"] is not None:
            lines.append(bar(volume["done"]))
    return Group(*lines) if lines else Text("-")


def _silent(here: str, told: dict[str, Json | None], names: list[str]) -> Iterable[Text]:
    """What is not known, and what can be done all the same."""
    silent = [node for node, status in told.items() if status is None]
    if not silent:
        return
    yield Text(
        f"not reached from {here}: {', '.join(silent)}; what is shown of them is what other nodes see. "
        "Configuration and orders for the other nodes still work; those catch up when they are back.",
        style="yellow",
    )
    if names:
        yield Text(
            "If a silent node was active: make sure that it is off, then: hactl promote RESOURCE --node NODE",
            style="yellow",
        )
