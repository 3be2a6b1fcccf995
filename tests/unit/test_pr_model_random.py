"""What holds after any sequence of commands."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hactl.pr_sync.commands import CONFLICT, Command, InitiatorPort, Move, Outcome, Status
from hactl.pr_sync.model import apply, conflicts
from hactl.pr_sync.rules import KernelUndefined
from hactl.pr_sync.state import Action, Nexus, State
from tests.unit.pr_commands import ACCESS, HOSTS, ISIDS, PORTS, SESSIONS, commands

COUNTED = {
    Action.RESERVE: 0,
    Action.RELEASE: 0,
    Action.CLEAR: 1,
    Action.PREEMPT: 1,
    Action.PREEMPT_AND_ABORT: 1,
    Action.REGISTER_AND_MOVE: 1,
}
REGISTERS = (Action.REGISTER, Action.REGISTER_AND_IGNORE_EXISTING_KEY)
EVERY_SESSION = [Nexus(host, isid, port) for host in HOSTS for isid in ISIDS for port in PORTS]


class Unit(RuleBasedStateMachine):
    """Three initiators with two ISIDs each on three ports, all over one unit."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State()

    @rule(data=st.data())
    def command(self, data: st.DataObject) -> None:
        command = data.draw(commands(self.state))
        before = self.state
        try:
            outcome, self.state = apply(before, command, ACCESS)
        except KernelUndefined:
            return
        self.answered(before, command, outcome)

    def answered(self, before: State, command: Command, outcome: Outcome) -> None:
        counted = self.state.generation - before.generation
        if not outcome.good:
            assert self.state is before
            assert (outcome.status is Status.CHECK_CONDITION) is bool(outcome.sense_key)
        elif command.action not in REGISTERS:
            assert counted == COUNTED[command.action]
        elif not command.service_action_key:
            assert counted == 0
            assert len(self.state.registrations) <= len(before.registrations)
        else:
            added = len(self.state.registrations) - len(before.registrations)
            assert counted == max(added, 1)

    @invariant()
    def holder_is_registered(self) -> None:
        reservation = self.state.reservation
        if reservation is None:
            assert self.state.hidden.anchor is None
        elif reservation.type.all_registrants:
            assert reservation.holder is None
            assert self.state.hidden.anchor in self.state.registrations
        else:
            assert reservation.holder in self.state.registrations
            assert self.state.hidden.anchor is None

    @invariant()
    def keys_are_not_zero(self) -> None:
        assert all(registration.key for registration in self.state.registrations.values())

    @invariant()
    def copies_are_numbered(self) -> None:
        seen: dict[tuple[str, str, int], int] = {}
        for nexus in self.state.registrations:
            port = (nexus.initiator, nexus.isid, nexus.rtpi)
            assert nexus.copy == seen.get(port, 0)
            seen[port] = nexus.copy + 1

    @invariant()
    def hidden_things_are_about_registrations(self) -> None:
        ports = {(nexus.initiator, nexus.rtpi) for nexus in self.state.registrations}
        assert self.state.hidden.ignored <= ports
        assert self.state.hidden.scope_left <= set(self.state.registrations)

    @invariant()
    def somebody_can_write_and_whoever_reads_not_writes_not(self) -> None:
        reading = [one for one in EVERY_SESSION if conflicts(self.state, one, write=False, access=ACCESS)]
        writing = [one for one in EVERY_SESSION if conflicts(self.state, one, write=True, access=ACCESS)]
        assert set(reading) <= set(writing)
        assert self.state.reservation is not None or not writing
        holder = self.state.reservation and (self.state.reservation.holder or self.state.hidden.anchor)
        assert holder is None or holder not in writing


Unit.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestUnit = Unit.TestCase


@st.composite
def states(draw: st.DrawFn) -> State:
    """A state that some commands lead to."""
    state = State(draw(st.sampled_from((0, 5, 2**32 - 2))))
    for _ in range(draw(st.integers(0, 6))):
        command = draw(commands(state))
        try:
            _, state = apply(state, command, ACCESS)
        except KernelUndefined:
            break
    return state


STRANGER = "iqn.2001-04.test:stranger"
OPEN_TO_ALL = {port: initiators | {STRANGER} for port, initiators in ACCESS.items()}


@settings(max_examples=50, deadline=None)
@given(states(), st.sampled_from(ISIDS), st.sampled_from(PORTS), st.sampled_from([*COUNTED]))
def test_strangers_change_nothing_but_by_registering(
    state: State, isid: str, port: int, action: Action
) -> None:
    move = Move(InitiatorPort(HOSTS[0], ISIDS[0]), 1) if action is Action.REGISTER_AND_MOVE else None
    command = Command(Nexus(STRANGER, isid, port), action, 1, 1, 1, move=move)
    outcome, after = apply(state, command, OPEN_TO_ALL)
    assert not outcome.good
    assert state.reservation is None or outcome == CONFLICT
    assert after is state


@settings(max_examples=50, deadline=None)
@given(states(), st.data())
def test_abort_makes_no_difference_to_the_state(state: State, data: st.DataObject) -> None:
    nexus = data.draw(SESSIONS)
    have = state.registrations.get(nexus)
    key, victim = have.key if have is not None else 1, data.draw(st.integers(0, 3))
    plain, abort = (
        apply(state, Command(nexus, action, key, victim, 5), ACCESS)
        for action in (Action.PREEMPT, Action.PREEMPT_AND_ABORT)
    )
    assert plain == abort
    assert plain[1].everything == abort[1].everything
