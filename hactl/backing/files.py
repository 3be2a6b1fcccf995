"""Disks as files behind loop devices (loop(4)): for trials, and for nodes without LVM."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from hactl.backing import errors, image_files
from hactl.backing.commands import Commands
from hactl.backing.image_files import Image, Space
from hactl.backing.loops import COLUMNS, Loop, behind, loops
from hactl.backing.protocol import BackingDisk, DiskState, Key, PoolState
from hactl.errors import Failed, HactlError, Refused
from hactl.model.spec import PoolSpec
from hactl.runner import Completed
from hactl.thread import in_thread

T = TypeVar("T")

_log = structlog.get_logger("hactl.backing")

_TRIES = 40
_PAUSE = 0.05
"""Seconds between looks whether a loop device has let go: nothing tells."""


class FilePools:
    """Pools of kind ``files`` on the node this runs on.

    A file is made under another name and gets its own when it is complete; an extended attribute says that
    hactl made it. Which loop device it has changes with every boot: the link ``/dev/hactl/RESOURCE.VOLUME``
    (``links`` in the place of ``/dev`` in tests) leads to it.
    """

    def __init__(
        self,
        commands: Commands,
        *,
        links: Path = Path("/dev"),
        sys_block: Path = Path("/sys/class/block"),
        claimed: Callable[[str], bool] = image_files.claimed,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._commands = commands
        self._links = links
        self._sys_block = sys_block
        self._claimed = claimed
        self._sleep = sleep

    async def observe(self, pools: Iterable[PoolSpec]) -> dict[str, PoolState]:
        """As :meth:`hactl.backing.protocol.Backing.observe`."""
        attached = await self._loops()
        found = {}
        for pool in pools:
            try:
                space, images = await self._call(partial(_contents, _folder(pool)))
            except Failed as error:
                # The other pools are none the worse for it.
                _log.warning("pool cannot be read", pool=pool.name, error=error.message)
                continue
            if space is not None:
                disks = {i.key: self._state(pool, i, attached) for i in images}
                found[pool.name] = PoolState(space.size, space.free, space.block, disks=disks)
        return found

    def _state(self, pool: PoolSpec, image: Image, attached: tuple[Loop, ...]) -> DiskState:
        # Reads /sys and one link: nothing that waits for a disk.
        loop = self._loop(pool, image, attached)
        size = min(image.size, self._size(loop)) if loop is not None else image.size
        ready = loop is not None and image_files.target(self._link(pool, image.key)) == loop.device
        return DiskState(size, ready, image.ours)

    async def ensure(self, disk: BackingDisk, *, create: bool) -> None:
        """As :meth:`hactl.backing.protocol.Backing.ensure`."""
        folder = _folder(disk.pool)
        space = await self._space(disk.pool)
        image = await self._image(disk)
        if image is None:
            if not create:
                raise errors.absent(disk)
            if disk.size > space.free:
                raise errors.full(disk, space.free)
            await self._make(disk, folder)
            image = await self._image(disk)
            if image is None:
                raise Failed("backing-failed", f"{errors.describe(disk)}: its file is gone", "see the pool")
        if not image.ours:
            raise errors.foreign(disk, f"the file {image.path}")
        if image.size < disk.size:
            await self._grow(disk, image, space)
        await self._attach(disk, image)

    async def _make(self, disk: BackingDisk, folder: Path) -> None:
        try:
            path = await self._call(lambda: image_files.begin(folder, disk.key))
        except Failed as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENOTSUP:
                raise errors.unfit(
                    disk.pool,
                    f"the file system of {folder} keeps no extended attributes",
                    "use one that does, such as ext4 or xfs",
                ) from None
            raise
        try:
            await self._allocate(disk, path)
        except HactlError:
            await self._call(lambda: image_files.discard(folder, disk.key))
            raise
        await self._call(lambda: image_files.finish(folder, disk.key))

    async def _grow(self, disk: BackingDisk, image: Image, space: Space) -> None:
        if disk.size - image.size > space.free:
            raise errors.full(disk, space.free)
        try:
            await self._allocate(disk, image.path)
        except (Refused, Failed):
            # What it could get stays allocated otherwise. The loop device has not been told of it.
            await self._call(lambda: os.truncate(image.path, image.size))
            raise
        await self._call(lambda: image_files.sync(image.path))

    async def _allocate(self, disk: BackingDisk, path: Path) -> None:
        # The space is taken now, so that no write fails for the lack of it; what is new reads as zeros.
        done = await self._commands.run(["fallocate", "--length", str(disk.size), str(path)])
        if done.status:
            raise await self._no_space(disk, done)

    async def _no_space(self, disk: BackingDisk, done: Completed) -> HactlError:
        if "No space left" in done.stderr:
            return errors.full(disk, (await self._space(disk.pool)).free)
        if "not supported" in done.stderr:
            return errors.unfit(
                disk.pool, "its file system cannot allocate space ahead", "use ext4, xfs or btrfs"
            )
        return errors.failed(disk, done)

    async def _attach(self, disk: BackingDisk, image: Image) -> None:
        attached = await self._loops()
        loop = self._loop(disk.pool, image, attached)
        if loop is None:
            others = behind(attached, image.inode, image.filesystem)
            if others:
                # A second device on the same file would not see what the first one has not written yet.
                raise errors.in_use(disk, others[0].device)
            if not (self._links / "loop-control").exists():
                # Opening it loads the module, but somebody has to make it at boot.
                await self._run(disk, ["modprobe", "loop"])
            await self._run(
                disk, ["losetup", "--find", "--nooverlap", "--direct-io=on", "--show", str(image.path)]
            )
            loop = self._loop(disk.pool, image, await self._loops())
            if loop is None:
                raise Failed(
                    "backing-failed",
                    f"{errors.describe(disk)}: losetup attached no device to {image.path}",
                    "see losetup",
                )
        if self._size(loop) < disk.size:
            await self._run(disk, ["losetup", "--set-capacity", loop.device])
        link = self._link(disk.pool, image.key)
        device = loop.device
        if image_files.target(link) != device:
            await self._call(lambda: image_files.point(link, device))

    async def remove(self, disk: BackingDisk) -> None:
        """As :meth:`hactl.backing.protocol.Backing.remove`."""
        await self._space(disk.pool)
        image = await self._image(disk)
        link = self._link(disk.pool, disk.key)
        if image is not None:
            if not image.ours:
                raise errors.foreign(disk, f"the file {image.path}")
            for loop in behind(await self._loops(), image.inode, image.filesystem):
                await self._detach(disk, image, loop)
            await self._call(lambda: image_files.unpoint(link))
            await self._call(lambda: image_files.delete(image.path))
        await self._call(lambda: image_files.discard(_folder(disk.pool), disk.key))

    async def _detach(self, disk: BackingDisk, image: Image, loop: Loop) -> None:
        # Of a device that is in use, the kernel only notes that it is to be detached later, and says yes.
        if await self._call(lambda: self._claimed(loop.device)):
            raise errors.in_use(disk, loop.device)
        await self._run(disk, ["losetup", "--detach", loop.device])
        for _ in range(_TRIES):
            if loop.device not in {
                left.device for left in behind(await self._loops(), image.inode, image.filesystem)
            }:
                return
            await self._sleep(_PAUSE)
        raise errors.in_use(disk, loop.device)

    async def free(self, pool: PoolSpec) -> int:
        """As :meth:`hactl.backing.protocol.Backing.free`."""
        return (await self._space(pool)).free

    async def _space(self, pool: PoolSpec) -> Space:
        folder = _folder(pool)
        space = await self._call(lambda: image_files.space(folder))
        if space is None:
            raise errors.missing(
                pool, f"there is no folder {folder}", f"mount its file system, or create it: mkdir {folder}"
            )
        return space

    async def _image(self, disk: BackingDisk) -> Image | None:
        return await self._call(lambda: image_files.image(_folder(disk.pool), disk.key))

    async def _loops(self) -> tuple[Loop, ...]:
        return loops(await self._commands.read(["losetup", "--json", "--list", "--output", COLUMNS]))

    def _loop(self, pool: PoolSpec, image: Image, attached: tuple[Loop, ...]) -> Loop | None:
        """The device to use: the one that is linked, if there are several."""
        usable = [
            loop for loop in behind(attached, image.inode, image.filesystem) if loop.whole and not loop.going
        ]
        linked = image_files.target(self._link(pool, image.key))
        return next((loop for loop in usable if loop.device == linked), usable[0] if usable else None)

    def _size(self, loop: Loop) -> int:
        return image_files.device_size(loop.device, self._sys_block)

    def _link(self, pool: PoolSpec, key: Key) -> Path:
        return self._links / Path(pool.device(*key)).relative_to("/dev")

    async def _run(self, disk: BackingDisk, argv: list[str]) -> None:
        done = await self._commands.run(argv)
        if done.status:
            raise errors.failed(disk, done)

    async def _call(self, work: Callable[[], T]) -> T:
        try:
            return await in_thread(work)
        except OSError as error:
            where = error.filename or "a pool"
            raise Failed(
                "backing-failed", f"{where}: {error.strerror}", "see the file system, and dmesg"
            ) from error


def _folder(pool: PoolSpec) -> Path:
    if pool.files is None:
        raise ValueError(f"pool {pool.name} is not one of files")
    return Path(pool.files.path)


def _contents(folder: Path) -> tuple[Space | None, tuple[Image, ...]]:
    space = image_files.space(folder)
    return space, image_files.images(folder) if space is not None else ()
