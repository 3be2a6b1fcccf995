"""In-memory twin of the gates of one node, with I/O through them; keeps :class:`hactl.target.gates.Gates`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from hactl.errors import Failed, HactlError, Refused, Unknown
from hactl.replication.memory import MemoryDrbd
from hactl.target.gates import GateState, Mode

_SECTOR = 512


class Write:
    """One write of an initiator: ``state`` is ``pending``, ``done`` or ``failed``."""

    def __init__(self, block: int, value: str) -> None:
        self.block = block
        self.value = value
        self.state = "pending"
        self._ended = asyncio.Event()

    def end(self, state: str) -> None:
        assert self.state == "pending", "a write ends once"
        self.state = state
        self._ended.set()

    async def ended(self) -> str:
        """Wait until the write is ``done`` or ``failed``, and say which."""
        await self._ended.wait()
        return self.state


@dataclass
class _Gate:
    number: int
    size: int
    mode: Mode = Mode.CLOSED
    backing: str | None = None
    queue: list[Write] = field(default_factory=list)
    in_flight: list[Write] = field(default_factory=list)


class MemoryGates:
    """All gates of the node of ``drbd``. They are gone, with what they held, once :meth:`forget` is called,
    as after a crash. ``drain`` is how many seconds a change waits for I/O in flight; ``users`` counts who has
    a gate open."""

    def __init__(self, drbd: MemoryDrbd, *, drain: float = 0.05) -> None:
        self.users: Counter[str] = Counter()
        self._drbd = drbd
        self._drain = drain
        self._gates: dict[str, _Gate] = {}
        self._next = 0
        self._interrupt = False
        self._retrying = False
        drbd.cluster.listeners.append(self._retry)

    # What tests do to it

    def write(self, name: str, block: int, value: str) -> Write:
        """Write one block through a gate. What cannot be answered yet stays pending and ends later."""
        gate = self._get(name)
        write = Write(block, value)
        if gate.mode is Mode.OPEN:
            self._submit(gate, write)
        elif gate.mode in (Mode.HELD, Mode.SUSPENDED):
            gate.queue.append(write)
        else:
            write.end("failed")
        return write

    def read(self, name: str, block: int) -> str | None:
        """Read one block through an open gate; :class:`hactl.errors.Failed` through any other."""
        gate = self._get(name)
        if gate.mode is not Mode.OPEN or gate.backing is None:
            raise Failed("gate-io-error", f"gate {name} is {gate.mode}")
        resource, volume = self._drbd.find(gate.backing)
        return self._drbd.cluster.read(self._drbd.node, resource, volume, block)

    def interrupt(self) -> None:
        """Let the next change stop half-way: it raises :class:`hactl.errors.Unknown`, the gate is
        suspended."""
        self._interrupt = True

    def meddle(self, name: str) -> None:
        """Give a gate a table that hactl does not write."""
        gate = self._get(name)
        self._let_go(gate)
        gate.mode = Mode.FOREIGN

    def forget(self) -> None:
        """What a crash of the node does to its gates; pending writes of initiators fail with their
        connection."""
        for gate in self._gates.values():
            for write in (*gate.queue, *gate.in_flight):
                write.end("failed")
        self._gates.clear()
        self.users.clear()

    # Gates

    async def observe(self, names: Collection[str] = ()) -> dict[str, GateState]:
        return {n: self._state(n, gate) for n, gate in self._gates.items() if not names or n in names}

    async def create(self, name: str, size: int) -> GateState:
        self._check_sectors(name, size)
        if name not in self._gates:
            # Two numbers, since the hold device takes one.
            self._gates[name] = _Gate(self._next + 1, size)
            self._next += 2
        return self._state(name, self._gates[name])

    async def open(self, name: str, backing: str) -> None:
        gate = self._get(name)
        resource, volume = self._drbd.find(backing)
        if self._drbd.size(resource, volume) < gate.size:
            raise Failed("gate-backing-too-small", f"gate {name}: {backing} is smaller than the gate")
        if gate.mode is Mode.OPEN and gate.backing == backing:
            return
        self._drbd.cluster.open(self._drbd.node, resource, volume)
        try:
            await self._wait(name, gate)
        except Failed:
            self._drbd.cluster.release(self._drbd.node, resource, volume)
            raise
        self._let_go(gate)
        gate.backing = backing
        self._stop_half_way(name, gate)
        gate.mode = Mode.OPEN
        queue, gate.queue = gate.queue, []
        for write in queue:
            self._submit(gate, write)

    async def hold(self, name: str) -> None:
        gate = self._get(name)
        await self._wait(name, gate)
        self._stop_half_way(name, gate)
        self._let_go(gate)
        gate.mode = Mode.HELD

    async def close(self, name: str) -> None:
        gate = self._get(name)
        await self._wait(name, gate)
        self._stop_half_way(name, gate)
        self._let_go(gate)
        gate.mode = Mode.CLOSED
        queue, gate.queue = gate.queue, []
        for write in queue:
            write.end("failed")

    async def resize(self, name: str, size: int) -> None:
        self._check_sectors(name, size)
        gate = self._get(name)
        if gate.mode not in (Mode.OPEN, Mode.CLOSED):
            code = "gate-held" if gate.mode is Mode.HELD else "gate-not-settled"
            raise Failed(
                code, f"gate {name}: cannot be resized in mode {gate.mode}", "open or close it first"
            )
        if gate.backing is not None and self._drbd.size(*self._drbd.find(gate.backing)) < size:
            raise Failed("gate-backing-too-small", f"gate {name}: {gate.backing} is smaller than {size}")
        gate.size = size

    async def remove(self, name: str) -> None:
        gate = self._gates.get(name)
        if gate is None:
            return
        if self.users[name]:
            raise Failed("gate-in-use", f"gate {name} is open", "remove the backstore that uses it first")
        self._let_go(gate)
        del self._gates[name]

    # Inside

    def _get(self, name: str) -> _Gate:
        if name not in self._gates:
            raise Failed("gate-missing", f"gate {name} does not exist", "create it first")
        return self._gates[name]

    @staticmethod
    def _check_sectors(name: str, size: int) -> None:
        if size <= 0 or size % _SECTOR:
            raise Failed("gate-size", f"gate {name}: a size of {size} bytes is not a number of sectors")

    def _state(self, name: str, gate: _Gate) -> GateState:
        return GateState(name, gate.mode, gate.size, f"/dev/dm-{gate.number}", gate.backing)

    def _submit(self, gate: _Gate, write: Write) -> None:
        assert gate.backing is not None
        try:
            resource, volume = self._drbd.find(gate.backing)
            self._drbd.cluster.write(self._drbd.node, resource, volume, write.block, write.value)
        except Refused as refused:
            if refused.code == "drbd-suspended":
                gate.in_flight.append(write)
            else:
                write.end("failed")
        except HactlError:
            write.end("failed")
        else:
            write.end("done")

    def _retry(self) -> None:
        """DRBD goes on with what it held back as soon as it may; called at each change of the cluster."""
        if self._retrying:
            return
        self._retrying = True
        try:
            for gate in self._gates.values():
                waiting, gate.in_flight = gate.in_flight, []
                for write in waiting:
                    self._submit(gate, write)
        finally:
            self._retrying = False

    async def _wait(self, name: str, gate: _Gate) -> None:
        try:
            async with asyncio.timeout(self._drain):
                while gate.in_flight:
                    await self._drbd.cluster.changed()
        except TimeoutError:
            raise Failed(
                "gate-io-in-flight",
                f"gate {name}: I/O in flight did not end within {self._drain:g} s; nothing was changed",
                "see why the device below is slow or suspended, then try again",
            ) from None

    def _let_go(self, gate: _Gate) -> None:
        if gate.backing is not None:
            try:
                resource, volume = self._drbd.find(gate.backing)
            except HactlError:
                # The node was powered off, and whoever had the device open is gone with it.
                pass
            else:
                self._drbd.cluster.release(self._drbd.node, resource, volume)
            gate.backing = None

    def _stop_half_way(self, name: str, gate: _Gate) -> None:
        if self._interrupt:
            self._interrupt = False
            gate.mode = Mode.SUSPENDED
            raise Unknown(
                "gate-timeout", f"gate {name}: the change was interrupted", "observe it, then try again"
            )
