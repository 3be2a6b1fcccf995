"""What a lost peer's data is worth: the table of the decision record."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hactl.agents.fence_verdict import (
    SETTLED,
    Code,
    Facts,
    Patience,
    judge,
    left,
    switched_off,
    unsettled,
    wants_fencing,
)
from hactl.agents.peers import Left
from hactl.pacemaker.protocol import Fencing, Member, State
from hactl.replication.state import (
    Connection,
    ConnectionState,
    DiskState,
    PeerVolume,
    ReplicationState,
    ResourceState,
    Role,
    Volume,
)

P = Patience()
ON = State("n1", quorum=True, members=(Member("n1", True, True), Member("n2", True, True)))
DIRTY = State("n1", quorum=True, members=(Member("n2", False, False),))
OFF = State("n1", quorum=True, members=(Member("n2", False, True),))
ALONE = replace(DIRTY, quorum=False)


def back(**changes: str | float | None) -> State:
    """The peer is a member again, and was fenced at 100."""
    event = Fencing("n2", "reboot", "success", completed=100.0)
    return replace(ON, fencing=(replace(event, **changes),))  # type: ignore[arg-type]  # as they are


def own(
    *disks: DiskState,
    role: Role = Role.PRIMARY,
    peer: DiskState = DiskState.UNKNOWN,
    connection: ConnectionState = ConnectionState.CONNECTING,
) -> ResourceState:
    numbers = range(len(disks) or 1)
    return ResourceState(
        "r0",
        role,
        volumes={n: Volume(16 + n, (disks or (DiskState.UP_TO_DATE,))[n]) for n in numbers},
        connections={
            "n2": Connection(
                "n2", connection, Role.UNKNOWN, {n: PeerVolume(ReplicationState.OFF, peer) for n in numbers}
            )
        },
    )


SECONDARY = own(role=Role.SECONDARY)
CONSISTENT = own(DiskState.CONSISTENT, role=Role.SECONDARY)


def facts(
    state: ResourceState | None,
    *,
    said: Left | None = None,
    pacemaker: State | None = ON,
    waited: float = 0.0,
    fenced: bool = False,
) -> Facts:
    off = {} if pacemaker is None else switched_off(pacemaker, {})
    return Facts(
        "n2", waited, state, said, pacemaker, fenced, may_fence=True, off=off.get("n2"), problem="no answer"
    )


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (facts(own(), said=Left.OUTDATED), Code.OUTDATED),
        (facts(own(), said=Left.WORSE), Code.INCONSISTENT),
        (facts(own(), said=Left.DOWN), Code.DOWN),
        (facts(own(), said=Left.CONNECTED), None),
        (facts(own(), said=Left.PRIMARY), None),
        (facts(own()), None),
        (facts(own(), pacemaker=DIRTY), None),
        (facts(own(), pacemaker=OFF), Code.FENCED),
        (facts(own(), pacemaker=DIRTY, fenced=True), Code.FENCED),
        (facts(own(), pacemaker=None), None),
        (facts(own(), waited=89.0), None),
        # Whatever else is known: the kernel heeds no answer then.
        (facts(own(connection=ConnectionState.CONNECTED)), Code.NOT_KNOWN),
        (facts(own(connection=ConnectionState.CONNECTED), said=Left.OUTDATED), Code.NOT_KNOWN),
        (facts(own(), waited=90.0), Code.NOT_KNOWN),
        (facts(own(), said=Left.PRIMARY, waited=90.0), Code.NOT_KNOWN),
        (facts(SECONDARY, said=Left.OUTDATED), Code.OUTDATED),
        (facts(SECONDARY, said=Left.PRIMARY), Code.PRIMARY),
        (facts(SECONDARY, pacemaker=OFF), Code.FENCED),
        (facts(SECONDARY), None),
        (facts(SECONDARY, waited=2.0), Code.NOT_KNOWN),
        # Its own disk may be the older one: nothing may make the kernel take it for the newest.
        (facts(CONSISTENT, said=Left.OUTDATED), Code.NOT_KNOWN),
        (replace(facts(SECONDARY, pacemaker=back()), joined=99.0), Code.FENCED),
        (replace(facts(own(), pacemaker=back()), joined=99.0), Code.FENCED),
        # It was fenced before, and has been connected since.
        (replace(facts(SECONDARY, pacemaker=back()), joined=101.0), None),
        (facts(SECONDARY, pacemaker=back()), None),
        (replace(facts(SECONDARY, pacemaker=back(target="n3")), joined=99.0), None),
        (replace(facts(SECONDARY, pacemaker=back(action="on")), joined=99.0), None),
        (replace(facts(SECONDARY, pacemaker=back(state="failed")), joined=99.0), None),
        (replace(facts(SECONDARY, pacemaker=back(completed=None)), joined=99.0), None),
        (replace(facts(CONSISTENT, pacemaker=back()), joined=99.0), Code.NOT_KNOWN),
        (facts(CONSISTENT, pacemaker=OFF), Code.NOT_KNOWN),
        (facts(CONSISTENT, pacemaker=OFF, fenced=True), Code.NOT_KNOWN),
        (facts(CONSISTENT, said=Left.DOWN), Code.NOT_KNOWN),
        # What DRBD is here could not be found out.
        (facts(None, said=Left.OUTDATED, pacemaker=OFF), None),
        (facts(None, pacemaker=OFF, waited=2.0), Code.NOT_KNOWN),
    ],
)
def test_verdicts(found: Facts, code: Code | None) -> None:
    verdict = judge(found, P)
    assert (None if verdict is None else verdict.code) == code
    assert verdict is None or verdict.reason


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (facts(own(), waited=15.0), True),
        (facts(own(), pacemaker=DIRTY, waited=15.0), True),
        (facts(own(), waited=14.0), False),
        (facts(own(), pacemaker=ALONE, waited=60.0), False),
        (facts(own(), pacemaker=None, waited=60.0), False),
        (facts(own(), said=Left.PRIMARY, waited=60.0), False),
        (facts(own(), pacemaker=replace(ON, members=()), waited=60.0), False),
        (facts(SECONDARY, waited=60.0), False),
        (facts(own(DiskState.UP_TO_DATE, DiskState.DISKLESS), waited=60.0), False),
        (replace(facts(own(), waited=60.0), may_fence=False), False),
    ],
)
def test_who_has_the_peer_fenced(found: Facts, wanted: bool) -> None:
    assert wants_fencing(found, P) is wanted


@pytest.mark.parametrize(
    ("state", "found"),
    [
        (None, Left.DOWN),
        (own(), Left.PRIMARY),
        (own(role=Role.SECONDARY, connection=ConnectionState.CONNECTED), Left.CONNECTED),
        (SECONDARY, None),
        (CONSISTENT, None),
        (own(DiskState.OUTDATED, role=Role.SECONDARY), Left.OUTDATED),
        (own(DiskState.OUTDATED, DiskState.INCONSISTENT, role=Role.SECONDARY), Left.OUTDATED),
        (own(DiskState.OUTDATED, DiskState.UP_TO_DATE, role=Role.SECONDARY), None),
        (own(DiskState.INCONSISTENT, DiskState.DISKLESS, role=Role.SECONDARY), Left.WORSE),
        (own(DiskState.NEGOTIATING, role=Role.SECONDARY), None),
    ],
)
def test_what_a_node_is_to_the_one_that_lost_it(state: ResourceState | None, found: Left | None) -> None:
    assert left(state, "n2") == found


def test_who_may_still_be_as_good() -> None:
    assert unsettled(own()) == ("n2",)
    assert unsettled(own(peer=DiskState.OUTDATED)) == ()
    assert unsettled(own(peer=DiskState.INCONSISTENT)) == ()
    assert unsettled(own(connection=ConnectionState.CONNECTED)) == ()


def test_the_limits_fit_into_those_of_drbd() -> None:
    # Four runs of the handler while `drbdsetup primary` waits, which the agent gives 8 s.
    assert 4 * P.promotion < 6
    # The handler's own, and drbdadm's, which kills it.
    assert P.frozen < 100 < 121
    assert {Code.INCONSISTENT, Code.OUTDATED, Code.DOWN, Code.FENCED} == SETTLED
