"""Disks as logical volumes, thick (lvm(8)) or thin (lvmthin(7))."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from hactl.backing import errors
from hactl.backing.commands import Commands
from hactl.backing.lvm_report import (
    LV_FIELDS,
    NEW_TAG,
    TAG,
    VG_FIELDS,
    LogicalVolume,
    VolumeGroup,
    filter_setting,
    key_of,
    logical_volumes,
    lv_name,
    volume_groups,
)
from hactl.backing.protocol import BackingDisk, DiskState, PoolState
from hactl.errors import HactlError
from hactl.model.spec import PoolSpec
from hactl.runner import Completed

_SECTORS = 4096
"""Sizes are asked for in whole blocks; lvcreate wants at least whole sectors, and rounds up to extents."""
_TAIL = 1 << 20
_REPORT = ("--reportformat", "json", "--units", "b", "--nosuffix")
_FULL = ("insufficient free space", "insufficient suitable", "not enough free", "free space in thin pool")
_CONFIG_FILES = (Path("/etc/lvm/lvm.conf"), Path("/etc/lvm/lvmlocal.conf"))


class LvmPools:
    """Pools of kind ``lvm`` and ``lvm_thin`` on the node this runs on.

    What hactl made bears the tag ``hactl``, and until it is complete ``hactl.new``: an agent that was killed
    in between leaves something that is known to be its own, and known not to be ready.
    """

    def __init__(self, commands: Commands, config_files: tuple[Path, ...] = _CONFIG_FILES) -> None:
        self._commands = commands
        self._config_files = config_files
        self._filter: tuple[object, str] | None = None

    async def observe(self, pools: Iterable[PoolSpec]) -> dict[str, PoolState]:
        """As :meth:`hactl.backing.protocol.Backing.observe`."""
        groups, volumes = await self._look()
        found = {}
        for pool in pools:
            vg, thin_pool = _names(pool)
            group, thin = groups.get(vg), volumes.get((vg, thin_pool or ""))
            if group is None or (thin_pool is not None and (thin is None or not thin.thin_pool)):
                continue
            disks = {
                key: DiskState(lv.size, _ready(lv), _ours(pool, lv))
                for lv in volumes.values()
                if lv.vg == vg and (key := key_of(lv.name)) is not None
            }
            found[pool.name] = _state(group, thin, disks)
        return found

    async def ensure(self, disk: BackingDisk, *, create: bool) -> None:
        """As :meth:`hactl.backing.protocol.Backing.ensure`."""
        state, lv = await self._find(disk)
        if lv is None:
            if not create:
                raise errors.absent(disk)
            if not state.room_for(disk.size):
                raise errors.full(disk, state.free)
            await self._change(disk, state, _create(disk))
            lv = _created(disk)
        if not _ours(disk.pool, lv):
            raise errors.foreign(disk, f"the logical volume {lv.vg}/{lv.name}")
        full_name = f"{lv.vg}/{lv.name}"
        if not lv.active:
            await self._change(disk, state, ["lvchange", "--yes", "--activate", "y", full_name])
        if TAG not in lv.tags:
            # What was in this place before may have been DRBD's, and would be taken for this volume's.
            await self._other(disk, ["wipefs", "--all", "--quiet", disk.device])
            await self._change(disk, state, ["lvchange", "--addtag", TAG, "--deltag", NEW_TAG, full_name])
        if lv.size < disk.size:
            await self._grow(disk, state, lv)

    async def _grow(self, disk: BackingDisk, state: PoolState, lv: LogicalVolume) -> None:
        if not state.room_for(disk.size - lv.size):
            raise errors.full(disk, state.free)
        await self._change(disk, state, ["lvextend", "--size", _size(disk), f"{lv.vg}/{lv.name}"])
        if state.thin:
            return
        _, grown = await self._find(disk)
        if grown is not None and grown.size > lv.size:
            # DRBD looks for its meta-data at the end. The end is free space so far, also if it is attached.
            start = max(lv.size, grown.size - _TAIL)
            span = ["--offset", str(start), "--length", str(grown.size - start)]
            await self._other(disk, ["blkdiscard", "--force", "--zeroout", *span, disk.device])

    async def extend(self, device: str, size: int) -> None:
        """As :meth:`hactl.backing.protocol.Backing.extend`."""
        before = await self._length(device)
        if before >= size:
            return
        config = ["--config", await self._config()]
        argv = ["lvextend", *config, "--size", _blocks(size), device]
        done = await self._commands.run(argv)
        if done.status:
            raise errors.not_extended(device, size - before, done, full=_is_full(done))
        after = await self._length(device)
        if after > before:
            start = max(before, after - _TAIL)
            span = ["--offset", str(start), "--length", str(after - start)]
            done = await self._commands.run(["blkdiscard", "--force", "--zeroout", *span, device])
            if done.status:
                raise errors.not_extended(device, size - before, done)

    async def _length(self, device: str) -> int:
        return int(await self._commands.read(["blockdev", "--getsize64", device]))

    async def remove(self, disk: BackingDisk) -> None:
        """As :meth:`hactl.backing.protocol.Backing.remove`."""
        state, lv = await self._find(disk)
        if lv is None:
            return
        if not _ours(disk.pool, lv):
            raise errors.foreign(disk, f"the logical volume {lv.vg}/{lv.name}")
        if lv.open:
            # lvremove would find out too, but only after trying for seconds.
            raise errors.in_use(disk, disk.device)
        await self._change(disk, state, ["lvremove", "--yes", f"{lv.vg}/{lv.name}"])

    async def free(self, pool: PoolSpec) -> int:
        """As :meth:`hactl.backing.protocol.Backing.free`."""
        return (await self._pool(pool, *await self._look())).free

    async def _find(self, disk: BackingDisk) -> tuple[PoolState, LogicalVolume | None]:
        vg, _ = _names(disk.pool)
        groups, volumes = await self._look(vg)
        name = lv_name(disk.resource, disk.volume)
        return await self._pool(disk.pool, groups, volumes), volumes.get((vg, name))

    async def _pool(
        self,
        pool: PoolSpec,
        groups: dict[str, VolumeGroup],
        volumes: dict[tuple[str, str], LogicalVolume],
    ) -> PoolState:
        vg, thin_pool = _names(pool)
        if vg not in groups:
            raise errors.missing(
                pool, f"there is no volume group {vg}", f"create it: vgcreate {vg} and the disks it is to use"
            )
        if thin_pool is None:
            return _state(groups[vg], None, {})
        thin = volumes.get((vg, thin_pool))
        if thin is None:
            raise errors.missing(
                pool,
                f"there is no thin pool {vg}/{thin_pool}",
                f"create it: lvcreate --type thin-pool --extents 90%FREE --name {thin_pool} {vg}",
            )
        if not thin.thin_pool:
            raise errors.unfit(
                pool, f"{vg}/{thin_pool} is a logical volume and no thin pool", "name a thin pool"
            )
        return _state(groups[vg], thin, {})

    async def _look(
        self, vg: str | None = None
    ) -> tuple[dict[str, VolumeGroup], dict[tuple[str, str], LogicalVolume]]:
        # Selected, not named: a volume group that does not exist is nothing to fail for.
        select = ["--select", f'vg_name="{vg}"'] if vg is not None else []
        config = ["--config", await self._config()]
        groups, volumes = await asyncio.gather(
            self._commands.read(["vgs", *config, *_REPORT, "--options", VG_FIELDS, *select]),
            self._commands.read(["lvs", *config, *_REPORT, "--options", LV_FIELDS, *select]),
        )
        return volume_groups(groups), logical_volumes(volumes)

    async def _config(self) -> str:
        stamp = tuple(_stamp(path) for path in self._config_files)
        if self._filter is None or self._filter[0] != stamp:
            # Reads the configuration and no device. Ends with status 5 if the filter is not set.
            done = await self._commands.run(["lvmconfig", "devices/global_filter"])
            self._filter = stamp, filter_setting(done.stdout if done.status == 0 else "")
        return self._filter[1]

    async def _change(self, disk: BackingDisk, state: PoolState, argv: list[str]) -> None:
        done = await self._commands.run([argv[0], "--config", await self._config(), *argv[1:]])
        if done.status:
            raise _refusal(disk, state, done)

    async def _other(self, disk: BackingDisk, argv: list[str]) -> None:
        done = await self._commands.run(argv)
        if done.status:
            raise errors.failed(disk, done)


def _names(pool: PoolSpec) -> tuple[str, str | None]:
    if pool.lvm is not None:
        return pool.lvm.vg, None
    if pool.lvm_thin is not None:
        return pool.lvm_thin.vg, pool.lvm_thin.thin_pool
    raise ValueError(f"pool {pool.name} is not LVM's")


def _ready(lv: LogicalVolume) -> bool:
    return lv.active and TAG in lv.tags


def _ours(pool: PoolSpec, lv: LogicalVolume) -> bool:
    # Of the same name in another pool of the same volume group: not this pool's.
    return bool(lv.tags & {TAG, NEW_TAG}) and lv.pool == (_names(pool)[1] or "")


def _state(
    group: VolumeGroup, thin: LogicalVolume | None, disks: dict[tuple[str, int], DiskState]
) -> PoolState:
    if thin is None:
        return PoolState(group.size, group.free, group.extent, disks=disks)
    free = int(thin.size * (1 - thin.data))
    return PoolState(thin.size, max(0, free), group.extent, thin=True, disks=disks)


def _size(disk: BackingDisk) -> str:
    return _blocks(disk.size)


def _blocks(size: int) -> str:
    return f"{-(-size // _SECTORS) * _SECTORS}b"


def _created(disk: BackingDisk) -> LogicalVolume:
    """What lvcreate has just made, at least."""
    vg, thin_pool = _names(disk.pool)
    return LogicalVolume(
        vg=vg,
        name=lv_name(disk.resource, disk.volume),
        size=disk.size,
        tags=frozenset({NEW_TAG}),
        active=True,
        open=False,
        layout=frozenset(),
        pool=thin_pool or "",
        data=0.0,
    )


def _create(disk: BackingDisk) -> list[str]:
    vg, thin_pool = _names(disk.pool)
    common = ["--yes", "--addtag", NEW_TAG, "--name", lv_name(disk.resource, disk.volume)]
    if thin_pool is not None:
        return ["lvcreate", *common, "--virtualsize", _size(disk), "--thinpool", f"{vg}/{thin_pool}"]
    return ["lvcreate", *common, "--wipesignatures", "y", "--zero", "y", "--size", _size(disk), vg]


def _refusal(disk: BackingDisk, state: PoolState, done: Completed) -> HactlError:
    if _is_full(done):
        return errors.full(disk, state.free)
    if done.argv[0] == "lvremove" and "in use" in (done.stderr + done.stdout).lower():
        return errors.in_use(disk, disk.device)
    return errors.failed(disk, done)


def _is_full(done: Completed) -> bool:
    text = (done.stderr + done.stdout).lower()
    return any(words in text for words in _FULL)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
