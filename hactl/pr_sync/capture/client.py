"""The agent's end of the connection to the capture process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hactl.errors import Failed, HactlError, Refused
from hactl.pr_sync.capture import lines
from hactl.pr_sync.capture.protocol import Event, Held, Mounted

RETRY = 0.02
"""Seconds between attempts to connect. A capture process that was killed is back after some 0.1 s."""
PATIENCE = 1.0
"""Seconds between attempts after one that was refused."""


@dataclass(eq=False)
class _Request:
    """What was asked for and is not confirmed. ``sent``: over how many connections."""

    kind: str
    values: dict[str, object]
    answer: asyncio.Future[bool]
    sent: int = 0


class CaptureClient:
    """A :class:`hactl.pr_sync.capture.protocol.Capture` over the socket at ``path``; an async context
    manager.

    Connects, and connects again, by itself. What was asked for is sent again over a new connection: all of it
    may be done twice."""

    def __init__(self, path: Path = Path("/run/hactl") / lines.SOCKET) -> None:
        self._path = path
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._waiting: dict[str, Held] = {}
        self._requests: dict[int, _Request] = {}
        self._next = 0
        self._mount = ""
        self._units: frozenset[str] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._answered = False
        self._problem: HactlError | None = None
        self._troubled = asyncio.Event()

    async def __aenter__(self) -> CaptureClient:
        self._task = asyncio.create_task(self._run(), name="capture client")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def waiting(self) -> Mapping[str, Held]:
        return MappingProxyType(self._waiting)

    @property
    def connected(self) -> bool:
        return self._answered

    @property
    def problem(self) -> HactlError | None:
        """Why there is no connection; None while there is one, and before the first attempt has ended."""
        return self._problem

    async def trouble(self) -> HactlError:
        """Wait until there is a problem; which."""
        await self._troubled.wait()
        assert self._problem
        return self._problem

    def _trouble(self, problem: HactlError) -> None:
        self._problem = problem
        self._troubled.set()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        event = await self._events.get()
        if event is None:
            self._events.put_nowait(None)
            raise StopAsyncIteration
        return event

    async def release(self, write: str) -> bool:
        found = await self._ask("release", id=write)
        self._waiting.pop(write, None)
        return found

    async def set_units(self, serials: Iterable[str]) -> None:
        wanted = frozenset(serials)
        await self._ask("units", serials=sorted(wanted))
        self._units = wanted

    async def ping(self) -> None:
        """Returns when the capture process has answered."""
        await self._ask("ping")

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
            await self._events.put(None)
        for request in self._requests.values():
            request.answer.cancel()

    async def _ask(self, kind: str, **values: object) -> bool:
        self._next += 1
        ref = self._next
        request = _Request(kind, values, asyncio.get_running_loop().create_future())
        self._requests[ref] = request
        if self._answered:
            self._send(ref, request)
        try:
            return await request.answer
        finally:
            del self._requests[ref]

    def _send(self, ref: int, request: _Request) -> None:
        assert self._writer
        request.sent += 1
        self._writer.write(lines.encode(request.kind, ref=ref, **request.values))

    async def _run(self) -> None:
        while True:
            try:
                await self._connection()
                problem = Failed("capture-silent", f"the capture process closed {self._path}", _HINT)
            except (OSError, asyncio.IncompleteReadError, ValueError, KeyError, TypeError) as error:
                problem = Failed("capture-silent", f"{self._path}: {error!r}", _HINT)
            except Refused as error:
                self._trouble(error)
                await asyncio.sleep(PATIENCE)
                continue
            self._trouble(problem)
            await asyncio.sleep(RETRY)

    async def _connection(self) -> None:
        reader, writer = await asyncio.open_unix_connection(self._path, limit=lines.LIMIT)
        try:
            writer.write(lines.encode("hello", version=lines.VERSION))
            self._writer = writer
            seen: set[str] = set()
            while line := await reader.readline():
                self._hear(lines.decode(line), seen)
        finally:
            self._answered = False
            self._writer = None
            writer.close()

    def _hear(self, message: dict[str, Any], seen: set[str]) -> None:
        match message["type"]:
            case "hello":
                if message["version"] != lines.VERSION:
                    raise _version(f"it speaks version {message['version']}")
                if message["mount"] != self._mount:
                    self._mount = message["mount"]
                    self._waiting.clear()
                    # Nothing that was sent before can have let go of anything here.
                    for request in self._requests.values():
                        request.sent = 0
                    self._events.put_nowait(Mounted(self._mount, message["resend"]))
            case "held":
                write = Held(**{name: message[name] for name in Held.__dataclass_fields__})
                seen.add(write.id)
                if write.id not in self._waiting:
                    self._waiting[write.id] = write
                    self._events.put_nowait(write)
            case "synced":
                self._synced(seen)
            case "done" | "failed" as kind:
                self._confirm(message["ref"], kind, message)
            case "replaced":
                raise Refused(
                    "capture-replaced",
                    "another agent has connected to the capture process",
                    "one node has one agent: systemctl status hactl-agent",
                )
            case "refused":
                raise _version(message["message"])
            case other:
                raise _version(f"it sent {other!r}")

    def _synced(self, seen: set[str]) -> None:
        for gone in self._waiting.keys() - seen:
            del self._waiting[gone]
        self._answered = True
        self._problem = None
        self._troubled.clear()
        # A list that was confirmed once is sent again to a capture that may have lost it, before anything
        # else.
        if self._units is not None and not any(r.kind == "units" for r in self._requests.values()):
            assert self._writer
            self._writer.write(lines.encode("units", ref=0, serials=sorted(self._units)))
        for ref, request in self._requests.items():
            self._send(ref, request)

    def _confirm(self, ref: int, kind: str, message: dict[str, Any]) -> None:
        request = self._requests.get(ref)
        if request is None or request.answer.done():
            return
        if kind == "done":
            # Not found at the second attempt: it was let go at the first, whose answer was lost.
            request.answer.set_result(message["found"] or request.sent > 1)
        else:
            request.answer.set_exception(
                Failed(
                    "capture-units-not-kept",
                    f"the capture process cannot write down the list of units: {message['message']}",
                    "is /run full?",
                )
            )


_HINT = "systemctl status hactl-capture"


def _version(what: str) -> Refused:
    return Refused(
        "capture-version",
        f"the capture process and this agent do not understand each other: {what}",
        "systemctl restart hactl-capture hactl-agent; what waits goes on waiting meanwhile",
    )
