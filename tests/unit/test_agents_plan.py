"""Plans as values: order, preconditions, every prefix; the journal; what a started agent takes over."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hactl.agents import actions as a
from hactl.agents.journal import FileJournal, Handover, Journal, MemoryJournal, Record, decode, encode
from hactl.agents.peers import PeerResource
from hactl.agents.plan import plan, plan_groundwork, plan_role, plan_upkeep
from hactl.agents.restore import restored
from hactl.agents.states import (
    OrderedRole,
    ResourceDesired,
    ResourceObserved,
    VolumeDesired,
    troubles,
    unready,
)
from hactl.agents.views import active_node, successor
from hactl.alua.states import AccessState
from hactl.backing.protocol import BackingDisk
from hactl.errors import Refused
from hactl.model.spec import LvmPool, PoolSpec
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
from hactl.target.changes import AddPortal
from hactl.target.gates import GateState, Mode

NUMBERS = (0, 1)
STANDBY_VIEW = dict.fromkeys(("n1", "n2", "n3"), AccessState.STANDBY)


def wanted(role: OrderedRole, **changes: object) -> ResourceDesired:
    volumes = tuple(VolumeDesired(n, n, 4096, f"hactl.r0.{n}", 16 + n, f"/dev/drbd{16 + n}") for n in NUMBERS)
    desired = ResourceDesired("r0", "n1", ("n1", "n2", "n3"), True, volumes, role)
    return replace(desired, **changes)  # type: ignore[arg-type]  # by field name


def found(
    role: Role = Role.SECONDARY,
    modes: tuple[Mode, Mode] = (Mode.CLOSED, Mode.CLOSED),
    view: dict[str, AccessState] = STANDBY_VIEW,
    disk: DiskState = DiskState.UP_TO_DATE,
    peer_role: Role = Role.SECONDARY,
) -> ResourceObserved:
    gates = {
        n: GateState(
            f"hactl.r0.{n}", m, 4096, f"/dev/dm-{n}", f"/dev/drbd{16 + n}" if m is Mode.OPEN else None
        )
        for n, m in zip(NUMBERS, modes, strict=True)
    }
    peer = {n: PeerVolume(ReplicationState.ESTABLISHED, disk) for n in NUMBERS}
    state = ResourceState(
        "r0",
        role,
        volumes={n: Volume(16 + n, disk, 4096) for n in NUMBERS},
        connections={"n2": Connection("n2", ConnectionState.CONNECTED, peer_role, peer)},
    )
    return ResourceObserved(
        configured=True,
        drbd=state,
        gates=gates,
        export=(),
        alua=dict.fromkeys(NUMBERS, view),
        adjusted=True,
    )


def after(observed: ResourceObserved, step: a.Action) -> ResourceObserved:
    """What a step of a change of role leads to; DRBD's own rules are asserted."""
    state = observed.drbd
    assert state is not None
    match step:
        case a.DrbdPrimary():
            return replace(observed, drbd=replace(state, role=Role.PRIMARY))
        case a.DrbdSecondary():
            assert not observed.modes(Mode.OPEN, Mode.SUSPENDED), "DRBD refuses: held open"
            return replace(observed, drbd=replace(state, role=Role.SECONDARY))
        case a.OpenGate(volume=volume):
            assert state.role is Role.PRIMARY, "a gate opened without DRBD Primary"
            mode = Mode.OPEN
        case a.HoldGate(volume=volume):
            mode = Mode.HELD
        case a.CloseGate(volume=volume):
            mode = Mode.CLOSED
        case a.SetAlua(states=states):
            return replace(observed, alua={n: dict(states) for n in NUMBERS})
        case _:
            raise AssertionError(f"not a change of role: {step}")
    backing = f"/dev/drbd{16 + volume}" if mode is Mode.OPEN else None
    gates = {**observed.gates, volume: replace(observed.gates[volume], mode=mode, backing=backing)}
    return replace(observed, gates=gates)


def names(steps: tuple[a.Action, ...]) -> list[str]:
    return [type(s).__name__ for s in steps]


def test_to_active() -> None:
    steps = plan_role(wanted(OrderedRole.ACTIVE), found())
    assert names(steps) == ["DrbdPrimary", "OpenGate", "OpenGate", "SetAlua"]


def test_to_demoted_and_then_to_standby() -> None:
    view = {**STANDBY_VIEW, "n1": AccessState.ACTIVE_OPTIMIZED}
    observed = found(Role.PRIMARY, (Mode.OPEN, Mode.OPEN), view)
    steps = plan_role(wanted(OrderedRole.DEMOTED), observed)
    assert names(steps) == ["HoldGate", "HoldGate", "DrbdSecondary"]
    for step in steps:
        observed = after(observed, step)
    assert plan(wanted(OrderedRole.DEMOTED), observed) == ()
    steps = plan_role(wanted(OrderedRole.DEMOTED, active_node="n2"), observed)
    assert names(steps) == ["SetAlua", "CloseGate", "CloseGate"]
    steps = plan_role(wanted(OrderedRole.DEMOTED, hold_over=True), observed)
    assert names(steps) == ["SetAlua", "CloseGate", "CloseGate"]


def test_closing_after_the_hold_does_not_depend_on_anything_else() -> None:
    observed = found(Role.PRIMARY, (Mode.HELD, Mode.HELD), wanted(OrderedRole.ACTIVE).view("n1"))
    for active in (None, "n2"):
        late = wanted(OrderedRole.DEMOTED, hold_over=True, active_node=active)
        steps = plan_role(late, observed)
        assert names(steps) == ["SetAlua", "CloseGate", "CloseGate", "DrbdSecondary"]
        assert [step.must for step in steps] == [False, True, True, True]
    early = plan_role(wanted(OrderedRole.DEMOTED, active_node="n2"), observed)
    assert names(early) == ["DrbdSecondary", "SetAlua", "CloseGate", "CloseGate"]
    assert all(step.must for step in early)
    unreadable = replace(observed, alua={}, alua_error="cannot be read")
    assert names(plan_role(late, unreadable)) == ["SetAlua", "CloseGate", "CloseGate", "DrbdSecondary"]
    assert "cannot be read" in troubles(late, unreadable)


def test_the_node_that_hands_over_has_to_be_connected_itself() -> None:
    observed = found()
    desired = wanted(OrderedRole.STANDBY)
    assert unready(desired, observed, giver="n2") == ()
    assert unready(desired, observed, giver="n3") == ("DRBD is not connected to n3",)
    assert unready(desired, observed, giver=None) == ()


MODES = st.sampled_from([Mode.CLOSED, Mode.OPEN, Mode.HELD, Mode.SUSPENDED])
VIEWS = st.sampled_from([None, "n1", "n2", "n3"])


@given(
    role=st.sampled_from(OrderedRole),
    drbd=st.sampled_from([Role.PRIMARY, Role.SECONDARY]),
    modes=st.tuples(MODES, MODES),
    reported=VIEWS,
    active=VIEWS,
    over=st.booleans(),
)
def test_every_prefix_is_sound_and_ends_in_the_same_place(
    role: OrderedRole,
    drbd: Role,
    modes: tuple[Mode, Mode],
    reported: str | None,
    active: str | None,
    over: bool,
) -> None:
    if Mode.OPEN in modes or Mode.SUSPENDED in modes:
        drbd = Role.PRIMARY
    desired = wanted(role, active_node=active, hold_over=over)
    start = found(drbd, modes, desired.view(reported))
    steps = plan_role(desired, start)
    end = start
    for step in steps:
        assert step.hindrance(end) is None
        end = after(end, step)
    assert plan_role(desired, end) == ()
    for length in range(len(steps)):
        stopped = start
        for step in itertools.islice(steps, length):
            stopped = after(stopped, step)
        for step in plan_role(desired, stopped):
            assert step.hindrance(stopped) is None
            stopped = after(stopped, step)
        assert stopped == end
    if role is not OrderedRole.ACTIVE:
        assert not end.primary
        assert not end.modes(Mode.OPEN, Mode.SUSPENDED)


def test_a_node_that_lost_the_role_does_not_take_it_by_itself() -> None:
    assert plan_upkeep(wanted(OrderedRole.ACTIVE), found(Role.SECONDARY)) == ()


def test_from_nothing() -> None:
    desired = wanted(OrderedRole.STANDBY)
    nothing = ResourceObserved(configured=False, export=())
    assert names(plan(desired, nothing)) == ["WriteDrbdConfig", "CreateGate", "CreateGate"]
    written = replace(nothing, configured=True, metadata={0: False, 1: False}, gates=found().gates)
    assert names(plan_groundwork(desired, written)) == ["CreateMetadata", "CreateMetadata", "DrbdUp"]
    foreign = replace(written, metadata={0: True, 1: True})
    assert names(plan_groundwork(desired, foreign)) == ["DrbdUp"]


DISK = BackingDisk("r0", 1, PoolSpec(name="p", lvm=LvmPool(vg="vg")), 8192)


def test_disks_of_pools_come_first() -> None:
    desired = wanted(OrderedRole.STANDBY, disks=(DISK,))
    assert plan_groundwork(desired, found()) == ()
    lacking = ResourceObserved(configured=False, export=(), lacking=frozenset({1}))
    (step,) = plan_groundwork(desired, lacking)
    assert isinstance(step, a.EnsureDisk)
    assert (step.disk, step.create, step.hindrance(lacking)) == (DISK, True, None)
    assert step.hindrance(replace(lacking, lacking=frozenset())) == "it is there already"
    lost = replace(lacking, lost=frozenset({1}))
    (careful,) = plan_groundwork(desired, lost)
    assert isinstance(careful, a.EnsureDisk)
    assert (careful.create, careful.hindrance(lost)) == (False, None)
    # Planned before it was known.
    assert step.hindrance(lost) == "it had data already"


def test_a_volume_that_is_gone_is_taken_from_lio_then_from_the_gate_then_from_drbd() -> None:
    desired = replace(wanted(OrderedRole.ACTIVE), volumes=wanted(OrderedRole.ACTIVE).volumes[:1])
    observed = found(Role.PRIMARY, (Mode.OPEN, Mode.OPEN), desired.view("n1"))
    gates = dict(observed.gates)
    surplus = {1: gates.pop(1)}
    change = AddPortal(reason="", iqn="iqn.2024-01.example:r0", tag=1, portal="p")
    more = replace(observed, gates=gates, surplus=surplus, configured=False)
    assert names(plan_groundwork(desired, replace(more, export=(change,)))) == ["ApplyTarget"]
    assert plan_groundwork(desired, replace(more, export=None)) == ()
    steps = plan_groundwork(desired, more)
    assert names(steps) == ["CloseGate", "RemoveGate"]
    assert steps[0].hindrance(more) is None
    held = {1: replace(surplus[1], mode=Mode.HELD, backing=None)}
    assert names(plan_groundwork(desired, replace(more, surplus=held))) == ["CloseGate"]
    foreign = replace(more, surplus={1: replace(surplus[1], mode=Mode.FOREIGN)})
    assert plan_groundwork(desired, foreign) == ()
    assert "not hactl's" in troubles(desired, foreign)[0]
    gone = replace(more, surplus={})
    assert names(plan_groundwork(desired, gone)) == ["WriteDrbdConfig"]
    assert names(plan_groundwork(desired, replace(gone, configured=True))) == ["DrbdUp"]
    # LIO's tree cannot be planned while a gate of what stays is missing.
    assert names(plan_groundwork(desired, replace(more, gates={}))) == ["CreateGate"]


def skipped(desired: ResourceDesired, observed: ResourceObserved) -> tuple[int, ...]:
    """Volumes whose first copy the plan leaves out."""
    found = [s for s in plan(desired, observed) if isinstance(s, a.SkipInitialSync)]
    assert all(s.hindrance(observed) is None for s in found)
    return tuple(v for s in found for v in s.volumes)


@pytest.mark.parametrize(
    ("changes", "volumes"),
    [
        ({}, (0, 1)),
        ({"peer_fresh": frozenset()}, ()),
        ({"peer_fresh": frozenset({1})}, (1,)),
        ({"skips_sync": False}, ()),
        ({"replica": False}, ()),
    ],
)
def test_initial_sync_is_skipped_only_of_what_is_brand_new_everywhere(
    changes: dict[str, object], volumes: tuple[int, ...]
) -> None:
    desired = wanted(OrderedRole.STANDBY, **{"peer_fresh": frozenset(NUMBERS), "skips_sync": True, **changes})
    observed = replace(found(disk=DiskState.INCONSISTENT), fresh=frozenset(NUMBERS))
    assert skipped(desired, observed) == volumes
    assert skipped(desired, replace(observed, fresh=frozenset())) == ()
    assert set(skipped(desired, replace(observed, fresh=frozenset({0})))) == set(volumes) & {0}
    assert skipped(desired, replace(found(), fresh=frozenset(NUMBERS))) == ()
    state = observed.drbd
    assert state is not None
    lost = replace(state.connections["n2"], state=ConnectionState.CONNECTING)
    assert skipped(desired, replace(observed, drbd=replace(state, connections={"n2": lost}))) == ()


def test_volume_that_joins_an_older_resource() -> None:
    desired = wanted(OrderedRole.STANDBY)
    observed = found()
    assert observed.drbd is not None
    one = replace(observed.drbd, volumes={0: observed.drbd.volumes[0]})
    joining = replace(observed, drbd=one, metadata={0: None, 1: False})
    assert names(plan_groundwork(desired, replace(joining, configured=False, metadata={}))) == [
        "WriteDrbdConfig"
    ]
    assert names(plan_groundwork(desired, joining)) == ["CreateMetadata", "DrbdUp"]
    new = found(disk=DiskState.INCONSISTENT).drbd
    assert new is not None
    connection = new.connections["n2"]
    peers = {0: observed.drbd.connections["n2"].volumes[0], 1: connection.volumes[1]}
    mixed = replace(
        new,
        volumes={0: observed.drbd.volumes[0], 1: new.volumes[1]},
        connections={"n2": replace(connection, volumes=peers)},
    )
    (told,) = troubles(desired, replace(observed, drbd=mixed))
    assert told.startswith("volume 1: all replicas are Inconsistent")
    joined = replace(observed, drbd=mixed, fresh=frozenset({1}))
    assert troubles(desired, joined) == ()
    skips = replace(desired, skips_sync=True, peer_fresh=frozenset({1}))
    assert skipped(skips, joined) == (1,)
    half = found(Role.PRIMARY, (Mode.OPEN, Mode.CLOSED), desired.view("n1")).gates
    serving_one = replace(joined, drbd=replace(mixed, role=Role.PRIMARY), gates=half)
    assert names(plan_role(wanted(OrderedRole.ACTIVE), serving_one)) == ["SetAlua"]
    assert troubles(desired, replace(observed, drbd=new, fresh=frozenset({0, 1}))) == ()


def test_growing() -> None:
    desired = wanted(OrderedRole.ACTIVE)
    grown = replace(desired, volumes=tuple(replace(v, size=8192) for v in desired.volumes))
    observed = found(Role.PRIMARY, (Mode.OPEN, Mode.OPEN), grown.view("n1"))
    assert names(plan(grown, observed)) == ["DrbdResize"]
    assert observed.drbd is not None
    larger = {n: replace(v, size=8192) for n, v in observed.drbd.volumes.items()}
    ready = replace(observed, drbd=replace(observed.drbd, volumes=larger))
    assert names(plan(grown, ready)) == ["ResizeGate", "ResizeGate"]
    assert "larger" in troubles(replace(desired, volumes=(replace(desired.volumes[0], size=512),)), ready)[0]


def test_foreign_gates_are_left_alone_and_told_of() -> None:
    observed = found(modes=(Mode.FOREIGN, Mode.CLOSED))
    for role in OrderedRole:
        steps = plan_role(wanted(role, active_node="n2"), observed)
        assert not [s for s in steps if getattr(s, "volume", None) == 0]
    assert "not hactl's" in troubles(wanted(OrderedRole.STANDBY), observed)[0]
    assert unready(wanted(OrderedRole.STANDBY), observed, giver="n2")


def test_primary_is_not_tried_while_the_peer_is() -> None:
    step = a.DrbdPrimary("r0", "")
    assert step.hindrance(found()) is None
    assert step.hindrance(found(peer_role=Role.PRIMARY)) == "n2 is Primary"
    assert a.OpenGate("r0", "", 0, "hactl.r0.0", "/dev/drbd16").hindrance(found()) is not None


@pytest.fixture(params=["file", "memory"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    if request.param == "file":
        return FileJournal(tmp_path / "journal", tmp_path / "run")
    return MemoryJournal()


RECORD = Record(OrderedRole.DEMOTED, "boot", 12.5, "n2", Handover("id", "n2", asked=True), frozenset({0, 3}))


def test_journal_keeps_what_was_written(journal: Journal) -> None:
    assert journal.read() == {}
    journal.write("r0", RECORD)
    journal.write("r1", replace(RECORD, handover=None))
    journal.write("r0", replace(RECORD, since=13.0))
    assert journal.read() == {"r0": replace(RECORD, since=13.0), "r1": replace(RECORD, handover=None)}
    journal.remove("r0")
    journal.remove("r0")
    assert set(journal.read()) == {"r1"}


@pytest.mark.parametrize(
    "change",
    [{"schema": 2}, {"role": "boss"}, {"since": "x"}, {"switchover": {"op": "resize"}}, {"fresh": None}],
)
def test_what_is_not_understood_is_refused(change: dict[str, object]) -> None:
    text = json.dumps({**json.loads(encode(RECORD)), **change})
    with pytest.raises(Refused, match="r0"):
        decode(text, "r0.json")


@given(st.text())
def test_rubbish_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        decode(text, "r0.json")


ACTIVE = Record(OrderedRole.ACTIVE, "boot", 1.0, "n1", None, frozenset({1}))
OPEN = found(Role.PRIMARY, (Mode.OPEN, Mode.OPEN))
HELD = found(Role.SECONDARY, (Mode.HELD, Mode.HELD))


@pytest.mark.parametrize(
    ("record", "boot", "observed", "role"),
    [
        (ACTIVE, "boot", OPEN, OrderedRole.ACTIVE),
        (ACTIVE, "boot", found(Role.PRIMARY), OrderedRole.ACTIVE),
        (ACTIVE, "boot", found(), OrderedRole.STANDBY),
        (ACTIVE, "boot", HELD, OrderedRole.DEMOTED),
        (ACTIVE, "other", found(), OrderedRole.STANDBY),
        (RECORD, "boot", HELD, OrderedRole.DEMOTED),
        (RECORD, "other", found(), OrderedRole.STANDBY),
        (RECORD, "other", OPEN, OrderedRole.ACTIVE),
        (None, "boot", OPEN, OrderedRole.ACTIVE),
        (None, "boot", HELD, OrderedRole.DEMOTED),
        (None, "boot", found(Role.PRIMARY), OrderedRole.STANDBY),
        (None, "boot", found(), OrderedRole.STANDBY),
    ],
)
def test_what_a_started_agent_takes_over(
    record: Record | None, boot: str, observed: ResourceObserved, role: OrderedRole
) -> None:
    got = restored(record, observed, boot=boot, now=99.0)
    assert got.role is role
    assert got.boot == boot
    if record is not None:
        assert got.fresh == record.fresh
    if boot == "other":
        assert got.handover is None


SERVING = PeerResource(OrderedRole.ACTIVE, serving=True, primary=True)
LEAVING = PeerResource(OrderedRole.DEMOTED, serving=False, primary=False)
IDLE = PeerResource(OrderedRole.STANDBY, serving=False, primary=False)


@pytest.mark.parametrize(
    ("n2", "n3", "last", "strict", "lenient"),
    [
        (SERVING, IDLE, None, "n2", "n2"),
        (SERVING, SERVING, None, None, None),
        (IDLE, IDLE, "n2", None, None),
        (LEAVING, IDLE, "n2", None, "n2"),
        (None, IDLE, "n2", None, "n2"),
        (None, IDLE, None, None, None),
        (IDLE, SERVING, "n2", "n3", "n3"),
    ],
)
def test_who_is_active(
    n2: PeerResource | None, n3: PeerResource, last: str | None, strict: str | None, lenient: str | None
) -> None:
    views = {"n2": None if n2 is None else {"r0": n2}, "n3": {"r0": n3}}
    assert successor("r0", views) == strict
    assert active_node("r0", views, last, None) == lenient
