"""The real directory below the mount, where the files of other people's targets are.

Every operation is relative to a descriptor of the directory: its path leads to the mount itself.
"""

from __future__ import annotations

import os
import stat

from hactl.pr_sync.capture.wire import (
    SET_ATIME,
    SET_ATIME_NOW,
    SET_GID,
    SET_MODE,
    SET_MTIME,
    SET_MTIME_NOW,
    SET_SIZE,
    SET_UID,
    SETATTR_IN,
    Attributes,
)

FOREIGN = 1 << 61
"""Set in the node number of a file of the real directory; the other bits are its inode number."""


class Below:
    """Only regular files are seen. All methods raise OSError as the calls they stand for."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._names: dict[int, str] = {}
        self._open: dict[int, int] = {}
        # Far from where the process before this one was counting: the kernel still uses its handles.
        self._next = int.from_bytes(os.urandom(6), "little") << 12

    @staticmethod
    def _node(found: os.stat_result) -> int:
        return FOREIGN | (found.st_ino & (FOREIGN - 1))

    def _attributes(self, found: os.stat_result) -> Attributes:
        return Attributes(
            ino=found.st_ino, size=found.st_size, mode=found.st_mode, time=found.st_mtime_ns,
            uid=found.st_uid, gid=found.st_gid, links=found.st_nlink,
        )  # fmt: skip

    def find(self, name: str) -> tuple[int, Attributes]:
        """Node number and attributes of the file of this name."""
        found = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(2, "not a regular file", name)
        node = self._node(found)
        self._names[node] = name
        return node, self._attributes(found)

    def name(self, node: int) -> str:
        """The name of a node. A node that this process has not seen yet was looked up by the one before
        it."""
        name = self._names.get(node)
        if name is not None:
            try:
                if self.find(name)[0] == node:
                    return name
            except FileNotFoundError:
                pass
            del self._names[node]
        for found in self.names():
            if self.find(found)[0] == node:
                return found
        raise FileNotFoundError(116, "no such file any more")

    def names(self) -> list[str]:
        with os.scandir(self._directory) as entries:
            return [one.name for one in entries if one.is_file(follow_symlinks=False)]

    def attributes(self, node: int) -> Attributes:
        return self.find(self.name(node))[1]

    def change(self, node: int, body: memoryview) -> Attributes:
        """fuse_setattr_in, carried out."""
        (valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _) = (
            SETATTR_IN.unpack_from(body)
        )
        descriptor = self._reopen(node, os.O_RDWR)
        try:
            if valid & SET_SIZE:
                os.ftruncate(descriptor, size)
            if valid & SET_MODE:
                os.fchmod(descriptor, stat.S_IMODE(mode))
            if valid & (SET_UID | SET_GID):
                os.fchown(descriptor, uid if valid & SET_UID else -1, gid if valid & SET_GID else -1)
            if valid & (SET_ATIME | SET_MTIME | SET_ATIME_NOW | SET_MTIME_NOW):
                now = os.fstat(descriptor)
                os.utime(descriptor, ns=(
                    atime * 10**9 + atime_ns if valid & SET_ATIME else now.st_atime_ns,
                    mtime * 10**9 + mtime_ns if valid & SET_MTIME else now.st_mtime_ns,
                ))  # fmt: skip
            return self._attributes(os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def _reopen(self, node: int, flags: int) -> int:
        return os.open(self.name(node), flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)

    def open(self, node: int, flags: int) -> int:
        """A handle for reads and writes. ``flags``: of open(2)."""
        kept = flags & (os.O_ACCMODE | os.O_TRUNC)
        return self._handle(self._reopen(node, kept))

    def create(self, name: str, flags: int, mode: int) -> tuple[int, Attributes, int]:
        """Node, attributes and a handle of the file of this name, made where it is not there."""
        kept = flags & (os.O_ACCMODE | os.O_TRUNC | os.O_EXCL)
        descriptor = os.open(
            name, kept | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, stat.S_IMODE(mode), dir_fd=self._directory
        )
        found = os.fstat(descriptor)
        self._names[self._node(found)] = name
        return self._node(found), self._attributes(found), self._handle(descriptor)

    def _handle(self, descriptor: int) -> int:
        self._next += 1
        self._open[self._next] = descriptor
        return self._next

    def descriptor(self, node: int, handle: int) -> int:
        """The open file behind a handle; one that the process before this one gave out is opened again."""
        if handle not in self._open:
            self._open[handle] = self._reopen(node, os.O_RDWR)
        return self._open[handle]

    def close(self, handle: int) -> None:
        descriptor = self._open.pop(handle, None)
        if descriptor is not None:
            os.close(descriptor)

    def unlink(self, name: str) -> None:
        os.unlink(name, dir_fd=self._directory)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def sync(self, node: int, handle: int) -> None:
        os.fsync(self.descriptor(node, handle))

    def statvfs(self) -> os.statvfs_result:
        return os.fstatvfs(self._directory)
