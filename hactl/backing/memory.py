"""In-memory twin of a node's pools; keeps :class:`hactl.backing.protocol.Backing`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hactl.backing import errors
from hactl.backing.protocol import BackingDisk, DiskState, Key, PoolState
from hactl.errors import Failed, Refused
from hactl.model.spec import PoolSpec
from hactl.replication.memory_cluster import MemoryDrbdCluster

EXTENT = 4 << 20


@dataclass
class _Made:
    """Something under a disk's path. ``ready``: its device is there."""

    pool: str
    key: Key
    size: int
    ours: bool = True
    ready: bool = True


class MemoryBacking:
    """``sizes``: bytes of each pool that is there, by name; may be changed. With ``drbd``, the disks are
    those of ``node`` in that cluster: what DRBD has attached is in use, and a new disk is an empty one."""

    def __init__(
        self, sizes: Mapping[str, int], *, drbd: MemoryDrbdCluster | None = None, node: str = ""
    ) -> None:
        self.sizes = dict(sizes)
        self.spare = 1 << 40
        """Bytes that logical volumes which hactl did not make can grow by."""
        self.opened: set[str] = set()
        """Devices that something else has open."""
        self._drbd = drbd
        self._node = node
        self._made: dict[str, _Made] = {}

    async def observe(self, pools: Iterable[PoolSpec]) -> dict[str, PoolState]:
        return {p.name: self._state(p) for p in pools if p.name in self.sizes}

    async def ensure(self, disk: BackingDisk, *, create: bool = True) -> None:
        state = self._pool(disk.pool)
        made = self._made.get(disk.device)
        if made is None and not create:
            raise errors.absent(disk)
        if made is not None and not state.disks[disk.key].ours:
            raise errors.foreign(disk, disk.device)
        size = -(-disk.size // state.extent) * state.extent
        before = made.size if made is not None else 0
        if before < disk.size and not state.room_for(size - before):
            raise errors.full(disk, state.free)
        if made is None:
            made = self._made[disk.device] = _Made(disk.pool.name, disk.key, size)
            if self._drbd is not None:
                self._drbd.disks.pop((self._node, disk.device), None)
        made.ready = True
        made.size = max(made.size, size)
        if self._drbd is not None:
            self._drbd.disk(self._node, disk.device).size = made.size
            self._drbd.touch()

    async def extend(self, device: str, size: int) -> None:
        disk = self._drbd.disk(self._node, device) if self._drbd is not None else None
        made = self._made.get(device)
        found = disk if disk is not None and disk.kind == "lvm" else made
        if found is None or device.startswith("/dev/hactl/"):
            raise Failed("backing-failed", f"{device} is no logical volume", "name one")
        if found.size >= size:
            return
        wanted = -(-size // EXTENT) * EXTENT
        if wanted - found.size > self.spare:
            raise Refused("extend-no-room", f"{device} has to grow, and there is no room", "make room")
        self.spare -= wanted - found.size
        found.size = wanted

    async def remove(self, disk: BackingDisk) -> None:
        state = self._pool(disk.pool)
        if disk.device not in self._made:
            return
        if not state.disks[disk.key].ours:
            raise errors.foreign(disk, disk.device)
        if self._in_use(disk.device):
            raise errors.in_use(disk, disk.device)
        del self._made[disk.device]
        if self._drbd is not None:
            self._drbd.disks.pop((self._node, disk.device), None)

    async def free(self, pool: PoolSpec) -> int:
        return self._pool(pool).free

    # What happens to it

    def reboot(self) -> None:
        """No loop device is attached, and nothing is open."""
        self.opened.clear()
        for device, made in self._made.items():
            made.ready = not device.startswith("/dev/hactl/")

    def put_foreign(self, disk: BackingDisk) -> None:
        """Somebody else makes something of that name."""
        self._made[disk.device] = _Made(disk.pool.name, disk.key, disk.size, ours=False)

    def lose(self, disk: BackingDisk) -> None:
        """Somebody removes it by hand."""
        self._made.pop(disk.device, None)

    def devices(self) -> set[str]:
        """Paths of all that hactl made."""
        return {device for device, made in self._made.items() if made.ours}

    def _pool(self, pool: PoolSpec) -> PoolState:
        if pool.name not in self.sizes:
            raise errors.missing(pool, "it does not exist", "create it")
        return self._state(pool)

    def _state(self, pool: PoolSpec) -> PoolState:
        # Two pools of one volume group share names.
        here = {m.key: m for d, m in self._made.items() if d == pool.device(*m.key)}
        thin = pool.lvm_thin is not None
        used = 0 if thin else sum(m.size for m in self._made.values() if m.pool == pool.name)
        size = self.sizes[pool.name]
        return PoolState(
            size,
            size - used,
            4096 if pool.files is not None else EXTENT,
            thin,
            {k: DiskState(m.size, m.ready, m.ours and m.pool == pool.name) for k, m in here.items()},
        )

    def _in_use(self, device: str) -> bool:
        if device in self.opened:
            return True
        if self._drbd is None:
            return False
        disk = self._drbd.disk(self._node, device)
        instances = self._drbd.nodes[self._node].instances.values()
        return any(r.disk is disk for i in instances for r in i.replicas.values())
