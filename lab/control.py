"""The host's end of a machine's control line: see lab/guest/control.py for what goes over it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

CHUNK = 24 * 1024
"""Bytes of a file or of standard input that go into one message."""
SERIAL_WINDOW = 2048
VIRTIO_WINDOW = 1 << 18
"""Bytes under way to a machine at most, over a serial line (see lab/guest/control.py) and over a virtio port,
which has flow control of its own."""


class LineLostError(Exception):
    """The machine went away while it owed an answer."""


class Control:
    """Requests to one machine, any number at a time."""

    def __init__(self, line: socket.socket, window: int = SERIAL_WINDOW) -> None:
        line.setblocking(False)
        self._line = line
        self._window = window
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Queue[dict[str, Any] | None]] = {}
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._under_way = 0
        self._acknowledged = asyncio.Event()
        self.ready = asyncio.Event()
        self.lost = asyncio.Event()
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._transmit())]

    async def _receive(self) -> None:
        loop = asyncio.get_running_loop()
        rest = b""
        try:
            while data := await loop.sock_recv(self._line, 1 << 16):
                *lines, rest = (rest + data).split(b"\n")
                for text in lines:
                    try:
                        message = json.loads(text)
                    except ValueError:
                        continue  # the line was not raw yet: an echo of the terminal
                    if isinstance(message, dict):
                        self._handle(message)
        except OSError:
            pass
        finally:
            self.lost.set()
            self._acknowledged.set()
            self._forget()

    def _handle(self, message: dict[str, Any]) -> None:
        if "ack" in message:
            self._under_way -= message["ack"]
            self._acknowledged.set()
        elif message.get("ready"):
            if self.ready.is_set():
                # The agent in the machine was started again. It knows nothing of what its predecessor was
                # asked, and nobody acknowledges what was in the line then.
                self._forget()
                self._under_way = 0
                self._acknowledged.set()
            self.ready.set()
        elif message.get("id") in self._waiting:
            self._waiting[message["id"]].put_nowait(message)

    def _forget(self) -> None:
        for queue in self._waiting.values():
            queue.put_nowait(None)

    async def _transmit(self) -> None:
        """Put messages on the line as the window allows; each one whole, whatever becomes of who asked for
        it."""
        loop = asyncio.get_running_loop()
        while True:
            text = await self._outbox.get()
            while text and not self.lost.is_set():
                room = self._window - self._under_way
                if room <= 0:
                    self._acknowledged.clear()
                    await self._acknowledged.wait()
                    continue
                part, text = text[:room], text[room:]
                self._under_way += len(part)
                with contextlib.suppress(
                    OSError
                ):  # the receiver sees the end of the line and tells everybody
                    await loop.sock_sendall(self._line, part)

    def _send(self, **message: Any) -> None:
        if self.lost.is_set():
            raise LineLostError
        self._outbox.put_nowait(json.dumps(message).encode() + b"\n")

    async def request(self, op: str, **fields: Any) -> AsyncIterator[dict[str, Any]]:
        """Send a request and give what comes back, the message that ends it included."""
        number = next(self._ids)
        queue = self._waiting[number] = asyncio.Queue()
        try:
            self._send(id=number, op=op, **fields)
            while True:
                message = await queue.get()
                if message is None:
                    raise LineLostError
                yield message
                if "exit" in message or "error" in message:
                    return
        finally:
            del self._waiting[number]

    async def run(
        self, argv: list[str], timeout: float | None, given: AsyncIterator[bytes] | None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Run a program and give what it says: ``{"out"}``, ``{"err"}``, then ``{"exit"}`` or ``{"error"}``.

        ``given``: its standard input, read as the program takes it; None for an empty one. A generator that
        is closed before its end ends the program.
        """
        number = next(self._ids)
        queue = self._waiting[number] = asyncio.Queue()
        taken: asyncio.Queue[int] = asyncio.Queue()
        feeder: asyncio.Task[None] | None = None
        ended = False
        try:
            self._send(id=number, op="exec", argv=argv, timeout=timeout, input=given is not None)
            if given is not None:
                feeder = asyncio.create_task(self._feed(number, given, taken))
            while not ended:
                message = await queue.get()
                if message is None:
                    ended = True
                    raise LineLostError
                if "taken" in message:
                    taken.put_nowait(message["taken"])
                    continue
                ended = "exit" in message or "error" in message
                yield message
        finally:
            del self._waiting[number]
            if feeder is not None:
                feeder.cancel()
                await asyncio.gather(feeder, return_exceptions=True)
            if not ended and not self.lost.is_set():
                self._send(id=number, op="kill")

    async def _feed(self, number: int, given: AsyncIterator[bytes], taken: asyncio.Queue[int]) -> None:
        """Send a program its input, a chunk at a time, the next one when it has read the last."""
        async for data in given:
            for start in range(0, len(data), CHUNK):
                part = data[start : start + CHUNK]
                self._send(id=number, op="input", data=base64.b64encode(part).decode())
                left = len(part)
                while left > 0:
                    left -= await taken.get()
        self._send(id=number, op="input", end=True)

    async def call(self, op: str, **fields: Any) -> None:
        """A request of which only success matters."""
        async for message in self.request(op, **fields):
            if "error" in message:
                raise RuntimeError(message["error"])

    async def put(self, path: str, data: bytes, mode: int) -> None:
        """Write a file into the machine."""
        for start in range(0, max(1, len(data)), CHUNK):
            part = base64.b64encode(data[start : start + CHUNK]).decode()
            await self.call("put", path=path, data=part, mode=mode, append=start > 0)

    async def set_clock(self) -> None:
        """Give the machine the host's time."""
        await self.call("configure", time=time.time())

    async def close(self) -> None:
        """Let go of the line."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._line.close()
