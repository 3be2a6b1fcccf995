"""The capture process in memory: both its ends, for tests of what uses it."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from hactl.pr_sync.capture.protocol import Event, Held, Mounted


class MemoryCapture:
    """A kernel that writes, a capture process, and any number of clients, of which the last one is served.

    ``crash`` and ``start`` are the death and return of the process; ``unmount`` is the loss of its
    descriptor."""

    def __init__(self) -> None:
        self.units: frozenset[str] = frozenset()
        self.running = True
        self.texts: dict[str, str] = {}
        """What was written last, by serial; those of other people's targets too."""
        self._mounts = 1
        self._writes = 0
        self._held: dict[str, tuple[Held, asyncio.Future[None]]] = {}
        self._client: MemoryCaptureClient | None = None
        self._changed = asyncio.Event()

    @property
    def mount(self) -> str:
        return f"mount{self._mounts}"

    def write(self, serial: str, text: str, thread: int = 1) -> asyncio.Future[None]:
        """What LIO does. Done when the kernel answers its command; OSError when the write failed."""
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.texts[serial] = text
        if serial not in self.units:
            answer.set_result(None)
            return answer
        self._writes += 2
        held = Held(
            f"{self.mount}-{self._writes:x}", serial, time.monotonic(), len(text) + 1, text, thread=thread
        )
        self._held[held.id] = held, answer
        if self.running and self._client:
            self._client._tell(held)
        return answer

    def crash(self) -> None:
        """As kill -9."""
        self.running = False

    def start(self) -> None:
        """Run again; the kernel sends what waits once more."""
        self.running = True
        for write, (held, answer) in self._held.items():
            again = replace(held, since=time.monotonic(), resent=True)
            self._held[write] = again, answer
        self._resume()

    def unmount(self) -> None:
        """Its descriptor is lost, and it starts anew."""
        for _, answer in self._held.values():
            answer.set_exception(OSError(errno.ECONNABORTED, "the file system is gone"))
        self._held.clear()
        self._mounts += 1
        self.running = True
        self._resume()

    def client(self) -> MemoryCaptureClient:
        """A new connection, which replaces the one before."""
        self._client = MemoryCaptureClient(self)
        self._resume()
        return self._client

    def _resume(self) -> None:
        if self.running and self._client:
            self._client._hello()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _serving(self, client: MemoryCaptureClient) -> None:
        while not self.running or self._client is not client:
            await self._changed.wait()

    def _release(self, write: str) -> bool:
        held = self._held.pop(write, None)
        if held and not held[1].done():
            held[1].set_result(None)
        return held is not None


class MemoryCaptureClient:
    """A :class:`hactl.pr_sync.capture.protocol.Capture` of a :class:`MemoryCapture`."""

    def __init__(self, capture: MemoryCapture) -> None:
        self._capture = capture
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._waiting: dict[str, Held] = {}
        self._mount = ""

    async def __aenter__(self) -> MemoryCaptureClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def waiting(self) -> Mapping[str, Held]:
        return MappingProxyType(self._waiting)

    @property
    def connected(self) -> bool:
        return self._capture.running and self._capture._client is self

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        event = await self._events.get()
        if event is None:
            self._events.put_nowait(None)
            raise StopAsyncIteration
        return event

    async def release(self, write: str) -> bool:
        await self._capture._serving(self)
        self._waiting.pop(write, None)
        return self._capture._release(write)

    async def set_units(self, serials: Iterable[str]) -> None:
        wanted = frozenset(serials)
        await self._capture._serving(self)
        self._capture.units = wanted

    async def close(self) -> None:
        if self._capture._client is self:
            self._capture._client = None
        await self._events.put(None)

    def _hello(self) -> None:
        if self._mount != self._capture.mount:
            self._mount = self._capture.mount
            self._waiting.clear()
            self._events.put_nowait(Mounted(self._mount, resends=True))
        for gone in self._waiting.keys() - self._capture._held.keys():
            del self._waiting[gone]
        for held, _ in self._capture._held.values():
            self._tell(held)

    def _tell(self, held: Held) -> None:
        if held.id not in self._waiting:
            self._waiting[held.id] = held
            self._events.put_nowait(held)
