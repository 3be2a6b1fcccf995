"""Taking back what could not be committed: exactly the state before, and nobody else suffers meanwhile."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hactl.pr_sync.commands import Command
from hactl.pr_sync.model import apply, conflicts
from hactl.pr_sync.rules import KernelUndefined
from hactl.pr_sync.state import Action, Hidden, Nexus, State
from hactl.pr_sync.suspects import senders
from hactl.pr_sync.undo import Place, robbed, undo
from tests.unit.pr_commands import (
    A_ANY_2,
    A_ANY_3,
    A_OTHER_ISID,
    A_PORT_2,
    ACCESS,
    B_PORT_2,
    EA,
    HOSTS,
    ISIDS,
    WE,
    WE_AR,
    WE_RO,
    A,
    B,
    C,
    commands,
    state,
)

HERE = 1
CUT_A = Place(ACCESS, HERE, frozenset({A.initiator}))


def run(before: State, sent: tuple[Command, ...]) -> list[State]:
    """The states that commands lead through; each is GOOD."""
    states = [before]
    for command in sent:
        outcome, now = apply(states[-1], command, ACCESS)
        assert outcome.good, command
        states.append(now)
    return states


def actions(sent: tuple[Command, ...] | None) -> list[tuple[Nexus, Action]] | None:
    return None if sent is None else [(c.nexus, c.action) for c in sent]


REGISTER, RESERVE, RELEASE, PREEMPT = Action.REGISTER, Action.RESERVE, Action.RELEASE, Action.PREEMPT

TAKEN_BACK = {
    "registered": (state({B: 2}), Command(A, REGISTER, 0, 1), [(A, REGISTER)]),
    "registered on all ports": (state({B: 2}), Command(A, REGISTER, 0, 1, all_tg_pt=True), [(A, REGISTER)]),
    "key changed": (state({A: 1}), Command(A, REGISTER, 1, 3), [(A, REGISTER)]),
    "unregistered": (state({A: 1, B: 2}), Command(A, REGISTER, 1, 0), [(A, REGISTER)]),
    "reserved": (state({A: 1, B: 2}), Command(A, RESERVE, 1, type=WE), [(A, RELEASE)]),
    "released": (state({A: 1, B: 2}, EA, A), Command(A, RELEASE, 1, type=EA), [(A, RESERVE)]),
    "holder left": (state({A: 1, B: 2}, WE_RO, A), Command(A, REGISTER, 1, 0), [(A, REGISTER), (A, RESERVE)]),
    "preempted one of another port": (
        state({A: 1, B_PORT_2: 2}),
        Command(A, PREEMPT, 1, 2, type=WE),
        [(B_PORT_2, REGISTER)],
    ),
    "took over from another port": (
        # The victim takes it back in one step: released first, others could write in between.
        state({A: 1, B_PORT_2: 2}, WE, B_PORT_2),
        Command(A, PREEMPT, 1, 2, type=WE),
        [(B_PORT_2, REGISTER), (B_PORT_2, PREEMPT), (A, REGISTER)],
    ),
    "changed the type": (
        state({A: 1}, WE, A),
        Command(A, PREEMPT, 1, 1, type=EA),
        [(A, PREEMPT)],
    ),
}


@pytest.mark.parametrize("name", TAKEN_BACK)
def test_one_command_is_taken_back(name: str) -> None:
    before, command, wanted = TAKEN_BACK[name]
    outcome, after = apply(before, command, ACCESS)
    assert outcome.good
    sent = undo(after, before, CUT_A)
    assert actions(sent) == wanted
    assert run(after, sent or ())[-1].same_but_generation(before)


def test_nobody_speaks_for_an_initiator_that_is_not_cut_off() -> None:
    before = state({A: 1, B: 2})
    _, after = apply(before, Command(A, PREEMPT, 1, 2, type=WE), ACCESS)
    assert undo(after, before, CUT_A) is None
    assert robbed(after, before, HERE) == frozenset({B.initiator})
    both = Place(ACCESS, HERE, frozenset({A.initiator, B.initiator}))
    assert actions(undo(after, before, both)) == [(B, REGISTER)]


def test_a_flag_that_would_not_come_back_prevents_it() -> None:
    # LIO forgets with one registration that the initiator has another one there (Table.remove).
    before = state({A: 1}, WE_RO, A)
    _, after = apply(before, Command(A_OTHER_ISID, REGISTER, 0, 1), ACCESS)
    assert undo(after, before, CUT_A) is None


def test_same_state_takes_nothing() -> None:
    before = state({A: 1, B: 2}, WE_AR, anchor=A)
    assert undo(state({A: 1, B: 2}, WE_AR, anchor=A, generation=99), before, CUT_A) == ()


def test_who_sent_it() -> None:
    empty, pair = state({}), state({A: 1, B: 2, A_PORT_2: 1})
    assert senders(empty, state({A: 1}), HERE) == frozenset({A.initiator})
    assert senders(pair, state({A: 1, B: 3, A_PORT_2: 1}), HERE) == frozenset({B.initiator})
    assert senders(pair, state({A: 1, B: 2, A_PORT_2: 1}, WE, B), HERE) == frozenset({B.initiator})
    assert senders(state({A: 1, B: 2}, WE, B), state({A: 1, B: 2}), HERE) == frozenset({B.initiator})
    # A removal is the nexus' own doing or somebody else's.
    assert senders(pair, state({A: 1, A_PORT_2: 1}), HERE) == frozenset({A.initiator, B.initiator})
    # Everybody who is registered can end a reservation of all registrants.
    everyone = state({A: 1, B: 2, C: 3}, WE_AR, anchor=A)
    assert senders(everyone, state({A: 1, B: 2, C: 3}), HERE) == frozenset(
        {A.initiator, B.initiator, C.initiator}
    )
    # With ALL_TG_PT it is at other ports too.
    everywhere = state({A: 1, A_ANY_2: 1, A_ANY_3: 1}, all_tg_pt=(A, A_ANY_2, A_ANY_3))
    assert senders(empty, everywhere, HERE) == frozenset({A.initiator})
    assert senders(pair, pair, HERE) is None


EVERY_SESSION = [Nexus(host, isid, HERE) for host in HOSTS for isid in (*ISIDS, "800000000009")]


@st.composite
def histories(draw: st.DrawFn, most: int) -> tuple[State, State, list[Command]]:
    """A state that commands lead to from nothing, one after it, and what led from one to the other here."""
    now = State()
    for _ in range(draw(st.integers(0, 6))):
        try:
            _, now = apply(now, draw(commands(now)), ACCESS)
        except KernelUndefined:
            break
    before, done = now, []
    for _ in range(draw(st.integers(1, most))):
        command = draw(commands(now, ports=(HERE,)))
        try:
            outcome, now = apply(now, command, ACCESS)
        except KernelUndefined:
            break
        if outcome.good:
            done.append(command)
    return before, now, done


def answers(seen: State, cut: frozenset[str]) -> list[tuple[bool, bool]]:
    return [
        (conflicts(seen, one, write=False, access=ACCESS), conflicts(seen, one, write=True, access=ACCESS))
        for one in EVERY_SESSION
        if one.initiator not in cut
    ]


@settings(max_examples=60, deadline=None)
@given(histories(3), st.sets(st.sampled_from(HOSTS)))
def test_the_model_comes_to_exactly_the_state_before(
    history: tuple[State, State, list[Command]], also: set[str]
) -> None:
    before, after, done = history
    cut = frozenset({c.nexus.initiator for c in done} | also)
    sent = undo(after, before, Place(ACCESS, HERE, cut))
    if sent is None:
        return
    states = run(after, sent)
    assert states[-1].same_but_generation(before)
    assert states[-1].hidden == before.hidden
    assert all(c.nexus.rtpi != HERE or c.nexus.initiator in cut for c in sent)
    ends = [answers(after, cut), answers(before, cut)]
    for now in states:
        for got, *either in zip(answers(now, cut), *ends, strict=True):
            assert got in either, (now, sent)


@settings(max_examples=60, deadline=None)
@given(histories(1))
def test_the_sender_of_one_command_is_among_those_that_are_named(
    history: tuple[State, State, list[Command]],
) -> None:
    before, after, done = history
    if not done or (before.same_but_generation(after) and before.generation == after.generation):
        return
    named = senders(before, after, HERE)
    assert named is None or done[0].nexus.initiator in named


@settings(max_examples=60, deadline=None)
@given(histories(1))
def test_what_a_single_host_did_for_itself_is_always_taken_back(
    history: tuple[State, State, list[Command]],
) -> None:
    before, after, done = history
    if not done:
        return
    (command,) = done
    simple = command.action in (REGISTER, RESERVE, RELEASE) and command.spec_i_pt is None
    plain = [s for s in (before, after) if s.hidden == Hidden() and all(n.isid for n in s.registrations)]
    if not simple or len(plain) != 2:
        return
    place = Place(ACCESS, HERE, frozenset({command.nexus.initiator}))
    assert undo(after, before, place) is not None, (before, after)
