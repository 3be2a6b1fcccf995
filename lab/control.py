"""The host's end of a machine's control line: see lab/guest/control.py for what goes over it."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

CHUNK = 24 * 1024
WINDOW = 2048
"""Bytes under way to a machine at most: see lab/guest/control.py."""


class LineLost(Exception):
    """The machine went away while it owed an answer."""


class Control:
    """Requests to one machine, any number at a time."""

    def __init__(self, line: socket.socket) -> None:
        line.setblocking(False)
        self._line = line
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Queue[dict[str, Any] | None]] = {}
        self._lock = asyncio.Lock()
        self._under_way = 0
        self._acknowledged = asyncio.Event()
        self.ready = asyncio.Event()
        self.lost = asyncio.Event()
        self._task = asyncio.create_task(self._receive())

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
                    if "ack" in message:
                        self._under_way -= message["ack"]
                        self._acknowledged.set()
                    elif message.get("ready"):
                        self.ready.set()
                    elif message.get("id") in self._waiting:
                        self._waiting[message["id"]].put_nowait(message)
        except OSError:
            pass
        finally:
            self.lost.set()
            self._acknowledged.set()
            for queue in self._waiting.values():
                queue.put_nowait(None)

    async def _send(self, text: bytes) -> None:
        loop = asyncio.get_running_loop()
        async with self._lock:
            while text:
                while self._under_way >= WINDOW and not self.lost.is_set():
                    self._acknowledged.clear()
                    await self._acknowledged.wait()
                if self.lost.is_set():
                    raise LineLost
                part, text = text[: WINDOW - self._under_way], text[WINDOW - self._under_way :]
                self._under_way += len(part)
                await loop.sock_sendall(self._line, part)

    async def request(self, op: str, **fields: Any) -> AsyncIterator[dict[str, Any]]:
        """Send a request and give what comes back, the message that ends it included."""
        number = next(self._ids)
        queue = self._waiting[number] = asyncio.Queue()
        try:
            if self.lost.is_set():
                raise LineLost
            text = json.dumps({"id": number, "op": op, **fields}).encode() + b"\n"
            await self._send(text)
            while True:
                message = await queue.get()
                if message is None:
                    raise LineLost
                yield message
                if "exit" in message or "error" in message:
                    return
        except OSError as error:
            raise LineLost from error
        finally:
            del self._waiting[number]

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

    async def run(self, *argv: str, timeout: float = 60) -> int:
        """Run a command for its exit status."""
        async for message in self.request("exec", argv=list(argv), timeout=timeout):
            if "exit" in message:
                return int(message["exit"])
        raise RuntimeError(f"{argv[0]} could not be started")

    async def set_clock(self) -> None:
        """Give the machine the host's time."""
        await self.call("configure", time=time.time())

    async def close(self) -> None:
        """Let go of the line."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._line.close()
