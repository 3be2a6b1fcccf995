"""The status document of one node (schema 1), made from observations: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import hactl
from hactl.agents.actions import Action
from hactl.agents.states import ResourceDesired, ResourceObserved, troubles
from hactl.alua.states import AccessState
from hactl.errors import HactlError
from hactl.model.desired import Leftover
from hactl.model.spec import ClusterSpec, ResourceSpec

SCHEMA = 1

ALUA_WORDS = {
    AccessState.ACTIVE_OPTIMIZED: "active/optimized",
    AccessState.ACTIVE_NON_OPTIMIZED: "active/non-optimized",
    AccessState.STANDBY: "standby",
    AccessState.UNAVAILABLE: "unavailable",
    AccessState.OFFLINE: "offline",
    AccessState.TRANSITIONING: "transitioning",
}
"""SPC-4's names of the access states (5.15.2)."""


def node_status(
    node: str,
    resources: Iterable[dict[str, Any]],
    peers: Mapping[str, bool],
    *,
    generation: int = 0,
    reasons: Iterable[str] = (),
    storage: Mapping[str, Any] | None = None,
    leaving: Iterable[tuple[str, str | None]] = (),
    leftovers: Iterable[tuple[Leftover, str | None]] = (),
) -> dict[str, Any]:
    """The whole document; ``peers`` maps each other node to whether its agent answers.

    ``generation`` is that of the desired state the agent goes by, ``reasons`` what keeps it from following
    the store. ``storage``: whether hosts can reach the node, as its watch tells. ``leaving`` are resources
    that are being taken down, ``leftovers`` what has still to be removed, each with why it is not yet.
    """
    return {
        "schema": SCHEMA,
        "node": node,
        "version": hactl.__version__,
        "generation": generation,
        "reason": "; ".join(reasons) or None,
        "storage": storage,
        "resources": list(resources),
        "peers": [{"node": peer, "reachable": up} for peer, up in sorted(peers.items())],
        "leaving": [{"name": name, "reason": reason} for name, reason in leaving],
        "leftovers": [
            {
                "resource": left.resource,
                "volume": left.volume,
                "device": left.device,
                "destroy": left.destroy,
                "reason": reason,
            }
            for left, reason in leftovers
        ],
    }


def resource_status(
    spec: ResourceSpec,
    desired: ResourceDesired,
    observed: ResourceObserved,
    *,
    active_node: str | None,
    reason: str | None,
    pending: Iterable[Action],
) -> dict[str, Any]:
    """One resource: its role, what is in the way (``reason``) and what the agent would do next
    (``pending``)."""
    reasons = [r for r in (reason, *troubles(desired, observed)) if r]
    return {
        "name": spec.name,
        "iqn": spec.iqn,
        "role": desired.role.value,
        "active_node": active_node,
        "reason": "; ".join(dict.fromkeys(reasons)) or None,
        "volumes": _volumes(desired, observed),
        "connections": _connections(observed),
        "problems": _problems(observed),
        "pending": [str(step) for step in pending],
    }


def resource_unseen(
    spec: ResourceSpec, desired: ResourceDesired, error: HactlError, *, active_node: str | None
) -> dict[str, Any]:
    """A resource that cannot be observed: what is known all the same, and why not more."""
    return {
        "name": spec.name,
        "iqn": spec.iqn,
        "role": desired.role.value,
        "active_node": active_node,
        "reason": str(error),
        "volumes": _volumes(desired, ResourceObserved()),
        "connections": [],
        "problems": [error.as_dict()],
        "pending": [],
    }


def resource_plan(name: str, steps: Iterable[Action], observed: ResourceObserved) -> dict[str, Any]:
    """One resource of the plan document: what would be done, and the problems that keep more from it."""
    actions = [{"action": type(s).__name__, "description": s.describe(), "reason": s.reason} for s in steps]
    return {"name": name, "actions": actions, "problems": _problems(observed)}


def _problems(observed: ResourceObserved) -> list[dict[str, str]]:
    return [{"code": p.code, "message": p.message, "hint": p.hint} for p in observed.problems]


def _volumes(desired: ResourceDesired, observed: ResourceObserved) -> list[dict[str, Any]]:
    found = []
    for volume in desired.volumes:
        gate = observed.gates.get(volume.number)
        local = observed.drbd.volumes.get(volume.number) if observed.drbd is not None else None
        states = observed.alua.get(volume.number, {})
        found.append(
            {
                "number": volume.number,
                "lun": volume.lun,
                "size": volume.size,
                "minor": volume.minor,
                "gate": gate.mode.value if gate is not None else None,
                "disk": local.disk.value if local is not None else None,
                "alua": {node: ALUA_WORDS[state] for node, state in sorted(states.items())},
            }
        )
    return found


def _connections(observed: ResourceObserved) -> list[dict[str, Any]]:
    if observed.drbd is None:
        return []
    return [
        {
            "peer": peer,
            "state": connection.state.value,
            "role": connection.role.value,
            "volumes": [
                {
                    "number": number,
                    "disk": volume.disk.value,
                    "replication": volume.replication.value,
                    "done": volume.done,
                }
                for number, volume in sorted(connection.volumes.items())
            ],
        }
        for peer, connection in sorted(observed.drbd.connections.items())
    ]


def own_node(cluster: ClusterSpec, hostname: str) -> str:
    """The node that ``hostname`` (``uname -n``) is; :class:`KeyError` if the cluster has none of that
    name."""
    return cluster.node(hostname.split(".")[0]).name
