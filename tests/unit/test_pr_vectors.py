"""The model and the codecs against what a kernel answered, recorded by ``tests/contract/test_pr_model.py``.

A file holds ``access`` (RTPIs with the initiators that have the unit there, in the kernel's order),
``nexuses`` and ``sequences``. A sequence starts without registrations at PRgeneration ``generation``; each of
its ``steps`` is the number of a nexus, command block, parameter list, answer (status; unless GOOD, sense
key, ASC, ASCQ) and, where it has changed, READ FULL STATUS. ``aptpl`` is the APTPL file at the end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hactl.pr_sync.answers import FullStatus
from hactl.pr_sync.aptpl import NOTHING, file_content, parse_file
from hactl.pr_sync.aptpl import state_of as state_of_file
from hactl.pr_sync.commands import CONFLICT, LOGICAL_UNIT_NOT_SUPPORTED, Access, Outcome, Status
from hactl.pr_sync.full_status import full_status_of, state_from_full_status
from hactl.pr_sync.model import apply
from hactl.pr_sync.parameters import BadParameters, decode_command, encode_command
from hactl.pr_sync.state import Nexus, State

FOLDER = Path(__file__).parent / "data" / "pr-vectors"


def sequences() -> list[Any]:
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        whole = json.loads(path.read_text())
        access = {rtpi: frozenset(initiators) for rtpi, initiators in whole["access"]}
        nexuses = [Nexus(*nexus) for nexus in whole["nexuses"]]
        for one in whole["sequences"]:
            found.append(pytest.param(access, nexuses, one, id=f"{path.stem}-{one['seed']}"))
    return found


def listed(state: State) -> object:
    return state.generation, list(state.registrations.items()), state.reservation


def check_status(status: bytes, state: State, access: Access) -> None:
    assert full_status_of(state).encode() == status
    assert FullStatus.decode(status).encode() == status
    assert listed(state_from_full_status(status, access, state.registrations)) == listed(state)


@pytest.mark.parametrize(("access", "nexuses", "recorded"), sequences())
def test_a_recorded_sequence(access: Access, nexuses: list[Nexus], recorded: dict[str, Any]) -> None:
    state = State(recorded["generation"])
    status = b""
    for number, block, parameters, answer, *changed in recorded["steps"]:
        cdb, data = bytes.fromhex(block), bytes.fromhex(parameters)
        answered = Outcome(Status(bytes.fromhex(answer)[0]), *bytes.fromhex(answer)[1:])
        possible: tuple[Outcome, ...]
        try:
            command = decode_command(nexuses[number], cdb, data)
        except BadParameters as error:
            # Access and reservation are looked at before the parameters.
            possible = (error.outcome, CONFLICT, LOGICAL_UNIT_NOT_SUPPORTED)
        else:
            assert encode_command(command) == (cdb, data)
            outcome, state = apply(state, command, access)
            possible = (outcome,)
        assert answered in possible
        status = bytes.fromhex(changed[0]) if changed else status
        check_status(status, state, access)
    content = recorded["aptpl"].encode()
    records = parse_file(content)
    assert listed(state_of_file(records, state.generation)) == listed(state)
    if state.registrations:
        assert file_content(records) == content
    else:
        assert content.rstrip(b"\n\0") == NOTHING.encode()


def test_the_recordings_are_there() -> None:
    steps = [step for one in sequences() for step in one.values[2]["steps"]]
    assert len(steps) > 300
    actions = {int(step[1][2:4], 16) for step in steps if step[3] == "00"}
    assert actions == set(range(8))
    # A reservation that was moved away and back, and a registration that is there twice.
    files = [parse_file(one.values[2]["aptpl"].encode()) for one in sequences()]
    assert any(record.scope for records in files for record in records)
    assert any(nexus.copy for records in files for nexus in state_of_file(records, 0).registrations)
