"""What Pacemaker is told: exit codes and scores from observations, as tables."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from hactl.agents.ocf_codes import (
    ACTIVE,
    HANDED_OVER,
    LAST_RESORT,
    READY,
    RECOVERY,
    Answer,
    Code,
    Recovery,
    Unchanged,
    code_of,
    weighed,
)
from hactl.agents.ocf_monitor import Question, Subject, busy, judge, lacking
from hactl.agents.reach import WORDS, Verdict
from hactl.agents.states import OrderedRole, ResourceDesired, ResourceObserved, VolumeDesired
from hactl.errors import Failed, Refused, Unknown
from hactl.pacemaker.wanted import PREFERRED
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
from hactl.target.gates import GateState, Mode

D = DiskState


def desired(role: OrderedRole = OrderedRole.STANDBY, *, replica: bool = True) -> ResourceDesired:
    volumes = (VolumeDesired(0, 0, 4096, "hactl.r0.0", 16, "/dev/drbd16"),)
    return ResourceDesired("r0", "n1", ("n1", "n2"), replica, volumes, role)


def drbd(
    role: Role = Role.SECONDARY,
    disk: DiskState = D.UP_TO_DATE,
    peer: DiskState | None = D.UP_TO_DATE,
    replication: ReplicationState = ReplicationState.ESTABLISHED,
    suspended: str = "no",
) -> ResourceState:
    up = peer is not None
    there = Connection(
        "n2",
        ConnectionState.CONNECTED if up else ConnectionState.CONNECTING,
        Role.SECONDARY if up else Role.UNKNOWN,
        {0: PeerVolume(replication if up else ReplicationState.OFF, peer or D.UNKNOWN)},
    )
    return ResourceState("r0", role, suspended, {0: Volume(16, disk)}, {"n2": there})


def seen(state: ResourceState | None, mode: Mode | None = Mode.CLOSED) -> ResourceObserved:
    gates = {} if mode is None else {0: GateState("hactl.r0.0", mode, 4096, "/dev/dm-0")}
    return ResourceObserved(drbd=state, gates=gates, export=())


def standby(state: ResourceState | None, mode: Mode | None = Mode.CLOSED) -> Subject:
    return Subject(desired(), seen(state, mode))


def active(state: ResourceState, mode: Mode | None = Mode.OPEN) -> Subject:
    return Subject(desired(OrderedRole.ACTIVE), seen(state, mode))


P = Role.PRIMARY


@pytest.mark.parametrize(
    ("subject", "code", "score"),
    [
        # Nothing wrong.
        (active(drbd(P)), Code.RUNNING_PROMOTED, ACTIVE),
        (standby(drbd()), Code.SUCCESS, READY),
        (Subject(desired(replica=False), seen(None)), Code.SUCCESS, None),
        # What heals by itself.
        (active(drbd(P, peer=None)), Code.RUNNING_PROMOTED, ACTIVE),
        (active(drbd(P, peer=D.INCONSISTENT)), Code.RUNNING_PROMOTED, ACTIVE),
        (active(drbd(P, D.INCONSISTENT, D.UP_TO_DATE, ReplicationState.SYNC_TARGET)), 8, ACTIVE),
        (standby(drbd(disk=D.INCONSISTENT, replication=ReplicationState.SYNC_TARGET)), Code.SUCCESS, None),
        (standby(drbd(disk=D.OUTDATED, peer=None)), Code.SUCCESS, None),
        (standby(drbd(peer=None)), Code.SUCCESS, READY),
        (replace(standby(drbd()), behind="not in step"), Code.SUCCESS, None),
        (replace(active(drbd(P)), behind="not in step"), Code.RUNNING_PROMOTED, ACTIVE),
        (active(drbd(P, peer=None, suspended="fencing")), Code.DEGRADED_PROMOTED, ACTIVE),
        # A failed disk: moved if somebody else can take over, and no failure.
        (active(drbd(P, D.DISKLESS)), Code.DEGRADED_PROMOTED, LAST_RESORT),
        (active(drbd(P, D.FAILED)), Code.DEGRADED_PROMOTED, LAST_RESORT),
        (standby(drbd(disk=D.DISKLESS)), Code.DEGRADED, None),
        # Active, and of no use to anybody.
        (active(drbd(P, D.DISKLESS, peer=None)), Code.FAILED_PROMOTED, None),
        (active(drbd(P, D.DISKLESS, peer=D.INCONSISTENT)), Code.FAILED_PROMOTED, None),
        (active(drbd(P), Mode.CLOSED), Code.FAILED_PROMOTED, None),
        (active(drbd(P), Mode.SUSPENDED), Code.FAILED_PROMOTED, None),
        (active(drbd(P), None), Code.FAILED_PROMOTED, None),
        # Active against orders.
        (standby(drbd(P)), Code.FAILED_PROMOTED, None),
        (standby(drbd(), Mode.OPEN), Code.FAILED_PROMOTED, None),
        # Not active any more, which a Promoted monitor does not expect.
        (active(drbd(), Mode.CLOSED), Code.SUCCESS, READY),
        # Troubles of a standby, which to start it again does not mend.
        (standby(None), Code.DEGRADED, None),
        (standby(drbd(), None), Code.DEGRADED, None),
        (standby(drbd(), Mode.FOREIGN), Code.DEGRADED, None),
        (standby(drbd(), Mode.HELD), Code.SUCCESS, READY),
        # Stopped.
        (replace(standby(drbd()), withdrawn=True), Code.NOT_RUNNING, None),
        (replace(standby(None, None), withdrawn=True), Code.NOT_RUNNING, None),
        (replace(standby(drbd(P)), withdrawn=True), Code.FAILED_PROMOTED, None),
        (replace(active(drbd(P)), withdrawn=True), Code.RUNNING_PROMOTED, ACTIVE),
    ],
)
def test_monitor(subject: Subject, code: int, score: int | None) -> None:
    answer = judge(subject, Question(role="Promoted"))
    assert (answer.code, answer.score) == (code, score)
    if answer.code not in (Code.SUCCESS, Code.RUNNING_PROMOTED):
        assert answer.reason


def test_probe_leaves_what_is_coming_up_to_a_start() -> None:
    for subject in (standby(None), standby(drbd(), None)):
        assert judge(subject, Question(probe=True)).code is Code.NOT_RUNNING
    assert judge(standby(drbd()), Question(probe=True)).code is Code.SUCCESS
    assert judge(active(drbd(P)), Question(probe=True)).code is Code.RUNNING_PROMOTED


@pytest.mark.parametrize("role", ["Unpromoted", "Slave"])
def test_active_by_a_hand_over_before_pacemaker_promotes_it(role: str) -> None:
    answer = judge(active(drbd(P)), Question(role=role))
    assert (answer.code, answer.score) == (Code.SUCCESS, ACTIVE)
    answer = judge(active(drbd(P, D.DISKLESS)), Question(role=role))
    assert (answer.code, answer.score) == (Code.DEGRADED, LAST_RESORT)


def test_what_is_lacking_before_it_is_started() -> None:
    assert lacking(standby(drbd(disk=D.DISKLESS, peer=None))) == ()
    assert lacking(Subject(desired(replica=False), seen(None))) == ()
    for subject in (
        standby(None),
        standby(drbd(), None),
        replace(standby(drbd()), behind="not in step"),
        Subject(desired(), replace(seen(drbd()), export=None, export_error="no configfs")),
        Subject(desired(), seen(replace(drbd(), volumes={}))),
    ):
        assert len(lacking(subject)) == 1


def test_what_is_active_in_the_kernel() -> None:
    assert busy(seen(drbd())) is None
    assert busy(seen(None, None)) is None
    for mode in (Mode.CLOSED, Mode.HELD, Mode.FOREIGN):
        assert busy(seen(drbd(), mode)) is None
    for mode in (Mode.OPEN, Mode.SUSPENDED):
        assert busy(seen(drbd(), mode)) == "gate hactl.r0.0 is open"
    assert busy(seen(drbd(P))) == "DRBD is Primary"
    gone = GateState("hactl.r0.7", Mode.OPEN, 4096, "/dev/dm-9")
    assert busy(replace(seen(drbd()), surplus={7: gone})) == "gate hactl.r0.7 is open"


def number(score: int, verdict: Verdict) -> int:
    """A score of a node with that verdict."""
    found = weighed(score, verdict)
    assert isinstance(found, int)
    return found


def test_scores_and_the_preference_of_a_node() -> None:
    """Pacemaker adds the preference: it decides between two that are ready, and nothing else."""
    every = {number(s, v) for s in (ACTIVE, READY, LAST_RESORT) for v in Verdict} | {HANDED_OVER}
    assert 0 < min(every) == HANDED_OVER
    ordered = sorted(every)
    assert all(a + PREFERRED < b for a, b in pairwise(ordered))
    assert {weighed(s, Verdict.REACHABLE) for s in (ACTIVE, READY, LAST_RESORT)} == {
        ACTIVE,
        READY,
        LAST_RESORT,
    }
    assert weighed(None, Verdict.DOWN) is None
    assert weighed(Unchanged.SCORE, Verdict.DOWN) is Unchanged.SCORE


GOOD = {Verdict.REACHABLE: 2, Verdict.UNKNOWN: 1, Verdict.SILENT: 1, Verdict.DOWN: 0}


@pytest.mark.parametrize("mine", Verdict)
@pytest.mark.parametrize("others", Verdict)
@pytest.mark.parametrize("preferred", [0, PREFERRED])
def test_an_active_node_is_left_only_for_one_that_hosts_reach_better(
    mine: Verdict, others: Verdict, preferred: int
) -> None:
    """Whoever is preferred, and never back and forth: what has moved stays where it is."""
    moves = number(READY, others) + preferred > number(ACTIVE, mine)
    assert moves is (mine.isolated and GOOD[others] > GOOD[mine])
    if moves:
        assert number(READY, mine) + PREFERRED < number(ACTIVE, others)


@pytest.mark.parametrize("mine", Verdict)
@pytest.mark.parametrize("others", Verdict)
def test_a_failed_disk_is_left_for_no_node_that_hosts_reach_less(mine: Verdict, others: Verdict) -> None:
    moves = number(READY, others) > number(LAST_RESORT, mine)
    assert moves is (GOOD[others] >= GOOD[mine])
    assert (number(READY, others) + PREFERRED > number(LAST_RESORT, mine)) is moves


@pytest.mark.parametrize("verdict", [v for v in Verdict if v.isolated])
def test_an_isolated_node_is_no_failure(verdict: Verdict) -> None:
    answer = judge(replace(active(drbd(P)), storage=verdict), Question(role="Promoted"))
    assert (answer.code, answer.score) == (Code.DEGRADED_PROMOTED, weighed(ACTIVE, verdict))
    assert WORDS[verdict] in answer.reason
    answer = judge(replace(standby(drbd()), storage=verdict), Question(role="Unpromoted"))
    assert (answer.code, answer.score) == (Code.SUCCESS, weighed(READY, verdict))
    # What is worse stays so.
    answer = judge(replace(active(drbd(P), Mode.CLOSED), storage=verdict))
    assert (answer.code, answer.score) == (Code.FAILED_PROMOTED, None)
    answer = judge(replace(standby(drbd(disk=D.OUTDATED)), storage=verdict))
    assert (answer.code, answer.score) == (Code.SUCCESS, None)


def test_every_code_has_a_recovery_and_no_error_stops_a_resource_everywhere() -> None:
    assert set(RECOVERY) == set(Code)
    assert [int(c) for c in Code] == [*range(10), 190, 191]
    errors = [Refused("busy", "x"), Failed("rolled-back", "x"), Unknown("still-active", "x")]
    assert {code_of(e) for e in errors} == {Code.ERR_GENERIC}
    everywhere = [code for code, recovery in RECOVERY.items() if recovery is Recovery.FATAL]
    assert everywhere == [Code.ERR_CONFIGURED]
    told = [Refused(code, "x") for code in ("unknown-resource", "not-root", "bad-request", "unknown-action")]
    assert not {code_of(e) for e in told} & set(everywhere)


def test_answer_as_text() -> None:
    assert Answer(Code.SUCCESS, None).text() == "0\n-\n\n"
    assert Answer(Code.DEGRADED_PROMOTED, 5, "a\nb").text() == "191\n5\na b\n"
    assert Answer(Code.ERR_GENERIC, Unchanged.SCORE, "x").text() == "1\n=\nx\n"
