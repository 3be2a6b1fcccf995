"""DRBD's meta-data on this node's disks, through drbdmeta(8).

Each drbdmeta starts a drbdsetup to ask whether the minor is in use, and opens the disk for writing, after
which udev looks at it again; so it is not asked for what the disk itself tells.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from hactl.errors import Failed, Refused
from hactl.replication import metadata
from hactl.runner import Completed
from hactl.thread import in_thread

_NONE = "No valid meta data found"
_BUSY = ("Exclusive open failed", "Device or resource busy")
_LIB_DIR = Path("/var/lib/drbd")
"""Where drbdmeta notes of each minor where its meta-data was last (``lk_bdev_save`` in drbd-utils)."""
_TAIL = 8192
"""Internal meta-data has its super block in the last 4 KiB that begin at a multiple of 4 KiB."""


class Run(Protocol):
    """Starts a program for a resource; refusals and time-outs are raised as hactl's errors."""

    async def __call__(self, argv: list[str], name: str, *, check: bool = True) -> Completed: ...


class DrbdMeta:
    """``attached`` says whether the kernel has a minor with a disk, ``blank`` whether the end of a disk is
    known to hold nothing."""

    def __init__(
        self,
        run: Run,
        version: Callable[[], Awaitable[tuple[int, int, int]]],
        attached: Callable[[int], Awaitable[bool]],
        *,
        blank: Callable[[str], bool] | None = None,
        lib_dir: Path = _LIB_DIR,
    ) -> None:
        self._run = run
        self._version = version
        self._attached = attached
        self._blank = blank or tail_is_blank
        self._lib_dir = lib_dir
        self._bare: set[tuple[int, str]] = set()

    async def exists(self, name: str, minor: int, disk: str) -> bool:
        """Whether a disk carries meta-data; :class:`Refused` (``drbd-disk-busy``) if something other than
        DRBD has it open. A No is good for planning; :meth:`create` asks drbdmeta once more."""
        if await in_thread(lambda: self._nowhere(minor, disk)):
            self._bare.add((minor, disk))
            return False
        return await self._asked(name, minor, disk)

    def _nowhere(self, minor: int, disk: str) -> bool:
        """Neither of the two places where drbdmeta looks can hold meta-data: the end of the disk, and where
        the end was before the disk was enlarged, which it knows from a file only."""
        known = self._lib_dir / f"drbd-minor-{minor}.lkbd"
        return self._lib_dir.is_dir() and not known.exists() and self._blank(disk)

    async def _asked(self, name: str, minor: int, disk: str) -> bool:
        """The same as :meth:`exists`, by drbdmeta's own word."""
        # dstate first, since dump-md prints the whole bitmap; but only dump-md finds meta-data of a disk that
        # was enlarged while it was not attached, and so only its word that there is none counts. A disk that
        # had none when last asked is asked for that at once.
        text = ""
        for command in ("dump-md",) if (minor, disk) in self._bare else ("dstate", "dump-md"):
            done = await self._run(await self._argv(minor, disk, command), name, check=False)
            text = done.stdout + done.stderr
            if done.status == 0 or "unclean" in text:
                self._bare.discard((minor, disk))
                return True
            if _NONE not in text:
                break
        else:
            self._bare.add((minor, disk))
            return False
        if any(words in text for words in _BUSY):
            # An attached disk is claimed by DRBD, and then it carries meta-data.
            if await self._attached(minor):
                return True
            raise Refused(
                "drbd-disk-busy",
                f"resource {name}: {disk} is in use by something other than DRBD",
                "free the disk, or name another one",
            )
        raise Failed("drbd-metadata", f"resource {name}: cannot read the meta-data of {disk}: {text.strip()}")

    async def create(self, name: str, minor: int, disk: str, size: int, peers: int) -> None:
        """Write fresh meta-data for ``peers`` peers and a volume of ``size`` bytes; refused on a disk that
        carries anything, or is too small."""
        if await self._asked(name, minor, disk):
            raise Refused(
                "drbd-metadata-exists",
                f"resource {name}: {disk} carries DRBD meta-data already",
                f"if its data is of no use, wipe it with 'wipefs --all {disk}'",
            )
        await self._check(name, disk, metadata.required_disk_size(size, peers))
        # Forced, or drbdmeta asks whether bytes that mean nothing to it may go. What would matter was ruled
        # out.
        argv = await self._argv(minor, disk, "create-md", force=True)
        if await self._version() >= (9,):
            argv.append(str(peers))
        # Before, not after: of a time-out it is not known what it did.
        self._bare.discard((minor, disk))
        await self._run(argv, name)

    async def wipe(self, name: str, minor: int, disk: str) -> None:
        """Remove the meta-data of a disk whose minor is not configured; none is no error."""
        # Looked at without --force, by which drbdmeta also ignores that somebody else has the disk open.
        if not await self._asked(name, minor, disk):
            return
        await self._run(await self._argv(minor, disk, "wipe-md", force=True), name)
        if await self._asked(name, minor, disk):
            raise Failed(
                "drbd-metadata",
                f"resource {name}: the meta-data of {disk} is not at its end, and was not wiped",
                f"the disk was enlarged while it was not in use; run 'drbdmeta {minor} … check-resize'",
            )

    async def _check(self, name: str, disk: str, needed: int) -> None:
        argv = ["wipefs", "--no-act", "--noheadings", "--output", "TYPE", disk]
        found = (await self._run(argv, name)).stdout.split()
        if found:
            raise Refused(
                "drbd-disk-not-empty",
                f"resource {name}: {disk} carries a signature of {', '.join(sorted(set(found)))}",
                f"if its data is of no use, wipe it with 'wipefs --all {disk}'",
            )
        size = int((await self._run(["blockdev", "--getsize64", disk], name)).stdout)
        if size < needed:
            raise Refused(
                "drbd-disk-too-small",
                f"resource {name}: {disk} has {size} bytes, and the volume with meta-data needs {needed}",
                "use a larger disk or a smaller volume",
            )

    async def _argv(self, minor: int, disk: str, command: str, *, force: bool = False) -> list[str]:
        kind = ("v09", disk, "flex-internal") if await self._version() >= (9,) else ("v08", disk, "internal")
        return ["drbdmeta", *(["--force"] if force else []), str(minor), *kind, command]


def tail_is_blank(disk: str) -> bool:
    """Whether the last 8 KiB of a disk that nothing else has claimed are zero; False if it cannot be told."""
    try:
        file = os.open(disk, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        size = os.lseek(file, 0, os.SEEK_END)
        return size > _TAIL and os.pread(file, _TAIL, size - _TAIL) == bytes(_TAIL)
    except OSError:
        return False
    finally:
        os.close(file)
