"""Persistent reservations as the agent tells of them, and the order to clear them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import structlog

from hactl.errors import Refused
from hactl.model.spec import ClusterSpec
from hactl.pr_sync.units import Unit, units_of

if TYPE_CHECKING:
    from hactl.agents.upkeep import Upkeep
    from hactl.pr_sync.service import Reached

ALL = "all"
"""Instead of a volume's number: all of them."""

_log = structlog.get_logger("hactl.agent")


def reached_document(volumes: Mapping[int, Reached]) -> dict[str, dict[str, Any]]:
    """How far this node has applied the PR logs of a resource's volumes, by number (a text): ``index`` of the
    entry, PR``generation`` after it, whether it is a ``member``, and ``problem``, or null."""
    return {
        str(number): {
            "index": reached.head.index,
            "generation": reached.head.state.generation,
            "member": reached.member,
            "problem": None if reached.problem is None else str(reached.problem),
        }
        for number, reached in sorted(volumes.items())
    }


async def clear_reservations(agent: Upkeep, resource: str, volume: str, by: str) -> dict[str, Any]:
    """Clear one volume's reservations on all nodes, or those of :data:`ALL`; ``by`` ordered it, for the
    journal. What came of each: ``volumes[]``.

    :class:`Refused` ``unknown-resource``, ``unknown-volume``, or ``pr-not-logged`` without a store; others as
    by :func:`hactl.pr_sync.clear.clear`.
    """
    units = _units(agent.cluster, resource, volume)

    async def one(unit: Unit) -> dict[str, Any]:
        _log.warning("clearing of reservations ordered", unit=unit.name, by=by)
        done = await agent.kit.standing.clear(unit)
        _log.warning("reservations are cleared", unit=unit.name, entry=done.index, changed=done.changed)
        told = {"index": done.index, "generation": done.generation, "changed": done.changed}
        return {"number": unit.volume, **told}

    outcomes = await asyncio.gather(*(one(unit) for unit in units), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return {"volumes": [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]}


def _units(cluster: ClusterSpec, resource: str, volume: str) -> tuple[Unit, ...]:
    spec = next((r for r in cluster.resources if r.name == resource), None)
    if spec is None:
        known = ", ".join(sorted(r.name for r in cluster.resources)) or "none"
        raise Refused("unknown-resource", f"there is no resource {resource}", f"known are: {known}")
    units = tuple(u for u in units_of(cluster, spec) if volume in (ALL, str(u.volume)))
    if not units:
        known = ", ".join(str(v.number) for v in spec.volumes)
        raise Refused("unknown-volume", f"resource {resource} has no volume {volume}", f"known are: {known}")
    return units
