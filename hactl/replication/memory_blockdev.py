"""Block devices in memory: the twins of :mod:`hactl.replication.blockdev` for tests of what is above."""

from __future__ import annotations

from collections.abc import Iterable

from hactl.errors import Failed
from hactl.model.preflight import DRBD_SIGNATURE, BlockDevice, Signature
from hactl.replication.memory_cluster import MemoryDrbdCluster


class MemoryDevices:
    """A node's devices by path; what is not in it does not exist."""

    def __init__(self, devices: Iterable[BlockDevice] = ()) -> None:
        self.devices = {d.path: d for d in devices}

    async def observe(self, paths: Iterable[str]) -> dict[str, BlockDevice]:
        missing = {p: BlockDevice(path=p, exists=False, is_block=False) for p in paths}
        return {p: self.devices.get(p, absent) for p, absent in missing.items()}


class MemoryDrbdDevices(MemoryDevices):
    """The disks of one node of a :class:`MemoryDrbdCluster`; what :attr:`devices` says of a path goes
    before."""

    def __init__(self, cluster: MemoryDrbdCluster, node: str) -> None:
        super().__init__()
        self.unreadable: set[str] = set()
        self._cluster = cluster
        self._node = node

    async def observe(self, paths: Iterable[str]) -> dict[str, BlockDevice]:
        asked = list(paths)
        for path in asked:
            if path in self.unreadable:
                raise Failed("disk-unreadable", f"lsblk failed: {path}: Input/output error", "see dmesg")
        return {p: self.devices[p] if p in self.devices else self._look(p) for p in asked}

    def _look(self, path: str) -> BlockDevice:
        disk = self._cluster.disk(self._node, path)
        signatures = [Signature(disk.signature, "filesystem")] if disk.signature else []
        if disk.metadata is not None:
            signatures.append(Signature(DRBD_SIGNATURE))
        users = [
            (name, number)
            for name, instance in self._cluster.nodes[self._node].instances.items()
            for number, replica in instance.replicas.items()
            if replica.disk is disk
        ]
        return BlockDevice(
            path=path,
            size=disk.size,
            signatures=tuple(signatures),
            in_use_by=users[0] if users else None,
            kind=disk.kind,
            exported_by=disk.exported,
            claimed=disk.exported is not None,
        )
