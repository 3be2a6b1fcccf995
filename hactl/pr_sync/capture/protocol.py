"""What the agent sees of the capture process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Held:
    """A write of LIO's that waits: a PERSISTENT RESERVE OUT was carried out and is not answered yet.

    ``id``: names the write, never another one. ``serial``: of the unit; empty where the capture lost its
    list, so that every unit has to be looked at. ``since``: CLOCK_MONOTONIC in seconds. ``size``: bytes.
    ``content``: the text that LIO wrote, a hint only: of two commands at the same time the later text may be
    the older state. ``resent``: a capture process before this one had it too, and ``since`` does not count
    that time. ``thread``: number of the kernel's thread that waits, which serves the initiator's
    connection."""

    id: str
    serial: str
    since: float
    size: int
    content: str
    resent: bool = False
    thread: int = 0


@dataclass(frozen=True)
class Mounted:
    """Contact with a mount that this client has not seen before; always the first event.

    ``mount``: its name. While there was none, LIO answered commands without waiting for anybody: every unit's
    state has to be compared with the log. ``resends``: whether a write that waits survives the capture
    process (Linux 6.9); where it does not, it waits for ever."""

    mount: str
    resends: bool


Event = Held | Mounted


class Capture(Protocol):
    """The agent's end. Iterating gives each event once, whatever the connection goes through, until
    ``close``."""

    @property
    def waiting(self) -> Mapping[str, Held]:
        """The writes known to wait, by id."""

    @property
    def connected(self) -> bool:
        """Whether the capture process answers right now."""

    def __aiter__(self) -> AsyncIterator[Event]: ...

    async def release(self, write: str) -> bool:
        """Let the write with this id go on; returns when the kernel has been told. Waits for a capture
        process where there is none. False: no such write waits."""

    async def set_units(self, serials: Iterable[str]) -> None:
        """From now on writes for exactly these serials wait; to be called before LIO exports a unit. Returns
        when it is so and kept for the time without an agent. Raises Failed ``capture-units-not-kept``:
        nothing changed."""

    async def close(self) -> None:
        """End. Writes that wait go on waiting."""
