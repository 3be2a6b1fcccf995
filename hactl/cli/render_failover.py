"""Who takes over when a node is lost, as text for people.

The document is :func:`hactl.pacemaker.charge.document`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.text import Text

Json = Mapping[str, Any]


def failover(document: Json) -> Iterable[Text]:
    """Whether Pacemaker takes over by itself; if not, why, and what to do about it."""
    if not document["automatic"]:
        yield Text(
            f"nobody takes over by itself when a node is lost: {'; '.join(document['reasons'])}", style="red"
        )
        yield Text(f"    {document['remedy']}")
        return
    missing = [node for node, agent in document["fencing"].items() if agent is None]
    if missing:
        yield Text(
            "Pacemaker takes over by itself, without fencing: nobody can switch off "
            f"{', '.join(missing)}, which may go on writing when it is cut off",
            style="red",
        )
        yield Text("    hactl fencing set NODE AGENT KEY=VALUE...; then: hactl failover automatic")
        return
    devices = ", ".join(f"{node} {agent}" for node, agent in document["fencing"].items())
    yield Text(f"Pacemaker takes over by itself when a node is lost; fencing: {devices}")
