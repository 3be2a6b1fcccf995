"""What a lost peer's data is worth, from what is known of it: pure.

The question is DRBD's (:mod:`hactl.agents.fence_peer`); docs/decisions/0012-data-fencing.md has the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from hactl.agents.peers import Left
from hactl.pacemaker.protocol import State
from hactl.replication.state import DiskState, ResourceState, Role


class Code(IntEnum):
    """Exit codes of DRBD's fence-peer handler (drbd.conf(5); kernel: enum drbd_peer_state). ``NOT_KNOWN`` is
    none of them: the kernel changes nothing, and I/O stays held."""

    NOT_KNOWN = 1
    INCONSISTENT = 3
    OUTDATED = 4
    DOWN = 5
    PRIMARY = 6
    FENCED = 7


SETTLED = frozenset({Code.INCONSISTENT, Code.OUTDATED, Code.DOWN, Code.FENCED})
"""The peer's data will not be taken for the newest: I/O may go on without it."""


_OFF = frozenset({"off", "reboot"})
"""Fence actions after which a machine was without power."""


@dataclass(frozen=True)
class Patience:
    """Limits in seconds. ``promotion``: for a node that is not Primary; the kernel has the handler called up
    to four times while ``drbdsetup primary`` waits. ``frozen``: for a Primary, less than the 121 s after
    which drbdadm gives its handler up. ``fence``: then Pacemaker is told to fence a peer that neither answers
    nor is gone. ``again``: between two questions. ``stuck``: I/O held for so long without a handler that asks
    is seen to without one. ``restart``: Pacemaker that is down for so long was not just restarted."""

    promotion: float = 1.2
    frozen: float = 90.0
    fence: float = 15.0
    again: float = 0.4
    stuck: float = 5.0
    restart: float = 10.0


@dataclass(frozen=True)
class Facts:
    """What is known by now. ``own``: DRBD's state here; ``left``: what the peer's agent has said of its
    disks; ``pacemaker``: what Pacemaker says; ``fenced``: it has fenced the peer because it was told to.
    ``waited``: seconds. ``joined``: when DRBD was last seen to get its connection to the peer, seconds since
    1970. ``off``: when the peer was last without power for certain, on the same scale, as far as Pacemaker
    ever told: that stays true, however slow it is to answer now. ``problem``: why there is no answer of the
    peer's agent, or of Pacemaker's."""

    peer: str
    waited: float
    own: ResourceState | None = None
    left: Left | None = None
    pacemaker: State | None = None
    fenced: bool = False
    may_fence: bool = False
    joined: float | None = None
    off: float | None = None
    problem: str = ""

    @property
    def primary(self) -> bool:
        return self.own is not None and self.own.role is Role.PRIMARY

    @property
    def connected(self) -> bool:
        """DRBD has its connection to the peer again: nothing is asked any more."""
        return self.own is not None and self.own.connected(self.peer)

    @property
    def sound(self) -> bool:
        """This node's disks are UpToDate, all of them, so that the peer's are not needed."""
        return self.own is not None and self.own.up_to_date


@dataclass(frozen=True)
class Judgement:
    """The answer, and why."""

    code: Code
    reason: str


def judge(facts: Facts, patience: Patience) -> Judgement | None:
    """The verdict; None to go on waiting."""
    peer = facts.peer
    if facts.connected:
        # It let I/O go on by itself, and heeds no answer (drbd_nl.c, conn_try_outdate_peer).
        return Judgement(Code.NOT_KNOWN, f"{peer} is connected again")
    if facts.own is not None and not facts.primary and not facts.sound:
        # The kernel would make a disk that is only Consistent UpToDate on codes 4 and 7 (drbd_set_role), and
        # the peer may have gone on alone with newer data before it was lost.
        return Judgement(Code.NOT_KNOWN, f"the disk here is not UpToDate: {peer} may have newer data")
    if facts.own is not None:
        found = _from_peer(facts)
        if found is not None:
            return found
        if facts.fenced:
            return Judgement(Code.FENCED, f"{peer} was fenced")
        if facts.pacemaker is not None and facts.pacemaker.gone(peer):
            return Judgement(Code.FENCED, f"Pacemaker says that {peer} is off")
        if _fenced_since(facts):
            return Judgement(Code.FENCED, f"{peer} was fenced after DRBD was last connected to it")
    if facts.waited < (patience.frozen if facts.primary else patience.promotion):
        return None
    return Judgement(Code.NOT_KNOWN, why_in_doubt(facts))


def _fenced_since(facts: Facts) -> bool:
    """Whether the peer was switched off after the connection that was lost had begun.

    It may run again, and be a member: a machine that boots fast does so before Pacemaker hears from the fence
    agent. But what it was before has ended, and its disk comes up as no better than Consistent.
    """
    return facts.off is not None and facts.joined is not None and facts.off > facts.joined


def switched_off(state: State, before: Mapping[str, float]) -> dict[str, float]:
    """When each node was last certainly without power, in seconds since 1970; also from what was known
    ``before``."""
    found = dict(before)
    for event in state.fencing:
        if event.action in _OFF and event.state == "success" and event.completed is not None:
            found[event.target] = max(event.completed, found.get(event.target, event.completed))
    return found


def _from_peer(facts: Facts) -> Judgement | None:
    peer = facts.peer
    match facts.left:
        case Left.OUTDATED:
            return Judgement(Code.OUTDATED, f"{peer} knows that its data is old")
        case Left.WORSE:
            return Judgement(Code.INCONSISTENT, f"{peer} has no usable data")
        case Left.DOWN:
            return Judgement(Code.DOWN, f"{peer} has the resource down")
        case Left.PRIMARY if not facts.primary:
            return Judgement(Code.PRIMARY, f"{peer} is Primary")
    return None


def why_in_doubt(facts: Facts) -> str:
    """Why nothing is certain, in words for people."""
    if facts.left is Left.PRIMARY:
        return f"{facts.peer} is Primary too"
    if facts.pacemaker is not None and not facts.pacemaker.quorum:
        return "this node is not with the majority of the cluster"
    if facts.pacemaker is None:
        return f"neither {facts.peer} nor Pacemaker answers: {facts.problem}"
    return f"{facts.peer} was not fenced, and does not answer: {facts.problem}"


def wants_fencing(facts: Facts, patience: Patience) -> bool:
    """Whether Pacemaker is to be told to fence the peer: this node serves, and has waited for long enough.
    Never one that is Primary itself, and never from outside of the majority."""
    return (
        facts.may_fence
        and facts.primary
        and facts.sound
        and facts.left is not Left.PRIMARY
        and facts.waited >= patience.fence
        and facts.pacemaker is not None
        and facts.pacemaker.quorum
        and facts.pacemaker.member(facts.peer) is not None
    )


def unsettled(state: ResourceState) -> tuple[str, ...]:
    """Peers that are not connected and whose disks may be as good as this node's."""
    worse = {DiskState.OUTDATED, DiskState.INCONSISTENT}
    return tuple(
        sorted(
            peer
            for peer in state.connections
            if not state.connected(peer)
            and not {v.disk for v in state.connections[peer].volumes.values()} <= worse
        )
    )


def stranded(state: ResourceState) -> bool:
    """A standby's good disk whose peer is away and may be as good, or better by now."""
    good = any(v.disk is DiskState.UP_TO_DATE for v in state.volumes.values())
    return state.role is Role.SECONDARY and good and bool(unsettled(state))


def left(state: ResourceState | None, caller: str) -> Left | None:
    """What the disks here are to a node that has lost this one; None: they may be as good as its own."""
    if state is None:
        return Left.DOWN
    if state.role is Role.PRIMARY:
        return Left.PRIMARY
    if state.connected(caller):
        return Left.CONNECTED
    disks = {v.disk for v in state.volumes.values()}
    if disks & {DiskState.UP_TO_DATE, DiskState.CONSISTENT}:
        return None
    if DiskState.OUTDATED in disks:
        return Left.OUTDATED
    return Left.WORSE if disks <= {DiskState.INCONSISTENT, DiskState.DISKLESS, DiskState.FAILED} else None
