"""The model of PERSISTENT RESERVE OUT against the kernel: random sequences of commands, compared throughout.

``HACTL_PR_SEEDS``: of the random numbers, one for each sequence.
``HACTL_PR_RECORD``: a folder for the commands with the kernel's answers (``tests/unit/data/pr-vectors``).
``HACTL_PR_SPEC_I_PT=1``: SPEC_I_PT, too; only where the kernel is thrown away afterwards.
"""

from __future__ import annotations

import json
import os
import platform
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hactl.errors import HactlError
from hactl.pr_sync.answers import Held, Keys
from hactl.pr_sync.aptpl import file_content, parse_file
from hactl.pr_sync.aptpl import state_of as state_of_file
from hactl.pr_sync.commands import Command, InitiatorPort, Move, Outcome
from hactl.pr_sync.full_status import full_status_of, known_ports, state_from_full_status
from hactl.pr_sync.initiator.scsi import PrIn
from hactl.pr_sync.model import apply, conflicts
from hactl.pr_sync.parameters import encode_command
from hactl.pr_sync.rules import KernelUndefined, Table
from hactl.pr_sync.state import Action, Hidden, Nexus, State, Type
from tests.contract.pr_lio import ACCESS, ISIDS, NEXUSES, RTPIS, WATCHING, A, B, C, D, E, LioUnit, lio

pytestmark = pytest.mark.real
RECORD = os.environ.get("HACTL_PR_RECORD")
LENGTH = 30
AFTER_IMPORT = 6


def seeds(text: str) -> list[int]:
    """``1-40,77``: one sequence for each."""
    ends = [part.partition("-") for part in text.split(",")]
    return [seed for first, _, last in ends for seed in range(int(first), int(last or first) + 1)]


SEEDS = seeds(os.environ.get("HACTL_PR_SEEDS", "1-40"))


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
            if kernels_differ(state, command):
                continue
            try:
                apply(state, command, ACCESS)
            except KernelUndefined:
                continue
            return command

    def _any(self, state: State) -> Command:
        rng = self.rng
        table = Table(state, ACCESS)
        nexus = rng.choice(self.nexuses)
        held = None if table.holder is None else table.holder.nexus
        if held is not None and held in self.nexuses and rng.random() < 0.35:
            nexus = held
        record = table.of(nexus)
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
        unregister = self.rng.random() < 0.3
        if self.rng.random() < 0.6:
            to = self.rng.choice(self.nexuses)
            return Move(InitiatorPort(to.initiator, to.isid), to.rtpi, unregister)
        return Move(self._port(), self.rng.choice((*RTPIS.values(), 9)), unregister)

    def _port(self) -> InitiatorPort:
        rng = self.rng
        initiator = rng.choice((rng.choice(self.nexuses).initiator, A, B, C, D, E, f"{A}b"))
        isid = rng.choice((*ISIDS, *ISIDS, "000000000000", ""))
        return InitiatorPort(initiator, isid)


def kernels_differ(state: State, command: Command) -> bool:
    """Whether LIO answers by its version: a TYPE or SCOPE that does not exist ends a PREEMPT before most
    other checks in Linux 6.12, and after them, and only if it would take a reservation over, in 7.2.
    """
    if command.action not in (Action.PREEMPT, Action.PREEMPT_AND_ABORT):
        return False
    if not command.scope and command.type in [*Type]:
        return False
    table, victim = Table(state, ACCESS), command.service_action_key
    record = table.of(command.nexus)
    if record is None or record.key != command.key or table.holder is None:
        return True
    return victim != table.holder.key and not (table.type.all_registrants and not victim)


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
        records = parse_file(content)
        kept = state_of_file(records, state.generation)
        known = known_ports(before, [content.removesuffix(b"\0").decode()])
        seen = state_from_full_status(status, ACCESS, known)
    except HactlError as error:
        raise Difference(f"{error}\n{content.decode()}") from None
    scope = max((record.scope for record in records), default=0)
    moved_back = state.reservation is not None and state.reservation.holder in state.hidden.scope_left
    expect("scope in the APTPL file", scope > 0, moved_back)
    expect("APTPL file", _listed(kept), _listed(state))
    if state.reservation is not None and state.reservation.type.all_registrants:
        expect(
            "APTPL file's holder", kept.hidden.anchor, state.hidden.anchor or next(iter(state.registrations))
        )
    expect("state from READ FULL STATUS", _listed(seen), _listed(state))
    # The sentence for nothing at all ends in a line feed after CLEAR, and only then.
    if state.registrations:
        expect("APTPL file", content, file_content(unit.records(state, scope)))
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


async def step(unit: LioUnit, state: State, command: Command) -> tuple[State, Outcome, bytes]:
    """Send one command and compare everything: the state after it, its answer, READ FULL STATUS."""
    wanted, after = apply(state, command, ACCESS)
    try:
        answered = await unit.send(command)
        expect("answer", answered, wanted)
        status = await compare(unit, after, state)
    except Difference as difference:
        raise Difference(f"{difference}\nafter {command}\nin {state}") from None
    return after, answered, status


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
        chances.spec_i_pt = False
        for _ in range(AFTER_IMPORT):
            command = chances.command(there)
            _, after = apply(there, command, ACCESS)
            if after.everything == there.everything:
                continue
            there, _, _ = await step(copy, there, command)
            await medium(copy, there, chances.rng.sample(chances.nexuses, 1))
    finally:
        copy.remove()


class Recorder:
    """What was sent and answered, for ``tests/unit/test_pr_vectors.py``."""

    def __init__(self) -> None:
        self._sequences: list[dict[str, object]] = []
        self.counts: Counter[str] = Counter()

    def begin(self, seed: int, state: State) -> None:
        self._steps: list[list[object]] = []
        self._status = b""
        self._sequences.append({"seed": seed, "generation": state.generation, "steps": self._steps})

    def step(self, command: Command, answered: Outcome, status: bytes) -> None:
        cdb, data = encode_command(command)
        sense = bytes([answered.sense_key, answered.asc, answered.ascq])
        answer = bytes([answered.status.value]) + (b"" if answered.good else sense)
        # The status only where it has changed.
        shown = [] if status == self._status else [status.hex()]
        self._status = status
        self._steps.append([NEXUSES.index(command.nexus), cdb.hex(), data.hex(), answer.hex(), *shown])
        self.counts[f"{command.action.name} {answer.hex()}"] += 1

    def end(self, content: bytes) -> None:
        self._sequences[-1]["aptpl"] = content.decode()

    def save(self, path: Path) -> None:
        system = f"{platform.system()} {platform.release()}"
        whole = {
            "kernel": system,
            "access": [[rtpi, sorted(initiators)] for rtpi, initiators in ACCESS.items()],
            "nexuses": [[nexus.initiator, nexus.isid, nexus.rtpi] for nexus in NEXUSES],
            "sequences": self._sequences,
        }
        path.write_text(json.dumps(whole, separators=(",", ":")).replace("],[", "],\n[") + "\n")


async def run(units: tuple[LioUnit, LioUnit], name: str, *, spec_i_pt: bool = False) -> None:
    unit, _ = units
    recorder = Recorder()
    differences = []
    for seed in SEEDS:
        chances = Chances(random.Random(seed), spec_i_pt)
        state = await cleared(unit)
        recorder.begin(seed, state)
        try:
            for _ in range(LENGTH):
                command = chances.command(state)
                state, answered, status = await step(unit, state, command)
                recorder.step(command, answered, status)
                await medium(unit, state, chances.rng.sample(chances.nexuses, 1))
            recorder.end(unit.metadata())
            await medium(unit, state, NEXUSES)
            await imported(units, state, chances)
        except Difference as difference:
            differences.append(f"seed {seed}: {difference}")
    print("\n".join(f"{n:5d} {kind}" for kind, n in sorted(recorder.counts.items())))
    if RECORD:
        recorder.save(Path(RECORD) / f"{name}.json")
    assert not differences, "\n\n".join([f"{len(differences)} of {len(SEEDS)}", *differences[:6]])


@pytest.mark.timeout(60 + 8 * len(SEEDS))
async def test_random_sequences(tmp_path: Path) -> None:
    async with lio(tmp_path, "model") as units:
        await run(units, "random")


if os.environ.get("HACTL_PR_SPEC_I_PT") == "1":

    @pytest.mark.timeout(60 + 8 * len(SEEDS))
    async def test_random_sequences_with_spec_i_pt(tmp_path: Path) -> None:
        """LIO never lets go of a mapped LUN on which SPEC_I_PT came or which it named: the target stays until
        a reboot."""
        async with lio(tmp_path, f"t{time.time_ns():x}", lasting=True) as units:
            await run(units, "spec-i-pt", spec_i_pt=True)
