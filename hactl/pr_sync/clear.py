"""Takes all registrations and the reservation of a unit away, on all nodes, as an operator orders it.

The log comes first: an entry that says REGISTER AND IGNORE EXISTING KEY and CLEAR by the agents' own
initiator, which every member replays like what initiators did on another node. So it works from any node,
initiators that were registered get the unit attention RESERVATIONS PREEMPTED (SPC-4 5.13.11.2.7), and a
PERSISTENT RESERVE OUT that comes at the same moment is before it, or loses the race.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from hactl.errors import HactlError, Refused, Unknown
from hactl.pr_sync.commands import Command
from hactl.pr_sync.log import LOST, PrLog
from hactl.pr_sync.model import replay
from hactl.pr_sync.records import Head
from hactl.pr_sync.state import Action, Nexus
from hactl.pr_sync.units import OWN_PORT, Unit
from hactl.target.tree import CONTROL

Applied = Callable[[str, str, int], Awaitable[None]]
"""Back when a node (first) has applied the log of a unit (its serial) up to an entry."""

TRIES = 100
"""Entries of others that may come first; each took its writer longer than a try takes."""
AGAIN = 0.2
"""Seconds between two questions to a member that has not applied the entry."""
PATIENCE = 10.0
"""Seconds until members that do not answer are reported."""


@dataclass(frozen=True)
class Cleared:
    """``changed``: there was something to clear, and entry ``index`` did so."""

    index: int
    generation: int
    changed: bool


def clearing(key: int) -> tuple[Command, ...]:
    """The commands of the entry."""
    nexus = Nexus(CONTROL, "80" + 10 * "0", OWN_PORT)
    return (
        Command(nexus, Action.REGISTER_AND_IGNORE_EXISTING_KEY, 0, key),
        Command(nexus, Action.CLEAR, key),
    )


def is_clearing(commands: tuple[Command, ...] | None) -> bool:
    """Whether an entry's commands are an operator's order to clear."""
    return bool(commands) and all(c.nexus.rtpi == OWN_PORT for c in commands or ())


async def clear(
    log: PrLog, unit: Unit, applied: Applied, *, patience: float = PATIENCE, again: float = AGAIN
) -> Cleared:
    """Back when every member has the empty state.

    :class:`Unknown` ``pr-clear-unfinished`` if it is in the log, and a member has not applied it in time;
    :class:`Refused` ``pr-race-lost`` if initiators' commands came first all the time. Others as by the store.
    """
    head, changed = await _commit(log, unit)
    # Why it is not known of a member that it has it.
    missing: dict[str, str] = {}
    try:
        async with asyncio.timeout(patience), asyncio.TaskGroup() as group:
            for node in sorted(await _members(log, unit, again)):
                missing[node] = "it does not answer"
                group.create_task(_wait(log, unit, node, head.index, applied, missing, again))
    except TimeoutError:
        who = "; ".join(f"{node}: {why}" for node, why in sorted(missing.items()))
        raise Unknown(
            "pr-clear-unfinished",
            f"unit {unit.name} is cleared in the log (entry {head.index}), and not known to be everywhere: "
            + (who or "the store does not tell which nodes have to"),
            f"every node does it as soon as it can; see: hactl pr show {unit.resource}",
        ) from None
    return Cleared(head.index, head.state.generation, changed)


async def _members(log: PrLog, unit: Unit, again: float) -> frozenset[str]:
    while True:
        with contextlib.suppress(HactlError):
            return await log.members(unit.serial)
        await asyncio.sleep(again)


async def _commit(log: PrLog, unit: Unit) -> tuple[Head, bool]:
    left = TRIES
    while True:
        head = await log.head(unit.serial)
        if not head.state.registrations:
            return head, False
        commands = clearing(secrets.randbits(63) | 1)
        try:
            after = replay(head.state, commands, unit.acting)
            return await log.append(unit.serial, head, commands, after), True
        except Refused as error:
            left -= 1
            if error.code != LOST or not left:
                raise


async def _wait(
    log: PrLog, unit: Unit, node: str, index: int, applied: Applied, missing: dict[str, str], again: float
) -> None:
    while True:
        try:
            await applied(node, unit.serial, index)
            break
        except HactlError as error:
            missing[node] = error.message
        await asyncio.sleep(again)
        if node not in await _members(log, unit, again):
            break
    del missing[node]
