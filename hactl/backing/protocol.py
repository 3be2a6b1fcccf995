"""What the agent asks of a node's pools; kept by ``pools.Pools`` and ``memory.MemoryBacking``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from hactl.model.desired import Leftover
from hactl.model.spec import POOL, ClusterSpec, NodeSpec, PoolSpec, ResourceSpec
from hactl.replication import metadata

Key = tuple[str, int]
"""Resource name and volume number."""


@dataclass(frozen=True)
class BackingDisk:
    """A volume's disk in a pool. ``size``: bytes the device must have at least; it may get more, since pools
    hand out whole extents."""

    resource: str
    volume: int
    pool: PoolSpec
    size: int

    @property
    def key(self) -> Key:
        return self.resource, self.volume

    @property
    def device(self) -> str:
        """Path of the block device, which stays the same for as long as the disk exists."""
        return self.pool.device(self.resource, self.volume)


@dataclass(frozen=True)
class DiskState:
    """Something in a pool that has the name of a volume's disk.

    ``size``: bytes of it. ``ready``: complete, and there under :attr:`BackingDisk.device`; ``ensure`` makes
    it so, after a reboot too. ``ours`` is False for what hactl did not make: it is in the way, and is never
    touched.
    """

    size: int
    ready: bool
    ours: bool = True

    def satisfies(self, disk: BackingDisk) -> bool:
        """Whether ``ensure`` would have nothing to do."""
        return self.ours and self.ready and self.size >= disk.size


@dataclass(frozen=True)
class PoolState:
    """A pool that is there, in bytes. ``extent``: sizes of disks are rounded up to it. ``thin``: disks take
    space only as they are written, so that all together may be larger than the pool."""

    size: int
    free: int
    extent: int
    thin: bool = False
    disks: dict[Key, DiskState] = field(default_factory=dict)

    def room_for(self, size: int) -> bool:
        """Whether a disk of ``size`` bytes can be created, as far as space goes."""
        return self.free > 0 if self.thin else -(-size // self.extent) * self.extent <= self.free


class Backing(Protocol):
    """The pools of one node.

    :class:`hactl.errors.Refused`: ``pool-missing``, ``pool-unfit``, ``pool-full``, ``backing-missing``,
    ``backing-foreign``, ``backing-in-use``; nothing was changed. :class:`hactl.errors.Failed`:
    ``backing-failed``, ``program-missing``; :class:`hactl.errors.Unknown`: ``backing-timeout``. All methods
    may be repeated after any of them.
    """

    async def observe(self, pools: Iterable[PoolSpec]) -> dict[str, PoolState]:
        """Pools by name, and what in them is named like a volume's disk. A pool that does not exist, or
        cannot be used, is not in the answer."""
        ...

    async def ensure(self, disk: BackingDisk, *, create: bool = True) -> None:
        """Have the disk there, under its path, and large enough: create it, empty; complete what was left
        half made; attach it again after a reboot; grow it, also while it is in use. Never shrinks, and never
        takes over what hactl did not make.

        Without ``create``, a disk that does not exist is ``backing-missing``: for one that had data already,
        where a new, empty one would hide that (a file system that is not mounted, for example)."""
        ...

    async def extend(self, device: str, size: int) -> None:
        """Make a logical volume that hactl did not make at least ``size`` bytes large. What is in it stays,
        and what comes behind it ends in zeros, so that it carries nobody's meta-data. Large enough: nothing
        is done. :class:`hactl.errors.Refused` ``extend-no-room``; ``backing-failed`` if it is no logical
        volume."""
        ...

    async def remove(self, disk: BackingDisk) -> None:
        """Destroy the disk and its data; its ``size`` is not looked at, and no disk is no error. Refused
        while something has it open, or if hactl did not make it."""
        ...

    async def free(self, pool: PoolSpec) -> int:
        """Bytes that can still be had; ``pool-missing`` if there is no such pool."""
        ...


def device_size(size: int, peers: int = 7) -> int:
    """Bytes that a device must have for a volume that offers ``size`` bytes to initiators: those and DRBD's
    internal meta-data, with room for ``peers`` peers (:func:`hactl.replication.metadata.max_peers`; 7 is the
    most that is usual)."""
    return metadata.required_disk_size(size, peers)


def backing_disks(
    node: NodeSpec, resource: ResourceSpec, version: tuple[int, int, int]
) -> tuple[BackingDisk, ...]:
    """The disks of a resource that come from pools on ``node``, for a DRBD of that version. ``resource`` is
    as written, not :meth:`ClusterSpec.resolved`; a pool that the node does not have raises
    :class:`KeyError`."""
    peers = metadata.max_peers(resource, version)
    return tuple(
        BackingDisk(resource.name, v.number, node.pool(disk.removeprefix(POOL)), device_size(v.size, peers))
        for v in resource.volumes
        if (disk := v.disks.get(node.name, "")).startswith(POOL)
    )


def leftover_disk(cluster: ClusterSpec, leftover: Leftover) -> BackingDisk | None:
    """The disk that is to be removed with ``leftover``; None if it did not come from a pool, or is to be
    kept. A pool that the node does not have any more raises :class:`KeyError`."""
    if not leftover.destroy or leftover.disk is None or not leftover.disk.startswith(POOL):
        return None
    pool = cluster.node(leftover.node).pool(leftover.disk.removeprefix(POOL))
    return BackingDisk(leftover.resource, leftover.volume, pool, 0)
