"""Gates on the real device-mapper; keeps :class:`hactl.target.gates.Gates`."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Collection, Iterable
from typing import TypeGuard, TypeVar

from hactl.errors import Failed, Unknown
from hactl.target import dmsetup
from hactl.target.device_mapper import DeviceMapper, DmRefusedError, DmTimeoutError
from hactl.target.dmsetup import SECTOR, BlockDevices, Device, SysBlock, is_error
from hactl.target.gate_plan import (
    Clear,
    Load,
    Resume,
    Step,
    Suspend,
    backing_of,
    close_steps,
    hold_steps,
    may_wait,
    mode,
    open_steps,
    resize_steps,
)
from hactl.target.gates import GateState, Mode

T = TypeVar("T")

_HOLD = ".hold"
_GATE_UUID = f"{dmsetup.UUID_PREFIX}gate-"
_HOLD_UUID = f"{dmsetup.UUID_PREFIX}hold-"


class DmGates:
    """All gates of this node.

    ``drain`` is how many seconds a change waits for I/O in flight. Changes of one gate run one after the
    other, those of different gates at the same time.
    """

    def __init__(
        self,
        dm: DeviceMapper,
        devices: BlockDevices | None = None,
        *,
        drain: float = 10.0,
    ) -> None:
        self._dm = dm
        self._devices = devices or SysBlock()
        self._drain = drain
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def observe(self, names: Collection[str] = ()) -> dict[str, GateState]:
        devices = await self._list([*names, *(name + _HOLD for name in names)])
        return {
            name: self._state(device, devices.get(name + _HOLD))
            for name, device in devices.items()
            if device.uuid == _GATE_UUID + name and device.table
        }

    async def create(self, name: str, size: int) -> GateState:
        if size <= 0 or size % SECTOR:
            raise Failed("gate-size", f"gate {name}: a size of {size} bytes is not a number of sectors")
        async with self._locks[name]:
            devices = await self._list((name, name + _HOLD))
            gate, hold = devices.get(name), devices.get(name + _HOLD)
            for device, uuid in ((gate, _GATE_UUID + name), (hold, _HOLD_UUID + name)):
                if device is not None and device.uuid != uuid:
                    raise Failed(
                        "gate-name-taken",
                        f"gate {name}: the device-mapper device {device.name} exists and is not hactl's",
                        f"remove it with 'dmsetup remove {device.name}' if nothing needs it",
                    )
            if not (_live(gate) and _live(hold)):
                # The hold device first: a gate that exists is complete. One that lost its hold device gets a
                # new one.
                hold_size = gate.size if _live(gate) else size
                await self._create_one(name + _HOLD, _HOLD_UUID + name, hold, hold_size)
                await self._run(name, self._dm.suspend(name + _HOLD, self._drain, waits=False))
                await self._create_one(name, _GATE_UUID + name, gate, size)
            return self._state(*await self._pair(name))

    async def _create_one(self, name: str, uuid: str, found: Device | None, size: int) -> None:
        table = dmsetup.error_table(size)
        if found is None:
            await self._run(name, self._dm.create(name, uuid, table))
        elif not found.table:
            # dmsetup creates, loads and resumes in three calls; it was stopped in between.
            await self._run(name, self._dm.load(name, table))
            await self._run(name, self._dm.resume(name, self._drain, waits=False))

    async def open(self, name: str, backing: str) -> None:
        async with self._locks[name]:
            gate, hold = await self._pair(name)
            number = self._devices.number(backing)
            self._check_size(name, gate.size, number)
            await self._change(gate, hold, open_steps(gate, hold, number, gate.size), Mode.OPEN)

    async def hold(self, name: str) -> None:
        async with self._locks[name]:
            gate, hold = await self._pair(name)
            await self._change(gate, hold, hold_steps(gate, hold, gate.size), Mode.HELD)

    async def close(self, name: str) -> None:
        async with self._locks[name]:
            gate, hold = await self._pair(name)
            await self._change(gate, hold, close_steps(gate, hold, gate.size), Mode.CLOSED)

    async def resize(self, name: str, size: int) -> None:
        if size <= 0 or size % SECTOR:
            raise Failed("gate-size", f"gate {name}: a size of {size} bytes is not a number of sectors")
        async with self._locks[name]:
            gate, hold = await self._pair(name)
            if linear := dmsetup.linear_device(gate.table):
                if linear == hold.number or gate.suspended:
                    raise Failed(
                        "gate-held",
                        f"gate {name}: cannot be resized while it holds I/O back",
                        "open or close it first",
                    )
                self._check_size(name, size, linear)
            elif not is_error(gate.table) or gate.suspended:
                raise Failed(
                    "gate-not-settled",
                    f"gate {name}: cannot be resized in mode {mode(gate, hold)}",
                    "open or close it first",
                )
            wanted = Mode.CLOSED if is_error(gate.table) else Mode.OPEN
            await self._change(gate, hold, resize_steps(gate, hold, size), wanted)

    async def remove(self, name: str) -> None:
        async with self._locks[name]:
            devices = await self._list((name, name + _HOLD))
            # The gate first, since it has the hold device open if it leads there.
            for device_name, uuid in ((name, _GATE_UUID + name), (name + _HOLD, _HOLD_UUID + name)):
                device = devices.get(device_name)
                if device is None or device.uuid != uuid:
                    continue
                if device_name == name and device.opens:
                    raise Failed(
                        "gate-in-use",
                        f"gate {name}: {device.node} is open",
                        "remove the backstore that uses it first",
                    )
                await self._run(name, self._dm.remove(device_name))

    def _check_size(self, name: str, size: int, number: str) -> None:
        there = self._devices.size(number)
        # Asked here, because the kernel takes a table on a device of size 0, and only I/O fails.
        if there < size:
            raise Failed(
                "gate-backing-too-small",
                f"gate {name}: {self._devices.path(number)} has {there} bytes, the gate {size}",
                "use larger disks, or a smaller volume",
            )

    def _state(self, gate: Device, hold: Device | None) -> GateState:
        found = mode(gate, hold)
        number = None
        if found is not Mode.FOREIGN and hold is not None:
            number = backing_of(gate, hold)
        backing = None if number is None else self._devices.path(number)
        return GateState(gate.name, found, gate.size, gate.node, backing)

    async def _pair(self, name: str) -> tuple[Device, Device]:
        """The gate and its hold device. Here as elsewhere they are named, so that the cost does not depend on
        what else there is."""
        devices = await self._list((name, name + _HOLD))
        gate, hold = devices.get(name), devices.get(name + _HOLD)
        if not _live(gate) or not _live(hold):
            raise Failed("gate-missing", f"gate {name} does not exist", "create it first")
        return gate, hold

    async def _list(self, names: Iterable[str]) -> dict[str, Device]:
        try:
            return await self._dm.devices(names)
        except DmTimeoutError as error:
            raise Unknown("gate-timeout", f"device-mapper does not answer: {error}") from None
        except DmRefusedError as error:
            raise Failed("gate-dmsetup", str(error), "load the kernel module dm-mod") from None

    async def _change(self, gate: Device, hold: Device, steps: tuple[Step, ...], wanted: Mode) -> None:
        try:
            await self._steps(gate.name, steps, waits=may_wait(mode(gate, hold), wanted))
        except DmTimeoutError as error:
            await self._after_timeout(gate, hold, wanted, error)

    async def _after_timeout(self, gate: Device, hold: Device, wanted: Mode, error: DmTimeoutError) -> None:
        """Say what became of a change whose last command was killed. The kernel undoes an interrupted wait;
        some versions keep the inactive table then, which would keep DRBD open, so it is cleared."""
        now, _ = await self._pair(gate.name)
        if now.inactive:
            await self._run(gate.name, self._dm.clear(gate.name))
        now, hold_now = await self._pair(gate.name)
        if mode(now, hold_now) is wanted:
            return
        if (now.table, now.suspended) == (gate.table, gate.suspended):
            raise Failed(
                "gate-io-in-flight",
                f"gate {gate.name}: I/O in flight did not end within {self._drain:g} s; nothing was changed"
                if hold_now == hold
                else f"gate {gate.name}: I/O in flight did not end within {self._drain:g} s",
                "see why the device below is slow or suspended, then try again",
            ) from None
        raise Unknown(
            "gate-timeout", f"gate {gate.name}: {error}", "observe the gate, then try again"
        ) from None

    async def _steps(self, gate: str, steps: Iterable[Step], *, waits: bool) -> None:
        for step in steps:
            match step:
                case Load(name, table):
                    await self._run(gate, self._dm.load(name, table))
                case Clear(name):
                    await self._run(gate, self._dm.clear(name))
                case Suspend(name):
                    await self._run(gate, self._dm.suspend(name, self._drain, waits=waits), raw=True)
                case Resume(name):
                    await self._run(gate, self._dm.resume(name, self._drain, waits=waits), raw=True)

    async def _run(self, gate: str, call: Awaitable[T], *, raw: bool = False) -> T:
        try:
            return await call
        except DmRefusedError as error:
            raise Failed("gate-dmsetup", f"gate {gate}: {error}") from None
        except DmTimeoutError as error:
            if raw:
                raise
            raise Unknown(
                "gate-timeout", f"gate {gate}: {error}", "observe the gate, then try again"
            ) from None


def _live(device: Device | None) -> TypeGuard[Device]:
    """Whether the device exists and has a live table; one without was left by a creation that was
    interrupted."""
    return device is not None and bool(device.table)
