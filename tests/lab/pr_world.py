"""Initiators of a test on a machine of the lab, what they are to do, and what came of it.

They run in one process (``pr_driver.py``) on n3, which exports nothing but reaches the storage network, so
all times of one run are of one clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hactl.pr_sync.answers import Keys
from hactl.pr_sync.commands import Access, Command, Outcome, Status
from hactl.pr_sync.parameters import Read, encode_command, in_cdb
from hactl.pr_sync.state import Action, Nexus
from lab import story
from lab.api import Lab

DRIVER = Path(__file__).with_name("pr_driver.py")
RESOURCE_ID = 1
ALLOCATION = 4032
"""Bytes asked for by PERSISTENT RESERVE IN: LIO writes beyond a buffer that is too short by a little."""
INITIATORS = tuple(f"iqn.2026-11.io.hactl.lab:pr-{name}" for name in "abcdef")
HOST = "pr-hosts"

Step = dict[str, Any]


def rtpi(node: str) -> int:
    """Of the resource's port at a node: resource id * 16 + node id."""
    return RESOURCE_ID * 16 + int(node.removeprefix("n"))


ACCESS: Access = {rtpi(node): frozenset(INITIATORS) for node in ("n1", "n2")}


def nexus(which: int, node: str) -> Nexus:
    """An initiator (by its place in `INITIATORS`) at a node's port."""
    return Nexus(INITIATORS[which], f"00023d00000{which}", rtpi(node))


def node_of(one: Nexus) -> str:
    """The node whose port it is."""
    return f"n{one.rtpi % 16}"


def name_of(one: Nexus) -> str:
    """``a@n1``, as the driver is told."""
    return f"{one.initiator[-1]}@{node_of(one)}"


def out(command: Command, **more: object) -> Step:
    """A PERSISTENT RESERVE OUT."""
    cdb, data = encode_command(command)
    return {"cdb": cdb.hex(), "out": data.hex(), **more}


def read(what: Read, **more: object) -> Step:
    """A PERSISTENT RESERVE IN."""
    return {"cdb": in_cdb(what, ALLOCATION).hex(), "in": ALLOCATION, **more}


@dataclass(frozen=True)
class Told:
    """A command that ended. Times in seconds of the driver's machine. ``status``: of SCSI, None if no answer
    came; then ``reason`` says why. ``number``: of a write."""

    nexus: str
    tag: int | None
    start: float
    end: float
    status: int | None
    sense: tuple[int, int, int] = (0, 0, 0)
    data: bytes = b""
    reason: str = ""
    number: int = 0
    column: int = 0

    @property
    def good(self) -> bool:
        """GOOD status."""
        return self.status == 0

    @property
    def outcome(self) -> Outcome:
        """As the model has it; ValueError for a status that PERSISTENT RESERVE OUT does not end with."""
        return Outcome(Status(self.status), *self.sense)


@dataclass(frozen=True)
class Run:
    """All that came of a run. ``lost``: sessions that ended by themselves, and why."""

    told: tuple[Told, ...]
    lost: tuple[tuple[str, str, float], ...]
    raw: str = field(repr=False, default="")

    def by_tag(self) -> dict[int, Told]:
        """Of commands with a tag."""
        return {one.tag: one for one in self.told if one.tag is not None}


def drive(lab: Lab, scripts: Mapping[Nexus, Sequence[Step]], timeout: float = 300) -> Run:
    """Have the nexuses do their steps, all at once, and wait for the end."""
    machine = lab["n3"]
    machine.write("/root/pr_driver.py", DRIVER.read_text())
    asked = [
        {
            "name": name_of(one),
            "portal": f"{story.portals(lab, node_of(one))[0]}:3260",
            "target": story.TARGET,
            "initiator": one.initiator,
            "isid": one.isid,
            "lun": 0,
            "steps": list(steps),
        }
        for one, steps in scripts.items()
    ]
    given = json.dumps(asked).encode()
    command = "PYTHONPATH=/opt/hactl/src /opt/hactl/venv/bin/python /root/pr_driver.py"
    text = machine.succeed(command, timeout=timeout, stdin=given)
    told, lost = [], []
    for line in text.splitlines():
        said = json.loads(line)
        if "lost" in said:
            lost.append((said["nexus"], said["lost"], said["at"]))
        else:
            told.append(_told(said))
    return Run(tuple(told), tuple(lost), text)


def _told(said: dict[str, Any]) -> Told:
    key, asc, ascq = said.get("sense") or (0, 0, 0)
    return Told(
        nexus=said["nexus"],
        tag=said.get("tag"),
        start=said["start"],
        end=said["end"],
        status=said.get("status"),
        sense=(key, asc, ascq),
        data=bytes.fromhex(said.get("data", "")),
        reason=said.get("unanswered", ""),
        number=said.get("number", 0),
        column=said.get("column", 0),
    )


def register(who: Nexus, key: int) -> Command:
    """Whatever was registered there before."""
    return Command(who, Action.REGISTER_AND_IGNORE_EXISTING_KEY, 0, key)


def make_clean(lab: Lab) -> int:
    """Nothing registered, nothing reserved; PRgeneration then."""
    one = nexus(0, "n1")
    steps = [out(register(one, 1)), out(Command(one, Action.CLEAR, 1)), read(Read.KEYS, tag=1)]
    run = drive(lab, {one: steps})
    keys = Keys.decode(run.by_tag()[1].data)
    assert keys.keys == ()
    return keys.generation
