"""Device-mapper without a program per step: its ioctls, made from this process.

Starting dmsetup takes longer than anything it does, and a switchover pauses I/O for as long as its steps
take. Steps that may wait for I/O in flight are left to dmsetup all the same: only another process can be
killed when the wait takes too long. Creating and removing are, too, since libdevmapper also sees to the
device nodes.

The interface is ``include/uapi/linux/dm-ioctl.h``, version 4; the kernel keeps it compatible.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hactl import thread
from hactl.target import dmsetup
from hactl.target.device_mapper import DeviceMapper, DmRefusedError, DmTimeoutError
from hactl.target.dmsetup import Device

CONTROL = Path("/dev/mapper/control")

LIST_DEVICES, DEV_SUSPEND, TABLE_LOAD, TABLE_CLEAR, TABLE_STATUS = 2, 6, 9, 10, 12
"""Numbers of the commands used here (``DM_LIST_DEVICES_CMD`` and so on)."""

SUSPEND = 1 << 1
STATUS_TABLE = 1 << 4
ACTIVE_PRESENT = 1 << 5
INACTIVE_PRESENT = 1 << 6
BUFFER_FULL = 1 << 8
SKIP_LOCKFS = 1 << 10
NOFLUSH = 1 << 11

HEADER = struct.Struct("=3I3IiIIIQ128s129s7x")
"""``struct dm_ioctl``: version (3), data_size, data_start, target_count, open_count, flags, event_nr,
padding, dev, name, uuid."""
TARGET = struct.Struct("=QQiI16s")
"""``struct dm_target_spec``: start and length in sectors, status, next, type; its parameters follow."""
_NAME = struct.Struct("=QI")
"""``struct dm_name_list``: dev, next; the name follows."""

# No rules and no subsystem rules, what dmsetup's --noudevrules sets (libdevmapper.h, DM_UDEV_*).
_NO_RULES = 0x3 << 16

Ioctl = Callable[[int, bytearray], None]
"""Makes command number ``int`` of device-mapper with a buffer, which is changed; raises :class:`OSError`."""

T = TypeVar("T")

_ALL = ""
"""Takes the place of a name for a call about all devices."""


def kernel(control: Path = CONTROL) -> Ioctl:
    """The real thing; the descriptor stays open, and is not inherited."""
    descriptor = os.open(control, os.O_RDWR | os.O_CLOEXEC)

    def call(command: int, buffer: bytearray) -> None:
        # _IOWR(DM_IOCTL, command, struct dm_ioctl)
        fcntl.ioctl(descriptor, 3 << 30 | HEADER.size << 16 | 0xFD << 8 | command, buffer)

    return call


@dataclass(eq=False)
class _Call:
    """One that the kernel has not answered yet. ``late``: whoever asked has given up waiting."""

    what: str
    answer: asyncio.Future[Any]
    late: bool = False


class DmIoctl:
    """Keeps :class:`DeviceMapper`; ``programs`` is asked for what has to be killable or needs device
    nodes.

    A device has one call at a time. While one hangs, another for the same device raises
    :class:`DmTimeoutError` at once; other devices do not notice.
    """

    def __init__(self, programs: DeviceMapper, ioctl: Ioctl, *, seconds: float = 10.0) -> None:
        self._programs = programs
        self._ioctl = ioctl
        self._seconds = seconds
        self._calls: dict[str, _Call] = {}

    async def devices(self, names: Iterable[str] = ()) -> dict[str, Device]:
        wanted = tuple(dict.fromkeys(names))
        return await self._call("status", wanted or (_ALL,), lambda: self._devices(wanted))

    async def create(self, name: str, uuid: str, table: str) -> None:
        await self._programs.create(name, uuid, table)

    async def remove(self, name: str) -> None:
        await self._programs.remove(name)

    async def load(self, name: str, table: str) -> None:
        await self._call(f"load {name}", (name,), lambda: self._ask(TABLE_LOAD, name, 0, 0, table))

    async def clear(self, name: str) -> None:
        await self._call(f"clear {name}", (name,), lambda: self._ask(TABLE_CLEAR, name, 0))

    async def suspend(self, name: str, seconds: float, *, waits: bool) -> None:
        if waits:
            await self._programs.suspend(name, seconds, waits=True)
            return
        await self._call(
            f"suspend {name}", (name,), lambda: self._ask(DEV_SUSPEND, name, SUSPEND | SKIP_LOCKFS)
        )

    async def resume(self, name: str, seconds: float, *, waits: bool) -> None:
        if waits:
            await self._programs.resume(name, seconds, waits=True)
            return
        await self._call(
            f"resume {name}", (name,), lambda: self._ask(DEV_SUSPEND, name, SKIP_LOCKFS, _NO_RULES)
        )

    async def _call(self, what: str, names: tuple[str, ...], work: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(self._seconds):
                while before := {self._calls[n] for n in names if n in self._calls}:
                    self._refuse_late(what, before)
                    await asyncio.wait([call.answer for call in before])
                answer = thread.start(work, "device-mapper")
                self._calls.update(dict.fromkeys(names, _Call(what, answer)))
                answer.add_done_callback(lambda _: self._over(names, answer))
                return await asyncio.shield(answer)
        except TimeoutError:
            late = {self._calls[n] for n in names if n in self._calls}
            for waited_for in late:
                waited_for.late = True
            raise DmTimeoutError(
                f"device-mapper: {what}: no answer within {self._seconds:g} s, and it may still take effect"
            ) from None
        except OSError as error:
            raise DmRefusedError(f"device-mapper: {what}: {error.strerror}") from None

    def _refuse_late(self, what: str, before: Iterable[_Call]) -> None:
        for call in before:
            if call.late:
                raise DmTimeoutError(
                    f"device-mapper: {what}: not tried, since the kernel has not answered '{call.what}' yet"
                )

    def _over(self, names: tuple[str, ...], answer: asyncio.Future[T]) -> None:
        for name in names:
            self._calls.pop(name, None)
        # Of a call that was late nobody asks for its error any more, and asyncio would complain.
        if not answer.cancelled():
            answer.exception()

    def _devices(self, names: tuple[str, ...]) -> dict[str, Device]:
        found = {}
        for name in names or self._names():
            try:
                found[name] = device(self._ask(TABLE_STATUS, name, STATUS_TABLE | NOFLUSH))
            except OSError as error:
                # Not there, or gone since it was listed.
                if error.errno != errno.ENXIO:
                    raise
        return found

    def _names(self) -> list[str]:
        answer = self._ask(LIST_DEVICES, "", 0)
        start = HEADER.unpack_from(answer)[4]
        names = []
        while True:
            number, after = _NAME.unpack_from(answer, start)
            if number:
                names.append(_text(answer, start + _NAME.size))
            if not after:
                return names
            start += after

    def _ask(self, command: int, name: str, flags: int, event: int = 0, table: str = "") -> bytearray:
        size = 16 << 10
        while True:
            buffer = request(name, flags, event, table, size)
            self._ioctl(command, buffer)
            if not HEADER.unpack_from(buffer)[7] & BUFFER_FULL:
                return buffer
            size *= 4


def request(name: str, flags: int, event: int, table: str, size: int) -> bytearray:
    """The buffer of a call about a device, with a table of one line (see :mod:`hactl.target.dmsetup`) or
    none."""
    buffer = bytearray(size)
    HEADER.pack_into(
        buffer, 0, 4, 0, 0, size, HEADER.size, 1 if table else 0, 0, flags, event, 0, 0, name.encode(), b""
    )
    if table:
        start, length, kind, *rest = table.split()
        parameters = " ".join(rest).encode() + b"\0"
        room = -(-(TARGET.size + len(parameters)) // 8) * 8
        TARGET.pack_into(buffer, HEADER.size, int(start), int(length), 0, room, kind.encode())
        at = HEADER.size + TARGET.size
        buffer[at : at + len(parameters)] = parameters
    return buffer


def device(answer: bytearray) -> Device:
    """The device that an answer to ``TABLE_STATUS`` tells of."""
    _, _, _, _, start, count, opens, flags, _, _, number, name, uuid = HEADER.unpack_from(answer)
    table = []
    if flags & ACTIVE_PRESENT:
        at = start
        for _ in range(count):
            begin, length, _, after, kind = TARGET.unpack_from(answer, at)
            words = [str(begin), str(length), _text(kind, 0), *_text(answer, at + TARGET.size).split()]
            table.append(dmsetup.target(words))
            # Counted from the beginning of the data, unlike in a request.
            at = start + after
    return Device(
        name=_text(name, 0),
        uuid=_text(uuid, 0),
        number=f"{os.major(number)}:{os.minor(number)}",
        suspended=bool(flags & SUSPEND),
        inactive=bool(flags & INACTIVE_PRESENT),
        opens=opens,
        table=tuple(table),
    )


def _text(data: bytes | bytearray, at: int) -> str:
    end = data.find(0, at)
    return data[at : end if end >= 0 else len(data)].decode()
