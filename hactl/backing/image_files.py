"""The calls to the kernel about files and links of a pool of files; all of them block."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hactl.backing.protocol import Key

ATTRIBUTE = "user.hactl"
"""Extended attribute of the files that hactl made: ``RESOURCE.VOLUME``."""

_NAME = re.compile(r"hactl\.([a-z0-9-]+)\.([0-9]+)\.img\Z")


@dataclass(frozen=True)
class Image:
    """A file named like a disk's. ``ours``: hactl made it."""

    key: Key
    path: Path
    size: int
    inode: int
    filesystem: str
    ours: bool


@dataclass(frozen=True)
class Space:
    """Of a file system, in bytes."""

    size: int
    free: int
    block: int


def file_name(key: Key) -> str:
    """Name of a disk's file in its pool."""
    return f"hactl.{key[0]}.{key[1]}.img"


def space(folder: Path) -> Space | None:
    """None if there is no such folder."""
    if not folder.is_dir():
        return None
    found = os.statvfs(folder)
    return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, found.f_frsize)


def images(folder: Path) -> tuple[Image, ...]:
    """All files of a pool that are named like a disk's."""
    found = (image(folder, key) for key in _keys(folder))
    return tuple(i for i in found if i is not None)


def _keys(folder: Path) -> Iterator[Key]:
    for path in sorted(folder.iterdir()):
        if match := _NAME.match(path.name):
            yield match[1], int(match[2])


def image(folder: Path, key: Key) -> Image | None:
    """What is there in the place of a disk's file, if anything."""
    path = folder / file_name(key)
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return Image(
        key=key,
        path=path,
        size=found.st_size,
        inode=found.st_ino,
        filesystem=f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}",
        ours=stat.S_ISREG(found.st_mode) and _owner(path) == f"{key[0]}.{key[1]}",
    )


def _owner(path: Path) -> str | None:
    try:
        return os.getxattr(path, ATTRIBUTE, follow_symlinks=False).decode(errors="replace")
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.ENOENT):
            return None
        raise


def unfinished(folder: Path, key: Key) -> Path:
    """Where a disk's file is made; under its name it is complete."""
    return folder / f".{file_name(key)}.new"


def begin(folder: Path, key: Key) -> Path:
    """An empty file that bears the mark of a disk, in the place of what an earlier attempt left."""
    path = unfinished(folder, key)
    path.unlink(missing_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.setxattr(file, ATTRIBUTE, f"{key[0]}.{key[1]}".encode())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)
    return path


def finish(folder: Path, key: Key) -> None:
    """Give the file its name, for good; :class:`FileExistsError` if there is one by now."""
    path = unfinished(folder, key)
    _sync(path, os.O_RDWR)
    # Not rename, which would take the place of whatever is there.
    os.link(path, folder / file_name(key))
    path.unlink()
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def discard(folder: Path, key: Key) -> None:
    """Remove what ``begin`` made."""
    unfinished(folder, key).unlink(missing_ok=True)


def delete(path: Path) -> None:
    """Remove a disk's file, for good."""
    path.unlink(missing_ok=True)
    _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)


def sync(path: Path) -> None:
    """Make a change of a file's size last."""
    _sync(path, os.O_RDWR)


def _sync(path: Path, flags: int) -> None:
    file = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def target(link: Path) -> str | None:
    """Where a symbolic link leads; None if there is none."""
    try:
        return str(link.readlink())
    except (FileNotFoundError, OSError):
        return None


def point(link: Path, device: str) -> None:
    """Have ``link`` lead to ``device``, whatever it led to before."""
    link.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(device)
    temporary.replace(link)


def unpoint(link: Path) -> None:
    """Remove a symbolic link; none is no error."""
    with contextlib.suppress(FileNotFoundError):
        link.unlink()


def claimed(device: str) -> bool:
    """Whether DRBD, a file system or device-mapper uses a block device for itself (open(2), O_EXCL)."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        raise
    return False


def device_size(device: str, sys_block: Path) -> int:
    """Bytes of a block device, by what the kernel says of it in ``/sys/class/block``; 0 if there is none."""
    try:
        return int((sys_block / Path(device).name / "size").read_text()) * 512
    except FileNotFoundError:
        return 0
