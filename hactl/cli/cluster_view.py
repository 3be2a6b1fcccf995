"""What the agents say about the whole cluster, as far as they were reached. Pure.

The document of ``GET /v1/cluster`` is :func:`hactl.agents.document.cluster_document`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hactl.errors import Failed, Refused

Json = Mapping[str, Any]


@dataclass(frozen=True)
class View:
    """One resource as one node sees it."""

    node: str
    document: Json

    @property
    def active(self) -> bool:
        """Whether this node is the active one, by its own word."""
        return bool(self.document.get("role") == "active")

    @property
    def open(self) -> bool:
        """Whether all its gates are open."""
        return all(v["gate"] == "open" for v in self.document["volumes"])


def statuses(cluster: Json) -> dict[str, Json | None]:
    """Each node's status document by name, None for those that were not reached."""
    try:
        return {n["node"]: n["status"] if n["reachable"] else None for n in cluster["nodes"]}
    except (KeyError, TypeError) as error:
        raise bad_shape(error) from error


def bad_shape(error: Exception) -> Failed:
    """The error for an answer that lacks what it should have."""
    return Failed(
        "agent-bad-answer",
        f"the agent's answer is not of the expected shape: {type(error).__name__} {error}",
        "see it with --json; use the hactl that belongs to the agent",
    )


def views(cluster: Json, resource: str) -> tuple[View, ...]:
    """A resource as each node that was reached and has it sees it."""
    try:
        return tuple(
            View(node, found)
            for node, status in statuses(cluster).items()
            if status is not None
            for found in status["resources"]
            if found["name"] == resource
        )
    except (KeyError, TypeError) as error:
        raise bad_shape(error) from error


def active_node(found: Iterable[View]) -> str | None:
    """The node that is active by its own word, else the one that others know; None if nobody knows one."""
    seen = tuple(found)
    own = [view.node for view in seen if view.active]
    told = [view.document["active_node"] for view in seen if view.document["active_node"] is not None]
    return next(iter((*own, *told)), None)


def other_replica(cluster: Json, resource: str) -> str:
    """Where a switchover goes that names no node: the preferred node, else the one other replica.

    :class:`Refused` ``unknown-resource``, or ``switchover-where`` if that is not one node.
    """
    try:
        spec = next((r for r in cluster["resources"] if r["name"] == resource), None)
        if spec is None:
            known = ", ".join(r["name"] for r in cluster["resources"]) or "none"
            raise Refused("unknown-resource", f"there is no resource {resource}", f"known are: {known}")
        active = set(spec["active"]) or {active_node(views(cluster, resource))}
        others = [node for node in spec["replicas"] if node not in active]
        if spec["preferred"] in others:
            return str(spec["preferred"])
    except (KeyError, TypeError) as error:
        raise bad_shape(error) from error
    if len(others) == 1:
        return str(others[0])
    raise Refused(
        "switchover-where",
        f"the nodes that {resource} can move to are: {', '.join(others) or 'none'}",
        f"name one: hactl switchover {resource} --to NODE",
    )


@dataclass(frozen=True)
class Progress:
    """How far a new resource is: what has still to happen, and what keeps it from happening."""

    waiting: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether it can be promoted."""
        return not self.waiting


def progress(
    cluster: Json, resource: str, nodes: Iterable[str], replicas: Iterable[str], volumes: Iterable[int]
) -> Progress:
    """How far agents are with a new resource of these volumes on these nodes."""
    try:
        return _progress(cluster, resource, nodes, replicas, volumes)
    except (KeyError, TypeError) as error:
        raise bad_shape(error) from error


def _progress(
    cluster: Json, resource: str, nodes: Iterable[str], replicas: Iterable[str], volumes: Iterable[int]
) -> Progress:
    told = statuses(cluster)
    by_node = {view.node: view.document for view in views(cluster, resource)}
    with_disk, numbers = frozenset(replicas), tuple(volumes)
    waiting: list[str] = []
    problems: list[str] = []
    for node in nodes:
        if told.get(node) is None:
            waiting.append(f"{node}: its agent is not reached")
            continue
        found = by_node.get(node)
        if found is None:
            waiting.append(f"{node}: its agent has not begun")
            continue
        problems += [f"{node}: {p['message']} ({p['hint']}) [{p['code']}]" for p in found.get("problems", ())]
        # What an agent tries again may be over in a moment, and then again it may not.
        reason = f" ({found['reason']})" if found.get("reason") and not found.get("problems") else ""
        seen = {v["number"]: v for v in found["volumes"]}
        for number in numbers:
            volume = seen.get(number)
            if volume is None or volume["gate"] is None:
                waiting.append(f"{node}: volume {number} is not set up{reason}")
            elif node in with_disk and volume["disk"] != "UpToDate":
                done = [
                    f", {v['done']:.0f} %"
                    for connection in found["connections"]
                    for v in connection["volumes"]
                    if v["number"] == number and v["done"] is not None
                ]
                waiting.append(
                    f"{node}: disk of volume {number} is {volume['disk']}{''.join(done[:1])}{reason}"
                )
        if not any(line.startswith(f"{node}: ") for line in waiting):
            # Its ports come last: without them no path leads through this node yet.
            waiting += [f"{node}: {step}{reason}" for step in found.get("pending", ())[:1]]
    return Progress(tuple(waiting), tuple(problems))
