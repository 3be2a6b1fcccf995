"""A node's pools of every kind; keeps :class:`hactl.backing.protocol.Backing`."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable

from hactl.backing.commands import Commands
from hactl.backing.files import FilePools
from hactl.backing.lvm import LvmPools
from hactl.backing.protocol import BackingDisk, PoolState
from hactl.model.spec import PoolSpec
from hactl.runner import Runner


class Pools:
    """The pools of the node this runs on. Changes of one disk are made one after the other, those of
    different disks at the same time."""

    def __init__(
        self, runner: Runner, *, lvm: LvmPools | None = None, files: FilePools | None = None
    ) -> None:
        commands = Commands(runner)
        self._lvm = lvm or LvmPools(commands)
        self._files = files or FilePools(commands)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def observe(self, pools: Iterable[PoolSpec]) -> dict[str, PoolState]:
        wanted = tuple(pools)
        files = [p for p in wanted if p.files is not None]
        lvm = [p for p in wanted if p.files is None]
        # Nothing is started for a kind of pool that the node does not have.
        found = await self._lvm.observe(lvm) if lvm else {}
        return {**found, **(await self._files.observe(files) if files else {})}

    async def ensure(self, disk: BackingDisk, *, create: bool = True) -> None:
        async with self._locks[disk.device]:
            await self._of(disk.pool).ensure(disk, create=create)

    async def extend(self, device: str, size: int) -> None:
        async with self._locks[device]:
            await self._lvm.extend(device, size)

    async def remove(self, disk: BackingDisk) -> None:
        async with self._locks[disk.device]:
            await self._of(disk.pool).remove(disk)

    async def free(self, pool: PoolSpec) -> int:
        return await self._of(pool).free(pool)

    def _of(self, pool: PoolSpec) -> LvmPools | FilePools:
        return self._lvm if pool.files is None else self._files
