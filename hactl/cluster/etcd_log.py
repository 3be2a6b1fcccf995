"""The end of a member's log on its disk: how far it goes, how much of it is known to be committed, and how
all of it is declared committed.

``etcd --force-new-cluster`` throws away what the log has beyond the commit index that was written down
(``restartAsStandaloneNode`` in etcd's server/etcdserver/raft.go), and writes its own entries over it. But a
member has an entry before it learns that it is committed: what the lost leader answered last may be in that
part. Of two members each has everything that was ever answered, so nothing is lost if all of it is kept; what
nobody was answered may be kept as well as not.

Format (etcd's server/wal and raft/raftpb, the same in 3.4 and 3.5): frames of a little-endian 64-bit length,
whose highest byte tells the padding to a multiple of 8, and a ``walpb.Record``; its CRC-32C goes on over all
records of a file, and begins with the value in the record of type CRC. A file is longer than what is in it;
the rest is zeros.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hactl.errors import Failed

ENTRY, STATE, CRC, SNAPSHOT = 2, 3, 4, 5
_LENGTH = struct.Struct("<Q")
_BYTES = (1 << 56) - 1
_CASTAGNOLI = 0x82F63B78


@dataclass(frozen=True)
class LogEnd:
    """Raft's term and index of the last entry."""

    term: int = 0
    index: int = 0


@dataclass(frozen=True)
class LogState:
    """``end``: of the log; ``committed``: the index up to which the member knows it to be committed; ``term``
    and ``vote``: of the last election that it took part in."""

    end: LogEnd
    committed: int
    term: int
    vote: int


class EtcdLog(Protocol):
    """The log in an etcd's data folder, while etcd does not run. Kept by :class:`FileLog` and
    ``memory_members.MemoryLog``; :class:`hactl.errors.Failed` ``etcd-log`` if it cannot be used."""

    def read(self, data: Path) -> LogState:
        """How far it is."""
        ...

    def commit(self, data: Path) -> LogState:
        """Have all of it count as committed; how far it is then. It is on the disk when this returns."""
        ...


@dataclass(frozen=True)
class _Record:
    type: int
    crc: int
    data: bytes
    end: int
    """Offset in the file after its frame."""


class FileLog:
    """Keeps :class:`EtcdLog` on etcd's own files."""

    def read(self, data: Path) -> LogState:
        return self._looked_at(data)[0]

    def commit(self, data: Path) -> LogState:
        state, path, last = self._looked_at(data)
        if state.committed >= state.end.index:
            return state
        hard = _varints((1, state.term), (2, state.vote), (3, state.end.index))
        record = _varints((1, STATE), (2, crc32c(last.crc, hard))) + _bytes(3, hard)
        padding = -len(record) % 8
        length = len(record) | ((0x80 | padding) << 56 if padding else 0)
        try:
            with path.open("r+b") as file:
                file.seek(last.end)
                file.write(_LENGTH.pack(length) + record + bytes(padding))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _failed(path, str(error)) from None
        return self.read(data)

    def _looked_at(self, data: Path) -> tuple[LogState, Path, _Record]:
        """The state, and the last file with its last record, after which more may be written."""
        paths = sorted((data / "member" / "wal").glob("*.wal"))
        if not paths:
            raise _failed(data, "there is no log in it")
        end, hard, last = LogEnd(), {1: 0, 2: 0, 3: 0}, None
        try:
            for path in paths:
                before, last = None, None
                for record in _records(path.read_bytes()):
                    before, last = last, record
                    if record.type == ENTRY:
                        fields = _fields(record.data)
                        # One that comes later with a lower index replaces what was there from it on.
                        end = LogEnd(_number(fields, 2), _number(fields, 3))
                    elif record.type == SNAPSHOT:
                        fields = _fields(record.data)
                        # Received instead of the entries up to it.
                        if _number(fields, 1) > end.index:
                            end = LogEnd(_number(fields, 2), _number(fields, 1))
                    elif record.type == STATE:
                        fields = _fields(record.data)
                        hard = {number: _number(fields, number) for number in (1, 2, 3)}
        except (OSError, ValueError) as error:
            raise _failed(path, str(error)) from None
        if last is None or before is None or last.crc != _expected(before, last):
            raise _failed(paths[-1], "its last record is not whole")
        return LogState(end, hard[3], hard[1], hard[2]), paths[-1], last


def _expected(before: _Record, last: _Record) -> int:
    return before.crc if last.type == CRC else crc32c(before.crc, last.data)


def _failed(path: Path, why: str) -> Failed:
    return Failed(
        "etcd-log",
        f"etcd's log {path} cannot be used: {why}",
        "etcd repairs what a power loss has left, when it starts: systemctl start hactl-etcd; see its"
        " journal; then run it again",
    )


def _records(content: bytes) -> Iterator[_Record]:
    at = 0
    while at + 8 <= len(content):
        (length,) = _LENGTH.unpack_from(content, at)
        if length == 0:
            return
        size, padding = length & _BYTES, (length >> 56) & 7
        start = at + 8
        at = start + size + padding
        if at > len(content):
            raise ValueError("a record is cut off")
        fields = _fields(content[start : start + size])
        data = fields.get(3, b"")
        if not isinstance(data, bytes):
            raise ValueError("a record is not one")
        yield _Record(_number(fields, 1), _number(fields, 2), data, at)


def _fields(message: bytes) -> dict[int, int | bytes]:
    """The fields of a protobuf message that has only varints and byte strings; the last of each number."""
    found: dict[int, int | bytes] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        value, at = _varint(message, at)
        if tag & 7 == 0:
            found[tag >> 3] = value
        elif tag & 7 == 2 and at + value <= len(message):
            found[tag >> 3] = message[at : at + value]
            at += value
        else:
            raise ValueError("a record has a field of a kind that is not known")
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("a record is not whole")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def _number(fields: dict[int, int | bytes], number: int) -> int:
    value = fields.get(number, 0)
    if not isinstance(value, int):
        raise ValueError("a record has text where a number belongs")
    return value


def _varints(*fields: tuple[int, int]) -> bytes:
    return b"".join(_encoded(number << 3) + _encoded(value) for number, value in fields)


def _bytes(number: int, value: bytes) -> bytes:
    return _encoded(number << 3 | 2) + _encoded(len(value)) + value


def _encoded(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def crc32c(before: int, data: bytes) -> int:
    """CRC-32C of ``data`` after other data whose CRC was ``before``, as Go's hash/crc32 goes on."""
    crc = before ^ 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _table() -> tuple[int, ...]:
    rows = []
    for number in range(256):
        crc = number
        for _ in range(8):
            crc = (crc >> 1) ^ _CASTAGNOLI if crc & 1 else crc >> 1
        rows.append(crc)
    return tuple(rows)


_TABLE = _table()
