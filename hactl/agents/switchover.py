"""A planned switchover, run by the node that hands over: hold I/O, ask the successor, then let go or go back.

The successor's answer may get lost. What is asked is idempotent, so it is asked again; what is never done
is to become active here while the successor may be: either it says that it is not and will not be, or DRBD,
connected, refuses one of the two.
"""

from __future__ import annotations

import time
import uuid
from enum import Enum, auto

import structlog

from hactl.agents.actions import DrbdPrimary, DrbdSecondary
from hactl.agents.journal import Handover
from hactl.agents.keeper import Keeper, held_volumes
from hactl.agents.peers import ABORTED, BUSY, UNREACHABLE
from hactl.agents.states import Aspect, resyncing, serving
from hactl.errors import Failed, HactlError, Refused, Unknown
from hactl.replication.state import ConnectionState, ResourceState, Role

_log = structlog.get_logger("hactl.agent")


class Successor(Enum):
    """What is known of the node that was asked to take over."""

    ACTIVE = auto()
    NOT = auto()
    """It is not active, and will not become so by what it was asked."""
    UNKNOWN = auto()


async def check(keeper: Keeper, to: str, handover: str) -> None:
    """:class:`Refused` unless ``to`` can take over now, and prepares it for that; changes nothing."""
    name = keeper.name
    if to not in {n.name for n in keeper.cluster.nodes}:
        known = ", ".join(n.name for n in keeper.cluster.nodes)
        raise Refused("unknown-node", f"there is no node {to!r}", f"nodes are {known}")
    if to not in keeper.spec.replicas:
        raise Refused(
            "not-a-replica",
            f"{to} holds no replica of {name}",
            f"replicas are on {', '.join(keeper.spec.replicas)}",
        )
    if to == keeper.node:
        raise Refused("already-active", f"{name} is active on {to} already")
    observed = await keeper.observe()
    if not serving(keeper.desired(), observed):
        raise Refused("not-active", f"{name} is not fully active on {keeper.node}", "see hactl status")
    state = observed.drbd
    connection = state.connections.get(to) if state is not None else None
    if state is None or connection is None or connection.state is not ConnectionState.CONNECTED:
        seen = "none" if connection is None else str(connection.state)
        raise Refused(
            "not-connected", f"DRBD of {name} is not connected to {to} ({seen})", "see drbdsetup status"
        )
    if resyncing(state):
        raise Refused("resyncing", f"a resync of {name} is running", "wait for its end: see hactl status")
    if not state.peer_up_to_date(to):
        raise Refused("peer-not-uptodate", f"{to} is not UpToDate for {name}", "wait for the resync")
    try:
        reasons = await keeper.kit.peers.ready(to, name, handover)
    except Unknown as error:
        # A question changes nothing, so that without an answer nothing has been changed either.
        raise Refused(
            UNREACHABLE,
            f"{to} cannot take over {name}: {error.message}",
            f"see systemctl status hactl-agent on {to}, and the cluster network",
        ) from error
    if reasons:
        raise Refused(
            "not-ready", f"{to} cannot take over {name}: {'; '.join(reasons)}", "see its hactl status"
        )


async def hand_over(keeper: Keeper, to: str) -> None:
    """Hand the resource over to ``to``. Raises :class:`Refused` with nothing changed, :class:`Failed` when
    this node is active again, :class:`Unknown` when the agent goes on trying to find out."""
    handover = Handover(id=str(uuid.uuid4()), to=to)
    await check(keeper, to, handover.id)
    began = time.monotonic()
    await keeper.become_demoted(handover=handover)
    lack = behind(await keeper.follower.until(keeper.name, _is_secondary), to)
    if lack:
        try:
            await keeper.back_to_active()
        except HactlError as error:
            keeper.reason = f"{lack}; and going back failed: {error.message}"
            raise Unknown(
                "switchover-unknown", f"{keeper.name}: {keeper.reason}", "the agent goes on trying"
            ) from error
        raise Failed("rolled-back", f"{keeper.name}: {lack}; active here again", "see drbdsetup status")
    await settle(keeper)
    _log.info(
        "handed over",
        resource=keeper.name,
        to=to,
        milliseconds=round((time.monotonic() - began) * 1000, 1),
    )


def _is_secondary(state: ResourceState) -> bool:
    return state.role is Role.SECONDARY


def behind(state: ResourceState | None, to: str) -> str | None:
    """Why ``to`` may not have every write that was answered here, seen after I/O was held; None if it has.

    Only this node can tell: it may have lost the connection, and gone on alone, some time before ``to``
    notices. What comes after this makes no difference, since nothing is written any more.
    """
    connection = state.connections.get(to) if state is not None else None
    if state is None or connection is None or connection.state is not ConnectionState.CONNECTED:
        return f"DRBD lost the connection to {to}"
    if resyncing(state):
        return "a resync has begun"
    return None if state.peer_up_to_date(to) else f"{to} is not UpToDate any more"


async def resume(keeper: Keeper) -> None:
    """Go on with a switchover that this agent, or its predecessor, left open. One attempt; raises as
    ``hand_over``.

    As long as the successor was not asked, going back is both safe and the shortest pause.
    """
    handover = keeper.record.handover
    if handover is None:
        return
    observed = await keeper.observe(frozenset({Aspect.DRBD}))
    connected = handover.to in observed.connected_peers()
    if not handover.asked and not connected and not observed.primary:
        # Somebody may have ordered it to be active meanwhile, and DRBD would not tell: it has to say itself.
        known = await _call_off(keeper, handover)
        if known is Successor.ACTIVE:
            await _let_go(keeper, handover)
            return
        if known is Successor.UNKNOWN:
            raise Unknown("switchover-unknown", f"{keeper.name}: {keeper.reason}", "see hactl status")
    if not handover.asked:
        await keeper.back_to_active()
        raise Failed("rolled-back", f"{keeper.name}: the switchover was interrupted; active here again")
    if observed.primary and connected:
        # Killed while going back: DRBD had given this node the role again, so nobody else has it.
        await keeper.back_to_active()
        return
    await settle(keeper, attempts=1)


async def settle(keeper: Keeper, attempts: int | None = None) -> None:
    """Ask until the successor is active or this node is again; after ``timings.hold``, or ``attempts``,
    :class:`Unknown`."""
    clock = keeper.kit.clock
    failure: HactlError | None = None
    while True:
        handover = keeper.record.handover
        if handover is None:
            raise Failed("superseded", f"{keeper.name}: another order has replaced the switchover")
        over = clock.now() - keeper.record.since >= keeper.timings.handover
        known = Successor.UNKNOWN
        if not over and failure is None:
            known, failure = await _ask(keeper, handover)
        if known is Successor.ACTIVE:
            await _let_go(keeper, handover)
            return
        if over or failure is not None or known is Successor.NOT:
            if failure is None:
                failure = Failed(
                    "handover-timeout",
                    f"{handover.to} did not take over {keeper.name} in time",
                    "see its log",
                )
            if known is Successor.UNKNOWN:
                known = await _call_off(keeper, handover)
            if known is Successor.ACTIVE:
                await _let_go(keeper, handover)
                return
            if await _take_back(keeper, handover, known):
                raise Failed(
                    "rolled-back",
                    f"{handover.to} did not take over {keeper.name}: {failure.message}; "
                    f"{keeper.node} is active again",
                    failure.hint,
                )
        attempts = None if attempts is None else attempts - 1
        if attempts == 0 or clock.now() - keeper.record.since >= keeper.timings.hold:
            keeper.reason = keeper.reason or f"it is not known whether {handover.to} took over"
            raise Unknown(
                "switchover-unknown",
                f"{keeper.name}: {keeper.reason}",
                f"the agent goes on asking {handover.to}; see hactl status",
            )
        await clock.sleep(keeper.timings.ask)


async def _ask(keeper: Keeper, handover: Handover) -> tuple[Successor, HactlError | None]:
    """Ask the successor to become active. The second value is why there is no point in asking again."""
    before = handover.asked
    if not before:
        keeper.write(handover=Handover(handover.id, handover.to, asked=True))
    try:
        await keeper.kit.peers.promote(handover.to, keeper.name, handover.id)
    except Unknown as error:
        keeper.reason = f"waiting for {handover.to}: {error.message}"
        return Successor.UNKNOWN, None
    except (Refused, Failed) as error:
        if error.code == BUSY or (error.code == UNREACHABLE and before):
            keeper.reason = f"waiting for {handover.to}: {error.message}"
            return Successor.UNKNOWN, None
        if error.code in (UNREACHABLE, ABORTED):
            return Successor.NOT, error
        # Refused for sure, but an earlier copy of the question may still be under way: call it off as well.
        return Successor.UNKNOWN if before else Successor.NOT, error
    keeper.after_step(keeper.name, "asked")
    return Successor.ACTIVE, None


async def _call_off(keeper: Keeper, handover: Handover) -> Successor:
    try:
        active = await keeper.kit.peers.abort(handover.to, keeper.name, handover.id)
    except HactlError as error:
        keeper.reason = f"{handover.to} may or may not be active: {error.message}"
        return Successor.UNKNOWN
    keeper.after_step(keeper.name, "called-off")
    return Successor.ACTIVE if active else Successor.NOT


async def _take_back(keeper: Keeper, handover: Handover, known: Successor) -> bool:
    """Become active again if that is safe: the successor is not, or DRBD is connected to it and decides."""
    observed = await keeper.observe(frozenset({Aspect.DRBD, Aspect.GATES}))
    connected = handover.to in observed.connected_peers()
    if known is Successor.UNKNOWN and not connected:
        keeper.reason = (
            f"demoted, and not to be promoted by itself: {handover.to} may be active, and neither its agent "
            f"nor DRBD can be reached; order promote on the node that shall be active"
        )
        _log.error(
            "outcome of switchover unknown", resource=keeper.name, to=handover.to, reason=keeper.reason
        )
        return False
    try:
        if known is Successor.UNKNOWN:
            await _primary_agreed(keeper, handover.to)
        await keeper.back_to_active()
    except HactlError as error:
        keeper.reason = f"cannot become active again: {error.message}"
        _log.warning("going back failed", resource=keeper.name, reason=keeper.reason)
        return False
    return True


async def _let_go(keeper: Keeper, handover: Handover) -> None:
    try:
        await keeper.hand_to(handover.to)
    except HactlError as error:
        # The successor is active, which is what was ordered; the next pass closes what is left.
        keeper.reason = f"not tidied up after the switchover: {error.message}"
        _log.warning(
            "switchover not tidied up",
            resource=keeper.name,
            held=list(held_volumes(await keeper.observe(frozenset({Aspect.GATES})))),
            error=str(error),
        )


async def _primary_agreed(keeper: Keeper, to: str) -> None:
    """Make DRBD Primary with the word of ``to``: if the connection breaks, the kernel does without."""
    await keeper.run([DrbdPrimary(keeper.name, "the role is taken back")])
    observed = await keeper.observe(frozenset({Aspect.DRBD}))
    if to not in observed.connected_peers():
        await keeper.run([DrbdSecondary(keeper.name, f"{to} may be active")])
        raise Failed("drbd-alone", f"DRBD lost the connection to {to} while it became Primary")
