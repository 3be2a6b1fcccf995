"""What hactl says to dmsetup(8) and reads from it; pure apart from :class:`SysBlock`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hactl.errors import Failed, Refused

SECTOR = 512
"""Device-mapper counts in sectors of 512 bytes, whatever the disk's own are."""

UUID_PREFIX = "HACTL-"
"""Marks hactl's own device-mapper devices, and lets a udev rule leave them alone."""

# Suspended devices must not be waited for or probed: udev's workers would hang on the queued read.
_NO_UDEV = ("--noudevsync", "--noudevrules")
# Nothing is mounted on a gate, so there is nothing to freeze; freezing would write back the page cache of
# whoever read the device node, and that waits for ever where the device below is suspended.
_NO_FREEZE = ("--nolockfs",)
# --noflush is not used: it is for targets that push I/O back to the queue; here every bio in flight shall end
# first.


@dataclass(frozen=True)
class Target:
    """One line of a table, in sectors; ``device`` is ``major:minor``, as the kernel prints it."""

    start: int
    length: int
    kind: str
    device: str | None = None
    offset: int | None = None


Table = tuple[Target, ...]


@dataclass(frozen=True)
class Device:
    """A device-mapper device. ``table`` is the live one, empty if there is none."""

    name: str
    uuid: str
    number: str
    suspended: bool
    inactive: bool
    opens: int
    table: Table

    @property
    def node(self) -> str:
        """The kernel's own node, which exists without udev's help."""
        return f"/dev/dm-{self.number.partition(':')[2]}"

    @property
    def size(self) -> int:
        """Size of the live table in bytes."""
        return sum(t.length for t in self.table) * SECTOR


def error_table(size: int) -> str:
    """A table that fails all I/O."""
    return f"0 {size // SECTOR} error"


def linear_table(size: int, device: str) -> str:
    """A table that passes all I/O on to the beginning of ``device`` (``major:minor``)."""
    return f"0 {size // SECTOR} linear {device} 0"


def is_error(table: Table) -> bool:
    """Whether the table is what :func:`error_table` writes."""
    return len(table) == 1 and table[0].kind == "error"


def linear_device(table: Table) -> str | None:
    """``major:minor`` if the table is what :func:`linear_table` writes, else None."""
    if len(table) == 1 and table[0].kind == "linear" and table[0].offset == 0 and table[0].start == 0:
        return table[0].device
    return None


def table_argv(names: Iterable[str] = ()) -> list[str]:
    """Live tables of two or more devices, or of all; see :func:`parse`."""
    return ["dmsetup", "table", *names]


def info_argv(names: Iterable[str] = ()) -> list[str]:
    """Everything else of two or more devices, or of all; see :func:`parse`."""
    fields = "name,uuid,major,minor,attr,open"
    return ["dmsetup", "info", "-c", "--noheadings", "--separator", "|", "-o", fields, *names]


def create_argv(name: str, uuid: str, table: str) -> list[str]:
    return ["dmsetup", "create", *_NO_UDEV, "--uuid", uuid, "--table", table, name]


def remove_argv(name: str) -> list[str]:
    return ["dmsetup", "remove", *_NO_UDEV, name]


def load_argv(name: str, table: str) -> list[str]:
    return ["dmsetup", "load", "--table", table, name]


def clear_argv(name: str) -> list[str]:
    return ["dmsetup", "clear", name]


def suspend_argv(name: str) -> list[str]:
    return ["dmsetup", "suspend", *_NO_FREEZE, name]


def resume_argv(name: str) -> list[str]:
    return ["dmsetup", "resume", *_NO_UDEV, *_NO_FREEZE, name]


def parse(table_text: str, info_text: str) -> dict[str, Device]:
    """Devices by name from the output of :func:`table_argv` and :func:`info_argv`.

    Raises :class:`hactl.errors.Failed` for output in another form.
    """
    tables: dict[str, list[Target]] = {}
    for line in _lines(table_text):
        name, colon, rest = line.partition(":")
        words = rest.split()
        if not colon:
            raise _unreadable("table", line)
        if words:
            tables.setdefault(name, []).append(target(words))
    devices = {}
    for line in _lines(info_text):
        fields = line.split("|")
        if len(fields) != 6 or len(fields[4]) < 3 or not fields[5].isdigit():
            raise _unreadable("info", line)
        name, uuid, major, minor, attributes, opens = fields
        devices[name] = Device(
            name=name,
            uuid=uuid,
            number=f"{major}:{minor}",
            suspended=attributes[2] == "s",
            inactive=attributes[1] == "I",
            opens=int(opens),
            table=tuple(tables.get(name, ())) if attributes[0] == "L" else (),
        )
    return devices


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and line.strip() != "No devices found"]


def target(words: list[str]) -> Target:
    """One line of a table, as the kernel prints it; :class:`hactl.errors.Failed` for another form."""
    if len(words) < 3 or not words[0].isdigit() or not words[1].isdigit():
        raise _unreadable("table", " ".join(words))
    start, length, kind = int(words[0]), int(words[1]), words[2]
    if kind == "linear" and len(words) == 5 and words[4].isdigit():
        return Target(start, length, kind, words[3], int(words[4]))
    return Target(start, length, kind)


def _unreadable(command: str, line: str) -> Failed:
    return Failed("gate-unreadable", f"dmsetup {command} printed {line!r}, which hactl cannot read")


class BlockDevices(Protocol):
    """What the kernel knows of block devices, by path and by ``major:minor``."""

    def number(self, path: str) -> str:
        """``major:minor`` of a device node; :class:`hactl.errors.Refused` if it is none."""
        ...

    def path(self, number: str) -> str:
        """The device's own node, such as ``/dev/drbd16``, whether or not the device still exists."""
        ...

    def size(self, number: str) -> int:
        """Size in bytes; 0 if the device is gone or has no medium."""
        ...


class SysBlock:
    """The real block devices, through ``/dev`` and ``/sys/dev/block``."""

    def number(self, path: str) -> str:
        try:
            found = os.stat(path)  # noqa: PTH116
        except OSError as error:
            raise Refused("gate-no-device", f"{path}: {error.strerror}") from None
        if not stat.S_ISBLK(found.st_mode):
            raise Refused("gate-no-device", f"{path} is not a block device")
        return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"

    def path(self, number: str) -> str:
        link = Path("/sys/dev/block") / number
        try:
            return "/dev/" + link.readlink().name.replace("!", "/")
        except OSError:
            return f"/dev/block/{number}"

    def size(self, number: str) -> int:
        try:
            return int((Path("/sys/dev/block") / number / "size").read_text()) * SECTOR
        except OSError:
            return 0
