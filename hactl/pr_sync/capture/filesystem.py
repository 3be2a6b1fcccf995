"""What is answered to which request of the kernel, and which write waits.

A held file is one whose serial is hactl's. Every look-up of it gives a node of its own: the kernel lets only
one write at a time into a node, so a second PERSISTENT RESERVE OUT on the same unit would otherwise stay out
of sight until the first is let go. A node number says which file it is, hence nothing has to be remembered
through a restart.

What is held is the write at offset 0, which is all of what LIO writes up to ``wire.MAX_WRITE``; further
pieces of a larger file pass. The text is kept in memory only, for whoever reads the file: LIO never reads it,
hactl's log is what state comes back from, and a copy in the real directory would be a second truth that other
tools import.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time

from hactl.pr_sync.capture import wire
from hactl.pr_sync.capture.below import FOREIGN, Below
from hactl.pr_sync.capture.units import PREFIX, Units
from hactl.pr_sync.capture.wire import Request

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing costs start-up time
    from collections.abc import Callable

HELD = 1 << 62
"""Set in the node number of a held file; then the number of its serial (30 bits) and one of the look-up
(32)."""

_TEXT_LIMIT = 1 << 24
"""Bytes of a file that are kept. LIO writes some 250 for each registration."""

_DT_DIR, _DT_REG = 4, 8
_ROOT_MODE = stat.S_IFDIR | 0o700
_FILE_MODE = stat.S_IFREG | 0o600


class HeldWrite:
    """A write that waits. ``unique``: what its answer has to carry. ``since``: CLOCK_MONOTONIC in seconds, of
    this process' first sight of it. ``resent``: a process before this one had it too."""

    __slots__ = ("content", "number", "resent", "serial", "since", "size", "thread", "unique")

    def __init__(self, request: Request, serial: str, content: bytes) -> None:
        self.number = request.number
        self.unique = request.unique
        self.resent = request.resent
        self.thread = request.thread
        self.serial = serial
        self.content = content
        self.size = len(content)
        self.since = time.monotonic()


class FileSystem:
    """``answer``: sends one packet to the kernel. ``hold``: called for each write that waits from now on."""

    def __init__(
        self,
        units: Units,
        below: Below,
        answer: Callable[[bytes], None],
        hold: Callable[[HeldWrite], None],
    ) -> None:
        self._units = units
        self._below = below
        self._answer = answer
        self._hold = hold
        self._texts: dict[int, bytes] = {}
        self._times: dict[int, int] = {}
        self._started = time.time_ns()
        self._lookups = int.from_bytes(os.urandom(4), "little")
        self.held: dict[int, HeldWrite] = {}
        """Writes that wait, by their request's number."""
        self.resends: bool | None = None
        """Whether the kernel can send again what a killed process had read (Linux 6.9); None until it said
        so."""

    def release(self, number: int) -> bool:
        """Let the writer go on. False: no such write waits."""
        write = self.held.pop(number, None)
        if write is None:
            return False
        self._send(wire.reply(write.unique, wire.written(write.size)))
        return True

    def _send(self, packet: bytes) -> None:
        try:
            self._answer(packet)
        except FileNotFoundError:
            # The request is gone: its writer was killed, or the mount ended.
            return

    def handle(self, packet: memoryview) -> None:
        """Answer one request, or hold it."""
        request = Request(packet)
        if request.opcode in wire.UNANSWERED:
            return
        if request.opcode == wire.WRITE and request.node & HELD:
            self._write_held(request)
            return
        work = _WORK.get(request.opcode)
        if work is None:
            # The kernel does without, and does not ask again.
            self._send(wire.error(request.unique, errno.ENOSYS))
            return
        try:
            payload = work(self, request)
        except OSError as failed:
            self._send(wire.error(request.unique, failed.errno or errno.EIO))
        except (ValueError, struct.error):
            self._send(wire.error(request.unique, errno.EINVAL))
        else:
            self._send(wire.reply(request.unique, payload))

    def _write_held(self, request: Request) -> None:
        _, offset, size, *_ = wire.IO_IN.unpack_from(request.body)
        piece = bytes(request.body[wire.IO_IN.size : wire.IO_IN.size + size])
        number = _number(request.node)
        if offset + size <= _TEXT_LIMIT:
            text = self._texts.get(number, b"")
            self._texts[number] = piece if offset == 0 else text[:offset].ljust(offset, b"\0") + piece
        self._times[number] = time.time_ns()
        if offset:
            self._send(wire.reply(request.unique, wire.written(size)))
            return
        # Without a name it is held all the same: the list was lost, and the agent has to look at every unit.
        write = HeldWrite(request, self._units.serial(number) or "", piece)
        self.held[write.number] = write
        self._hold(write)

    def _init(self, request: Request) -> bytes:
        major, minor, readahead, flags = wire.init_in(request)
        if major != 7 or minor < 12:
            raise OSError(errno.EPROTO, f"FUSE protocol {major}.{minor}")
        self.resends = bool(flags & wire.INIT_HAS_RESEND)
        return wire.init_out(minor, readahead, flags)

    def _attributes_held(self, number: int) -> wire.Attributes:
        size = len(self._texts.get(number, b""))
        return wire.Attributes(
            ino=HELD | number, size=size, mode=_FILE_MODE, time=self._times.get(number, self._started)
        )

    def _attributes(self, node: int) -> wire.Attributes:
        if node == wire.ROOT:
            return wire.Attributes(ino=wire.ROOT, size=0, mode=_ROOT_MODE, time=self._started, links=2)
        return self._attributes_held(_number(node)) if node & HELD else self._below.attributes(node)

    def _entry_held(self, name: str) -> bytes:
        number = self._units.number(name)
        self._lookups = (self._lookups + 1) & 0xFFFFFFFF
        return wire.entry(HELD | number << 32 | self._lookups, self._attributes_held(number))

    def _lookup(self, request: Request) -> bytes:
        (name,) = request.names()
        if self._units.holds(name):
            return self._entry_held(name)
        return wire.entry(*self._below.find(name))

    def _getattr(self, request: Request) -> bytes:
        return wire.attr(self._attributes(request.node))

    def _setattr(self, request: Request) -> bytes:
        node = request.node
        if node & FOREIGN:
            return wire.attr(self._below.change(node, request.body))
        valid, _, _, size, *_ = wire.SETATTR_IN.unpack_from(request.body)
        if node & HELD and valid & wire.SET_SIZE:
            if size > _TEXT_LIMIT:
                raise OSError(errno.EFBIG, "larger than anything LIO writes")
            number = _number(node)
            self._texts[number] = self._texts.get(number, b"")[:size].ljust(size, b"\0")
        return wire.attr(self._attributes(node))

    def _open(self, request: Request) -> bytes:
        flags, _ = wire.OPEN_IN.unpack_from(request.body)
        if request.node & FOREIGN:
            return wire.opened(self._below.open(request.node, flags))
        if flags & os.O_TRUNC:
            self._texts[_number(request.node)] = b""
        return wire.opened(0)

    def _create(self, request: Request) -> bytes:
        flags, mode, _, _ = wire.CREATE_IN.unpack_from(request.body)
        (name,) = request.names(wire.CREATE_IN.size)
        if self._units.holds(name):
            return self._entry_held(name) + wire.opened(0)
        node, attributes, handle = self._below.create(name, flags, mode)
        return wire.entry(node, attributes) + wire.opened(handle)

    def _read(self, request: Request) -> bytes:
        handle, offset, size, *_ = wire.IO_IN.unpack_from(request.body)
        if request.node & HELD:
            return self._texts.get(_number(request.node), b"")[offset : offset + size]
        return os.pread(self._below.descriptor(request.node, handle), size, offset)

    def _write(self, request: Request) -> bytes:
        handle, offset, size, *_ = wire.IO_IN.unpack_from(request.body)
        data = request.body[wire.IO_IN.size : wire.IO_IN.size + size]
        return wire.written(os.pwrite(self._below.descriptor(request.node, handle), data, offset))

    def _release(self, request: Request) -> bytes:
        if request.node & FOREIGN:
            self._below.close(wire.FH_IN.unpack_from(request.body)[0])
        return b""

    def _fsync(self, request: Request) -> bytes:
        if request.node & FOREIGN:
            self._below.sync(request.node, wire.FH_IN.unpack_from(request.body)[0])
        return b""

    def _unlink(self, request: Request) -> bytes:
        self._below.unlink(self._foreign(request.names()))
        return b""

    def _rename(self, request: Request) -> bytes:
        old, new = request.names(wire.RENAME_IN.size)
        self._below.rename(self._foreign([old]), self._foreign([new]))
        return b""

    def _foreign(self, names: list[str]) -> str:
        (name,) = names
        if self._units.holds(name):
            raise PermissionError(errno.EPERM, "the file of a unit of hactl's")
        return name

    def _readdir(self, request: Request) -> bytes:
        _, offset, size, *_ = wire.IO_IN.unpack_from(request.body)
        entries = [(".", wire.ROOT, _DT_DIR), ("..", wire.ROOT, _DT_DIR)]
        entries += (
            (PREFIX + serial, HELD | self._units.numbers[serial], _DT_REG)
            for serial in sorted(self._units.listed)
        )
        entries += (
            (name, FOREIGN, _DT_REG) for name in sorted(self._below.names()) if not self._units.holds(name)
        )
        return wire.directory(entries, offset, size)

    def _statfs(self, request: Request) -> bytes:
        del request
        return wire.statfs(self._below.statvfs())

    def _opendir(self, request: Request) -> bytes:
        del request
        return wire.opened(0)

    def _nothing(self, request: Request) -> bytes:
        del request
        return b""

    def _forbidden(self, request: Request) -> bytes:
        raise PermissionError(errno.EPERM, f"opcode {request.opcode}: only regular files live here")


def _number(node: int) -> int:
    return (node & ~HELD) >> 32


_WORK: dict[int, Callable[[FileSystem, Request], bytes]] = {
    wire.INIT: FileSystem._init,
    wire.LOOKUP: FileSystem._lookup,
    wire.GETATTR: FileSystem._getattr,
    wire.SETATTR: FileSystem._setattr,
    wire.OPEN: FileSystem._open,
    wire.CREATE: FileSystem._create,
    wire.READ: FileSystem._read,
    wire.WRITE: FileSystem._write,
    wire.RELEASE: FileSystem._release,
    wire.FSYNC: FileSystem._fsync,
    wire.UNLINK: FileSystem._unlink,
    wire.RENAME: FileSystem._rename,
    wire.STATFS: FileSystem._statfs,
    wire.READDIR: FileSystem._readdir,
    wire.OPENDIR: FileSystem._opendir,
    wire.RELEASEDIR: FileSystem._nothing,
    wire.FSYNCDIR: FileSystem._nothing,
    wire.FLUSH: FileSystem._nothing,
    wire.DESTROY: FileSystem._nothing,
    wire.MKNOD: FileSystem._forbidden,
    wire.MKDIR: FileSystem._forbidden,
    wire.SYMLINK: FileSystem._forbidden,
    wire.LINK: FileSystem._forbidden,
}
