"""Time and identity of this boot; injected, so that tests need no waiting."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Protocol

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Clock(Protocol):
    """Seconds that go on through an agent's restart, but mean nothing in another boot."""

    def now(self) -> float:
        """Seconds since boot, suspend included."""
        ...

    def boot(self) -> str:
        """What tells one boot of the kernel from another."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class BootClock:
    """The kernel's CLOCK_BOOTTIME and boot id (proc(5), random(4))."""

    def __init__(self) -> None:
        self._boot = _BOOT_ID.read_text().strip()

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def boot(self) -> str:
        return self._boot

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class MemoryClock:
    """A clock that stands still unless told; sleeping moves it."""

    def __init__(self, boot: str = "boot-1") -> None:
        self.seconds = 1000.0
        self.boot_id = boot

    def now(self) -> float:
        return self.seconds

    def boot(self) -> str:
        return self.boot_id

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        await asyncio.sleep(0)
