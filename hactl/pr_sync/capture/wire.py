"""The FUSE wire protocol as ``/dev/fuse`` speaks it (include/uapi/linux/fuse.h, protocol 7.12 to 7.41).

Pure. All numbers are in the byte order of the machine. A request is one ``read``: a header of 40 bytes, then
the body of its opcode. An answer is one ``write``: a header of 16 bytes, then its payload.
"""

from __future__ import annotations

import os
from struct import Struct

ROOT = 1
RESENT = 1 << 63
"""Set in the ``unique`` of a request that the kernel sends again (FUSE_UNIQUE_RESEND). It belongs to the
answer."""

LOOKUP, FORGET, GETATTR, SETATTR = 1, 2, 3, 4
UNLINK, RENAME, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC = 10, 12, 14, 15, 16, 17, 18, 20
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR = 25, 26, 27, 28, 29, 30
CREATE, INTERRUPT, DESTROY, BATCH_FORGET = 35, 36, 38, 42
MKNOD, MKDIR, SYMLINK, LINK = 8, 9, 6, 13
UNANSWERED = frozenset((FORGET, BATCH_FORGET, INTERRUPT))
"""Opcodes without an answer: FORGET by definition; INTERRUPT may be ignored, and the request it is about goes
on waiting for its own answer."""

NOTIFY_RESEND = 7
OPEN_DIRECT_IO = 1 << 0
OPEN_NOFLUSH = 1 << 5

INIT_ATOMIC_O_TRUNC = 1 << 3
INIT_BIG_WRITES = 1 << 5
INIT_DONT_MASK = 1 << 6
INIT_MAX_PAGES = 1 << 22
INIT_EXT = 1 << 30
INIT_HAS_RESEND = 1 << 39

SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME = 1, 2, 4, 8, 16, 32
SET_ATIME_NOW, SET_MTIME_NOW = 128, 256

PAGES = 256
MAX_WRITE = 1 << 20
"""Bytes in one WRITE at most. A page of 4 KiB times ``PAGES``; larger pages are not used to the full."""
BUFFER = MAX_WRITE + 4096
"""Bytes that a ``read`` has to offer: the largest WRITE and its headers."""

_IN = Struct("=IIQQIIIHH")
_OUT = Struct("=IiQ")
_ATTR = Struct("=QQQQQQIIIIIIIIII")
_ENTRY = Struct("=QQQQII")
_ATTR_OUT = Struct("=QII")
_OPEN_OUT = Struct("=QIi")
_WRITE_OUT = Struct("=II")
_INIT_IN = Struct("=IIII")
_INIT_OUT = Struct("=IIIIHHIIHHII6I")
_STATFS = Struct("=QQQQQIIII6I")
_DIRENT = Struct("=QQII")

SETATTR_IN = Struct("=IIQQQQQQIIIIIIII")
OPEN_IN = Struct("=II")
CREATE_IN = Struct("=IIII")
IO_IN = Struct("=QQIIQII")
"""fuse_read_in and fuse_write_in: fh, offset, size, flags, lock owner, open flags, padding."""
FH_IN = Struct("=Q")
RENAME_IN = Struct("=Q")


class Request:
    """What the kernel asks. ``body`` is a view into the buffer it was read to: copy what is to be kept.
    ``thread``: number of the thread that waits for the answer."""

    __slots__ = ("body", "node", "opcode", "thread", "unique")

    def __init__(self, packet: memoryview) -> None:
        length, self.opcode, self.unique, self.node, _uid, _gid, self.thread, _ext, _ = _IN.unpack_from(
            packet
        )
        if length != len(packet):
            raise ValueError(f"a FUSE request of {len(packet)} bytes says that it has {length}")
        self.body = packet[_IN.size :]

    @property
    def number(self) -> int:
        """The request's number in its mount; the same when it is sent again."""
        return int(self.unique & ~RESENT)

    @property
    def resent(self) -> bool:
        return bool(self.unique & RESENT)

    def names(self, start: int = 0) -> list[str]:
        """The file names from ``start`` on, each ended by NUL."""
        return [os.fsdecode(name) for name in bytes(self.body[start:]).split(b"\0")[:-1]]


class Attributes:
    """What fuse_attr says about a file. ``time``: of its last change, in ns since 1970."""

    __slots__ = ("gid", "ino", "links", "mode", "size", "time", "uid")

    def __init__(
        self, *, ino: int, size: int, mode: int, time: int, uid: int = 0, gid: int = 0, links: int = 1
    ) -> None:
        self.ino = ino
        self.size = size
        self.mode = mode
        self.time = time
        self.uid = uid
        self.gid = gid
        self.links = links

    def packed(self) -> bytes:
        seconds, ns = divmod(self.time, 1_000_000_000)
        blocks = (self.size + 511) // 512
        return _ATTR.pack(
            self.ino, self.size, blocks, seconds, seconds, seconds, ns, ns, ns,
            self.mode, self.links, self.uid, self.gid, 0, 4096, 0,
        )  # fmt: skip


def reply(unique: int, payload: bytes = b"") -> bytes:
    """The answer to a request that was carried out."""
    return _OUT.pack(_OUT.size + len(payload), 0, unique) + payload


def error(unique: int, number: int) -> bytes:
    """The answer to a request that failed. ``number``: an errno, positive."""
    return _OUT.pack(_OUT.size, -number, unique)


def resend() -> bytes:
    """Asks for every request again that was read and not answered. A kernel before 6.9 refuses with
    EINVAL."""
    return _OUT.pack(_OUT.size, NOTIFY_RESEND, 0)


def init_in(request: Request) -> tuple[int, int, int, int]:
    """Major and minor version of the kernel's protocol, its read-ahead in bytes and its flags."""
    major, minor, readahead, flags = _INIT_IN.unpack_from(request.body)
    if flags & INIT_EXT:
        (high,) = Struct("=I").unpack_from(request.body, _INIT_IN.size)
        flags |= high << 32
    return major, minor, readahead, flags


def init_out(minor: int, readahead: int, flags: int) -> bytes:
    """What is used of what the kernel offers.

    Without the caches: every open asks anew, so that the server may be replaced at any time, and a write to a
    file is on its way to the server before the writer goes on.
    """
    wanted = (
        INIT_ATOMIC_O_TRUNC | INIT_BIG_WRITES | INIT_DONT_MASK | INIT_MAX_PAGES | INIT_EXT | INIT_HAS_RESEND
    )
    used = flags & wanted
    return _INIT_OUT.pack(
        7,
        min(minor, 41),
        readahead,
        used & 0xFFFFFFFF,
        64,
        48,
        MAX_WRITE,
        1,
        PAGES,
        0,
        used >> 32,
        0,
        *[0] * 6,
    )


def entry(node: int, attributes: Attributes) -> bytes:
    """fuse_entry_out: a name leads to this node. Valid for no time at all."""
    return _ENTRY.pack(node, 0, 0, 0, 0, 0) + attributes.packed()


def attr(attributes: Attributes) -> bytes:
    """fuse_attr_out, valid for no time at all."""
    return _ATTR_OUT.pack(0, 0, 0) + attributes.packed()


def opened(handle: int) -> bytes:
    """fuse_open_out. Past the page cache: writes are synchronous and sent as they come."""
    return _OPEN_OUT.pack(handle, OPEN_DIRECT_IO | OPEN_NOFLUSH, 0)


def written(size: int) -> bytes:
    """fuse_write_out."""
    return _WRITE_OUT.pack(size, 0)


def statfs(found: os.statvfs_result) -> bytes:
    """fuse_statfs_out."""
    return _STATFS.pack(
        found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree,
        found.f_bsize, found.f_namemax, found.f_frsize, 0, *[0] * 6,
    )  # fmt: skip


def directory(entries: list[tuple[str, int, int]], offset: int, room: int) -> bytes:
    """As many fuse_dirent as fit into ``room`` bytes. ``entries``: name, number, file type (DT_REG, ...);
    ``offset``: how many of them the reader has had."""
    out = b""
    for index, (name, ino, kind) in enumerate(entries[offset:], offset + 1):
        raw = os.fsencode(name)
        one = _DIRENT.pack(ino, index, len(raw), kind) + raw
        one += b"\0" * (-len(one) % 8)
        if len(out) + len(one) > room:
            break
        out += one
    return out
