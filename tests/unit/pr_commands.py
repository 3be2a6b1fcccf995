"""Nexuses, states and commands for the tests of the persistent reservation model."""

from __future__ import annotations

from hypothesis import strategies as st

from hactl.pr_sync.commands import Access, Command, InitiatorPort, Move, Outcome
from hactl.pr_sync.model import apply
from hactl.pr_sync.state import Action, Hidden, Nexus, Registration, Reservation, State, Type

HOSTS = ("iqn.2001-04.test:a", "iqn.2001-04.test:b", "iqn.2001-04.test:c")
ISIDS = ("800000000001", "800000000002")
PORTS = (1, 2, 3)
ACCESS: Access = {port: frozenset(HOSTS) for port in PORTS}

A, B, C = (Nexus(host, ISIDS[0], 1) for host in HOSTS)
A_OTHER_ISID = Nexus(HOSTS[0], ISIDS[1], 1)
A_PORT_2 = Nexus(HOSTS[0], ISIDS[0], 2)
B_PORT_2 = Nexus(HOSTS[1], ISIDS[0], 2)
A_ANY_2, A_ANY_3 = (Nexus(HOSTS[0], "", port) for port in (2, 3))


def port_of(nexus: Nexus) -> InitiatorPort:
    return InitiatorPort(nexus.initiator, nexus.isid)


def state(
    keys: dict[Nexus, int],
    type_: Type | None = None,
    holder: Nexus | None = None,
    *,
    generation: int = 10,
    anchor: Nexus | None = None,
    all_tg_pt: tuple[Nexus, ...] = (),
    ignored: tuple[tuple[str, int], ...] = (),
    scope_left: tuple[Nexus, ...] = (),
) -> State:
    """A state in which ``keys`` are registered in that order."""
    return State(
        generation,
        {nexus: Registration(key, nexus in all_tg_pt) for nexus, key in keys.items()},
        None if type_ is None else Reservation(type_, holder),
        Hidden(anchor, frozenset(ignored), frozenset(scope_left)),
    )


Case = tuple[State, Command, Outcome, State | None]
"""State before, command, its outcome, state after it (None: as before)."""


def check(case: Case) -> None:
    before, command, outcome, after = case
    answered, reached = apply(before, command, ACCESS)
    assert answered == outcome
    wanted = before if after is None else after
    assert reached == wanted
    assert list(reached.registrations) == list(wanted.registrations)
    assert reached.hidden == wanted.hidden


SESSIONS = st.builds(Nexus, st.sampled_from(HOSTS), st.sampled_from(ISIDS), st.sampled_from(PORTS))
TRANSPORT_IDS = st.builds(InitiatorPort, st.sampled_from(HOSTS), st.sampled_from((*ISIDS, "")))


@st.composite
def commands(draw: st.DrawFn, current: State | None = None, *, ports: tuple[int, ...] = PORTS) -> Command:
    """Any command; with ``current``, mostly one that has a chance there."""
    action = draw(st.sampled_from(Action))
    nexus = draw(SESSIONS.filter(lambda one: one.rtpi in ports))
    have = None if current is None else current.registrations.get(nexus)
    likely = have.key if have is not None else 0
    key = draw(st.sampled_from((likely, likely, likely, 1)))
    reserved = None if current is None else current.reservation
    types = st.sampled_from([*Type] if reserved is None else [reserved.type, reserved.type, *Type])
    move = None
    if action is Action.REGISTER_AND_MOVE:
        move = Move(draw(TRANSPORT_IDS), draw(st.sampled_from(PORTS)), draw(st.booleans()))
    spec_i_pt = None
    if action is Action.REGISTER and draw(st.integers(0, 3)) == 0:
        spec_i_pt = tuple(draw(st.lists(TRANSPORT_IDS, max_size=2)))
    return Command(
        nexus,
        action,
        key,
        draw(st.sampled_from((0, 1, 2, 3))),
        int(draw(types)) if draw(st.integers(0, 9)) else draw(st.integers(0, 15)),
        0 if draw(st.integers(0, 9)) else 1,
        all_tg_pt=action is not Action.REGISTER_AND_MOVE
        and (have.all_tg_pt if have is not None else draw(st.integers(0, 3)) == 0),
        spec_i_pt=spec_i_pt,
        move=move,
    )


WE, EA = Type.WRITE_EXCLUSIVE, Type.EXCLUSIVE_ACCESS
WE_RO, EA_RO = Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY
WE_AR, EA_AR = Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS, Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS
REGISTER, IGNORE = Action.REGISTER, Action.REGISTER_AND_IGNORE_EXISTING_KEY
NOTHING = state({})
