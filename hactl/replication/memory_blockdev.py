"""Block devices in memory: the twin of :mod:`hactl.replication.blockdev` for tests of what is above."""

from __future__ import annotations

from collections.abc import Iterable

from hactl.model.preflight import BlockDevice


class MemoryDevices:
    """A node's devices by path; what is not in it does not exist."""

    def __init__(self, devices: Iterable[BlockDevice] = ()) -> None:
        self.devices = {d.path: d for d in devices}

    async def observe(self, paths: Iterable[str]) -> dict[str, BlockDevice]:
        missing = {p: BlockDevice(path=p, exists=False, is_block=False) for p in paths}
        return {p: self.devices.get(p, absent) for p, absent in missing.items()}
