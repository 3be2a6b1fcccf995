"""Commands read off two states; commands that may change places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hactl.pr_sync.commands import Command, Move
from hactl.pr_sync.derive import MOST_COUNTED, Unexplained, commutes, counted, explain
from hactl.pr_sync.model import apply, replay
from hactl.pr_sync.rules import KernelUndefined
from hactl.pr_sync.state import Action, Hidden, Nexus, State, Type
from tests.unit.pr_commands import (
    A_ANY_2,
    A_ANY_3,
    A_OTHER_ISID,
    A_PORT_2,
    ACCESS,
    B_PORT_2,
    A,
    B,
    C,
    commands,
    port_of,
    state,
)

WE, EA = Type.WRITE_EXCLUSIVE, Type.EXCLUSIVE_ACCESS
WE_RO, WE_AR = Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS
EA_AR = Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS
REGISTER, IGNORE = Action.REGISTER, Action.REGISTER_AND_IGNORE_EXISTING_KEY
ABORT = Action.PREEMPT_AND_ABORT
NOTHING = state({})
ALL = (A, A_ANY_2, A_ANY_3)


def seen(state: State) -> State:
    """What a kernel shows of it."""
    return replace(state, hidden=Hidden(), registrations=dict(sorted(state.registrations.items())))


EXPLANATIONS: dict[str, tuple[State, State, tuple[Command, ...]]] = {
    "nothing": (state({A: 1}), state({A: 1}), ()),
    "register": (NOTHING, state({A: 7}, generation=11), (Command(A, REGISTER, 0, 7),)),
    "change": (state({A: 1}), state({A: 7}, generation=11), (Command(A, REGISTER, 1, 7),)),
    "again": (state({A: 1}), state({A: 1}, generation=12), (Command(A, REGISTER, 1, 1),) * 2),
    "unregister": (state({A: 1, B: 2}), state({B: 2}), (Command(A, REGISTER, 1, 0),)),
    "unregister the holder": (state({A: 1, B: 2}, WE, A), state({B: 2}), (Command(A, REGISTER, 1, 0),)),
    "reserve": (state({A: 1}), state({A: 1}, WE, A), (Command(A, Action.RESERVE, 1, type=WE),)),
    "reserve for all": (
        state({A: 1, B: 2}),
        state({A: 1, B: 2}, WE_AR, anchor=B),
        (Command(B, Action.RESERVE, 2, type=WE_AR),),
    ),
    "release": (state({A: 1}, WE, A), state({A: 1}), (Command(A, Action.RELEASE, 1, type=WE),)),
    "clear": (
        state({A: 1, B_PORT_2: 2}, WE, A),
        state({}, generation=11),
        (Command(A, Action.CLEAR, 1),),
    ),
    "preempt the holder": (
        state({A_PORT_2: 1, B: 2}, WE_RO, A_PORT_2),
        state({B: 2}, EA, B, generation=11),
        (Command(B, ABORT, 2, 1, EA),),
    ),
    "preempt another": (
        state({A_PORT_2: 1, B: 2, C: 3}, WE_RO, C),
        state({B: 2, C: 3}, WE_RO, C, generation=11),
        (Command(B, ABORT, 2, 1, WE_RO),),
    ),
    "preempt oneself": (
        state({A: 1}, WE, A),
        state({A: 1}, EA, A, generation=11),
        (Command(A, ABORT, 1, 1, EA),),
    ),
    "preempt everybody": (
        state({A: 1, B: 2, B_PORT_2: 3}, WE_AR, anchor=A),
        state({A: 1}, EA, A, generation=11),
        (Command(A, ABORT, 1, 0, EA),),
    ),
    "move": (
        state({A: 1}, WE, A),
        state({A: 1, B_PORT_2: 7}, WE, B_PORT_2, generation=11),
        (Command(A, Action.REGISTER_AND_MOVE, 1, 7, move=Move(port_of(B_PORT_2), 2)),),
    ),
    "move and unregister": (
        state({A: 1}, WE, A),
        state({B: 7}, WE, B, generation=11),
        (Command(A, Action.REGISTER_AND_MOVE, 1, 7, move=Move(port_of(B), 1, unregister=True)),),
    ),
    "all ports": (
        NOTHING,
        state({A: 7, A_ANY_2: 7, A_ANY_3: 7}, all_tg_pt=ALL, generation=13),
        (Command(A, REGISTER, 0, 7, all_tg_pt=True),),
    ),
    "no port any more": (
        state({A: 7, A_ANY_2: 7, A_ANY_3: 7}, all_tg_pt=ALL),
        state({}),
        (Command(A, REGISTER, 7, 0, all_tg_pt=True),),
    ),
    "this port alone any more": (
        state({A: 7, A_ANY_2: 7, A_ANY_3: 7}, all_tg_pt=ALL),
        state({A_ANY_2: 7, A_ANY_3: 7}, all_tg_pt=ALL),
        (Command(A, IGNORE, 7, 0, all_tg_pt=True),),
    ),
    "named": (
        state({C: 3}),
        state({C: 3, A: 7, B: 7, A_PORT_2: 9}, generation=13),
        (Command(A, REGISTER, 0, 7), Command(B, REGISTER, 0, 7), Command(A_PORT_2, REGISTER, 0, 9)),
    ),
}


@pytest.mark.parametrize(("before", "after", "wanted"), EXPLANATIONS.values(), ids=EXPLANATIONS)
def test_explained(before: State, after: State, wanted: tuple[Command, ...]) -> None:
    assert explain(before, after, ACCESS, 1) == wanted


def test_named_from_another_port() -> None:
    """LIO registers a named initiator on the unit's first port, here 1, whichever port was spoken to."""
    after = state({A_PORT_2: 7, B: 7}, generation=12)
    wanted = (Command(A_PORT_2, REGISTER, 0, 7, spec_i_pt=(port_of(B),)),)
    assert explain(NOTHING, after, ACCESS, 2) == wanted


def test_named_twice() -> None:
    after = state({A: 7, replace(A, copy=1): 7, B: 7, replace(B, copy=1): 7}, generation=14)
    (command,) = explain(NOTHING, after, ACCESS, 1)
    assert command.spec_i_pt is not None
    assert sorted(command.spec_i_pt) == [port_of(A), port_of(B), port_of(B)]


def test_preempt_without_abort() -> None:
    before, after = state({A_PORT_2: 1, B: 2}), state({B: 2}, generation=11)
    (command,) = explain(before, after, ACCESS, 1, abort=False)
    assert command.action is Action.PREEMPT


def test_registrations_of_many_and_one_preemption() -> None:
    before = state({A_PORT_2: 1, B: 2, C: 3}, WE_RO, A_PORT_2)
    after = state({B: 2, A: 5, A_OTHER_ISID: 5}, WE_RO, B, generation=13)
    commands = explain(before, after, ACCESS, 1)
    assert sorted(command.action for command in commands) == [REGISTER, REGISTER, REGISTER, ABORT]
    assert replay(before, commands, ACCESS) == after


def test_a_preemption_that_is_held_is_not_counted_yet() -> None:
    before, after = state({A_PORT_2: 1, B: 2}, WE, A_PORT_2), state({B: 2}, WE, B)
    commands = explain(before, after, ACCESS, 1, held=True)
    assert commands == (Command(B, ABORT, 2, 1, WE),)
    assert replay(before, commands, ACCESS) == replace(after, generation=11) == counted(after, commands)


def test_held_clear() -> None:
    before, after = state({A: 1, A_PORT_2: 2}), state({})
    assert explain(before, after, ACCESS, 1, held=True) == (Command(A, Action.CLEAR, 1),)


def test_held_and_either_way_the_reading_that_counts_less() -> None:
    """A count too few in the log is made up for later; one too many could not be taken back."""
    before, after = state({A: 1, B: 2}), state({B: 2})
    assert explain(before, after, ACCESS, 1, held=True) == (Command(A, REGISTER, 1, 0),)
    late = explain(after, replace(after, generation=11), ACCESS, 1)
    assert late == (Command(B, REGISTER, 2, 2),)


def test_counted_up_and_nobody_there() -> None:
    """A CLEAR that was read as something else is counted when nobody is left to repeat a registration."""
    after = state({}, generation=12)
    commands = explain(NOTHING, after, ACCESS, 1)
    assert replay(NOTHING, commands, ACCESS) == after
    assert len(commands) == 3


def test_the_known_anchor_is_respected() -> None:
    before = state({A: 1, B: 2, C: 3})
    for anchor in (A, B, C):
        commands = explain(before, state({A: 1, B: 2, C: 3}, WE_AR, anchor=anchor), ACCESS, 1)
        assert commands == (Command(anchor, Action.RESERVE, before.registrations[anchor].key, type=WE_AR),)


def test_nobody_here_could_have_done_it() -> None:
    """Then it is of the port where it can have been done."""
    before, after = state({A_PORT_2: 1}), state({A_PORT_2: 1}, WE, A_PORT_2)
    assert explain(before, after, ACCESS, 1) == (Command(A_PORT_2, Action.RESERVE, 1, type=WE),)


@pytest.mark.parametrize(
    "after",
    [
        state({A: 1}, generation=9),
        state({A: 1}, generation=10 + MOST_COUNTED + 1),
        state({A: 1, A_ANY_2: 7}, all_tg_pt=(A_ANY_2,), generation=11),
        state({A: 1, Nexus("iqn.2001-04.test:x", "800000000001", 1): 2}, generation=11),
    ],
)
def test_unexplained(after: State) -> None:
    with pytest.raises(Unexplained, match="port 1"):
        explain(state({A: 1}), after, ACCESS, 1)


def test_many_nexuses_quickly() -> None:
    hosts = [f"iqn.2001-04.test:{number:03}" for number in range(256)]
    access = {1: frozenset(hosts), 2: frozenset(hosts)}
    there = {
        Nexus(host, "800000000001", port): 1 + at for at, host in enumerate(hosts[1:]) for port in (1, 2)
    }
    before = state(there)
    new = Nexus(hosts[0], "800000000001", 1)
    after = state({**there, new: 9}, generation=11)
    assert explain(before, after, access, 1) == (Command(new, REGISTER, 0, 9),)
    (cleared,) = explain(after, state({}, generation=12), access, 1)
    assert cleared.action is Action.CLEAR
    left = state({nexus: key for nexus, key in there.items() if nexus.rtpi == 2}, generation=11)
    assert len(explain(after, left, access, 1)) == 256


def step(current: State, command: Command) -> State | None:
    """The state after a command that is answered GOOD."""
    try:
        outcome, after = apply(current, command, ACCESS)
    except KernelUndefined:
        return None
    return after if outcome.good else None


@settings(max_examples=60, deadline=None)
@given(st.sampled_from((0, 2**32 - 2)), st.data())
def test_any_command_is_explained(generation: int, data: st.DataObject) -> None:
    before = State(generation)
    for _ in range(data.draw(st.integers(1, 10))):
        command = data.draw(commands(before))
        after = step(before, command)
        if after is None:
            continue
        found = explain(before, seen(after), ACCESS, command.nexus.rtpi)
        assert replay(before, found, ACCESS) == after
        assert len(found) <= 1 + (after.generation - before.generation) % 2**32
        before = after


@settings(max_examples=60, deadline=None)
@given(st.sampled_from((0, 2**32 - 2)), st.data())
def test_any_held_command_is_explained_and_made_up_for(generation: int, data: st.DataObject) -> None:
    before = State(generation)
    for _ in range(data.draw(st.integers(1, 8))):
        command = data.draw(commands(before))
        after = step(before, command)
        if after is None:
            continue
        late = command.action in (Action.CLEAR, Action.PREEMPT, ABORT)
        shown = replace(seen(after), generation=(after.generation - late) % 2**32)
        port = command.nexus.rtpi
        logged = replay(before, explain(before, shown, ACCESS, port, held=True), ACCESS)
        assert logged.same_but_generation(after)
        assert (after.generation - logged.generation) % 2**32 in (0, 1)
        assert replay(logged, explain(logged, seen(after), ACCESS, port), ACCESS) == after
        before = after


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from((A, B, C, A_OTHER_ISID)), unique=True, max_size=4), st.data())
def test_independent_commands_at_once(actors: Sequence[Nexus], data: st.DataObject) -> None:
    """Several nexuses register or unregister, and one of them may do anything."""
    before = State()
    for _ in range(data.draw(st.integers(0, 5))):
        before = step(before, plain(data.draw(commands(before)))) or before
    after = before
    for actor in actors:
        have = after.registrations.get(actor)
        key = have.key if have is not None else 0
        after = step(after, Command(actor, REGISTER, key, data.draw(st.integers(0, 3)))) or after
    after = step(after, plain(data.draw(commands(after, ports=(1,))))) or after
    found = explain(before, seen(after), ACCESS, 1)
    assert replay(before, found, ACCESS) == after


def plain(command: Command) -> Command:
    return replace(command, all_tg_pt=False, spec_i_pt=None)


def test_registrations_of_different_nexuses_commute() -> None:
    base = state({C: 3}, WE, C)
    both = commutes(base, [Command(A, REGISTER, 0, 1)], [Command(B, REGISTER, 0, 2)], ACCESS)
    assert both == state({C: 3, A: 1, B: 2}, WE, C, generation=12)


def test_two_reservations_do_not_commute() -> None:
    base = state({A: 1, B: 2})
    theirs, mine = (Command(one, Action.RESERVE, key, type=WE) for one, key in ((A, 1), (B, 2)))
    assert commutes(base, [theirs], [mine], ACCESS) is None


NOT_COMMUTING: dict[str, tuple[State, Command, Command]] = {
    "both of one nexus": (NOTHING, Command(A, REGISTER, 0, 1), Command(A, REGISTER, 0, 2)),
    "a key and its preemption": (
        state({A: 1, B: 2}),
        Command(A, REGISTER, 1, 3),
        Command(B, ABORT, 2, 1, WE),
    ),
    "a registration and a clearing": (state({A: 1}), Command(A, Action.CLEAR, 1), Command(B, REGISTER, 0, 2)),
    "two that preempt the holder": (
        state({A: 1, B: 2, C: 3}, WE, A),
        Command(B, ABORT, 2, 1, WE),
        Command(C, ABORT, 3, 1, WE),
    ),
    "two all-registrants reservations": (
        state({A: 1, B: 2}),
        Command(A, Action.RESERVE, 1, type=EA_AR),
        Command(B, Action.RESERVE, 2, type=EA_AR),
    ),
}


@pytest.mark.parametrize(("base", "theirs", "mine"), NOT_COMMUTING.values(), ids=NOT_COMMUTING)
def test_not_commuting(base: State, theirs: Command, mine: Command) -> None:
    assert commutes(base, [theirs], [mine], ACCESS) is None


def test_a_reservation_and_registrations_commute() -> None:
    base = state({A: 1, B_PORT_2: 4})
    theirs = [Command(A, Action.RESERVE, 1, type=WE_RO)]
    mine = [Command(B, REGISTER, 0, 2), Command(B_PORT_2, REGISTER, 4, 0)]
    assert commutes(base, theirs, mine, ACCESS) == state({A: 1, B: 2}, WE_RO, A, generation=11)


def test_nothing_commutes_with_anything() -> None:
    base = state({A: 1})
    assert commutes(base, [], [], ACCESS) is base
    assert commutes(base, [], [Command(A, Action.CLEAR, 1)], ACCESS) == state({}, generation=11)
