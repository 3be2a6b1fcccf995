"""What the other service actions do, by clause of SPC-4 and by what Linux 6.12's LIO does instead."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hactl.pr_sync.commands import (
    COMMUNICATION_FAILURE,
    CONFLICT,
    GOOD,
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
    Command,
    InitiatorPort,
    Move,
)
from hactl.pr_sync.model import apply, conflicts, replay
from hactl.pr_sync.state import Action, Nexus, Type
from tests.unit.pr_commands import (
    A_ANY_2,
    A_ANY_3,
    A_OTHER_ISID,
    A_PORT_2,
    ACCESS,
    B_PORT_2,
    EA,
    EA_AR,
    EA_RO,
    HOSTS,
    ISIDS,
    NOTHING,
    REGISTER,
    WE,
    WE_AR,
    WE_RO,
    A,
    B,
    C,
    Case,
    check,
    port_of,
    state,
)

RESERVING: dict[str, Case] = {
    # SPC-4 5.13.9
    "new": (
        state({A: 1, B: 2}),
        Command(A, Action.RESERVE, 1, type=WE),
        GOOD,
        state({A: 1, B: 2}, WE, A),
    ),
    "new, all registrants": (
        state({A: 1, B: 2}),
        Command(B, Action.RESERVE, 2, type=EA_AR),
        GOOD,
        state({A: 1, B: 2}, EA_AR, anchor=B),
    ),
    "again": (state({A: 1}, WE, A), Command(A, Action.RESERVE, 1, type=WE), GOOD, None),
    "change of type": (state({A: 1}, WE, A), Command(A, Action.RESERVE, 1, type=EA), CONFLICT, None),
    "reserved by another": (
        state({A: 1, B: 2}, WE, A),
        Command(B, Action.RESERVE, 2, type=WE),
        CONFLICT,
        None,
    ),
    "reserved by another, registrants only": (
        state({A: 1, B: 2}, WE_RO, A),
        Command(B, Action.RESERVE, 2, type=WE_RO),
        CONFLICT,
        None,
    ),
    "again by any registrant": (
        state({A: 1, B: 2}, WE_AR, anchor=A),
        Command(B, Action.RESERVE, 2, type=WE_AR),
        GOOD,
        None,
    ),
    "wrong key": (state({A: 1}), Command(A, Action.RESERVE, 2, type=WE), CONFLICT, None),
    "LIO: unregistered": (NOTHING, Command(A, Action.RESERVE, 1, type=WE), COMMUNICATION_FAILURE, None),
    "unregistered, reserved": (
        state({A: 1}, WE, A),
        Command(B, Action.RESERVE, 2, type=WE),
        CONFLICT,
        None,
    ),
    "of another's exclusive reservation the type is not looked at": (
        state({A: 1, B: 2}, EA, A),
        Command(B, Action.RESERVE, 2, type=2),
        CONFLICT,
        None,
    ),
    "LIO: of another's registrants only reservation it is": (
        state({A: 1, B: 2}, EA_RO, A),
        Command(B, Action.RESERVE, 2, type=2),
        INVALID_FIELD_IN_CDB,
        None,
    ),
    "no such type": (state({A: 1}), Command(A, Action.RESERVE, 1, type=2), INVALID_FIELD_IN_CDB, None),
    "no such type 0": (NOTHING, Command(A, Action.RESERVE, 1, type=0), INVALID_FIELD_IN_CDB, None),
    "LIO: no such scope": (
        state({A: 1}),
        Command(A, Action.RESERVE, 1, type=WE, scope=1),
        INVALID_FIELD_IN_PARAMETER_LIST,
        None,
    ),
    "LIO: what REGISTER AND MOVE left": (
        state({A: 1}, WE, A, scope_left=(A,)),
        Command(A, Action.RESERVE, 1, type=WE),
        CONFLICT,
        None,
    ),
}

RELEASING: dict[str, Case] = {
    # SPC-4 5.13.11.2.2
    "holder": (
        state({A: 1, B: 2}, WE, A),
        Command(A, Action.RELEASE, 1, type=WE),
        GOOD,
        state({A: 1, B: 2}),
    ),
    "any registrant": (
        state({A: 1, B: 2}, WE_AR, anchor=A),
        Command(B, Action.RELEASE, 2, type=WE_AR),
        GOOD,
        state({A: 1, B: 2}),
    ),
    "not the holder": (
        state({A: 1, B: 2}, EA, A),
        Command(B, Action.RELEASE, 2, type=EA),
        GOOD,
        None,
    ),
    "LIO: not the holder, wrong key": (
        state({A: 1, B: 2}, WE, A),
        Command(B, Action.RELEASE, 9, type=WE),
        GOOD,
        None,
    ),
    "nothing reserved": (state({A: 1}), Command(A, Action.RELEASE, 1, type=WE), GOOD, None),
    "wrong key": (state({A: 1}, WE, A), Command(A, Action.RELEASE, 2, type=WE), CONFLICT, None),
    "LIO: wrong type": (state({A: 1}, WE, A), Command(A, Action.RELEASE, 1, type=EA), CONFLICT, None),
    "LIO: wrong scope": (
        state({A: 1}, WE, A),
        Command(A, Action.RELEASE, 1, type=WE, scope=1),
        CONFLICT,
        None,
    ),
    "LIO: unregistered": (NOTHING, Command(A, Action.RELEASE, 1, type=WE), COMMUNICATION_FAILURE, None),
    "unregistered, reserved": (
        state({A: 1}, WE, A),
        Command(B, Action.RELEASE, 1, type=WE),
        CONFLICT,
        None,
    ),
    "LIO: what REGISTER AND MOVE left": (
        state({A: 1}, WE, A, scope_left=(A,)),
        Command(A, Action.RELEASE, 1, type=WE),
        CONFLICT,
        None,
    ),
    "LIO: registered, but forgotten": (
        state({A: 1, B: 2}, WE, A, ignored=((HOSTS[1], 1),)),
        Command(B, Action.RELEASE, 2, type=WE),
        CONFLICT,
        None,
    ),
}

CLEARING: dict[str, Case] = {
    # SPC-4 5.13.11.2.7
    "holder": (
        state({A: 1, B: 2}, WE, A),
        Command(A, Action.CLEAR, 1),
        GOOD,
        state({}, generation=11),
    ),
    "not the holder": (
        state({A: 1, B: 2}, EA, A),
        Command(B, Action.CLEAR, 2),
        GOOD,
        state({}, generation=11),
    ),
    "nothing reserved": (state({A: 1}), Command(A, Action.CLEAR, 1), GOOD, state({}, generation=11)),
    "everything hidden goes too": (
        state({A: 1, B: 2}, WE, A, scope_left=(A, B), ignored=((HOSTS[0], 1),)),
        Command(A, Action.CLEAR, 1),
        GOOD,
        state({}, generation=11),
    ),
    "wrong key": (state({A: 1}), Command(A, Action.CLEAR, 2), CONFLICT, None),
    "LIO: unregistered": (state({A: 1}), Command(B, Action.CLEAR, 1), COMMUNICATION_FAILURE, None),
    "unregistered, reserved": (state({A: 1}, WE, A), Command(B, Action.CLEAR, 1), CONFLICT, None),
}


def preempt(nexus: Nexus, key: int, victim: int, type_: int = WE, scope: int = 0) -> Command:
    return Command(nexus, Action.PREEMPT, key, victim, type_, scope)


PREEMPTING: dict[str, Case] = {
    # SPC-4 5.13.11.2.4.3
    "the holder": (
        state({A: 1, B: 2, C: 3}, WE, A),
        preempt(B, 2, 1, EA),
        GOOD,
        state({B: 2, C: 3}, EA, B, generation=11),
    ),
    "the holder and all with its key": (
        state({A: 1, B: 2, C: 1}, WE, A),
        preempt(B, 2, 1, WE),
        GOOD,
        state({B: 2}, WE, B, generation=11),
    ),
    "oneself, the holder": (
        state({A: 1, B: 2}, WE, A),
        preempt(A, 1, 1, EA_RO),
        GOOD,
        state({A: 1, B: 2}, EA_RO, A, generation=11),
    ),
    "the holder with one's own key": (
        state({A: 1, B: 1}, WE, A),
        preempt(B, 1, 1, WE),
        GOOD,
        state({B: 1}, WE, B, generation=11),
    ),
    "everybody": (
        state({A: 1, B: 2, C: 3}, WE_AR, anchor=A),
        preempt(B, 2, 0, EA),
        GOOD,
        state({B: 2}, EA, B, generation=11),
    ),
    # SPC-4 5.13.11.2.5
    "not the holder": (
        state({A: 1, B: 2, C: 3}, WE, A),
        preempt(B, 2, 3, EA),
        GOOD,
        state({A: 1, B: 2}, WE, A, generation=11),
    ),
    "nothing reserved": (state({A: 1, B: 2}), preempt(B, 2, 1), GOOD, state({B: 2}, generation=11)),
    "oneself, not the holder": (
        state({A: 1, B: 2, C: 2}, WE, A),
        preempt(B, 2, 2),
        GOOD,
        state({A: 1}, WE, A, generation=11),
    ),
    "all registrants, some": (
        state({A: 1, B: 2, C: 3}, WE_AR, anchor=A),
        preempt(B, 2, 3, EA),
        GOOD,
        state({A: 1, B: 2}, WE_AR, anchor=A, generation=11),
    ),
    "LIO: all registrants, the anchor": (
        state({A: 1, B: 2, C: 3}, WE_AR, anchor=A),
        preempt(B, 2, 1, EA),
        GOOD,
        state({B: 2, C: 3}, EA, B, generation=11),
    ),
    "LIO: all registrants, one's own key": (
        state({A: 1, B: 2, C: 2}, WE_AR, anchor=A),
        preempt(B, 2, 2),
        GOOD,
        state({A: 1, B: 2}, WE_AR, anchor=A, generation=11),
    ),
    "no such key": (state({A: 1, B: 2}, WE, A), preempt(A, 1, 9), CONFLICT, None),
    "no such key, all registrants": (state({A: 1}, WE_AR, anchor=A), preempt(A, 1, 9), CONFLICT, None),
    "zero": (state({A: 1, B: 2}, WE, A), preempt(A, 1, 0), INVALID_FIELD_IN_PARAMETER_LIST, None),
    "zero, nothing reserved": (state({A: 1}), preempt(A, 1, 0), INVALID_FIELD_IN_PARAMETER_LIST, None),
    "wrong key": (state({A: 1, B: 2}), preempt(A, 2, 2), CONFLICT, None),
    "unregistered": (state({A: 1}), preempt(B, 1, 1), CONFLICT, None),
    "unregistered, reserved": (state({A: 1}, WE, A), preempt(B, 1, 1), CONFLICT, None),
    "LIO: any type has to be valid": (state({A: 1, B: 2}), preempt(A, 1, 2, 9), INVALID_FIELD_IN_CDB, None),
    "LIO: any scope has to be valid": (
        state({A: 1, B: 2}),
        preempt(A, 1, 2, WE, 1),
        INVALID_FIELD_IN_PARAMETER_LIST,
        None,
    ),
    "through another port": (
        state({A: 1, A_PORT_2: 1, B_PORT_2: 2}, WE_RO, A),
        preempt(B_PORT_2, 2, 1, WE_RO),
        GOOD,
        state({B_PORT_2: 2}, WE_RO, B_PORT_2, generation=11),
    ),
}


def move(
    nexus: Nexus, key: int, new: int, to: Nexus | InitiatorPort, rtpi: int = 1, *, unregister: bool = False
) -> Command:
    target = port_of(to) if isinstance(to, Nexus) else to
    return Command(nexus, Action.REGISTER_AND_MOVE, key, new, move=Move(target, rtpi, unregister))


MOVING: dict[str, Case] = {
    # SPC-4 5.13.8, table 70
    "to one not registered": (
        state({A: 1}, WE, A),
        move(A, 1, 7, B),
        GOOD,
        state({A: 1, B: 7}, WE, B, generation=11, scope_left=(A,)),
    ),
    "to one registered": (
        state({A: 1, B: 2}, EA_RO, A),
        move(A, 1, 7, B),
        GOOD,
        state({A: 1, B: 7}, EA_RO, B, generation=11, scope_left=(A,)),
    ),
    "and unregister": (
        state({A: 1, B: 2}, WE, A),
        move(A, 1, 2, B, unregister=True),
        GOOD,
        state({B: 2}, WE, B, generation=11),
    ),
    "to another port": (
        state({A: 1}, WE, A),
        move(A, 1, 7, B, 2),
        GOOD,
        state({A: 1, B_PORT_2: 7}, WE, B_PORT_2, generation=11, scope_left=(A,)),
    ),
    "to another ISID": (
        state({A: 1}, WE, A),
        move(A, 1, 7, A_OTHER_ISID),
        GOOD,
        state({A: 1, A_OTHER_ISID: 7}, WE, A_OTHER_ISID, generation=11, scope_left=(A,)),
    ),
    "without ISID": (
        state({A: 1}, WE, A),
        move(A, 1, 7, InitiatorPort(HOSTS[1], "")),
        GOOD,
        state({A: 1, Nexus(HOSTS[1], "", 1): 7}, WE, Nexus(HOSTS[1], "", 1), generation=11, scope_left=(A,)),
    ),
    "LIO: and back": (
        state({A: 1, B: 2}, WE, B, scope_left=(A,)),
        move(B, 2, 1, A),
        GOOD,
        state({A: 1, B: 2}, WE, A, generation=11, scope_left=(A, B)),
    ),
    "unregistered": (NOTHING, move(A, 1, 7, B), COMMUNICATION_FAILURE, None),
    "not the holder": (state({A: 1, B: 2}, WE, A), move(B, 2, 7, C), CONFLICT, None),
    "not the holder, registrants only": (state({A: 1, B: 2}, WE_RO, A), move(B, 2, 7, C), CONFLICT, None),
    "wrong key": (state({A: 1}, WE, A), move(A, 2, 7, B), CONFLICT, None),
    "zero": (state({A: 1}, WE, A), move(A, 1, 0, B), INVALID_FIELD_IN_PARAMETER_LIST, None),
    "all registrants": (state({A: 1}, WE_AR, anchor=A), move(A, 1, 7, B), CONFLICT, None),
    "nothing reserved": (state({A: 1}), move(A, 1, 7, B), INVALID_FIELD_IN_CDB, None),
    "to oneself": (state({A: 1}, WE, A), move(A, 1, 7, A), INVALID_FIELD_IN_PARAMETER_LIST, None),
    "to oneself elsewhere": (
        state({A: 1}, WE, A),
        move(A, 1, 7, A, 2),
        INVALID_FIELD_IN_PARAMETER_LIST,
        None,
    ),
    "to one's own name": (
        state({A: 1}, WE, A),
        move(A, 1, 7, InitiatorPort(HOSTS[0], "")),
        INVALID_FIELD_IN_PARAMETER_LIST,
        None,
    ),
    "to no such port": (state({A: 1}, WE, A), move(A, 1, 7, B, 9), INVALID_FIELD_IN_PARAMETER_LIST, None),
    "to an unknown initiator": (
        state({A: 1}, WE, A),
        move(A, 1, 7, InitiatorPort("iqn.2001-04.test:x", ISIDS[0])),
        INVALID_FIELD_IN_PARAMETER_LIST,
        None,
    ),
}


@pytest.mark.parametrize("case", RESERVING.values(), ids=RESERVING)
def test_reserve(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", RELEASING.values(), ids=RELEASING)
def test_release(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", CLEARING.values(), ids=CLEARING)
def test_clear(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", PREEMPTING.values(), ids=PREEMPTING)
def test_preempt(case: Case) -> None:
    check(case)
    before, command, outcome, after = case
    check((before, replace(command, action=Action.PREEMPT_AND_ABORT), outcome, after))


@pytest.mark.parametrize("case", MOVING.values(), ids=MOVING)
def test_register_and_move(case: Case) -> None:
    check(case)


# SPC-4 5.13.1, table 65: does (the holder, a registrant, a stranger) get a conflict?
ACCESS_TABLE: dict[tuple[Type, bool], tuple[bool, bool, bool]] = {
    (WE, False): (False, False, False),
    (WE, True): (False, True, True),
    (EA, False): (False, True, True),
    (EA, True): (False, True, True),
    (WE_RO, False): (False, False, False),
    (WE_RO, True): (False, False, True),
    (EA_RO, False): (False, False, True),
    (EA_RO, True): (False, False, True),
    (WE_AR, False): (False, False, False),
    (WE_AR, True): (False, False, True),
    (EA_AR, False): (False, False, True),
    (EA_AR, True): (False, False, True),
}


@pytest.mark.parametrize(("of", "wanted"), ACCESS_TABLE.items())
def test_medium_access(of: tuple[Type, bool], wanted: tuple[bool, bool, bool]) -> None:
    type_, write = of
    holder = None if type_.all_registrants else A
    reserved = state({A: 1, B: 2}, type_, holder, anchor=A if holder is None else None)
    assert tuple(conflicts(reserved, one, write=write, access=ACCESS) for one in (A, B, C)) == wanted


def test_nothing_reserved_nothing_in_conflict() -> None:
    assert not conflicts(state({A: 1}), C, write=True, access=ACCESS)


def test_lio_other_isid_of_the_holder_is_a_stranger() -> None:
    reserved = state({A: 1, A_OTHER_ISID: 1, B: 2}, WE_RO, A)
    assert conflicts(reserved, A_OTHER_ISID, write=True, access=ACCESS)
    assert not conflicts(reserved, B, write=True, access=ACCESS)
    assert apply(reserved, Command(A_OTHER_ISID, Action.CLEAR, 1), ACCESS)[0] == CONFLICT


def test_lio_other_isid_of_a_registrant_is_a_registrant() -> None:
    reserved = state({A: 1, B: 2}, WE_RO, B)
    assert not conflicts(reserved, A_OTHER_ISID, write=True, access=ACCESS)


def test_lio_forgotten_registrant_is_a_stranger() -> None:
    reserved = replay(state({A: 1, A_OTHER_ISID: 2, B: 3}, EA_RO, B), [Command(A, REGISTER, 1, 0)], ACCESS)
    assert A_OTHER_ISID in reserved.registrations
    assert conflicts(reserved, A_OTHER_ISID, write=False, access=ACCESS)


def test_a_holder_without_isid_is_every_session_there() -> None:
    reserved = state({A: 7, A_ANY_2: 7, A_ANY_3: 7}, EA, A_ANY_2, all_tg_pt=(A, A_ANY_2, A_ANY_3))
    assert not conflicts(reserved, Nexus(HOSTS[0], "80ffffffffff", 2), write=True, access=ACCESS)
    assert conflicts(reserved, A, write=False, access=ACCESS)


def test_lio_reservation_moved_there_and_back_cannot_be_released() -> None:
    there_and_back = replay(state({A: 1, B: 2}, WE, A), [move(A, 1, 2, B), move(B, 2, 1, A)], ACCESS)
    assert apply(there_and_back, Command(A, Action.RELEASE, 1, type=WE), ACCESS)[0] == CONFLICT
    freed = replay(there_and_back, [preempt(A, 1, 1), Command(A, Action.RELEASE, 1, type=WE)], ACCESS)
    assert freed.reservation is None


def test_anchor_unknown_is_the_oldest() -> None:
    reserved = state({A: 1, B: 2}, WE_AR)
    assert apply(reserved, preempt(B, 2, 1, EA), ACCESS)[1] == state({B: 2}, EA, B, generation=11)
