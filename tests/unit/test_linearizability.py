"""The checker itself: histories known to be good and bad, and random executions of a register."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hactl.pr_sync.commands import CONFLICT, Command, Outcome
from hactl.pr_sync.commands import GOOD as GOOD_OUTCOME
from hactl.pr_sync.model import apply
from hactl.pr_sync.state import Action, Nexus, State
from tests.linearizability import (
    UNANSWERED,
    NotLinearizableError,
    Operation,
    Unanswered,
    UndecidedError,
    check,
)
from tests.unit.pr_commands import ACCESS, HOSTS, ISIDS, PORTS

Call = tuple[str, int]
"""``("write", value)``, ``("read", 0)``, or ``("add", value)`` (which is answered with the sum)."""

Answer = int | None


def register(state: int, call: Call) -> tuple[Answer, int]:
    """One number."""
    word, value = call
    if word == "read":
        return state, state
    if word == "add":
        return state + value, state + value
    return None, value


def op(
    start: float,
    end: float | None,
    call: str,
    answer: Answer | Unanswered = None,
    *,
    client: str = "c",
    until: float | None = None,
) -> Operation[Call, Answer]:
    """``call``: such as ``w1``, ``r`` or ``a2``."""
    words = {"w": "write", "r": "read", "a": "add"}
    return Operation(client, start, end, (words[call[0]], int(call[1:] or 0)), answer, until)


def lost(start: float, call: str, until: float | None = None) -> Operation[Call, Answer]:
    return op(start, None, call, UNANSWERED, until=until)


GOOD = {
    "nothing": [],
    "one after the other": [op(0, 1, "w1"), op(2, 3, "r", 1), op(4, 5, "w2"), op(6, 7, "r", 2)],
    "read sees a write in flight": [op(0, 9, "w1"), op(1, 2, "r", 1), op(3, 4, "r", 1)],
    "read before a write in flight": [op(0, 9, "w1"), op(1, 2, "r", 0), op(3, 4, "r", 1)],
    "two writes at once, read later": [op(0, 5, "w1"), op(1, 4, "w2"), op(6, 7, "r", 1)],
    "order is settled by a later answer": [op(0, 10, "a1", 3), op(1, 9, "a2", 2), op(11, 12, "r", 3)],
    "start at the moment of another's end": [op(0, 1, "w1"), op(1, 2, "r", 0)],
    "lost and done": [lost(0, "w1"), op(1, 2, "r", 1)],
    "lost and not done": [lost(0, "w1"), op(1, 2, "r", 0), op(8, 9, "r", 0)],
    "lost and done late": [lost(0, "w1"), op(1, 2, "r", 0), op(3, 4, "w5"), op(8, 9, "r", 1)],
    "lost, and its moment found afterwards": [
        lost(0, "w3"),
        op(1, 2, "w1"),
        op(3, 4, "a1", 4),
        op(5, 6, "r", 4),
    ],
    "lost in time": [lost(0, "w1", until=5), op(1, 2, "r", 0), op(6, 7, "r", 1)],
    "all lost": [lost(0, "w1"), lost(1, "r"), lost(2, "w2")],
    "of two that were lost one": [lost(0, "a1"), lost(0, "a2"), op(1, 2, "r", 2), op(3, 4, "r", 3)],
}

BAD = {
    # name: history, index of the answer that cannot be explained
    "stale read": ([op(0, 1, "w1"), op(2, 3, "r", 0)], 1),
    "value from nowhere": ([op(0, 1, "w1"), op(2, 3, "r", 7)], 1),
    "write seen, then not": ([op(0, 9, "w1"), op(1, 2, "r", 1), op(3, 4, "r", 0)], 2),
    "write seen before it began": ([op(5, 6, "w1"), op(1, 2, "r", 1)], 1),
    "two readers disagree on the order": (
        [
            op(0, 1, "w1"),
            op(0, 1, "w2"),
            op(2, 3, "r", 1),
            op(4, 5, "r", 2),
        ],
        3,
    ),
    "lost and done twice": ([lost(0, "a1"), op(1, 2, "r", 1), op(3, 4, "r", 2)], 2),
    "lost, done and undone": ([lost(0, "w1"), op(1, 2, "r", 1), op(3, 4, "r", 0)], 2),
    "done before it was sent": ([lost(5, "w1"), op(1, 2, "r", 1)], 1),
    "done after its node was off": ([lost(0, "w1", until=5), op(6, 7, "r", 0), op(8, 9, "r", 1)], 2),
    "both first": ([op(0, 3, "a1", 1), op(1, 4, "a2", 2)], 1),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_histories(name: str) -> None:
    history = GOOD[name]
    order = check(history, 0, register)
    assert explains(order, history)


@pytest.mark.parametrize("name", BAD)
def test_bad_histories_and_where_they_are_bad(name: str) -> None:
    history, where = BAD[name]
    with pytest.raises(NotLinearizableError) as caught:
        check(history, 0, register)
    assert caught.value.violation.at == history[where]


def explains(order: Iterable[Operation[Call, Answer]], history: list[Operation[Call, Answer]]) -> bool:
    """Whether this order has every answered operation once, keeps to time, and gives every answer."""
    order = list(order)
    if len(set(map(id, order))) != len(order) or not {id(one) for one in history if one.answered} <= set(
        map(id, order)
    ):
        return False
    for at, one in enumerate(order):
        for later in order[at + 1 :]:
            if later.last is not None and later.last < one.start:
                return False
    state = 0
    for one in order:
        answer, state = register(state, one.call)
        if one.answered and answer != one.answer:
            return False
    return True


def test_what_a_violation_says() -> None:
    first, second = op(0, 1, "w1", client="a"), op(1.5, 9, "w2", client="b")
    gone, bad, later = lost(2, "w3"), op(3, 4, "r", 0, client="a"), op(6, 7, "r", 2, client="c")
    with pytest.raises(NotLinearizableError) as caught:
        check([first, second, gone, bad, later], 0, register)
    violation = caught.value.violation
    assert violation.at is bad
    assert violation.in_flight == (second, gone)
    assert {(state, answer) for state, answer in violation.possible} == {(1, 1), (2, 2), (3, 3)}
    assert violation.order[0] is first
    text = str(caught.value)
    assert "3-4 a: ('read', 0) -> 0" in text
    assert "1.5-9 b: ('write', 2) -> None" in text
    assert "2-… c: ('write', 3) -> no answer" in text


def test_operations_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="without an end"):
        op(0, None, "r", 1)
    with pytest.raises(ValueError, match="before it began"):
        op(2, 1, "r", 1)
    with pytest.raises(ValueError, match="before it began"):
        lost(2, "w1", until=1)


def test_when_a_client_gave_up_does_not_matter() -> None:
    gave_up = Operation[Call, Answer]("c", 0, 1, ("write", 1))
    late = [gave_up, op(2, 3, "r", 0), op(4, 5, "r", 1)]
    assert explains(check(late, 0, register), late)


def test_states_may_be_told_apart_by_a_key() -> None:
    def listed(state: list[int], call: Call) -> tuple[Answer, list[int]]:
        answer, after = register(state[0], call)
        return answer, [after]

    history = GOOD["order is settled by a later answer"]
    assert explains(check(history, [0], listed, key=tuple), history)


def test_answers_may_say_less_than_the_specification() -> None:
    history = [op(0, 1, "w4"), op(2, 3, "r", -1)]
    assert check(history, 0, register, accepts=lambda expected, answer: answer in (expected, -1))
    with pytest.raises(NotLinearizableError):
        check(history, 0, register)


def execution(
    seed: int, clients: int, count: int, *, values: int, unanswered: float = 0.0
) -> list[Operation[Call, Answer]]:
    """A history of a real register: each operation takes effect at a moment between its start and its end."""
    chance = random.Random(seed)
    planned: list[tuple[float, float, float, str, Call, bool]] = []
    for number in range(clients):
        now = chance.random()
        for _ in range(count // clients):
            start = now + chance.random()
            moment = start + chance.random()
            now = moment + chance.random()
            word = chance.choice(["read", "write", "add"])
            value = 0 if word == "read" else chance.randrange(1, values + 1)
            is_lost = word != "read" and chance.random() < unanswered
            planned.append((moment, start, now, f"c{number}", (word, value), is_lost))
    state = 0
    history = []
    for _, start, end, client, call, is_lost in sorted(planned):
        if is_lost and chance.random() < 0.5:
            history.append(Operation[Call, Answer](client, start, None, call))
            continue
        answer, state = register(state, call)
        if is_lost:
            history.append(Operation[Call, Answer](client, start, None, call))
        else:
            history.append(Operation[Call, Answer](client, start, end, call, answer))
    chance.shuffle(history)
    return history


@given(st.integers(0, 2**32), st.integers(1, 8), st.sampled_from([0.0, 0.2]))
@settings(max_examples=40, deadline=None)
def test_executions_of_a_register_are_linearizable(seed: int, clients: int, unanswered: float) -> None:
    history = execution(seed, clients, 80, values=3, unanswered=unanswered)
    assert explains(check(history, 0, register), history)


SAID: list[tuple[str, Answer | Unanswered]] = [
    *(("w1", None), ("w2", None), ("w2", UNANSWERED), ("a1", UNANSWERED)),
    *(("r", value) for value in range(4)),
    *(("a1", value) for value in range(1, 4)),
]


@given(
    st.lists(
        st.builds(
            lambda start, length, said: (
                lost(start, said[0]) if said[1] is UNANSWERED else op(start, start + length, *said)
            ),
            st.integers(0, 6),
            st.integers(1, 4),
            st.sampled_from(SAID),
        ),
        max_size=5,
    )
)
@settings(max_examples=300, deadline=None)
def test_the_verdict_is_that_of_trying_every_order(history: list[Operation[Call, Answer]]) -> None:
    by_trying = any(
        explains(order, history)
        for count in range(len(history) + 1)
        for order in permutations(history, count)
    )
    try:
        order = check(history, 0, register)
    except NotLinearizableError as error:
        assert not by_trying, str(error)  # noqa: PT017
    else:
        assert explains(order, history)
        assert by_trying


@pytest.mark.parametrize(("unanswered", "limit"), [(0.0, 100_000), (0.02, 200_000)])
def test_thousands_of_operations_take_few_steps(unanswered: float, limit: int) -> None:
    history = execution(7, 8, 4000, values=1000, unanswered=unanswered)
    order = check(history, 0, register, limit=limit)
    assert len(order) >= sum(one.answered for one in history)


def test_a_fault_among_thousands_is_found_where_it_is() -> None:
    history = execution(11, 8, 4000, values=1000)
    reads = sorted((one for one in history if one.call[0] == "read"), key=lambda one: one.start)
    victim = reads[len(reads) // 2]
    broken = Operation[Call, Answer](victim.client, victim.start, victim.end, victim.call, -5)
    with pytest.raises(NotLinearizableError) as caught:
        check([broken if one is victim else one for one in history], 0, register)
    assert caught.value.violation.at is broken


READ = "read full status"


def unit(state: State, call: Command | str) -> tuple[Outcome | State, State]:
    """A unit's persistent reservations; what is read is the state without what LIO hides."""
    return (state, state) if isinstance(call, str) else apply(state, call, ACCESS)


def unit_execution(seed: int, clients: int, count: int) -> list[Operation[Command | str, Outcome | State]]:
    """A history of one unit; the answers of some commands that change it get lost."""
    chance = random.Random(seed)
    nexuses = [Nexus(host, isid, port) for host in HOSTS for isid in ISIDS for port in PORTS]
    planned: list[tuple[float, float, float, str, Command | str, bool]] = []
    for number in range(clients):
        now = chance.random()
        for _ in range(count // clients):
            start = now + chance.random()
            moment = start + chance.random()
            now = moment + chance.random()
            nexus, key = nexuses[number], number // 2 + 1
            calls: list[Command | str] = [
                READ,
                Command(nexus, Action.REGISTER_AND_IGNORE_EXISTING_KEY, 0, chance.choice([0, key, key])),
                Command(nexus, Action.REGISTER, key, chance.choice([0, key])),
                Command(nexus, Action.RESERVE, key, type=5),
                Command(nexus, Action.RELEASE, key, type=5),
                Command(nexus, Action.PREEMPT, key, chance.randrange(1, 4), type=chance.choice([1, 5])),
                Command(nexus, Action.CLEAR, key),
            ]
            (call,) = chance.choices(calls, [2, 2, 1, 1, 1, 1, 1])
            planned.append((moment, start, now, f"c{number}", call, chance.random() < 0.03))
    state = State()
    history = []
    for _, start, end, client, call, is_lost in sorted(planned, key=lambda one: one[0]):
        if not is_lost or chance.random() < 0.5:
            answer, state = unit(state, call)
        if is_lost:
            history.append(
                Operation[Command | str, Outcome | State](client, start, None, call, until=end + 5)
            )
        else:
            history.append(Operation[Command | str, Outcome | State](client, start, end, call, answer))
    return history


@pytest.mark.parametrize("seed", range(3))
def test_executions_of_a_unit_are_linearizable(seed: int) -> None:
    history = unit_execution(seed, 8, 800)
    assert len(check(history, State(), unit, key=lambda state: state.everything, limit=100_000)) > 700


def test_a_command_that_did_not_take_effect_is_found() -> None:
    history = unit_execution(3, 8, 400)
    undone = next(
        one
        for one in sorted(history, key=lambda one: one.start)[200:]
        if isinstance(one.call, Command) and one.call.action is Action.CLEAR and one.answer == CONFLICT
    )
    broken = replace(undone, answer=GOOD_OUTCOME)
    with pytest.raises(NotLinearizableError) as caught:
        check(
            [broken if one is undone else one for one in history],
            State(),
            unit,
            key=lambda state: state.everything,
        )
    violation = caught.value.violation
    assert violation.at is broken or broken in (*violation.order, *violation.in_flight)
    assert violation.at.last is not None
    assert broken.start <= violation.at.last <= broken.start + 10


def test_the_search_can_be_given_up() -> None:
    history = [*(lost(0, f"a{2**bit}") for bit in range(16)), op(1, 2, "r", -1)]
    with pytest.raises(UndecidedError):
        check(history, 0, register, limit=1000)
