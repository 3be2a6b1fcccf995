"""DRBD's meta-data on this node's disks, through drbdmeta(8).

Each drbdmeta starts a drbdsetup to ask whether the minor is in use, and opens the disk for writing, after
which udev looks at it again; so it is not asked for what the disk itself tells.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Protocol

from hactl.errors import Failed, Refused
from hactl.replication import metadata
from hactl.replication.metadata_text import JUST_CREATED, good_data
from hactl.runner import Completed
from hactl.thread import in_thread

_NONE = "No valid meta data found"
_BUSY = ("Exclusive open failed", "Device or resource busy")
_LIB_DIR = Path("/var/lib/drbd")
"""Where drbdmeta notes of each minor where its meta-data was last (``lk_bdev_save`` in drbd-utils)."""
_TRUNCATES = 40
"""Status of drbdmeta if what it recognises on a disk is larger than the disk would be (also by force)."""
_TAIL = 8192
"""Internal meta-data has its super block in the last 4 KiB that begin at a multiple of 4 KiB."""


class Run(Protocol):
    """Starts a program for a resource; refusals and time-outs are raised as hactl's errors."""

    async def __call__(self, argv: list[str], name: str, *, check: bool = True) -> Completed: ...


class DrbdMeta:
    """``attached`` says whether the kernel has a minor with a disk, ``blank`` whether the end of a disk is
    known to hold nothing; ``generation`` names new generations of data."""

    def __init__(
        self,
        run: Run,
        version: Callable[[], Awaitable[tuple[int, int, int]]],
        attached: Callable[[int], Awaitable[bool]],
        *,
        blank: Callable[[str], bool] | None = None,
        lib_dir: Path = _LIB_DIR,
        generation: Callable[[], int] | None = None,
    ) -> None:
        self._run = run
        self._version = version
        self._attached = attached
        self._blank = blank or tail_is_blank
        self._lib_dir = lib_dir
        self._generation = generation or _new_generation
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

    async def adopt(self, name: str, minor: int, disk: str, size: int, peers: int) -> None:
        """Write meta-data behind the first ``size`` bytes of a disk, which say that those are good; none of
        these bytes is written to. Refused on a disk that carries meta-data, or has no room behind them.

        Complete at once or not there at all: the super block is what drbdmeta writes last.
        """
        if await self._asked(name, minor, disk):
            raise Refused(
                "drbd-metadata-exists",
                f"resource {name}: {disk} carries DRBD meta-data already",
                f"if nobody needs the data behind it, remove it: wipefs --all --types drbd {disk}",
            )
        length = await self._room(name, disk, metadata.required_disk_size(size, peers))
        start = metadata.usable_size(length, peers)
        if start < size:
            raise AssertionError(f"meta-data would begin at {start}, within {size} bytes of data")
        self._bare.discard((minor, disk))
        # restore-md leaves the activity log as it finds it. The same program also refuses a disk that is in
        # use.
        span = ["--offset", str(start), "--length", str(length // 4096 * 4096 - start)]
        await self._run(["blkdiscard", "--zeroout", *span, disk], name)
        text = good_data(await self._version(), generation=self._generation(), size=size, peers=peers)
        await self._restore(name, minor, disk, text)

    async def _restore(self, name: str, minor: int, disk: str, text: str) -> None:
        # Without the second word drbdmeta refuses what it recognises and knows no size of, such as swap
        # space, or a physical volume of a host's. What it knows to be larger than the volume it refuses all
        # the same.
        argv = await self._argv(minor, disk, "restore-md", force=True)
        argv.insert(2, "--ignore-sanity-checks")
        with NamedTemporaryFile("w", prefix="hactl-", suffix=".md") as file:
            file.write(text)
            file.flush()
            done = await self._run([*argv, file.name], name, check=False)
        if done.status == _TRUNCATES:
            raise Refused(
                "drbd-data-too-large",
                f"resource {name}: what is on {disk} reaches into the place of DRBD's meta-data, by what "
                f"drbdmeta recognises of it: {_sentence(done.stdout)}",
                "is the volume's size what hosts saw of the disk? Write it as it was, and enlarge the disk",
            )
        if done.status:
            raise Failed(
                "drbd-metadata",
                f"resource {name}: the meta-data of {disk} cannot be written: "
                f"{_sentence(done.stderr or done.stdout)}",
                "try again, or the command by hand",
            )

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
        await self._room(name, disk, needed)

    async def _room(self, name: str, disk: str, needed: int) -> int:
        """Bytes of a disk; refused if they are fewer than ``needed``."""
        size = int((await self._run(["blockdev", "--getsize64", disk], name)).stdout)
        if size < needed:
            raise Refused(
                "drbd-disk-too-small",
                f"resource {name}: {disk} has {size} bytes, and the volume with meta-data needs {needed}",
                "use a larger disk or a smaller volume",
            )
        return size

    async def _argv(self, minor: int, disk: str, command: str, *, force: bool = False) -> list[str]:
        kind = ("v09", disk, "flex-internal") if await self._version() >= (9,) else ("v08", disk, "internal")
        return ["drbdmeta", *(["--force"] if force else []), str(minor), *kind, command]


def _sentence(text: str) -> str:
    return " ".join(text.split())


def _new_generation() -> int:
    """As drbdmeta's own: random, and even."""
    return max(secrets.randbits(64) & ~1, JUST_CREATED + 2)


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
