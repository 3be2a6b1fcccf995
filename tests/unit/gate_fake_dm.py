"""An in-memory device-mapper behind the dmsetup arguments and the ioctls that hactl uses: a stateful fake,
with its refusals.

It keeps the kernel's rules that gates rely on: suspend waits for bios in flight and is undone if its process
is killed; resume with an inactive table suspends if need be, swaps, closes the old table and lets deferred
bios run on the new one; a suspended device queues what it gets, which is in flight for the device above.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hactl.errors import Refused
from hactl.runner import CommandFailed, CommandTimeout, Completed
from hactl.target import dm_ioctl as abi
from hactl.target.device_mapper import DeviceMapper, Dmsetup


@dataclass(eq=False)
class Bio:
    """One write on its way. ``state`` is pending, done or failed."""

    value: str
    state: str = "pending"
    on_end: list[Callable[[], None]] = field(default_factory=list)

    def end(self, state: str) -> None:
        assert self.state == "pending", "a bio ends once"
        self.state = state
        for call in self.on_end:
            call()


@dataclass(eq=False)
class Leaf:
    """A block device that is not device-mapper's, such as DRBD's."""

    number: str
    size: int
    writable: bool = True
    stalled: bool = False
    opens: int = 0
    log: list[str] = field(default_factory=list)
    queue: list[Bio] = field(default_factory=list)

    def submit(self, bio: Bio) -> None:
        if self.stalled:
            self.queue.append(bio)
            return
        self.log.append(bio.value)
        bio.end("done")

    def go_on(self) -> None:
        self.stalled = False
        queue, self.queue = self.queue, []
        for bio in queue:
            self.submit(bio)


@dataclass(eq=False)
class Table:
    length: int
    kind: str
    below: Leaf | Mapped | None = None

    def text(self) -> str:
        if self.below is None:
            return f"0 {self.length} {self.kind} "
        return f"0 {self.length} {self.kind} {self.below.number} 0"


@dataclass(eq=False)
class Mapped:
    name: str
    uuid: str
    number: str
    live: Table | None = None
    inactive: Table | None = None
    suspended: bool = False
    opens: int = 0
    in_flight: int = 0
    deferred: list[Bio] = field(default_factory=list)

    @property
    def size(self) -> int:
        return self.live.length * 512 if self.live else 0

    def submit(self, bio: Bio) -> None:
        if self.suspended:
            self.deferred.append(bio)
        elif self.live is None or self.live.kind == "error":
            bio.end("failed")
        elif self.live.kind == "zero":
            bio.end("done")
        else:
            assert self.live.below is not None
            self.in_flight += 1
            bio.on_end.append(self._ended)
            self.live.below.submit(bio)

    def _ended(self) -> None:
        self.in_flight -= 1


class KilledError(Exception):
    """The process that drives the gates died; what it had begun stays as it is."""


class FakeDm:
    """Runner and block devices at once. After ``die_after`` commands that change something, the driver
    dies."""

    def __init__(self) -> None:
        self.mapped: dict[str, Mapped] = {}
        self.leaves: dict[str, Leaf] = {}
        self.commands: list[tuple[str, ...]] = []
        self.programs: list[str] = []
        self.die_after: int | None = None
        self._next = 0

    # Block devices, as DmGates sees them.

    def add_leaf(self, path: str, number: str, size: int) -> Leaf:
        self.leaves[path] = Leaf(number, size)
        return self.leaves[path]

    def number(self, path: str) -> str:
        if path not in self.leaves:
            raise Refused("gate-no-device", f"{path}: No such file or directory")
        return self.leaves[path].number

    def path(self, number: str) -> str:
        found = [p for p, leaf in self.leaves.items() if leaf.number == number]
        return found[0] if found else f"/dev/dm-{number.partition(':')[2]}"

    def size(self, number: str) -> int:
        return self._below(number).size

    # I/O, as an initiator sends it.

    def write(self, name: str, value: str) -> Bio:
        bio = Bio(value)
        self.mapped[name].submit(bio)
        return bio

    # The runner.

    async def run(
        self, argv: Sequence[str], *, timeout: float = 30.0, check: bool = True, stdin: str | None = None
    ) -> Completed:
        assert argv[0] == "dmsetup"
        command, options, names = _take_apart(argv[1:])
        self.programs.append(command)
        if command not in ("table", "info"):
            self._begin(command, names)
        try:
            out = getattr(self, f"_{command}")(names, options)
        except BlockingIOError:
            raise CommandTimeout(tuple(argv), timeout) from None
        except OSError as error:
            text = f"device-mapper: {command} ioctl on {names[0]} failed: {error.args[0]}\nCommand failed.\n"
            completed = Completed(tuple(argv), 1, "", text)
            if check:
                raise CommandFailed(completed) from None
            return completed
        return Completed(tuple(argv), 0, out, "")

    def _begin(self, command: str, names: list[str]) -> None:
        if self.die_after is not None and self.die_after <= 0:
            raise KilledError
        if self.die_after is not None:
            self.die_after -= 1
        self.commands.append((command, *names))

    # The ioctls.

    def ioctl(self, command: int, buffer: bytearray) -> None:
        header = list(abi.HEADER.unpack_from(buffer))
        assert header[:6] == [4, 0, 0, len(buffer), abi.HEADER.size, command == abi.TABLE_LOAD]
        name, flags = header[11].rstrip(b"\0").decode(), header[7]
        if command == abi.LIST_DEVICES:
            self._list(buffer)
            return
        if name not in self.mapped:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        if command == abi.TABLE_STATUS:
            assert flags == abi.STATUS_TABLE | abi.NOFLUSH
            self._status(self.mapped[name], buffer)
            return
        options = {}
        if command == abi.TABLE_LOAD:
            what = "load"
            start, length, _, _, kind = abi.TARGET.unpack_from(buffer, abi.HEADER.size)
            parameters = bytes(buffer[abi.HEADER.size + abi.TARGET.size :]).partition(b"\0")[0].decode()
            options["--table"] = f"{start} {length} {kind.rstrip(bytes(1)).decode()} {parameters}"
        elif command == abi.TABLE_CLEAR:
            what = "clear"
        else:
            assert command == abi.DEV_SUSPEND
            what = "suspend" if flags & abi.SUSPEND else "resume"
        self._begin(what, [name])
        try:
            getattr(self, f"_{what}")([name], options)
        except BlockingIOError:
            raise AssertionError("it would wait in an ioctl, where nobody can stop it") from None
        except OSError as error:
            raise OSError(errno.EIO, error.args[0]) from None

    def _list(self, buffer: bytearray) -> None:
        at = abi.HEADER.size
        names = list(self.mapped)
        buffer[at : at + 12] = bytes(12)
        for n, name in enumerate(names):
            room = -(-(12 + len(name) + 1) // 8) * 8
            after = room if n + 1 < len(names) else 0
            struct.pack_into("=QI", buffer, at, _number(self.mapped[name].number), after)
            buffer[at + 12 : at + 12 + len(name) + 1] = name.encode() + b"\0"
            at += room

    def _status(self, found: Mapped, buffer: bytearray) -> None:
        header = list(abi.HEADER.unpack_from(buffer))
        flags = abi.SUSPEND * found.suspended | abi.ACTIVE_PRESENT * (found.live is not None)
        header[5:8] = [
            found.live is not None,
            found.opens,
            flags | abi.INACTIVE_PRESENT * bool(found.inactive),
        ]
        header[10:] = [_number(found.number), found.name.encode(), found.uuid.encode()]
        abi.HEADER.pack_into(buffer, 0, *header)
        if found.live is not None:
            start, length, kind, *rest = found.live.text().split()
            at = abi.HEADER.size
            abi.TARGET.pack_into(buffer, at, int(start), int(length), 0, 64, kind.encode())
            text = " ".join(rest).encode() + b"\0"
            buffer[at + abi.TARGET.size : at + abi.TARGET.size + len(text)] = text

    def mapper(self, way: str) -> DeviceMapper:
        """The adapter that reaches this fake by ``dmsetup`` only, or by ``ioctl`` where that is possible."""
        programs = Dmsetup(self)
        return programs if way == "dmsetup" else abi.DmIoctl(programs, self.ioctl)

    def _get(self, name: str) -> Mapped:
        if name not in self.mapped:
            raise OSError("No such device or address")
        return self.mapped[name]

    def _below(self, number: str) -> Leaf | Mapped:
        devices: list[Leaf | Mapped] = [*self.leaves.values(), *self.mapped.values()]
        for device in devices:
            if device.number == number:
                return device
        raise OSError("No such device or address")

    def _table(self, names: list[str], options: dict[str, str]) -> str:
        devices = [self._get(n) for n in names] if names else list(self.mapped.values())
        if not devices:
            return "No devices found\n"
        return "".join(f"{d.name}: {d.live.text()}\n" if d.live else f"{d.name}: \n" for d in devices)

    def _info(self, names: list[str], options: dict[str, str]) -> str:
        assert options["-o"] == "name,uuid,major,minor,attr,open"
        devices = [self._get(n) for n in names] if names else list(self.mapped.values())
        if not devices:
            return "No devices found\n"
        lines = []
        for d in devices:
            attr = f"{'L' if d.live else '-'}{'I' if d.inactive else '-'}{'s' if d.suspended else '-'}w"
            lines.append(f"{d.name}|{d.uuid}|{d.number.replace(':', '|')}|{attr}|{d.opens}\n")
        return "".join(lines)

    def _create(self, names: list[str], options: dict[str, str]) -> str:
        if names[0] in self.mapped or any(d.uuid == options["--uuid"] for d in self.mapped.values()):
            raise OSError("Device or resource busy")
        device = Mapped(names[0], options["--uuid"], f"254:{self._next}")
        self._next += 1
        self.mapped[names[0]] = device
        device.live = self._build(options["--table"])
        return ""

    def _remove(self, names: list[str], options: dict[str, str]) -> str:
        device = self._get(names[0])
        if device.opens:
            raise OSError("Device or resource busy")
        for table in (device.live, device.inactive):
            self._close(table)
        del self.mapped[names[0]]
        return ""

    def _build(self, text: str) -> Table:
        start, length, kind, *rest = text.split()
        assert start == "0"
        table = Table(int(length), kind)
        if kind == "linear":
            below = self._below(rest[0])
            if isinstance(below, Leaf) and not below.writable:
                raise OSError("Read-only file system")
            if 0 < below.size < table.length * 512:
                raise OSError("Invalid argument")
            below.opens += 1
            table.below = below
        return table

    @staticmethod
    def _close(table: Table | None) -> None:
        if table is not None and table.below is not None:
            table.below.opens -= 1

    def _load(self, names: list[str], options: dict[str, str]) -> str:
        device = self._get(names[0])
        new = self._build(options["--table"])
        self._close(device.inactive)
        device.inactive = new
        return ""

    def _clear(self, names: list[str], options: dict[str, str]) -> str:
        device = self._get(names[0])
        self._close(device.inactive)
        device.inactive = None
        return ""

    def _suspend(self, names: list[str], options: dict[str, str]) -> str:
        device = self._get(names[0])
        if device.in_flight:
            raise BlockingIOError
        device.suspended = True
        return ""

    def _resume(self, names: list[str], options: dict[str, str]) -> str:
        device = self._get(names[0])
        if device.inactive is not None:
            if not device.suspended:
                self._suspend(names, options)
            self._close(device.live)
            device.live, device.inactive = device.inactive, None
        device.suspended = False
        deferred, device.deferred = device.deferred, []
        for bio in deferred:
            device.submit(bio)
        return ""


def _number(text: str) -> int:
    major, _, minor = text.partition(":")
    return os.makedev(int(major), int(minor))


_WITH_VALUE = ("--table", "--uuid", "--separator", "-o")
_FLAGS = ("--noudevsync", "--noudevrules", "--nolockfs", "-c", "--noheadings")


def _take_apart(words: Sequence[str]) -> tuple[str, dict[str, str], list[str]]:
    command, *rest = words
    options: dict[str, str] = {}
    names: list[str] = []
    waiting = iter(rest)
    for word in waiting:
        if word in _WITH_VALUE:
            options[word] = next(waiting)
        elif word in _FLAGS:
            options[word] = ""
        else:
            assert not word.startswith("-"), f"the fake does not know {word}"
            names.append(word)
    return command, options, names
