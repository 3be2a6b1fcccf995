"""A planned move while Pacemaker is in charge: it is asked for it, and comes back with a demotion here."""

from __future__ import annotations

import asyncio
import uuid

import structlog

from hactl.agents import switchover
from hactl.agents.keeper import Keeper
from hactl.agents.peers import BUSY
from hactl.agents.states import OrderedRole
from hactl.errors import Failed, HactlError, Refused, Unknown
from hactl.pacemaker.protocol import Pacemaker
from hactl.pacemaker.wanted import clone_of, primitive_of

LIMIT = 90.0
"""Seconds for Pacemaker to move a resource: a demotion and a promotion, and what it does beside that."""

_log = structlog.get_logger("hactl.agent")


async def moved(keeper: Keeper, to: str, moves: set[str]) -> None:
    """Have Pacemaker promote ``to`` instead of this node; back when it has. ``moves``: resources of which
    this goes on already.

    :class:`Refused` with nothing changed if ``to`` cannot take over; :class:`Unknown`
    (``pacemaker-move-unknown``) if Pacemaker does not do it in time.
    """
    name, pacemaker = keeper.name, keeper.kit.pacemaker
    if pacemaker is None:
        raise Failed(
            "pacemaker-down",
            f"Pacemaker decides where {name} is active, and does not run on {keeper.node}",
            "systemctl status pacemaker",
        )
    if keeper.spec.failback and keeper.spec.preferred == keeper.node:
        raise Refused(
            "failback-automatic",
            f"{name} would come back to {keeper.node} at once, which takes it back automatically",
            f"first: hactl resource set {name} --no-failback",
        )
    if name in moves:
        raise Refused(BUSY, f"{name} is being moved", "try again when that has ended")
    await switchover.check(keeper, to, str(uuid.uuid4()))
    moves.add(name)
    try:
        await pacemaker.move(clone_of(name), to)
        await _promoted(keeper, pacemaker, to)
    finally:
        moves.discard(name)
        await _cleared(pacemaker, name)


async def _promoted(keeper: Keeper, pacemaker: Pacemaker, to: str) -> None:
    clock = keeper.kit.clock
    until = clock.now() + LIMIT
    while True:
        try:
            there = (await pacemaker.state()).promoted(primitive_of(keeper.name)) == to
            if there and keeper.record.role is not OrderedRole.ACTIVE:
                return
            why = ""
        except Unknown as error:
            why = f": {error.message}"
        if clock.now() >= until:
            raise Unknown(
                "pacemaker-move-unknown",
                f"Pacemaker has not promoted {keeper.name} on {to} within {LIMIT:.0f} s{why}",
                "crm_mon -1rf says what it waits for",
            )
        await clock.sleep(keeper.timings.ask)


async def _cleared(pacemaker: Pacemaker, name: str) -> None:
    """Take the preference away, also if this process is just being stopped: it would outlive everything."""
    try:
        await asyncio.shield(pacemaker.clear(clone_of(name)))
    except HactlError as error:
        _log.error("a preference is left in Pacemaker", resource=name, error=str(error))
