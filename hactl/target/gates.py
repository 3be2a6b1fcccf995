"""What the agent asks of the gates; kept by ``gate.DmGates`` (device-mapper) and
``memory_gates.MemoryGates``.

A gate is a device-mapper device that LIO's iblock backstore holds open for ever, while the table under it
changes:

======  ==============================  ===========================================================
closed  ``error``                       every I/O fails
open    ``linear`` on the DRBD device   I/O flows
held    ``linear`` on a suspended hold  I/O queues in the hold device and DRBD is not held open, so
        device                          that it can become secondary; what queued up is let go by
                                        ``open`` or ``close``
======  ==============================  ===========================================================
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Mode(StrEnum):
    """What a gate does with I/O."""

    CLOSED = "closed"
    OPEN = "open"
    HELD = "held"
    SUSPENDED = "suspended"
    """Between two of the others: a change was interrupted, or somebody suspended the gate. I/O may queue,
    flow or fail, and DRBD may be held open; any of open, hold and close completes it."""
    FOREIGN = "foreign"
    """A table that hactl does not write: somebody else changed it."""


@dataclass(frozen=True)
class GateState:
    """One gate as observed. ``size`` in bytes; ``device`` is the node iblock opens (``/dev/dm-3``);
    ``backing`` is the block device an open gate leads to, such as ``/dev/drbd16``."""

    name: str
    mode: Mode
    size: int
    device: str
    backing: str | None = None


def gate_name(resource: str, volume: int) -> str:
    """Device-mapper name of a volume's gate."""
    return f"hactl.{resource}.{volume}"


class Gates(Protocol):
    """All gates of one node. A change that times out raises :class:`hactl.errors.Unknown`, one that cannot be
    done :class:`hactl.errors.Failed`. Every change may be repeated, also after it was interrupted
    half-way."""

    async def observe(self, names: Collection[str] = ()) -> dict[str, GateState]:
        """The gates of hactl's on this node by name (see ``gate_name``): those of ``names`` that exist, or
        all."""
        ...

    async def create(self, name: str, size: int) -> GateState:
        """Create a closed gate of ``size`` bytes with its hold device; an existing gate is returned as it
        is."""
        ...

    async def open(self, name: str, backing: str) -> None:
        """Let I/O flow to ``backing``; what was held goes there first. From any mode."""
        ...

    async def hold(self, name: str) -> None:
        """Wait for I/O in flight, queue everything after it, and let go of the backing device. From open, or
        from closed, or suspended. If I/O in flight does not end in time, the gate is as it was
        (:class:`Failed`)."""
        ...

    async def close(self, name: str) -> None:
        """Fail everything that is held and all I/O from now on. From open it waits for I/O in flight
        first."""
        ...

    async def resize(self, name: str, size: int) -> None:
        """Change the size of a gate that is open or closed, keeping the mode. Held I/O would have to be let
        go for it: then :class:`hactl.errors.Failed`, and the same in every other mode."""
        ...

    async def remove(self, name: str) -> None:
        """Remove a gate that nobody has open, with its hold device; absent is no error."""
        ...
