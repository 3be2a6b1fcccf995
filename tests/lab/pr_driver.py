"""Many initiators in one process, so that all they did is told by one clock; runs on a machine of the lab.

Standard input: a JSON list of nexuses, each with ``name``, ``portal``, ``target``, ``initiator``, ``isid``,
``lun`` and ``steps``, which it takes one after another; all nexuses go on at once. A step is one of

- ``{"cdb": hex, "out": hex}`` or ``{"cdb": hex, "in": bytes}``: a command; with ``tag`` if one is given, and
  sent after ``delay`` seconds; with ``turn``, a name, and ``alone``: not while another one of that name is
  under way that has ``alone`` set, and if it has so itself, while any is. One that got no answer is under way
  for ``TAKEN_BACK`` seconds more: the node sends commands of its own in this one's name then
- ``{"flood": event, "lba": n, "depth": n, "most": seconds}``: numbered writes of one block, back to back,
  ``depth`` of them at once and each to a block of its own from ``lba`` on, until the event is set
- ``{"meet": name}``: go on when every nexus that has a step of this name has come to it
- ``{"set": event}``, ``{"await": event}``, ``{"pause": seconds}``

Standard output: a line of JSON for each command: ``nexus``, ``start`` and ``end`` (CLOCK_MONOTONIC, seconds),
and ``status``, ``sense`` and ``data``, or ``unanswered`` with the reason; ``tag`` as given, or ``number`` of
a write. Between them ``{"nexus": name, "lost": reason, "at": time}`` for each session that ended by itself;
after it the nexus logs in again. Unit attentions and BUSY are put up with, except by writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from typing import Any

from hactl.errors import Failed, HactlError, Unknown
from hactl.pr_sync.initiator.connect import log_in
from hactl.pr_sync.initiator.scsi import ONCE, PATIENT, Patience, execute
from hactl.pr_sync.initiator.session import Result, Session

BLOCK = 512
LOGIN_FOR = 30.0
"""Seconds for which a login is tried again."""
ANSWER_IN = 12.0
"""Seconds without an answer after which a session is given up; open-iscsi takes ten."""
LOGIN_AGAIN = 0.2
TAKEN_BACK = 2.0
"""Seconds after a lost connection in which the node takes back what was sent on it; nothing tells when."""


class Turns:
    """Whoever has to be alone is so; the others may be many."""

    def __init__(self) -> None:
        self._free = asyncio.Condition()
        self._many = 0
        self._alone = False

    @contextlib.asynccontextmanager
    async def taken(self, *, alone: bool) -> AsyncIterator[None]:
        async with self._free:
            await self._free.wait_for(lambda: not self._alone and not (alone and self._many))
            self._many += not alone
            self._alone = alone
        try:
            yield
        finally:
            async with self._free:
                self._many -= not alone
                self._alone = False
                self._free.notify_all()


class World:
    """What nexuses share."""

    def __init__(self, nexuses: list[dict[str, Any]]) -> None:
        meetings = Counter(step["meet"] for nexus in nexuses for step in nexus["steps"] if "meet" in step)
        self.meetings = {name: asyncio.Barrier(parties) for name, parties in meetings.items()}
        self._events: dict[str, asyncio.Event] = {}
        self.turns: defaultdict[str, Turns] = defaultdict(Turns)

    def event(self, name: str) -> asyncio.Event:
        return self._events.setdefault(name, asyncio.Event())


class Initiator:
    """One nexus."""

    def __init__(self, said: dict[str, Any], world: World) -> None:
        self.name = str(said["name"])
        self._said = said
        self._world = world
        self._session: Session | None = None
        self._login = asyncio.Lock()

    async def run(self) -> None:
        await self._ready()
        for step in self._said["steps"]:
            await asyncio.sleep(step.get("delay", 0))
            if "meet" in step:
                await self._ready()
                await self._world.meetings[step["meet"]].wait()
            elif "set" in step:
                self._world.event(step["set"]).set()
            elif "await" in step:
                await self._world.event(step["await"]).wait()
            elif "pause" in step:
                await asyncio.sleep(step["pause"])
            elif "flood" in step:
                await self._flood(step)
            else:
                expected = step.get("in", 0)
                out = bytes.fromhex(step.get("out", ""))
                cdb, tag = bytes.fromhex(step["cdb"]), step.get("tag")
                if "turn" in step:
                    async with self._world.turns[step["turn"]].taken(alone=step["alone"]):
                        if not await self._command(cdb, out, expected, PATIENT, tag=tag):
                            await asyncio.sleep(TAKEN_BACK)
                else:
                    await self._command(cdb, out, expected, PATIENT, tag=tag)
        session = await self._ready()
        await session.logout()

    async def _flood(self, step: dict[str, Any]) -> None:
        over = self._world.event(step["flood"])
        end = time.monotonic() + step["most"]

        async def one(column: int) -> None:
            number = 0
            while not over.is_set() and time.monotonic() < end:
                number += 1
                lba = (step["lba"] + column).to_bytes(4, "big")
                cdb = b"\x2a\x00" + lba + b"\x00\x00\x01\x00"
                await self._command(
                    cdb, number.to_bytes(8, "big") * (BLOCK // 8), 0, ONCE, number=number, column=column
                )

        async with asyncio.TaskGroup() as group:
            for column in range(step["depth"]):
                group.create_task(one(column))

    async def _command(
        self, cdb: bytes, out: bytes, expected: int, patience: Patience, **known: object
    ) -> bool:
        """Send it, again if it certainly was not sent, and tell what came of it. Whether it was answered."""
        end = time.monotonic() + LOGIN_FOR
        while True:
            session = await self._ready()
            told: dict[str, object] = {"nexus": self.name, **known, "start": time.monotonic()}
            try:
                result = await execute(
                    session, cdb, lun=self._said["lun"], data_out=out, data_in=expected, patience=patience
                )
            except Unknown as error:
                told |= {"end": time.monotonic(), "unanswered": error.message}
            except Failed:
                if time.monotonic() > end:
                    raise
                continue
            else:
                told |= {"end": time.monotonic(), **_answer(result)}
            print(json.dumps(told), flush="number" not in known)
            return "unanswered" not in told

    async def _ready(self) -> Session:
        """The session, a new one if it ended."""
        async with self._login:
            if self._session is not None:
                if self._session.end is None:
                    return self._session
                lost = {"nexus": self.name, "lost": self._session.end, "at": time.monotonic()}
                print(json.dumps(lost), flush=True)
                await self._session.close()
                self._session = None
            end = time.monotonic() + LOGIN_FOR
            while self._session is None:
                try:
                    self._session = await log_in(
                        self._said["portal"],
                        self._said["target"],
                        self._said["initiator"],
                        self._said["isid"],
                        digests=("None",),
                        timeout=ANSWER_IN,
                    )
                except HactlError as error:
                    if time.monotonic() > end:
                        raise
                    print(f"{self.name}: {error}", file=sys.stderr, flush=True)
                    await asyncio.sleep(LOGIN_AGAIN)
            return self._session


def _answer(result: Result) -> dict[str, object]:
    sense = result.sense
    return {
        "status": int(result.status),
        "sense": None if sense is None else [int(sense.key), sense.asc, sense.ascq],
        "data": result.data.hex(),
    }


async def main() -> None:
    """Read, run, tell."""
    nexuses = json.load(sys.stdin)
    world = World(nexuses)
    async with asyncio.TaskGroup() as group:
        for said in nexuses:
            group.create_task(Initiator(said, world).run())


if __name__ == "__main__":
    asyncio.run(main())
