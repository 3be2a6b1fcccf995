"""What REGISTER in all its forms does, by clause of SPC-4 and by what Linux 6.12's LIO does instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from hactl.pr_sync.commands import (
    CONFLICT,
    GOOD,
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
    LOGICAL_UNIT_NOT_SUPPORTED,
    Command,
    InitiatorPort,
    Move,
    Status,
)
from hactl.pr_sync.model import NotGood, apply, replay
from hactl.pr_sync.rules import KernelUndefined
from hactl.pr_sync.state import Action, Nexus
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
    IGNORE,
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

REGISTERING: dict[str, Case] = {
    # SPC-4 5.13.7, table 67
    "new": (NOTHING, Command(A, REGISTER, 0, 7), GOOD, state({A: 7}, generation=11)),
    "new, nothing to do": (NOTHING, Command(A, REGISTER), GOOD, None),
    "new, with a key": (NOTHING, Command(A, REGISTER, 5, 7), CONFLICT, None),
    "new, with a key and nothing to register": (NOTHING, Command(A, REGISTER, 5, 0), CONFLICT, None),
    "change": (state({A: 1, B: 2}), Command(A, REGISTER, 1, 7), GOOD, state({A: 7, B: 2}, generation=11)),
    "change to the same": (state({A: 1}), Command(A, REGISTER, 1, 1), GOOD, state({A: 1}, generation=11)),
    "wrong key": (state({A: 1}), Command(A, REGISTER, 2, 7), CONFLICT, None),
    "wrong key, zero": (state({A: 1}), Command(A, REGISTER, 0, 7), CONFLICT, None),
    "change by the holder": (
        state({A: 1, B: 2}, WE, A),
        Command(A, REGISTER, 1, 7),
        GOOD,
        state({A: 7, B: 2}, WE, A, generation=11),
    ),
    "other ISID is another nexus": (
        state({A: 1}),
        Command(A_OTHER_ISID, REGISTER, 0, 2),
        GOOD,
        state({A: 1, A_OTHER_ISID: 2}, generation=11),
    ),
    "other port is another nexus": (
        state({A: 1}),
        Command(A_PORT_2, REGISTER, 0, 2),
        GOOD,
        state({A: 1, A_PORT_2: 2}, generation=11),
    ),
    # SPC-4 5.13.7, item a): whatever is reserved
    "new in spite of a reservation": (
        state({A: 1}, EA, A),
        Command(B, REGISTER, 0, 2),
        GOOD,
        state({A: 1, B: 2}, EA, A, generation=11),
    ),
    # SPC-4 5.13.7, table 68
    "ignore: new": (NOTHING, Command(A, IGNORE, 5, 7), GOOD, state({A: 7}, generation=11)),
    "ignore: nothing to do": (NOTHING, Command(A, IGNORE, 5, 0), GOOD, None),
    "ignore: change": (state({A: 1}), Command(A, IGNORE, 5, 7), GOOD, state({A: 7}, generation=11)),
    "ignore: unregister": (state({A: 1}), Command(A, IGNORE, 5, 0), GOOD, state({})),
    # SPC-4 6.15.2: the counter wraps
    "generation wraps": (
        state({}, generation=2**32 - 1),
        Command(A, REGISTER, 0, 7),
        GOOD,
        state({A: 7}, generation=0),
    ),
    "no such unit": (
        NOTHING,
        Command(Nexus("iqn.2001-04.test:x", ISIDS[0], 1), REGISTER, 0, 7),
        LOGICAL_UNIT_NOT_SUPPORTED,
        None,
    ),
}

UNREGISTERING: dict[str, Case] = {
    # SPC-4 5.13.11.2.3 and table 71. LIO does not count PRgeneration.
    "not the holder": (state({A: 1, B: 2}, WE, B), Command(A, REGISTER, 1, 0), GOOD, state({B: 2}, WE, B)),
    "holder": (state({A: 1, B: 2}, WE, A), Command(A, REGISTER, 1, 0), GOOD, state({B: 2})),
    "holder, registrants only": (
        state({A: 1, B: 2}, EA_RO, A),
        Command(A, IGNORE, 0, 0),
        GOOD,
        state({B: 2}),
    ),
    "all registrants, some left": (
        state({A: 1, B: 2, C: 3}, WE_AR, anchor=A),
        Command(A, REGISTER, 1, 0),
        GOOD,
        state({B: 2, C: 3}, WE_AR, anchor=B),
    ),
    "all registrants, the anchor goes to the oldest": (
        state({B: 2, C: 3, A: 1}, WE_AR, anchor=C),
        Command(C, REGISTER, 3, 0),
        GOOD,
        state({B: 2, A: 1}, WE_AR, anchor=B),
    ),
    "all registrants, last": (state({A: 1}, EA_AR, anchor=A), Command(A, REGISTER, 1, 0), GOOD, state({})),
    "wrong key": (state({A: 1}), Command(A, REGISTER, 2, 0), CONFLICT, None),
    "LIO forgets the other ISID": (
        state({A: 1, A_OTHER_ISID: 2}),
        Command(A, REGISTER, 1, 0),
        GOOD,
        state({A_OTHER_ISID: 2}, ignored=((HOSTS[0], 1),)),
    ),
    "LIO remembers with the next registration": (
        state({A_OTHER_ISID: 2}, ignored=((HOSTS[0], 1),)),
        Command(A, REGISTER, 0, 1),
        GOOD,
        state({A_OTHER_ISID: 2, A: 1}, generation=11),
    ),
    "not by a change of key": (
        state({A_OTHER_ISID: 2}, ignored=((HOSTS[0], 1),)),
        Command(A_OTHER_ISID, REGISTER, 2, 3),
        GOOD,
        state({A_OTHER_ISID: 3}, generation=11, ignored=((HOSTS[0], 1),)),
    ),
}

ALL = (A, A_ANY_2, A_ANY_3)
ALL_PORTS: dict[str, Case] = {
    # SPC-4 6.16.3. LIO makes the others without ISID and counts each.
    "new": (
        NOTHING,
        Command(A, REGISTER, 0, 7, all_tg_pt=True),
        GOOD,
        state({A: 7, A_ANY_2: 7, A_ANY_3: 7}, all_tg_pt=ALL, generation=13),
    ),
    "LIO registers twice": (
        state({A: 7, A_ANY_2: 7, A_ANY_3: 7}, all_tg_pt=ALL),
        Command(A_OTHER_ISID, IGNORE, 0, 8, all_tg_pt=True),
        GOOD,
        state(
            {
                **{A: 7, A_ANY_2: 7, A_ANY_3: 7},
                **{A_OTHER_ISID: 8, replace(A_ANY_2, copy=1): 8, replace(A_ANY_3, copy=1): 8},
            },
            all_tg_pt=(*ALL, A_OTHER_ISID, replace(A_ANY_2, copy=1), replace(A_ANY_3, copy=1)),
            generation=13,
        ),
    ),
    "any session there has that registration": (
        state({A: 7, A_ANY_2: 7, A_ANY_3: 7}, all_tg_pt=ALL),
        Command(A_PORT_2, REGISTER, 7, 9, all_tg_pt=True),
        GOOD,
        state({A: 7, A_ANY_2: 9, A_ANY_3: 7}, all_tg_pt=ALL, generation=11),
    ),
    "LIO insists on the bit": (
        state({A: 7, A_ANY_2: 7, A_ANY_3: 7}, all_tg_pt=ALL),
        Command(A, REGISTER, 7, 9),
        INVALID_FIELD_IN_CDB,
        None,
    ),
    "LIO ignores the bit on one without": (
        state({A: 7}),
        Command(A, REGISTER, 7, 9, all_tg_pt=True),
        GOOD,
        state({A: 9}, generation=11),
    ),
    "unregister takes all along": (
        state({A: 7, B: 7, A_ANY_2: 7, A_ANY_3: 7}, all_tg_pt=ALL),
        Command(A, REGISTER, 7, 0, all_tg_pt=True),
        GOOD,
        state({B: 7}),
    ),
    "but not those registered for one port": (
        state({A_OTHER_ISID: 7, A: 7, A_ANY_2: 7, A_ANY_3: 7}, all_tg_pt=ALL),
        Command(A, REGISTER, 7, 0, all_tg_pt=True),
        GOOD,
        state({A_OTHER_ISID: 7}, ignored=((HOSTS[0], 1),)),
    ),
    "but not those with another key": (
        state({A: 7, A_ANY_2: 7, A_ANY_3: 8}, all_tg_pt=ALL),
        Command(A_PORT_2, REGISTER, 7, 0, all_tg_pt=True),
        GOOD,
        state({A_ANY_3: 8}, all_tg_pt=ALL),
    ),
    "LIO: ignoring the key takes none along": (
        state({A: 7, A_ANY_2: 7, A_ANY_3: 7}, all_tg_pt=ALL),
        Command(A, IGNORE, 7, 0, all_tg_pt=True),
        GOOD,
        state({A_ANY_2: 7, A_ANY_3: 7}, all_tg_pt=ALL),
    ),
    "holder": (
        state({A: 7, A_ANY_2: 7, A_ANY_3: 7}, WE, A, all_tg_pt=ALL),
        Command(A, REGISTER, 7, 0, all_tg_pt=True),
        GOOD,
        state({}),
    ),
    "LIO: not while another of one's own holds": (
        state({A: 7, A_ANY_2: 7, A_ANY_3: 7}, WE_RO, A, all_tg_pt=ALL),
        Command(A_PORT_2, REGISTER, 7, 0, all_tg_pt=True),
        CONFLICT,
        None,
    ),
}

NAMED: dict[str, Case] = {
    # SPC-4 5.13.7, tables 67 and 69
    "new": (
        NOTHING,
        Command(A, REGISTER, 0, 7, spec_i_pt=(port_of(B), port_of(C))),
        GOOD,
        state({A: 7, B: 7, C: 7}, generation=13),
    ),
    "LIO: on the first port": (
        NOTHING,
        Command(A_PORT_2, REGISTER, 0, 7, spec_i_pt=(port_of(B),)),
        GOOD,
        state({A_PORT_2: 7, B: 7}, generation=12),
    ),
    "LIO: one that is registered is passed over": (
        state({B: 2}),
        Command(A, REGISTER, 0, 7, spec_i_pt=(port_of(B), port_of(C))),
        GOOD,
        state({B: 2, A: 7, C: 7}, generation=12),
    ),
    "LIO: named twice": (
        NOTHING,
        Command(A, REGISTER, 0, 7, spec_i_pt=(port_of(B), port_of(B))),
        GOOD,
        state({A: 7, B: 7, replace(B, copy=1): 7}, generation=13),
    ),
    "all ports": (
        NOTHING,
        Command(A, REGISTER, 0, 7, all_tg_pt=True, spec_i_pt=(port_of(B),)),
        GOOD,
        state(
            {
                **{A: 7, A_ANY_2: 7, A_ANY_3: 7},
                **{B: 7, Nexus(HOSTS[1], "", 2): 7, Nexus(HOSTS[1], "", 3): 7},
            },
            all_tg_pt=(*ALL, B, Nexus(HOSTS[1], "", 2), Nexus(HOSTS[1], "", 3)),
            generation=16,
        ),
    ),
    "nobody named": (
        NOTHING,
        Command(A, REGISTER, 0, 7, spec_i_pt=()),
        GOOD,
        state({A: 7}, generation=11),
    ),
    "unknown initiator": (
        NOTHING,
        Command(A, REGISTER, 0, 7, spec_i_pt=(port_of(B), InitiatorPort("iqn.2001-04.test:x", ISIDS[0]))),
        INVALID_FIELD_IN_PARAMETER_LIST,
        None,
    ),
    "without ISID": (
        NOTHING,
        Command(A, REGISTER, 0, 7, spec_i_pt=(InitiatorPort(HOSTS[1], ""),)),
        INVALID_FIELD_IN_PARAMETER_LIST,
        None,
    ),
    "on a registered nexus": (
        state({A: 1}),
        Command(A, REGISTER, 1, 7, spec_i_pt=(port_of(B),)),
        INVALID_FIELD_IN_PARAMETER_LIST,
        None,
    ),
    "with the wrong key": (
        state({A: 1}),
        Command(A, REGISTER, 2, 7, spec_i_pt=(port_of(B),)),
        CONFLICT,
        None,
    ),
    "with another service action": (
        state({A: 1}),
        Command(A, Action.RESERVE, 1, type=WE, spec_i_pt=(port_of(B),)),
        INVALID_FIELD_IN_PARAMETER_LIST,
        None,
    ),
    "ignoring the key": (
        NOTHING,
        Command(A, IGNORE, 0, 7, spec_i_pt=(port_of(B),)),
        INVALID_FIELD_IN_PARAMETER_LIST,
        None,
    ),
}


@pytest.mark.parametrize("case", REGISTERING.values(), ids=REGISTERING)
def test_register(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", UNREGISTERING.values(), ids=UNREGISTERING)
def test_unregister(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", ALL_PORTS.values(), ids=ALL_PORTS)
def test_all_target_ports(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", NAMED.values(), ids=NAMED)
def test_specified_initiator_ports(case: Case) -> None:
    check(case)


def test_lio_names_an_initiator_only_if_the_first_port_knows_it() -> None:
    access = {1: frozenset(HOSTS[:1]), 2: frozenset(HOSTS)}
    named = Command(A, REGISTER, 0, 7, spec_i_pt=(port_of(B),))
    assert apply(NOTHING, named, access) == (INVALID_FIELD_IN_PARAMETER_LIST, NOTHING)
    outcome, reached = apply(NOTHING, named, dict(reversed(access.items())))
    assert outcome == GOOD
    assert list(reached.registrations) == [A, B_PORT_2]


def test_all_ports_are_those_on_which_the_initiator_is_known() -> None:
    access = {1: frozenset(HOSTS), 2: frozenset(HOSTS[1:]), 3: frozenset(HOSTS)}
    _, reached = apply(NOTHING, Command(A, REGISTER, 0, 7, all_tg_pt=True), access)
    assert list(reached.registrations) == [A, A_ANY_3]


def test_what_lio_leaves_undefined_is_not_foretold() -> None:
    """The reservation passes to a registration that the same command then frees."""
    reserved = state({A: 7, A_ANY_2: 7, A_ANY_3: 7}, WE_AR, anchor=A, all_tg_pt=ALL)
    with pytest.raises(KernelUndefined):
        apply(reserved, Command(A, REGISTER, 7, 0, all_tg_pt=True), ACCESS)


def test_replay_stops_at_what_is_refused() -> None:
    with pytest.raises(NotGood, match="RESERVATION_CONFLICT"):
        replay(NOTHING, [Command(A, REGISTER, 0, 1), Command(A, REGISTER, 0, 1)], ACCESS)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Command(A, REGISTER, move=Move(port_of(B), 1)),
        lambda: Command(A, Action.REGISTER_AND_MOVE),
        lambda: Command(A, Action.REGISTER_AND_MOVE, all_tg_pt=True, move=Move(port_of(B), 1)),
        lambda: Command(A_ANY_2, REGISTER),
        lambda: Command(replace(A, copy=1), REGISTER),
    ],
)
def test_commands_that_cannot_be_sent(wrong: Callable[[], Command]) -> None:
    with pytest.raises(ValueError, match=r"destination|ALL_TG_PT|session"):
        wrong()


def test_equality_is_what_persistent_reserve_in_shows() -> None:
    one = state({A: 1, B: 2}, WE_AR, anchor=A)
    other = state({B: 2, A: 1}, WE_AR, anchor=B)
    assert one == other
    assert hash(one) == hash(other)
    assert one.everything != other.everything
    assert one != state({A: 1, B: 2}, WE_AR, anchor=A, generation=11)


def test_statuses_are_those_of_sam() -> None:
    assert (Status.GOOD.value, Status.CHECK_CONDITION.value, Status.RESERVATION_CONFLICT.value) == (
        0,
        2,
        0x18,
    )
