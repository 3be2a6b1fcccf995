"""The model of PERSISTENT RESERVE OUT against the kernel: random sequences of commands, compared throughout.

``HACTL_PR_SEQUENCES`` and ``HACTL_PR_SEED``: how many sequences, and with which random numbers.
``HACTL_PR_RECORD``: a file that gets the commands with the kernel's answers (see ``tests/unit``).
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hactl.errors import HactlError
from hactl.pr_sync.answers import Held, Keys
from hactl.pr_sync.aptpl import file_content, parse_file
from hactl.pr_sync.aptpl import state_of as state_of_file
from hactl.pr_sync.commands import Command, InitiatorPort, Move
from hactl.pr_sync.full_status import full_status_of, known_ports, state_from_full_status
from hactl.pr_sync.initiator.scsi import PrIn
from hactl.pr_sync.model import apply, conflicts
from hactl.pr_sync.parameters import encode_command
from hactl.pr_sync.rules import KernelUndefined, Table
from hactl.pr_sync.state import Action, Hidden, Nexus, State, Type
from tests.contract.pr_lio import ACCESS, ISIDS, NEXUSES, RTPIS, WATCHING, A, B, C, D, E, LioUnit, lio

pytestmark = pytest.mark.real

SEQUENCES = int(os.environ.get("HACTL_PR_SEQUENCES", "40"))
SEED = int(os.environ.get("HACTL_PR_SEED", "1"))
RECORD = os.environ.get("HACTL_PR_RECORD")
LENGTH = 30
AFTER_IMPORT = 6


@pytest.fixture
async def units(tmp_path: Path) -> AsyncIterator[tuple[LioUnit, LioUnit]]:
    """See `lio`."""
    async with lio(tmp_path, "iqn.2026-11.org.example.contract:model", 3280) as made:
        yield made


class Difference(Exception):
    """The kernel does what the model does not say."""


@dataclass
class Chances:
    """Makes commands, mostly such as have a chance in the present state."""

    rng: random.Random
    spec_i_pt: bool
    nexuses: Sequence[Nexus] = field(init=False)

    def __post_init__(self) -> None:
        # Few enough to meet each other.
        self.nexuses = self.rng.sample(NEXUSES, self.rng.choice((3, 5, 7)))

    def command(self, state: State) -> Command:
        while True:
            command = self._any(state)
            try:
                apply(state, command, ACCESS)
            except KernelUndefined:
                continue
            return command

    def _any(self, state: State) -> Command:
        rng = self.rng
        nexus = rng.choice(self.nexuses)
        record = Table(state, ACCESS).of(nexus)
        if record is None:
            action = rng.choices([*Action], (8, 1, 1, 1, 1, 1, 4, 1))[0]
        else:
            action = rng.choices([*Action], (4, 5, 2, 0.5, 2, 2, 2, 4))[0]
        key = record.key if record is not None else 0
        if rng.random() < 0.12:
            key = rng.choice((0, 1, 2, 3, 2**64 - 1))
        keys = [registration.key for registration in state.registrations.values()] or [1]
        service_action_key = rng.choice((1, 2, 3, rng.choice(keys), rng.choice(keys), 0x8000_0000_0000_00FF))
        if rng.random() < 0.2:
            service_action_key = 0
        types: list[int] = [*Type] if state.reservation is None else [state.reservation.type] * 6 + [*Type]
        return Command(
            nexus,
            action,
            key,
            service_action_key,
            rng.choice(types) if rng.random() < 0.93 else rng.randrange(16),
            0 if rng.random() < 0.93 else rng.randrange(1, 16),
            all_tg_pt=action is not Action.REGISTER_AND_MOVE
            and self._all_tg_pt(record is not None and record.all_tg_pt),
            aptpl=rng.random() < 0.5,
            spec_i_pt=self._spec_i_pt(action),
            move=self._move(action),
        )

    def _all_tg_pt(self, registered: bool) -> bool:
        return self.rng.random() < (0.85 if registered else 0.15)

    def _spec_i_pt(self, action: Action) -> tuple[InitiatorPort, ...] | None:
        likely = {Action.REGISTER: 0.3, Action.REGISTER_AND_MOVE: 0.0}.get(action, 0.03)
        if not self.spec_i_pt or self.rng.random() >= likely:
            return None
        return tuple(self._port() for _ in range(self.rng.choice((0, 1, 1, 2, 3))))

    def _move(self, action: Action) -> Move | None:
        if action is not Action.REGISTER_AND_MOVE:
            return None
        rtpi = self.rng.choice((*RTPIS.values(), *RTPIS.values(), *RTPIS.values(), 9))
        return Move(self._port(), rtpi, self.rng.random() < 0.4)

    def _port(self) -> InitiatorPort:
        rng = self.rng
        initiator = rng.choice((rng.choice(self.nexuses).initiator, A, B, C, D, E, f"{A}b"))
        isid = rng.choice((*ISIDS, *ISIDS, "000000000000", ""))
        return InitiatorPort(initiator, isid)


async def compare(unit: LioUnit, state: State, before: State, *, written: bool = True) -> bytes:
    """All that the kernel shows of a state; READ FULL STATUS is returned."""
    status = await unit.read(PrIn.READ_FULL_STATUS)
    expect("READ FULL STATUS", status, full_status_of(state).encode())
    keys = tuple(registration.key for registration in state.registrations.values())
    expect("READ KEYS", await unit.read(PrIn.READ_KEYS), Keys(state.generation, keys).encode())
    expect("READ RESERVATION", await unit.read(PrIn.READ_RESERVATION), _held(state).encode())
    if not written:
        return status
    content = unit.metadata()
    try:
        kept = state_of_file(parse_file(content), state.generation)
        known = known_ports(before, [content.removesuffix(b"\0").decode()])
        seen = state_from_full_status(status, ACCESS, known)
    except HactlError as error:
        raise Difference(f"{error}\n{content.decode()}") from None
    expect("APTPL file", _listed(kept), _listed(state))
    if state.reservation is not None and state.reservation.type.all_registrants:
        expect(
            "APTPL file's holder", kept.hidden.anchor, state.hidden.anchor or next(iter(state.registrations))
        )
    expect("state from READ FULL STATUS", _listed(seen), _listed(state))
    # The sentence for nothing at all ends in a line feed after CLEAR, and only then.
    if state.registrations:
        expect("APTPL file", content, file_content(unit.records(state)))
    return status


def _listed(state: State) -> object:
    return state.generation, list(state.registrations.items()), state.reservation


def _held(state: State) -> Held:
    held = state.reservation
    if held is None:
        return Held(state.generation)
    key = 0 if held.holder is None else state.registrations[held.holder].key
    return Held(state.generation, held.type, key)


def expect(what: str, kernel: object, model: object) -> None:
    if kernel != model:
        raise Difference(f"{what}:\n  kernel {_shown(kernel)}\n  model  {_shown(model)}")


def _shown(value: object) -> str:
    return value.hex(" ", 8) if isinstance(value, bytes) else str(value)


async def step(unit: LioUnit, state: State, command: Command) -> tuple[State, dict[str, Any]]:
    """Send one command and compare everything; also what is recorded of it."""
    wanted, after = apply(state, command, ACCESS)
    try:
        answered = await unit.send(command)
        expect("answer", answered, wanted)
        status = await compare(unit, after, state)
    except Difference as difference:
        raise Difference(f"{difference}\nafter {command}\nin {state}") from None
    cdb, data = encode_command(command)
    nexus = command.nexus
    answer = [answered.status.value, answered.sense_key, answered.asc, answered.ascq]
    return after, {
        "nexus": [nexus.initiator, nexus.isid, nexus.rtpi],
        "cdb": cdb.hex(),
        "data": data.hex(),
        "answer": answer,
        "status": status.hex(),
    }


async def medium(unit: LioUnit, state: State, nexuses: Sequence[Nexus]) -> None:
    for nexus in nexuses:
        if nexus.initiator not in ACCESS[nexus.rtpi]:
            continue
        for write in (False, True):
            kernel = await unit.conflicts(nexus, write=write)
            try:
                expect("conflict", kernel, conflicts(state, nexus, write=write, access=ACCESS))
            except Difference as difference:
                raise Difference(f"{difference}\nof {nexus}, write: {write}\nin {state}") from None


async def cleared(unit: LioUnit) -> State:
    """Without registrations, whatever was there; PRgeneration is the kernel's."""
    key = 0x6B65_79
    for action, keys in ((Action.REGISTER, (0, key)), (Action.CLEAR, (key, 0))):
        answered = await unit.send(Command(WATCHING, action, *keys))
        assert answered.good, f"{action.name}: {answered}"
    keys_read = Keys.decode(await unit.read(PrIn.READ_KEYS))
    assert keys_read.keys == ()
    return State(keys_read.generation)


async def imported(units: tuple[LioUnit, LioUnit], state: State, chances: Chances) -> None:
    """Give the state to a second unit, and go on there for a while."""
    _, copy = units
    copy.make(state)
    try:
        # The kernel lists them as their mapped LUNs come.
        listed = {
            nexus: registration
            for place in copy.mappings
            for nexus, registration in state.registrations.items()
            if (nexus.initiator, nexus.rtpi) == place
        }
        anchor = None
        if state.reservation is not None and state.reservation.type.all_registrants:
            anchor = state.hidden.anchor or next(iter(state.registrations))
        there = State(len(listed), listed, state.reservation, Hidden(anchor))
        try:
            await compare(copy, there, there, written=False)
        except Difference as difference:
            raise Difference(f"{difference}\nafter an import of {state}") from None
        await medium(copy, there, chances.nexuses)
        for _ in range(AFTER_IMPORT):
            command = chances.command(there)
            _, after = apply(there, command, ACCESS)
            if after.everything == there.everything:
                continue
            there, _ = await step(copy, there, command)
            await medium(copy, there, chances.rng.sample(chances.nexuses, 1))
    finally:
        copy.remove()


@pytest.mark.timeout(60 + 8 * SEQUENCES)
async def test_random_sequences(units: tuple[LioUnit, LioUnit]) -> None:
    unit, _ = units
    differences = []
    recorded = []
    started = time.monotonic()
    counts: dict[str, int] = {}
    for seed in range(SEED, SEED + SEQUENCES):
        chances = Chances(random.Random(seed), spec_i_pt=False)
        state = await cleared(unit)
        sequence = {"seed": seed, "generation": state.generation, "steps": []}
        steps: list[Any] = []
        try:
            for _ in range(LENGTH):
                command = chances.command(state)
                state, record = await step(unit, state, command)
                kind = f"{command.action.name} {record['answer']}"
                counts[kind] = counts.get(kind, 0) + 1
                steps.append(record)
                await medium(unit, state, chances.rng.sample(chances.nexuses, 1))
            await medium(unit, state, NEXUSES)
            await imported(units, state, chances)
        except Difference as difference:
            differences.append(f"sequence {seed}, after {len(steps)} commands: {difference}")
        sequence["steps"] = steps
        sequence["aptpl"] = unit.metadata().decode()
        recorded.append(sequence)
    print(f"{SEQUENCES} sequences in {time.monotonic() - started:.1f} s")
    print("\n".join(f"{n:5d} {kind}" for kind, n in sorted(counts.items())))
    if RECORD:
        Path(RECORD).write_text(json.dumps(recorded))
    assert not differences, "\n\n".join([f"{len(differences)} of {SEQUENCES}", *differences[:6]])
