"""Persistent reservations with real initiators on both nodes' ports: what one port has answered is true on
the other, also when hosts race.

``HACTL_LAB_RACES``: how often two hosts register at the same moment (30); they reserve two thirds as often.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hactl.pr_sync.answers import FullStatus, Held, Keys
from hactl.pr_sync.commands import CONFLICT, Command, InitiatorPort, Move, Outcome
from hactl.pr_sync.full_status import full_status_of
from hactl.pr_sync.model import apply
from hactl.pr_sync.parameters import Read
from hactl.pr_sync.state import Action, Nexus, State, Type
from lab import story
from lab.api import Lab
from tests.lab.conftest import EVIDENCE
from tests.lab.pr_world import (
    ACCESS,
    INITIATORS,
    Run,
    Step,
    Told,
    drive,
    make_clean,
    name_of,
    nexus,
    node_of,
    out,
    read,
    register,
)
from tests.linearizability import UNANSWERED, Operation, check

RACES = int(os.environ.get("HACTL_LAB_RACES", "30"))
READS = (Read.KEYS, Read.RESERVATION, Read.FULL_STATUS)
NODES = ("n1", "n2")
AREA = 204_800
"""First of the blocks that victims write: 100 MiB into the unit."""
DELIVERY = 0.1
"""Seconds: by how much an answer of one node may arrive later than a later one of another node."""


@pytest.fixture
def generation(hosts: Lab) -> int:
    """PRgeneration of a unit without registrations."""
    return make_clean(hosts)


def both(
    first: Nexus, second: Nexus, rounds: int, steps: Callable[[Nexus, int], list[Step]]
) -> dict[Nexus, list[Step]]:
    """Two nexuses that do the same at the same moments."""
    return {one: [step for number in range(rounds) for step in steps(one, number)] for one in (first, second)}


def test_two_hosts_register_at_the_same_moment(hosts: Lab, generation: int) -> None:
    first, second = nexus(0, "n1"), nexus(1, "n2")

    def steps(one: Nexus, number: int) -> list[Step]:
        key = 100 + number
        which = 0 if one is first else 1
        return [
            {"meet": f"register {number}"},
            out(Command(one, Action.REGISTER, 0, key), tag=number * 10 + which),
            {"meet": f"registered {number}"},
            read(Read.KEYS, tag=number * 10 + 2 + which),
            {"meet": f"unregister {number}"},
            out(Command(one, Action.REGISTER, key, 0), tag=number * 10 + 4 + which),
        ]

    run = drive(hosts, both(first, second, RACES, steps), timeout=60 + 10 * RACES)
    assert run.lost == ()
    assert [one for one in run.told if not one.good] == []
    told = run.by_tag()
    for number in range(RACES):
        for which in (0, 1):
            keys = Keys.decode(told[number * 10 + 2 + which].data)
            assert keys.keys == (100 + number, 100 + number)
            assert keys.generation == generation + 2 * (number + 1)


def test_two_hosts_reserve_at_the_same_moment(hosts: Lab, generation: int) -> None:
    first, second = nexus(0, "n1"), nexus(1, "n2")
    rounds = max(1, RACES * 2 // 3)

    def steps(one: Nexus, number: int) -> list[Step]:
        which = 0 if one is first else 1
        return [
            out(register(one, 7 + which)),
            {"meet": f"reserve {number}"},
            out(Command(one, Action.RESERVE, 7 + which, type=Type.EXCLUSIVE_ACCESS), tag=number * 10 + which),
            {"meet": f"reserved {number}"},
            # Whoever got no answer asks again.
            out(
                Command(one, Action.RESERVE, 7 + which, type=Type.EXCLUSIVE_ACCESS),
                tag=number * 10 + 2 + which,
            ),
            read(Read.RESERVATION, tag=number * 10 + 4 + which),
            {"meet": f"release {number}"},
            out(Command(one, Action.RELEASE, 7 + which, type=Type.EXCLUSIVE_ACCESS)),
        ]

    run = drive(hosts, both(first, second, rounds, steps), timeout=60 + 60 * rounds)
    told = run.by_tag()
    for number in range(rounds):
        at_once, again, seen = ([told[number * 10 + at + which] for which in (0, 1)] for at in (0, 2, 4))
        winners = [which for which in (0, 1) if at_once[which].good]
        assert len(winners) == 1, (number, at_once)
        winner = winners[0]
        loser = 1 - winner
        assert at_once[loser].status in (None, CONFLICT.status.value), at_once[loser]
        assert again[winner].good
        assert again[loser].outcome == CONFLICT
        assert {one.data[8:24] for one in seen} == {Held(0, Type.EXCLUSIVE_ACCESS, 7 + winner).encode()[8:24]}
    cut = sum(told[number * 10 + which].status is None for number in range(rounds) for which in (0, 1))
    print(f"{rounds} races: {cut} losers were cut off, {rounds - cut} met with a conflict")


def every_action(near: str, far: str) -> list[Command]:
    """Each service action sent through ``near`` with effect, also on what was made through ``far``."""
    a, b, c, d = (nexus(which, near) for which in range(4))
    x, y = nexus(0, far), nexus(1, far)
    we, ea_all = Type.WRITE_EXCLUSIVE, Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS
    reserved = [
        one
        for type_ in Type
        for one in (
            Command(a, Action.RESERVE, 0x11, type=type_),
            Command(a, Action.RELEASE, 0x11, type=type_),
        )
    ]
    return [
        Command(a, Action.REGISTER, 0, 0x10),
        Command(a, Action.REGISTER, 0x10, 0x11),
        Command(b, Action.REGISTER_AND_IGNORE_EXISTING_KEY, 0, 0x20),
        Command(x, Action.REGISTER, 0, 0x30),
        Command(y, Action.REGISTER, 0, 0x40, aptpl=True),
        *reserved,
        Command(a, Action.RESERVE, 0x11, type=we),
        Command(b, Action.RESERVE, 0x20, type=we),
        Command(a, Action.REGISTER_AND_MOVE, 0x11, 0x50, move=Move(port(c), c.rtpi)),
        Command(c, Action.REGISTER_AND_MOVE, 0x50, 0x60, move=Move(port(x), x.rtpi, unregister=True)),
        Command(b, Action.PREEMPT, 0x20, 0x60, type=Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY),
        Command(b, Action.PREEMPT_AND_ABORT, 0x20, 0x40, type=we),
        Command(b, Action.RELEASE, 0x20, type=Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY),
        Command(a, Action.REGISTER, 0x11, 0),
        Command(b, Action.CLEAR, 0x20),
        Command(d, Action.REGISTER, 0, 0x70, all_tg_pt=True),
        Command(d, Action.RESERVE, 0x70, type=ea_all),
        Command(d, Action.CLEAR, 0x70),
    ]


def port(one: Nexus) -> InitiatorPort:
    return InitiatorPort(one.initiator, one.isid)


@pytest.mark.parametrize(("near", "far"), [NODES, NODES[::-1]])
def test_what_was_answered_is_true_through_every_port(
    hosts: Lab, generation: int, near: str, far: str
) -> None:
    commands = every_action(near, far)
    scripts: dict[Nexus, list[Step]] = {nexus(5, node): [] for node in NODES}
    for command in commands:
        scripts.setdefault(command.nexus, [])
    for number, command in enumerate(commands):
        for one, steps in scripts.items():
            steps.append({"meet": f"before {number}"})
            if one == command.nexus:
                steps.append(out(command, tag=number * 10))
            steps.append({"meet": f"after {number}"})
            if one.initiator == INITIATORS[5]:
                steps += [
                    read(what, tag=number * 10 + 1 + NODES.index(name_of(one)[2:]) + 2 * at)
                    for at, what in enumerate(READS)
                ]
    run = drive(hosts, scripts, timeout=600)
    assert run.lost == ()
    told = run.by_tag()
    state = State(generation)
    for number, command in enumerate(commands):
        expected, state = apply(state, command, ACCESS)
        assert told[number * 10].outcome == expected, command
        for at, what in enumerate(READS):
            here, there = (told[number * 10 + 1 + which + 2 * at] for which in (0, 1))
            assert here.data == there.data, (what, command)
            model = answer_to(state, what)
            assert here.data[: len(model)] == model, (what, command, state)


def answer_to(state: State, what: Read) -> bytes:
    """What the model says to PERSISTENT RESERVE IN."""
    status = full_status_of(state)
    match what:
        case Read.FULL_STATUS:
            return status.encode()
        case Read.KEYS:
            return Keys(state.generation, tuple(one.key for one in status.descriptors)).encode()
        case Read.RESERVATION if state.reservation is None:
            return Held(state.generation).encode()
        case Read.RESERVATION:
            assert state.reservation is not None
            holder = state.reservation.holder
            key = 0 if holder is None else state.registrations[holder].key
            return Held(state.generation, state.reservation.type, key).encode()
        case _:
            raise AssertionError(what)


@pytest.mark.parametrize("type_", [Type.WRITE_EXCLUSIVE, Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY])
@pytest.mark.parametrize("action", [Action.PREEMPT, Action.PREEMPT_AND_ABORT])
def test_a_preempt_through_the_standby_port_stops_the_victims_writes(
    hosts: Lab, generation: int, action: Action, type_: Type
) -> None:
    active, standby = story.active_node(hosts), story.standby_node(hosts)
    victim, preemptor, looker = nexus(0, active), nexus(1, standby), nexus(1, active)
    depth = 4
    look = {"cdb": f"28 00 {AREA:08x} 00 {depth:04x} 00".replace(" ", ""), "in": 512 * depth}
    run = drive(
        hosts,
        {
            victim: [
                out(register(victim, 1)),
                out(Command(victim, Action.RESERVE, 1, type=type_), tag=1),
                {"meet": "go"},
                {"flood": "over", "lba": AREA, "depth": depth, "most": 60.0},
            ],
            preemptor: [
                out(register(preemptor, 2)),
                {"meet": "go"},
                {"pause": 2.0},
                out(Command(preemptor, action, 2, 1, type=type_), tag=2),
                {"meet": "look"},
            ],
            looker: [
                out(register(looker, 2)),
                {"meet": "go"},
                {"meet": "look"},
                {**look, "tag": 3},
                {"pause": 2.0},
                {"set": "over"},
                {"pause": 0.5},
                {**look, "tag": 4},
            ],
        },
    )
    told = run.by_tag()
    assert told[1].good
    assert told[2].good, told[2]
    writes = [one for one in run.told if one.number]
    done = told[2].end
    before = [one for one in writes if one.good and one.end < told[2].start]
    assert len(before) > 4 * depth
    assert [one for one in writes if one.start > done and one.good] == []
    assert [one for one in writes if one.good and one.end > done + DELIVERY] == []
    assert any(one.start > done and one.status == CONFLICT.status.value for one in writes)
    assert told[3].good
    assert told[4].good
    # What had not reached the disk by then never does.
    assert told[3].data == told[4].data
    for column in range(depth):
        on_disk = int.from_bytes(told[3].data[512 * column : 512 * column + 8], "big")
        mine = [one for one in writes if one.column == column]
        last = max(one.number for one in mine if one.good)
        maybe = {one.number for one in mine if one.start <= done and not one.good}
        assert on_disk in {last} | {number for number in maybe if number > last}


@dataclass(frozen=True)
class Look:
    """A PERSISTENT RESERVE IN of a history."""

    what: Read


Call = Command | Look
Answer = Outcome | tuple[object, ...]


def seen(what: Read, data: bytes) -> tuple[object, ...]:
    """An answer without the order of registrations: concurrent ones come in different orders on each node.
    And without PRgeneration: LIO counts a moment after it changed the rest, and counts what is taken back."""
    match what:
        case Read.KEYS:
            return tuple(sorted(Keys.decode(data).keys))
        case Read.RESERVATION:
            held = Held.decode(data)
            return held.type, held.key
        case _:
            return (frozenset(FullStatus.decode(data).descriptors),)


def uncounted(state: State) -> Hashable:
    """All of a state but PRgeneration."""
    return replace(state, generation=0).everything


STEPS = 25
"""Commands of each nexus in a random history."""

TAKEN_BACK = 1.0
"""Seconds after an initiator has lost its connection in which its command is taken back."""


def specification(state: State, call: Call) -> tuple[Answer, State]:
    """The model, for the checker."""
    if isinstance(call, Look):
        return seen(call.what, answer_to(state, call.what)), state
    return apply(state, call, ACCESS)


def some_call(rng: random.Random, one: Nexus, keys: Mapping[str, int]) -> Call:
    """Something that has a chance to be good."""
    key = keys[one.initiator]
    other = rng.choice([value for name, value in keys.items() if name != one.initiator])
    type_ = rng.choice((Type.WRITE_EXCLUSIVE, Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY))
    kinds: dict[Callable[[], Call], int] = {
        lambda: register(one, key): 6,
        lambda: Command(one, Action.REGISTER, 0, key): 2,
        lambda: Command(one, Action.REGISTER, key, 0): 2,
        lambda: Command(one, Action.RESERVE, key, type=type_): 5,
        lambda: Command(one, Action.RELEASE, key, type=type_): 3,
        lambda: Command(one, Action.PREEMPT, key, other, type=type_): 2,
        lambda: Command(one, Action.PREEMPT_AND_ABORT, key, other, type=type_): 1,
        lambda: Command(one, Action.CLEAR, key): 1,
        lambda: Look(rng.choice(READS)): 8,
    }
    return rng.choices([*kinds], [*kinds.values()])[0]()


def as_step(call: Call, tag: int, delay: float) -> Step:
    if isinstance(call, Look):
        return read(call.what, tag=tag, delay=delay)
    # Not together with others through the same node: while one of them is held, or is taken back, LIO would
    # wait for it in a busy loop, which on a machine with one processor does not end.
    alone = call.action in (Action.PREEMPT, Action.PREEMPT_AND_ABORT, Action.CLEAR)
    return out(call, tag=tag, delay=delay, turn=node_of(call.nexus), alone=alone)


def operation(call: Call, told: Told) -> Operation[Call, Answer]:
    """For the checker."""
    if told.status is None:
        return Operation(told.nexus, told.start, told.end, call, UNANSWERED)
    if isinstance(call, Look):
        assert told.good, told
        return Operation(told.nexus, told.start, told.end, call, seen(call.what, told.data))
    return Operation(told.nexus, told.start, told.end, call, told.outcome)


def unsettled(look: Told, changes: Iterable[Told]) -> bool:
    """Whether an answer may show what a command through the same node did that was not answered yet: LIO has
    one state only, and shows it before the command is in the log, and when it is taken back in the end."""
    return any(
        (one.status is None or one.good)
        and one.nexus[2:] == look.nexus[2:]
        and one.start < look.end
        and look.start < one.end + (TAKEN_BACK if one.status is None else 0)
        for one in changes
    )


def test_a_random_history_is_linearizable(
    hosts: Lab, generation: int, request: pytest.FixtureRequest
) -> None:
    seed = int(os.environ.get("HACTL_LAB_SEED") or random.SystemRandom().randrange(2**32))
    print(f"HACTL_LAB_SEED={seed}")
    rng = random.Random(seed)
    nexuses = [nexus(which, node) for which in range(3) for node in NODES]
    keys = {name: number for number, name in enumerate(INITIATORS[:3], 1)}
    tags = itertools.count(1)
    calls: dict[int, Call] = {}
    scripts: dict[Nexus, list[Step]] = {}
    for one in nexuses:
        steps = []
        for _ in range(STEPS):
            tag = next(tags)
            calls[tag] = some_call(rng, one, keys)
            steps.append(as_step(calls[tag], tag, rng.choice((0.0, 0.1, 0.5, 2.0))))
        tag = next(tags)
        calls[tag] = Look(Read.FULL_STATUS)
        scripts[one] = [*steps, {"meet": "end"}, read(Read.FULL_STATUS, tag=tag)]
    run = drive(hosts, scripts, timeout=900)
    keep(run, calls, request.node.name, seed)
    told = run.by_tag()
    changes = [told[tag] for tag, call in calls.items() if isinstance(call, Command)]
    looks = {tag for tag, call in calls.items() if isinstance(call, Look)}
    unsure = {tag for tag in looks if unsettled(told[tag], changes)}
    check(
        [operation(call, told[tag]) for tag, call in calls.items() if tag not in unsure],
        State(generation),
        specification,
        key=uncounted,
    )
    lost = len(run.lost)
    good = sum(isinstance(call, Command) and told[tag].good for tag, call in calls.items())
    print(
        f"{len(calls)} commands, {good} of them changed something or could have, {lost} sessions cut, "
        f"{len(unsure)} answers left out"
    )
    assert good > 20
    assert len(looks - unsure) > 10
    # In the end everybody has come to rest, and is told the same through every node.
    last = {told[tag].data for tag in list(calls) if tag % (STEPS + 1) == 0}
    assert len({FullStatus.decode(data).generation for data in last}) == 1


def keep(run: Run, calls: Mapping[int, Call], name: str, seed: int) -> Path:
    """The history as a file; a failure of the check says what is wrong in it."""
    EVIDENCE.mkdir(parents=True, exist_ok=True)
    path = EVIDENCE / f"{name}.jsonl"
    text = "".join(f"# {tag} {call}\n" for tag, call in calls.items())
    path.write_text(f"# HACTL_LAB_SEED={seed}\n{text}{run.raw}")
    return path
