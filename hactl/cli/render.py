"""Answers as tables and text for people. What the agent says is shown as it is, never as markup."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hactl.errors import Failed
from hactl.model.size import format_size

PIPE_WIDTH = 240
"""Columns where standard output is no terminal: lines are not broken for a program that reads them."""

_GOOD = frozenset({"active", "open", "UpToDate", "Connected", "active/optimized", "Established", "Primary"})
_QUIET = frozenset({"standby", "closed", "Secondary", "demoted", "-"})

Json = Mapping[str, Any]


def status(document: Json) -> None:
    """A node's status: one table with a row per volume, then what is in the way and what is pending."""
    _show(document, _status)


def plan(document: Json) -> None:
    """What the agent would do next."""
    _show(document, _plan)


def _show(document: Json, how: Any) -> None:
    console = Console(
        file=sys.stdout, markup=False, highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH
    )
    try:
        parts = list(how(document))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Failed(
            "agent-bad-answer",
            f"the agent's answer is not of the expected shape: {type(error).__name__} {error}",
            "see it with --json; use the hactl that belongs to the agent",
        ) from error
    for part in parts:
        console.print(part)


def _status(document: Json) -> Iterable[Table | Text]:
    peers = {p["node"]: p["reachable"] for p in document["peers"]}
    yield Text(f"node {document['node']}, hactl {document['version']}{_reachable(peers)}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("RESOURCE", "ROLE", "ACTIVE ON", "LUN", "SIZE", "GATE", "DISK", "REPLICATION", "ALUA"):
        table.add_column(heading)
    for resource in document["resources"]:
        for k, volume in enumerate(resource["volumes"]):
            first = k == 0
            table.add_row(
                _plain(resource["name"] if first else ""),
                _word(resource["role"] if first else ""),
                _plain((resource["active_node"] or "nobody") if first else ""),
                _plain(volume["lun"]),
                _plain(format_size(volume["size"])),
                _word(volume["gate"]),
                _word(volume["disk"]),
                _join("\n", (_connection(c, volume["number"]) for c in resource["connections"])),
                _join(" ", (_alua(node, state) for node, state in volume["alua"].items())),
            )
    if document["resources"]:
        yield table
    else:
        yield Text("no resources")
    for resource in document["resources"]:
        if resource["reason"]:
            yield Text(f"{resource['name']}: {resource['reason']}", style="yellow")
        for step in resource["pending"]:
            yield Text(f"{resource['name']}: pending: {step}")


def _reachable(peers: Mapping[str, bool]) -> str:
    if not peers:
        return ""
    silent = [node for node, reachable in peers.items() if not reachable]
    return f"; agents not reachable: {', '.join(silent)}" if silent else "; all agents reachable"


def _connection(connection: Json, number: int) -> Text:
    """``n2 Secondary UpToDate``, with what is not as it should be: connection, resync and its progress."""
    text = Text.assemble(f"{connection['peer']} ", _word(connection["role"]))
    if connection["state"] != "Connected":
        text.append(" ").append(_word(connection["state"]))
    for volume in connection["volumes"]:
        if volume["number"] != number:
            continue
        text.append(" ").append(_word(volume["disk"]))
        if volume["replication"] not in ("Established", "Off"):
            text.append(" ").append(_word(volume["replication"]))
        if volume["done"] is not None:
            text.append(f" {volume['done']:.1f} %")
    return text


def _alua(node: str, state: str) -> Text:
    return Text.assemble(f"{node}=", _word(state))


def _plan(document: Json) -> Iterable[Text]:
    steps = [(r["name"], a["description"], a["reason"]) for r in document["resources"] for a in r["actions"]]
    problems = [(r["name"], p) for r in document["resources"] for p in r.get("problems", ())]
    for name, p in problems:
        yield Text(f"{name}: {p['message']} ({p['hint']}) [{p['code']}]", style="yellow")
    if not steps and not problems:
        yield Text(f"node {document['node']}: nothing to do")
    for name, description, reason in steps:
        yield Text(f"{name}: {description} ({reason})" if reason else f"{name}: {description}")


def _plain(value: object) -> Text:
    return Text(str(value))


def _word(value: str | None) -> Text:
    word = value or ("-" if value is None else "")
    style = "green" if word in _GOOD else "" if word in _QUIET or not word else "yellow"
    return Text(word, style=style)


def _join(between: str, parts: Iterable[Text]) -> Text:
    found = list(parts)
    return Text(between).join(found) if found else Text("-")
